"""torchvision's networks and the loop of its reference script, beside this library's losses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segunc_ops import (
    CrossEntropyLoss,
    ExpectedCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    Observer,
    UncertaintyAwareCrossEntropyLoss,
    insert_dropout,
    sample_statistics,
)

from .comparison import assert_same, gradients
from .low_resolution import CLASSES, IGNORED, LOSSES, SAMPLED, SIZE, batch, train

pytest.importorskip("torchvision", reason="needs torchvision")

from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from segunc_ops.integrations.torchvision import LowResolutionLogits, SegmentationCriterion

OPTIONS: dict[str, Any] = {"ignore_index": IGNORED, "upsample": "bilinear"}
NETWORKS = ["FCN", "FCN, no aux", "DeepLabV3", "LRASPP"]


def block(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def network(name: str) -> nn.Module:
    """torchvision's networks on a backbone that takes no time; LRASPP on its own."""
    if name == "LRASPP":
        model = segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=CLASSES
        )
        return model.train()
    layers = nn.Sequential(block(3, 8, 4), block(8, 16, 2))
    has_auxiliary = "no aux" not in name
    returned = {"1": "out", "0": "aux"} if has_auxiliary else {"1": "out"}
    backbone = IntermediateLayerGetter(layers, returned)
    auxiliary = FCNHead(8, CLASSES) if has_auxiliary else None
    if name == "DeepLabV3":
        return segmentation.DeepLabV3(backbone, DeepLabHead(16, CLASSES, [1, 2, 3]), auxiliary)
    return segmentation.FCN(backbone, FCNHead(16, CLASSES), auxiliary)


