"""Metrics against torchmetrics and plain NumPy, and as torchmetrics uses them."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits
from python_tests.counts.test_functional import away_from_edges

torchmetrics = pytest.importorskip("torchmetrics")
tm = pytest.importorskip("torchmetrics.classification")
sm = pytest.importorskip("segunc_ops.metrics")

C, IGNORED = 7, 255
# What rounding each pixel's value to a multiple of 2^-24 does to a mean.
RESOLUTION = 2.0**-25
# torchmetrics computes some of its values in float32.
SINGLE = 1e-6


def batch(shape: tuple[int, ...] = (3, 40, 41), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 logits, targets with a tenth ignored, uncertainties; class 6 occurs nowhere."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], C, *shape[1:], generator=generator, dtype=torch.float64)
    logits[:, 6] = -40.0
    target = torch.randint(0, 6, shape, generator=generator)
    right = torch.rand(shape, generator=generator) < 0.6
    target = torch.where(right, logits.argmax(1), target)
    confidence = logits.softmax(1).amax(1)
    ignored = torch.rand(shape, generator=generator) < 0.1
    target[ignored | ~away_from_edges(confidence)] = IGNORED
    uncertainty = (1 - confidence) * torch.rand(shape, generator=generator)
    return logits, target, uncertainty.double()


def value_of(metric: Any, *arguments: Any) -> Any:
    metric.update(*arguments)
    return metric.compute()


def everything(**options: Any) -> sm.SegmentationMetrics:
    options = {"threshold": [0.1, 0.2], "ignore_index": IGNORED} | options
    return sm.SegmentationMetrics(C, **options)


def tensors_of(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    members = values.values() if isinstance(values, dict) else values
    return [tensor for member in members for tensor in tensors_of(member)]


def assert_same_values(found: Any, wanted: Any) -> None:
    for number, (a, b) in enumerate(zip(tensors_of(found), tensors_of(wanted), strict=True)):
        assert_same_bits(a, b, name=f"value {number}")


# ---- Against others


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


# ---- One pass, and what goes in


SINGLE_METRICS = {
    "mean_iou": sm.MeanIoU,
    "pixel_accuracy": sm.PixelAccuracy,
    "dice_error": sm.DiceError,
    "calibration_error": sm.ExpectedCalibrationError,
    "reliability": sm.ReliabilityDiagram,
    "brier_score": sm.BrierScore,
    "negative_log_likelihood": sm.NegativeLogLikelihood,
    "class_uncertainty": sm.ClassUncertainty,
    "risk_coverage": sm.RiskCoverage,
    "error_auroc": sm.ErrorDetectionAUROC,
}


def test_one_pass_gives_every_metric():
    arguments = batch()
    values = value_of(everything(), *arguments)
    alone = {name: kind(C, ignore_index=IGNORED) for name, kind in SINGLE_METRICS.items()}
    alone["class_iou"] = sm.MeanIoU(C, average="none", ignore_index=IGNORED)
    alone["predicted_class_uncertainty"] = sm.ClassUncertainty(
        C, by="prediction", ignore_index=IGNORED
    )
    alone["pavpu"] = sm.PAvPU(C, threshold=[0.1, 0.2], ignore_index=IGNORED)
    for name, metric in alone.items():
        assert_same_values(values[name], value_of(metric, *arguments))
    assert values["aurc"] == values["risk_coverage"].area
    valid = arguments[1] != IGNORED
    assert abs(values["mean_uncertainty"] - arguments[2][valid].mean()) < RESOLUTION
    assert set(values) == {*alone, "aurc", "mean_uncertainty"}


def test_parts_can_be_left_out():
    logits, target, _ = batch()
    plain = everything(uncertainty=False, threshold=None)
    values = value_of(plain, logits, target)
    assert "brier_score" in values
    assert not {"aurc", "class_uncertainty", "pavpu"} & set(values)
    statistics = sf.predictive_statistics(torch.stack([logits, logits + 0.1 * logits.sin()]))
    values = value_of(everything(scores=False), statistics, target)
    assert "pavpu" in values
    assert "brier_score" not in values


def test_statistics_bring_their_uncertainty():
    samples = 3 * torch.randn(5, 2, C, 32, 36)
    statistics = sf.predictive_statistics(samples, return_mean=True)
    target = torch.randint(0, C, (2, 32, 36), dtype=torch.uint8)
    for measure in ("std", "entropy", "expected_entropy", "mutual_information"):
        found = value_of(everything(measure=measure), statistics, target)
        explicit = everything(from_probabilities=True)
        chosen = getattr(statistics, measure)
        assert_same_values(found, value_of(explicit, statistics.mean, target, chosen))
        assert_same_values(found, value_of(everything(measure="std"), statistics, target, chosen))
    one = sf.predictive_statistics(samples[:1], return_mean=True)
    values = value_of(everything(), one, target)
    assert values["pavpu"].isnan().all(), "a single sample has no deviation"
    assert values["error_auroc"].isnan()
    assert values["mean_iou"].isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target_dtype", [torch.int64, torch.int32, torch.uint8])
def test_types_and_layouts_of_the_input(dtype, target_dtype):
    """The values of the stored logits, whatever holds them; ignored pixels are never looked at."""
    logits, target, uncertainty = batch()
    logits = logits.to(dtype)
    exact = value_of(everything(), logits.double(), target, uncertainty)
    logits = logits.masked_fill((target == IGNORED).unsqueeze(1), math.nan)
    uncertainty = uncertainty.masked_fill(target == IGNORED, math.nan)
    target = target.to(target_dtype)
    # Single precision rounds uncertainties, and confidences into another bin.
    allowed = 1e-12 if dtype == torch.float64 else 2e-3
    for given in (
        logits,
        logits.contiguous(memory_format=torch.channels_last),
        logits.mT.contiguous().mT,
    ):
        found = value_of(everything(), given, target, uncertainty)
        for name in ("mean_iou", "calibration_error", "brier_score", "aurc", "class_uncertainty"):
            torch.testing.assert_close(
                found[name], exact[name], rtol=0, atol=allowed, equal_nan=True
            )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_logits_of_any_resolution(backend, align_corners):
    """Interpolated as they are counted: by update, by forward and in a collection with metrics of
    torchmetrics, which take no size."""
    small = 3 * torch.randn(2, C, 9, 11, dtype=torch.float64)
    size = (34, 40)
    large = F.interpolate(small, size, mode="bilinear", align_corners=align_corners)
    target = torch.where(
        torch.rand(2, *size) < 0.5, large.argmax(1), torch.randint(0, C, (2, *size))
    )
    first, second = large.topk(2, dim=1).values.unbind(1)
    decided = away_from_edges(large.softmax(1).amax(1)) & (first - second > 1e-6)
    target[~decided | (torch.rand(target.shape) < 0.1)] = IGNORED
    uncertainty = torch.rand(target.shape)
    options = {"size": target.shape[1:], "align_corners": align_corners}
    singles = [kind(C, ignore_index=IGNORED) for kind in SINGLE_METRICS.values()]
    patches = sm.PAvPU(C, threshold=[0.3, 0.5], ignore_index=IGNORED)
    with segunc_ops.backend(backend):
        for metric in (*singles, patches, everything()):
            expected = value_of(metric.clone(), large, target, uncertainty)
            forwarded = metric(small, target, uncertainty, **options)
            for found in (metric.compute(), forwarded):
                for a, b in zip(tensors_of(found), tensors_of(expected), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=1e-9, equal_nan=True)
        p = small.softmax(1)
        mixed = F.interpolate(p, size, mode="bilinear", align_corners=align_corners)
        brier = sm.BrierScore(C, ignore_index=IGNORED, from_probabilities=True)
        expected = value_of(brier.clone(), mixed, target)
        brier.update(p, target, **options)
        torch.testing.assert_close(brier.compute(), expected, rtol=0, atol=1e-9)
        collection = torchmetrics.MetricCollection(
            {
                "iou": sm.MeanIoU(C, ignore_index=IGNORED),
                "accuracy": sm.PixelAccuracy(C, ignore_index=IGNORED),
                "seconds": torchmetrics.MeanMetric(),
            }
        )
        for _ in range(3):
            collection.update(input=small, target=target, value=target.float(), **options)
    values = collection.compute()
    assert values["iou"] == value_of(sm.MeanIoU(C, ignore_index=IGNORED), large, target)
    assert ["accuracy", "iou"] in map(sorted, collection.compute_groups.values())


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


# ---- A torchmetrics.Metric


def test_batches_and_threads_change_nothing():
    logits, target, uncertainty = batch((6, 70, 67))
    expected = value_of(everything(), logits.float(), target, uncertainty)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        metric = everything()
        for part in (slice(0, 1), slice(1, 5), slice(5, 6)):
            metric.update(logits.float()[part], target[part], uncertainty[part])
        assert_same_values(metric.compute(), expected)
        state = sum(getattr(metric, name).numel() for name in metric._defaults)
        assert state < 10_000


def test_forward_returns_the_value_of_the_batch():
    first, second = batch(seed=1), batch(seed=2)
    metric = everything()
    metric(*first)
    assert_same_values(metric(*second), value_of(everything(), *second))
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    assert_same_values(metric.compute(), value_of(everything(), *both))


def test_reset_copy_pickle_and_state_dict(tmp_path):
    arguments = batch()
    metric = everything()
    expected = value_of(metric, *arguments)
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert_same_values(other.compute(), expected)
        other.update(*arguments)
        assert other.confusion.sum() == 2 * metric.confusion.sum()
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "state.pt")
    loaded = everything()
    loaded.load_state_dict(torch.load(tmp_path / "state.pt"))
    loaded.update(*(tensor[:0] for tensor in arguments))
    assert_same_values(loaded.compute(), expected)
    metric.reset()
    assert not any(getattr(metric, name).any() for name in metric._defaults)
    assert_same_values(value_of(metric, *arguments), expected)


def test_in_a_collection():
    arguments = batch()
    options = {"ignore_index": IGNORED}
    collection = torchmetrics.MetricCollection(
        {"iou": sm.MeanIoU(C, **options), "accuracy": sm.PixelAccuracy(C, **options)}
    )
    for _ in range(3):
        collection.update(*arguments)
    values = collection.compute()
    assert values["iou"] == value_of(sm.MeanIoU(C, **options), *arguments)
    assert values["accuracy"] == value_of(sm.PixelAccuracy(C, **options), *arguments)
    assert len(collection.compute_groups) == 1, "they share their counts"


def _rank(rank: int, world_size: int, folder: str) -> None:
    """One process's share of the images: an unequal one."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    metric = everything()
    arguments = batch((5, 33, 37))
    share = slice(0, 1) if rank == 0 else slice(1, 5)
    metric.update(*(tensor[share] for tensor in arguments))
    values = metric.compute()
    torch.save(tensors_of(values), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("needs gloo")
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    expected = value_of(everything(), *batch((5, 33, 37)))
    for rank in range(2):
        assert_same_values(torch.load(tmp_path / f"{rank}.pt"), expected)


def test_plots():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    arguments = batch()
    for name, kind in SINGLE_METRICS.items():
        metric = kind(C, ignore_index=IGNORED)
        metric.update(*arguments)
        figure, axes = metric.plot()
        assert axes.get_figure() is figure, name
        same, given = metric.plot(metric.compute(), ax=axes)
        assert (same, given) == (figure, axes), name
    diagram = value_of(everything(), *arguments)["reliability"]
    figure, axes = sm.ReliabilityDiagram(C).plot(diagram)
    assert len(axes.patches) == (diagram.pixels > 0).sum()
    metric = everything()
    metric.update(*arguments)
    figure, axes = metric.plot()
    assert len(axes) == 2
    (line,) = axes[1].get_lines()
    assert line.get_xdata()[-1] == 1
    pyplot.close("all")


WITHOUT_TORCHMETRICS = """
import sys
import segunc_ops
assert not [name for name in sys.modules if name.startswith("torchmetrics")]
sys.modules["torchmetrics"] = None
try:
    import segunc_ops.metrics
except ImportError as error:
    print(error)
"""


def test_the_package_does_not_need_torchmetrics():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCHMETRICS],
        capture_output=True,
        text=True,
        cwd=Path(segunc_ops.__file__).parent.parent,
        check=True,
    )
    assert result.stdout.strip() == (
        "segunc_ops.metrics needs torchmetrics; install it with `pip install segunc_ops[metrics]`"
    )


