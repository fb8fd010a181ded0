"""mmsegmentation's heads, segmentors and losses, the real ones, beside this library's."""

# ruff: noqa: E402 - what is imported warns, unless it has been
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.importable_trainers import import_mmseg

from .comparison import assert_same, gradients
from .low_resolution import CLASSES, IGNORED, SIZE, batch

import_mmseg()

from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models import CascadeEncoderDecoder, EncoderDecoder, FCNHead
from mmseg.models.decode_heads import DAHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import HOOKS, MODELS
from mmseg.structures import SegDataSample

from segunc_ops.integrations.mmseg import (
    LowResolutionLoss,
    SegmentorObserver,
    SeguncHook,
    SeguncLoss,
)

LOSSES = {
    "CE": {},
    "U-CE": {"criterion": "UncertaintyAwareCrossEntropyLoss", "alpha": 2.0},
    "IU": {"criterion": "InstanceUncertaintyCrossEntropyLoss"},
    "PAT": {"criterion": "PixelAdaptiveCrossEntropyLoss"},
    "Dice + CE": {"criterion": "DiceCrossEntropyLoss.monai"},
}
SAMPLED = ("U-CE", "IU")
STOCK = {"type": "CrossEntropyLoss"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False:UserWarning"),
    pytest.mark.filterwarnings("ignore:When align_corners=True, the output would:UserWarning"),
    pytest.mark.filterwarnings("ignore:``build_pixel_sampler`` would be deprecated:UserWarning"),
]


@MODELS.register_module(name="TinyBackbone", force=True)
class TinyBackbone(nn.Module):
    """Features at a quarter and an eighth of the images' size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        return first, self.second(first)


def head(channels: int, index: int, loss: Any, **options: Any) -> dict[str, Any]:
    return {
        "type": "FCNHead",
        "in_channels": channels,
        "in_index": index,
        "channels": 8,
        "num_convs": 1,
        "num_classes": CLASSES,
        "norm_cfg": {"type": "BN"},
        "loss_decode": loss,
        **options,
    }


def segmentor(loss: dict[str, Any], **options: Any) -> nn.Module:
    model = EncoderDecoder(
        backbone={"type": "TinyBackbone"},
        decode_head=head(16, 1, {"loss_weight": 1.0, **loss}, **options),
        auxiliary_head=head(8, 0, {"loss_weight": 0.4, **loss}, **options),
        train_cfg={},
        test_cfg=ConfigDict(mode="whole"),
    )
    return model.train()


def cascade(loss: dict[str, Any]) -> nn.Module:
    ocr = head(16, 1, {"loss_weight": 1.0, **loss}, type="OCRHead", ocr_channels=8)
    ocr = {name: value for name, value in ocr.items() if name != "num_convs"}
    model = CascadeEncoderDecoder(
        num_stages=2,
        backbone={"type": "TinyBackbone"},
        decode_head=[head(16, 1, {"loss_weight": 0.4, **loss}), ocr],
        train_cfg={},
        test_cfg=ConfigDict(mode="whole"),
    )
    return model.train()


def segunc(**options: Any) -> dict[str, Any]:
    return {"type": "SeguncLoss", **options}


def data() -> tuple[Tensor, list[SegDataSample]]:
    images, labels = batch()
    shape = (SIZE, SIZE)
    samples = []
    for label in labels:
        sample = SegDataSample(
            metainfo={"img_shape": shape, "ori_shape": shape, "pad_shape": shape}
        )
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)
    return images, samples


def losses_of(model: nn.Module) -> dict[str, Tensor]:
    return model(*data(), mode="loss")


def backward(model: nn.Module, losses: dict[str, Tensor]) -> float:
    loss, _ = model.parse_losses(losses)
    loss.backward()
    return loss.item()


def train(model: nn.Module, steps: int = 8) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        history.append(backward(model, losses_of(model)))
        optimizer.step()
    return history


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("low_resolution", [False, True])
def test_losses_accuracies_and_gradients_are_mmsegmentations(low_resolution, align_corners):
    own = segmentor(STOCK, align_corners=align_corners)
    model = segmentor(segunc(), align_corners=align_corners)
    model.load_state_dict(own.state_dict())
    torch.manual_seed(1)  # for dropout
    expected = losses_of(own)
    backward(own, expected)
    installed = LowResolutionLoss(model) if low_resolution else None
    torch.manual_seed(1)
    result = losses_of(model)
    backward(model, result)
    assert list(result) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=0)
    assert_same(gradients(model), gradients(own))
    if installed is not None:
        installed.remove()
        installed.remove()
        assert "loss_by_feat" not in vars(model.decode_head)


def test_several_losses_of_a_name_are_added():
    focal = segunc(criterion="FocalCrossEntropyLoss", loss_name="loss_focal")
    losses = [segunc(), segunc(loss_weight=0.5), focal]
    model = segmentor(segunc())
    for each in (model.decode_head, model.auxiliary_head):
        each.loss_decode = nn.ModuleList(MODELS.build(loss) for loss in losses)
    torch.manual_seed(1)
    expected = losses_of(model)
    with LowResolutionLoss(model):
        torch.manual_seed(1)
        result = losses_of(model)
    assert list(result) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=0)


def test_prediction_is_not_concerned():
    model = segmentor(segunc())
    own = segmentor(segunc()).eval()
    own.load_state_dict(model.state_dict())
    images, _ = data()
    model.eval()
    with LowResolutionLoss(model), torch.no_grad():
        assert torch.equal(model(images, mode="tensor"), own(images, mode="tensor"))
        for ours, theirs in zip(
            model(images, mode="predict"), own(images, mode="predict"), strict=True
        ):
            assert torch.equal(ours.seg_logits.data, theirs.seg_logits.data)
    assert model.state_dict().keys() == segmentor(STOCK).state_dict().keys()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bf16", [False, True])
def test_every_loss_trains(loss, bf16, monkeypatch):
    model = segmentor(segunc(**LOSSES[loss]))
    dtypes, forward = [], TinyBackbone.forward

    def run(self, x):
        features = forward(self, x)
        dtypes.append(features[0].dtype)
        return features

    monkeypatch.setattr(TinyBackbone, "forward", run)
    hook, runner = SeguncHook(num_samples=2), RunnerOf(model)
    hook.before_train(runner)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        history = train(model)
    hook.after_train(runner)
    assert sum(history[-3:]) < sum(history[:3])
    assert set(dtypes) == {torch.bfloat16 if bf16 else torch.float32}
    # Samples share what is before the dropout.
    assert len(dtypes) == (16 if loss in SAMPLED else 8)
    assert "loss_by_feat" not in vars(model.decode_head)
    assert not model._forward_pre_hooks


class RunnerOf:
    """What a hook sees of a runner."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def test_hooks_and_losses_are_in_the_registries():
    assert HOOKS.get("SeguncHook") is SeguncHook
    assert MODELS.get("SeguncLoss") is SeguncLoss


