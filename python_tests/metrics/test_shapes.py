"""Values have the shapes that are documented, also of one class, one bin or one threshold."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor

from python_tests.metrics.cases import assert_same_values, tensors_of, value_of
from python_tests.support import IGNORED
from segunc_ops import metrics as sm

OPTIONS: dict[str, Any] = {"ignore_index": IGNORED}
SCALARS = {
    "mean_iou",
    "pixel_accuracy",
    "dice_error",
    "calibration_error",
    "brier_score",
    "negative_log_likelihood",
    "mean_uncertainty",
    "aurc",
    "error_auroc",
}


def pixels(classes: int, *, level: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(2, classes, 8, 9)
    target = torch.randint(0, classes, (2, 8, 9))
    target[0, :2] = IGNORED
    return logits, target, torch.full(target.shape, 0.25) if level else torch.rand(target.shape)


def shapes_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shapes_of(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(shapes_of(each) for each in value)
    return tuple(value.shape)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("bins", [1, 2])
@pytest.mark.parametrize("thresholds", [1, 2])
def test_everything_of_one_element(classes, bins, thresholds):
    """One uncertainty, so that the curve has one point."""
    metric = sm.SegmentationMetrics(
        classes, num_bins=bins, threshold=[0.1, 0.3][:thresholds], **OPTIONS
    )
    expected = dict.fromkeys(SCALARS, ()) | {
        "class_iou": (classes,),
        "class_uncertainty": (classes,),
        "predicted_class_uncertainty": (classes,),
        "reliability": ((bins,), (bins,), (bins,)),
        "risk_coverage": ((1,), (1,), ()),
        "pavpu": (thresholds,),
    }
    arguments = pixels(classes, level=True)
    forwarded = metric(*arguments)
    computed, cached = metric.compute(), metric.compute()
    copied = pickle.loads(pickle.dumps(metric))
    for value in (forwarded, computed, cached, copied.compute(), metric.clone().compute()):
        assert shapes_of(value) == expected
        assert_same_values(value, computed)
    assert isinstance(computed["reliability"], sm.Reliability)
    copied.reset()
    assert_same_values(value_of(copied, *arguments), computed)


ONE = {
    "iou": (sm.MeanIoU(1, average="none", **OPTIONS), (1,)),
    "mean iou": (sm.MeanIoU(1, **OPTIONS), ()),
    "by target": (sm.ClassUncertainty(1, **OPTIONS), (1,)),
    "by prediction": (sm.ClassUncertainty(1, by="prediction", **OPTIONS), (1,)),
    "bin": (sm.ReliabilityDiagram(1, num_bins=1, **OPTIONS), ((1,), (1,), (1,))),
    "point": (sm.RiskCoverage(1, **OPTIONS), ((1,), (1,), ())),
    "thresholds": (sm.PAvPU(1, threshold=[0.1], **OPTIONS), (1,)),
    "threshold": (sm.PAvPU(1, threshold=0.1, **OPTIONS), ()),
    "uncached": (sm.ClassUncertainty(1, compute_with_cache=False, **OPTIONS), (1,)),
}


@pytest.mark.parametrize("name", ONE)
def test_metrics_of_one_element(name):
    metric, shape = ONE[name]
    arguments = pixels(1, level=True)
    assert shapes_of(metric(*arguments)) == shape
    assert shapes_of(metric.compute()) == shape
    assert shapes_of(metric.half().compute()) == shape
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    figure, axes = metric.plot()
    assert axes.get_figure() is figure
    pyplot.close("all")


def test_a_collection_and_a_plot_of_one_class():
    arguments = pixels(1)
    collection = torchmetrics.MetricCollection(
        {"iou": sm.MeanIoU(1, average="none", **OPTIONS), "mean": sm.MeanIoU(1, **OPTIONS)}
    )
    for _ in range(2):
        collection.update(*arguments)
    assert shapes_of(collection.compute()) == {"iou": (1,), "mean": ()}
    metric = sm.SegmentationMetrics(1, num_bins=1, threshold=[0.1], **OPTIONS)
    metric.update(*arguments)
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    _, axes = metric.plot()
    assert len(axes[0].patches) == 1
    pyplot.close("all")


def test_a_value_that_was_computed_moves_with_its_metric():
    """torchmetrics moves what it keeps of the last ``compute()``."""
    metric = sm.ClassUncertainty(1, **OPTIONS)
    metric.update(*pixels(1))
    metric.compute()
    kept = metric.to("meta")._computed
    assert [tensor.device.type for tensor in tensors_of(kept)] == ["meta"]
