"""TorchUncertainty's routine, the real one, with this library's losses and metrics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("torch_uncertainty", reason="needs torch_uncertainty")

from torch_uncertainty import TUTrainer
from torch_uncertainty.methods import deep_ensembles, mc_dropout
from torch_uncertainty.routines import SegmentationRoutine

from segunc_ops import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    ExpectedCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
    insert_dropout,
)
from segunc_ops.integrations.torch_uncertainty import SegmentationMapRoutine

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and what it imports

CLASSES, SIZE = 4, 16
OPTIONS: dict[str, Any] = {"ignore_index": 255, "upsample": "bilinear"}


def network(dropout: float = 0.2, stride: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride, 1), nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(8, CLASSES, 1)
    )


def data(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, CLASSES, (count, SIZE, SIZE), generator=generator)
    labels[:, :2] = 255
    labels[0, 4] = CLASSES + 1  # of no class: ignored
    return list(zip(images, labels, strict=True))


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*data(count), strict=True)
    return torch.stack(images), torch.stack(labels)


def recipe(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def trainer(**options: Any) -> Any:
    return TUTrainer(
        accelerator="cpu",
        **{"max_epochs": 2, "logger": False, "enable_progress_bar": False}
        | {"enable_model_summary": False, "enable_checkpointing": False}
        | options,
    )


def step(routine: Any, model: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    routine.log = lambda *args, **kwargs: None
    routine.train()
    model.zero_grad()
    torch.manual_seed(1)
    loss = routine.training_step(batch())
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def test_loss_and_gradients_are_the_routines_own():
    model = network(stride=1)
    own = SegmentationRoutine(model, CLASSES, nn.CrossEntropyLoss())
    ours = SegmentationMapRoutine(model, CLASSES, CrossEntropyLoss(ignore_index=255))
    expected, gradients = step(own, model)
    result, found = step(ours, model)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=0)
    largest = max(float(g.abs().max()) for g in gradients)
    for a, b in zip(found, gradients, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * largest


def test_targets_keep_their_resolution():
    model = network(dropout=0.0)
    result, _ = step(SegmentationMapRoutine(model, CLASSES, CrossEntropyLoss(**OPTIONS)), model)
    images, labels = batch()
    logits = F.interpolate(model(images), (SIZE, SIZE), mode="bilinear")
    labels[labels >= CLASSES] = 255
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(result, expected.detach())


LOSSES = {
    "CE": CrossEntropyLoss,
    "U-CE": UncertaintyAwareCrossEntropyLoss,
    "IU": InstanceUncertaintyCrossEntropyLoss,
    "PAT": PixelAdaptiveCrossEntropyLoss,
    "Dice + CE": DiceCrossEntropyLoss,
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_is_evaluated(loss, precision):
    model = network()
    before = copy.deepcopy(model.state_dict())
    routine = SegmentationMapRoutine(
        model, CLASSES, LOSSES[loss](**OPTIONS), num_samples=2, optim_recipe=recipe
    )
    passes = []
    model[3].register_forward_hook(lambda m, args, out: passes.append((m.training, out.dtype)))
    runner = trainer(precision=precision, num_sanity_val_steps=0)
    runner.fit(routine, DataLoader(data(), 3), DataLoader(data(), 3))
    sampled = loss in ("U-CE", "IU")
    assert sum(training for training, _ in passes) == 4 * (3 if sampled else 1)
    if precision == "bf16-mixed":
        assert {dtype for _, dtype in passes} == {torch.bfloat16}
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert 0 < float(runner.callback_metrics["val/seg/mIoU"]) < 1


def test_an_ensemble_is_observed():
    model, members = network(0.0), [network(0.0) for _ in range(3)]
    for number, member in enumerate(members):
        torch.manual_seed(number)
        nn.init.normal_(member[3].weight)
    criterion = InstanceUncertaintyCrossEntropyLoss(**OPTIONS)
    routine = SegmentationMapRoutine(
        model, CLASSES, criterion, members=members, optim_recipe=recipe
    )
    assert len(list(routine.parameters())) == len(list(model.parameters()))
    weighted, _ = step(routine, model)
    plain = InstanceUncertaintyCrossEntropyLoss(exponent=0.0, **OPTIONS)
    unweighted, _ = step(SegmentationMapRoutine(model, CLASSES, plain, members=members), model)
    assert weighted > unweighted
    routine.double()
    assert members[0][0].weight.dtype == torch.float64


@pytest.mark.parametrize("estimates", ["one", "mc_dropout", "deep_ensembles"])
def test_metrics_are_the_routines_own_over_all_pixels(estimates):
    model = network(stride=1)
    if estimates == "mc_dropout":
        model = mc_dropout(model, num_estimators=3)
    elif estimates == "deep_ensembles":
        model = deep_ensembles([model, network(stride=1)], task="segmentation")
    own = SegmentationRoutine(model, CLASSES, metric_subsampling_rate=1.0)
    criterion = CrossEntropyLoss(ignore_index=255)
    ours = SegmentationMapRoutine(model, CLASSES, criterion, threshold=0.5)
    results = []
    for routine in (own, ours):
        torch.manual_seed(1)
        # One batch: the stock routine's metrics draw random numbers between batches.
        (result,) = trainer().test(routine, DataLoader(data(), 6), verbose=False)
        results.append(result)
    expected, found = results
    for name in ("seg/mIoU", "seg/pixAcc", "seg/NLL", "seg/Brier", "cal/ECE"):
        assert found[f"test/{name}"] == pytest.approx(expected[f"test/{name}"], rel=1e-4), name
    assert found["test/sc/AURC"] == pytest.approx(expected["test/sc/AURC"], rel=0.02)
    for name in ("test/cplx/flops", "test/cplx/params"):
        assert found[name] == expected[name]
    assert 0 <= found["test/cal/PAvPU"] <= 1


def test_what_does_not_fit_is_refused():
    criterion = CrossEntropyLoss(**OPTIONS)
    with pytest.raises(ValueError, match="eval_ood"):
        SegmentationMapRoutine(network(), CLASSES, criterion, eval_ood=True)
    with pytest.raises(TypeError, match="loss"):
        SegmentationMapRoutine(network(), CLASSES, criterion, loss=criterion)
    with pytest.raises(ValueError, match="ignore_index=255"):
        SegmentationMapRoutine(network(), CLASSES, CrossEntropyLoss())
    for other in (nn.CrossEntropyLoss(), ExpectedCrossEntropyLoss()):
        with pytest.raises(TypeError, match="criterion"):
            SegmentationMapRoutine(network(), CLASSES, other)
    model = network()[:2].append(nn.Conv2d(8, CLASSES, 1))
    uce = UncertaintyAwareCrossEntropyLoss(**OPTIONS)
    with pytest.raises(ValueError, match="insert_dropout"):
        SegmentationMapRoutine(model, CLASSES, uce)
    insert_dropout(model)
    step(SegmentationMapRoutine(model, CLASSES, uce), model)
