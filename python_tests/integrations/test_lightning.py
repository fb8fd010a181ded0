"""Lightning's trainer, the real one, with this library's losses."""

from __future__ import annotations

import copy
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segunc_ops import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)
from segunc_ops.metrics import MeanIoU, SegmentationMetrics

L = pytest.importorskip("lightning.pytorch", reason="needs lightning")

from segunc_ops.integrations.lightning import (  # noqa: E402 # isort: skip # after what skips
    MetricsCallback,
    SamplingCallback,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*litlogger",
    "ignore:Checkpoint directory",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    # Of Lightning's own use of torch.
    "ignore::UserWarning:lightning",
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_trainer.py"
CLASSES, SIZE, IGNORED = 4, 16, 255
LOSSES: dict[str, Any] = {
    "CE": CrossEntropyLoss,
    "U-CE": UncertaintyAwareCrossEntropyLoss,
    "IU": InstanceUncertaintyCrossEntropyLoss,
    "PAT": PixelAdaptiveCrossEntropyLoss,
    "Dice + CE": DiceCrossEntropyLoss.monai,
}


def network(dropout=0.3):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, CLASSES, 1)
    )


class Segmenter(L.LightningModule):
    """A user's own, whose loss is the only line that this library changes."""

    def __init__(self, criterion, dropout=0.3):
        super().__init__()
        self.network = network(dropout)
        self.criterion = criterion
        self.losses: list[float] = []
        self.modes: list[tuple[str, bool]] = []

    def training_step(self, batch, index):
        images, labels = batch
        loss = self.criterion(self.network(images), labels)
        self.modes.append(("train", self.criterion.training))
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        logits = self.network(images)
        self.modes.append(("val", self.criterion.training))
        self.log("val_loss", self.criterion(logits.float(), labels))
        return {"logits": logits, "labels": labels}

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count, SIZE, SIZE), generator=generator)
    labels[:, :2] = IGNORED
    return torch.randn(count, 3, SIZE, SIZE, generator=generator), labels


def loader(count=8, batch_size=2, seed=0):
    dataset = torch.utils.data.TensorDataset(*data(count, seed))
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size)


def trainer(callbacks=(), **options):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


def scalar_metrics():
    return SegmentationMetrics(CLASSES, uncertainty=False, ignore_index=IGNORED, scalars_only=True)


def make(name="U-CE", **options):
    return Segmenter(LOSSES[name](ignore_index=IGNORED), **options)


def num_hooks(module):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Stock(nn.Module):
    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels, ignore_index=IGNORED)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_plain_cross_entropy_trains_as_torchs(accumulated):
    ours = make("CE", dropout=0.0)
    stock = copy.deepcopy(ours)
    stock.criterion = Stock()
    for module in (ours, stock):
        trainer(accumulate_grad_batches=accumulated).fit(module, loader())
    assert ours.losses == pytest.approx(stock.losses, rel=1e-5)
    for one, other in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_loss_trains_and_follows_the_mode(name, precision):
    module = make(name)
    seen = []

    def look(layer, args, output):
        seen.append((layer.training, torch.is_grad_enabled(), output.dtype))

    handle = module.network[-1].register_forward_hook(look)
    sampled = name in ("U-CE", "IU")
    callbacks = [SamplingCallback(num_samples=3)] if sampled else []
    fit = trainer(callbacks, precision=precision, limit_train_batches=2)
    fit.fit(module, loader(), loader(2, seed=1))
    handle.remove()
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    assert {each[2] for each in seen} == {dtype}
    training = [grad for mode, grad, _ in seen if mode]
    assert training == (([False] * 3 if sampled else []) + [True]) * 2
    assert dict(module.modes) == {"train": True, "val": False}
    assert all(loss == loss for loss in module.losses)
    assert num_hooks(module) == 0
    assert fit.callback_metrics["val_loss"] > 0


def test_samples_with_accumulated_batches_and_a_shared_forward(monkeypatch):
    module, callback = make(), SamplingCallback(num_samples=2, share_forward=True)
    encoded, convolve = [], module.network[0].forward

    def counted(images):
        encoded.append(torch.is_grad_enabled())
        return convolve(images)

    monkeypatch.setattr(module.network[0], "forward", counted)
    trainer([callback], accumulate_grad_batches=2).fit(module, loader())
    assert encoded == [True] * 4


def test_the_observer_is_removed_by_an_error_too():
    module, callback = make(), SamplingCallback()

    class Fails(L.Callback):
        def on_train_batch_end(self, *args):
            raise ArithmeticError("of the user's")

    with pytest.raises(ArithmeticError):
        trainer([callback, Fails()]).fit(module, loader())
    assert callback.observer is None
    assert num_hooks(module) == 0
    trainer([callback]).fit(module, loader())
    assert num_hooks(module) == 0