ERRORS = {
    "classes": (lambda: sm.MeanIoU(0), ValueError, "num_classes: expected at least 1, got 0"),
    "classes type": (lambda: sm.MeanIoU("7"), TypeError, "num_classes: expected an integer"),
    "absent": (
        lambda: sm.MeanIoU(3, absent="one"),
        ValueError,
        r"absent: expected one of \('exclude', 'zero'\), got 'one'",
    ),
    "average": (
        lambda: sm.MeanIoU(3, average="micro"),
        ValueError,
        r"average: expected one of \('macro', 'none'\), got 'micro'",
    ),
    "bins": (
        lambda: sm.ExpectedCalibrationError(3, num_bins=0),
        ValueError,
        "num_bins: expected at least 1, got 0",
    ),
    "bins of nothing": (
        lambda: sm.MeanIoU(3, num_bins=10),
        TypeError,
        "num_bins: expected none, as MeanIoU has no bins",
    ),
    "measure": (
        lambda: sm.RiskCoverage(3, measure="variance"),
        ValueError,
        r"measure: expected one of \('std', .*\), got 'variance'",
    ),
    "by": (
        lambda: sm.ClassUncertainty(3, by="label"),
        ValueError,
        r"by: expected one of \('target', 'prediction'\), got 'label'",
    ),
    "threshold": (
        lambda: sm.PAvPU(3, threshold=[]),
        ValueError,
        r"threshold: expected a number >= 0 or a sequence of them, got \[\]",
    ),
    "negative threshold": (
        lambda: sm.PAvPU(3, threshold=-0.1),
        ValueError,
        "threshold: expected a number >= 0 or a sequence of them, got -0.1",
    ),
    "threshold type": (
        lambda: sm.PAvPU(3, threshold="high"),
        ValueError,
        "threshold: expected a number >= 0 or a sequence of them, got 'high'",
    ),
    "accuracy threshold": (
        lambda: sm.PAvPU(3, threshold=0.1, accuracy_threshold=1.5),
        ValueError,
        r"accuracy_threshold: expected a number in \[0, 1\], got 1.5",
    ),
    "window": (
        lambda: sm.PAvPU(3, threshold=0.1, window=0),
        ValueError,
        "window: expected at least 1, got 0",
    ),
    "threshold without uncertainty": (
        lambda: sm.SegmentationMetrics(3, uncertainty=False, threshold=0.1),
        ValueError,
        "threshold: expected None without uncertainty, got 0.1",
    ),
    "no uncertainty": (
        lambda: sm.RiskCoverage(C).update(*batch()[:2]),
        ValueError,
        "uncertainty: expected a map, as RiskCoverage is made of it .* got none",
    ),
    "other classes": (
        lambda: sm.MeanIoU(C + 1).update(*batch()),
        ValueError,
        "input: expected 8 classes, got 7",
    ),
    "ignored by nobody": (
        lambda: sm.MeanIoU(C).update(*batch()),
        IndexError,
        r"target: expected a class in \[0, 7\) or -100, got 255",
    ),
    "size of statistics": (
        lambda: everything().update(
            sf.predictive_statistics(torch.randn(2, 1, C, 4, 4), return_mean=True),
            torch.zeros(1, 4, 4).long(),
            size=(4, 4),
        ),
        ValueError,
        "size: expected none for PredictiveStatistics",
    ),
    "no size": (
        lambda: sm.MeanIoU(C).update(batch()[0][..., ::2], batch()[1]),
        ValueError,
        r"target: expected shape .*; pass size=target.shape\[1:\] to interpolate",
    ),
    "no patches": (
        lambda: sm.PAvPU(3, threshold=0.1).update(
            torch.zeros(2, 3, 8), torch.zeros(2, 8).long(), torch.zeros(2, 8)
        ),
        ValueError,
        r"target: expected shape \(N, \*, H, W\), as patches are made of it, got \(2, 8\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()
