"""Bad arguments of the counts raise a message that names them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from segunc_ops.functional import SegmentationCounts


def _tables(**shapes: tuple[int, ...]) -> SegmentationCounts:
    return SegmentationCounts(
        **{name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
    )


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 4))


def _labels(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 4), dtype=torch.long)


_CONFUSION = _tables(confusion=(3, 3))
_HISTOGRAM = _tables(histogram=(2, 4097))
_MAPS = sf.predictive_statistics(torch.zeros(2, 2, 3, 4))
_OUTCOME = torch.zeros(1, 4, 4, dtype=torch.uint8)
_COUNTS = torch.zeros(1, 5, dtype=torch.long)
_HALF = torch.tensor([0.5], dtype=torch.float64)
_SMALL, _TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 9, dtype=torch.long)

ERRORS = {
    "classes": (lambda: sf.empty_counts(0), ValueError, "num_classes: expected at least 1, got 0"),
    "bins": (
        lambda: sf.empty_counts(2, num_bins=0),
        ValueError,
        "num_bins: expected at least 1, got 0",
    ),
    "table": (
        lambda: sf.empty_counts(2, tables=("median",)),
        ValueError,
        r"tables\[0\]: expected one of .* got 'median'",
    ),
    "input": (
        lambda: sf.accumulate_counts(_CONFUSION, _zeros().int(), _labels()),
        TypeError,
        "input: expected float32, .* got torch.int32",
    ),
    "input shape": (
        lambda: sf.accumulate_counts(_CONFUSION, _zeros(3), _labels(1)),
        ValueError,
        r"input: expected shape \(N, C, \*\) with C > 0, got \(3,\)",
    ),
    "number of classes": (
        lambda: sf.accumulate_counts(_CONFUSION, _zeros(), _labels(), num_classes=4),
        ValueError,
        "input: expected 4 classes, got 3",
    ),
    "table of other classes": (
        lambda: sf.accumulate_counts(_tables(confusion=(4, 4)), _zeros(), _labels()),
        ValueError,
        r"confusion: expected a contiguous tensor of shape \(3, 3\), got shape \(4, 4\)",
    ),
    "table type": (
        lambda: sf.accumulate_counts(SegmentationCounts(_zeros(3, 3)), _zeros(), _labels()),
        TypeError,
        "confusion: expected torch.int64, got torch.float32",
    ),
    "calibration shape": (
        lambda: sf.accumulate_counts(_tables(calibration=(15,)), _zeros(), _labels()),
        ValueError,
        r"calibration: expected shape \(B \+ 1, 3\), got \(15,\)",
    ),
    "target shape": (
        lambda: sf.accumulate_counts(_CONFUSION, _zeros(), _labels(2, 5)),
        ValueError,
        r"target: expected shape \(2, 4\) .* got \(2, 5\)",
    ),
    "target type": (
        lambda: sf.accumulate_counts(_CONFUSION, _zeros(), _labels().float()),
        TypeError,
        "target: expected int64, int32, int16 or uint8, got torch.float32",
    ),
    "no uncertainty": (
        lambda: sf.accumulate_counts(_HISTOGRAM, _zeros(), _labels()),
        ValueError,
        "uncertainty: expected a map for these tables, got none",
    ),
    "uncertainty shape": (
        lambda: sf.accumulate_counts(_HISTOGRAM, _zeros(), _labels(), _zeros(2, 5)),
        ValueError,
        r"uncertainty: expected shape \(2, 4\), got \(2, 5\)",
    ),
    "uncertainty type": (
        lambda: sf.accumulate_counts(_HISTOGRAM, _zeros(), _labels(), _labels()),
        TypeError,
        "uncertainty: expected a floating-point tensor, got torch.int64",
    ),
    "no mean": (
        lambda: sf.accumulate_counts(_tables(scores=(5,)), _MAPS, _labels()),
        ValueError,
        "input: expected statistics with their mean for the scores, got none; pass return_mean",
    ),
    "unknown classes": (
        lambda: sf.accumulate_counts(_HISTOGRAM, _MAPS, _labels(), _zeros(2, 4)),
        ValueError,
        "num_classes: expected a number for statistics without mean, got none",
    ),
    "target of maps": (
        lambda: sf.accumulate_counts(_CONFUSION, _MAPS, _labels(2, 5)),
        ValueError,
        r"target: expected shape \(2, 4\) like input.prediction, got \(2, 5\)",
    ),
    "prediction type": (
        lambda: sf.accumulate_counts(
            _CONFUSION, _MAPS._replace(prediction=_zeros(2, 4)), _labels()
        ),
        TypeError,
        "input.prediction: expected int64, int32, int16 or uint8, got torch.float32",
    ),
    "outcome type": (
        lambda: sf.accumulate_patch_counts(_COUNTS, _OUTCOME.long(), _zeros(1, 4, 4), _HALF),
        TypeError,
        "outcome: expected a uint8 tensor, got torch.int64",
    ),
    "outcome shape": (
        lambda: sf.accumulate_patch_counts(_COUNTS, _OUTCOME[0], _zeros(4, 4), _HALF),
        ValueError,
        r"outcome: expected shape \(N, \*, H, W\), got \(4, 4\)",
    ),
    "window": (
        lambda: sf.accumulate_patch_counts(_COUNTS, _OUTCOME, _zeros(1, 4, 4), _HALF, window=0),
        ValueError,
        "window: expected at least 1, got 0",
    ),
    "accuracy threshold": (
        lambda: sf.accumulate_patch_counts(
            _COUNTS, _OUTCOME, _zeros(1, 4, 4), _HALF, accuracy_threshold=2
        ),
        ValueError,
        r"accuracy_threshold: expected a number in \[0, 1\], got 2",
    ),
    "thresholds": (
        lambda: sf.accumulate_patch_counts(_COUNTS, _OUTCOME, _zeros(1, 4, 4), _HALF.float()),
        TypeError,
        "thresholds: expected torch.float64, got torch.float32",
    ),
    "thresholds no tensor": (
        lambda: sf.accumulate_patch_counts(_COUNTS, _OUTCOME, _zeros(1, 4, 4), [0.5]),
        TypeError,
        "thresholds: expected a tensor, got list",
    ),
    "accuracy threshold type": (
        lambda: sf.accumulate_patch_counts(
            _COUNTS, _OUTCOME, _zeros(1, 4, 4), _HALF, accuracy_threshold="0.5"
        ),
        TypeError,
        r"accuracy_threshold: expected a number in \[0, 1\], got str",
    ),
    "table no tensor": (
        lambda: sf.accumulate_counts(
            sf.SegmentationCounts(confusion=[[0]]), _zeros(1, 2, 4), torch.zeros(1, 4).long()
        ),
        TypeError,
        "confusion: expected a tensor, got list",
    ),
    "too many thresholds": (
        lambda: sf.accumulate_patch_counts(
            _COUNTS, _OUTCOME, _zeros(1, 4, 4), torch.zeros(1025).double()
        ),
        ValueError,
        "thresholds: expected at most 1024, got 1025",
    ),
    "patch counts": (
        lambda: sf.accumulate_patch_counts(_COUNTS[:, :4], _OUTCOME, _zeros(1, 4, 4), _HALF),
        ValueError,
        r"counts: expected a contiguous tensor of shape \(1, 5\)",
    ),
    "no size": (
        lambda: sf.accumulate_counts(_CONFUSION, _SMALL, _TARGET),
        ValueError,
        r"^target: expected shape \(2, 4, 5\) for input of shape \(2, 3, 4, 5\), got \(2, 8, "
        r"9\); pass size=target\.shape\[1:\] to interpolate",
    ),
    "another size": (
        lambda: sf.accumulate_counts(_CONFUSION, _SMALL, _TARGET, size=(8, 8)),
        ValueError,
        r"^size: expected the target's \(8, 9\), got \(8, 8\)",
    ),
    "interpolated: another batch": (
        lambda: sf.accumulate_counts(_CONFUSION, _SMALL, _TARGET[:1], size=(8, 9)),
        ValueError,
        r"^target: expected shape \(2, 8, 9\) for input of shape \(2, 3, 4, 5\), got \(1, 8, 9\)",
    ),
    "interpolated: target with a channel": (
        lambda: sf.accumulate_counts(_CONFUSION, _SMALL, _TARGET.unsqueeze(1), size=(8, 9)),
        ValueError,
        r"^target: expected shape \(2, 8, 9\), got \(2, 1, 8, 9\); pass segunc_ops.as_targets",
    ),
    "interpolated: uncertainty of the logits' size": (
        lambda: sf.accumulate_counts(_CONFUSION, _SMALL, _TARGET, _SMALL[:, 0], size=(8, 9)),
        ValueError,
        r"^uncertainty: expected shape \(2, 8, 9\), got \(2, 4, 5\)",
    ),
    "size of statistics": (
        lambda: sf.accumulate_counts(
            _CONFUSION, sf.predictive_statistics([_SMALL]), _TARGET, size=(8, 9)
        ),
        ValueError,
        r"^size: expected none for PredictiveStatistics, whose maps are interpolated already, "
        r"got \(8, 9\)",
    ),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name, backend):
    call, kind, message = ERRORS[name]
    with segunc_ops.backend(backend), pytest.raises(kind, match=message) as caught:
        call()
    assert caught.type is kind


def test_bare_operators_check_too():
    message = r"input: expected shape \(N, C, \*\) for results of shape \(1, 8, 9\)"
    with pytest.raises(ValueError, match=message):
        torch.ops.segunc_ops.accumulate_counts_(
            _SMALL, _TARGET[:1], None, -100, False, False, *[None] * 6
        )
