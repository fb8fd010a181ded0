"""Settings of metrics stay with their counts: in collections, through casts, states and ranks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn

import segunc_ops.functional as sf
from python_tests.metrics.cases import (
    SINGLE_METRICS,
    C,
    assert_same_values,
    batch,
    everything,
    tensors_of,
    value_of,
)
from python_tests.support import IGNORED
from segunc_ops import metrics as sm


def statistics() -> sf.PredictiveStatistics:
    logits = torch.stack([batch(seed=seed)[0] for seed in range(3)])
    return sf.predictive_statistics(logits, return_mean=True)


def pavpu(**options: Any) -> sm.PAvPU:
    return sm.PAvPU(C, **{"threshold": 0.1, "ignore_index": IGNORED} | options)


# Metrics that a first batch does not tell apart, by the setting in which they differ.
ALIKE = {
    "threshold": [pavpu(threshold=value) for value in (0.05, 0.1, 0.2)],
    # Closer than the tolerance with which states are compared.
    "close thresholds": [pavpu(threshold=value) for value in (0.1, 0.1 + 1e-9)],
    "several thresholds": [pavpu(threshold=[0.1, value]) for value in (0.05, 0.2)],
    "accuracy threshold": [pavpu(accuracy_threshold=value) for value in (0.3, 0.5, 0.9)],
    "window": [pavpu(window=value) for value in (2, 4)],
    "measure": [
        sm.RiskCoverage(C, measure=value, ignore_index=IGNORED) for value in ("std", "entropy")
    ],
    "probabilities": [
        sm.BrierScore(C, from_probabilities=value, ignore_index=IGNORED) for value in (False, True)
    ],
    "classes": [sm.RiskCoverage(value, ignore_index=IGNORED) for value in (C, C + 1)],
    "everything": [everything(threshold=value) for value in (0.05, 0.2)],
}


@pytest.mark.parametrize("setting", ALIKE)
def test_a_collection_keeps_metrics_of_other_settings_apart(setting):
    """Also where the first batch says nothing of them, as one that is ignored whole."""
    metrics = {str(number): metric.clone() for number, metric in enumerate(ALIKE[setting])}
    collection = torchmetrics.MetricCollection(metrics)
    logits, target, uncertainty = batch()
    ignored = torch.full_like(target, IGNORED)
    if setting == "measure":
        updates: list[Any] = [(statistics(), ignored), (statistics(), target)]
    elif setting == "classes":  # which a map of statistics does not tell
        plain = statistics()._replace(mean=None)
        updates = [(plain, ignored), (plain, target)]
    else:
        updates = [(logits, ignored, uncertainty), (logits.softmax(1), target, uncertainty)]
    for update in updates:
        collection.update(*update)
    assert len(collection.compute_groups) == len(metrics)
    found = collection.compute()
    for name, metric in enumerate(ALIKE[setting]):
        alone = metric.clone()
        for update in updates:
            alone.update(*update)
        wanted = alone.compute()
        if setting == "everything":
            assert_same_values({key: found[f"{name}_{key}"] for key in wanted}, wanted)
        else:
            assert_same_values(found[str(name)], wanted)


def test_ignored_classes_are_kept_apart():
    collection = torchmetrics.MetricCollection(
        {str(index): sm.PixelAccuracy(C, ignore_index=index) for index in (0, 1)}
    )
    logits = torch.eye(C)[[0, 0, 1, 2]]
    for target in ([3, 4, 5, 6], [0, 1, 1, 2]):
        collection.update(logits, torch.tensor(target))
    assert {name: float(value) for name, value in collection.compute().items()} == {
        "0": 2 / 7,
        "1": 2 / 6,
    }


def test_what_does_not_change_counts_is_shared():
    """One pass over the pixels for all of them."""
    options = {"ignore_index": IGNORED}
    for metrics in (
        [
            sm.MeanIoU(C, **options),
            sm.MeanIoU(C, absent="zero", **options),
            sm.MeanIoU(C, average="none", **options),
            sm.PixelAccuracy(C, **options),
            sm.DiceError(C, **options),
        ],
        [sm.ExpectedCalibrationError(C, **options), sm.ReliabilityDiagram(C, **options)],
        [sm.RiskCoverage(C, **options), sm.ErrorDetectionAUROC(C, **options)],
        [pavpu(), pavpu()],
    ):
        collection = torchmetrics.MetricCollection(
            {str(number): metric for number, metric in enumerate(metrics)}
        )
        collection.update(*batch())
        assert len(collection.compute_groups) == 1


def test_counts_of_other_settings_are_refused():
    """By groups that were given, and by the state of another metric."""
    collection = torchmetrics.MetricCollection(
        {"low": pavpu(threshold=0.05), "high": pavpu(threshold=0.2)},
        compute_groups=[["low", "high"]],
    )
    collection.update(*batch())
    message = r"settings: expected counts of PAvPU with .*thresholds=\[0.2\].*got those of a metric"
    with pytest.raises(ValueError, match=message):
        collection.compute()
    first, other = pavpu(window=4), pavpu(window=2)
    first.update(*batch())
    first.persistent(True)
    other.load_state_dict(first.state_dict())
    nothing = [tensor[:0] for tensor in batch()]
    other.update(*nothing)
    with pytest.raises(ValueError, match=r"settings: .*window=2"):
        other.compute()
    other.reset()
    assert_same_values(value_of(other, *batch()), value_of(pavpu(window=2), *batch()))
    same = pavpu(window=4)
    same.load_state_dict(first.state_dict())
    same.update(*nothing)
    assert_same_values(same.compute(), first.compute())
    without = first.state_dict()
    del without["settings"]
    same = pavpu(window=4)
    same.load_state_dict(without)
    same.update(*nothing)
    assert_same_values(same.compute(), first.compute())


def test_counts_of_other_bins_are_refused():
    many, few = (sm.ExpectedCalibrationError(3, num_bins=bins) for bins in (15, 10))
    for metric in (many, few):
        metric.persistent(True)
    many.update(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8)))
    few.load_state_dict(many.state_dict())
    few.update(torch.zeros(0, 3, 8, 8), torch.zeros(0, 8, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"settings: .*num_bins=10"):
        few.compute()


def test_ranks_of_other_settings_are_refused():
    def of_two_ranks(first: float, second: float) -> sm.PAvPU:
        other = pavpu(threshold=second)
        other.update(*batch())

        def gather(state: Tensor, group: object) -> list[Tensor]:
            return [state, other.settings if state.dtype == torch.uint8 else other.patches]

        return pavpu(threshold=first, dist_sync_fn=gather, distributed_available_fn=lambda: True)

    once = value_of(pavpu(), *batch())
    assert_same_values(value_of(of_two_ranks(0.1, 0.1), *batch()), once)
    for thresholds in ((0.1, 0.2), (0.2, 0.1)):
        with pytest.raises(ValueError, match="settings: expected counts of PAvPU with"):
            value_of(of_two_ranks(*thresholds), *batch())


class Network(nn.Module):
    """A model that holds its metrics, as in Lightning."""

    def __init__(self, *metrics: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.metrics = nn.ModuleList(metrics)


CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to": lambda module: module.to(torch.bfloat16),
    "type": lambda module: module.type(torch.float16),
    "float": lambda module: module.half().float(),
    "set_dtype": lambda module: [
        metric.set_dtype(torch.float16) for metric in module.modules() if hasattr(metric, "reset")
    ],
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("within", ["a module", "itself"])
def test_casts_leave_counts_and_thresholds_as_they_are(cast, within):
    arguments = batch()
    kinds = [kind(C, ignore_index=IGNORED) for kind in SINGLE_METRICS.values()]
    for metric in (*kinds, pavpu(threshold=[0.1, 0.13]), everything()):
        expected = value_of(metric.clone(), *arguments)
        doubled = metric.clone()
        for _ in range(2):
            doubled.update(*arguments)
        metric.update(*arguments)
        found = metric.compute()
        CASTS[cast](Network(metric) if within == "a module" else metric)
        assert_same_values(metric.compute(), expected)
        assert_same_values(found, expected)
        metric.update(*arguments)
        assert_same_values(metric.compute(), doubled.compute())
        metric.reset()
        assert_same_values(value_of(metric, *arguments), expected)


def test_default_types_change_nothing():
    """Lightning's bf16-true makes modules under such a default, and casts what it is given."""
    arguments = batch()
    expected = value_of(everything(), *arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric = Network(everything()).bfloat16().metrics[0]
        assert_same_values(value_of(metric, *arguments), expected)
    finally:
        torch.set_default_dtype(before)


# Scalars only


def test_scalars_only():
    arguments = batch()
    full = value_of(everything(threshold=0.1), *arguments)
    scalars = value_of(everything(threshold=0.1, scalars_only=True), *arguments)
    assert scalars == {
        name: value for name, value in full.items() if isinstance(value, Tensor) and not value.dim()
    }
    assert {"mean_iou", "pavpu", "aurc", "brier_score"} < set(scalars)
    for scores, uncertainty in itertools.product((False, True), repeat=2):
        metric = everything(
            scores=scores, uncertainty=uncertainty, threshold=None, scalars_only=True
        )
        assert all(value.dim() == 0 for value in metric(*arguments).values())
    collection = torchmetrics.MetricCollection(
        [everything(threshold=0.1, scalars_only=True), sm.PixelAccuracy(C, ignore_index=IGNORED)]
    )
    collection.update(*arguments)
    assert all(value.dim() == 0 for value in tensors_of(collection.compute()))
    with pytest.raises(ValueError, match=r"threshold: expected one number with scalars_only, got"):
        everything(threshold=[0.1], scalars_only=True)
    with pytest.raises(TypeError, match="scalars_only: expected a bool, got int"):
        everything(scalars_only=1)


def test_scalars_are_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    metric = everything(threshold=0.1, scalars_only=True)
    metric.update(*batch())
    figure, axes = metric.plot()
    assert axes.get_figure() is figure
    pyplot.close("all")


@pytest.mark.parametrize("threshold", [torch.tensor(0.1), torch.tensor(0.1).numpy()[()]])
def test_a_threshold_is_any_number(threshold):
    """Such as a mean uncertainty that another metric has computed."""
    found = value_of(pavpu(threshold=threshold), *batch())
    assert found.shape == ()
    assert_same_values(found, value_of(pavpu(threshold=float(threshold)), *batch()))
