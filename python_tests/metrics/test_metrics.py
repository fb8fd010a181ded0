"""Metrics as torchmetrics uses them: one pass, any input, copies, collections, ranks."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.counts.cases import away_from_edges
from python_tests.metrics.cases import (
    RESOLUTION,
    SINGLE_METRICS,
    C,
    assert_same_values,
    batch,
    everything,
    tensors_of,
    value_of,
)
from python_tests.ranks import run_ranks
from python_tests.support import IGNORED, TARGET_DTYPES
from segunc_ops import metrics as sm


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
@pytest.mark.parametrize("target_dtype", TARGET_DTYPES)
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
    assert not any(getattr(metric, name).any() for name in metric._defaults if name != "settings")
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


def values_of_rank(rank: int, size: int, folder: Path) -> list[Tensor]:
    """Values after an unequal share of the images each."""
    metric = everything()
    arguments = batch((5, 33, 37))
    share = slice(0, 1) if rank == 0 else slice(1, 5)
    metric.update(*(tensor[share] for tensor in arguments))
    return tensors_of(metric.compute())


@pytest.mark.thorough
def test_two_ranks_equal_one_process(tmp_path):
    expected = value_of(everything(), *batch((5, 33, 37)))
    for found in run_ranks(values_of_rank, 2, tmp_path):
        assert_same_values(found, expected)


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
        "segunc_ops.metrics needs torchmetrics; install it with `pip install 'segunc_ops[metrics]'`"
    )
