"""The native library as a file and as a choice: instruction sets, symbols, backends, absence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import segunc_ops
import segunc_ops.functional as sf
from segunc_ops import reference
from segunc_ops._native import library

ROOT = Path(__file__).parent.parent
PACKAGE = Path(segunc_ops.__file__).parent
LIBRARY = PACKAGE / "segunc_ops_cpu.so"
ALLOWED = ROOT / "cmake" / "torch_cpu_2.10.txt"
INFO = segunc_ops.build_info()

needs_library = pytest.mark.skipif(
    not LIBRARY.exists(), reason="the native library was not built: only the reference is there"
)
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
needs_repository = pytest.mark.skipif(
    not ALLOWED.exists(), reason="the tests run apart from the repository"
)


def python(script: str, package: Path = PACKAGE, **environment: str) -> str:
    """What a fresh interpreter prints, with `package` the one it imports."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SEGUNC_OPS_")}
    variables |= environment | {"PYTHONPATH": str(package.parent)}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=variables,
        cwd=package.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_build_info_tells_what_is_loaded():
    info = segunc_ops.build_info()
    assert info["version"] == segunc_ops.__version__
    assert info["torch"] == torch.__version__
    assert info["backend"] in ("auto", "native", "reference")
    if LIBRARY.exists():
        assert info["cpu"] == "native"
        assert info["cpu_isa"] in info["cpu_isas"]
    if torch.version.cuda is None:
        assert info["cuda"].startswith("reference (")
    with segunc_ops.backend("reference"):
        assert segunc_ops.build_info()["backend"] == "reference"


def test_backend_chooses_and_is_put_back(monkeypatch):
    called = []
    specification = reference.cross_entropy

    def record(*args, **kwargs):
        called.append(1)
        return specification(*args, **kwargs)

    monkeypatch.setattr(reference, "cross_entropy", record)
    x, target = torch.randn(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)
    with segunc_ops.backend("native"):
        sf.cross_entropy(x, target)
        with segunc_ops.backend("reference"):
            sf.cross_entropy(x, target)
            assert len(called) == 1
        sf.cross_entropy(x, target)
        assert len(called) == 1
        with pytest.raises(ZeroDivisionError), segunc_ops.backend("reference"):
            raise ZeroDivisionError
        sf.cross_entropy(x, target)
    assert len(called) == 1


@needs_library
def test_a_compiled_function_follows_the_backend():
    """Also in a thread that has chosen none before it compiles."""
    natives = []

    def count(graph, _):
        names = [str(node.target) for module in graph.modules() for node in module.graph.nodes]
        natives.append(any("segunc_ops" in name for name in names))
        return graph

    def calls() -> None:
        compiled = torch.compile(sf.cross_entropy, fullgraph=True, backend=count)
        x, target = torch.randn(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)
        compiled(x, target)
        with segunc_ops.backend("reference"):
            compiled(x, target)
        compiled(x, target)

    torch.compiler.reset()
    thread = threading.Thread(target=calls)
    thread.start()
    thread.join()
    assert natives == [True, False]


def test_native_is_insisted_on():
    with (
        segunc_ops.backend("native"),
        pytest.raises(RuntimeError, match="backend 'native': no native kernels on meta"),
    ):
        sf.cross_entropy(
            torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
        )


