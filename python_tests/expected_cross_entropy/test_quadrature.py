"""Against integrals over the distribution of the logits, by Gauss-Hermite quadrature."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.expected_cross_entropy.cases import triangle

pytestmark = pytest.mark.usefixtures("one_thread")

NODES = {2: 48, 3: 32}


class Integral(NamedTuple):
    """Of pixels ``(P,)``: the loss and its gradients, and the deviations of one draw's share."""

    loss: Tensor
    loss_deviation: Tensor
    gradient: Tensor  # (P, C + channels of the scale): of the mean, then of the scale
    gradient_deviation: Tensor


def factors(scale: Tensor, classes: int) -> Tensor:
    """A of every pixel, ``(P, C, C)``."""
    if scale.shape[1] == classes:
        return torch.diag_embed(scale)
    full = scale.new_zeros(len(scale), classes, classes)
    position = 0
    for row in range(classes):
        for column in range(row + 1):
            full[:, row, column] = scale[:, position]
            position += 1
    return full


def integral(mean: Tensor, scale: Tensor, target: Tensor) -> Integral:
    """Of means ``(P, C)``, scales ``(P, K)`` and labels ``(P,)``, in float64."""
    classes = mean.shape[1]
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES[classes])
    grid = torch.tensor([*itertools.product(nodes, repeat=classes)])
    mass = torch.tensor([math.prod(w) for w in itertools.product(weights, repeat=classes)])
    mass = mass / mass.sum()
    logits = mean.unsqueeze(1) + torch.einsum("pij,gj->pgi", factors(scale, classes), grid)
    p = logits.softmax(2)
    of_label = p.gather(2, target.view(-1, 1, 1).expand(-1, len(grid), 1)).squeeze(2)
    expected = of_label @ mass
    # d(-log E p_y) = E[p_y (p_c - [c = y]) d z_c] / E p_y
    label = torch.nn.functional.one_hot(target, classes).unsqueeze(1)
    by_logit = of_label.unsqueeze(2) * (p - label)
    if scale.shape[1] == classes:
        by_scale = by_logit * grid
    else:
        rows, columns = torch.tril_indices(classes, classes)
        by_scale = by_logit[:, :, rows] * grid[:, columns]
    terms = torch.cat([by_logit, by_scale], 2)
    gradient = torch.einsum("pgk,g->pk", terms, mass) / expected.unsqueeze(1)

    def deviation(values: Tensor) -> Tensor:
        squares = torch.einsum("pg...,g->p...", values.square(), mass)
        return squares.sqrt()

    # The estimates are a logarithm of a mean and ratios of means: to first order in 1 / S.
    residual = of_label.unsqueeze(2) * gradient.unsqueeze(1)
    return Integral(
        -expected.log(),
        deviation(of_label - expected.unsqueeze(1)) / expected,
        gradient,
        deviation(terms - residual) / expected.unsqueeze(1),
    )


def pixels(classes: int, cholesky: bool, count: int) -> tuple[Tensor, Tensor, Tensor]:
    channels = triangle(classes) if cholesky else classes
    mean = 1.5 * torch.randn(count, classes, dtype=torch.float64)
    scale = 0.8 * torch.randn(count, channels, dtype=torch.float64)
    return mean.requires_grad_(), scale.requires_grad_(), torch.randint(0, classes, (count,))


@pytest.mark.parametrize(("backend", "draws"), [("auto", 8192), ("reference", 512)])
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("cholesky", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_value_and_gradients(classes, cholesky, antithetic, backend, draws):
    mean, scale, target = pixels(classes, cholesky, 24)
    with segunc_ops.backend(backend):
        loss = sf.expected_cross_entropy(
            mean, scale, target, num_draws=draws, antithetic=antithetic, seed=3, reduction="none"
        )
    truth = integral(mean.detach(), scale.detach(), target)
    error = (loss - truth.loss).abs()
    assert (error <= 4 * truth.loss_deviation / math.sqrt(draws) + 1e-7).all()
    gradient = torch.cat(torch.autograd.grad(loss.sum(), (mean, scale)), 1)
    # A pair of antithetic draws may agree instead of differing: twice the variance at most.
    bound = 4 * truth.gradient_deviation / math.sqrt(draws / (2 if antithetic else 1))
    assert ((gradient - truth.gradient).abs() <= bound + 1e-7).all()


def errors(draws: int, antithetic: bool) -> tuple[float, float]:
    """Root mean squares of the errors of the loss and of the mean's gradient."""
    mean = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)
    truth = integral(mean.unsqueeze(0), scale.unsqueeze(0), torch.tensor([0]))
    count = 2048
    leaf = mean.expand(count, 3).clone().requires_grad_()
    loss = sf.expected_cross_entropy(
        leaf,
        scale.expand(count, 3).clone(),
        torch.zeros(count, dtype=torch.long),
        num_draws=draws,
        antithetic=antithetic,
        seed=draws,
        reduction="none",
    )
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    of_loss, of_gradient = (
        float((found.detach() - wanted).square().mean().sqrt())
        for found, wanted in ((loss, truth.loss), (gradient, truth.gradient[:, :3]))
    )
    return of_loss, of_gradient


def test_errors_fall_as_the_root_of_the_number_of_draws():
    draws = (16, 64, 256)
    for antithetic in (False, True):
        found = np.array([errors(number, antithetic) for number in draws])
        slopes = np.diff(np.log(found), axis=0) / math.log(4)
        np.testing.assert_allclose(slopes, -0.5, atol=0.06)


def test_antithetic_draws_have_less_variance():
    """The share that docs/methods.md names."""
    plain, paired = (np.array(errors(256, antithetic)) for antithetic in (False, True))
    ratio = (plain / paired) ** 2
    assert 20 < ratio[0] < 35, ratio
    assert 4 < ratio[1] < 6, ratio
