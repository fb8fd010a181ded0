"""Definitions of the statistics in float64, and how results are compared with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from python_tests.comparison import accumulate_dtype, assert_close
from segunc_ops import PredictiveStatistics

FIELDS = ("confidence", "std", "entropy", "expected_entropy", "mutual_information")


def expected(samples: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """The definitions, in float64, at the given prediction."""
    p = samples.double().softmax(2)
    mean = p.mean(0)
    chosen = p.gather(2, prediction[None, :, None].expand(len(p), *prediction[:, None].shape))
    entropy = torch.special.entr(mean).sum(1)
    expected_entropy = torch.special.entr(p).sum(2).mean(0)
    deviations = chosen - chosen.mean(0)
    return {
        "confidence": mean.gather(1, prediction.unsqueeze(1)).squeeze(1),
        "std": (deviations.square().sum(0) / torch.tensor(len(p) - 1.0)).sqrt().squeeze(1),
        "entropy": entropy,
        "expected_entropy": expected_entropy,
        "mutual_information": (entropy - expected_entropy).clamp(min=0),
        "mean": mean,
    }


def compare(
    found: PredictiveStatistics,
    samples: Tensor,
    name: str,
    interpolated_in: torch.dtype | None = None,
) -> None:
    """Every map against its definition.

    The terms of all maps are at most log C in size, rounded once per class: that is the scale. The
    prediction may be either of two classes whose means differ by less than their rounding.
    `interpolated_in`: the type that samples, given in float64 and at full size, were computed in.
    """
    compute = interpolated_in or accumulate_dtype(samples.dtype)
    classes = samples.shape[2]
    mean = samples.double().softmax(2).mean(0)
    margin = 64 * torch.finfo(compute).eps
    assert found.prediction.dtype == torch.int64, name
    at_prediction = mean.gather(1, found.prediction.unsqueeze(1)).squeeze(1)
    assert (at_prediction >= mean.amax(1) - margin).all(), f"{name}: prediction"
    truth = expected(samples, found.prediction)
    # z - max z is rounded at the size of z, which float64's truth shares; so are interpolated z.
    rounds_logits = compute == torch.float64 or interpolated_in is not None
    size = 1 + float(samples.abs().max()) if rounds_logits else 1.0
    scale = size * (1 + math.log(classes)) * math.sqrt(classes)
    for field in (*FIELDS, *(["mean"] if found.mean is not None else [])):
        got = getattr(found, field)
        assert got.dtype == compute, f"{name}: {field}"
        assert_close(got, truth[field], name=f"{name}: {field}", scale=scale, bias=False)


SHAPES = ((2, 3, 5, 7), (1, 19, 65, 67), (1, 1, 3, 3), (300, 4), (2, 70, 9), (1, 5, 3, 4, 5))


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator of statistics, of their own size and interpolated."""
    calls: dict[str, list[tuple[object, ...]]] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(2, 3, 4, 5).to(dtype)
        for wants_mean in (True, False):
            calls.setdefault("predictive_statistics", []).extend(
                [([x, -x], [], False, wants_mean), ([x, -x], [7, 3], True, wants_mean)]
            )
        state = (torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5))
        calls.setdefault("accumulate_statistics_", []).extend(
            [(*state, x, 3, False), (*state, x[:, :, :3, :2], 3, True)]
        )
        calls.setdefault("finalize_statistics", []).append((*state, 3))
    return calls
