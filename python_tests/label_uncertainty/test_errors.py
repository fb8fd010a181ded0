"""Bad arguments raise, before any kernel runs, a message that names the argument and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_raises


def _x(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 1, 4, 5))


def _t(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 4, 5), dtype=torch.long)


def _bce(mean: Any = None, log_variance: Any = None, target: Any = None, **options: Any) -> Any:
    given = [_x() if mean is None else mean]
    given.append(given[0] if log_variance is None else log_variance)
    given.append(_t() if target is None else target)
    return lambda: sf.label_uncertainty_bce(*given, **options)


def _flip(**options: Any) -> Any:
    given = {"threshold": 1.0} | options
    return lambda: sf.bootstrapped_bce(_x(), _x(), _t(), **given)


def _targets(mean: Tensor, variance: Tensor, target: Tensor, **options: Any) -> Any:
    given = {"threshold": 1.0} | options
    return lambda: sf.bootstrap_targets(mean, variance, target, **given)


Call = Callable[[], Any]
# What is wrong: the call, the exception, and what its message must say.
ERRORS: dict[str, tuple[Call, type[Exception], str]] = {
    "mean integers": (
        _bce(_x().int()),
        TypeError,
        "mean: expected float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "mean no tensor": (_bce(1.0), TypeError, "mean: expected a tensor, got float"),
    "mean of no image": (
        _bce(torch.zeros(()), target=torch.zeros(()).long()),
        ValueError,
        "mean: expected shape (N, *) or (N, 1, *), got ()",
    ),
    "interpolated without a channel": (
        _bce(_x(2, 4, 5), upsample="bilinear"),
        ValueError,
        "mean: expected shape (N, C, H, W) with pixels for upsample='bilinear', got (2, 4, 5)",
    ),
    "interpolated to nothing": (
        _bce(target=_t(2, 0, 3), upsample="bilinear"),
        ValueError,
        "target: expected shape (2, 4, 5) for mean of shape (2, 1, 4, 5), got (2, 0, 3)",
    ),
    "an interpolation of another name": (
        _bce(upsample="cubic"),
        ValueError,
        "upsample: expected None or one of",
    ),
    "variance of another shape": (
        _bce(log_variance=_x(2, 1, 1, 1)),
        ValueError,
        "log_variance: expected mean's shape (2, 1, 4, 5), got (2, 1, 1, 1)",
    ),
    "a covariance": (
        _bce(log_variance=_x(2, 1, 1, 4, 5)),
        ValueError,
        "log_variance: expected mean's shape (2, 1, 4, 5), got (2, 1, 1, 4, 5)",
    ),
    "variance of another type": (
        _bce(log_variance=_x().double()),
        TypeError,
        "log_variance: expected mean's torch.float32, got torch.float64",
    ),
    "variance no floats": (
        _bce(log_variance=_x().bool()),
        TypeError,
        "log_variance: expected float32, bfloat16, float16 or float64, got torch.bool",
    ),
    "variance elsewhere": (
        _bce(log_variance=_x().to("meta")),
        ValueError,
        "log_variance: expected device cpu like input, got meta",
    ),
    "target of another shape": (
        _bce(target=_t(2, 8, 10)),
        ValueError,
        "target: expected shape (2, 4, 5) for mean of shape (2, 1, 4, 5), got (2, 8, 10)",
    ),
    "an unsplit head": (
        _bce(_x(2, 2, 4, 5)),
        ValueError,
        "target: expected shape (2, 2, 4, 5) for mean of shape (2, 2, 4, 5), got (2, 4, 5); of 2 "
        "channels one is expected: split a head of mean and log-variance by output.chunk(2, 1)",
    ),
    "target floats": (
        _bce(target=_t().float()),
        TypeError,
        "target: expected int64, int32, int16 or uint8, got torch.float32; pass "
        "segunc_ops.as_targets(target)",
    ),
    "target no tensor": (_bce(target=[0]), TypeError, "target: expected a tensor, got list"),
    "target out of range": (
        _bce(target=_t() + 2),
        IndexError,
        "target: expected a class in [0, 2) or -100, got 2",
    ),
    "pixel weight of another shape": (
        _bce(pixel_weight=torch.ones(2, 4, 6)),
        ValueError,
        "pixel_weight: expected the target's shape (2, 4, 5) or one that broadcasts to it, got "
        "(2, 4, 6)",
    ),
    "reduction unknown": (
        _bce(reduction="average"),
        ValueError,
        "reduction: expected one of ('none', 'mean', 'sum', 'mean_all'), got 'average'",
    ),
    "ignore_index no integer": (
        _bce(ignore_index=1.5),
        TypeError,
        "ignore_index: expected an integer, got float",
    ),
    "threshold negative": (
        _flip(threshold=-0.1),
        ValueError,
        "threshold: expected a finite number of at least 0, got -0.1",
    ),
    "threshold NaN": (
        _flip(threshold=float("nan")),
        ValueError,
        "threshold: expected a finite number of at least 0, got nan",
    ),
    "threshold a tensor": (
        _flip(threshold=torch.ones(1)),
        TypeError,
        "threshold: expected a number, got torch.float32",
    ),
    "detach_weight a number": (
        _flip(detach_weight=1),
        TypeError,
        "detach_weight: expected a bool, got int",
    ),
    "bootstrap integers": (
        _flip(bootstrap=torch.ones(2).int()),
        TypeError,
        "bootstrap: expected a bool tensor, got torch.int32",
    ),
    "bootstrap a flag": (
        _flip(bootstrap=True),
        TypeError,
        "bootstrap: expected a bool tensor, got bool",
    ),
    "bootstrap of another length": (
        _flip(bootstrap=torch.ones(3).bool()),
        ValueError,
        "bootstrap: expected shape (2,), one per image, got (3,)",
    ),
    "bootstrap of pixels": (
        _flip(bootstrap=_t().bool()),
        ValueError,
        "bootstrap: expected shape (2,), one per image, got (2, 4, 5)",
    ),
    "no part": (
        lambda: segunc_ops.LabelUncertaintyLoss(1.0, uncertainty_weight=0, bootstrap_weight=0),
        ValueError,
        "bootstrap_weight: expected it or uncertainty_weight above 0, got 0 and 0",
    ),
    "weight negative": (
        lambda: segunc_ops.LabelUncertaintyLoss(1.0, uncertainty_weight=-1),
        ValueError,
        "uncertainty_weight: expected a finite number of at least 0, got -1",
    ),
    "targets of one channel": (
        _targets(_x(), _x(), _t()),
        ValueError,
        "mean: expected at least two classes, got shape (2, 1, 4, 5): for one channel there is "
        "bootstrapped_bce, which flips labels by itself; two classes have the means "
        "torch.cat([torch.zeros_like(mean), mean], 1)",
    ),
    "targets without classes": (
        _targets(_x(3), _x(3), _t(3)),
        ValueError,
        "mean: expected shape (N, C, *) with C > 0, got (3,)",
    ),
    "targets by a covariance": (
        _targets(_x(2, 3, 4, 5), _x(2, 3, 3, 4, 5), _t()),
        ValueError,
        "variance: expected mean's shape (2, 3, 4, 5), got (2, 3, 3, 4, 5)",
    ),
    "targets of another shape": (
        _targets(_x(2, 3, 4, 5), _x(2, 3, 4, 5), _t(2, 4, 6)),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 4, 6)",
    ),
    "targets by a negative threshold": (
        _targets(_x(2, 3, 4, 5), _x(2, 3, 4, 5), _t(), threshold=-1),
        ValueError,
        "threshold: expected a finite number of at least 0, got -1",
    ),
    "targets of images that are not there": (
        _targets(_x(2, 3, 4, 5), _x(2, 3, 4, 5), _t(), bootstrap=torch.ones(4).bool()),
        ValueError,
        "bootstrap: expected shape (2,), one per image, got (4,)",
    ),
    "targets too narrow": (
        _targets(_x(1, 300, 1), _x(1, 300, 1), _t(1, 1).byte()),
        ValueError,
        "target: expected a type that holds 300 classes, got torch.uint8",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, backend):
    call, exception, message = ERRORS[name]
    assert_raises(call, exception, message, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_first_target_that_is_no_label_is_named(backend):
    target = _t(2, 40, 90)
    target[1, 3, 4], target[0, 30, 7], target[0, 0, 0] = 7, -3, 255
    mean = _x(2, 1, 40, 90)
    call = _bce(mean, target=target, ignore_index=255)
    assert_raises(
        call, IndexError, "target: expected a class in [0, 2) or 255, got -3", backend=backend
    )


def test_integers_are_numbers():
    whole = sf.bootstrapped_bce(_x(), _x(), _t(), threshold=2)
    assert whole == sf.bootstrapped_bce(_x(), _x(), _t(), threshold=2.0)
