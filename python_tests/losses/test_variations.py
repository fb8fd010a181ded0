"""The modules of losses for long tails: what they add to their functions."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits
from python_tests.losses.cases import Segmenter
from python_tests.support import IGNORED
from segunc_ops import (
    BalancedSoftmaxCrossEntropyLoss,
    FocalCrossEntropyLoss,
    LDAMCrossEntropyLoss,
    LogitVariationCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
)
from segunc_ops._options import LossOptions

pytestmark = pytest.mark.usefixtures("each_backend")

COUNTS = [900.0, 1.0, 30.0, 4000.0, 250.0, 7.0]


class Loss(NamedTuple):
    module: type[nn.Module]
    function: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    """Which losses share, and this one has."""


LOSSES = {
    "focal": Loss(FocalCrossEntropyLoss, sf.focal_cross_entropy, {"gamma": 1.5}, {}),
    "PAT": Loss(
        PixelAdaptiveCrossEntropyLoss,
        sf.pixel_adaptive_cross_entropy,
        {"temperature": 5.0, "epsilon": 0.1, "curve": "table", "detach_weight": True},
        {"label_smoothing": 0.1},
    ),
    "balanced softmax": Loss(
        BalancedSoftmaxCrossEntropyLoss,
        sf.balanced_softmax_cross_entropy,
        {"counts": COUNTS},
        {"label_smoothing": 0.1},
    ),
    "LDAM": Loss(
        LDAMCrossEntropyLoss,
        sf.ldam_cross_entropy,
        {"counts": COUNTS, "max_margin": 0.3, "scale": 4.0, "margin_on": "all"},
        {"label_smoothing": 0.1},
    ),
}


@pytest.fixture(params=LOSSES)
def loss(request) -> Loss:
    return LOSSES[request.param]


def arguments() -> tuple[Tensor, Tensor, Tensor]:
    target = torch.randint(0, 6, (3, 5, 7))
    target[0, :2] = IGNORED
    return torch.randn(3, 6, 3, 4), target, torch.rand(3, 5, 7)


def test_modules_compute_what_their_functions_do(loss):
    x, target, u = arguments()
    weight = torch.rand(6)
    options = {"ignore_index": IGNORED, "reduction": "sum", "upsample": "bilinear", **loss.options}
    module = loss.module(weight=weight, **loss.arguments, **options)
    wanted = loss.function(x, target, weight=weight, pixel_weight=u, **loss.arguments, **options)
    torch.testing.assert_close(module(x, target, u), wanted)
    for duplicate in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same_bits(duplicate(x, target, u), module(x, target, u), name="a copy")
        assert repr(duplicate) == repr(module)


def test_counts_become_a_buffer(loss):
    if "counts" not in loss.arguments:
        assert not loss.module(**loss.arguments).state_dict()
        return
    module = loss.module(**loss.arguments)
    assert list(module.state_dict()) == ["offset"]
    assert not [*module.parameters()]
    other = loss.module(**{**loss.arguments, "counts": [1] * 6})
    other.load_state_dict(module.state_dict())
    x, target, _ = arguments()
    target[target == IGNORED] = 0
    other.upsample = module.upsample = "bilinear"
    assert_same_bits(other(x, target), module(x, target), name="loss")
    assert module.to(torch.float64).offset.dtype == torch.float64
    assert module.to("meta").offset.is_meta


def test_signatures_name_every_option(loss):
    parameters = inspect.signature(loss.module).parameters
    for name, default in LossOptions._field_defaults.items():
        if name == "label_smoothing" and not loss.options:
            assert name not in parameters
            with pytest.raises(TypeError, match="unexpected keyword argument 'label_smoothing'"):
                loss.module(label_smoothing=0.1)
        else:
            assert parameters[name].default == default


def test_reprs():
    assert repr(FocalCrossEntropyLoss(1.5, torch.ones(6))) == (
        "FocalCrossEntropyLoss(gamma=1.5, num_classes=6, ignore_index=-100, reduction='mean')"
    )
    assert repr(PixelAdaptiveCrossEntropyLoss(upsample="bilinear")) == (
        "PixelAdaptiveCrossEntropyLoss(temperature=20, epsilon=0, curve='equation', "
        "size_normalized=True, detach_weight=False, ignore_index=-100, reduction='mean', "
        "label_smoothing=0.0, upsample='bilinear', align_corners=False)"
    )
    assert repr(LDAMCrossEntropyLoss(COUNTS)) == (
        "LDAMCrossEntropyLoss(max_margin=0.5, scale=20, margin_on='target', num_classes=6, "
        "ignore_index=-100, reduction='mean', label_smoothing=0.0)"
    )
    assert repr(LogitVariationCrossEntropyLoss(COUNTS, sigma=0.3)) == (
        "LogitVariationCrossEntropyLoss(sigma=0.3, distribution='normal', num_classes=6, "
        "ignore_index=-100, reduction='mean', label_smoothing=0.0)"
    )


def test_training_with_the_model(loss):
    """A few steps of a network lower the loss."""
    torch.manual_seed(0)
    model, images = Segmenter(), torch.randn(2, 3, 8, 8)
    target = (images[:, 0] > 0).long() + 2 * (images[:, 1] > 0).long()
    criterion = loss.module(**loss.arguments)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = criterion(model(images), target)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"reduction: .*size_normalized=False"):
        PixelAdaptiveCrossEntropyLoss(reduction="mean_all")
    with pytest.raises(ValueError, match="gamma: "):
        FocalCrossEntropyLoss(-1)
    with pytest.raises(ValueError, match=r"counts: .*class 1"):
        BalancedSoftmaxCrossEntropyLoss([1, 0])
    with pytest.raises(ValueError, match=r"counts: expected shape \(6,\).*got \(2,\)"):
        LDAMCrossEntropyLoss([1, 2])(*arguments()[:1], torch.zeros(3, 3, 4, dtype=torch.long))
