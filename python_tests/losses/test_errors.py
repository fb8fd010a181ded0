"""Bad arguments of the losses raise a message that names them."""

from __future__ import annotations

import math

import pytest
import torch

from python_tests.losses.cases import LOSSES
from python_tests.support import IGNORED
from segunc_ops import (
    InstanceUncertaintyCrossEntropyLoss,
    PredictiveAccumulator,
    UncertaintyAwareCrossEntropyLoss,
)

pytestmark = pytest.mark.usefixtures("each_backend")


def test_errors_of_the_uncertainty_name_it(batch, loss):
    input, target = batch.arguments
    with pytest.raises(ValueError, match=r"uncertainty: .*\(3, 5, 7\) for .*, got \(3, 1, 5, 7\)"):
        loss(input, target, batch.std.unsqueeze(1))
    with pytest.raises(ValueError, match=r"uncertainty: .*\(3, 5, 7\) for .*, got \(3, 5, 6\)"):
        loss(input, target, batch.std[..., 1:])
    loss.observe(batch.std[:1])
    with pytest.raises(ValueError, match=r"uncertainty: .*\(3, 5, 7\) for .*, got \(1, 5, 7\)"):
        loss(input, target)
    with pytest.raises(ValueError, match=r"uncertainty: expected device cpu.*got meta"):
        loss(input, target, batch.std.to("meta"))
    for give in (lambda u: loss(input, target, u), loss.observe):
        with pytest.raises(TypeError, match=r"uncertainty: .*got torch.int64"):
            give(target)
        with pytest.raises(TypeError, match=r"uncertainty: .*got list"):
            give([batch.std])


def test_an_accumulator_needs_samples():
    accumulator = PredictiveAccumulator()
    with pytest.raises(ValueError, match=r"uncertainty: .*accumulator with samples, got none"):
        InstanceUncertaintyCrossEntropyLoss().observe(accumulator)
    accumulator.update(torch.zeros(3, 6, 5, 7))
    InstanceUncertaintyCrossEntropyLoss().observe(accumulator)
    with pytest.raises(ValueError, match=r"uncertainty: .*at least 2 samples.*got 1"):
        UncertaintyAwareCrossEntropyLoss().observe(accumulator)


def test_errors_of_the_instance_uncertainty(batch):
    by_target = InstanceUncertaintyCrossEntropyLoss(ignore_index=IGNORED)
    by_prediction = InstanceUncertaintyCrossEntropyLoss(
        components="prediction", ignore_index=IGNORED
    )
    arguments, std, prediction = batch.arguments, batch.std, batch.target.clamp(max=5)
    with pytest.raises(ValueError, match=r"instance_uncertainty: expected it or uncertainty, got"):
        by_target(*arguments, std, instance_uncertainty=std)
    with pytest.raises(
        ValueError, match=r"instance_uncertainty: .*\(3, 5, 7\) for .*got \(3, 5, 6"
    ):
        by_target(*arguments, instance_uncertainty=std[..., 1:])
    with pytest.raises(TypeError, match=r"instance_uncertainty: expected a floating.*torch.int64"):
        by_target(*arguments, instance_uncertainty=prediction)
    with pytest.raises(ValueError, match=r"prediction: expected none without uncertainty"):
        by_target(*arguments, std, prediction)
    with pytest.raises(ValueError, match=r"prediction: expected none without uncertainty"):
        by_prediction.observe(None, prediction, instance_uncertainty=std)
    with pytest.raises(ValueError, match=r"prediction: expected the ensemble's.*got none"):
        by_prediction(*arguments, std)
    with pytest.raises(ValueError, match=r"prediction: .*\(3, 5, 7\) for .*got \(2, 5, 7\)"):
        by_prediction(*arguments, std, prediction[1:])
    with pytest.raises(TypeError, match=r"prediction: expected class indices.*torch.float64"):
        by_prediction(*arguments, std, std)
    with pytest.raises(TypeError, match=r"prediction: expected a tensor, got list"):
        by_prediction(*arguments, std, [1])
    with pytest.raises(ValueError, match="uncertainty: expected one to observe, got none"):
        by_target.observe()
    with pytest.raises(
        ValueError, match=r"input: expected shape \(N, C, H, W\).*got \(3, 4\); pass"
    ):
        by_target(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), torch.zeros(3))
    with pytest.raises(ValueError, match="connectivity: expected 4 or 8 for labels of shape"):
        InstanceUncertaintyCrossEntropyLoss(connectivity=6)(*arguments, std)


def test_errors_of_the_iu_constructor():
    with pytest.raises(ValueError, match=r"exponent: .*at least 0, got -1"):
        InstanceUncertaintyCrossEntropyLoss(-1)
    with pytest.raises(ValueError, match=r"components: expected one of .*got 'labels'"):
        InstanceUncertaintyCrossEntropyLoss(components="labels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"connectivity: expected 4 or 8.*got 5"):
        InstanceUncertaintyCrossEntropyLoss(connectivity=5)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_errors_of_the_constructor(loss_class):
    with pytest.raises(ValueError, match=r"reduction: expected one of .*'mean_all'.*got 'avg'"):
        loss_class(reduction="avg")
    with pytest.raises(ValueError, match=r"label_smoothing: .*\[0, 1\], got 1.5"):
        loss_class(label_smoothing=1.5)
    with pytest.raises(TypeError, match="weight: expected a tensor or None, got list"):
        loss_class(weight=[1.0, 2.0])


def test_errors_of_the_u_ce_constructor():
    for alpha in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"alpha: .*at least 0, got {alpha}"):
            UncertaintyAwareCrossEntropyLoss(alpha)
    with pytest.raises(TypeError, match=r"alpha: expected a number, got Tensor.*weight="):
        UncertaintyAwareCrossEntropyLoss(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"missing: expected one of .*got 'skip'"):
        UncertaintyAwareCrossEntropyLoss(missing="skip")  # type: ignore[arg-type]


def test_errors_of_the_target_pass_through(batch, loss):
    with pytest.raises(ValueError, match="target: "):
        loss(batch.input, batch.target.unsqueeze(1), batch.std)
    with pytest.raises(TypeError, match="target: "):
        loss(batch.input, batch.target.float(), batch.std)
    bad = batch.target.clone()
    bad[0, 0, 0] = 6
    with pytest.raises(IndexError, match="6"):
        loss(batch.input, bad, batch.std)
