"""What flows back: gradcheck, graphs kept and rebuilt, tracing, torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits
from python_tests.expected_cross_entropy.cases import batch
from python_tests.support import IGNORED, LOGITS_DTYPES, REDUCTIONS
from segunc_ops import ExpectedCrossEntropyLoss


def loss_of(mean: Tensor, scale: Tensor, target: Tensor, u: Tensor, **options: object) -> Tensor:
    given = {"seed": 7, "num_draws": 6, "ignore_index": IGNORED, "pixel_weight": u, **options}
    return sf.expected_cross_entropy(mean, scale, target, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("cholesky", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, cholesky, antithetic):
    mean, scale, target, u = batch(size=(2, 2), cholesky=cholesky)
    weight = torch.rand(3, dtype=torch.float64) + 0.5

    def loss(mean: Tensor, scale: Tensor, u: Tensor) -> Tensor:
        options = {"weight": weight, "reduction": reduction, "antithetic": antithetic}
        return loss_of(mean, scale, target, u, **options)

    assert torch.autograd.gradcheck(loss, (mean, scale, u))


def test_gradcheck_of_interpolated_distributions():
    mean, scale, _, _ = batch(size=(2, 2))
    target = torch.randint(0, 3, (2, 3, 5))
    assert torch.autograd.gradcheck(
        lambda *leaves: sf.expected_cross_entropy(*leaves, target, upsample="bilinear", seed=1),
        (mean, scale),
    )


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (0, 0, 0)]
)
def test_which_gradients_exist(wanted, reduction):
    *all_, _ = tensors = batch(torch.float32)
    leaves = (*all_[:2], tensors[3])
    everything = torch.autograd.grad(loss_of(*tensors, reduction=reduction).sum(), leaves)
    for leaf, wants in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(bool(wants))
    loss = loss_of(*tensors, reduction=reduction)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.sum().backward()
    for leaf, wants, whole in zip(leaves, wanted, everything, strict=True):
        assert (leaf.grad is not None) == bool(wants)
        if wants:
            assert_same_bits(leaf.grad, whole, name="gradient")


def test_no_grad_makes_no_graph():
    tensors = batch()
    with torch.no_grad():
        assert not loss_of(*tensors).requires_grad


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kept_graph_gives_the_same_gradient_again(reduction, dtype):
    mean, scale, target, u = batch(dtype)
    loss = loss_of(mean, scale, target, u, reduction=reduction)
    upstream = torch.full_like(loss, 3.0)
    first = torch.autograd.grad(loss, (mean, scale, u), upstream, retain_graph=True)
    last = torch.autograd.grad(loss, (mean, scale, u), upstream)
    for a, b in zip(last, first, strict=True):
        assert_same_bits(a, b, name="gradient")
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, (mean, scale, u), upstream)


def test_small_gradients_of_halves_survive():
    """Normalised, most of them would be 0 in float16 before GradScaler's factor arrives."""
    mean, scale, target, _ = batch(torch.float16, (128, 128), classes=5)
    loss = sf.expected_cross_entropy(mean, scale, target, seed=1, ignore_index=IGNORED)
    (loss * 2.0**14).backward()
    exact = [t.detach().double().requires_grad_() for t in (mean, scale)]
    truth = sf.expected_cross_entropy(*exact, target, seed=1, ignore_index=IGNORED)
    (truth * 2.0**14).backward()
    for leaf, want in zip((mean, scale), exact, strict=True):
        # The loss is float16, and its upstream factor is exact.
        assert_close(leaf.grad, want.grad, name="gradient", bias=False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_raise_and_name_the_operator(reduction):
    mean, scale, target, u = batch()
    for leaf in (mean, scale, u):
        loss = loss_of(mean, scale, target, u, reduction=reduction).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        message = "expected_cross_entropy: second derivatives are not implemented"
        with pytest.raises(RuntimeError, match=message):
            torch.autograd.grad(gradient.sum() + leaf.square().sum(), leaf)
    with segunc_ops.backend("reference"):
        mean, scale, target, u = batch(size=(1, 2))
        assert torch.autograd.gradgradcheck(
            lambda *leaves: loss_of(*leaves, target, u.detach()), (mean, scale)
        )


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpoints_restore_the_seed(reduction, reentrant):
    mean, scale, target, _ = batch(torch.float32)
    loss = ExpectedCrossEntropyLoss(ignore_index=IGNORED, reduction=reduction)
    gradients = []
    for again in (False, True):
        torch.manual_seed(3)
        if again:
            value = checkpoint(loss, mean * 2, scale, target, use_reentrant=reentrant)
        else:
            value = loss(mean * 2, scale, target)
        gradients.append(torch.autograd.grad(value.sum(), (mean, scale)) if not reentrant else ())
        if reentrant:
            mean.grad = scale.grad = None
            value.sum().backward()
            gradients[-1] = (mean.grad, scale.grad)
    for a, b in zip(*gradients, strict=True):
        assert_same_bits(a, b, name="gradient")


def test_torch_func():
    mean, scale, target, u = (t.detach() for t in batch(torch.float32))

    def loss(mean: Tensor, scale: Tensor) -> Tensor:
        return 2 * loss_of(mean, scale, target, u)

    found = torch.func.grad(loss, argnums=(0, 1))(mean, scale)
    leaves = mean.clone().requires_grad_(), scale.clone().requires_grad_()
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b.double(), name="gradient", bias=False)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.func.grad(lambda m, s: torch.func.grad(loss)(m, s).sum())(mean, scale)


@pytest.mark.parametrize(("reduction", "cholesky"), [("mean", False), ("none", True)])
def test_compile_traces_one_graph(reduction, cholesky):
    for dtype in (torch.float32, torch.float16):
        torch.compiler.reset()
        compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((4, 5), (7, 3)):
            mean, scale, target, u = batch(dtype, size, cholesky=cholesky)
            found = compiled(mean, scale, target, u, reduction=reduction)
            wanted = loss_of(mean, scale, target, u, reduction=reduction)
            assert_same_bits(found, wanted, name="loss")
            upstream = torch.full_like(found, 2.5)
            results = (
                torch.autograd.grad(loss, (mean, scale, u), upstream) for loss in (found, wanted)
            )
            for a, b in zip(*results, strict=True):
                assert_same_bits(a, b, name=f"gradient {dtype}")


def test_compile_draws_its_own_seed():
    torch.compiler.reset()
    mean, scale, target, _ = batch(torch.float32)
    loss = ExpectedCrossEntropyLoss(ignore_index=IGNORED)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    first, second = compiled(mean, scale, target), compiled(mean, scale, target)
    assert first != second
    assert first.isfinite()
