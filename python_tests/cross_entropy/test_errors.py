"""Bad arguments raise, before any kernel runs, a message that names the argument and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_raises
from python_tests.cross_entropy.cases import batch, loss_of


def _x(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5))


def _t(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 4, 5), dtype=torch.long)


def _map() -> Tensor:
    """A target of another size than the logits."""
    return _t(2, 8, 9)


Call = Callable[[], Any]
# What is wrong: the call, the exception, and what its message must say.
ERRORS: dict[str, tuple[Call, type[Exception], str]] = {
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
        "target: expected shape (2, 4, 5), got (2, 1, 4, 5); pass segunc_ops.as_targets(target)",
    ),
    "target probabilities": (
        lambda: sf.cross_entropy(_x(), _x()),
        ValueError,
        "target: expected class indices of shape (2, 4, 5), got probabilities of shape "
        "(2, 3, 4, 5); pass target.argmax(1)",
    ),
    "target probabilities, or a binary head without its channel": (
        lambda: sf.cross_entropy(_x(2, 4, 5), _x(2, 4, 5)),
        ValueError,
        "target: expected class indices of shape (2, 5), got probabilities of shape (2, 4, 5); "
        "pass target.argmax(1), or input.unsqueeze(1) if that is a binary head",
    ),
    "classes in the last axis": (
        lambda: sf.cross_entropy(_x(2, 4, 5, 3), _t(2, 4, 5)),
        ValueError,
        "target: expected shape (2, 5, 3) for input of shape (2, 4, 5, 3), got (2, 4, 5); if "
        "input's last axis holds the classes, pass input.movedim(-1, 1)",
    ),
    "target one-hot": (
        lambda: sf.cross_entropy(_x(), _t(2, 3, 4, 5)),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 3, 4, 5); if it "
        "is one-hot, pass target.argmax(1)",
    ),
    "target of a binary head without its channel": (
        lambda: sf.cross_entropy(_x(2, 4, 5), _t(2, 4, 5)),
        ValueError,
        "target: expected shape (2, 5) for input of shape (2, 4, 5), got (2, 4, 5); if it is "
        "one-hot, pass target.argmax(1), or input.unsqueeze(1) if that is a binary head",
    ),
    "target one-hot of bools": (
        lambda: sf.cross_entropy(_x(), _t(2, 3, 4, 5).bool()),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 3, 4, 5); if it "
        "is one-hot, pass target.long().argmax(1)",
    ),
    "target floating with a channel": (
        lambda: sf.cross_entropy(_x(), _x(2, 1, 4, 5)),
        ValueError,
        "target: expected shape (2, 4, 5), got (2, 1, 4, 5); pass segunc_ops.as_targets(target)",
    ),
    "target with a channel at the end": (
        lambda: sf.cross_entropy(_x(), _t(2, 4, 5, 1)),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 4, 5, 1); pass "
        "target.squeeze(-1)",
    ),
    "target of one pixel": (
        lambda: sf.cross_entropy(_x(3), _t(1)),
        ValueError,
        "target: expected shape () for input of shape (3,), got (1,)",
    ),
    "target type": (
        lambda: sf.cross_entropy(_x(), _t().char()),
        TypeError,
        "target: expected int64, int32, int16 or uint8, got torch.int8; pass "
        "segunc_ops.as_targets(target)",
    ),
    "target floating": (
        lambda: sf.cross_entropy(_x(), _t().float()),
        TypeError,
        "target: expected int64, int32, int16 or uint8, got torch.float32; pass "
        "segunc_ops.as_targets(target)",
    ),
    "target boolean": (
        lambda: sf.cross_entropy(_x(), _t().bool()),
        TypeError,
        "target: expected int64, int32, int16 or uint8, got torch.bool; pass "
        "segunc_ops.as_targets(target)",
    ),
    "target complex": (
        lambda: sf.cross_entropy(_x(), _t().to(torch.complex64)),
        TypeError,
        "target: expected int64, int32, int16 or uint8, got torch.complex64",
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
    "smoothing text": (
        lambda: sf.cross_entropy(_x(), _t(), label_smoothing="0.1"),
        TypeError,
        "label_smoothing: expected a number in [0, 1], got str",
    ),
    "smoothing of NumPy above 1": (
        lambda: sf.cross_entropy(_x(), _t(), label_smoothing=np.float32(1.5)),
        ValueError,
        "label_smoothing: expected a number in [0, 1], got 1.5",
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
    "upsampled: mode": (
        lambda: sf.cross_entropy(_x(), _map(), upsample="bicubic"),
        ValueError,
        "upsample: expected None or one of ('bilinear', 'trilinear'), got 'bicubic'",
    ),
    "upsampled: mode unhashable": (
        lambda: sf.cross_entropy(_x(), _map(), upsample=[]),
        ValueError,
        "upsample: expected None or one of ('bilinear', 'trilinear'), got []",
    ),
    "upsampled: mode for volumes": (
        lambda: sf.cross_entropy(_x(), _map(), upsample="trilinear"),
        ValueError,
        "input: expected shape (N, C, D, H, W) with pixels for upsample='trilinear', got "
        "(2, 3, 4, 5)",
    ),
    "upsampled: no spatial axes": (
        lambda: sf.cross_entropy(_x()[:, :, 0, 0], _map(), upsample="bilinear"),
        ValueError,
        "input: expected shape (N, C, H, W) with pixels for upsample='bilinear', got (2, 3)",
    ),
    "upsampled: one spatial axis": (
        lambda: sf.cross_entropy(_x()[:, :, 0], _map(), upsample="bilinear"),
        ValueError,
        "input: expected shape (N, C, H, W) with pixels for upsample='bilinear', got (2, 3, 5)",
    ),
    "upsampled: no source pixels": (
        lambda: sf.cross_entropy(_x()[:, :, :0], _map(), upsample="bilinear"),
        ValueError,
        "input: expected shape (N, C, H, W) with pixels for upsample='bilinear', got (2, 3, 0, 5)",
    ),
    "upsampled: no target pixels": (
        lambda: sf.cross_entropy(_x(), _map()[:, :, :0], upsample="bilinear"),
        ValueError,
        "target: expected shape (2, H, W) with pixels for input of shape (2, 3, 4, 5), got "
        "(2, 8, 0)",
    ),
    "upsampled: batch": (
        lambda: sf.cross_entropy(_x(), _map()[:1], upsample="bilinear"),
        ValueError,
        "target: expected shape (2, H, W) with pixels for input of shape (2, 3, 4, 5), got "
        "(1, 8, 9)",
    ),
    "upsampled: target with a channel": (
        lambda: sf.cross_entropy(_x(), _map().unsqueeze(1), upsample="bilinear"),
        ValueError,
        "target: expected shape (2, H, W) with pixels, got (2, 1, 8, 9); pass "
        "segunc_ops.as_targets(target)",
    ),
    "upsampled: probabilities": (
        lambda: sf.cross_entropy(_x(), torch.zeros(2, 3, 8, 9), upsample="bilinear"),
        ValueError,
        "target: expected class indices of shape (2, H, W) with pixels, got probabilities of "
        "shape (2, 3, 8, 9); pass target.argmax(1)",
    ),
    "upsampled: pixel weight of the logits' size": (
        lambda: sf.cross_entropy(
            _x(), _map(), pixel_weight=torch.ones(2, 4, 5), upsample="bilinear"
        ),
        ValueError,
        "pixel_weight: expected the target's shape (2, 8, 9)",
    ),
    "upsampled: corners alone": (
        lambda: sf.cross_entropy(_x(), _map(), align_corners=True),
        ValueError,
        "align_corners: expected False without upsample, got True",
    ),
    "upsampled: corners no bool": (
        lambda: sf.cross_entropy(_x(), _map(), upsample="bilinear", align_corners=None),
        TypeError,
        "align_corners: expected a bool, got NoneType",
    ),
    "size without a mode": (
        lambda: sf.cross_entropy(_x(), _map()),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 8, 9); pass "
        "upsample='bilinear' to interpolate",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments(name, backend):
    assert_raises(*ERRORS[name], backend=backend)


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
}


@pytest.mark.parametrize("name", RAW)
def test_bare_operators_check_too(name):
    call, message = RAW[name]
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        call(torch.ops.segunc_ops)


def test_targets_out_of_range_raise():
    """Of interpolated logits, too."""
    x, target, _ = batch(size=(7, 10), source=(3, 4))
    target[1, 6, 9] = 3
    with pytest.raises(IndexError, match=re.escape("target: expected a class in [0, 3) or 255")):
        loss_of(x, target, upsample="bilinear")


ONE_CHANNEL: dict[str, tuple[Any, dict[str, Any], type[Exception]]] = {
    "a channel": (lambda mask: mask, {}, ValueError),
    "no channel": (lambda mask: mask.squeeze(1), {}, TypeError),
    "integers": (lambda mask: mask.long(), {}, ValueError),
    "bools": (lambda mask: mask.bool(), {}, ValueError),
    "integers without a channel": (lambda mask: mask.squeeze(1).long(), {}, IndexError),
    "bytes": (lambda mask: mask.squeeze(1).byte(), {}, IndexError),
    "0 and 255": (lambda mask: 255 * mask.squeeze(1).long(), {}, IndexError),
    "bools without a channel": (lambda mask: mask.squeeze(1).bool(), {}, TypeError),
    "no pixels": (lambda mask: mask.squeeze(1)[..., 0, 0], {"spatial": 0}, TypeError),
    "another size": (
        lambda mask: mask.repeat_interleave(2, -1),
        {"upsample": "bilinear"},
        ValueError,
    ),
}


@pytest.mark.parametrize("case", ONE_CHANNEL)
@pytest.mark.parametrize("module", [False, True], ids=["function", "module"])
def test_advice_for_a_binary_mask_gives_binary_cross_entropy(case, module):
    """Following it to the letter, in place of the loss of a single class, which is 0."""
    as_target, options, exception = ONE_CHANNEL[case]
    input, mask = torch.randn(2, 1, 6, 5), (torch.rand(2, 1, 6, 5) < 0.5).float()
    options = dict(options)
    if options.pop("spatial", None) == 0:
        input = input[..., 0, 0]
    target = as_target(mask)
    loss = segunc_ops.CrossEntropyLoss(**options) if module else sf.cross_entropy
    named = {} if module else options
    with pytest.raises(exception, match=r"of one channel.*for a binary mask pass") as caught:
        loss(input, target, **named)
    advice = str(caught.value).partition("pass ")[2]
    given = [
        eval(part, {"torch": torch, "segunc_ops": segunc_ops, "input": input, "target": target})
        for part in advice.split(" and ")
    ]
    large = input if "upsample" not in options else F.interpolate(input, (6, 10), mode="bilinear")
    expected = F.binary_cross_entropy_with_logits(large, target.bool().float().view(large.shape))
    torch.testing.assert_close(loss(*given, **named), expected)


def test_a_target_of_one_logit_is_told_no_channel():
    with pytest.raises(IndexError, match=r"got 1$"):
        sf.cross_entropy(torch.randn(1), torch.tensor(1))


def test_smoothing_is_any_number():
    x, target = torch.randn(2, 3, 4, 5), _t()
    wanted = sf.cross_entropy(x, target, label_smoothing=0.25)
    for number in (np.float32(0.25), np.float64(0.25), Fraction(1, 4)):
        assert sf.cross_entropy(x, target, label_smoothing=number) == wanted
        assert segunc_ops.CrossEntropyLoss(label_smoothing=number)(x, target) == wanted