CHECK = """
import math, torch, torch.nn.functional as F, segunc_ops, segunc_ops.functional as sf
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for last in (False, True):
        x = torch.randn(2, 19, 67, 71, dtype=torch.float64).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        x.requires_grad_()
        target = torch.randint(0, 19, (2, 67, 71), dtype=torch.uint8)
        target[:, ::7] = 255
        loss = sf.cross_entropy(x, target, ignore_index=255, label_smoothing=0.1)
        (grad,) = torch.autograd.grad(loss, x)
        exact = x.detach().double().requires_grad_()
        truth = F.cross_entropy(exact, target.long(), ignore_index=255, label_smoothing=0.1)
        (wanted,) = torch.autograd.grad(truth, exact)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(loss.double(), truth, rtol=eps + 1e-6, atol=0)
        # A gradient is at most 1 / pixels, where float16 is subnormal.
        bound = 8 * eps * wanted.abs().max() + 2.0 ** (-24 if dtype == torch.float16 else -40)
        assert (grad.double() - wanted).abs().max() <= bound, dtype
        small = x.detach()[..., :21, :33].requires_grad_()
        loss = sf.cross_entropy(small, target, ignore_index=255, upsample="bilinear")
        (grad,) = torch.autograd.grad(loss, small)
        exact = small.detach().double().requires_grad_()
        large = F.interpolate(exact, (67, 71), mode="bilinear")
        truth = F.cross_entropy(large, target.long(), ignore_index=255)
        (wanted,) = torch.autograd.grad(truth, exact)
        torch.testing.assert_close(loss.double(), truth, rtol=eps + 1e-6, atol=0)
        bound = (eps + 1e-5) * wanted.abs().max() + 2.0 ** (-24 if dtype == torch.float16 else -40)
        assert (grad.double() - wanted).abs().max() <= bound, dtype
        maps = sf.predictive_statistics([x.detach(), -x.detach()])
        p = torch.stack([x.detach(), -x.detach()]).double().softmax(2)
        entropy = torch.special.entr(p.mean(0)).sum(1)
        torch.testing.assert_close(maps.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
        small, large = small.detach(), large.detach()
        maps = sf.predictive_statistics([small, -small], size=(67, 71))
        p = torch.stack([large, -large]).softmax(2)
        entropy = torch.special.entr(p.mean(0)).sum(1)
        torch.testing.assert_close(maps.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
        blocks = sf.block_uncertainty(small, block_size=34, stride=33, size=(67, 71), base=math.e)
        whole = torch.special.entr(large.softmax(1)).sum(1)
        wanted = torch.stack([whole[:, :34, :34], whole[:, 33:, 37:]]).mean((2, 3)).T
        torch.testing.assert_close(blocks[:, [0, 1], [0, 2]].double(), wanted, rtol=1e-5, atol=1e-5)
        counts = sf.empty_counts(19, tables=("scores",))
        sf.accumulate_counts(counts, small, target, size=(67, 71), ignore_index=255)
        mean = counts.scores[2] / 2**24 / counts.scores[0]
        torch.testing.assert_close(mean.double(), truth.detach(), rtol=1e-5, atol=0)
print(segunc_ops.build_info()["cpu_isa"])
"""


@needs_library
@pytest.mark.parametrize(
    "isa",
    [
        pytest.param(isa, marks=[] if isa == INFO["cpu_isa"] else pytest.mark.thorough)
        for isa in INFO["cpu_isas"]
    ],
)
def test_every_instruction_set(isa):
    """Each variant that this processor has gives right results; a better one than it has is not
    taken, whatever is asked for."""
    best = python("import segunc_ops; print(segunc_ops.build_info()['cpu_isa'])")
    taken = min(isa, best, key=INFO["cpu_isas"].index)
    assert python(CHECK, SEGUNC_OPS_ISA=isa) == taken


@needs_library
def test_an_unknown_instruction_set_is_the_default():
    info = "import segunc_ops; print(segunc_ops.build_info()['cpu_isa'])"
    assert python(info, SEGUNC_OPS_ISA="sse9") == python(info)


def test_the_environment_chooses_the_backend():
    script = "import segunc_ops; print(segunc_ops.build_info()['backend'])"
    assert python(script, SEGUNC_OPS_BACKEND="reference") == "reference"
    attempt = "try:\n import segunc_ops\nexcept ValueError as error: print(error)"
    assert python(attempt, SEGUNC_OPS_BACKEND="gpu") == (
        "SEGUNC_OPS_BACKEND: expected one of ('auto', 'native', 'reference'), got 'gpu'"
    )


WITHOUT_LIBRARY = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import segunc_ops
    import segunc_ops.functional as sf
    import torch, torch.nn.functional as F
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 5))
    for _ in range(3):
        loss = sf.cross_entropy(x, target)
        loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(x, target))
    sf.predictive_statistics([x, x])
    try:
        with segunc_ops.backend("native"):
            sf.cross_entropy(x, target)
    except RuntimeError as error:
        print(error)
