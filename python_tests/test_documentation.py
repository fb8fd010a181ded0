"""What README and docs say runs: their code, commands, links, messages and lists of names."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import segunc_ops

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
    if path.exists()
}
# Libraries and commands that no test can run, by what names them, and why.
NOT_RUN = {
    "segunc_ops.integrations.nnunet": "nnU-Net reads folders when imported; its own tests run it",
}
INTEGRATIONS = "segunc_ops.integrations"
PUBLIC = ("segunc_ops", *(f"segunc_ops.{name}" for name in ("functional", "losses", "sampling")))

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the tests run apart from the repository")


class Block(NamedTuple):
    line: int
    language: str
    code: str


def blocks(page: str, language: str) -> list[Block]:
    text = PAGES[page].read_text()
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    every = [Block(text[: match.start(2)].count("\n"), match[1], match[2]) for match in found]
    return [block for block in every if block.language == language]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


# What the blocks of a page find before each of them, beside what earlier blocks made.


def _network(classes: int = 19, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Dropout(0.5), nn.Conv2d(width, classes, 1))


def _images_and_labels(size: int, classes: int = 19) -> dict[str, Any]:
    images = torch.rand(2, 3, size, size)
    return {"images": images, "labels": torch.randint(0, classes, (2, size, size))}


def _readme() -> dict[str, Any]:
    given = _images_and_labels(256)
    binary = [(image, torch.zeros(256, 256).long()) for image in given["images"]]
    return given | {
        "DataLoader": torch.utils.data.DataLoader,
        "accurate": _network(),
        "backbone": nn.Conv2d(3, 256, 1),
        "dataset": binary,
        "fast": _network(),
        "loader": [(given["images"], given["labels"])],
        "members": [_network(), _network()],
        "model": _network(),
    }


def _methods() -> dict[str, Any]:
    from segunc_ops.metrics import MeanIoU

    return _readme() | {
        "criterion": segunc_ops.UncertaintyAwareCrossEntropyLoss(ignore_index=255),
        "metric": MeanIoU(19, ignore_index=255),
        "segunc_ops": segunc_ops,
    }


def _data() -> dict[str, Any]:
    from PIL import Image

    Image.new("RGB", (4, 4), (128, 0, 0)).save("mask.png")
    return {}


def _long_tails() -> dict[str, Any]:
    from segunc_ops.experiments.class_counts import ClassCounts, counts_to_dict

    counts = ClassCounts(("road", "car"), 255, 8, 2, 0, (90, 10), (2, 1), (2, 1))
    folder = Path("runs/stats")
    folder.mkdir(parents=True)
    (folder / "stats.json").write_text(json.dumps(counts_to_dict(counts)))
    return {}


def _transformers() -> dict[str, Any]:
    from accelerate import Accelerator
    from transformers import TrainingArguments

    from python_tests.integrations.cases import segformer

    given = _images_and_labels(32, classes=5)
    model = segformer(0.1)
    batch = {"pixel_values": given["images"], "labels": given["labels"]}
    options = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return given | {
        "args": TrainingArguments("out", max_steps=1, **options),  # it resets accelerate's state
        "accelerator": Accelerator(cpu=True),
        "criterion": segunc_ops.UncertaintyAwareCrossEntropyLoss(
            ignore_index=255, upsample="bilinear"
        ),
        "loader": [batch],
        "members": [segformer(), segformer()],
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "segunc_ops": segunc_ops,
        "train_dataset": [{name: each[i] for name, each in batch.items()} for i in range(2)],
    }


def _ultralytics() -> dict[str, Any]:
    """A model whose callbacks are only taken: the package is not a dependency."""
    from segunc_ops.integrations.ultralytics import LossReplacement

    model = SimpleNamespace(add_callback=lambda event, callback: None)
    return {"LossReplacement": LossReplacement, "model": model, "segunc_ops": segunc_ops}


PREPARED: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": _readme,
    "docs/data.md": _data,
    "docs/long_tails.md": _long_tails,
    "docs/methods.md": _methods,
    "docs/transformers.md": _transformers,
    "docs/ultralytics.md": _ultralytics,
}
NEEDED = {
    "README.md": ("torchmetrics",),
    "docs/data.md": ("PIL", "numpy"),
    "docs/long_tails.md": ("PIL", "numpy"),
    "docs/methods.md": ("torchmetrics",),
    "docs/monai.md": ("monai",),
    "docs/transformers.md": ("transformers", "accelerate"),
}


def missing_packages(code: str) -> list[str]:
    names = {
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in ast.walk(ast.parse(code))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    packages = {name.partition(".")[0] for name in names}
    return sorted(name for name in packages if importlib.util.find_spec(name) is None)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "documentation"}
    skipped = []
    for block in blocks(page, "python"):
        reasons = [reason for name, reason in NOT_RUN.items() if name in block.code]
        reasons += [f"needs {name}" for name in missing_packages(block.code)]
        if reasons:
            skipped += [f"line {block.line}: {reason}" for reason in reasons]
            continue
        namespace |= PREPARED.get(page, dict)()
        # Errors name the page and its line.
        code = compile("\n" * block.line + block.code, str(PAGES[page]), "exec")
        exec(code, namespace)
    if skipped:
        pytest.skip("; ".join(skipped))


def commands(page: str) -> Iterator[tuple[int, list[str]]]:
    for block in blocks(page, "sh"):
        code = block.code.replace("\\\n", " ").replace('"$@"', "").replace("$seed", "0")
        for line in code.splitlines():
            command = line.partition("#")[0]
            for match in re.finditer(r"(?:\bsegunc|segunc_ops\.cli) ([^;|]+)", command):
                yield block.line, shlex.split(match[1])


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))])
def test_commands_of_a_page_have_these_options(page, capsys):
    from segunc_ops.cli import build_parser

    parser = build_parser()
    for line, arguments in commands(page):
        try:
            parser.parse_args(arguments)
        except SystemExit:
            error = capsys.readouterr().err.splitlines()[-1]
            pytest.fail(f"{page}, line {line}: segunc {shlex.join(arguments)}: {error}")


@pytest.mark.parametrize("page", pages_with("sh"))
def test_make_has_the_targets_of_a_page(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(page, "sh"):
        named = re.findall(r"^make ([a-z0-9-]+)", block.code, re.MULTILINE)
        assert set(named) <= targets


def anchors(text: str) -> set[str]:
    """Of headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text()):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = PAGES[page].parent / name if name else PAGES[page]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


