"""Losses as modules: copies, state, repr, compilation."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor

from python_tests.components.cases import component_means
from python_tests.losses.cases import (
    LOSSES,
    UNCERTAINTY_LOSSES,
    Batch,
    Segmenter,
    expected_loss,
    u_ce_weight,
)
from python_tests.support import IGNORED
from segunc_ops import (
    CrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    PredictiveStatistics,
    UncertaintyAwareCrossEntropyLoss,
)
from segunc_ops._options import LossArguments, LossOptions

pytestmark = pytest.mark.usefixtures("each_backend")


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


@pytest.mark.parametrize("loss_class", LOSSES)
def test_signatures_name_every_option(loss_class):
    """Constructors take them as keyword arguments of any name; help() and editors show them."""
    parameters = inspect.signature(loss_class).parameters
    defaults = dict(LossOptions._field_defaults)
    assert set(LossArguments.__annotations__) == set(defaults) - {"weight"}
    if loss_class in UNCERTAINTY_LOSSES:
        defaults["reduction"] = "mean_all"
    assert {name: parameters[name].default for name in defaults} == defaults
    assert {name: getattr(loss_class(), name) for name in defaults} == defaults
    with pytest.raises(TypeError, match=f"^{loss_class.__name__}.* unexpected .* 'smoothing'$"):
        loss_class(smoothing=0.1)


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


# The reference finds components in a loop over values, which no graph holds.
@pytest.mark.parametrize(
    ("each_backend", "loss_class"),
    [
        ("auto", UncertaintyAwareCrossEntropyLoss),
        ("auto", InstanceUncertaintyCrossEntropyLoss),
        ("reference", UncertaintyAwareCrossEntropyLoss),
    ],
    indirect=["each_backend"],
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
    ("each_backend", "loss_class"),
    [
        ("auto", UncertaintyAwareCrossEntropyLoss),
        ("auto", InstanceUncertaintyCrossEntropyLoss),
        ("reference", UncertaintyAwareCrossEntropyLoss),
    ],
    indirect=["each_backend"],
)
def test_compiles_with_observation(batch, loss_class):
    loss = loss_class(ignore_index=IGNORED)
    expected = loss(*batch.arguments, batch.std)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        loss.observe(batch.std)
        torch.testing.assert_close(compiled(*batch.arguments), expected)
        assert loss._observed is None
