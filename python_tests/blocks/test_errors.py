"""Bad arguments raise, before any kernel runs, a message that names the argument and what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.comparison import assert_raises


def _x(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 8, 9))


# What is wrong: the call, the exception, and what its message must begin with.
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no tensor": (
        lambda: sf.block_uncertainty([1.0], block_size=4),
        TypeError,
        "logits: expected a tensor, got list",
    ),
    "type": (
        lambda: sf.block_uncertainty(_x().long(), block_size=4),
        TypeError,
        "logits: expected float32, bfloat16, float16 or float64, got torch.int64",
    ),
    "a vector": (
        lambda: sf.block_uncertainty(_x(3), block_size=4),
        ValueError,
        "logits: expected shape (N, C, *) with C > 0, got (3,)",
    ),
    "one spatial axis": (
        lambda: sf.block_uncertainty(_x(2, 3, 8), block_size=4),
        ValueError,
        "logits: expected shape (N, C, H, W), got (2, 3, 8)",
    ),
    "a volume": (
        lambda: sf.block_uncertainty(_x(2, 3, 8, 8, 8), block_size=4),
        ValueError,
        "logits: expected shape (N, C, H, W), got (2, 3, 8, 8, 8)",
    ),
    "no classes": (
        lambda: sf.block_uncertainty(_x(2, 0, 8, 8), block_size=4),
        ValueError,
        "logits: expected shape (N, C, *) with C > 0",
    ),
    "a large block": (
        lambda: sf.block_uncertainty(_x(), block_size=9),
        ValueError,
        "block_size: expected at most the image's (8, 9), got (9, 9)",
    ),
    "a wide block": (
        lambda: sf.block_uncertainty(_x(), block_size=(8, 10)),
        ValueError,
        "block_size: expected at most the image's (8, 9), got (8, 10)",
    ),
    "a block beyond the size": (
        lambda: sf.block_uncertainty(_x(), block_size=6, size=(6, 5)),
        ValueError,
        "block_size: expected at most the image's (6, 5), got (6, 6)",
    ),
    "no pixels": (
        lambda: sf.block_uncertainty(_x(2, 3, 0, 9), block_size=1),
        ValueError,
        "block_size: expected at most the image's (0, 9), got (1, 1)",
    ),
    "an empty block": (
        lambda: sf.block_uncertainty(_x(), block_size=0),
        ValueError,
        "block_size: expected at least 1, got 0",
    ),
    "a block of three numbers": (
        lambda: sf.block_uncertainty(_x(), block_size=(2, 3, 4)),
        ValueError,
        "block_size: expected an integer or (height, width), got (2, 3, 4)",
    ),
    "a block of half a pixel": (
        lambda: sf.block_uncertainty(_x(), block_size=2.5),
        TypeError,
        "block_size: expected an integer, got float",
    ),
    "a stride that leaves pixels out": (
        lambda: sf.block_uncertainty(_x(), block_size=(4, 4), stride=(4, 5)),
        ValueError,
        "stride: expected at most block_size (4, 4), as pixels between blocks would be left out, "
        "got (4, 5)",
    ),
    "no stride": (
        lambda: sf.block_uncertainty(_x(), block_size=4, stride=(2, 0)),
        ValueError,
        "stride: expected at least 1, got 0",
    ),
    "a stride backwards": (
        lambda: sf.block_uncertainty(_x(), block_size=4, stride=-1),
        ValueError,
        "stride: expected at least 1, got -1",
    ),
    **{
        f"base {base}": (
            lambda base=base: sf.block_uncertainty(_x(), block_size=4, base=base),
            ValueError,
            f"base: expected a finite number above 1, got {base}",
        )
        for base in (0.0, -2.0, 1.0, 0.5, math.inf, math.nan)
    },
    "no base": (
        lambda: sf.block_uncertainty(_x(), block_size=4, base=None),
        TypeError,
        "base: expected a number, got NoneType",
    ),
    "size": (
        lambda: sf.block_uncertainty(_x(), block_size=4, size=(8, 9, 10)),
        ValueError,
        "size: expected (H, W) for logits of shape (2, 3, 8, 9), got (8, 9, 10)",
    ),
    "align_corners without size": (
        lambda: sf.block_uncertainty(_x(), block_size=4, align_corners=True),
        ValueError,
        "align_corners: expected False without size, got True",
    ),
    "a grid of one number": (
        lambda: sf.block_grid(8, 4),
        TypeError,
        "size: expected (height, width), got int",
    ),
    "a grid of no pixels": (
        lambda: sf.block_grid((8, 0), 4),
        ValueError,
        "size: expected at least 1, got 0",
    ),
    "a grid of larger blocks": (
        lambda: sf.block_grid((8, 9), 16),
        ValueError,
        "block_size: expected at most the image's (8, 9), got (16, 16)",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments(name, backend):
    assert_raises(*ERRORS[name], backend=backend)
