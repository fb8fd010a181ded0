"""Targets of every kind that trainers have become class indices that losses read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.support import IGNORED, TARGET_DTYPES
from segunc_ops import metrics as sm

INTEGERS = {
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.int16: torch.int16,
    torch.uint8: torch.uint8,
    torch.int8: torch.int16,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
    torch.bool: torch.uint8,
}
VIEWS = (*TARGET_DTYPES, torch.bool, torch.uint64)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Labelled(Tensor):
    """As MONAI's MetaTensor: what is known of a scan goes with whatever is made of it."""

    affine: Any = None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        known = [a.affine for a in args if isinstance(a, cls) and a.affine is not None]
        if isinstance(result, cls) and known:
            result.affine = known[0]
        return result


def labelled(tensor: Tensor) -> Labelled:
    result = tensor.as_subclass(Labelled)
    result.affine = "of the scan"
    return result


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 4, 5), (2, 1), (2,), (), (2, 1, 0, 5)])
def test_integers(dtype, shape):
    target = torch.randint(0, 2, shape).to(dtype)
    found = segunc_ops.as_targets(target)
    assert found.dtype == INTEGERS[dtype]
    wanted = target.long().squeeze(1) if target.dim() > 1 and shape[1] == 1 else target.long()
    torch.testing.assert_close(found.long(), wanted)
    assert (found.data_ptr() == target.data_ptr()) == (dtype in VIEWS or found.numel() == 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0, 255], torch.uint8),
        ([-1, 255], torch.int16),
        ([0, 256], torch.int16),
        ([-(2**15), 0], torch.int16),
        ([0, 2**15], torch.int32),
        ([-(2**31), 0], torch.int32),
        ([0, 2**31], torch.int64),
        ([-(2**63), 1], torch.int64),
        ([], torch.uint8),
    ],
)
def test_floats_become_the_narrowest_type(dtype, values, wanted):
    if dtype == torch.float16 and any(abs(value) > 2**15 for value in values):
        return  # it has no such number
    if dtype == torch.bfloat16 and 255 in values:
        values = [value - (value == 255) for value in values]
    found = segunc_ops.as_targets(torch.tensor(values, dtype=dtype).view(-1, 1, 1))
    assert found.dtype == wanted
    assert found.flatten().tolist() == values


def test_strides_are_kept_and_read():
    target = torch.randint(0, 3, (5, 4, 1, 2)).movedim(-1, 0)
    found = segunc_ops.as_targets(target, squeeze=False)
    assert found.shape == (2, 5, 4, 1)
    assert found.data_ptr() == target.data_ptr()
    x = torch.randn(2, 3, 5, 4, 1)
    torch.testing.assert_close(
        sf.cross_entropy(x, found), torch.nn.functional.cross_entropy(x, target)
    )


def test_an_axis_of_one_may_be_of_pixels():
    row = torch.zeros(2, 1, 5)
    assert segunc_ops.as_targets(row).shape == (2, 5)
    assert segunc_ops.as_targets(row, squeeze=False).shape == (2, 1, 5)


