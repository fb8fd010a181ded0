"""On a GPU: the same calls against float64 on the CPU, and what only a GPU has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import accumulate_dtype, assert_close, assert_same_bits
from python_tests.counts.test_functional import SHAPES as COUNTED_SHAPES
from python_tests.counts.test_functional import assert_counts_agree, away_from_edges, random_batch
from python_tests.counts.test_functional import count as counts_of
from python_tests.cross_entropy import cases
from python_tests.cross_entropy.test_functional import EXTREMES, IGNORED
from python_tests.cross_entropy.test_functional import compare as compare_cross_entropy
from python_tests.statistics.test_functional import FIELDS, SHAPES
from python_tests.statistics.test_functional import compare as compare_statistics
from python_tests.support import LAYOUTS, LOGITS_DTYPES, TARGET_DTYPES

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _native():
    """No test passes on the reference, and none leaves an error for the next."""
    with segunc_ops.backend("native"):
        yield
        segunc_ops.check()


def on_cpu(outcome: cases.Outcome) -> cases.Outcome:
    return cases.Outcome(*(None if t is None else t.cpu() for t in outcome))


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_random_calls(first):
    for seed in range(first, first + 250):
        case = cases.random_case(seed)
        compare_cross_entropy(case, on_cpu(cases.run(case.to("cuda"))))


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_random_upsampled_calls(first):
    for seed in range(first, first + 100):
        case = cases.random_upsampled_case(seed)
        compare_cross_entropy(case, on_cpu(cases.run(case.to("cuda"))))


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
            compare_cross_entropy(case, on_cpu(cases.run(case.to("cuda"))))


# (N, C, *source) and the target's size: larger, smaller, both, volumes, several tiles.
UPSAMPLED = (
    ((2, 19, 33, 35), (131, 140)),
    ((1, 3, 65, 67), (20, 31)),
    ((1, 5, 40, 9), (33, 300)),
    ((1, 150, 9, 10), (72, 80)),
    ((1, 21, 48, 50), (190, 260)),
    ((2, 4, 5, 9, 8), (10, 20, 30)),
)


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
    for number, (shape, size) in enumerate(UPSAMPLED):
        reduction = ("none", "mean")[(number + align_corners) % 2]
        pixels = (shape[0], *size)
        target = torch.randint(0, shape[1], pixels)
        target[torch.rand(pixels) < 0.2] = IGNORED
        target = target.to(TARGET_DTYPES[number % 3])
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


@pytest.mark.parametrize(("shape", "size"), UPSAMPLED[:4])
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


def _peak_memory(step: Callable[[], object]) -> int:
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_upsampling_takes_an_eighth_of_the_memory():
    x = torch.randn(2, 150, 128, 128, device="cuda", requires_grad=True)
    target = torch.randint(0, 150, (2, 512, 512), device="cuda")

    def fused() -> None:
        torch.autograd.grad(sf.cross_entropy(x, target, upsample="bilinear"), x)

    def separate() -> None:
        z = F.interpolate(x, target.shape[1:], mode="bilinear")
        torch.autograd.grad(F.cross_entropy(z, target), x)

    assert 8 * _peak_memory(fused) <= _peak_memory(separate)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_extreme_logits(dtype):
    rows = torch.tensor([*EXTREMES.values()], dtype=torch.float64).to(dtype)
    target = torch.zeros(len(rows), dtype=torch.long)
    x = rows.cuda().requires_grad_()
    loss = sf.cross_entropy(x, target.cuda(), reduction="none")
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    exact = rows.double().requires_grad_()
    truth = F.cross_entropy(exact, target, reduction="none")
    (exact_grad,) = torch.autograd.grad(truth, exact, torch.ones_like(truth))
    for number, name in enumerate(EXTREMES):
        finite = rows[number][rows[number].isfinite()].double().abs()
        scale = 1 + 2 * float(finite.max() if len(finite) else 0)
        label = f"{name}, {dtype}"
        assert_close(loss[number], truth[number].detach(), name=label, scale=scale)
        assert_close(grad[number], exact_grad[number], name=f"{label}: gradient")


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics(layout, dtype):
    for shape in SHAPES:
        for count in (2, 10):
            logits = [3 * torch.randn(shape) for _ in range(count)]
            samples = [LAYOUTS[layout].make(z.to(dtype)) for z in logits]
            stacked = torch.stack([s.contiguous() for s in samples])
            name = f"{layout} {dtype} {shape} x {count}"
            on_gpu = [LAYOUTS[layout].make(s.cuda()) for s in samples]
            found = sf.predictive_statistics(on_gpu, return_mean=True)
            compare_statistics(_statistics_on_cpu(found), stacked, name)
            mean = torch.full(shape, torch.nan, device="cuda", dtype=found.std.dtype)
            squares, entropy = torch.empty_like(mean), torch.empty_like(mean[:, 0])
            for number, sample in enumerate(on_gpu, 1):
                sf.accumulate_statistics(mean, squares, entropy, sample, number)
            streamed = sf.finalize_statistics(mean, squares, entropy, count, return_mean=True)
            compare_statistics(_statistics_on_cpu(streamed), stacked, f"streamed {name}")


def _statistics_on_cpu(found: segunc_ops.PredictiveStatistics) -> segunc_ops.PredictiveStatistics:
    return segunc_ops.PredictiveStatistics(*(None if t is None else t.cpu() for t in found))


def _counts_on_cpu(
    counted: tuple[sf.SegmentationCounts, Tensor],
) -> tuple[sf.SegmentationCounts, Tensor]:
    counts, outcome = counted
    tables = (None if table is None else table.cpu() for table in counts)
    return sf.SegmentationCounts(*tables), outcome.cpu()


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts(layout, dtype, probabilities):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for number, shape in enumerate((*COUNTED_SHAPES, (2, 19, 512, 513), (1, 100, 64, 65))):
        values, target, uncertainty = random_batch(shape, dtype, layout, probabilities)
        target = target.to(TARGET_DTYPES[number % 3])
        options = {"from_probabilities": probabilities}
        wanted = counts_of(values, target, uncertainty, **options)
        on_gpu = LAYOUTS[layout].make(values.cuda())
        found = counts_of(on_gpu, target.cuda(), uncertainty.cuda(), device="cuda", **options)
        name = f"{layout} {dtype} {shape}"
        assert_counts_agree(_counts_on_cpu(found), wanted, compute, name)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_counts_of_maps_and_patches(window):
    statistics = sf.predictive_statistics(torch.randn(4, 2, 19, 130, 131))
    target = torch.randint(0, 19, (2, 130, 131), dtype=torch.uint8)
    target[:, :9, :9] = IGNORED
    on_gpu = sf.PredictiveStatistics(*(None if t is None else t.cuda() for t in statistics))
    options = {"num_classes": 19, "tables": ("confusion", "calibration", "histogram")}
    wanted = counts_of(statistics, target, statistics.std, **options)
    found = counts_of(on_gpu, target.cuda(), on_gpu.std, device="cuda", **options)
    assert_counts_agree(_counts_on_cpu(found), wanted, torch.float32, "maps")
    thresholds = torch.tensor([0.1, 0.2], dtype=torch.float64)
    patches = torch.zeros(2, 5, dtype=torch.int64)
    of_gpu = patches.cuda()
    sf.accumulate_patch_counts(patches, wanted[1], statistics.std, thresholds, window=window)
    sf.accumulate_patch_counts(of_gpu, found[1], on_gpu.std, thresholds.cuda(), window=window)
    assert_same_bits(of_gpu.cpu(), patches, name="patches")


def test_a_bad_target_is_in_no_count_and_raised_by_the_next_call():
    values, target = torch.randn(1, 5, 40, 41), torch.randint(0, 5, (1, 40, 41))
    target[0, 3, 4] = 9
    tables = ("confusion", "calibration", "scores")
    counts, outcome = counts_of(values.cuda(), target.cuda(), device="cuda", tables=tables)
    assert counts.confusion.sum() == counts.scores[0] == 40 * 41 - 1
    assert outcome[0, 3, 4] == 2
    with pytest.raises(IndexError, match="out-of-range class 9"):
        segunc_ops.check()


# More classes than a thread has registers for, more than a block has, fewer pixels than a warp.
INTERPOLATED = (*UPSAMPLED, ((1, 300, 5, 6), (17, 19)), ((3, 2, 9, 9), (4, 5)))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpolated_statistics(layout, dtype, align_corners):
    """As on the CPU, in the type that both compute in; all at once and as a stream."""
    compute = accumulate_dtype(dtype)
    make = LAYOUTS[layout].make
    for number, (shape, size) in enumerate(INTERPOLATED):
        samples = [3 * torch.randn(shape).to(dtype) for _ in range((3, 1, 10)[number % 3])]
        options = {"size": size, "align_corners": align_corners}
        wanted = sf.predictive_statistics([make(s.to(compute)) for s in samples], **options)
        on_gpu = [make(s.cuda()) for s in samples]
        accumulator = segunc_ops.PredictiveAccumulator()
        for sample in on_gpu:
            accumulator.update(sample, **options)
        found = {
            "at once": sf.predictive_statistics(on_gpu, **options),
            "streamed": accumulator.compute(),
        }
        surprise = 1 + 2 * max(float(s.double().abs().max()) for s in samples)
        for kind, statistics in found.items():
            name = f"{layout} {dtype} {shape} to {size} {kind}"
            # Rounding may decide between classes; what is said of one holds for it alone.
            same = statistics.prediction.cpu() == wanted.prediction
            assert same.double().mean() > 0.999, name
            for field in FIELDS:
                got, want = getattr(statistics, field).cpu(), getattr(wanted, field)
                if field in ("confidence", "std"):
                    got, want = got[same], want[same]
                assert_close(
                    got,
                    want.double(),
                    name=f"{name}: {field}",
                    scale=surprise,
                    compute=compute,
                    bias=False,  # of the CPU's result, which is rounded too
                )


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpolated_counts(layout, dtype, probabilities):
    """As on the CPU where rounding decides neither the class nor the bin of its confidence."""
    compute = accumulate_dtype(dtype)
    make = LAYOUTS[layout].make
    for number, (shape, size) in enumerate(INTERPOLATED):
        values = 3 * torch.randn(shape, dtype=torch.float64)
        values = (values.softmax(1) if probabilities else values).to(dtype)
        values[..., 0, 0] = torch.nan
        align_corners = number % 2 == 1
        mode = "bilinear" if len(size) == 2 else "trilinear"
        exact = F.interpolate(values.double(), size, mode=mode, align_corners=align_corners)
        top = exact.topk(2, 1).values
        confidence = (exact if probabilities else exact.softmax(1)).amax(1)
        decided = (top[:, 0] - top[:, 1] > 1e-4 * exact.abs().amax(1)) & away_from_edges(confidence)
        pixels = (shape[0], *size)
        target = torch.where(
            torch.rand(pixels) < 0.5, exact.argmax(1), torch.randint(0, shape[1], pixels)
        )
        target[~decided | (torch.rand(pixels) < 0.1)] = IGNORED
        uncertainty = torch.rand(pixels).to(compute)
        options = {
            "size": size,
            "align_corners": align_corners,
            "from_probabilities": probabilities,
        }
        wanted = counts_of(make(values.to(compute)), target, uncertainty, **options)
        found = counts_of(
            make(values.cuda()), target.cuda(), uncertainty.cuda(), device="cuda", **options
        )
        name = f"{layout} {dtype} {shape} to {size}"
        assert_counts_agree(_counts_on_cpu(found), wanted, compute, name)


def test_interpolated_statistics_take_no_more_memory_than_their_maps():
    samples = torch.randn(4, 1, 19, 64, 64, device="cuda")
    maps = 256 * 256 * (8 + 5 * 4)
    assert _peak_memory(lambda: sf.predictive_statistics(samples, size=(256, 256))) <= 1.1 * maps


def test_more_samples_than_one_call_takes():
    samples = torch.randn(300, 1, 5, 40)
    scattered = [s.cuda() for s in samples]
    compare_statistics(
        _statistics_on_cpu(sf.predictive_statistics(scattered)), samples, "300 tensors"
    )
    found = sf.predictive_statistics(samples.cuda())
    compare_statistics(_statistics_on_cpu(found), samples, "a tensor of 300")


def test_nan_samples_give_nan_maps():
    samples = torch.randn(3, 1, 4, 50, device="cuda")
    samples[1, 0, 2, 7] = torch.nan
    found = sf.predictive_statistics(samples)
    for field in FIELDS:
        nan = getattr(found, field).isnan()
        assert nan[0, 7], field
        assert nan.sum() == 1, field


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
    samples = torch.randn(4, 2, 11, 32, 33, device="cuda").to(dtype)

    def calls() -> tuple[Tensor, ...]:
        small = x[..., ::2, ::3]
        return (
            *_step(x, target, u, reduction),
            *_upsampled_step(small, target, u, reduction),
            *sf.predictive_statistics(samples)[:6],
            *sf.predictive_statistics(samples, size=(50, 60))[:6],
        )

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            calls()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = calls()
    for _ in range(3):
        with torch.no_grad():
            x.normal_()
            target.random_(0, 11)
            samples.normal_()
        graph.replay()
        for number, (a, b) in enumerate(zip(captured, calls(), strict=True)):
            assert_same_bits(a, b, name=f"result {number}")


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
    counts = sf.empty_counts(19, device="cuda")
    _step(x, target, u, "mean")
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(x, target, u, "mean")
        _upsampled_step(x[..., ::4, ::4], target, u, "mean")
        sf.predictive_statistics([x.detach(), x.detach()])
        sf.predictive_statistics([x.detach(), x.detach()], size=(70, 80))
        sf.accumulate_counts(counts, x.detach(), target, u.detach())
        sf.accumulate_counts(
            counts, x.detach()[..., ::4, ::4], target, u.detach(), size=target.shape[1:]
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    torch.use_deterministic_algorithms(True)
    x = torch.randn(3, 19, 129, 131, device="cuda").to(dtype).requires_grad_()
    u = torch.rand(3, 129, 131, device="cuda").requires_grad_()
    target = torch.randint(0, 19, (3, 129, 131), device="cuda")
    samples = [x.detach(), 2 * x.detach(), -x.detach()]

    def calls() -> tuple[Tensor, ...]:
        return (
            *_step(x, target, u, "mean"),
            *_upsampled_step(x[..., ::4, ::5], target, u, "mean"),
            *sf.predictive_statistics(samples)[:6],
            *sf.predictive_statistics(samples, size=(250, 270))[:6],
        )

    first = calls()
    for run in range(60):
        for number, (a, b) in enumerate(zip(calls(), first, strict=True)):
            assert_same_bits(a, b, name=f"run {run}, result {number}")


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float16, torch.float16)],
)
def test_peak_memory(dtype, autocast):
    x = torch.randn(2, 19, 512, 512, device="cuda").to(dtype).requires_grad_()
    target = torch.randint(0, 19, (2, 512, 512), device="cuda")
    for _ in range(2):
        x.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
            loss = sf.cross_entropy(x, target)
        (1024 * loss).backward()
        peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 1.1 * x.nbytes


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