own = [str(w.message) for w in caught if "segunc_ops" in str(w.message)]
print(len([m for m in own if " on cpu " in m]))
print(own[0])
"""


def _copy_of_package(folder: Path, **files: bytes) -> Path:
    """The package without its native libraries, and with the given files."""
    copy = folder / "segunc_ops"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name, content in files.items():
        (copy / f"{name}.so").write_bytes(content)
    return copy


def test_a_missing_library_warns_once_and_the_reference_computes(tmp_path):
    refused, count, warning = python(WITHOUT_LIBRARY, _copy_of_package(tmp_path)).splitlines()
    cause = "segunc_ops_cpu.so was not built"
    assert refused == f"backend 'native': no native kernels on cpu ({cause})"
    assert count == "1"
    assert warning == (
        f"segunc_ops: no native kernels on cpu ({cause}); the slower pure-PyTorch reference is "
        "used there"
    )


def test_a_broken_library_is_named_as_the_cause(tmp_path):
    package = _copy_of_package(tmp_path, segunc_ops_cpu=b"not a library")
    refused, count, warning = python(WITHOUT_LIBRARY, package).splitlines()
    assert count == "1"
    assert "segunc_ops_cpu.so" in warning
    assert "was not built" not in refused


def _symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """Type and name of each symbol that nm lists."""
    lines = subprocess.run(
        ["nm", *options, str(path)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    found = (re.match(r"^(?:[0-9a-f]+)?\s*(\w) (.+)$", line) for line in lines)
    return [(m[1], m[2]) for m in found if m]


@needs_library
@needs_nm
@needs_repository
def test_nothing_but_the_stable_interface_is_needed():
    """Undefined symbols are the system's, which have versions, or in torch 2.10's stable ABI."""
    allowed = set(ALLOWED.read_text().split())
    undefined = _symbols(LIBRARY, "-D", "--undefined-only")
    ours = {name for kind, name in undefined if kind == "U" and "@" not in name}
    assert ours, "no symbol of torch is used: nm's answer was not understood"
    assert ours <= allowed, f"beyond the stable ABI of 2.10: {sorted(ours - allowed)}"
    versions = {name.rpartition("@")[2].split("_")[0] for _, name in undefined if "@" in name}
    assert versions <= {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}


@needs_library
@needs_nm
def test_the_library_exports_nothing_of_its_own():
    exported = [name for _, name in _symbols(LIBRARY, "-D", "-C", "--defined-only")]
    assert not [name for name in exported if "segunc" in name and "STABLE_TORCH" not in name]


def _variant_objects() -> list[Path]:
    return sorted(ROOT.glob("build/**/kernels_*.dir/**/*.o"))


@needs_nm
@pytest.mark.skipif(
    not _variant_objects(), reason="no build folder: objects are checked where they were compiled"
)
def test_variants_share_no_code():
    """The linker keeps one of several weak symbols of a name: outside of a variant's namespace that
    could be the body for a better processor than this one."""
    for path in _variant_objects():
        variant = next(p for p in path.parts if p.startswith("kernels_"))[8:].removesuffix(".dir")
        weak = [name for kind, name in _symbols(path, "-C") if kind in "WVu"]
        allowed = (f"segunc::{variant}::", "DW.ref.__gxx_personality")  # the latter is data
        foreign = [name for name in weak if not any(part in name for part in allowed)]
        assert not foreign, f"{path.name} of {variant} has weak symbols: {foreign[:5]}"
        entries = [n for kind, n in _symbols(path, "-C", "--defined-only") if kind == "T"]
        assert entries
        assert all(name.startswith(f"segunc::{variant}::") for name in entries)


def test_native_and_reference_agree_on_what_is_differentiable():
    x = torch.randn(2, 3, 4, requires_grad=True)
    target = torch.zeros(2, 4, dtype=torch.long)
    exact = F.cross_entropy(x, target)
    for name in ("native", "reference"):
        with segunc_ops.backend(name):
            torch.testing.assert_close(
                torch.autograd.grad(sf.cross_entropy(x, target), x),
                torch.autograd.grad(exact, x, retain_graph=True),
            )


def test_a_driver_that_is_too_old_is_named():
    assert library.driver_problem(12080, 13000) == (
        "the NVIDIA driver supports CUDA 12.8, the kernels need a driver for CUDA 13"
    )
    for driver in (0, 13000, 13020, 14000):
        assert library.driver_problem(driver, 13000) is None
    assert library.driver_problem(12040, 12090) is None


def test_check_without_a_gpu_does_nothing():
    assert segunc_ops.check() is None


def test_an_unknown_backend_is_named():
    message = r"^backend: expected one of \('auto', 'native', 'reference'\), got 'gpu'"
    with pytest.raises(ValueError, match=message), segunc_ops.backend("gpu"):
        pass


class Losses(torch.utils.data.Dataset[torch.Tensor]):
    """Each item a loss that is computed where the item is made."""

    def __init__(self) -> None:
        self.input, self.target = torch.randn(1, 4, 256, 256), torch.randint(0, 4, (1, 256, 256))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return sf.cross_entropy(self.input + index, self.target)


@needs_library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_workers_compute():
    """After several threads have: a worker of torch has one, so that it waits for none."""
    torch.set_num_threads(2)
    losses = Losses()
    expected = [losses[0], losses[1]]
    workers = torch.utils.data.DataLoader(
        losses, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    assert [float(loss) for loss in workers] == [float(loss) for loss in expected]
