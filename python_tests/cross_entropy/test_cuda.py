"""On a GPU: the same calls against float64 on the CPU, and what only a GPU has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import (
    accumulate_dtype,
    assert_close,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.cross_entropy import cases
from python_tests.cross_entropy.cases import EXTREMES, compare
from python_tests.gpu import assert_graph_replays, on_cpu, peak_memory, synchronisation_raises
from python_tests.interpolation import TILED
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, TARGET_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_random_calls(first):
    for seed in range(first, first + 250):
        case = cases.random_case(seed)
        compare(case, on_cpu(cases.run(case.to("cuda"))))


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_random_upsampled_calls(first):
    for seed in range(first, first + 100):
        case = cases.random_upsampled_case(seed)
        compare(case, on_cpu(cases.run(case.to("cuda"))))


@pytest.mark.parametrize("target_dtype", TARGET_DTYPES)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype, target_dtype):
    for shape in ((2, 19, 65, 67), (1, 150, 33, 35)):
        pixels = (shape[0], *shape[2:])
        target = torch.randint(0, shape[1], pixels)
        target[torch.rand(pixels) < 0.2] = IGNORED
        for reduction in ("mean", "none"):
            case = cases.Case(
                input=LAYOUTS[layout].make(torch.randn(shape).to(dtype)).requires_grad_(),
                target=target.to(target_dtype),
                weight=torch.rand(shape[1]) + 0.5,
                pixel_weight=torch.rand(pixels).requires_grad_(),
                ignore_index=IGNORED,
                reduction=reduction,
                label_smoothing=0.1,
                upstream=torch.randn(pixels if reduction == "none" else ()).to(dtype),
                name=f"{layout} {dtype} {target_dtype} {shape} {reduction}",
            )
            compare(case, on_cpu(cases.run(case.to("cuda"))))


def _upsampled_step(
    x: Tensor, target: Tensor, u: Tensor, reduction: str, align_corners: bool = False
) -> tuple[Tensor, ...]:
    loss = sf.cross_entropy(
        x,
        target,
        pixel_weight=u,
        ignore_index=IGNORED,
        reduction=reduction,  # type: ignore[arg-type]
        label_smoothing=0.1,
        upsample="bilinear" if x.dim() == 4 else "trilinear",
        align_corners=align_corners,
    )
    return loss, *torch.autograd.grad(loss, (x, u), torch.full_like(loss, 0.75))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_upsampled_cross_entropy(layout, dtype, align_corners):
    """As on the CPU, in the type that both compute in."""
    compute = accumulate_dtype(dtype)
    for number, (shape, size) in enumerate(TILED):
        reduction = ("none", "mean")[(number + align_corners) % 2]
        pixels = (shape[0], *size)
        target = torch.randint(0, shape[1], pixels)
        target[torch.rand(pixels) < 0.2] = IGNORED
        target = target.to(TARGET_DTYPES[number % len(TARGET_DTYPES)])
        x = LAYOUTS[layout].make(torch.randn(shape).to(dtype))
        u = torch.rand(pixels).to(compute)
        wanted = _upsampled_step(
            x.to(compute, copy=True).requires_grad_(),
            target,
            u.clone().requires_grad_(),
            reduction,
            align_corners,
        )
        found = _upsampled_step(
            LAYOUTS[layout].make(x.cuda()).requires_grad_(),
            target.cuda(),
            u.cuda().requires_grad_(),
            reduction,
            align_corners,
        )
        surprise = 1 + 2 * float(x.double().abs().max())
        divisor = 1.0 if reduction == "none" else float((target != IGNORED).sum())
        # A logit's gradient is a sum over this many pixels.
        summed = max(1.0, target.numel() / (x.numel() / shape[1]))
        scales = (surprise, summed / divisor, surprise / divisor)
        for name, got, want, scale in zip(
            ("loss", "gradient", "gradient of u"), found, wanted, scales, strict=True
        ):
            assert_close(
                got,
                want.detach().double(),
                name=f"{layout} {dtype} {shape} to {size} {reduction}: {name}",
                scale=scale,
                compute=compute,
                roundings=2,  # of a gradient made before the upstream factor is known
                bias=False,  # of the CPU's result, which is rounded too
            )


@pytest.mark.parametrize(("shape", "size"), TILED[:4])
def test_bad_targets_of_interpolated_logits(shape, size):
    x = torch.randn(shape, device="cuda", requires_grad=True)
    target = torch.randint(0, shape[1], (shape[0], *size), device="cuda")
    target[0, 3, 4] = 151
    u = torch.rand(target.shape, device="cuda", requires_grad=True)
    loss, grad, _ = _upsampled_step(x, target, u, "none")
    nan = loss.isnan()  # waits for the kernel
    assert nan.sum() == 1
    assert nan[0, 3, 4]
    assert grad.isnan().any()
    assert not grad.isnan().all()
    with pytest.raises(IndexError, match="out-of-range class 151"):
        segunc_ops.check()


def test_upsampling_takes_an_eighth_of_the_memory():
    x = torch.randn(2, 150, 128, 128, device="cuda", requires_grad=True)
    target = torch.randint(0, 150, (2, 512, 512), device="cuda")

    def fused() -> None:
        torch.autograd.grad(sf.cross_entropy(x, target, upsample="bilinear"), x)

    def separate() -> None:
        z = F.interpolate(x, target.shape[1:], mode="bilinear")
        torch.autograd.grad(F.cross_entropy(z, target), x)

    assert 8 * peak_memory(fused) <= peak_memory(separate)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_extreme_logits(dtype):
    rows = torch.tensor([*EXTREMES.values()], dtype=torch.float64).to(dtype)
    target = torch.zeros(len(rows), dtype=torch.long)
    x = rows.cuda().requires_grad_()
    loss = sf.cross_entropy(x, target.cuda(), reduction="none")
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    exact = rows.to(torch.float64, copy=True).requires_grad_()
    truth = F.cross_entropy(exact, target, reduction="none")
    (exact_grad,) = torch.autograd.grad(truth, exact, torch.ones_like(truth))
    for number, name in enumerate(EXTREMES):
        finite = rows[number][rows[number].isfinite()].double().abs()
        scale = 1 + 2 * float(finite.max() if len(finite) else 0)
        label = f"{name}, {dtype}"
        assert_close(loss[number], truth[number].detach(), name=label, scale=scale)
        assert_close(grad[number], exact_grad[number], name=f"{label}: gradient")


@pytest.mark.parametrize("value", [19, -1, 2**40])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_target_out_of_range_is_nan_and_raised_by_the_next_call(reduction, value):
    x = torch.randn(2, 19, 64, 65, device="cuda")
    target = torch.randint(0, 19, (2, 64, 65), device="cuda")
    target[1, 5, 6] = value
    loss = sf.cross_entropy(x, target, reduction=reduction)
    nan = loss.isnan()  # waits for the kernel
    assert nan.sum() == 1
    assert nan[1, 5, 6] if reduction == "none" else nan
    with pytest.raises(IndexError, match=f"target: .* out-of-range class {value};"):
        sf.predictive_statistics(torch.randn(2, 1, 3, 4, device="cuda"))
    # Once, and the device lives on.
    target[1, 5, 6] = 0
    assert sf.cross_entropy(x, target).isfinite()


def test_check_raises_what_is_pending():
    target = torch.full((1, 4), 7, device="cuda")
    sf.cross_entropy(torch.zeros(1, 3, 4, device="cuda"), target)
    with pytest.raises(IndexError, match="out-of-range class 7"):
        segunc_ops.check()
    segunc_ops.check()


def _step(x: Tensor, target: Tensor, u: Tensor, reduction: str) -> tuple[Tensor, ...]:
    loss = sf.cross_entropy(x, target, pixel_weight=u, reduction=reduction)  # type: ignore[arg-type]
    return loss, *torch.autograd.grad(loss, (x, u), torch.full_like(loss, 0.7))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_cuda_graphs(dtype, reduction):
    x = torch.randn(2, 11, 32, 33, device="cuda").to(dtype).requires_grad_()
    u = torch.rand(2, 32, 33, device="cuda").requires_grad_()
    target = torch.randint(0, 11, (2, 32, 33), device="cuda")

    def calls() -> tuple[Tensor, ...]:
        small = x[..., ::2, ::3]
        return (
            *_step(x, target, u, reduction),
            *_upsampled_step(small, target, u, reduction),
        )

    assert_graph_replays(calls, lambda: (x.normal_(), target.random_(0, 11)))


def test_streams():
    """Work is queued on the current stream: a result needs only that stream's synchronisation."""
    x = torch.randn(4, 19, 256, 256, device="cuda", requires_grad=True)
    u = torch.rand(4, 256, 256, device="cuda", requires_grad=True)
    target = torch.randint(0, 19, (4, 256, 256), device="cuda")
    wanted = _step(x, target, u, "mean")
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            found.append(_step(x * 1, target, u, "mean")[0])
    for stream, loss in zip(streams, found, strict=True):
        stream.synchronize()
        assert_same_bits(loss, wanted[0], name="loss")