def test_samples_need_dropout_and_losses_that_take_them():
    model = segmentor(segunc(criterion="UncertaintyAwareCrossEntropyLoss"), dropout_ratio=0.0)
    with pytest.raises(ValueError, match="insert_dropout"):
        SegmentorObserver(model)
    with pytest.raises(TypeError, match="needs samples, got none"):
        SegmentorObserver(segmentor(segunc()))
    with LowResolutionLoss(model), pytest.raises(ValueError, match="expected one in training"):
        losses_of(model)


@pytest.mark.parametrize("options", [{}, {"reduction_override": "sum"}, {"avg_factor": 7.0}])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_keeps_mmsegmentations_contract(options, weighted):
    _, labels = batch()
    logits = torch.randn(2, CLASSES, SIZE, SIZE)
    weight = torch.rand(2, SIZE, SIZE) if weighted else None
    arguments = {"weight": weight, "ignore_index": IGNORED, **options}
    expected = CrossEntropyLoss(loss_weight=0.5)(logits, labels, **arguments)
    loss = SeguncLoss(loss_weight=0.5)
    torch.testing.assert_close(loss(logits, labels, **arguments), expected)
    assert loss.loss_name == "loss_ce"
    assert (loss.criterion.ignore_index, loss.criterion.reduction) == (-100, "mean_all")
    each = loss(logits, labels, reduction_override="none", ignore_index=IGNORED)
    assert each.shape == labels.shape