def strings(source: str) -> Iterator[str]:
    """Its literals; adjacent ones are one, as they are for Python."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_of_troubleshooting_are_those_of_the_library():
    paths = sorted(Path(segunc_ops.__file__).parent.glob("**/*.py"))
    known = "\n".join(text for path in paths for text in strings(path.read_text()))
    page = PAGES["docs/troubleshooting.md"].read_text()
    messages = re.findall(r"^\*\*`(.*)`\*\*$", page, re.MULTILINE)
    assert len(messages) > 20
    # Between punctuation, where values are put in; one or two words may be values.
    phrases = {
        phrase.strip()
        for message in messages
        for phrase in re.split(r"\.\.\.|[:;,()\[\]='{}]", message)
        if len(phrase.split()) > 2
    }
    assert not {phrase for phrase in phrases if phrase not in known}


def public_modules() -> list[str]:
    folder = importlib.import_module(INTEGRATIONS).__path__
    adapters = [f"{INTEGRATIONS}.{module.name}" for module in pkgutil.iter_modules(folder)]
    return [*PUBLIC, "segunc_ops.metrics", *adapters]


@pytest.mark.parametrize("module", public_modules())
def test_the_reference_has_every_public_name(module):
    pages = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    assert f".. automodule:: {module}\n" in pages
    if module.startswith(INTEGRATIONS):
        return
    if module == "segunc_ops.metrics":
        pytest.importorskip("torchmetrics", reason="needs torchmetrics")
    loaded = importlib.import_module(module)
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
        elif not isinstance(value, ModuleType):
            assert f".. autodata:: {name}\n" in pages


def test_every_page_is_in_the_contents():
    listed = set()
    for folder, page in (("", "docs/index.md"), ("api/", "docs/api/index.md")):
        for contents in re.findall(r"```\{toctree\}\n(.*?)```", PAGES[page].read_text(), re.DOTALL):
            names = [line for line in contents.split("\n") if line and not line.startswith(":")]
            listed |= {f"docs/{folder}{name}.md" for name in names}
    assert listed == set(PAGES) - {"README.md", "docs/index.md"}