def test_a_resumed_fit_goes_on_as_one_that_was_not_stopped(tmp_path):
    class Seeds(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            torch.manual_seed(trainer.global_step)

    def callbacks():
        return [Seeds(), SamplingCallback(num_samples=2)]

    start = make()
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    trainer(callbacks(), max_epochs=2).fit(whole, loader())
    stopped = trainer(callbacks())
    stopped.fit(first, loader())
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(callbacks(), max_epochs=2).fit(second, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert second.losses == whole.losses[4:]
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_compiled_network_is_sampled():
    module, callback = make(), SamplingCallback(num_samples=2)
    own = copy.deepcopy(module)
    module.network = torch.compile(module.network, backend="eager")
    for each in (module, own):
        torch.manual_seed(3)
        trainer([callback], limit_train_batches=2).fit(each, loader())
        assert num_hooks(each) == 0
    assert module.losses == pytest.approx(own.losses, rel=1e-5)


def test_a_network_compiled_in_place_is_sampled():
    module, callback = make(), SamplingCallback(num_samples=2)
    module.network.compile(backend="eager")
    trainer([callback], limit_train_batches=2).fit(module, loader())
    assert num_hooks(module) == 0
    assert module.losses[0] > 0


def test_samples_of_a_network_in_half_precision():
    module, seen = make(), []
    module.network[-1].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    trainer([SamplingCallback(num_samples=2)], precision="bf16-true").fit(module, loader(4))
    assert seen == [torch.bfloat16] * 6
    assert all(loss > 0 for loss in module.losses)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_metrics_are_counted_and_logged(precision):
    module, callback = make("CE"), MetricsCallback(scalar_metrics())
    fit = trainer([callback], precision=precision, num_sanity_val_steps=2)
    dataset = loader(6, seed=1)
    expected = MeanIoU(CLASSES, ignore_index=IGNORED)
    fit.fit(module, loader(), dataset)
    validated = float(fit.callback_metrics["val_mean_iou"])
    fit.test(module, dataset, verbose=False)
    module.eval()
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    with torch.no_grad():
        for images, labels in dataset:
            expected.update(module.network.to(dtype)(images.to(dtype)), labels)
    value = pytest.approx(float(expected.compute()), rel=1e-6)
    assert validated == value
    assert float(fit.callback_metrics["test_mean_iou"]) == value
    assert 0 <= fit.callback_metrics["test_calibration_error"] <= 1
    assert int(callback.metrics.confusion.sum()) == 0  # forgotten


@pytest.mark.parametrize("step", [1, 2], ids=["the labels' resolution", "half of it"])
def test_metrics_of_logits_of_any_resolution_and_a_users_own_outputs(step):
    module = make("CE")
    module.validation_step = lambda batch: module.network(batch[0])[..., ::step, ::step]
    callback = MetricsCallback(
        MeanIoU(CLASSES, ignore_index=IGNORED),
        outputs=lambda logits, batch: {"logits": logits, "labels": batch[1]},
        align_corners=True,
    )
    (result,) = trainer([callback]).validate(module, loader(), verbose=False)
    assert 0 < result["val_MeanIoU"] < 1
    module.validation_step = lambda batch: torch.zeros(())
    with pytest.raises(ValueError, match="outputs: expected validation_step"):
        trainer([MetricsCallback(scalar_metrics())]).validate(module, loader(), verbose=False)


@pytest.mark.parametrize("name", [None, "CE", "IU"])
def test_the_example_learns(name):
    train = runpy.run_path(str(EXAMPLE))["train"]
    criterion = None if name is None else LOSSES[name](ignore_index=IGNORED)
    result = train(criterion, steps=12, size=(32, 48), scenes=8)
    losses = result["losses"]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert 0 < result["val_mean_iou"] < 1


@pytest.mark.parametrize(
    ("module", "callback", "error", "message"),
    [
        (lambda: make(dropout=0.0), SamplingCallback(), ValueError, "insert_dropout"),
        (make, SamplingCallback("model"), ValueError, "network: .* whose modules are network, cri"),
        (make, SamplingCallback(lambda module: 1), TypeError, "network: expected a module"),
        (lambda: make("CE"), SamplingCallback(), TypeError, "takes no samples"),
    ],
)
def test_errors(module, callback, error, message):
    with pytest.raises(error, match=message):
        trainer([callback]).fit(module(), loader())


def on_ranks(folder: Path) -> None:
    """What each of two processes runs, which Lightning starts the second of."""
    torch.manual_seed(0)
    module = make()
    fit = trainer(
        [SamplingCallback(num_samples=2), MetricsCallback(scalar_metrics())],
        strategy="ddp",
        devices=2,
        accumulate_grad_batches=2,
    )
    fit.fit(module, loader(), loader(6, batch_size=1, seed=1))
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    found = {
        "weights": weights.tolist(),
        "mean_iou": float(fit.callback_metrics["val_mean_iou"]),
        "losses": module.losses,
    }
    (folder / f"{fit.global_rank}.json").write_text(json.dumps(found))


@pytest.mark.thorough  # each rank imports Lightning: half a minute
def test_ranks(tmp_path):
    """Each samples its own images; weights agree, and counts are added up."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    subprocess.run(
        [sys.executable, "-m", __name__, str(tmp_path)],
        check=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        timeout=300,
    )
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["weights"] == other["weights"]
    assert one["losses"] != other["losses"]
    assert one["mean_iou"] == other["mean_iou"]
    module = make().eval()
    weights = torch.tensor(one["weights"])
    nn.utils.vector_to_parameters(weights, module.parameters())
    images, labels = data(6, seed=1)
    expected = MeanIoU(CLASSES, ignore_index=IGNORED)
    with torch.no_grad():
        expected.update(module.network(images), labels)
    assert one["mean_iou"] == pytest.approx(float(expected.compute()), rel=1e-6)


if __name__ == "__main__":
    on_ranks(Path(sys.argv[1]))
