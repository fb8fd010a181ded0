"""Losses as modules: their formulas, what flows back, and how trainers use them."""

from __future__ import annotations

import copy
import math
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

import segunc_ops
from segunc_ops import (
    CrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    PredictiveAccumulator,
    PredictiveStatistics,
    UncertaintyAwareCrossEntropyLoss,
    ensemble_statistics,
    sample_statistics,
)

IGNORED = 255
REDUCTIONS = ("none", "sum", "mean", "mean_all")
UNCERTAINTY_LOSSES = (UncertaintyAwareCrossEntropyLoss, InstanceUncertaintyCrossEntropyLoss)
LOSSES = (CrossEntropyLoss, *UNCERTAINTY_LOSSES)


@pytest.fixture(autouse=True, params=["auto", "reference"])
def _backend(request):
    with segunc_ops.backend(request.param):
        yield


class Batch:
    """Logits (N, C, H, W), labels with ignored pixels, class weights and a std map."""

    def __init__(self, dtype: torch.dtype = torch.float64, size: tuple[int, ...] = (5, 7)):
        generator = torch.Generator().manual_seed(0)
        shape = (3, *size)
        self.input = 2 * torch.randn(3, 6, *size, generator=generator, dtype=torch.float64)
        self.input = self.input.to(dtype).requires_grad_()
        self.target = torch.randint(0, 6, shape, generator=generator)
        self.target[torch.rand(shape, generator=generator) < 0.2] = IGNORED
        self.weight = torch.rand(6, generator=generator, dtype=torch.float64) + 0.5
        self.std = 0.7 * torch.rand(shape, generator=generator, dtype=torch.float64)
        self.valid = self.target != IGNORED

    @property
    def arguments(self) -> tuple[Tensor, Tensor]:
        return self.input, self.target


@pytest.fixture
def batch() -> Batch:
    return Batch()


def expected_loss(
    batch: Batch,
    pixel_weight: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    smoothing: float = 0.0,
) -> Tensor:
    """The formula in float64, pixel by pixel."""
    z = batch.input.double().movedim(1, -1)
    total, normalizer, each = z.new_zeros(()), 0.0, torch.zeros_like(batch.std)
    for index in batch.valid.nonzero().tolist():
        at, label = tuple(index), int(batch.target[tuple(index)])
        w = torch.ones(6, dtype=torch.float64) if weight is None else weight.double()
        surprise = torch.logsumexp(z[at], 0) - z[at]
        loss = (1 - smoothing) * w[label] * surprise[label] + smoothing / 6 * (w * surprise).sum()
        if pixel_weight is not None:
            loss = loss * pixel_weight[at].double()
        total = total + loss
        each[at] = loss.detach()
        normalizer += float(w[label])
    if reduction == "none":
        return each
    return total / {"sum": 1, "mean": normalizer, "mean_all": batch.target.numel()}[reduction]


def u_ce_weight(std: Tensor, alpha: float) -> Tensor:
    return torch.exp(alpha * torch.log1p(std.double()))


def statistics_of(std: Tensor) -> PredictiveStatistics:
    nan = torch.full_like(std, torch.nan)
    return PredictiveStatistics(nan.long(), nan, std, nan, nan, nan)


