"""Which types of numbers are accepted, computed in and returned."""

from __future__ import annotations

import torch
from torch import Tensor

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Of logits, and of maps that are computed with as they are."""
TARGET_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)
"""Of class indices, which are read as they are."""
BINARY_DTYPES = (torch.bool, *TARGET_DTYPES, *LOGITS_DTYPES)
"""Of the targets of regions, which are 0 or 1."""


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that logits of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def result_dtype(input: Tensor) -> torch.dtype:
    """torch's for a loss: that of the input, but float32 under autocast."""
    dtype = input.dtype
    if dtype == torch.float32 or dtype == torch.float64 or input.is_meta:  # no matter, or unknown
        return dtype
    return torch.float32 if torch.is_autocast_enabled(input.device.type) else dtype
