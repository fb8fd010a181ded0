"""Bad input raises, before any kernel runs, a message that names the argument and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf


def _x(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5))


def _t(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 4, 5), dtype=torch.long)


Call = Callable[[], Any]
# What is wrong: the call, the exception, and what its message must say.
CROSS_ENTROPY: dict[str, tuple[Call, type[Exception], str]] = {
    "input no tensor": (
        lambda: sf.cross_entropy([1.0], _t()),
        TypeError,
        "input: expected a tensor, got list",
    ),
    "input integers": (
        lambda: sf.cross_entropy(_x().int(), _t()),
        TypeError,
        "input: expected float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "input complex": (
        lambda: sf.cross_entropy(_x().to(torch.complex64), _t()),
        TypeError,
        "input: expected float32, bfloat16, float16 or float64, got torch.complex64",
    ),
    "input scalar": (
        lambda: sf.cross_entropy(torch.zeros(()), _t()),
        ValueError,
        "input: expected shape (N, C, *) or (C,) with C > 0, got ()",
    ),
    "input without classes": (
        lambda: sf.cross_entropy(_x(2, 0, 4), _t(2, 4)),
        ValueError,
        "input: expected shape (N, C, *) or (C,) with C > 0, got (2, 0, 4)",
    ),
    "input of no class": (
        lambda: sf.cross_entropy(_x(0), torch.tensor(0)),
        ValueError,
        "input: expected shape (N, C, *) or (C,) with C > 0, got (0,)",
    ),
    "target no tensor": (
        lambda: sf.cross_entropy(_x(), 1),
        TypeError,
        "target: expected a tensor, got int",
    ),
    "target shape": (
        lambda: sf.cross_entropy(_x(), _t(2, 4, 6)),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 4, 6)",
    ),
    "target dimensions": (
        lambda: sf.cross_entropy(_x(), _t(2, 4)),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 4)",
    ),
    "target with a channel": (
        lambda: sf.cross_entropy(_x(), _t(2, 1, 4, 5)),
        ValueError,
        "target: expected shape (2, 4, 5), got (2, 1, 4, 5); pass target.squeeze(1)",
    ),
    "target probabilities": (
        lambda: sf.cross_entropy(_x(), _x()),
        ValueError,
        "target: expected class indices of shape (2, 4, 5), got probabilities of shape "
        "(2, 3, 4, 5); pass target.argmax(1)",
    ),
    "target one-hot": (
        lambda: sf.cross_entropy(_x(), _t(2, 3, 4, 5)),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 3, 4, 5)",
    ),
    "target of one pixel": (
        lambda: sf.cross_entropy(_x(3), _t(1)),
        ValueError,
        "target: expected shape () for input of shape (3,), got (1,)",
    ),
    "target type": (
        lambda: sf.cross_entropy(_x(), _t().short()),
        TypeError,
        "target: expected int64, int32 or uint8, got torch.int16",
    ),
    "target floating": (
        lambda: sf.cross_entropy(_x(), _t().float()),
        TypeError,
        "target: expected int64, int32 or uint8, got torch.float32",
    ),
    "target boolean": (
        lambda: sf.cross_entropy(_x(), _t().bool()),
        TypeError,
        "target: expected int64, int32 or uint8, got torch.bool",
    ),
    "target device": (
        lambda: sf.cross_entropy(_x(), _t().to("meta")),
        ValueError,
        "target: expected device cpu like input, got meta",
    ),
    "weight no tensor": (
        lambda: sf.cross_entropy(_x(), _t(), [1.0, 2.0, 3.0]),
        TypeError,
        "weight: expected a floating-point tensor, got list",
    ),
    "weight integers": (
        lambda: sf.cross_entropy(_x(), _t(), torch.ones(3, dtype=torch.long)),
        TypeError,
        "weight: expected a floating-point tensor, got torch.int64",
    ),
    "weight shape": (
        lambda: sf.cross_entropy(_x(), _t(), torch.ones(4)),
        ValueError,
        "weight: expected shape (3,), one per class, got (4,)",
    ),
    "weight dimensions": (
        lambda: sf.cross_entropy(_x(), _t(), torch.ones(1, 3)),
        ValueError,
        "weight: expected shape (3,), one per class, got (1, 3)",
    ),
    "weight device": (
        lambda: sf.cross_entropy(_x(), _t(), torch.ones(3, device="meta")),
        ValueError,
        "weight: expected device cpu like input, got meta",
    ),
    "weight gradient": (
        lambda: sf.cross_entropy(_x(), _t(), torch.ones(3, requires_grad=True)),
        ValueError,
        "weight: expected class weights that need no gradient; pass weight.detach()",
    ),
    "pixel weight no tensor": (
        lambda: sf.cross_entropy(_x(), _t(), pixel_weight=2.0),
        TypeError,
        "pixel_weight: expected a floating-point tensor, got float",
    ),
    "pixel weight integers": (
        lambda: sf.cross_entropy(_x(), _t(), pixel_weight=_t()),
        TypeError,
        "pixel_weight: expected a floating-point tensor, got torch.int64",
    ),
    "pixel weight shape": (
        lambda: sf.cross_entropy(_x(), _t(), pixel_weight=_x(2, 4, 6)),
        ValueError,
        "pixel_weight: expected the target's shape (2, 4, 5) or one that broadcasts to it, got "
        "(2, 4, 6)",
    ),
    "pixel weight with a channel": (
        lambda: sf.cross_entropy(_x(), _t(), pixel_weight=_x(2, 1, 4, 5)),
        ValueError,
        "pixel_weight: expected the target's shape (2, 4, 5) or one that broadcasts to it, got "
        "(2, 1, 4, 5)",
    ),
    "pixel weight device": (
        lambda: sf.cross_entropy(_x(), _t(), pixel_weight=_x(2, 4, 5).to("meta")),
        ValueError,
        "pixel_weight: expected device cpu like input, got meta",
    ),
    "reduction": (
        lambda: sf.cross_entropy(_x(), _t(), reduction="average"),
        ValueError,
        "reduction: expected one of ('none', 'mean', 'sum', 'mean_all'), got 'average'",
    ),
    "reduction None": (
        lambda: sf.cross_entropy(_x(), _t(), reduction=None),
        ValueError,
        "reduction: expected one of ('none', 'mean', 'sum', 'mean_all'), got None",
    ),
    "ignored index": (
        lambda: sf.cross_entropy(_x(), _t(), ignore_index=None),
        TypeError,
        "ignore_index: expected an integer, got NoneType",
    ),
    "ignored index fraction": (
        lambda: sf.cross_entropy(_x(), _t(), ignore_index=1.5),
        TypeError,
        "ignore_index: expected an integer, got float",
    ),
    "smoothing no number": (
        lambda: sf.cross_entropy(_x(), _t(), label_smoothing=None),
        TypeError,
        "label_smoothing: expected a number in [0, 1], got NoneType",
    ),
    "reduction unhashable": (
        lambda: sf.cross_entropy(_x(), _t(), reduction=[]),
        ValueError,
        "reduction: expected one of ('none', 'mean', 'sum', 'mean_all'), got []",
    ),
    "smoothing negative": (
        lambda: sf.cross_entropy(_x(), _t(), label_smoothing=-0.1),
        ValueError,
        "label_smoothing: expected a number in [0, 1], got -0.1",
    ),
    "smoothing above 1": (
        lambda: sf.cross_entropy(_x(), _t(), label_smoothing=1.5),
        ValueError,
        "label_smoothing: expected a number in [0, 1], got 1.5",
    ),
    "smoothing NaN": (
        lambda: sf.cross_entropy(_x(), _t(), label_smoothing=float("nan")),
        ValueError,
        "label_smoothing: expected a number in [0, 1], got nan",
    ),
}

STATISTICS: dict[str, tuple[Call, type[Exception], str]] = {
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
    "backend": (
        lambda: segunc_ops.backend("gpu").__enter__(),
        ValueError,
        "backend: expected one of ('auto', 'native', 'reference'), got 'gpu'",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", [*CROSS_ENTROPY, *STATISTICS])
def test_bad_arguments(name, backend):
    call, exception, message = {**CROSS_ENTROPY, **STATISTICS}[name]
    with (
        segunc_ops.backend(backend),
        pytest.raises(exception, match="^" + re.escape(message)) as caught,
    ):
        call()
    assert caught.type is exception


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (5, torch.int64),
        (-1, torch.int64),
        (2**40, torch.int64),
        (-(2**63), torch.int64),
        (-7, torch.int32),
        (254, torch.uint8),
    ],
)
def test_target_out_of_range(value, dtype, backend):
    """An IndexError with the value, for every reduction, dtype and layout; nothing is written out
    of bounds, and the lowest pixel is the one that is named."""
    for shape, where in (((2, 5, 65, 70), (1, 3, 9)), ((3, 5), (1,)), ((1, 5, 3), (0, 2))):
        for reduction in ("mean", "none"):
            for logits_dtype in (torch.float32, torch.float16, torch.float64):
                x = torch.zeros(shape, dtype=logits_dtype, requires_grad=True)
                target = torch.zeros((shape[0], *shape[2:]), dtype=dtype)
                target[where] = value
                message = re.escape(f"target: expected a class in [0, 5) or 255, got {value}")
                with segunc_ops.backend(backend), pytest.raises(IndexError, match=message):
                    sf.cross_entropy(x, target, ignore_index=255, reduction=reduction)
    # The library works on as before.
    assert sf.cross_entropy(torch.zeros(1, 5), torch.zeros(1, dtype=torch.long)).isfinite()


def test_the_first_bad_target_is_named():
    target = torch.zeros(3, 100, 100, dtype=torch.long)
    target[2, 50, 50], target[1, 7, 7], target[1, 7, 9] = 70, 60, 80
    with pytest.raises(IndexError, match="got 60"):
        sf.cross_entropy(torch.zeros(3, 5, 100, 100), target)


def test_a_single_pixel_out_of_range():
    with pytest.raises(IndexError, match="got 9"):
        sf.cross_entropy(torch.zeros(3), torch.tensor(9))


def test_an_ignored_index_is_never_out_of_range():
    for ignore_index in (-1, 255, 10**6, 2):
        target = torch.full((2, 4, 5), ignore_index)
        loss = sf.cross_entropy(_x(), target, ignore_index=ignore_index, reduction="sum")
        assert loss == 0


# Of a bare cross-entropy: ignore_index, reduction, label_smoothing, interpolate, align_corners.
_OPTIONS = (-100, 1, 0.0, False, False)

RAW: dict[str, tuple[Callable[[Any], Any], str]] = {
    "target shape": (
        lambda ops: ops.cross_entropy_forward(
            _x(), _t(2, 4, 6), None, None, *_OPTIONS, False, False
        ),
        "target: expected shape (2, 4, 5), got (2, 4, 6)",
    ),
    "target strides": (
        lambda ops: ops.cross_entropy_forward(
            _x(), _t(2, 5, 4).mT, None, None, *_OPTIONS, False, False
        ),
        "target: expected a contiguous tensor",
    ),
    "weight type": (
        lambda ops: ops.cross_entropy_forward(
            _x(), _t(), torch.ones(3).double(), None, *_OPTIONS, False, False
        ),
        "weight: expected Float, got Double",
    ),
    "pixel weight shape": (
        lambda ops: ops.cross_entropy_forward(_x(), _t(), None, _x(2, 4), *_OPTIONS, False, False),
        "pixel_weight: expected shape (2, 4, 5), got (2, 4)",
    ),
    "upstream shape": (
        lambda ops: ops.cross_entropy_backward(
            _x(2), _x(), _t(), None, None, torch.ones(()).double(), *_OPTIONS, True, False
        ),
        "grad_output: expected shape (), got (2)",
    ),
    "normalizer": (
        lambda ops: ops.cross_entropy_backward(
            torch.ones(()), _x(), _t(), None, None, torch.ones(()), *_OPTIONS, True, False
        ),
        "normalizer: expected Double, got Float",
    ),
    "scale": (
        lambda ops: ops.scale_(_x(), _x(2)),
        "factor: expected one float32 or float64 element",
    ),
    "samples": (
        lambda ops: ops.predictive_statistics([_x(), _x(2, 3, 5, 4).mT], [], False, False),
        "samples: expected the same strides, type and device for all",
    ),
    "state": (
        lambda ops: ops.accumulate_statistics_(_x(), _x(), _x(), _x(), 1, False),
        "entropy_sum: expected shape (2, 4, 5), got (2, 3, 4, 5)",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_bare_operators_check_too(name):
    call, message = RAW[name]
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        call(torch.ops.segunc_ops)
