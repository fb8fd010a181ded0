"""cross_entropy against torch's own functions in float64: samples, random calls, extremes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits_on_every_run
from python_tests.cross_entropy import cases
from python_tests.cross_entropy.cases import EXTREMES, compare
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, REDUCTIONS, TARGET_DTYPES
from segunc_ops import reference


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_random_calls(first):
    """2,000 calls, 250 to a test: every argument, type, layout and shape drawn independently."""
    for seed in range(first, first + 250):
        case = cases.random_case(seed)
        compare(case, cases.run(case))


@pytest.mark.usefixtures("one_thread")
def test_no_less_accurate_than_torch_in_the_same_type():
    """Where torch computes in the logits' type too, its error is the bar."""
    for seed in range(3000, 3300):
        case = cases.random_case(seed)
        compare(case, cases.run(case), peer=cases.expected(case, case.input.dtype))


@pytest.mark.usefixtures("one_thread")
def test_reference_is_torch_in_float64():
    with segunc_ops.backend("reference"):
        for seed in range(5000, 5300):
            case = cases.random_case(seed)
            compare(case, cases.run(case))


@cache
def _operator_info() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return next(op for op in op_db if op.name == "nn.functional.cross_entropy")


def _samples(dtype: torch.dtype) -> Iterator[Any]:
    for sample in _operator_info().sample_inputs("cpu", dtype, requires_grad=True):
        if not sample.args[0].is_floating_point():  # else the target is probabilities
            yield sample


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_samples(dtype):
    """torch's own OpInfo samples with index targets: value and gradient."""
    count = 0
    for sample in _samples(dtype):
        target, options = sample.args[0], dict(sample.kwargs)
        case = cases.Case(
            input=sample.input,
            target=target,
            weight=options.pop("weight", None),
            pixel_weight=None,
            ignore_index=options.pop("ignore_index", -100),
            reduction=options.pop("reduction", "mean"),
            label_smoothing=options.pop("label_smoothing", 0.0),
            upstream=torch.ones(()),
            name=f"sample {count}: {sample.summary()}",
        )
        assert not options, f"arguments that nothing here compares: {options}"
        if case.reduction == "none":
            case.upstream = torch.ones(target.shape)
        compare(case, cases.run(case))
        count += 1
    assert count >= 10


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype):
    """Every type in every layout, at sizes past one unit of 4096 pixels, and its strides kept."""
    shapes = ((2, 5, 65, 67), (1, 3, 5, 17, 19), (1, 70, 9, 9), (3, 4, 33))
    for shape, target_dtype in zip(shapes, TARGET_DTYPES, strict=True):
        logits = torch.randn(shape, dtype=torch.float64).to(dtype)
        logits = LAYOUTS[layout].make(logits).detach().requires_grad_()
        pixels = (shape[0], *shape[2:])
        target = torch.randint(0, shape[1], pixels)
        target[torch.rand(pixels) < 0.2] = IGNORED
        for reduction in ("mean", "none"):
            case = cases.Case(
                input=logits,
                target=target.to(target_dtype),
                weight=torch.rand(shape[1]) + 0.5,
                pixel_weight=torch.rand(pixels).requires_grad_(),
                ignore_index=IGNORED,
                reduction=reduction,
                label_smoothing=0.1,
                upstream=torch.randn(pixels if reduction == "none" else ()).to(dtype),
                name=f"{layout} {dtype} {target_dtype} {shape} {reduction}",
            )
            outcome = cases.run(case)
            compare(case, outcome)
            assert outcome.grad_input is not None
            assert outcome.grad_input.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_extreme_logits_behave_as_in_torch(dtype, smoothing):
    """NaN, infinite and huge logits among ordinary pixels, in value and gradient; smoothing as well
    without it."""
    rows = torch.tensor([*EXTREMES.values()], dtype=torch.float64).to(dtype)
    # Each extreme pixel beside ordinary ones, in both traversals and past a tile's width.
    logits = torch.randn(len(rows), 4, 40, dtype=torch.float64).to(dtype)
    logits[:, :, 17] = rows
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout].make(logits).detach()
        for number, name in enumerate(EXTREMES):
            one = x[number : number + 1].detach().requires_grad_()
            target = torch.zeros(1, 40, dtype=torch.long)
            loss = sf.cross_entropy(one, target, reduction="none", label_smoothing=smoothing)
            (grad,) = torch.autograd.grad(loss, one, torch.ones_like(loss))
            exact = one.detach().double().requires_grad_()
            truth = F.cross_entropy(exact, target, reduction="none", label_smoothing=smoothing)
            (exact_grad,) = torch.autograd.grad(truth, exact, torch.ones_like(truth))
            finite = one.detach()[one.detach().isfinite()].double().abs()
            scale = 1 + 2 * float(finite.max())
            label = f"{name}, {layout}, {dtype}"
            assert_close(loss, truth.detach(), name=f"{label}: loss", scale=scale, bias=False)
            assert_close(grad, exact_grad, name=f"{label}: gradient", bias=False)


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_all", "none"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_nothing_is_read_at_ignored_pixels(dtype, reduction):
    target = torch.randint(0, 5, (2, 9, 33))
    ignored = torch.rand(target.shape) < 0.3
    target[ignored] = IGNORED
    clean = torch.randn(2, 5, 9, 33, dtype=torch.float64).to(dtype)
    weights = torch.rand(target.shape, dtype=torch.float64).to(dtype)
    for poison in (float("nan"), float("inf"), -float("inf")):
        results = []
        for value in (0.0, poison):
            logits = clean.masked_fill(ignored.unsqueeze(1), value).requires_grad_()
            pixel_weight = weights.masked_fill(ignored, value).requires_grad_()
            for layout in ("contiguous", "channels_last", "transposed"):
                loss = sf.cross_entropy(
                    LAYOUTS[layout].make(logits),
                    target,
                    pixel_weight=pixel_weight,
                    ignore_index=IGNORED,
                    reduction=reduction,
                    label_smoothing=0.1,
                )
                grads = torch.autograd.grad(loss, (logits, pixel_weight), torch.ones_like(loss))
                assert torch.equal(
                    grads[0].movedim(1, -1)[ignored],
                    torch.zeros_like(grads[0]).movedim(1, -1)[ignored],
                )
                assert torch.equal(grads[1][ignored], torch.zeros_like(grads[1][ignored]))
                results.append((loss.detach(), *grads))
        half = len(results) // 2
        for harmless, poisoned in zip(results[:half], results[half:], strict=True):
            for a, b in zip(harmless, poisoned, strict=True):
                assert a.isfinite().all()
                assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_no_valid_pixel(dtype):
    x = torch.randn(2, 3, 4, 5).to(dtype).requires_grad_()
    target = torch.full((2, 4, 5), IGNORED)
    for reduction, value in (("mean", math.nan), ("sum", 0.0), ("mean_all", 0.0)):
        loss = sf.cross_entropy(x, target, ignore_index=IGNORED, reduction=reduction)
        assert torch.equal(loss.isnan(), torch.tensor(math.isnan(value)))
        assert math.isnan(value) or loss == value
        (grad,) = torch.autograd.grad(loss, x)
        assert not grad.any(), "the gradient of ignored pixels is 0, as in torch"


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 3, 4, 0), (0, 3, 2, 2, 2)])
def test_nothing_to_sum(shape):
    x = torch.randn(shape, requires_grad=True)
    target = torch.zeros((shape[0], *shape[2:]), dtype=torch.long)
    for reduction, value in (("mean", math.nan), ("mean_all", math.nan), ("sum", 0.0)):
        loss = sf.cross_entropy(x, target, reduction=reduction)
        loss.backward()
        assert torch.equal(loss.isnan(), torch.tensor(math.isnan(value)))
        assert x.grad is not None
        assert x.grad.shape == x.shape
    assert sf.cross_entropy(x, target, reduction="none").shape == target.shape


