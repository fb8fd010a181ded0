"""Options that give other packages' losses, against their formulas and against what the packages
themselves gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.dice import cases
from python_tests.dice.cases import batch
from python_tests.peers import BATCHES, Batch, assert_same_numbers, numbers, records
from python_tests.support import IGNORED
from segunc_ops import DeepSupervision, DiceCrossEntropyLoss

SIZES = ((5, 7), (3, 4, 5))


def assert_equal(found: Tensor, wanted: Tensor, x: Tensor) -> None:
    """Values and gradients, in float64."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    a, b = (torch.autograd.grad(loss, x)[0] for loss in (found, wanted))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def without_class(target: Tensor, absent: int) -> Tensor:
    """No pixel of the first image has that class, and none of any image has the last."""
    target = target.clone()
    target[0][target[0] == absent] = 0
    target[target == 4] = 1
    return target


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("size", SIZES)
def test_nnunet(size):
    x, target, _ = batch(torch.float64, size, classes=5)
    for labels in (target, without_class(target, 2)):
        for over_batch in (False, True):
            loss = DiceCrossEntropyLoss.nnunet(batch=over_batch, ignore_index=IGNORED)
            assert_equal(loss(x, labels), cases.nnunet(x, labels, over_batch), x)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("size", SIZES)
def test_monai(size):
    x, target, _ = batch(torch.float64, size, classes=5, ignored=0.0)
    names = {"squared": "squared_pred"}
    for labels in (target, without_class(target, 2)):
        for own in (
            {},
            {"batch": True},
            {"squared": True},
            {"jaccard": True},
            {"include_background": False},
            {"squared": True, "jaccard": True, "batch": True},
        ):
            theirs = {names.get(name, name): value for name, value in own.items()}
            wanted = cases.monai(x, labels, **theirs)
            assert_equal(DiceCrossEntropyLoss.monai(**own)(x, labels), wanted, x)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("size", SIZES)
def test_smp(size):
    x, target, _ = batch(torch.float64, size, classes=5)
    for labels in (target, without_class(target, 2), torch.full_like(target, 3)):
        loss = DiceCrossEntropyLoss.smp(ignore_index=IGNORED)(x, labels)
        assert_equal(loss, cases.smp(x, labels), x)
    both = DiceCrossEntropyLoss.smp(ce_weight=1.0, reduction="mean_all", ignore_index=IGNORED)
    ce = sf.cross_entropy(x, target, ignore_index=IGNORED, reduction="mean_all")
    assert_equal(both(x, target), cases.smp(x, target) + ce, x)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("size", SIZES)
def test_ultralytics(size):
    x, target, _ = batch(torch.float64, size, classes=5)
    weight = torch.rand(5, dtype=torch.float64) + 0.5
    for labels in (target, without_class(target, 2)):
        for of_classes in (None, weight):
            loss = DiceCrossEntropyLoss.ultralytics(weight=of_classes)(x, labels)
            assert_equal(loss, cases.ultralytics(x, labels, of_classes), x)


# ---- what the packages gave ----


def like_nnunet(
    batch: Batch, batch_dice: bool, ignore_label: int = -100, weights: list[float] | None = None
) -> Tensor:
    loss = DiceCrossEntropyLoss.nnunet(batch=batch_dice, ignore_index=ignore_label)
    if weights is not None:
        return DeepSupervision(loss, weights)(batch.inputs, batch.targets)
    return loss(batch.input, batch.target)


def like_monai(batch: Batch, /, **options: Any) -> Tensor:
    loss = DiceCrossEntropyLoss.monai(**cases.monai_arguments(options))
    return loss(batch.input, batch.target)


def like_smp(batch: Batch, ignore_index: int = -100, smooth_factor: float = 0.0) -> Tensor:
    loss = DiceCrossEntropyLoss.smp(
        ce_weight=1.0,
        reduction="mean_all",
        ignore_index=ignore_index,
        label_smoothing=smooth_factor,
    )
    return loss(batch.input, batch.target)


LIKE: dict[str, Callable[..., Tensor]] = {
    "nnU-Net's DC_and_CE_loss": like_nnunet,
    "MONAI's DiceCELoss(softmax=True)": like_monai,
    "SMP's DiceLoss + SoftCrossEntropyLoss": like_smp,
}


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("record", [one for name in LIKE for one in records(name)], ids=str)
def test_gives_what_the_package_gave(record):
    batch = BATCHES[record.batch]()
    found = numbers(LIKE[record.loss](batch, **record.options), batch.inputs)
    assert_same_numbers(found, record.numbers, cases.tolerance(record))


def test_nnunet_weighs_its_heads():
    """As its trainer does, whose weights one of the packages' calls has."""
    loss = DeepSupervision.nnunet(DiceCrossEntropyLoss.nnunet(), 3)
    assert loss.weights == (2 / 3, 1 / 3, 0)
