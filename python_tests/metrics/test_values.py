"""Values of the metrics, against torchmetrics and plain NumPy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.classification as tm
from torch import Tensor

import segunc_ops
from python_tests.metrics.cases import RESOLUTION, SINGLE, C, batch, everything, value_of
from python_tests.support import IGNORED
from segunc_ops import metrics as sm


def peer(metric: Any, values: Tensor, target: Tensor) -> float:
    return float(value_of(metric, values, target))


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_values_agree_with_torchmetrics(backend, probabilities):
    logits, target, _ = batch()
    p = logits.softmax(1)
    values = p if probabilities else logits
    options = {"ignore_index": IGNORED, "from_probabilities": probabilities}
    theirs = {"num_classes": C, "ignore_index": IGNORED}
    valid = target != IGNORED
    with segunc_ops.backend(backend):
        found = {
            kind: float(value_of(kind(C, **options), values, target))
            for kind in (
                sm.MeanIoU,
                sm.PixelAccuracy,
                sm.DiceError,
                sm.ExpectedCalibrationError,
                sm.BrierScore,
                sm.NegativeLogLikelihood,
            )
        }
    rows, labels = p.movedim(1, -1)[valid], target[valid]
    confidence, right = rows.amax(1).numpy(), (rows.argmax(1) == labels).numpy()
    gaps = [
        abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
        for inside in np.digitize(confidence, np.arange(1, 15) / 15, right=True)
        == np.arange(15)[:, None]
        if inside.any()
    ]
    theirs_ece = peer(tm.MulticlassCalibrationError(n_bins=15, norm="l1", **theirs), p, target)
    assert abs(theirs_ece - sum(gaps)) < SINGLE
    expected = {
        sm.PixelAccuracy: (
            peer(tm.MulticlassAccuracy(average="micro", **theirs), p, target),
            SINGLE,
        ),
        sm.DiceError: (
            1 - peer(tm.MulticlassF1Score(average="macro", **theirs), p, target),
            SINGLE,
        ),
        sm.MeanIoU: (peer(tm.MulticlassJaccardIndex(**theirs), p, target), SINGLE),
        sm.ExpectedCalibrationError: (sum(gaps), RESOLUTION),
        sm.BrierScore: (
            float((rows - F.one_hot(labels, C)).square().sum(1).mean()),
            RESOLUTION,
        ),
        sm.NegativeLogLikelihood: (
            float(F.cross_entropy(logits, target, ignore_index=IGNORED)),
            RESOLUTION,
        ),
    }
    for kind, (value, allowed) in expected.items():
        assert abs(found[kind] - value) <= allowed, (kind, found[kind], value)


def test_class_values():
    logits, target, uncertainty = batch()
    valid = target != IGNORED
    prediction = logits.argmax(1)
    iou = value_of(sm.MeanIoU(C, average="none", ignore_index=IGNORED), logits, target)
    by_target = value_of(sm.ClassUncertainty(C, ignore_index=IGNORED), logits, target, uncertainty)
    by_prediction = value_of(
        sm.ClassUncertainty(C, by="prediction", ignore_index=IGNORED), logits, target, uncertainty
    )
    for c in range(6):
        is_target, is_predicted = valid & (target == c), valid & (prediction == c)
        both, either = (is_target & is_predicted).sum(), (is_target | is_predicted).sum()
        assert abs(iou[c] - both.double() / either.double()) < 1e-12
        assert abs(by_target[c] - uncertainty[is_target].mean()) < RESOLUTION
        assert abs(by_prediction[c] - uncertainty[is_predicted].mean()) < RESOLUTION
    assert torch.stack([iou, by_target, by_prediction])[:, 6].isnan().all()


def test_absent_classes_count_as_asked():
    logits, target, _ = batch()
    options = {"ignore_index": IGNORED}
    without = value_of(sm.MeanIoU(C, **options), logits, target)
    as_zero = value_of(sm.MeanIoU(C, absent="zero", **options), logits, target)
    assert abs(as_zero - without * 6 / 7) < 1e-12
    each = value_of(sm.MeanIoU(C, absent="zero", average="none", **options), logits, target)
    assert each[6] == 0
    dice = 1 - value_of(sm.DiceError(C, **options), logits, target)
    dice_as_zero = 1 - value_of(sm.DiceError(C, absent="zero", **options), logits, target)
    assert abs(dice_as_zero - dice * 6 / 7) < 1e-12


@pytest.mark.parametrize("ignored", [0, 3])
@pytest.mark.parametrize("absent", ["exclude", "zero"])
def test_a_class_that_is_ignored_is_in_no_mean(ignored, absent):
    """As in torchmetrics' IoU; it is predicted, which is wrong."""
    logits, target, uncertainty = batch()
    target[target == IGNORED] = ignored
    options = {"ignore_index": ignored, "absent": absent}
    assert (logits.argmax(1) == ignored)[target != ignored].any()
    others = [c for c in range(C) if c != ignored]
    iou = value_of(sm.MeanIoU(C, average="none", **options), logits, target)
    assert iou.isnan().nonzero().ravel().tolist() == [ignored] + [6] * (absent == "exclude")
    mean = value_of(sm.MeanIoU(C, **options), logits, target)
    assert abs(mean - iou[others].nanmean()) < 1e-12
    if absent == "exclude":
        theirs = peer(tm.MulticlassJaccardIndex(C, ignore_index=ignored), logits, target)
        assert abs(mean - theirs) < SINGLE
    dice = 1 - value_of(sm.DiceError(C, **options), logits, target)
    assert abs(dice - (2 * iou / (1 + iou))[others].nanmean()) < 1e-12
    values = value_of(sm.SegmentationMetrics(C, **options), logits, target, uncertainty)
    assert (values["mean_iou"], values["dice_error"]) == (mean, 1 - dice)
    torch.testing.assert_close(values["class_iou"], iou, rtol=0, atol=0, equal_nan=True)
    assert values["class_uncertainty"][ignored].isnan()
    assert values["predicted_class_uncertainty"][ignored].isfinite()


