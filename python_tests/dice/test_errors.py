"""Bad arguments raise, before any kernel runs, a message that names the argument and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.comparison import assert_raises


def _x(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5))


def _t(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 4, 5), dtype=torch.long)


def _with(**options: Any) -> Callable[[], Any]:
    return lambda: sf.dice_cross_entropy(_x(), _t(), **options)


Call = Callable[[], Any]
# What is wrong: the call, the exception, and what its message must say.
ERRORS: dict[str, tuple[Call, type[Exception], str]] = {
    "input integers": (
        lambda: sf.dice_cross_entropy(_x().int(), _t()),
        TypeError,
        "input: expected float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "input of a pixel": (
        lambda: sf.dice_cross_entropy(_x(3), _t().sum()),
        ValueError,
        "input: expected shape (N, C, *) with C > 1, got (3,)",
    ),
    "input of one channel": (
        lambda: sf.dice_cross_entropy(_x(2, 1, 4, 5), _t()),
        ValueError,
        "input: expected logits of at least two classes, got shape (2, 1, 4, 5): the softmax of "
        "one channel is 1 everywhere; for a binary mask pass torch.cat([torch.zeros_like(input), "
        "input], 1)",
    ),
    "target of another shape": (
        lambda: sf.dice_cross_entropy(_x(), _t(2, 8, 10)),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 8, 10); pass "
        "upsample='bilinear' to interpolate",
    ),
    "target out of range": (
        lambda: sf.dice_cross_entropy(_x(), _t() + 3),
        IndexError,
        "target: expected a class in [0, 3) or -100, got 3",
    ),
    "weight of another shape": (
        _with(weight=torch.ones(4)),
        ValueError,
        "weight: expected shape (3,), one per class, got (4,)",
    ),
    "pixel weight of another shape": (
        _with(pixel_weight=torch.ones(2, 4, 6)),
        ValueError,
        "pixel_weight: expected the target's shape (2, 4, 5) or one that broadcasts to it, got "
        "(2, 4, 6)",
    ),
    "reduction none": (
        _with(reduction="none"),
        ValueError,
        "reduction: expected 'mean', 'mean_all' or 'sum' of the cross-entropy, got 'none'",
    ),
    "reduction unknown": (
        _with(reduction="average"),
        ValueError,
        "reduction: expected one of ('none', 'mean', 'sum', 'mean_all'), got 'average'",
    ),
    "ce_weight below 0": (
        _with(ce_weight=-1.0),
        ValueError,
        "ce_weight: expected a finite number of at least 0, got -1.0",
    ),
    "dice_weight infinite": (
        _with(dice_weight=float("inf")),
        ValueError,
        "dice_weight: expected a finite number of at least 0, got inf",
    ),
    "dice_offset no number": (
        _with(dice_offset="1"),
        TypeError,
        "dice_offset: expected a number, got str",
    ),
    "smooth_numerator a flag": (
        _with(smooth_numerator=True),
        TypeError,
        "smooth_numerator: expected a number, got bool",
    ),
    "smooth_denominator NaN": (
        _with(smooth_denominator=float("nan")),
        ValueError,
        "smooth_denominator: expected a finite number of at least 0, got nan",
    ),
    "batch a number": (_with(batch=1), TypeError, "batch: expected a bool, got int"),
    "absent unknown": (
        _with(absent="ignore"),
        ValueError,
        "absent: expected one of ('count', 'skip', 'zero'), got 'ignore'",
    ),
    "absent a list": (
        _with(absent=["skip"]),
        ValueError,
        "absent: expected one of ('count', 'skip', 'zero'), got ['skip']",
    ),
    "group without processes": (
        _with(group=object()),
        RuntimeError,
        "group: expected None without an initialised process group; call "
        "torch.distributed.init_process_group first",
    ),
    "align_corners alone": (
        _with(align_corners=True),
        ValueError,
        "align_corners: expected False without upsample, got True",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, backend):
    call, exception, message = ERRORS[name]
    assert_raises(call, exception, message, backend=backend)


def test_integers_are_numbers():
    whole = sf.dice_cross_entropy(_x(), _t(), ce_weight=2, dice_weight=1, smooth_numerator=1)
    same = sf.dice_cross_entropy(_x(), _t(), ce_weight=2.0, dice_weight=1.0, smooth_numerator=1.0)
    torch.testing.assert_close(whole, same)


def test_raw_operators_check_what_they_get():
    forward = torch.ops.segunc_ops.dice_cross_entropy_forward
    backward = torch.ops.segunc_ops.dice_cross_entropy_backward
    options = (-100, 0.0, False, False, True, False)
    with pytest.raises(ValueError, match="target: expected shape"):
        forward(_x(), _t(2, 4, 6), None, None, *options, True)
    with pytest.raises(ValueError, match="weight: expected Float"):
        forward(_x(), _t(), torch.ones(3).double(), None, *options, True)
    slopes, factor = torch.zeros(1, 2, 3, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    wanted = (True, False)
    with pytest.raises(ValueError, match=r"coefficients: expected shape \(2, 2, 3\)"):
        backward(torch.ones(()), _x(), _t(), None, None, slopes, factor, *options, *wanted)
    with pytest.raises(ValueError, match=r"grad_output: expected shape \(\)"):
        backward(torch.ones(1), _x(), _t(), None, None, slopes, factor, *options, *wanted)
