"""Bad arguments of the metrics raise a message that names them."""

from __future__ import annotations

import pytest
import torch

import segunc_ops.functional as sf
from python_tests.metrics.cases import C, batch, everything
from segunc_ops import metrics as sm

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
    "accuracy threshold type": (
        lambda: sm.PAvPU(3, threshold=0.1, accuracy_threshold="x"),
        TypeError,
        r"accuracy_threshold: expected a number in \[0, 1\], got str",
    ),
    "a binary mask": (
        lambda: sm.MeanIoU(1).update(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)),
        ValueError,
        r"pass torch.cat\(\[torch.zeros_like\(input\), input\], 1\) and segunc_ops.as_targets",
    ),
    "a binary mask of probabilities": (
        lambda: sm.BrierScore(1, from_probabilities=True).update(
            torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
        ),
        ValueError,
        r"pass torch.cat\(\[1 - input, input\], 1\) and segunc_ops.as_targets\(target\)",
    ),
    "a binary mask of integers": (
        lambda: sm.MeanIoU(1).update(torch.zeros(2, 1, 4, 4), torch.ones(2, 4, 4).long()),
        IndexError,
        r"got 1 for an input of one channel.*pass torch.cat\(\[torch.zeros_like\(input\), input\]",
    ),
    "a binary mask of 255 and probabilities": (
        lambda: sm.BrierScore(1, from_probabilities=True).update(
            torch.zeros(2, 1, 4, 4), 255 * torch.ones(2, 4, 4).long()
        ),
        IndexError,
        r"got 255 .*pass torch.cat\(\[1 - input, input\], 1\) and \(target > 0\).long\(\)",
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