def _half_precision_step(size: int, scale: float, reduction: str) -> tuple[Tensor, Tensor]:
    """The scaled float16 gradient of a mean over 16 x `size` x `size` pixels, and the exact one."""
    x = torch.randn(16, 3, size, size).half().requires_grad_()
    target = torch.randint(0, 3, (16, size, size))
    with torch.autocast("cpu", dtype=torch.float16):
        loss = sf.cross_entropy(x, target, reduction=reduction)
    assert loss.dtype == torch.float32
    loss.backward(torch.tensor(scale))
    exact = x.detach().double().requires_grad_()
    F.cross_entropy(exact, target).backward(torch.tensor(scale, dtype=torch.float64))
    assert x.grad is not None
    assert exact.grad is not None
    return x.grad, exact.grad


@pytest.mark.parametrize("reduction", ["mean", "mean_all"])
def test_float16_gradients_survive_grad_scaler(reduction):
    """GradScaler's 2^16 over the normaliser of 16 x 768 x 768 pixels.

    Their quotient, 2^16 / (16 * 768 * 768) = 2^-7.2, is what a gradient is multiplied with. The
    same factor comes from 16 x 48 x 48 pixels under an upstream gradient of 2^8, and dividing by
    the normaliser before the upstream factor arrives would be seen there with a factor of 2^-8 to
    spare; 16 x 192 x 192 under 2^12 is nearer. Both must be the correctly rounded exact gradient.
    """
    for size, scale in ((48, 2.0**8), (192, 2.0**12)):
        grad, exact = _half_precision_step(size, scale, reduction)
        factor = scale / (16 * size * size)
        assert_close(grad, exact, name=f"gradient at {size}", scale=factor)
        lost = (grad == 0) & (exact.abs() > 2.0**-24)
        assert not lost.any(), f"{int(lost.sum())} gradients underflowed"