def test_class_weights_and_reductions():
    _, labels = batch()
    logits, weight = torch.randn(2, CLASSES, SIZE, SIZE), [1.0, 2.0, 0.5, 1.0, 3.0]
    loss = SeguncLoss(class_weight=weight, reduction="mean")
    torch.testing.assert_close(
        loss(logits, labels, ignore_index=IGNORED),
        nn.functional.cross_entropy(logits, labels, torch.tensor(weight), ignore_index=IGNORED),
    )
    non_ignore = CrossEntropyLoss(avg_non_ignore=True)(logits, labels, ignore_index=IGNORED)
    plain = SeguncLoss(reduction="mean")(logits, labels, ignore_index=IGNORED)
    torch.testing.assert_close(plain, non_ignore)
    valid = labels.clamp(max=CLASSES - 1)
    torch.testing.assert_close(
        SeguncLoss()(logits, valid, ignore_index=None), nn.functional.cross_entropy(logits, valid)
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "MSELoss"}, ValueError, "criterion: expected a loss of segunc_ops by its"),
        ({"criterion": "DiceCrossEntropyLoss.no"}, ValueError, "got 'DiceCrossEntropyLoss.no'"),
        ({"criterion": "ExpectedCrossEntropyLoss"}, TypeError, "class indices"),
        ({"ignore_index": 255}, ValueError, "ignore_index: expected none, as the head has it"),
        ({"upsample": "bilinear"}, ValueError, "upsample: expected none"),
        ({"loss_weight": -1.0}, ValueError, "loss_weight"),
    ],
)
def test_losses_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SeguncLoss(**options)


def test_arguments_that_a_loss_has_no_place_for():
    _, labels = batch()
    logits = torch.randn(2, CLASSES, SIZE, SIZE)
    with pytest.raises(ValueError, match="weight: expected None for UncertaintyAware"):
        SeguncLoss("UncertaintyAwareCrossEntropyLoss")(logits, labels, torch.ones(labels.shape))
    with pytest.raises(ValueError, match="avg_factor: expected None"):
        SeguncLoss("DiceCrossEntropyLoss")(logits, labels, avg_factor=3.0)
    with pytest.raises(ValueError, match="avg_factor: expected None"):
        SeguncLoss()(logits, labels, avg_factor=3.0, reduction_override="sum")


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="expected SeguncLoss as loss_decode, got Cross"):
        LowResolutionLoss(segmentor(STOCK))
    with pytest.raises(TypeError, match="expected a segmentor"):
        LowResolutionLoss(nn.Conv2d(1, 1, 1))

    model = segmentor(segunc())
    model.auxiliary_head = DAHead(
        in_channels=8,
        in_index=0,
        channels=8,
        pam_channels=4,
        num_classes=CLASSES,
        loss_decode=segunc(),
    )
    with pytest.raises(TypeError, match="got DAHead with its own"):
        LowResolutionLoss(model)
    assert "loss_by_feat" not in vars(model.decode_head)

    model = segmentor(segunc(), sampler={"type": "OHEMPixelSampler"})
    with pytest.raises(ValueError, match="expected a head without sampler"):
        LowResolutionLoss(model)
    model = segmentor(segunc())
    model.auxiliary_head.out_channels = 1
    with pytest.raises(ValueError, match="at least two out_channels"):
        LowResolutionLoss(model)
    model = segmentor(segunc())
    with LowResolutionLoss(model), pytest.raises(ValueError, match="remove"):
        LowResolutionLoss(model)


def test_heads_of_full_size_keep_their_own_losses():
    """DANet's three, for instance, and pixels that a sampler picks."""
    model = segmentor(segunc(), sampler={"type": "OHEMPixelSampler", "min_kept": 50})
    own = segmentor(STOCK, sampler={"type": "OHEMPixelSampler", "min_kept": 50})
    own.load_state_dict(model.state_dict())
    hook, runner = SeguncHook(low_resolution=False), RunnerOf(model)
    hook.before_train(runner)
    torch.manual_seed(1)
    result = losses_of(model)
    torch.manual_seed(1)
    for name, value in losses_of(own).items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=0)
    hook.after_train(runner)


def test_the_heads_of_several_are_all_replaced():
    model = segmentor(segunc())
    model.auxiliary_head = nn.ModuleList(
        FCNHead(**{k: v for k, v in head(8, 0, segunc()).items() if k != "type"}) for _ in range(2)
    )
    with LowResolutionLoss(model):
        assert all("loss_by_feat" in vars(each) for each in model.auxiliary_head)
        assert "aux_1.acc_seg" in losses_of(model)


def test_the_heads_of_a_cascade_are_all_replaced():
    own = cascade(STOCK)
    model = cascade(segunc(criterion="UncertaintyAwareCrossEntropyLoss", missing="plain"))
    model.load_state_dict(own.state_dict())
    torch.manual_seed(1)
    expected = losses_of(own)
    with LowResolutionLoss(model):
        torch.manual_seed(1)
        for name, value in losses_of(model).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=0)
        with SegmentorObserver(model, 2) as observer:
            losses = losses_of(model)
        assert observer.num_observed == 1
        for name, value in losses.items():
            assert "loss" not in name or value > expected[name]
