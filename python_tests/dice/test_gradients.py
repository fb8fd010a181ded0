"""What flows back: gradcheck, graphs kept and rebuilt, tracing, export, torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import segunc_ops
from python_tests.comparison import assert_close, assert_same_bits
from python_tests.dice.cases import batch, loss_of, truth_of
from python_tests.dice.test_functional import OPTIONS
from python_tests.support import LOGITS_DTYPES

SECOND = "dice_cross_entropy: second derivatives are not implemented"


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    x, target, u = batch(torch.float64, (2, 3))
    weight = torch.rand(3, dtype=torch.float64) + 0.5

    def loss(x: Tensor, u: Tensor) -> Tensor:
        return loss_of(x, target, u, weight=weight, **OPTIONS[options])

    assert torch.autograd.gradcheck(loss, (x, u))
    # Weights that broadcast, and logits that are a view of a leaf.
    assert torch.autograd.gradcheck(lambda x, u: loss(x.mT.contiguous().mT * 2, u), (x, u[:1]))


@pytest.mark.parametrize("wants_u", [True, False, None])
@pytest.mark.parametrize("wants_x", [True, False])
def test_which_gradients_exist(wants_x, wants_u):
    for dtype in LOGITS_DTYPES:
        x, target, u = batch(dtype)
        x.requires_grad_(wants_x)
        weights = None if wants_u is None else u.requires_grad_(wants_u)
        loss = loss_of(x, target, weights)
        assert loss.requires_grad == (wants_x or bool(wants_u))
        if loss.requires_grad:
            loss.backward()
        assert (x.grad is not None) == wants_x
        assert (u.grad is not None) == bool(wants_u)


def test_no_grad_makes_no_graph():
    x, target, u = batch()
    with torch.no_grad():
        assert not loss_of(x, target, u).requires_grad
    with torch.inference_mode():
        assert not loss_of(x.detach(), target).requires_grad


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_a_kept_graph_gives_the_same_gradient_again(dtype):
    x, target, u = batch(dtype)
    loss = loss_of(x, target, u)
    upstream = torch.full_like(loss, 3.0)
    first = torch.autograd.grad(loss, (x, u), upstream, retain_graph=True)
    second = torch.autograd.grad(loss, (x, u), upstream, retain_graph=True)
    last = torch.autograd.grad(loss, (x, u), upstream)
    for gradients in (second, last):
        for name, a, b in zip(("input", "pixel_weight"), gradients, first, strict=True):
            assert_same_bits(a, b, name=name)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, (x, u), upstream)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0, 1e-3])
def test_upstream_gradients(upstream, dtype):
    x, target, u = batch(dtype)
    factor = torch.tensor(upstream, dtype=dtype)
    loss_of(x, target, u).backward(factor)
    _, *wanted = truth_of(x, target, u)
    for name, leaf, want in zip(("input", "pixel_weight"), (x, u), wanted, strict=True):
        assert_close(leaf.grad, want * factor.double(), name=name, bias=False)


def test_two_losses_of_the_same_logits():
    x, target, u = batch()
    (2 * loss_of(x, target) + 3 * loss_of(x, target, u.detach(), batch=True)).backward()
    one, other = truth_of(x, target)[1], truth_of(x, target, u.detach(), batch=True)[1]
    assert_close(x.grad, 2 * one + 3 * other, name="gradient", scale=5.0, bias=False)


def test_second_derivatives_raise_and_name_the_operator():
    for dtype in (torch.float64, torch.float16):
        x, target, u = batch(dtype)
        for leaf in (x, u):
            loss = loss_of(x, target, u)
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            assert gradient.requires_grad
            with pytest.raises(RuntimeError, match=SECOND):
                gradient.sum().backward()
            # Nor may it become a constant where other terms depend on the leaf.
            with pytest.raises(RuntimeError, match=SECOND):
                torch.autograd.grad(gradient.sum() + leaf.square().sum(), leaf, allow_unused=True)


def test_the_reference_has_second_derivatives():
    x, target, u = batch(torch.float64, (2, 2))
    with segunc_ops.backend("reference"):
        assert torch.autograd.gradgradcheck(lambda x, u: loss_of(x, target, u), (x, u))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    for dtype in (torch.float32, torch.float16):
        x, target, u = batch(dtype)

        def loss(x: Tensor, u: Tensor, target: Tensor = target) -> Tensor:
            return loss_of(x * 2, target, u)

        plain = torch.autograd.grad(2.5 * loss(x, u), (x, u))
        (2.5 * checkpoint(loss, x, u, use_reentrant=reentrant)).backward()
        assert_same_bits(x.grad, plain[0], name="input")
        assert_same_bits(u.grad, plain[1], name="pixel_weight")


def test_logits_that_change_before_backward_are_an_error():
    x, target, _ = batch()
    logits = x * 2
    loss = loss_of(logits, target)
    with torch.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_torch_func():
    x, target, u = (t.detach() for t in batch())

    def loss(x: Tensor, u: Tensor) -> Tensor:
        return 2 * loss_of(x, target, u, weight=torch.ones(3))

    found = torch.func.grad(loss, argnums=(0, 1))(x, u)
    leaves = x.clone().requires_grad_(), u.clone().requires_grad_()
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b.double(), name="gradient", bias=False)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.func.grad(lambda x, u: torch.func.grad(loss)(x, u).sum())(x, u)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"absent": "skip", "include_background": False}, marks=pytest.mark.thorough),
    ],
)
def test_compile_traces_one_graph(options):
    for dtype, wants_u in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, True)):
        torch.compiler.reset()
        compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((4, 5), (7, 3)):
            x, target, u = batch(dtype, size)
            u.requires_grad_(wants_u)
            leaves = (x, u) if wants_u else (x,)
            found, wanted = compiled(x, target, u, **options), loss_of(x, target, u, **options)
            assert_same_bits(found, wanted, name="loss")
            upstream = torch.full_like(found, 2.5)
            gradients = torch.autograd.grad(found, leaves, upstream)
            truth = torch.autograd.grad(wanted, leaves, upstream)
            for a, b in zip(gradients, truth, strict=True):
                assert_same_bits(a, b, name=f"gradient {dtype}")


def test_compile_with_inductor():
    torch.compiler.reset()

    def step(x: Tensor, target: Tensor, u: Tensor) -> Tensor:
        return loss_of(2 * x.sin(), target, 1 + u, label_smoothing=0.1, batch=True)

    compiled = torch.compile(step, fullgraph=True)
    x, target, u = batch()
    found = torch.autograd.grad(3 * compiled(x, target, u), (x, u))
    wanted = torch.autograd.grad(3 * step(x, target, u), (x, u))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch.compiler.reset()


def test_exported_programs_evaluate_and_refuse_gradients():
    class Loss(nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return loss_of(x, target)

    x, target, _ = batch()
    program = torch.export.export(Loss(), (x.detach(), target)).module()
    assert_same_bits(program(x.detach(), target), loss_of(x.detach(), target), name="loss")
    with pytest.raises(RuntimeError, match="not differentiable by itself"):
        program(x, target).backward()
