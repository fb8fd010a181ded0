"""Bad arguments raise, before any kernel runs, a message that names the argument and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.comparison import assert_raises


def _x(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5))


def _state() -> tuple[Tensor, Tensor, Tensor]:
    """Of maps of (8, 9) pixels."""
    return _x(2, 3, 8, 9), _x(2, 3, 8, 9), _x(2, 8, 9)


# What is wrong: the call, the exception, and what its message must begin with.
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no sample": (
        lambda: sf.predictive_statistics([]),
        ValueError,
        "samples: expected at least one sample, got none",
    ),
    "no sample in a tensor": (
        lambda: sf.predictive_statistics(_x(0, 2, 3, 4)),
        ValueError,
        "samples: expected at least one sample, got none",
    ),
    "samples shape": (
        lambda: sf.predictive_statistics(_x(2, 3)),
        ValueError,
        "samples: expected shape (S, N, C, *), got (2, 3)",
    ),
    "samples without classes": (
        lambda: sf.predictive_statistics(_x(2, 3, 0, 4)),
        ValueError,
        "samples: expected C > 0, got shape (2, 3, 0, 4)",
    ),
    "samples type": (
        lambda: sf.predictive_statistics(_x(2, 3, 4).long()),
        TypeError,
        "samples: expected float32, bfloat16, float16 or float64, got torch.int64",
    ),
    "sample no tensor": (
        lambda: sf.predictive_statistics([_x(), None]),
        TypeError,
        "samples[1]: expected a tensor, got NoneType",
    ),
    "sample dimensions": (
        lambda: sf.predictive_statistics([_x(3)]),
        ValueError,
        "samples[0]: expected shape (N, C, *) with C > 0, got (3,)",
    ),
    "sample shape": (
        lambda: sf.predictive_statistics([_x(), _x(2, 3, 4, 6)]),
        ValueError,
        "samples[1]: expected shape (2, 3, 4, 5) like the first, got (2, 3, 4, 6)",
    ),
    "sample type": (
        lambda: sf.predictive_statistics([_x(), _x().half()]),
        TypeError,
        "samples[1]: expected torch.float32 like the first, got torch.float16",
    ),
    "sample device": (
        lambda: sf.predictive_statistics([_x(), _x().to("meta")]),
        ValueError,
        "samples[1]: expected device cpu",
    ),
    "state shape": (
        lambda: sf.accumulate_statistics(_x(2, 4, 4, 5), _x(), _x(2, 4, 5), _x(), 1),
        ValueError,
        "mean: expected a contiguous tensor of shape (2, 3, 4, 5), got shape (2, 4, 4, 5)",
    ),
    "state strides": (
        lambda: sf.accumulate_statistics(_x(), _x(2, 3, 5, 4).mT, _x(2, 4, 5), _x(), 1),
        ValueError,
        "squared_deviations: expected a contiguous tensor of shape (2, 3, 4, 5)",
    ),
    "state type": (
        lambda: sf.accumulate_statistics(_x(), _x(), _x(2, 4, 5).double(), _x(), 1),
        TypeError,
        "entropy_sum: expected torch.float32, got torch.float64",
    ),
    "state device": (
        lambda: sf.accumulate_statistics(_x().to("meta"), _x(), _x(2, 4, 5), _x(), 1),
        ValueError,
        "mean: expected device cpu",
    ),
    "sample of the state": (
        lambda: sf.accumulate_statistics(_x(), _x(), _x(2, 4, 5), _x().int(), 1),
        TypeError,
        "logits: expected float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "sample of the state without classes": (
        lambda: sf.accumulate_statistics(_x(), _x(), _x(2, 4, 5), _x(2, 0, 4, 5), 1),
        ValueError,
        "logits: expected shape (N, C, *) with C > 0, got (2, 0, 4, 5)",
    ),
    "count": (
        lambda: sf.accumulate_statistics(_x(), _x(), _x(2, 4, 5), _x(), 0),
        ValueError,
        "count: expected at least 1, got 0",
    ),
    "count type": (
        lambda: sf.accumulate_statistics(*_state(), _x(2, 3, 8, 9), "1"),
        TypeError,
        "count: expected an integer, got str",
    ),
    "count of a finished state, type": (
        lambda: sf.finalize_statistics(*_state(), 1.5),
        TypeError,
        "count: expected an integer, got float",
    ),
    "mean no tensor": (
        lambda: sf.finalize_statistics([1.0], *_state()[1:], 1),
        TypeError,
        "mean: expected a tensor, got list",
    ),
    "deviations no tensor": (
        lambda: sf.accumulate_statistics(_state()[0], None, _state()[2], _x(2, 3, 8, 9), 1),
        TypeError,
        "squared_deviations: expected a tensor, got NoneType",
    ),
    "samples no sequence": (
        lambda: sf.predictive_statistics(3),
        TypeError,
        "samples: expected a tensor or a sequence of them, got int",
    ),
    "count of a finished state": (
        lambda: sf.finalize_statistics(_x(), _x(), _x(2, 4, 5), 0),
        ValueError,
        "count: expected at least 1, got 0",
    ),
    "finished state shape": (
        lambda: sf.finalize_statistics(_x(3), _x(3), _x(), 1),
        ValueError,
        "mean: expected shape (N, C, *) with C > 0, got (3,)",
    ),
    "finished state entropy": (
        lambda: sf.finalize_statistics(_x(), _x(), _x(2, 4), 1),
        ValueError,
        "entropy_sum: expected a contiguous tensor of shape (2, 4, 5), got shape (2, 4)",
    ),
    "finished state type": (
        lambda: sf.finalize_statistics(_x().half(), _x(), _x(2, 4, 5), 1),
        TypeError,
        "mean: expected torch.float32, got torch.float16",
    ),
    "interpolated: size no sequence": (
        lambda: sf.predictive_statistics([_x()], size=8),
        TypeError,
        "size: expected a sequence of integers, got int",
    ),
    "interpolated: size of no integers": (
        lambda: sf.predictive_statistics([_x()], size=(8.0, 9)),
        TypeError,
        "size: expected an integer, got float",
    ),
    "interpolated: size for volumes": (
        lambda: sf.predictive_statistics([_x()], size=(2, 8, 9)),
        ValueError,
        "size: expected (H, W) for samples of shape (2, 3, 4, 5), got (2, 8, 9)",
    ),
    "interpolated: size for images": (
        lambda: sf.predictive_statistics([_x(2, 3, 2, 4, 5)], size=(8, 9)),
        ValueError,
        "size: expected (D, H, W) for samples of shape (2, 3, 2, 4, 5), got (8, 9)",
    ),
    "interpolated: size of the whole label map": (
        lambda: sf.predictive_statistics([_x()], size=(2, 8, 9)),
        ValueError,
        "size: expected (H, W) for samples of shape (2, 3, 4, 5), got (2, 8, 9)",
    ),
    "interpolated: no pixels": (
        lambda: sf.predictive_statistics([_x()], size=(8, 0)),
        ValueError,
        "size: expected at least 1 along each axis, got (8, 0)",
    ),
    "interpolated: negative": (
        lambda: sf.predictive_statistics([_x()], size=(-8, 9)),
        ValueError,
        "size: expected at least 1 along each axis, got (-8, 9)",
    ),
    "interpolated: no source pixels": (
        lambda: sf.predictive_statistics([_x()[:, :, :0]], size=(8, 9)),
        ValueError,
        "samples: expected pixels to interpolate to size (8, 9), got (2, 3, 0, 5)",
    ),
    "interpolated: one spatial axis": (
        lambda: sf.predictive_statistics([_x()[:, :, 0]], size=(8,)),
        ValueError,
        "samples: expected shape (N, C, H, W) or (N, C, D, H, W) to be interpolated to size (8,), "
        "got (2, 3, 5)",
    ),
    "interpolated: corners alone": (
        lambda: sf.predictive_statistics([_x()], align_corners=True),
        ValueError,
        "align_corners: expected False without size, got True",
    ),
    "interpolated: corners no bool": (
        lambda: sf.predictive_statistics([_x()], size=(8, 9), align_corners=None),
        TypeError,
        "align_corners: expected a bool, got NoneType",
    ),
    "interpolated: samples of different sizes": (
        lambda: sf.predictive_statistics([_x(), _x()[..., :4]], size=(8, 9)),
        ValueError,
        "samples[1]: expected shape (2, 3, 4, 5) like the first, got (2, 3, 4, 4)",
    ),
    "interpolated: state of other classes": (
        lambda: sf.accumulate_statistics(*_state(), _x()[:, :2], 1),
        ValueError,
        "mean: expected a contiguous tensor of shape (2, 2, 4, 5), got shape (2, 3, 8, 9)",
    ),
    "interpolated: state of two sizes": (
        lambda: sf.accumulate_statistics(_x(2, 3, 8, 9), _x(), _x(2, 8, 9), _x(), 1),
        ValueError,
        "squared_deviations: expected a contiguous tensor of shape (2, 3, 8, 9), got shape "
        "(2, 3, 4, 5)",
    ),
    "interpolated: corners of a state": (
        lambda: sf.accumulate_statistics(*_state(), _x(), 1, align_corners=1),
        TypeError,
        "align_corners: expected a bool, got int",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments(name, backend):
    assert_raises(*ERRORS[name], backend=backend)


RAW: dict[str, tuple[Callable[[Any], Any], str]] = {
    "samples": (
        lambda ops: ops.predictive_statistics([_x(), _x(2, 3, 5, 4).mT], [], False, False),
        "samples: expected the same strides, type and device for all",
    ),
    "state": (
        lambda ops: ops.accumulate_statistics_(_x(), _x(), _x(), _x(), 1, False),
        "entropy_sum: expected shape (2, 4, 5), got (2, 3, 4, 5)",
    ),
    "size of another dimension": (
        lambda ops: ops.predictive_statistics([_x()], [8], False, False),
        "samples: expected shape (N, C, *) for results of shape (2, 8), got (2, 3, 4, 5)",
    ),
    "no pixels": (
        lambda ops: ops.predictive_statistics([_x()], [8, 0], False, False),
        "samples: expected 1 to 2^30 positions along each axis",
    ),
    "state of another dimension": (
        lambda ops: ops.accumulate_statistics_(*_state(), _x(2, 3, 2, 4, 5), 1, False),
        "logits: expected shape (N, C, *) for results of shape (2, 8, 9)",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_bare_operators_check_too(name):
    call, message = RAW[name]
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        call(torch.ops.segunc_ops)