# ---------------------------------------------------------------------------- plain


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_agrees_with_the_formula(batch, reduction, weighted, smoothing):
    weight = batch.weight if weighted else None
    loss = CrossEntropyLoss(
        weight, ignore_index=IGNORED, reduction=reduction, label_smoothing=smoothing
    )
    for pixel_weight in (None, batch.std):
        actual = loss(*batch.arguments, pixel_weight)
        expected = expected_loss(batch, pixel_weight, weight, reduction, smoothing)
        torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_replaces_torch(batch, reduction, weighted):
    options = {
        "weight": batch.weight if weighted else None,
        "ignore_index": IGNORED,
        "reduction": reduction,
        "label_smoothing": 0.1,
    }
    ours, theirs = CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options)
    upstream = torch.randn((), dtype=torch.float64)
    values, gradients = [], []
    for loss in (ours, theirs):
        value = loss(*batch.arguments)
        gradients += torch.autograd.grad(value.mul(upstream).sum(), batch.input)
        values.append(value)
    torch.testing.assert_close(*values, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_pixel_weight_gets_its_gradient(batch):
    pixel_weight = batch.std.clone().requires_grad_()
    CrossEntropyLoss(ignore_index=IGNORED, reduction="sum")(
        *batch.arguments, pixel_weight
    ).backward()
    expected = expected_loss(batch, None, None, "none")
    torch.testing.assert_close(pixel_weight.grad, expected, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------------- U-CE


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_u_ce_agrees_with_the_formula(batch, reduction, alpha, weighted):
    weight = batch.weight if weighted else None
    loss = UncertaintyAwareCrossEntropyLoss(
        alpha, weight, ignore_index=IGNORED, reduction=reduction, label_smoothing=0.1
    )
    actual = loss(*batch.arguments, batch.std)
    expected = expected_loss(batch, u_ce_weight(batch.std, alpha), weight, reduction, 0.1)
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-11, atol=1e-11)
    if reduction != "none":
        gradients = [torch.autograd.grad(value, batch.input)[0] for value in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_u_ce_defaults_are_those_of_the_paper(batch):
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)
    assert (loss.alpha, loss.reduction) == (10.0, "mean_all")
    expected = expected_loss(batch, u_ce_weight(batch.std, 10), None, "sum") / batch.target.numel()
    torch.testing.assert_close(loss(*batch.arguments, batch.std), expected, rtol=1e-11, atol=0)


def test_two_pixels_by_hand():
    # p = (1/2, 1/2) and (3/4, 1/4), both labelled 0; the second pixel's weight is 1.5^2.
    input = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    std = torch.tensor([[0.0, 0.5]])
    value = UncertaintyAwareCrossEntropyLoss(2.0)(input, torch.zeros(1, 2, dtype=torch.long), std)
    assert value.item() == pytest.approx((math.log(2) + 2.25 * math.log(4 / 3)) / 2, rel=1e-6)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 5), (2, 4, 3, 4, 5)], ids=str)
def test_u_ce_takes_every_shape(shape):
    torch.manual_seed(0)
    input = torch.randn(shape)
    target_shape = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    target, std = torch.randint(0, 4, target_shape), torch.rand(target_shape)
    actual = UncertaintyAwareCrossEntropyLoss(3.0, reduction="none")(input, target, std)
    expected = (1 + std) ** 3 * nn.functional.cross_entropy(input, target, reduction="none")
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("loss_class", UNCERTAINTY_LOSSES)
@pytest.mark.parametrize("std_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_weight_is_computed_in_float32_at_least(dtype, std_dtype, loss_class):
    batch = Batch(dtype)
    std = batch.std.to(std_dtype)
    loss = loss_class(ignore_index=IGNORED, reduction="sum")
    actual = loss(*batch.arguments, std)
    assert actual.dtype == dtype
    if loss_class is UncertaintyAwareCrossEntropyLoss:
        pixel_weight = u_ce_weight(std, 10)
    else:
        pixel_weight = (1 + component_means(std, batch.target, None)) ** 2
    expected = expected_loss(batch, pixel_weight, None, "sum")
    rounding = max(torch.finfo(dtype).eps, 3e-6)
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        precise = loss(*batch.arguments, std)
    assert precise.dtype == torch.float32
    torch.testing.assert_close(precise.double(), expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("loss_class", UNCERTAINTY_LOSSES)
def test_uncertainty_is_a_constant_for_the_gradient(batch, loss_class):
    std = batch.std.clone().requires_grad_()
    loss = loss_class(ignore_index=IGNORED)
    loss(*batch.arguments, std).backward()
    assert std.grad is None
    assert batch.input.grad is not None
    loss.observe(std)
    loss(*batch.arguments).backward()
    assert std.grad is None


@pytest.mark.parametrize("loss_class", UNCERTAINTY_LOSSES)
@pytest.mark.parametrize("hidden", [torch.nan, torch.inf, -3.0])
def test_what_ignored_pixels_hold_does_no_harm(batch, hidden, loss_class):
    loss = loss_class(ignore_index=IGNORED)
    expected = loss(*batch.arguments, batch.std)
    (expected_gradient,) = torch.autograd.grad(expected, batch.input)
    std = batch.std.masked_fill(~batch.valid, hidden)
    actual = loss(*batch.arguments, std)
    (gradient,) = torch.autograd.grad(actual, batch.input)
    assert torch.equal(actual, expected)
    assert torch.equal(gradient, expected_gradient)
    assert gradient.movedim(1, -1)[~batch.valid].eq(0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_uncertainty_is_never_silent(batch, value):
    std = batch.std.clone()
    std[tuple(batch.valid.nonzero()[0])] = value
    result = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)(*batch.arguments, std)
    torch.testing.assert_close(
        result.detach(), torch.tensor(value, dtype=torch.float64), equal_nan=True
    )


def test_statistics_and_accumulator_stand_for_their_std(batch):
    torch.manual_seed(0)
    accumulator = PredictiveAccumulator()
    for _ in range(3):
        accumulator.update(torch.randn(3, 6, 5, 7, dtype=torch.float64))
    statistics = accumulator.compute()
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)
    expected = loss(*batch.arguments, statistics.std)
    for uncertainty in (statistics, accumulator):
        assert torch.equal(loss(*batch.arguments, uncertainty), expected)
        loss.observe(uncertainty)
        assert torch.equal(loss(*batch.arguments), expected)
    assert torch.equal(loss(*batch.arguments, statistics_of(statistics.std)), expected)


def test_an_observed_accumulator_may_go_on(batch):
    torch.manual_seed(0)
    samples = torch.randn(4, 3, 6, 5, 7, dtype=torch.float64)
    accumulator = PredictiveAccumulator()
    for sample in samples[:3]:
        accumulator.update(sample)
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)
    expected = loss(*batch.arguments, accumulator)
    loss.observe(accumulator)
    accumulator.update(samples[3])
    assert torch.equal(loss(*batch.arguments), expected)