def test_float16_normaliser_of_a_full_batch():
    """The normaliser itself at full size: class weights of 4096 stand for that many pixels each.

    mean divides by the sum of the targets' weights, so 48 x 48 pixels of weight 4096 are divided by
    16 * 768 * 768 = 9.4 million; a pixel weight of 1 / 4096 takes the weight out of the numerator,
    which leaves exactly the gradients of a pixel in a batch of that size.
    """
    x = torch.randn(1, 3, 48, 48).half().requires_grad_()
    target = torch.randint(0, 3, (1, 48, 48))
    loss = sf.cross_entropy(
        x,
        target,
        torch.full((3,), 4096.0),
        pixel_weight=torch.full((1, 48, 48), 1 / 4096),
    )
    exact = x.detach().double().requires_grad_()
    upstream = 2.0**15  # the largest power of two that a float16 loss can be given
    F.cross_entropy(exact, target, reduction="sum").backward(
        torch.tensor(upstream / (16 * 768 * 768), dtype=torch.float64)
    )
    loss.backward(torch.tensor(upstream, dtype=torch.float16))
    assert x.grad is not None
    assert exact.grad is not None
    assert_close(x.grad, exact.grad, name="gradient", scale=upstream / (16 * 768 * 768))
    assert int((x.grad == 0).sum()) <= int((exact.grad.abs() < 2.0**-24).sum())


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_gradients_accumulate(dtype):
    x = torch.randn(2, 4, 5, 6).to(dtype).requires_grad_()
    u = torch.rand(2, 5, 6).to(dtype).requires_grad_()
    target = torch.randint(0, 4, (2, 5, 6))
    sf.cross_entropy(x, target, pixel_weight=u).backward()
    once = x.grad.clone(), u.grad.clone()
    (3 * sf.cross_entropy(x, target, pixel_weight=u)).backward()
    for leaf, first in zip((x, u), once, strict=True):
        # Three roundings to the leaf's type: of each gradient and of their sum.
        torch.testing.assert_close(leaf.grad, 4 * first, rtol=3 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_results_are_float32(dtype, reduction):
    x = torch.randn(2, 4, 5, 6).to(dtype).requires_grad_()
    target = torch.randint(0, 4, (2, 5, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sf.cross_entropy(x, target, reduction=reduction)
        assert loss.dtype == F.cross_entropy(x, target, reduction=reduction).dtype == torch.float32
    loss.sum().backward()
    assert x.grad.dtype == dtype
    exact = F.cross_entropy(x.detach().double(), target, reduction=reduction)
    # Not rounded to half precision on the way.
    assert_close(loss, exact, name="loss", scale=20.0, bias=False)


def test_autocast_leaves_float64_alone():
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sf.cross_entropy(x, torch.zeros(2, 5, dtype=torch.long)).dtype == torch.float64


def test_reference_module_agrees_with_the_kernels():
    """The specification called by itself, with the arguments that functional hands it."""
    x = torch.randn(2, 5, 7, 9)
    target = torch.randint(0, 5, (2, 7, 9))
    target[0, 0] = IGNORED
    for reduction in REDUCTIONS:
        options = {
            "pixel_weight": torch.rand(2, 7, 9),
            "ignore_index": IGNORED,
            "reduction": reduction,
            "label_smoothing": 0.2,
        }
        weight = torch.rand(5)
        ours = sf.cross_entropy(x, target, weight, **options)
        truth = reference.cross_entropy(x.double(), target, weight.double(), **options)
        scale = 20.0 * (target.numel() if reduction == "sum" else 1)
        assert_close(ours, truth, name=reduction, scale=scale, bias=False)


def test_offsets_beyond_32_bits():
    """Images, classes, rows or pixels further apart than 2^31 elements; few are ever touched."""
    gap = 2**31 + 5
    base = torch.empty(gap + 64, dtype=torch.bfloat16)  # what is not touched takes no memory
    for strides in ((gap, 4, 2, 1), (4, gap, 2, 1), (4, 2, gap, 1), (4, 2, 1, gap)):
        x = base.as_strided((2, 2, 2, 2), strides, 7)
        x.copy_(torch.randn(2, 2, 2, 2))
        target = torch.randint(0, 2, (2, 2, 2))
        case = cases.Case(
            input=x.detach().requires_grad_(),
            target=target,
            weight=None,
            pixel_weight=None,
            ignore_index=-100,
            reduction="none",
            label_smoothing=0.0,
            upstream=torch.ones(2, 2, 2, dtype=torch.bfloat16),
            name=f"strides {strides}",
        )
        compare(case, cases.run(case))


def test_more_than_2_to_the_31_elements():
    """One image of 2^25 logits expanded to 65: 2^31 + 2^25 elements, at 64 MiB of memory."""
    one = torch.randn(1, 64, 512, 1024).bfloat16()
    target = torch.randint(0, 64, (1, 512, 1024), dtype=torch.uint8)
    x = one.expand(65, -1, -1, -1)
    assert x.numel() > 2**31
    loss = sf.cross_entropy(x, target.expand(65, -1, -1), reduction="none")
    first = sf.cross_entropy(one, target, reduction="none")
    for image in (0, 31, 63, 64):
        assert torch.equal(loss[image], first[0])


@pytest.mark.parametrize(
    ("dtype", "layout", "reduction"),
    [
        (torch.float32, "contiguous", "mean"),
        (torch.bfloat16, "channels_last", "sum"),
        (torch.float16, "transposed", "mean_all"),
        (torch.float64, "contiguous", "mean"),
        (torch.float32, "crop", "none"),
    ],
)
def test_same_bits(dtype, layout, reduction):
    """Forward and backward, on every run and for any number of threads."""
    x = LAYOUTS[layout].make(torch.randn(2, 7, 65, 67).to(dtype)).requires_grad_()
    u = torch.rand(2, 65, 67).requires_grad_()
    target = torch.randint(0, 7, (2, 65, 67))
    target[torch.rand(target.shape) < 0.1] = IGNORED
    weight = torch.rand(7) + 0.5

    def step() -> list[Tensor]:
        loss = sf.cross_entropy(
            x,
            target,
            weight,
            pixel_weight=u,
            ignore_index=IGNORED,
            reduction=reduction,
            label_smoothing=0.1,
        )
        upstream = torch.full_like(loss, 0.7)
        return [loss.detach(), *torch.autograd.grad(loss, (x, u), upstream)]

    assert_same_bits_on_every_run(step, name=f"{reduction} {dtype} {layout}")
