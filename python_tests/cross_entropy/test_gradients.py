"""What flows back: gradcheck, graphs kept and rebuilt, tracing, export, torch.func."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits
from python_tests.cross_entropy.cases import batch, loss_of
from python_tests.support import IGNORED, LOGITS_DTYPES, REDUCTIONS


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, smoothing):
    x, target, u = batch(torch.float64, (2, 3))
    weight = torch.rand(3, dtype=torch.float64) + 0.5

    def loss(x: Tensor, u: Tensor) -> Tensor:
        return sf.cross_entropy(
            x,
            target,
            weight,
            pixel_weight=u,
            ignore_index=IGNORED,
            reduction=reduction,
            label_smoothing=smoothing,
        )

    assert torch.autograd.gradcheck(loss, (x, u))
    # Weights that broadcast, and logits that are a view of a leaf.
    assert torch.autograd.gradcheck(lambda x, u: loss(x.mT.contiguous().mT * 2, u), (x, u[:1]))


@pytest.mark.parametrize("wants_u", [True, False, None])
@pytest.mark.parametrize("wants_x", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_which_gradients_exist(reduction, wants_x, wants_u):
    for dtype in LOGITS_DTYPES:
        x, target, u = batch(dtype)
        x.requires_grad_(wants_x)
        weights = None if wants_u is None else u.requires_grad_(wants_u)
        loss = loss_of(x, target, weights, reduction=reduction)
        assert loss.requires_grad == (wants_x or bool(wants_u))
        if loss.requires_grad:
            loss.backward(torch.ones_like(loss))
        assert (x.grad is not None) == wants_x
        assert (u.grad is not None) == bool(wants_u)


def test_no_grad_makes_no_graph():
    x, target, u = batch()
    with torch.no_grad():
        assert not loss_of(x, target, u).requires_grad
    with torch.inference_mode():
        assert not loss_of(x.detach(), target).requires_grad


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kept_graph_gives_the_same_gradient_again(reduction, dtype):
    """The gradient made in the forward pass is scaled in place only when nobody needs it again."""
    x, target, u = batch(dtype)
    loss = loss_of(x, target, u, reduction=reduction)
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
    exact = [t.detach().double().requires_grad_() for t in (x, u)]
    truth = F.cross_entropy(exact[0], target, ignore_index=IGNORED, reduction="none") * exact[1]
    (truth.sum() / (target != IGNORED).sum()).backward(factor.double())
    rounded = 2 if dtype == torch.bfloat16 else 1
    for name, leaf, want in (("input", x, exact[0]), ("pixel_weight", u, exact[1])):
        assert_close(leaf.grad, want.grad, name=name, roundings=rounded, bias=False)


def test_two_losses_of_the_same_logits():
    x, target, u = batch()
    (2 * loss_of(x, target) + 3 * loss_of(x, target, u.detach(), reduction="sum")).backward()
    exact = x.detach().double().requires_grad_()
    each = F.cross_entropy(exact, target, ignore_index=IGNORED, reduction="none")
    (2 * each.sum() / (target != IGNORED).sum() + 3 * (each * u.detach()).sum()).backward()
    assert_close(x.grad, exact.grad, name="gradient", scale=10.0, bias=False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_raise_and_name_the_operator(reduction):
    message = r"cross_entropy: second derivatives are not implemented"
    for dtype in (torch.float64, torch.float16):
        x, target, u = batch(dtype)
        for leaf in (x, u):
            loss = loss_of(x, target, u, reduction=reduction).sum()
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            assert gradient.requires_grad
            with pytest.raises(RuntimeError, match=message):
                gradient.sum().backward()
            # Nor may it become a constant where other terms depend on the leaf.
            with pytest.raises(RuntimeError, match=message):
                torch.autograd.grad(gradient.sum() + leaf.square().sum(), leaf, allow_unused=True)
    logits = batch()[0] * 2  # not a leaf
    target = batch()[1]
    (gradient,) = torch.autograd.grad(
        loss_of(logits, target, reduction=reduction).sum(), logits, create_graph=True
    )
    with pytest.raises(RuntimeError, match=message):
        gradient.square().sum().backward()


def test_the_reference_has_second_derivatives():
    x, target, u = batch(torch.float64, (2, 2))
    with segunc_ops.backend("reference"):
        assert torch.autograd.gradgradcheck(lambda x, u: loss_of(x, target, u), (x, u))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpointing(reduction, reentrant):
    for dtype in (torch.float32, torch.float16):
        x, target, u = batch(dtype)

        def loss(
            x: Tensor, u: Tensor, target: Tensor = target, reduction: str = reduction
        ) -> Tensor:
            return loss_of(x * 2, target, u, reduction=reduction).sum()

        plain = torch.autograd.grad(2.5 * loss(x, u), (x, u))
        (2.5 * checkpoint(loss, x, u, use_reentrant=reentrant)).backward()
        assert_same_bits(x.grad, plain[0], name="input")
        assert_same_bits(u.grad, plain[1], name="pixel_weight")


def test_saved_tensors_may_live_elsewhere():
    x, target, u = batch()
    plain = torch.autograd.grad(3 * loss_of(x, target, u), (x, u))
    with torch.autograd.graph.save_on_cpu():
        loss = 3 * loss_of(x, target, u)
    for a, b in zip(torch.autograd.grad(loss, (x, u)), plain, strict=True):
        assert_same_bits(a, b, name="gradient")


def test_logits_are_free_after_the_forward_pass():
    """A scalar loss keeps its gradient, not the logits: nothing sees them change."""
    x, target, _ = batch()
    logits = x * 2
    loss = loss_of(logits, target)
    (wanted,) = torch.autograd.grad(loss_of(x * 2, target), x)
    with torch.no_grad():
        logits.zero_()
    assert_same_bits(torch.autograd.grad(loss, x)[0], wanted, name="gradient")
    for options in ({"reduction": "none"}, {}):
        half = (x.half() if not options else x) * 2
        kept = loss_of(half, target, **options)
        with torch.no_grad():
            half.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.sum().backward()


def test_torch_func():
    x, target, u = (t.detach() for t in batch())
    for options in ({}, {"reduction": "none"}):

        def loss(
            x: Tensor, u: Tensor, options: dict[str, str] = options, target: Tensor = target
        ) -> Tensor:
            return 2 * loss_of(x, target, u, **options).sum()

        found = torch.func.grad(loss, argnums=(0, 1))(x, u)
        leaves = x.clone().requires_grad_(), u.clone().requires_grad_()
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b.double(), name="gradient", bias=False)
        value, pull = torch.func.vjp(loss, x, u)
        assert_close(value, loss(x, u).double(), name="loss", scale=100.0, bias=False)
        assert_close(pull(torch.tensor(1.0))[0], wanted[0].double(), name="vjp", bias=False)
        with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
            torch.func.grad(lambda x, u: torch.func.grad(loss)(x, u).sum())(x, u)


def test_vmap_evaluates_and_refuses_gradients():
    x, target, _ = (t.detach() for t in batch())
    targets = target.masked_fill(target == IGNORED, 0)

    def losses() -> Tensor:
        return torch.func.vmap(lambda x, t: sf.cross_entropy(x, t, reduction="sum"))(
            x.unsqueeze(1), targets.unsqueeze(1)
        )

    with pytest.raises((RuntimeError, NotImplementedError), match=r"vmap|batching rule"):
        torch.func.vmap(torch.func.grad(lambda x: sf.cross_entropy(x, targets[:1])))(x.unsqueeze(1))
    wanted = F.cross_entropy(x, targets, reduction="none").sum((1, 2))
    torch.testing.assert_close(losses(), wanted)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_traces_one_graph(reduction):
    """The whole call in one graph with dynamic shapes, traced without a compiler: all types."""
    for dtype, wants_u in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, True)):
        torch.compiler.reset()
        compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((4, 5), (7, 3)):
            x, target, u = batch(dtype, size)
            u.requires_grad_(wants_u)
            leaves = (x, u) if wants_u else (x,)
            found = compiled(x, target, u, reduction=reduction)
            wanted = loss_of(x, target, u, reduction=reduction)
            assert_same_bits(found, wanted, name="loss")
            upstream = torch.full_like(found, 2.5)
            gradients = torch.autograd.grad(found, leaves, upstream)
            truth = torch.autograd.grad(wanted, leaves, upstream)
            for a, b in zip(gradients, truth, strict=True):
                assert_same_bits(a, b, name=f"gradient {dtype}")


def test_compile_with_inductor():
    """One training step through the default compiler, among operations that it fuses."""
    torch.compiler.reset()

    def step(x: Tensor, target: Tensor, u: Tensor, samples: Tensor) -> Tensor:
        maps = sf.predictive_statistics(samples)
        loss = loss_of(2 * x.sin(), target, u * (1 + maps.std), label_smoothing=0.1)
        return loss + maps.mutual_information.mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for size in ((6, 9), (5, 12)):
        x, target, u = batch(size=size)
        samples = torch.randn(4, *x.shape)
        found = torch.autograd.grad(3 * compiled(x, target, u, samples), (x, u))
        wanted = torch.autograd.grad(3 * step(x, target, u, samples), (x, u))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_compile_of_a_second_derivative_raises():
    x, target, _ = batch()

    def gradient(loss: Callable[..., Tensor]) -> Tensor:
        torch.compiler.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        (gradient,) = torch.autograd.grad(compiled(x, target), x, create_graph=True)
        return gradient

    # Beside some torch before 2.13 what is compiled has no second derivative, whatever it is.
    ours = gradient(loss_of)
    theirs = gradient(lambda x, t: F.cross_entropy(x, t, ignore_index=IGNORED))
    assert ours.requires_grad == theirs.requires_grad
    message = r"double backward|create_graph|second derivatives"
    with pytest.raises(RuntimeError, match=message if ours.requires_grad else "not require grad"):
        ours.sum().backward()


class Head(nn.Module):
    """A model that returns its loss, as exported training graphs do."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.classify = nn.Conv2d(4, 3, 1)
        self.loss = loss

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        logits = self.classify(features)
        return self.loss(logits, target) + 0.1 * logits.square().mean()


