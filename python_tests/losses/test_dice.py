"""Dice and cross-entropy as a module, and heads of several resolutions."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.dice.cases import batch
from python_tests.support import IGNORED
from segunc_ops import CrossEntropyLoss, DeepSupervision, DiceCrossEntropyLoss
from segunc_ops._options import LossOptions

pytestmark = pytest.mark.usefixtures("each_backend")


def test_is_the_function():
    x, target, u = batch(torch.float64)
    weight = torch.rand(3, dtype=torch.float64)
    options = {"batch": True, "squared": True, "absent": "skip", "label_smoothing": 0.1}
    loss = DiceCrossEntropyLoss(weight, ignore_index=IGNORED, **options)
    wanted = sf.dice_cross_entropy(
        x, target, weight, pixel_weight=u, ignore_index=IGNORED, **options
    )
    torch.testing.assert_close(loss(x, target, u), wanted)
    assert set(loss.state_dict()) == {"weight"}
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(x, target, u), wanted)


def test_upsamples():
    x = batch(torch.float64, (4, 5))[0]
    labels = torch.randint(0, 3, (2, 9, 11))
    large = F.interpolate(x, (9, 11), mode="bilinear")
    loss = DiceCrossEntropyLoss(upsample="bilinear")
    torch.testing.assert_close(loss(x, labels), DiceCrossEntropyLoss()(large, labels))


def test_arguments_and_their_errors():
    parameters = inspect.signature(DiceCrossEntropyLoss).parameters
    own = set(inspect.signature(sf.dice_cross_entropy).parameters)
    assert set(parameters) == own - {"input", "target", "pixel_weight"}
    assert set(LossOptions._fields) < set(parameters)
    text = repr(DiceCrossEntropyLoss.nnunet(batch=True, ignore_index=255))
    for part in ("batch=True", "include_background=False", "dice_offset=0.0", "ignore_index=255"):
        assert part in text
    with pytest.raises(TypeError, match="unexpected keyword argument 'smooth'"):
        DiceCrossEntropyLoss(smooth=1.0)
    with pytest.raises(ValueError, match=r"reduction: .*got 'none'"):
        DiceCrossEntropyLoss(reduction="none")
    with pytest.raises(ValueError, match="absent: expected one of"):
        DiceCrossEntropyLoss.smp(absent="nothing")
    loss = DiceCrossEntropyLoss()
    loss.reduction = "none"
    with pytest.raises(ValueError, match=r"reduction: .*got 'none'"):
        loss(*batch()[:2])


@pytest.mark.parametrize("name", ["nnunet", "monai", "smp", "ultralytics"])
def test_arguments_override_a_packages(name):
    x, target, _ = batch(torch.float64)
    make = getattr(DiceCrossEntropyLoss, name)
    every = {
        "ce_weight": 0.5,
        "dice_weight": 2.0,
        "batch": False,
        "include_background": True,
        "smooth_numerator": 0.25,
        "smooth_denominator": 0.5,
        "absent": "count",
        "dice_offset": 3.0,
        "ignore_index": IGNORED,
    }
    wanted = sf.dice_cross_entropy(x, target, **every)
    torch.testing.assert_close(make(**every)(x, target), wanted)


# ---- deep supervision ----


def heads() -> tuple[list[Tensor], list[Tensor]]:
    """Of three resolutions, with targets of theirs."""
    pairs = [batch(torch.float64, size)[:2] for size in ((8, 12), (4, 6), (2, 3))]
    return [x for x, _ in pairs], [target for _, target in pairs]


def test_heads_with_targets_of_their_own():
    logits, targets = heads()
    for loss in (
        DiceCrossEntropyLoss(ignore_index=IGNORED),
        CrossEntropyLoss(None, ignore_index=IGNORED),
    ):
        weights = (0.5, 0.25, 0.125)
        found = DeepSupervision(loss, weights)(logits, targets)
        each = [loss(x, target) for x, target in zip(logits, targets, strict=True)]
        wanted = sum(w * value for w, value in zip(weights, each, strict=True))
        torch.testing.assert_close(found, wanted)
        for a, b in zip(*(torch.autograd.grad(v, logits) for v in (found, wanted)), strict=True):
            torch.testing.assert_close(a, b)


def test_heads_with_one_target():
    logits, targets = heads()
    loss = DiceCrossEntropyLoss(upsample="bilinear", ignore_index=IGNORED)
    found = DeepSupervision(loss, [1, 1, 1])(tuple(logits), targets[0])
    wanted = sum(loss(x, targets[0]) for x in logits)
    torch.testing.assert_close(found, wanted)


def test_stacked_heads():
    x = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, 4, 6))
    loss = DeepSupervision(DiceCrossEntropyLoss(), [1.0, 0.5, 0.25])
    found = loss(x, target)
    torch.testing.assert_close(found, loss([*x.unbind(1)], [target] * 3))
    # In evaluation a network has one head.
    torch.testing.assert_close(loss(x[:, 0], target), DiceCrossEntropyLoss()(x[:, 0], target))
    torch.testing.assert_close(loss(x[:, 0], [target]), DiceCrossEntropyLoss()(x[:, 0], target))


def test_nnunets_weights():
    loss = DeepSupervision.nnunet(DiceCrossEntropyLoss.nnunet(), 4)
    assert loss.weights == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0.0))
    assert DeepSupervision.nnunet(CrossEntropyLoss(), 1).weights == (1.0,)
    # The head of weight 0 is not computed: its target need not fit.
    logits, targets = heads()
    three = DeepSupervision.nnunet(DiceCrossEntropyLoss.nnunet(ignore_index=IGNORED), 3)
    targets[2] = targets[0]
    assert three(logits, targets).isfinite()
    assert "weights=(0.6666" in repr(three)


def test_errors_of_heads():
    logits, targets = heads()
    loss = DeepSupervision(DiceCrossEntropyLoss(ignore_index=IGNORED), [1.0, 0.5])
    with pytest.raises(ValueError, match="input: expected 2 heads, got 3"):
        loss(logits, targets)
    with pytest.raises(ValueError, match="target: expected one or 2, got 3"):
        loss(logits[:2], targets)
    with pytest.raises(ValueError, match="weights: expected a finite number of at least 0"):
        DeepSupervision(CrossEntropyLoss(), [1.0, -1.0])
    with pytest.raises(ValueError, match="weights: expected one above 0"):
        DeepSupervision(CrossEntropyLoss(), [])
    with pytest.raises(TypeError, match="loss: expected a module, got int"):
        DeepSupervision(1, [1.0])
