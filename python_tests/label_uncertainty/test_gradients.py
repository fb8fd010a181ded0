"""What flows back: gradcheck, graphs kept and rebuilt, tracing, export, torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import segunc_ops
from python_tests.comparison import assert_same_bits
from python_tests.label_uncertainty.cases import (
    LEAVES,
    Batch,
    batch,
    gradients_of,
    loss_of,
)
from python_tests.support import LOGITS_DTYPES, REDUCTIONS


def of_leaves(b: Batch, **options: object):
    """The loss as a function of the leaves."""
    return lambda mean, log_variance, u: loss_of(
        b._replace(mean=mean, log_variance=log_variance, u=u), **options
    )


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    b = batch(torch.float64, (2, 3), spread=1.0)
    options = {"reduction": reduction, "detach_weight": False}
    loss = of_leaves(b, **options)
    assert torch.autograd.gradcheck(loss, b.leaves())
    # Weights that broadcast, and numbers that are views of leaves.
    assert torch.autograd.gradcheck(
        lambda mean, log_variance, u: loss(mean.mT.contiguous().mT * 2, log_variance + 1, u),
        (b.mean, b.log_variance, b.u[:1]),
    )


@pytest.mark.usefixtures("each_backend")
def test_a_detached_weight_is_a_constant():
    """Its gradient is that of the formula with the weight of the same variance put in."""
    b = batch(torch.float64, spread=1.5)
    variance = b.log_variance.detach().squeeze(1).exp()
    kept = torch.sigmoid((0.8 - variance) / 0.2)
    kept = torch.where(b.bootstrap.view(-1, 1, 1), kept, 1)
    sign, valid = 2.0 * b.target - 1, b.target < 2
    mean, log_variance = (leaf.squeeze(1) for leaf in (b.mean, b.log_variance))
    expected = mean * sign / (1 + torch.pi / 8 * log_variance.exp()).sqrt()
    softplus = torch.nn.functional.softplus
    each = softplus(-expected) + kept * softplus(-sign * mean) + (1 - kept) * softplus(sign * mean)
    wanted = torch.where(valid, each * b.u, 0).sum() / valid.sum()
    found = loss_of(b, threshold=0.8)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss, b.leaves()) for loss in (found, wanted)]
    for a, w in zip(*gradients, strict=True):
        torch.testing.assert_close(a, w)
    # Nothing is learned of the variance but by the expected probability.
    alone = loss_of(b, uncertainty_weight=0.0)
    assert gradients_of(alone, b)[1] is None


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_which_gradients_exist(reduction):
    for dtype in LOGITS_DTYPES:
        for number in range(8):
            wants = [bool(number & bit) for bit in (1, 2, 4)]
            b = batch(dtype)
            for leaf, wanted in zip(b.leaves(), wants, strict=True):
                leaf.requires_grad_(wanted)
            loss = loss_of(b, reduction=reduction)
            assert loss.requires_grad == any(wants)
            if loss.requires_grad:
                loss.backward(torch.ones_like(loss))
            assert [leaf.grad is not None for leaf in b.leaves()] == wants
            assert loss_of(b, weighted=False).requires_grad == any(wants[:2])


@pytest.mark.usefixtures("each_backend")
def test_no_grad_makes_no_graph():
    b = batch()
    with torch.no_grad():
        assert not loss_of(b).requires_grad
    with torch.inference_mode():
        assert not loss_of(batch()).requires_grad


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kept_graph_gives_the_same_gradient_again(reduction, dtype):
    """The gradient made in the forward pass is scaled in place only when nobody needs it again."""
    b = batch(dtype)
    loss = loss_of(b, reduction=reduction)
    upstream = torch.full_like(loss, 3.0)
    first = torch.autograd.grad(loss, b.leaves(), upstream, retain_graph=True)
    second = torch.autograd.grad(loss, b.leaves(), upstream, retain_graph=True)
    last = torch.autograd.grad(loss, b.leaves(), upstream)
    for gradients in (second, last):
        for name, a, w in zip(LEAVES, gradients, first, strict=True):
            assert_same_bits(a, w, name=name)


def test_the_reference_has_second_derivatives():
    b = batch(torch.float64, (2, 2), spread=1.0)
    with segunc_ops.backend("reference"):
        assert torch.autograd.gradgradcheck(of_leaves(b, detach_weight=False), b.leaves())


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpointing(reduction, reentrant):
    for dtype in (torch.float32, torch.float16):
        b = batch(dtype)

        def loss(mean: Tensor, log_variance: Tensor, u: Tensor, b: Batch = b) -> Tensor:
            return of_leaves(b, reduction=reduction)(mean * 2, log_variance, u).sum()

        plain = torch.autograd.grad(2.5 * loss(*b.leaves()), b.leaves())
        (2.5 * checkpoint(loss, *b.leaves(), use_reentrant=reentrant)).backward()
        for name, leaf, wanted in zip(LEAVES, b.leaves(), plain, strict=True):
            assert_same_bits(leaf.grad, wanted, name=name)