# ---------------------------------------------------------------------------- IU


def component_means(values: Tensor, labels: Tensor, connectivity: int | None) -> Tensor:
    """By SciPy, class by class; 0 where ignored."""
    means = np.zeros(values.shape)
    axes = values.dim() - 1
    full = connectivity in (None, 8, 26)
    structure = ndimage.generate_binary_structure(axes, axes if full else 1)
    for mean, value, label in zip(means, values.double().numpy(), labels.numpy(), strict=True):
        for c in set(label.flatten().tolist()) - {IGNORED}:
            ids, count = ndimage.label(label == c, structure)
            each = [0.0, *ndimage.mean(value, ids, range(1, count + 1))]
            mean += np.array(each)[ids]
    return torch.from_numpy(means)


def entropy_statistics(entropy: Tensor, prediction: Tensor) -> PredictiveStatistics:
    nan = torch.full_like(entropy, torch.nan)
    return PredictiveStatistics(prediction, nan, nan, entropy, nan, nan)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("connectivity", [None, 4, 8])
@pytest.mark.parametrize("components", ["target", "prediction"])
@pytest.mark.parametrize(("exponent", "weighted"), [(2, False), (0.0, True), (0.5, True)])
def test_iu_agrees_with_the_formula(batch, exponent, weighted, components, connectivity, reduction):
    batch.target = batch.target.clamp(max=2).where(batch.valid, IGNORED)  # larger components
    prediction = batch.target.roll(1, 0).where(batch.valid.roll(1, 0), 4)
    weight = batch.weight if weighted else None
    loss = InstanceUncertaintyCrossEntropyLoss(
        exponent,
        weight,
        components=components,
        connectivity=connectivity,
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=0.1,
    )
    labels = batch.target if components == "target" else prediction
    mean = component_means(batch.std, labels, connectivity)
    expected = expected_loss(batch, (1 + mean) ** exponent, weight, reduction, 0.1)
    given = [entropy_statistics(batch.std, prediction)], {"instance_uncertainty": mean}
    for positional, named in ((given[0], {}), ([], given[1])):
        actual = loss(*batch.arguments, *positional, **named)
        torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-11, atol=1e-11)
        if reduction != "none":
            gradients = [
                torch.autograd.grad(v, batch.input, retain_graph=True)[0]
                for v in (actual, expected)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_iu_defaults_are_those_of_the_paper():
    loss = InstanceUncertaintyCrossEntropyLoss()
    defaults = (loss.exponent, loss.components, loss.connectivity, loss.reduction)
    assert defaults == (2.0, "target", None, "mean_all")


def test_three_pixels_by_hand():
    # p = 1/2 everywhere; the first two pixels are one instance of mean entropy 0.2.
    target = torch.tensor([[[1, 1, 0]]])
    entropy = torch.tensor([[[0.1, 0.3, 0.5]]])
    value = InstanceUncertaintyCrossEntropyLoss()(torch.zeros(1, 2, 1, 3), target, entropy)
    assert value.item() == pytest.approx(math.log(2) * (2 * 1.2**2 + 1.5**2) / 3, rel=1e-6)


def test_every_form_of_the_uncertainty_is_the_same(batch):
    torch.manual_seed(0)
    accumulator = PredictiveAccumulator()
    for _ in range(3):
        accumulator.update(torch.randn(3, 6, 5, 7, dtype=torch.float64))
    statistics = accumulator.compute()
    for components in ("target", "prediction"):
        loss = InstanceUncertaintyCrossEntropyLoss(components=components, ignore_index=IGNORED)
        expected = loss(*batch.arguments, statistics)
        prediction = statistics.prediction if components == "prediction" else None
        for given in ((accumulator, None), (statistics.entropy, prediction)):
            torch.testing.assert_close(loss(*batch.arguments, *given), expected, rtol=1e-12, atol=0)
            loss.observe(*given)
            torch.testing.assert_close(loss(*batch.arguments), expected, rtol=1e-12, atol=0)
        labels = statistics.prediction if prediction is not None else batch.target
        mask = component_means(statistics.entropy, labels, None)
        loss.observe(instance_uncertainty=mask)
        torch.testing.assert_close(loss(*batch.arguments), expected, rtol=1e-12, atol=0)
    # The caller's prediction goes before that of the statistics.
    other = loss(*batch.arguments, statistics, batch.target.clamp(max=5))
    assert not torch.equal(other, expected)


def test_iu_of_volumes_and_of_other_shapes():
    torch.manual_seed(0)
    input, entropy = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5)
    target = torch.randint(0, 2, (2, 3, 4, 5))
    for connectivity in (6, 26):
        loss = InstanceUncertaintyCrossEntropyLoss(connectivity=connectivity, reduction="none")
        mean = component_means(entropy, target, connectivity)
        each = nn.functional.cross_entropy(input, target, reduction="none")
        torch.testing.assert_close(
            loss(input, target, entropy.double()), (1 + mean) ** 2 * each, rtol=1e-6, atol=0
        )
    input, target, mask = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.rand(6)
    value = InstanceUncertaintyCrossEntropyLoss(reduction="none")(
        input, target, instance_uncertainty=mask
    )
    expected = (1 + mask) ** 2 * nn.functional.cross_entropy(input, target, reduction="none")
    torch.testing.assert_close(value, expected)