def reference_criterion(inputs, target):
    """What the reference script computes."""
    losses = {
        name: F.cross_entropy(logits, target, ignore_index=IGNORED)
        for name, logits in inputs.items()
    }
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients_are_those_of_the_reference_script(name):
    model, (images, labels) = network(name), batch()
    own = copy.deepcopy(model)
    torch.manual_seed(1)  # for dropout
    output = own(images)
    expected = reference_criterion(output, labels)
    expected.backward()
    criterion = SegmentationCriterion(CrossEntropyLoss(**OPTIONS))
    with LowResolutionLogits(model, criterion):
        torch.manual_seed(1)
        result = model(images)
        loss = criterion(result, labels)
        loss.backward()
    assert list(result) == list(output)
    assert all(logits.shape[-1] <= SIZE // 4 for logits in result.values())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same(gradients(model), gradients(own))
    torch.manual_seed(2)
    expected = own(images)["out"]
    torch.manual_seed(2)
    assert torch.equal(model(images)["out"], expected)  # put back


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_networks_as_torchvision_makes_them_are_taken(name):
    make = getattr(segmentation, name)
    model = make(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    criterion = SegmentationCriterion(CrossEntropyLoss(**OPTIONS))
    LowResolutionLogits(model, criterion)
    images, labels = batch()
    result = model.train()(images)
    assert [logits.shape[-1] for logits in result.values()] == [
        SIZE // 8 if "resnet" in name else SIZE // 16,
        SIZE // 8,
    ]
    assert criterion(result, labels) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_and_export_are_the_stock_models(name):
    model, (images, labels) = network(name), batch()
    own = copy.deepcopy(model).eval()
    criterion = SegmentationCriterion(CrossEntropyLoss(**OPTIONS))
    low_resolution = LowResolutionLogits(model, criterion)
    assert model.state_dict().keys() == own.state_dict().keys()
    with torch.no_grad():
        expected = own(images)
        result = model.eval()(images)
        exported = torch.export.export(model, (images,)).module()(images)
        for head, logits in expected.items():
            assert torch.equal(result[head], logits)
            assert torch.equal(exported[head], logits)
        torch.testing.assert_close(criterion(result, labels), reference_criterion(expected, labels))
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images)["out"], expected["out"])
    low_resolution.remove()
    low_resolution.remove()
    assert model.train()(images)["out"].shape[-1] == SIZE
    assert twin.train()(images)["out"].shape[-1] < SIZE


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bf16", [False, True])
def test_every_loss_trains(loss, bf16, monkeypatch):
    model, criterion = network("FCN"), SegmentationCriterion(LOSSES[loss](**OPTIONS))
    dtypes, forward = [], IntermediateLayerGetter.forward

    def run(self, x):
        features = forward(self, x)
        dtypes.append(features["out"].dtype)
        return features

    monkeypatch.setattr(IntermediateLayerGetter, "forward", run)
    with (
        LowResolutionLogits(model, criterion),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        observer = Observer(model, criterion, 2) if loss in SAMPLED else None
        losses = train(model, criterion, steps=8, lr=0.1)
    assert losses[-1] < losses[0]
    assert set(dtypes) == {torch.bfloat16 if bf16 else torch.float32}
    assert len(dtypes) == (16 if observer else 8)  # samples share what is before the dropout


def test_samples_are_those_of_full_size():
    model, (images, labels) = network("DeepLabV3"), batch()
    torch.manual_seed(1)
    expected = sample_statistics(model, images, 3)
    with LowResolutionLogits(model, CrossEntropyLoss(**OPTIONS)):
        torch.manual_seed(1)
        statistics = sample_statistics(model, images, 3, size=labels.shape[1:])
    torch.testing.assert_close(statistics.std, expected.std, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share_forward", [False, True])
def test_one_observation_serves_both_classifiers(share_forward):
    model, (images, labels) = network("FCN"), batch()
    loss = UncertaintyAwareCrossEntropyLoss(**OPTIONS)
    criterion = SegmentationCriterion(loss, auxiliary_weight=0.25)
    seen = []
    observe = criterion.observe
    criterion.observe = lambda uncertainty: (seen.append(uncertainty), observe(uncertainty))
    with (
        LowResolutionLogits(model, criterion),
        Observer(model, criterion, 2, share_forward=share_forward),
    ):
        output = model(images)
        result = criterion(output, labels)
        expected = loss(output["out"], labels, *seen) + 0.25 * loss(output["aux"], labels, *seen)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match="expected one in training mode, got none"):
            criterion(output, labels)
        model.eval()
        assert not criterion(model(images), labels).isnan()
        assert not loss.training
    assert len(seen) == 1


def test_an_observation_may_be_a_mask():
    model, (images, labels) = network("FCN"), batch()
    criterion = SegmentationCriterion(InstanceUncertaintyCrossEntropyLoss(ignore_index=IGNORED))
    criterion.observe(instance_uncertainty=torch.zeros(labels.shape))
    output = model(images)
    torch.testing.assert_close(
        criterion(output, labels) * labels.numel(),
        reference_criterion(output, labels) * (labels != IGNORED).sum(),
    )


def test_lraspp_needs_dropout_for_samples():
    model = network("LRASPP")
    criterion = SegmentationCriterion(UncertaintyAwareCrossEntropyLoss(**OPTIONS))
    with pytest.raises(ValueError, match="insert_dropout"):
        Observer(model, criterion)
    assert insert_dropout(model) == ["classifier.high_classifier"]
    with LowResolutionLogits(model, criterion), Observer(model, criterion, 2):
        losses = train(model, criterion)
    assert losses[-1] < losses[0]


def test_a_compiled_training_step_is_one_graph():
    model = network("FCN")
    criterion = SegmentationCriterion(CrossEntropyLoss(**OPTIONS))
    images, labels = batch()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def step(images, labels):
        return criterion(model(images), labels)

    with LowResolutionLogits(model, criterion):
        expected = step(images, labels)
        result = torch.compile(step, fullgraph=True, backend="eager")(images, labels)
    torch.testing.assert_close(result, expected)


def test_accelerate_may_wrap_the_forward_method():
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, (images, _) = network("FCN"), batch()
    low_resolution = LowResolutionLogits(model, CrossEntropyLoss(**OPTIONS))
    accelerate.state.AcceleratorState._reset_state(True)  # what other tests have left
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    output = prepared(images)["out"]
    assert (output.dtype, output.shape[-1]) == (torch.float32, SIZE // 8)
    with pytest.raises(RuntimeError, match="put over it"):
        low_resolution.remove()
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    low_resolution.remove()
    assert model(images)["out"].shape[-1] == SIZE
    accelerate.state.AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (nn.CrossEntropyLoss(), TypeError, "got CrossEntropyLoss"),
        (CrossEntropyLoss(), ValueError, "upsample='bilinear'"),
        (SegmentationCriterion(CrossEntropyLoss()), ValueError, "upsample='bilinear'"),
        (CrossEntropyLoss(align_corners=True, **OPTIONS), ValueError, "align_corners=False"),
    ],
)
def test_criteria_that_do_not_fit_are_refused(criterion, error, message):
    model = network("FCN")
    with pytest.raises(error, match=message):
        LowResolutionLogits(model, criterion)
    assert model(batch()[0])["out"].shape[-1] == SIZE


def test_other_errors():
    criterion = CrossEntropyLoss(**OPTIONS)

    class Own(segmentation.FCN):
        def forward(self, x):
            return self.backbone(x)

    with pytest.raises(TypeError, match="got Own"):
        LowResolutionLogits(Own(None, None), criterion)
    model = network("FCN")
    with LowResolutionLogits(model, criterion), pytest.raises(ValueError, match="remove"):
        LowResolutionLogits(model, criterion)
    for loss in (nn.CrossEntropyLoss(), ExpectedCrossEntropyLoss()):
        with pytest.raises(TypeError, match="class indices"):
            SegmentationCriterion(loss)
    with pytest.raises(ValueError, match="auxiliary_weight: expected a finite number of at least"):
        SegmentationCriterion(criterion, -1.0)
    wrapped = SegmentationCriterion(criterion)
    with pytest.raises(TypeError, match="a mapping with 'out'"):
        wrapped(torch.zeros(1, CLASSES, 2, 2), torch.zeros(1, 2, 2).long())
    with pytest.raises(TypeError, match="needs no Observer"):
        wrapped.observe(torch.zeros(1))
