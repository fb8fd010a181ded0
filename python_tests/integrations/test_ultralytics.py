"""Ultralytics' semantic segmentation, the real one, with this library's losses.

It is not installed with anything of this library: its licence is the AGPL-3.0.
"""

from __future__ import annotations

import copy
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "1")  # else it looks for updates
pytest.importorskip("ultralytics", reason="needs ultralytics")

from PIL import Image
from ultralytics import YOLO
from ultralytics.nn.tasks import SemanticSegmentationModel

from segunc_ops import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    ExpectedCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
    insert_dropout,
)
from segunc_ops.integrations.ultralytics import LossReplacement

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ultralytics and what it imports

CLASSES, SIZE = 5, 64
OPTIONS: dict[str, Any] = {"ignore_index": 255, "upsample": "bilinear"}
LOSSES = {
    "CE": CrossEntropyLoss,
    "U-CE": UncertaintyAwareCrossEntropyLoss,
    "IU": InstanceUncertaintyCrossEntropyLoss,
    "PAT": PixelAdaptiveCrossEntropyLoss,
    "Dice + CE": DiceCrossEntropyLoss.ultralytics,
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = SemanticSegmentationModel("yolo26n-sem.yaml", nc=CLASSES, verbose=False)
    model.args = SimpleNamespace(data="", task="semantic")
    return model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, CLASSES, (2, SIZE, SIZE), generator=generator).int()
    masks[:, :5] = 255
    images = torch.randn(2, 3, SIZE, SIZE, generator=generator)
    return {"img": images, "semantic_mask": masks}


def start(model, criterion, **options):
    """What the trainer does at its start."""
    trainer = SimpleNamespace(model=model, args=model.args, ema=None, world_size=1, device="cpu")
    LossReplacement(criterion, **options)(trainer)


def step(model, inputs):
    model.zero_grad()
    loss, items = model(inputs)
    loss.backward()
    return loss.detach(), items, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "criterion",
    [DiceCrossEntropyLoss.ultralytics(upsample="bilinear"), CrossEntropyLoss(**OPTIONS)],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_loss_items_and_gradients_are_the_models_own(network, criterion, labelled):
    own, inputs = copy.deepcopy(network).train(), batch()
    ours = copy.deepcopy(own)
    start(ours, criterion)
    if not labelled:
        inputs["semantic_mask"].fill_(255)
    expected, expected_items, gradients = step(own, inputs)
    loss, items, found = step(ours, inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    assert list(items) == list(expected_items)
    for name, value in items.items():
        torch.testing.assert_close(value, expected_items[name], rtol=1e-5, atol=1e-6)
        assert not value.requires_grad
    largest = max(float(g.abs().max()) for g in gradients)
    assert bool(largest) == labelled
    for a, b in zip(found, gradients, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * largest
    own.eval()
    ours.eval()
    with torch.no_grad():
        logits = ours(inputs["img"])
        assert torch.equal(logits, own(inputs["img"]))
        for a, b in zip(
            ours.loss(inputs, logits)[1].values(), own.loss(inputs, logits)[1].values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_class_weights_are_the_models_own(network):
    own = copy.deepcopy(network).train()
    own.class_weights = torch.rand(CLASSES) + 0.5
    ours = copy.deepcopy(own)
    start(ours, DiceCrossEntropyLoss.ultralytics(weight=own.class_weights, upsample="bilinear"))
    expected, _, _ = step(own, batch())
    loss, _, _ = step(ours, batch())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["U-CE", "IU"])
def test_samples_are_drawn_within_the_steps_autocast(network, loss):
    model = copy.deepcopy(network).train()
    with pytest.raises(ValueError, match="insert_dropout"):
        start(model, LOSSES[loss](**OPTIONS))
    (last,) = insert_dropout(model)
    start(model, LOSSES[loss](**OPTIONS), num_samples=3)
    types = []
    model.get_submodule(last).register_forward_hook(
        lambda module, args, output: types.append(output.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        result, _, _ = step(model, batch())
    assert torch.isfinite(result)
    assert types == [torch.bfloat16] * 4
    model.eval()
    with torch.no_grad():
        model.loss(batch())  # plain cross-entropy
    assert len(types) == 5


def test_an_ensemble_is_observed(network):
    model, members = copy.deepcopy(network).train(), [copy.deepcopy(network) for _ in range(3)]
    for number, member in enumerate(members):
        torch.manual_seed(number)
        torch.nn.init.normal_(member.model[-1].classifier[-1].weight)
    losses = []
    for exponent in (0.0, 2.0):
        criterion = InstanceUncertaintyCrossEntropyLoss(exponent, **OPTIONS)
        start(model, criterion, members=members)
        losses.append(step(model, batch())[1]["ce_loss"])
    assert losses[1] > losses[0]


def write_data(folder):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(4):
            mask = generator.integers(0, CLASSES, (SIZE, SIZE), dtype=np.uint8)
            image = np.repeat(mask[..., None] * 50, 3, -1)
            Image.fromarray(image).save(folder / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(folder / "masks" / split / f"{number}.png")
    names = "\n".join(f"  {c}: class{c}" for c in range(CLASSES))
    file = folder / "data.yaml"
    file.write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\nmasks_dir: masks\nnames:\n{names}\n"
    )
    return file


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_in_the_trainer(loss, tmp_path):
    criterion = LOSSES[loss](**({"upsample": "bilinear"} if loss == "Dice + CE" else OPTIONS))
    model, seen = YOLO("yolo26n-sem.yaml"), []
    if loss in ("U-CE", "IU"):
        model.add_callback("on_train_start", lambda trainer: insert_dropout(trainer.model))
    model.add_callback("on_train_start", LossReplacement(criterion, num_samples=2))
    model.add_callback("on_train_batch_end", lambda trainer: seen.append(dict(trainer.loss_items)))
    model.train(
        data=str(write_data(tmp_path)),
        epochs=1,
        imgsz=SIZE,
        batch=2,
        workers=0,
        device="cpu",
        project=str(tmp_path),
        name="run",
        plots=False,
        pretrained=False,
        verbose=False,
        amp=False,
    )
    assert len(seen) == 2
    assert list(seen[0]) == ["ce_loss", "dice_loss", "aux_loss"]
    assert all(float(value) > 0 for value in seen[0].values())
    checkpoint = torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)
    names = {type(m).__module__ for m in (checkpoint["ema"] or checkpoint["model"]).modules()}
    assert not any(name.startswith("segunc_ops") for name in names)


def test_what_does_not_fit_is_refused(network):
    for other in (torch.nn.CrossEntropyLoss(), ExpectedCrossEntropyLoss()):
        with pytest.raises(TypeError, match="criterion"):
            LossReplacement(other)
    with pytest.raises(ValueError, match="upsample"):
        LossReplacement(CrossEntropyLoss(ignore_index=255))
    with pytest.raises(ValueError, match="ignore_index=255"):
        LossReplacement(CrossEntropyLoss(upsample="bilinear"))
    replacement = LossReplacement(CrossEntropyLoss(**OPTIONS))
    args = SimpleNamespace(task="detect")
    with pytest.raises(ValueError, match="semantic"):
        replacement(SimpleNamespace(model=network, args=args, ema=None))
    args.task = "semantic"
    with pytest.raises(ValueError, match="one process"):
        replacement(SimpleNamespace(model=network, args=args, ema=None, world_size=2))
