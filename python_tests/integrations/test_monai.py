"""MONAI's engines with this library's losses, samples and metrics."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segunc_ops import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
    insert_dropout,
)
from segunc_ops.functional import PredictiveStatistics
from segunc_ops.metrics import MeanIoU

from .comparison import assert_same, gradients
from .low_resolution import CLASSES, IGNORED, LOSSES, SAMPLED, batch

pytest.importorskip("monai", reason="needs MONAI")

from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet, SegResNetDS, UNet

from segunc_ops.integrations.monai import (
    MetricHandler,
    ObserverHandler,
    SegmentationCriterion,
)

SIZE = 32
WEIGHTS = [1.0, 0.5]


def network(dropout: float = 0.0) -> nn.Module:
    return UNet(2, 3, CLASSES, (4, 8), (2,), num_res_units=1, dropout=dropout)


def supervised(dropout: float = 0.0) -> nn.Module:
    """With a second head, stacked in training."""
    sizes = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2)}
    options: dict[str, Any] = {"filters": (4, 8, 8), "deep_supervision": True, "deep_supr_num": 1}
    return DynUNet(2, 3, CLASSES, **sizes, **options, dropout=dropout or None)


def batches(count: int = 1, *, ignored: bool = True) -> list[dict[str, Tensor]]:
    """As MONAI's loaders make them: MetaTensors, labels of float32 and with a channel."""
    images, labels = batch(size=SIZE)
    if not ignored:
        labels[labels == IGNORED] = 0
    one = {"image": MetaTensor(images), "label": MetaTensor(labels.unsqueeze(1).float())}
    for value in one.values():
        value.is_batch = True
    return [dict(one) for _ in range(count)]


def run_trainer(
    model: nn.Module, loss_function: Any, handlers: Any = (), steps: int = 4, **options: Any
) -> list[float]:
    """The losses of a SupervisedTrainer."""
    ignite = pytest.importorskip("ignite.engine", reason="needs pytorch-ignite")
    from monai.engines import SupervisedTrainer

    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.05))
    loader = options.pop("loader", None) or batches(steps)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=loader,
        network=model,
        optimizer=optimizer,
        loss_function=loss_function,
        train_handlers=list(handlers),
        decollate=False,
        **options,
    )
    losses: list[float] = []
    trainer.add_event_handler(
        ignite.Events.ITERATION_COMPLETED,
        lambda engine: losses.append(engine.state.output["loss"].item()),
    )
    trainer.run()
    return losses


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def theirs(heads: bool) -> nn.Module:
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    return DeepSupervisionLoss(loss, weights=WEIGHTS) if heads else loss


def ours(heads: bool) -> SegmentationCriterion:
    return SegmentationCriterion(DiceCrossEntropyLoss.monai(), WEIGHTS if heads else None)


def their_loss(output: Any, labels: Tensor, heads: bool) -> Tensor:
    """MONAI's wrapper takes a list of heads, which DynUNet stacks."""
    stacked = isinstance(output, Tensor) and output.dim() == 5
    return theirs(heads)(list(output.unbind(1)) if stacked else output, labels)


@pytest.mark.parametrize("heads", [False, True])
def test_loss_and_gradients_are_those_of_monai(heads):
    model = supervised() if heads else network()
    own = copy.deepcopy(model)
    (data,) = batches(ignored=False)
    expected = their_loss(own(data["image"]), data["label"], heads)
    expected.backward()
    output = model(data["image"])
    assert isinstance(output, MetaTensor)
    assert output.dim() == (5 if heads else 4)
    loss = ours(heads)(output, data["label"])
    assert type(loss) is Tensor
    loss.backward()
    torch.testing.assert_close(loss, expected.as_tensor(), rtol=1e-5, atol=0)
    assert_same(gradients(model), gradients(own))


@pytest.mark.parametrize("heads", [False, True])
def test_a_trainer_makes_the_same_step(heads):
    model = supervised() if heads else network()
    own = copy.deepcopy(model)
    options: dict[str, Any] = {"loader": batches(ignored=False), "steps": 1, "lr": 0.0}
    expected = run_trainer(own, lambda x, y: their_loss(x, y, heads), **options)
    result = run_trainer(model, ours(heads), **options)
    assert result == pytest.approx(expected, rel=1e-5)
    assert_same(gradients(model), gradients(own))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bf16", [False, True])
def test_every_loss_trains(loss, bf16):
    model = network(dropout=0.1)
    criterion = SegmentationCriterion(LOSSES[loss](ignore_index=IGNORED))
    handlers = [ObserverHandler(2)] if loss in SAMPLED else []
    dtypes = []
    convolution = next(each for each in model.modules() if isinstance(each, nn.Conv2d))
    convolution.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    hooks = len(model._forward_pre_hooks)

    def infer(inputs, network):  # `amp=True` is for CUDA alone
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(inputs)

    losses = run_trainer(model, criterion, handlers, steps=24, lr=0.2, inferer=infer)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert set(dtypes) == {torch.bfloat16 if bf16 else torch.float32}
    assert len(dtypes) > 24 if handlers else len(dtypes) == 24
    assert len(model._forward_pre_hooks) == hooks  # the observer went with the run