ERRORS = {
    "no tensor": ([1, 2], TypeError, "target: expected a tensor, got list"),
    "complex": (
        torch.zeros(2, dtype=torch.complex64),
        TypeError,
        "target: expected class indices, got torch.complex64",
    ),
    "small floats": (
        torch.zeros(2).to(torch.float8_e4m3fn),
        TypeError,
        "target: expected class indices, got torch.float8_e4m3fn",
    ),
    "integers of another kind": (
        torch.zeros(2, dtype=torch.uint8).view(torch.bits8),
        TypeError,
        "target: expected class indices, got torch.bits8",
    ),
    "a fraction": (
        torch.tensor([[0.0, 2.5], [1.0, 0.25]]),
        ValueError,
        "target: expected class indices, got 2.5 of torch.float32; of class probabilities "
        "(N, C, *) pass target.argmax(1)",
    ),
    "not a number": (
        torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
        ValueError,
        "target: expected class indices, got nan of torch.bfloat16",
    ),
    "infinite": (
        torch.tensor([1.0, -float("inf")]),
        ValueError,
        "target: expected class indices below 2^63, got -inf of torch.float32",
    ),
    "too large": (
        torch.tensor([1.0, 2.0**63], dtype=torch.float64),
        ValueError,
        "target: expected class indices below 2^63, got 9.22337e+18 of torch.float64",
    ),
    "a gradient": (
        torch.zeros(2, requires_grad=True),
        ValueError,
        "target: expected class indices, which have no gradient; pass target.detach()",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    target, exception, message = ERRORS[name]
    with pytest.raises(exception, match=re.escape(message)):
        segunc_ops.as_targets(target)


def test_squeeze_is_a_flag():
    with pytest.raises(TypeError, match="squeeze: expected a bool, got int"):
        segunc_ops.as_targets(torch.zeros(2), squeeze=1)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_the_advice_of_errors_is_right(dtype):
    """Of every loss, statistic and metric: what they refuse they take by `as_targets`."""
    x, labels = torch.randn(2, 2, 4, 5), torch.randint(0, 2, (2, 4, 5))
    calls = (
        lambda target: sf.cross_entropy(x, target),
        lambda target: sf.pixel_adaptive_cross_entropy(x, target),
        lambda target: sf.dice_cross_entropy(x, target),
        lambda target: segunc_ops.UncertaintyAwareCrossEntropyLoss()(x, target, x[:, 0].abs()),
        lambda target: segunc_ops.InstanceUncertaintyCrossEntropyLoss()(x, target, x[:, 0].abs()),
        lambda target: sm.MeanIoU(2)(x, target),
    )
    for call in calls:
        wanted = call(labels)
        for target in (labels.to(dtype), labels.to(dtype).unsqueeze(1)):
            if target.dim() == 4 or dtype not in TARGET_DTYPES:
                with pytest.raises((TypeError, ValueError), match=r"pass segunc_ops.as_targets\("):
                    call(target)
            assert call(segunc_ops.as_targets(target)) == wanted


def test_the_advice_keeps_an_axis_of_pixels():
    for channels in (1, 2):
        x, target = torch.randn(2, channels, 1, 5), torch.zeros(2, 1, 5)
        with pytest.raises(TypeError, match=r"segunc_ops.as_targets\(target, squeeze=False\)"):
            sf.cross_entropy(x, target)


@pytest.mark.usefixtures("each_backend")
def test_nnunets_heads():
    """int16 of a channel, one for each scale, with -1 where nothing is known."""
    sizes = ((8, 8, 8), (4, 4, 4))
    targets = [torch.randint(-1, 3, (2, 1, *size)).short() for size in sizes]
    heads = [torch.randn(2, 3, *size) for size in sizes]
    loss = segunc_ops.DeepSupervision.nnunet(
        segunc_ops.DiceCrossEntropyLoss.nnunet(ignore_index=-1), 2
    )
    found = loss(heads, [segunc_ops.as_targets(target) for target in targets])
    assert found == loss(heads, [target.squeeze(1).long() for target in targets])


@pytest.mark.usefixtures("each_backend")
def test_a_subclass_is_kept():
    label = labelled(torch.randint(0, 3, (2, 1, 4, 5)).float())
    found = segunc_ops.as_targets(label)
    assert type(found) is Labelled
    assert found.affine == "of the scan"
    assert found.dtype == torch.uint8


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("upsample", [None, "bilinear"])
def test_losses_and_metrics_take_subclasses(upsample):
    """As MONAI's network gives them; the gradient arrives at what they were made of."""
    x = torch.randn(2, 3, 4, 5).requires_grad_()
    target = torch.randint(0, 3, (2, 4, 5))
    target[0, 0] = IGNORED
    u = torch.rand(2, 4, 5)
    for function in (sf.cross_entropy, sf.focal_cross_entropy, sf.dice_cross_entropy):
        options: dict[str, Any] = {"ignore_index": IGNORED, "upsample": upsample}
        plain = function(x, target, pixel_weight=u, **options)
        found = function(
            labelled(x), labelled(target), labelled(torch.ones(3)), pixel_weight=u, **options
        )
        assert torch.equal(found.as_subclass(Tensor), plain)
        a, b = (torch.autograd.grad(loss, x)[0] for loss in (found, plain))
        assert torch.equal(a.as_subclass(Tensor), b)
    metric = sm.MeanIoU(3, ignore_index=IGNORED)
    assert metric(labelled(x.detach()), labelled(target)) == metric(x.detach(), target)
    statistics = sf.predictive_statistics([labelled(x.detach())] * 2)
    for a, b in zip(statistics, sf.predictive_statistics([x.detach()] * 2), strict=True):
        assert a is b is None or torch.equal(a, b)


@pytest.mark.usefixtures("each_backend")
def test_compiles_integers_into_one_graph():
    def loss(x: Tensor, target: Tensor) -> Tensor:
        return sf.cross_entropy(x, segunc_ops.as_targets(target))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 4, 5)
    for dtype in (torch.int16, torch.int8, torch.bool):
        target = torch.randint(0, 2, (2, 1, 4, 5)).to(dtype)
        torch.testing.assert_close(compiled(x, target), loss(x, target))
