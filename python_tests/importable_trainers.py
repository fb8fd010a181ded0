"""Lets torchvision and mmcv be imported beside a torch without CUDA, by this process.

PyPI has torchvision for a torch with CUDA. Beside another its compiled operators are missing, and
its import stops at what it declares for two of them. It has mmcv without compiled operators, which
mmcv's import looks for. No test calls any of them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:
    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]
    for _name in ("nms", "qnms"):
        _TORCHVISION.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

_MMCV = importlib.util.find_spec("mmcv")
if _MMCV is not None and not any(
    any(Path(folder).glob("_ext*")) for folder in _MMCV.submodule_search_locations or ()
):

    def _operator(name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    sys.modules["mmcv._ext"] = types.ModuleType("mmcv._ext")
    sys.modules["mmcv._ext"].__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"].__dict__["__getattr__"] = _operator


def import_mmseg() -> None:
    """Imports mmsegmentation, whose packages warn when they are imported, or skips the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in ("mmengine", "mmcv", "mmseg.models"):
            pytest.importorskip(package, reason=f"needs {package.partition('.')[0]}")