def test_a_non_finite_entropy_spoils_its_component_and_no_other(batch):
    loss = InstanceUncertaintyCrossEntropyLoss(ignore_index=IGNORED, reduction="none")
    entropy = batch.std.masked_fill(~batch.valid, torch.nan)
    expected = loss(*batch.arguments, batch.std)
    assert torch.equal(loss(*batch.arguments, entropy), expected)
    at = tuple(batch.valid.nonzero()[0])
    for value in (torch.nan, torch.inf):
        spoilt = entropy.clone()
        spoilt[at] = value
        found = loss(*batch.arguments, spoilt)
        component = torch.zeros_like(entropy)
        component[at] = 1
        component = component_means(component, batch.target, None) > 0
        assert torch.equal(found.isnan(), component)
        assert torch.equal(found[~component], expected[~component])


# ---------------------------------------------------------------------------- observe


@pytest.fixture(params=UNCERTAINTY_LOSSES)
def loss(request) -> nn.Module:
    return request.param(ignore_index=IGNORED)


@pytest.fixture
def plain(batch) -> Tensor:
    return CrossEntropyLoss(ignore_index=IGNORED, reduction="mean_all")(*batch.arguments)


def test_an_observation_serves_one_training_call(batch, loss):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(batch.std)
    assert torch.equal(loss(*batch.arguments), expected)
    with pytest.raises(ValueError, match=r"uncertainty: expected one in training mode.*observe"):
        loss(*batch.arguments)