def test_a_mean_of_none_but_the_ignored_class_is_nan():
    assert value_of(
        sm.MeanIoU(1, ignore_index=0), torch.zeros(1, 1, 4), torch.zeros(1, 4).long()
    ).isnan()


def numpy_pavpu(
    right: Any, valid: Any, uncertainty: Any, threshold: float, window: int
) -> tuple[float, int]:
    """Patch by patch, and how many there are."""
    good = total = 0
    for image in range(len(right)):
        for y in range(0, right.shape[1] - window + 1, window):
            for x in range(0, right.shape[2] - window + 1, window):
                here = (image, slice(y, y + window), slice(x, x + window))
                if not valid[here].any():
                    continue
                accurate = right[here][valid[here]].mean() > 0.5
                uncertain = uncertainty[here][valid[here]].mean() > threshold
                good += accurate != uncertain
                total += 1
    return good / total, total


@pytest.mark.parametrize("window", [4, 3])
def test_pavpu_patch_by_patch(window):
    logits, target, uncertainty = batch((3, 42, 37))
    target[0, :9, :9] = IGNORED  # whole patches
    right, valid = (logits.argmax(1) == target).numpy(), (target != IGNORED).numpy()
    thresholds = [0.05, 0.13, 0.2]
    options = {"window": window, "ignore_index": IGNORED}
    several = sm.PAvPU(C, threshold=thresholds, **options)
    values = value_of(several, logits, target, uncertainty)
    for threshold, value, counts in zip(thresholds, values, several.patches, strict=True):
        expected, total = numpy_pavpu(right, valid, uncertainty.numpy(), threshold, window)
        assert counts.sum() == total
        assert abs(value - expected) < 1e-12
        single = value_of(sm.PAvPU(C, threshold=threshold, **options), logits, target, uncertainty)
        assert single.shape == ()
        assert single == value


def distinct(count: int) -> Tensor:
    """So many uncertainties, each in a bin of its own, increasing."""
    return 2.0 ** torch.linspace(-12, -2, count).double()


