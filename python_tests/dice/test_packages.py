"""Options that give other packages' losses, against their formulas and, where it is installed,
MONAI itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.dice import cases
from python_tests.dice.cases import batch
from python_tests.support import IGNORED
from segunc_ops import DiceCrossEntropyLoss

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


def test_monai_itself():
    losses = pytest.importorskip("monai.losses")
    x, target, _ = batch(torch.float64, (5, 7), classes=5, ignored=0.0)
    target = without_class(target, 2)
    for own in ({}, {"batch": True}, {"jaccard": True}, {"include_background": False}):
        peer = losses.DiceCELoss(to_onehot_y=True, softmax=True, **own)
        wanted = peer(x, target.unsqueeze(1))
        assert_equal(DiceCrossEntropyLoss.monai(**own)(x, target), wanted, x)


def test_monai_by_numbers():
    """What MONAI 1.6.1 gives for these logits, for where it is not installed. It takes the norm of
    squared labels in float32."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 3, 5), generator=generator)  # class 3 is absent
    for own, value in MONAI_1_6_1:
        found = DiceCrossEntropyLoss.monai(**own)(x, target)
        assert float(found) == pytest.approx(value, rel=1e-8 if "squared" in own else 1e-12)


MONAI_1_6_1: tuple[tuple[dict[str, bool], float], ...] = (
    ({}, 2.4072839513705446),
    ({"batch": True}, 2.3926075302802565),
    ({"squared": True}, 2.317077183842699),
    ({"jaccard": True}, 2.499846475117195),
    ({"include_background": False, "batch": True}, 2.422931659087165),
)


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