def test_the_latest_observation_counts(batch, loss):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(torch.zeros_like(batch.std))
    loss.observe(batch.std)
    assert torch.equal(loss(*batch.arguments), expected)


@pytest.mark.parametrize("loss_class", UNCERTAINTY_LOSSES)
def test_missing_plain_falls_back_to_cross_entropy(batch, plain, loss_class):
    loss = loss_class(ignore_index=IGNORED, missing="plain")
    assert torch.equal(loss(*batch.arguments), plain)
    loss.observe(batch.std)
    assert not torch.equal(loss(*batch.arguments), plain)
    assert torch.equal(loss(*batch.arguments), plain)


def test_an_argument_goes_before_an_observation_and_uses_it_up(batch, loss):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(torch.zeros_like(batch.std))
    assert torch.equal(loss(*batch.arguments, batch.std), expected)
    with pytest.raises(ValueError, match="uncertainty: expected one in training mode"):
        loss(*batch.arguments)


def test_eval_is_plain_and_keeps_the_observation(batch, loss, plain):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(batch.std)
    loss.eval()
    assert torch.equal(loss(*batch.arguments), plain)
    assert torch.equal(loss(*batch.arguments, batch.std), expected)
    loss.train()
    assert torch.equal(loss(*batch.arguments), expected)


# ---------------------------------------------------------------------------- errors


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


# ---------------------------------------------------------------------------- as modules


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(batch, loss_class, copier):
    loss = loss_class(weight=batch.weight, ignore_index=IGNORED, label_smoothing=0.1)
    duplicate = copier(loss)
    assert torch.equal(duplicate(*batch.arguments, batch.std), loss(*batch.arguments, batch.std))
    assert repr(duplicate) == repr(loss)
    assert duplicate.weight.data_ptr() != loss.weight.data_ptr()


@pytest.mark.parametrize("loss_class", LOSSES)
def test_weights_are_buffers(loss_class):
    weight = torch.rand(6)
    loss = loss_class(weight=weight)
    assert list(loss.state_dict()) == ["weight"]
    assert not list(loss.parameters())
    assert loss.to(torch.float64).weight.dtype == torch.float64
    assert loss.to("meta").weight.is_meta
    other = loss_class(weight=torch.ones(6))
    other.load_state_dict({"weight": weight})
    assert torch.equal(other.weight, weight)
    assert not loss_class().state_dict()


def test_an_observation_is_no_state(loss, batch):
    loss.observe(batch.std)
    assert not loss.state_dict()


def test_repr_tells_the_configuration():
    assert repr(CrossEntropyLoss(torch.ones(6), ignore_index=255)) == (
        "CrossEntropyLoss(num_classes=6, ignore_index=255, reduction='mean', label_smoothing=0.0)"
    )
    assert repr(UncertaintyAwareCrossEntropyLoss(2, missing="plain")) == (
        "UncertaintyAwareCrossEntropyLoss(alpha=2, ignore_index=-100, reduction='mean_all', "
        "label_smoothing=0.0, missing='plain')"
    )
    assert repr(InstanceUncertaintyCrossEntropyLoss(connectivity=4)) == (
        "InstanceUncertaintyCrossEntropyLoss(exponent=2, components='target', connectivity=4, "
        "ignore_index=-100, reduction='mean_all', label_smoothing=0.0, missing='error')"
    )


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3)
        )
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))


