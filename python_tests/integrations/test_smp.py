"""segmentation_models_pytorch's networks and losses, the real ones, beside this library's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from segunc_ops import (
    CrossEntropyLoss,
    DiceBCELoss,
    DiceCrossEntropyLoss,
    ExpectedCrossEntropyLoss,
    Observer,
    UncertaintyAwareCrossEntropyLoss,
    insert_dropout,
    sample_statistics,
)

from .comparison import assert_same, gradients
from .low_resolution import CLASSES, IGNORED, LOSSES, SAMPLED, SIZE, batch, train

pytest.importorskip("segmentation_models_pytorch", reason="needs segmentation_models_pytorch")

import segmentation_models_pytorch as smp

from segunc_ops.integrations.smp import LowResolutionLogits

OPTIONS: dict[str, Any] = {
    "ignore_index": IGNORED,
    "upsample": "bilinear",
    "align_corners": True,
}
ENLARGED = {
    "FPN": 4,
    "PSPNet": 8,
    "DeepLabV3": 8,
    "DeepLabV3Plus": 4,
    "PAN": 4,
    "UPerNet": 4,
    "Segformer": 4,
    "DPT": 2,
}


def network(name: str, **options: Any) -> torch.nn.Module:
    encoder: dict[str, Any] = {"encoder_name": "tu-test_resnet"}
    if name == "DPT":
        encoder = {
            "encoder_name": "tu-test_vit",
            "dynamic_img_size": True,
            "decoder_intermediate_channels": (16, 16, 16, 16),
            "decoder_fusion_channels": 16,
        }
    model = smp.create_model(name, encoder_weights=None, classes=CLASSES, **encoder, **options)
    return model.train()


@pytest.mark.parametrize("name", ENLARGED)
def test_loss_and_gradients_are_those_of_full_size(name):
    size = 128 if name == "PAN" else SIZE  # it pools five times and three times more
    model, (images, labels) = network(name), batch(size=size)
    own = copy.deepcopy(model)
    torch.manual_seed(1)  # for dropout
    expected = smp.losses.SoftCrossEntropyLoss(ignore_index=IGNORED, smooth_factor=0.0)(
        own(images), labels
    )
    expected.backward()
    criterion = CrossEntropyLoss(reduction="mean_all", **OPTIONS)
    with LowResolutionLogits(model, criterion):
        torch.manual_seed(1)
        logits = model(images)
        loss = criterion(logits, labels)
        loss.backward()
    assert logits.shape[-1] == size // ENLARGED[name]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same(gradients(model), gradients(own))
    torch.manual_seed(2)
    expected = own(images)
    torch.manual_seed(2)
    assert torch.equal(model(images), expected)  # put back


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dice_and_cross_entropy_are_smps_own(smoothing):
    model, (images, labels) = network("FPN"), batch()
    model.decoder.dropout.p = 0.0
    own = copy.deepcopy(model)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORED)
    soft = smp.losses.SoftCrossEntropyLoss(ignore_index=IGNORED, smooth_factor=smoothing)
    logits = own(images)
    expected = dice(logits, labels) + soft(logits, labels)
    expected.backward()
    criterion = DiceCrossEntropyLoss.smp(
        ce_weight=1.0, reduction="mean_all", label_smoothing=smoothing, **OPTIONS
    )
    with LowResolutionLogits(model, criterion):
        loss = criterion(model(images), labels)
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same(gradients(model), gradients(own))


def test_regions_are_smps_own():
    model, images = network("FPN"), batch()[0]
    model.decoder.dropout.p = 0.0
    own, regions = copy.deepcopy(model), torch.rand(2, CLASSES, SIZE, SIZE).round()
    expected = smp.losses.SoftBCEWithLogitsLoss(ignore_index=None)(own(images), regions)
    expected.backward()
    criterion = DiceBCELoss(dice_weight=0.0, upsample="bilinear", align_corners=True)
    with LowResolutionLogits(model, criterion):
        loss = criterion(model(images), regions)
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same(gradients(model), gradients(own))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_stock_network_is_scripted_once_it_is_put_back():
    model, (images, _) = network("FPN").eval(), batch()
    with LowResolutionLogits(model, CrossEntropyLoss(**OPTIONS)):
        pass
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(images), model(images))


@pytest.mark.parametrize("name", ["FPN", "DPT"])
def test_evaluation_and_export_are_the_stock_models(name):
    model, (images, labels) = network(name), batch()
    own = copy.deepcopy(model).eval()
    criterion = CrossEntropyLoss(**OPTIONS)
    low_resolution = LowResolutionLogits(model, criterion)
    assert model.state_dict().keys() == own.state_dict().keys()
    with torch.no_grad():
        expected = own(images)
        assert torch.equal(model.eval()(images), expected)
        assert torch.equal(torch.export.export(model, (images,)).module()(images), expected)
        full = F.cross_entropy(expected, labels, ignore_index=IGNORED)
        torch.testing.assert_close(criterion(expected, labels), full)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), expected)
    low_resolution.remove()
    low_resolution.remove()
    assert model.train()(images).shape[-1] == SIZE
    assert twin.train()(images).shape[-1] < SIZE


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bf16", [False, True])
def test_every_loss_trains(loss, bf16, monkeypatch):
    model, criterion = network("Segformer"), LOSSES[loss](**OPTIONS)
    insert_dropout(model)
    dtypes = []
    keep_outputs(monkeypatch, model.decoder, dtypes)
    with (
        LowResolutionLogits(model, criterion),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        observer = Observer(model, criterion, 2) if loss in SAMPLED else None
        losses = train(model, criterion)
    assert losses[-1] < losses[0]
    assert set(dtypes) == {torch.bfloat16 if bf16 else torch.float32}
    assert len(dtypes) == (6 if observer else 3)  # samples share what is before the dropout


def keep_outputs(monkeypatch, module, dtypes):
    """Types of what a module of this class returns where it runs; hooks see what is shared, too."""
    forward = type(module).forward

    def run(self, *args):
        output = forward(self, *args)
        dtypes.append(output.dtype)
        return output

    monkeypatch.setattr(type(module), "forward", run)


def test_samples_are_those_of_full_size():
    model, (images, labels) = network("FPN"), batch()
    torch.manual_seed(1)
    expected = sample_statistics(model, images, 3)
    with LowResolutionLogits(model, CrossEntropyLoss(**OPTIONS)):
        torch.manual_seed(1)
        statistics = sample_statistics(model, images, 3, size=labels.shape[1:], align_corners=True)
    torch.testing.assert_close(statistics.std, expected.std, rtol=1e-4, atol=1e-6)


def test_samples_can_share_the_steps_own_pass(monkeypatch):
    model, criterion = network("Segformer"), UncertaintyAwareCrossEntropyLoss(**OPTIONS)
    insert_dropout(model)
    calls = []
    keep_outputs(monkeypatch, model.decoder, calls)
    with LowResolutionLogits(model, criterion), Observer(model, criterion, 2, share_forward=True):
        train(model, criterion, steps=2)
    assert len(calls) == 2


def test_a_network_without_dropout_is_told_to_get_some():
    with pytest.raises(ValueError, match="insert_dropout"):
        Observer(network("Segformer"), UncertaintyAwareCrossEntropyLoss(**OPTIONS))


def test_a_compiled_training_step_is_one_graph():
    model, criterion = network("Segformer"), CrossEntropyLoss(**OPTIONS)
    images, labels = batch()

    def step(images, labels):
        return criterion(model(images), labels)

    with LowResolutionLogits(model, criterion):
        expected = step(images, labels)
        result = torch.compile(step, fullgraph=True, backend="eager")(images, labels)
    torch.testing.assert_close(result, expected)


def test_networks_with_a_classifier_return_both():
    model, (images, _) = network("FPN", aux_params={"classes": 3}), batch()
    with LowResolutionLogits(model, CrossEntropyLoss(**OPTIONS)):
        logits, classes = model(images)
    assert logits.shape[-1] == SIZE // 4
    assert classes.shape == (2, 3)


@pytest.mark.parametrize("name", ["Unet", "UnetPlusPlus", "MAnet", "Linknet"])
def test_networks_of_full_size_need_nothing(name):
    with pytest.raises(ValueError, match=f"got {name}, whose logits have the images' size"):
        LowResolutionLogits(network(name), CrossEntropyLoss(**OPTIONS))


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (torch.nn.CrossEntropyLoss(), TypeError, "got CrossEntropyLoss"),
        (ExpectedCrossEntropyLoss(), (TypeError, ValueError), "interpolate|upsample"),
        (CrossEntropyLoss(), ValueError, "upsample='bilinear'"),
        (CrossEntropyLoss(upsample="bilinear"), ValueError, "align_corners=True"),
    ],
)
def test_criteria_that_do_not_fit_are_refused(criterion, error, message):
    model = network("FPN")
    with pytest.raises(error, match=message):
        LowResolutionLogits(model, criterion)
    assert model(batch()[0]).shape[-1] == SIZE


def test_other_errors():
    criterion = CrossEntropyLoss(**OPTIONS)
    with pytest.raises(ValueError, match="activation=None"):
        LowResolutionLogits(network("FPN", activation="softmax2d"), criterion)
    with pytest.raises(TypeError, match="a network of segmentation_models_pytorch"):
        LowResolutionLogits(torch.nn.Conv2d(3, CLASSES, 1), criterion)
    model = network("FPN")
    model.segmentation_head[1].align_corners = False
    with pytest.raises(ValueError, match="align_corners=True, got FPN"):
        LowResolutionLogits(model, criterion)
    model = network("FPN")
    with (
        LowResolutionLogits(model, criterion) as low_resolution,
        pytest.raises(ValueError, match="remove"),
    ):
        LowResolutionLogits(model, criterion)
    low_resolution.remove()