def test_auroc_is_the_rank_statistic():
    """Every uncertainty has its bin, many pixels share one: U by average ranks."""
    generator = np.random.default_rng(0)
    levels = distinct(60).numpy()
    wrong = generator.random(3000) < 0.3
    place = np.clip(generator.normal(np.where(wrong, 35, 25), 10), 0, 59).astype(int)
    _, inverse, count = np.unique(place, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[inverse]
    errors, hits = wrong.sum(), (~wrong).sum()
    expected = (ranks[wrong].sum() - errors * (errors + 1) / 2) / (errors * hits)
    logits = torch.tensor([1.0, 0.0]).expand(3000, 2)
    metric = sm.ErrorDetectionAUROC(2)
    found = value_of(
        metric, logits, torch.from_numpy(wrong).long(), torch.from_numpy(levels[place])
    )
    assert abs(found - expected) < 1e-12
    # Bins are fine enough for uncertainties of any kind.
    spread = torch.from_numpy(levels[place] * generator.uniform(0.9, 1.1, 3000))
    order = spread.numpy().argsort().argsort() + 1
    exact = (order[wrong].sum() - errors * (errors + 1) / 2) / (errors * hits)
    found = value_of(sm.ErrorDetectionAUROC(2), logits, torch.from_numpy(wrong).long(), spread)
    assert abs(found - exact) < 1e-3


def test_risk_coverage_of_distinct_uncertainties():
    wrong = np.random.default_rng(0).random(300) < np.linspace(0.05, 0.6, 300)
    risk = np.cumsum(wrong) / np.arange(1, 301)
    order = torch.randperm(300)
    logits = torch.tensor([1.0, 0.0]).expand(300, 2)
    curve = value_of(
        sm.RiskCoverage(2), logits, torch.from_numpy(wrong).long()[order], distinct(300)[order]
    )
    torch.testing.assert_close(curve.coverage, torch.arange(1, 301).double() / 300)
    torch.testing.assert_close(curve.risk, torch.from_numpy(risk))
    assert abs(curve.area - risk.mean()) < 1e-12


def test_ties_are_kept_in_random_order():
    """The area is the mean over all orders of pixels that share a bin."""
    bins = [0, 0, 0, 1, 2, 2]
    wrong = [True, False, False, True, False, True]
    areas = [
        np.mean(np.cumsum([wrong[i] for i in order]) / np.arange(1, 7))
        for order in itertools.permutations(range(6))
        if [bins[i] for i in order] == bins
    ]
    logits = torch.tensor([1.0, 0.0]).expand(6, 2)
    uncertainty = distinct(3)[torch.tensor(bins)]
    curve = value_of(sm.RiskCoverage(2), logits, torch.tensor(wrong).long(), uncertainty)
    assert abs(curve.area - np.mean(areas)) < 1e-12
    assert curve.coverage.tolist() == [3 / 6, 4 / 6, 1]


def test_reliability_is_what_the_calibration_error_sums():
    logits, target, _ = batch()
    diagram = value_of(sm.ReliabilityDiagram(C, num_bins=10, ignore_index=IGNORED), logits, target)
    gap = (diagram.confidence - diagram.accuracy).abs() * diagram.pixels
    ece = value_of(
        sm.ExpectedCalibrationError(C, num_bins=10, ignore_index=IGNORED), logits, target
    )
    assert abs(gap.nansum() / diagram.pixels.sum() - ece) < 1e-12
    assert diagram.pixels.sum() == (target != IGNORED).sum()
    assert torch.equal(diagram.pixels == 0, diagram.accuracy.isnan())


def test_without_a_pixel_values_are_nan():
    logits, target, uncertainty = batch()
    empty = (logits[:0], target[:0], uncertainty[:0])
    ignored = (logits, torch.full_like(target, IGNORED), uncertainty)
    for arguments in (empty, ignored):
        values = value_of(everything(), *arguments)
        for name, value in values.items():
            if name in ("reliability", "risk_coverage"):
                assert value.area.isnan() if name == "risk_coverage" else not value.pixels.any()
            else:
                assert value.isnan().all(), name


def test_what_is_nan_does_not_pass_unnoticed():
    logits, target, uncertainty = batch()
    logits[0, 2, 5, 5], target[0, 5, 5] = math.nan, 0
    values = value_of(everything(), logits, target, uncertainty)
    assert values["calibration_error"].isnan()
    assert values["brier_score"].isnan()
    assert values["negative_log_likelihood"].isnan()
    assert values["reliability"].accuracy.isnan().all()
    assert values["mean_iou"].isfinite()
    assert values["aurc"].isfinite()
    logits, target, uncertainty = batch()
    uncertainty[0, 5, 5], target[0, 5, 5] = math.nan, 0
    values = value_of(everything(), logits, target, uncertainty)
    assert values["calibration_error"].isfinite()
    assert values["class_uncertainty"][0].isnan()
    assert values["class_uncertainty"][1:6].isfinite().all()
    for name in ("aurc", "error_auroc", "mean_uncertainty", "pavpu"):
        assert values[name].isnan().all(), name
    assert values["risk_coverage"].risk.isnan().all()


def test_a_target_of_probability_zero_is_infinitely_unlikely():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    metric = sm.NegativeLogLikelihood(2, from_probabilities=True)
    assert value_of(metric, p, torch.tensor([0, 1])) == pytest.approx(math.log(2) / 2)
    assert value_of(metric, p, torch.tensor([1, 1])) == math.inf