# The reference finds components in a loop over values, which no graph holds.
@pytest.mark.parametrize(
    ("_backend", "loss_class"),
    [
        ("auto", UncertaintyAwareCrossEntropyLoss),
        ("auto", InstanceUncertaintyCrossEntropyLoss),
        ("reference", UncertaintyAwareCrossEntropyLoss),
    ],
    indirect=["_backend"],
)
def test_compiles_with_the_model_without_a_graph_break(batch, loss_class):
    torch.compiler.reset()  # graphs of the same code for other losses count towards its limit
    torch.manual_seed(0)
    model = Segmenter().eval()
    loss = loss_class(weight=batch.weight.float(), ignore_index=IGNORED)
    images = torch.randn(3, 3, 5, 7)

    def step(images: Tensor, target: Tensor, uncertainty: object) -> Tensor:
        return loss(model(images), target, uncertainty)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    statistics = PredictiveStatistics(batch.target, *[batch.std] * 5)
    for uncertainty in (batch.std, batch.std.float(), statistics):
        values, gradients = [], []
        for run in (step, compiled):
            model.zero_grad()
            values.append(run(images, batch.target, uncertainty))
            values[-1].backward()
            gradients.append(model.head.weight.grad)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("_backend", "loss_class"),
    [
        ("auto", UncertaintyAwareCrossEntropyLoss),
        ("auto", InstanceUncertaintyCrossEntropyLoss),
        ("reference", UncertaintyAwareCrossEntropyLoss),
    ],
    indirect=["_backend"],
)
def test_compiles_with_observation(batch, loss_class):
    loss = loss_class(ignore_index=IGNORED)
    expected = loss(*batch.arguments, batch.std)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        loss.observe(batch.std)
        torch.testing.assert_close(compiled(*batch.arguments), expected)
        assert loss._observed is None


def test_a_step_of_algorithm_1():
    torch.manual_seed(0)
    model = Segmenter()
    twin = copy.deepcopy(model)
    images, target = torch.randn(2, 3, 6, 8), torch.randint(0, 6, (2, 6, 8))
    target[0, :2] = IGNORED
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)

    torch.manual_seed(1)
    value = loss(model(images), target, sample_statistics(model, images, 10))
    value.backward()

    # The same in torch alone: ten passes in training mode without a gradient, whose only trace
    # are running statistics, and one with it. The argument `model(images)` is evaluated first.
    torch.manual_seed(1)
    logits = twin(images)
    with torch.no_grad():
        p = torch.stack([twin(images).double().softmax(1) for _ in range(10)])
    predicted = p.mean(0).argmax(1, keepdim=True)
    sigma = p.std(0).gather(1, predicted).squeeze(1)
    each = nn.functional.cross_entropy(
        logits.double(), target, ignore_index=IGNORED, reduction="none"
    )
    expected = ((1 + sigma) ** 10 * each).sum() / each.numel()
    expected.backward()

    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert model.layers[1].num_batches_tracked == 1


def test_a_step_of_the_ensemble_approach():
    torch.manual_seed(0)
    members = [Segmenter() for _ in range(3)]
    images, target = torch.randn(2, 3, 6, 8), torch.randint(0, 3, (2, 6, 8))
    target[0, :2] = IGNORED
    logits = members[0](images)
    with torch.no_grad():
        p = sum(copy.deepcopy(m).eval()(images).double().softmax(1) for m in members) / 3
    mean = component_means(-(p * p.log()).sum(1), target, None)
    each = nn.functional.cross_entropy(
        logits.double(), target, ignore_index=IGNORED, reduction="none"
    )
    expected = ((1 + mean) ** 2 * each).sum() / each.numel()
    value = InstanceUncertaintyCrossEntropyLoss(ignore_index=IGNORED)(
        logits, target, ensemble_statistics(members, images)
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    gradients = [
        torch.autograd.grad(v, [*members[0].parameters()], retain_graph=True)
        for v in (value, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("_backend", ["auto"], indirect=True)
def test_the_plain_pytorch_example_learns(capsys):
    path = Path(__file__).parents[2] / "examples" / "plain_pytorch.py"
    losses = runpy.run_path(str(path))["train"](steps=20)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert "step" in capsys.readouterr().out
