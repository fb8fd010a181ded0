"""Lets torchvision be imported beside a torch without CUDA, by this process.

PyPI has torchvision for a torch with CUDA. Beside another its compiled operators are missing, and
its import stops at what it declares for two of them, which no test calls.
"""

from __future__ import annotations

import sys

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