@pytest.mark.parametrize("strict", [True, False])
def test_export_never_loses_the_gradient(strict):
    """An exported program has the loss; differentiating it is an error that says what to do. Only
    part of a gradient, that of the other terms, would be worse than none."""
    features, (_, target, _) = torch.randn(2, 4, 4, 5), batch()
    model = Head(loss_of)
    program = torch.export.export(model, (features, target), strict=strict).module()
    assert_close(
        program(features, target).detach(),
        model(features, target).detach().double(),
        name="loss",
        scale=10.0,
    )
    with pytest.raises(
        RuntimeError, match=r"segunc_ops::cross_entropy_forward is not differ.*refer"
    ):
        program(features, target).backward()
    with segunc_ops.backend("reference"):
        program = torch.export.export(model, (features, target), strict=strict).module()
    found = torch.autograd.grad(program(features, target), [*program.parameters()])
    wanted = torch.autograd.grad(model(features, target), [*model.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_bare_operators_are_not_differentiable_in_silence():
    x, target, _ = batch()
    loss, *_ = torch.ops.segunc_ops.cross_entropy_forward(
        x, target, None, None, IGNORED, 1, 0.0, False, False, True, False
    )
    with pytest.raises(RuntimeError, match="segunc_ops::cross_entropy_forward is not different"):
        (loss + x.sum()).backward()
    upstream = torch.ones((), requires_grad=True)
    grad, _ = torch.ops.segunc_ops.cross_entropy_backward(
        upstream, x, target, None, None, torch.ones((), dtype=torch.float64), IGNORED, 1, 0.0,
        False, False, True, False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="segunc_ops::cross_entropy_backward is not different"):
        grad.sum().backward()


def test_deterministic_mode_fills_nothing_that_matters():
    """Deterministic mode fills fresh memory with NaN: whatever a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    x, target, u = batch(size=(65, 67))
    for reduction in REDUCTIONS:
        loss = loss_of(x, target, u, reduction=reduction)
        gradients = torch.autograd.grad(loss.sum(), (x, u))
        assert all(t.isfinite().all() for t in (loss, *gradients))
