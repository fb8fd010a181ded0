"""How Sphinx makes the documentation: `make docs`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from segunc_ops import __version__

project = "segunc_ops"
copyright = "the authors of segunc_ops"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"segunc_ops {version}"
html_copy_source = False

# Headings have the anchors that they have on the forge.
myst_heading_anchors = 4

napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
# The reference needs none of the packages that have trainers.
autodoc_mock_imports = [
    "accelerate",
    "lightning",
    "mmengine",
    "mmseg",
    "ignite",
    "monai",
    "nnunetv2",
    "pytorch_lightning",
    "segmentation_models_pytorch",
    "torch_uncertainty",
    "torchmetrics",
    "torchvision",
    "transformers",
    "ultralytics",
]

autodoc_inherit_docstrings = False
autodoc_default_options = {
    "members": True,
    "inherited-members": "Metric,Module,Trainer,dict,tuple",
}


class _Registry:
    """In place of mmsegmentation's registries: what they decorate stays what it is."""

    @staticmethod
    def register_module(*args: Any, **options: Any) -> Callable[[Any], Any]:
        return lambda decorated: decorated


_registry: Any = ModuleType("mmseg.registry")
_registry.MODELS = _registry.HOOKS = _Registry
sys.modules["mmseg.registry"] = _registry

_TOP = "api/segunc_ops"
_HOMES = ("segunc_ops.functional", "segunc_ops.losses", "segunc_ops.sampling")
# Methods that are called, with a docstring of their own or without; what only other code reads.
_CALLED = ("forward", "update", "compute", "plot")
_INTERNAL = ("extra_repr", "without")


_LINK = re.compile(r"\]\((\.\./[^)#]+\.md)\)")


def _outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Pages that are not of the documentation are linked to as files."""
    folder = Path(app.srcdir, page).parent

    def link(match: re.Match[str]) -> str:
        is_page = (folder / match[1]).resolve().is_relative_to(app.srcdir)
        return match[0] if is_page else f"](path:{match[1]})"

    source[0] = _LINK.sub(link, source[0])


def _skip(app: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what is described elsewhere, and what only other code calls."""
    if kind == "class":
        return True if name in _INTERNAL else False if name in _CALLED else None
    if app.env.current_document.docname != _TOP:
        return None
    is_elsewhere = any(name in importlib.import_module(home).__all__ for home in _HOMES)
    return True if is_elsewhere or isinstance(value, ModuleType) else None


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """What is described elsewhere: `segunc_ops.CrossEntropyLoss`, a name without its module."""
    if node.get("refdomain") != "py":
        return None
    node["refspecific"] = True
    name = node["reftarget"].removeprefix("segunc_ops.")
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], name, node, content
    )


def _is_foreign(app: Sphinx, domain: Any, node: pending_xref) -> bool | None:
    """Types of signatures, which have no source, and names of other packages link nowhere."""
    if node.get("refdomain") != "py":
        return None
    package = node["reftarget"].partition(".")[0]
    is_foreign = package in ("torch", *autodoc_mock_imports)
    return True if is_foreign or node.source is None else None


def _check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of every public name that no page describes."""
    described = env.domains.python_domain.objects
    modules = [name for name in env.domains.python_domain.modules if name in sys.modules]
    for module in modules:
        for name in getattr(sys.modules[module], "__all__", ()):
            is_module = isinstance(getattr(sys.modules[module], name), ModuleType)
            places = [module, *_HOMES] if module == "segunc_ops" else [module]
            if not is_module and not any(f"{place}.{name}" in described for place in places):
                logging.getLogger(__name__).warning(f"no page describes {module}.{name}")


def setup(app: Sphinx) -> None:
    app.connect("source-read", _outside)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve)
    app.connect("warn-missing-reference", _is_foreign)
    app.connect("env-check-consistency", _check_names)
