"""What flows back: gradcheck, graphs kept and rebuilt, tracing, export, torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
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
from python_tests.support import IGNORED, LOGITS_DTYPES, REDUCTIONS


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


# ---- what the kernels do in their own way ----


def test_second_derivatives_raise_and_name_the_operator():
    message = "label_uncertainty: second derivatives are not implemented"
    for dtype, reduction in ((torch.float64, "mean"), (torch.float16, "mean"), (None, "none")):
        b = batch(dtype or torch.float32)
        for leaf in b.leaves():
            loss = loss_of(b, reduction=reduction).sum()
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            assert gradient.requires_grad
            with pytest.raises(RuntimeError, match=message):
                gradient.sum().backward()
            # Nor may it become a constant where other terms depend on the leaf.
            with pytest.raises(RuntimeError, match=message):
                torch.autograd.grad(gradient.sum() + leaf.square().sum(), leaf, allow_unused=True)


def test_inputs_are_free_after_the_forward_pass():
    """A scalar loss keeps its gradients, not what it is of; else changes are an error."""
    for reduction, dtype in (("mean", torch.float32), ("none", torch.float32), ("mean", None)):
        b = batch(dtype or torch.float16)
        made = b._replace(mean=b.mean * 2, log_variance=b.log_variance * 2)
        wanted = torch.autograd.grad(
            loss_of(made, reduction=reduction).sum(), b.leaves(), retain_graph=True
        )
        loss = loss_of(made, reduction=reduction).sum()
        with torch.no_grad():
            made.mean.zero_()
        if (reduction, dtype) != ("mean", torch.float32):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            continue
        for name, a, w in zip(LEAVES, torch.autograd.grad(loss, b.leaves()), wanted, strict=True):
            assert_same_bits(a, w, name=name)


def test_torch_func():
    b = batch()
    plain = tuple(leaf.detach() for leaf in b.leaves())
    for reduction in ("mean", "none"):

        def loss(*leaves: Tensor, reduction: str = reduction) -> Tensor:
            return 2 * of_leaves(b, reduction=reduction)(*leaves).sum()

        found = torch.func.grad(loss, argnums=(0, 1, 2))(*plain)
        wanted = torch.autograd.grad(loss(*b.leaves()), b.leaves())
        for a, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, w)
        with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
            torch.func.grad(lambda *x, f=loss: torch.func.grad(f)(*x).sum())(*plain)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_traces_one_graph(reduction):
    """The whole call in one graph with dynamic shapes, traced without a compiler: all types."""
    kinds = ((torch.float32, False), (torch.bfloat16, True), (torch.float16, True))
    for dtype, wants_u in kinds if reduction == "mean" else kinds[1:2]:
        torch.compiler.reset()
        compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((4, 5), (7, 3)):
            b = batch(dtype, size)
            b.u.requires_grad_(wants_u)
            found, wanted = (loss(b, reduction=reduction) for loss in (compiled, loss_of))
            assert_same_bits(found, wanted, name="loss")
            upstream = torch.full_like(found, 2.5)
            leaves = b.leaves(wants_u)
            gradients = torch.autograd.grad(found, leaves, upstream)
            truth = torch.autograd.grad(wanted, leaves, upstream)
            for a, w in zip(gradients, truth, strict=True):
                assert_same_bits(a, w, name=f"gradient {dtype}")


def test_compile_with_inductor():
    torch.compiler.reset()
    loss = segunc_ops.LabelUncertaintyLoss(0.7, ignore_index=IGNORED)

    def step(output: Tensor, target: Tensor, bootstrap: Tensor) -> Tensor:
        mean, log_variance = (2 * output.sin()).chunk(2, 1)
        return 3 * loss(mean, log_variance, target, bootstrap)

    compiled = torch.compile(step, fullgraph=True)
    b = batch()
    output = torch.cat([b.mean, b.log_variance], 1).detach().requires_grad_()
    found, wanted = (
        torch.autograd.grad(f(output, b.target, b.bootstrap), output)[0] for f in (compiled, step)
    )
    torch.testing.assert_close(found, wanted)
    torch.compiler.reset()


def test_exported_programs_evaluate_and_refuse_gradients():
    class Loss(nn.Module):
        def forward(self, mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
            return segunc_ops.LabelUncertaintyLoss(0.7, ignore_index=IGNORED)(
                mean, log_variance, target
            )

    b = batch()
    plain = b.mean.detach(), b.log_variance.detach(), b.target
    program = torch.export.export(Loss(), plain).module()
    assert_same_bits(program(*plain), Loss()(*plain), name="loss")
    with pytest.raises(RuntimeError, match="not differentiable by itself"):
        program(b.mean, b.log_variance, b.target).backward()


def test_raw_operators_check_what_they_get():
    forward = torch.ops.segunc_ops.label_uncertainty_forward
    b = batch()
    inputs = b.mean.detach(), b.log_variance.detach(), b.target
    options = (IGNORED, 1, 1.0, 1.0, 1.0, True, True, True, False)
    for changed, message in (
        (b._replace(mean=torch.zeros(3, 2, 5, 7)), "mean: expected shape"),
        (b._replace(log_variance=b.log_variance[:2]), "log_variance: expected shape"),
        (b._replace(log_variance=b.log_variance.double()), "expected mean's type"),
        (b._replace(target=b.target[:, 1:]), "target: expected shape"),
    ):
        bad = changed.mean.detach(), changed.log_variance.detach(), changed.target
        with pytest.raises(ValueError, match=message):
            forward(*bad, None, None, *options)
    with pytest.raises(ValueError, match=r"bootstrap: expected shape \(3\)"):
        forward(*inputs, None, torch.ones(2).bool(), *options)
    with pytest.raises(ValueError, match="pixel_weight: expected Float"):
        forward(*inputs, b.u.detach().double(), None, *options)
    backward = torch.ops.segunc_ops.label_uncertainty_backward
    one = torch.ones((), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"grad_output: expected shape \(\)"):
        backward(torch.ones(1), *inputs, None, None, one, *options)
    with pytest.raises(ValueError, match="normalizer: expected Double"):
        backward(torch.ones(()), *inputs, None, None, one.float(), *options)
