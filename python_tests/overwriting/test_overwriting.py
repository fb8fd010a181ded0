"""``overwrite_input``: losses whose gradient is written over the logits, across families."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits
from python_tests.memory import peak_bytes
from python_tests.overwriting.cases import CLASSES, LOSSES, leaf, made, outcome
from python_tests.support import LOGITS_DTYPES
from segunc_ops import CrossEntropyLoss, DiceBCELoss, DiceCrossEntropyLoss


class Gaps(torch.autograd.Function):
    """Logits with memory between them that are no view."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        strides = [2 * stride for stride in features.stride()]
        return torch.empty_strided(features.shape, strides).copy_(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_same_numbers(name, layout):
    loss = LOSSES[name]
    for dtype in LOGITS_DTYPES:
        for size in ((6, 7), (131,), (4, 5, 3), ()):
            x = leaf(dtype, layout, size)
            target = loss.targets(x)
            found = outcome(loss, x, target, overwrite_input=True)
            for a, b in zip(found, outcome(loss, x, target), strict=True):
                assert_same_bits(a, b, name=f"{dtype} {size}")


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "per pixel"])
def test_a_step_allocates_next_to_nothing(name, autocast):
    loss = LOSSES[name]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = leaf(dtype, size=(128, 128))
        target = loss.targets(x)

        def step(logits: Tensor, target: Tensor = target) -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                value = loss(logits, target, overwrite_input=True)
            value.backward()

        step(made(x))  # what is allocated once in a process is no part of it
        logits = made(x)
        x.grad = torch.zeros_like(x)  # of the model, not of the loss
        assert peak_bytes(lambda logits=logits: step(logits)) <= 0.05 * x.nbytes, dtype


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("name", LOSSES)
def test_what_uses_the_logits_afterwards_raises(name):
    loss = LOSSES[name]
    x = leaf()
    target = loss.targets(x)
    logits = made(x)
    value = loss(logits, target, overwrite_input=True).sum()
    for use in (
        lambda z: z.argmax(1),
        lambda z: z.softmax(1),
        lambda z: F.interpolate(z, scale_factor=2),
        lambda z: z[0, 1],
        lambda z: z + torch.zeros(2, CLASSES, 6, 7),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            use(logits)
    with pytest.raises(ValueError, match=r"got \(0,\), as overwrite_input leaves logits"):
        loss(logits, target)
    value.backward()  # which still has what it needs
    assert torch.isfinite(x.grad).all()


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "keeps", [torch.relu, torch.sigmoid, torch.tanh, lambda z: torch.softmax(z, 1), torch.exp]
)
def test_logits_that_their_maker_keeps_raise(name, keeps):
    """Of the value that it has kept its own derivative is made."""
    loss = LOSSES[name]
    x = leaf()
    value = loss(keeps(x), loss.targets(x), overwrite_input=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_another_loss_of_the_same_logits_raises(name):
    loss = LOSSES[name]
    x = leaf()
    logits = made(x)
    before = logits.square().mean()
    value = loss(logits, loss.targets(x), overwrite_input=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (before + value).backward()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_others_have_are_an_error(name):
    loss = LOSSES[name]
    x = leaf()
    target = loss.targets(x)
    retained = made(x)
    retained.retain_grad()
    wide = made(leaf(size=(12, 14)))
    for logits, text in (
        (x, "a leaf"),
        (made(x)[:, :, :, :], "a view"),
        (wide[:, :, ::2, ::2], "a view"),
        (made(x).unbind(0)[0].unsqueeze(0), "a view"),
        (retained, "retain their gradient"),
        (Gaps.apply(x), "gaps or overlaps"),
    ):
        labels = target if logits.shape[0] == 2 else target[:1]
        with pytest.raises(ValueError, match=f"overwrite_input: .*{text}"):
            loss(logits, labels, overwrite_input=True)
    with pytest.raises(TypeError, match="overwrite_input: expected a bool, got int"):
        loss(made(x), target, overwrite_input=1)
    if not loss.of_regions:
        with pytest.raises(ValueError, match="overwrite_input: expected False with upsample"):
            loss(made(x), target, overwrite_input=True, upsample="bilinear")


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("name", LOSSES)
def test_logits_stay_where_no_gradient_of_them_is_wanted(name):
    loss = LOSSES[name]
    x = leaf()
    target = loss.targets(x)
    u = torch.rand(2, 6, 7, requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        evaluated = loss(x, target, overwrite_input=True)
    assert_same_bits(evaluated, loss(x, target).detach(), name="loss")
    detached = x.detach()
    loss(detached, target, pixel_weight=u, overwrite_input=True).sum().backward()
    assert_same_bits(detached, before, name="logits")
    gradient = torch.func.grad(lambda z: loss(z, target, overwrite_input=True).sum())(detached)
    assert_same_bits(detached, before, name="logits")
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(x, target).sum(), x)[0])


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_a_kept_graph_gives_the_same_gradient_again(name):
    loss = LOSSES[name]
    for dtype in (torch.float32, torch.float16):
        x = leaf(dtype)
        target = loss.targets(x)
        (wanted,) = torch.autograd.grad(2.5 * loss(made(x), target).sum(), x)
        value = 2.5 * loss(made(x), target, overwrite_input=True).sum()
        for keep in (True, True, False):
            (found,) = torch.autograd.grad(value, x, retain_graph=keep)
            assert_same_bits(found, wanted, name=f"gradient {dtype}")


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_raise(name):
    loss = LOSSES[name]
    x = leaf()
    value = loss(made(x), loss.targets(x), overwrite_input=True).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        gradient.sum().backward()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_checkpointing(name, reentrant):
    """Of what makes the logits, with the loss or without it; of the loss alone it is an error."""
    loss = LOSSES[name]
    x = leaf()
    target = loss.targets(x)
    (wanted,) = torch.autograd.grad(loss(made(x), target).sum(), x)

    def all_of_it(x: Tensor) -> Tensor:
        return loss(made(x), target, overwrite_input=True).sum()

    def the_loss(logits: Tensor) -> Tensor:
        return loss(logits, target, overwrite_input=True).sum()

    checkpoint(all_of_it, x, use_reentrant=reentrant).backward()
    assert_same_bits(x.grad, wanted, name="gradient")
    x.grad = None
    the_loss(checkpoint(made, x, use_reentrant=reentrant)).backward()
    assert_same_bits(x.grad, wanted, name="gradient")
    if reentrant:  # the first call is under no_grad, the second is of a leaf
        with pytest.raises(ValueError, match=r"overwrite_input: .* a leaf"):
            checkpoint(the_loss, made(x), use_reentrant=True).backward()
    else:
        text = "as overwrite_input leaves logits|modified by an inplace operation"
        with pytest.raises((ValueError, RuntimeError), match=text):
            checkpoint(the_loss, made(x), use_reentrant=False).backward()


@pytest.mark.usefixtures("native_kernels")
def test_saved_tensors_may_live_elsewhere():
    for name in ("cross_entropy", "per pixel", "Dice"):
        loss = LOSSES[name]
        x = leaf()
        target = loss.targets(x)
        (wanted,) = torch.autograd.grad(3 * loss(made(x), target).sum(), x)
        with torch.autograd.graph.save_on_cpu():
            value = 3 * loss(made(x), target, overwrite_input=True).sum()
        assert_same_bits(torch.autograd.grad(value, x)[0], wanted, name=name)


def test_a_target_that_is_no_class_leaves_no_logits():
    logits = made(leaf())
    with pytest.raises(IndexError, match="target"):
        sf.cross_entropy(logits, torch.full((2, 6, 7), CLASSES), overwrite_input=True)
    assert logits.shape == (0,)


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_compiled(name):
    """One graph, of which the logits that others read stay what they are."""
    loss = LOSSES[name]

    def step(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = made(x)
        value = loss(logits, target, overwrite_input=True).sum()
        return 2.5 * value, logits.argmax(1)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.float16):
        x = leaf(dtype)
        target = loss.targets(x)
        value, prediction = compiled(x, target)
        wanted = 2.5 * loss(made(x), target).sum()
        assert_same_bits(value, wanted, name="loss")
        assert_same_bits(prediction, x.argmax(1), name="prediction")
        (found,) = torch.autograd.grad(value, x)
        assert_same_bits(found, torch.autograd.grad(wanted, x)[0], name="gradient")


@pytest.mark.usefixtures("native_kernels")
def test_a_compiler_needs_no_second_copy():
    """Where nothing else reads the logits their gradient is made in their memory."""
    target = torch.randint(0, CLASSES, (2, 128, 128))

    def step(x: Tensor, overwrite_input: bool) -> Tensor:
        return sf.cross_entropy(x.sin() * 2, target, overwrite_input=overwrite_input)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    x = leaf(size=(128, 128))
    peaks = {}
    for overwrites in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled(x, overwrites)
        peaks[overwrites] = peak_bytes(lambda overwrites=overwrites: compiled(x, overwrites))
    assert peaks[False] >= 1.9 * x.nbytes
    assert peaks[True] <= 1.1 * x.nbytes
    found, wanted = (torch.autograd.grad(3 * run(x, True), x)[0] for run in (compiled, step))
    torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("native_kernels")
def test_an_optimizer_learns_the_same():
    weights = []
    for overwrites in (False, True):
        torch.manual_seed(0)
        model = nn.Conv2d(3, CLASSES, 3, padding=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loss = CrossEntropyLoss(overwrite_input=overwrites)
        for _ in range(5):
            optimizer.zero_grad()
            images, target = torch.randn(2, 3, 8, 8), torch.randint(0, CLASSES, (2, 8, 8))
            loss(model(images), target).backward()
            optimizer.step()
        weights.append(model.weight.detach())
    assert_same_bits(*weights, name="weights")


def test_losses_take_it():
    x, regions = leaf(), torch.rand(2, CLASSES, 6, 7) < 0.4
    target = torch.randint(0, CLASSES, (2, 6, 7))
    uncertain = segunc_ops.UncertaintyAwareCrossEntropyLoss(overwrite_input=True)
    for loss, arguments in (
        (CrossEntropyLoss(overwrite_input=True), (target,)),
        (DiceCrossEntropyLoss(overwrite_input=True), (target,)),
        (DiceBCELoss(overwrite_input=True), (regions,)),
        (uncertain, (target, torch.rand(2, 6, 7))),
    ):
        assert "overwrite_input=True" in repr(loss)
        logits = made(x)
        loss(logits, *arguments).backward()
        assert logits.shape == (0,)
        assert "overwrite_input" not in repr(type(loss)())
