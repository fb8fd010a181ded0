"""accumulate_counts and accumulate_patch_counts: kernels against the reference, table by table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import (
    accumulate_dtype,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.counts.cases import (
    SHAPES,
    TABLES,
    UNITS,
    assert_counts_agree,
    count,
    random_batch,
    reference,
)
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, TARGET_DTYPES
from segunc_ops.functional import SegmentationCounts


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_type_and_layout(layout, dtype, probabilities):
    for number, shape in enumerate(SHAPES):
        values, target, uncertainty = random_batch(shape, dtype, layout, probabilities)
        target = target.to(TARGET_DTYPES[number % len(TARGET_DTYPES)])
        arguments = values, target, uncertainty
        options = {"from_probabilities": probabilities}
        assert_counts_agree(
            count(*arguments, **options),
            reference(*arguments, **options),
            accumulate_dtype(dtype),
            f"{layout} {dtype} {shape}",
        )


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_the_same_alone(table):
    batch = random_batch((2, 19, 33, 65), torch.float32)
    together, outcome = count(*batch)
    alone, same = count(*batch, tables=(table,))
    assert_same_bits(getattr(alone, table), getattr(together, table), name=table)
    assert_same_bits(same, outcome, name="outcome")
    assert sum(t is not None for t in alone) == 1


@pytest.mark.parametrize("shape", [(5, 7, 33, 31), (301, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_add_up_to_the_whole(dtype, shape):
    """Bit by bit, wherever images are cut, and whatever was in the tables before."""
    values, target, uncertainty = random_batch(shape, dtype)
    whole, _ = count(values, target, uncertainty)
    parts = sf.empty_counts(7)
    for part in (slice(0, 1), slice(1, 4), slice(4, None)):
        sf.accumulate_counts(
            parts, values[part], target[part], uncertainty[part], ignore_index=IGNORED
        )
    for name, a, b in zip(TABLES, parts, whole, strict=True):
        assert a is not None
        assert_same_bits(a, b, name=name)


@pytest.mark.parametrize("tables", [TABLES, ("calibration", "confusion", "histogram")])
def test_statistics_are_counted_as_their_mean(tables):
    """From the maps where no scores are wanted, else from the mean: the same integers."""
    samples = 3 * torch.randn(4, 2, 5, 31, 33)
    statistics = sf.predictive_statistics(samples, return_mean=True)
    target = torch.randint(0, 5, (2, 31, 33), dtype=torch.uint8)
    target[:, ::5] = IGNORED
    found = count(statistics, target, statistics.std, num_classes=5, tables=tables)
    mean = statistics.mean
    wanted = count(mean, target, statistics.std, from_probabilities=True, tables=tables)
    assert_counts_agree(found, wanted, torch.float32, "statistics")
    for name in ("confusion", "calibration"):
        assert_same_bits(getattr(found[0], name), getattr(wanted[0], name), name=name)
    with segunc_ops.backend("reference"):
        again = count(statistics, target, statistics.std, num_classes=5, tables=tables)
    assert_counts_agree(found, again, torch.float32, "reference")


@pytest.mark.parametrize("types", [(torch.int64, torch.float32), (torch.uint8, torch.float64)])
@pytest.mark.parametrize("without_mean", [False, True])
def test_maps_of_any_type(types, without_mean):
    integer, real = types
    statistics = sf.predictive_statistics(torch.randn(3, 2, 6, 40, 41), return_mean=True)
    target = torch.randint(0, 6, (2, 40, 41), dtype=torch.int32)
    maps = statistics._replace(
        prediction=statistics.prediction.to(integer).mT.contiguous().mT,
        confidence=statistics.confidence.to(real).mT.contiguous().mT,
        mean=None if without_mean else statistics.mean,
    )
    tables = ("confusion", "calibration", "histogram", "uncertainty_sums")
    found = count(maps, target, statistics.entropy, num_classes=6, tables=tables)
    wanted = count(statistics, target, statistics.entropy, num_classes=6, tables=tables)
    for name, a, b in zip(TABLES, found[0], wanted[0], strict=True):
        if a is not None:
            assert_same_bits(a, b, name=name)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_nan_is_never_the_prediction(layout):
    """Though all other values are -inf; of pixels of nothing else it is class 0."""
    values = torch.full((1, 4, 6, 7), -math.inf)
    values[:, 0] = math.nan
    values[..., 0] = math.nan
    target = torch.full((1, 6, 7), 3)
    for dtype in (torch.float32, torch.float64):
        found, _ = count(LAYOUTS[layout].make(values.to(dtype)), target, torch.zeros(1, 6, 7))
        assert found.confusion[3].tolist() == [6, 36, 0, 0]


def test_what_is_not_finite_is_counted_apart():
    values = torch.zeros(1, 4, 12)
    values[0, 1] = 2.0
    values[0, 0, 0] = math.nan  # undefined; class 1 is still the largest
    values[0, :, 1] = math.nan  # undefined, class 0
    values[0, 3, 2] = -math.inf  # impossible: the target below
    values[0, 1, 3] = math.inf  # undefined as in torch
    values[0, 3, 4] = -1100.0  # impossible in every type
    values[0, 3, 5] = -900.0
    target = torch.full((1, 12), 3)
    uncertainty = torch.full((1, 12), 0.5)
    uncertainty[0, 6:12] = torch.tensor([math.nan, math.inf, -0.1, 256.0, 255.5, -0.0])
    for dtype in (torch.float32, torch.float64):
        found, outcome = count(values.to(dtype), target, uncertainty)
        wanted = reference(values.to(dtype), target, uncertainty)
        assert_counts_agree((found, outcome), wanted, dtype, str(dtype))
        assert found.confusion[3].tolist() == [1, 11, 0, 0]
        assert found.calibration[-1].tolist() == [3, 0, 0]
        assert found.scores[[0, 3, 4]].tolist() == [12, 2, 3]
        assert found.uncertainty_sums[1].sum() == 4
        assert found.histogram[:, -1].tolist() == [4, 0]
        assert found.histogram[0, 0] == 1


def test_probabilities_at_their_ends():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1e-42, 1.0], [math.nan, 1.0], [7.0, -3.0]])
    target = torch.zeros(5, dtype=torch.long)
    found = count(p, target, from_probabilities=True, tables=("scores", "calibration"))
    with segunc_ops.backend("reference"):
        again = count(p, target, from_probabilities=True, tables=("scores", "calibration"))
    assert_counts_agree(found, again, torch.float32, "probabilities")
    pixels, brier, likelihood, impossible, undefined = found[0].scores.tolist()
    assert (pixels, impossible, undefined) == (5, 1, 2)
    assert brier == 4 * UNITS  # 0, 2 and 2
    assert abs(likelihood / UNITS + math.log(1e-42)) < 1e-3
    assert found[0].calibration[-1, 0] == 2


@pytest.mark.parametrize("num_bins", [1, 15, 100])
def test_edges_belong_to_the_bin_below(num_bins):
    """Confidences on the grid of 2^-24, on which bins are decided."""
    edges = torch.arange(1, num_bins + 1, dtype=torch.float64) / num_bins
    below = (edges * UNITS).floor() / UNITS
    confidence = torch.cat([below, below[:-1] + 1 / UNITS, torch.zeros(1)]).float()
    maps = sf.PredictiveStatistics(
        torch.zeros(len(confidence), dtype=torch.long), confidence, *[confidence] * 4
    )
    target = torch.zeros(len(confidence), dtype=torch.long)
    for name in ("native", "reference"):
        with segunc_ops.backend(name):
            found, _ = count(
                maps, target, num_classes=1, num_bins=num_bins, tables=("calibration",)
            )
        pixels = torch.full((num_bins + 1,), 2)
        pixels[-1] = 0
        if num_bins == 1:
            assert found.calibration[0, 0] == 2
        else:
            assert found.calibration[:, 0].tolist() == pixels.tolist(), name


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad", [7, -1, 300])
def test_a_bad_target_leaves_the_tables_as_they_were(backend, bad):
    values, target, uncertainty = random_batch((3, 7, 64, 65), torch.float32)
    counts = sf.empty_counts(7)
    with segunc_ops.backend(backend):
        sf.accumulate_counts(counts, values, target, uncertainty, ignore_index=IGNORED)
        before = [table.clone() for table in counts]
        target[2, 63, 64] = bad
        message = rf"target: expected a class in \[0, 7\) or 255, got {bad}"
        with pytest.raises(IndexError, match=message):
            sf.accumulate_counts(counts, values, target, uncertainty, ignore_index=IGNORED)
        maps = sf.predictive_statistics([values.nan_to_num()])
        target[2, 63, 64] = 0
        maps.prediction[2, 63, 64] = 7
        maps.prediction[target == IGNORED] = 99  # never looked at
        tables = counts._replace(scores=None)
        with pytest.raises(IndexError, match=r"prediction: expected a class in \[0, 7\), got 7"):
            sf.accumulate_counts(tables, maps, target, uncertainty, ignore_index=IGNORED)
    for name, a, b in zip(TABLES, counts, before, strict=True):
        assert_same_bits(a, b, name=name)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 4), (0, 3)])
def test_nothing_to_count(shape):
    pixels = (shape[0], *shape[2:])
    target = torch.zeros(pixels, dtype=torch.uint8)
    for values in (torch.randn(shape), sf.predictive_statistics(torch.randn(2, *shape))):
        tables = tuple(name for name in TABLES if name != "scores")
        found, outcome = count(values, target, torch.rand(pixels), num_classes=3, tables=tables)
        assert outcome.shape == pixels
        assert not any(table.any() for table in found if table is not None)


@pytest.mark.parametrize("window", [1, 3, 4])
@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 9), (3, 130, 67), (2, 3, 16, 17)])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_patches(dtype, shape, window):
    outcome = torch.randint(0, 3, shape, dtype=torch.uint8)
    outcome[..., :window, :window] = 2
    uncertainty = torch.rand(shape).to(dtype)
    uncertainty[outcome == 2] = math.nan
    uncertainty[-1, ..., -1] = math.nan
    thresholds = torch.tensor([0.5, 0.0, 0.25, 1.0], dtype=torch.float64)
    found = torch.arange(20).view(4, 5)
    wanted = found.clone()
    sf.accumulate_patch_counts(found, outcome, uncertainty, thresholds, window=window)
    with segunc_ops.backend("reference"):
        sf.accumulate_patch_counts(wanted, outcome, uncertainty, thresholds, window=window)
    assert_same_bits(found, wanted, name="patches")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_patches_compare_strictly(backend):
    """Half of the pixels right is not accurate, a mean on the threshold is not uncertain."""
    outcome = torch.zeros(1, 2, 8, dtype=torch.uint8)
    outcome[0, :, 0:2] = torch.tensor([[1, 0], [1, 0]])  # half
    outcome[0, :, 2:4] = torch.tensor([[1, 0], [1, 1]])
    outcome[0, :, 4:6] = torch.tensor([[1, 2], [2, 0]])  # half of the valid ones
    outcome[0, :, 6:8] = torch.tensor([[2, 2], [2, 1]])
    uncertainty = torch.full((1, 2, 8), 0.25)
    uncertainty[0, 0, 2] += 2.0**-24
    counts = torch.zeros(2, 5, dtype=torch.int64)
    with segunc_ops.backend(backend):
        sf.accumulate_patch_counts(
            counts, outcome, uncertainty, torch.tensor([0.25, 0.2]).double(), window=2
        )
    # accurate certain, accurate uncertain, inaccurate certain, inaccurate uncertain, undefined
    assert counts.tolist() == [[1, 1, 2, 0, 0], [0, 2, 0, 2, 0]]


def test_compile_traces_one_graph():
    torch.compiler.reset()

    def update(counts: SegmentationCounts, values: Tensor, target: Tensor, u: Tensor) -> Tensor:
        outcome = sf.accumulate_counts(counts, values, target, u, return_outcome=True)
        assert outcome is not None
        return outcome

    compiled = torch.compile(update, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (33, 50):
        values, target = torch.randn(2, 5, size), torch.randint(0, 5, (2, size))
        u = torch.rand(2, size)
        found, wanted = sf.empty_counts(5), sf.empty_counts(5)
        outcome = compiled(found, values, target, u)
        assert_same_bits(outcome, update(wanted, values, target, u), name="outcome")
        for name, a, b in zip(TABLES, found, wanted, strict=True):
            assert_same_bits(a, b, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits(dtype):
    logits, target = torch.randn(2, 7, 65, 67).to(dtype), torch.randint(0, 7, (2, 65, 67))
    uncertainty = torch.rand(2, 65, 67)

    def run() -> list[Tensor]:
        counts = sf.empty_counts(7)
        outcome = sf.accumulate_counts(counts, logits, target, uncertainty, return_outcome=True)
        assert outcome is not None
        patches = torch.zeros(1, 5, dtype=torch.int64)
        threshold = torch.tensor([0.5], dtype=torch.float64)
        sf.accumulate_patch_counts(patches, outcome, uncertainty, threshold)
        return [*counts, outcome, patches]  # type: ignore[list-item]

    assert_same_bits_on_every_run(run, name=f"counts {dtype}")