def test_nothing_synchronises():
    x = torch.randn(2, 19, 64, 64, device="cuda", requires_grad=True)
    u = torch.rand(2, 64, 64, device="cuda", requires_grad=True)
    target = torch.randint(0, 19, (2, 64, 64), device="cuda")
    _step(x, target, u, "mean")
    with synchronisation_raises():
        _step(x, target, u, "mean")
        _upsampled_step(x[..., ::4, ::4], target, u, "mean")


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    x = torch.randn(3, 19, 129, 131, device="cuda").to(dtype).requires_grad_()
    u = torch.rand(3, 129, 131, device="cuda").requires_grad_()
    target = torch.randint(0, 19, (3, 129, 131), device="cuda")

    def calls() -> tuple[Tensor, ...]:
        return (
            *_step(x, target, u, "mean"),
            *_upsampled_step(x[..., ::4, ::5], target, u, "mean"),
        )

    assert_same_bits_on_every_run(calls, name=str(dtype))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float16, torch.float16)],
)
def test_peak_memory(dtype, autocast):
    x = torch.randn(2, 19, 512, 512, device="cuda").to(dtype).requires_grad_()
    target = torch.randint(0, 19, (2, 512, 512), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
            loss = sf.cross_entropy(x, target)
        torch.autograd.grad(1024 * loss, x)

    assert peak_memory(step) <= 1.1 * x.nbytes


def test_more_than_2_to_the_31_elements():
    if torch.cuda.get_device_properties(0).total_memory < 12 * 2**30:
        pytest.skip("needs 12 GiB of GPU memory")
    x = torch.randn(1, 64, 512, 1024, device="cuda").bfloat16()
    target = torch.randint(0, 64, (1, 512, 1024), device="cuda", dtype=torch.uint8)
    many = x.expand(65, -1, -1, -1).contiguous().requires_grad_()
    assert many.numel() > 2**31
    loss = sf.cross_entropy(many, target.expand(65, -1, -1), reduction="sum")
    loss.backward()
    one = x.clone().requires_grad_()
    sf.cross_entropy(one, target, reduction="sum").backward()
    assert many.grad is not None
    for image in (0, 31, 64):
        assert_same_bits(many.grad[image], one.grad[0], name=f"gradient of image {image}")


def test_compile():
    torch.compiler.reset()
    compiled = torch.compile(sf.cross_entropy, fullgraph=True, dynamic=True)
    for size in ((16, 17), (9, 31)):
        x = torch.randn(2, 5, *size, device="cuda", requires_grad=True)
        u = torch.rand(2, *size, device="cuda", requires_grad=True)
        target = torch.randint(0, 5, (2, *size), device="cuda")
        loss = compiled(x, target, pixel_weight=u)
        found = torch.autograd.grad(loss, (x, u), torch.tensor(0.7, device="cuda"))
        for a, b in zip(found, _step(x, target, u, "mean")[1:], strict=True):
            torch.testing.assert_close(a, b)


def test_devices_must_agree():
    x, target = torch.zeros(2, 3, 4, device="cuda"), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="target: expected device cuda:0 like input, got cpu"):
        sf.cross_entropy(x, target)
    with pytest.raises(ValueError, match="weight: expected device cuda:0 like input, got cpu"):
        sf.cross_entropy(x, target.cuda(), torch.ones(3))