def test_one_observation_serves_all_heads():
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)
    criterion = SegmentationCriterion(loss, WEIGHTS)
    seen = []
    observe = criterion.observe
    criterion.observe = lambda statistics: (seen.append(statistics), observe(statistics))
    (data,) = batches()
    outputs = []
    model = supervised(dropout=0.2)
    model.register_forward_hook(
        lambda module, args, output: outputs.append(output) if torch.is_grad_enabled() else None
    )
    (result,) = run_trainer(model, criterion, [ObserverHandler(2)], loader=[data])
    (statistics,), (output,) = seen, outputs
    assert isinstance(statistics, PredictiveStatistics)
    assert float(statistics.std.max()) > 0
    labels = data["label"].as_tensor()[:, 0].long()
    expected = sum(
        weight * loss(head.as_tensor(), labels, statistics)
        for weight, head in zip(WEIGHTS, output.unbind(1), strict=True)
    )
    assert result == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="expected one in training mode, got none"):
        criterion(output, data["label"])
    criterion.eval()
    assert criterion(output[:, 0], data["label"]) > 0


def test_heads_in_a_list_are_interpolated():
    model = SegResNetDS(2, 8, 3, CLASSES, blocks_down=(1, 1), blocks_up=(1,), dsdepth=1)
    (data,) = batches()
    criterion = SegmentationCriterion(
        CrossEntropyLoss(ignore_index=IGNORED, upsample="bilinear"), WEIGHTS
    )
    head = model(data["image"])
    small = nn.functional.avg_pool2d(head, 2)
    labels = data["label"].as_tensor()[:, 0].long()
    expected = sum(
        weight * criterion.criterion(logits.as_tensor(), labels)
        for weight, logits in zip(WEIGHTS, (head, small), strict=True)
    )
    torch.testing.assert_close(criterion([head, small], data["label"]), expected)


def test_a_network_without_dropout_cannot_be_sampled():
    criterion = SegmentationCriterion(UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED))
    model = network()
    with pytest.raises(ValueError, match="insert_dropout"):
        run_trainer(model, criterion, [ObserverHandler()])
    assert insert_dropout(model) == ["model.2.1.conv.unit0.conv"]
    losses = run_trainer(model, criterion, [ObserverHandler(2, share_forward=True)], steps=2)
    assert len(losses) == 2


def test_the_last_layer_of_supervised_networks_takes_dropout():
    model = supervised()
    insert_dropout(model, before="output_block.conv.conv")
    criterion = SegmentationCriterion(
        UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED), WEIGHTS
    )
    seen = []
    observe = criterion.observe
    criterion.observe = lambda statistics: (seen.append(statistics.std), observe(statistics))
    run_trainer(model, criterion, [ObserverHandler(2)], steps=2)
    assert len(seen) == 2
    assert all(float(std.max()) > 0 for std in seen)


def test_an_observer_that_an_error_left_goes_with_the_next_run():
    model = network(dropout=0.1)
    criterion = SegmentationCriterion(UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED))
    handler = ObserverHandler(2)
    with pytest.raises(ValueError, match="class indices"):
        run_trainer(
            model, criterion, [handler], loader=[batches()[0] | {"label": torch.rand(2, 1, 4, 4)}]
        )
    assert len(model._forward_pre_hooks) == 1
    run_trainer(model, criterion, [handler], steps=1)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("decollate", [False, True])
def test_metrics_of_an_evaluator(decollate):
    pytest.importorskip("ignite", reason="needs pytorch-ignite")
    from monai.engines import SupervisedEvaluator

    model = network()
    loader = batches(3)
    handler = MetricHandler(MeanIoU(CLASSES, ignore_index=IGNORED))
    per_class = MetricHandler(MeanIoU(CLASSES, ignore_index=IGNORED, average="none"))
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=loader,
        network=model,
        key_val_metric={"mean_iou": handler},
        additional_metrics={"iou": per_class},
        decollate=decollate,
    )
    expected = MeanIoU(CLASSES, ignore_index=IGNORED)
    with torch.no_grad():
        logits = model.eval()(loader[0]["image"].as_tensor())
    expected.update(logits, loader[0]["label"].as_tensor()[:, 0].long())
    for _ in range(2):  # begins anew
        evaluator.run()
        assert evaluator.state.metrics["mean_iou"] == pytest.approx(expected.compute().item())
    assert evaluator.state.metrics["iou"].shape == (CLASSES,)
    assert evaluator.state.best_metric == evaluator.state.metrics["mean_iou"]


def test_copies_have_losses_of_their_own():
    criterion = SegmentationCriterion(
        UncertaintyAwareCrossEntropyLoss(
            weight=torch.ones(CLASSES), reduction="mean_all", missing="plain"
        ),
        WEIGHTS,
    )
    assert list(criterion.state_dict()) == ["criterion.weight"]
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        twin.criterion.weight.fill_(2.0)
        logits, labels = torch.randn(1, 2, CLASSES, 4, 4), torch.zeros(1, 1, 4, 4)
        torch.testing.assert_close(twin(logits, labels), 2 * criterion(logits, labels))


def test_errors():
    (data,) = batches()
    logits = torch.randn(2, CLASSES, SIZE, SIZE)
    with pytest.raises(TypeError, match="takes logits and class indices"):
        SegmentationCriterion(nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="weights"):
        SegmentationCriterion(CrossEntropyLoss(), [1.0, -1.0])
    criterion = SegmentationCriterion(CrossEntropyLoss(ignore_index=IGNORED), WEIGHTS)
    with pytest.raises(TypeError, match="needs no Observer"):
        criterion.observe(torch.zeros(1))
    with pytest.raises(ValueError, match="expected 2 heads, got 3"):
        criterion([logits] * 3, data["label"])
    plain = SegmentationCriterion(CrossEntropyLoss(ignore_index=IGNORED))
    with pytest.raises(ValueError, match="head_weights"):
        plain([logits], data["label"])
    one_hot = nn.functional.one_hot(torch.zeros(2, SIZE, SIZE).long(), CLASSES).movedim(-1, 1)
    with pytest.raises(ValueError, match="one-hot"):
        plain(logits, one_hot.float())
