"""On a GPU: the same calls against float64 on the CPU, and what only a GPU has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits_on_every_run
from python_tests.dice import test_regions
from python_tests.dice.cases import batch, loss_of, region_truth_of, regions, truth_of
from python_tests.dice.test_functional import OPTIONS
from python_tests.gpu import assert_graph_replays, peak_memory, synchronisation_raises
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, REGION_DTYPES, TARGET_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]


def step(x: Tensor, target: Tensor, u: Tensor, **options: Any) -> tuple[Tensor, ...]:
    loss = loss_of(x, target, u, **options)
    return loss, *torch.autograd.grad(loss, (x, u), torch.full_like(loss, 0.75))


def compare(x: Tensor, target: Tensor, u: Tensor, **options: Any) -> None:
    """A step on the GPU of what lies on the CPU."""
    leaves = (x.detach().cuda(), u.detach().cuda())
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    found = step(leaves[0], target.cuda(), leaves[1], **options)
    truth, *wanted = truth_of(x, target, u, **options)
    size = 1 + float(x.detach().abs().max())
    if "upsample" in options:
        size *= 20  # coordinates in float32
    assert_close(found[0].cpu(), truth, name="loss", scale=size, bias=False)
    for name, a, b in zip(("input", "pixel_weight"), found[1:], wanted, strict=True):
        scale = size * float(b.abs().max())
        assert_close(a.cpu(), 0.75 * b, name=name, scale=scale, bias=False)


@pytest.mark.parametrize("options", ["default", "squared", "jaccard without background", "sum"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype, options):
    shapes = ((2, 19, 65, 67), (1, 150, 33, 35), (2, 2, 9, 10, 11), (3, 4, 33))
    for shape, target_dtype in zip(shapes, TARGET_DTYPES, strict=True):
        _, target, u = batch(dtype, shape[2:], shape[1], shape[0])
        x = LAYOUTS[layout].make(torch.randn(shape).to(dtype)).detach()
        target = target.clamp(max=IGNORED).to(target_dtype)
        compare(x, target, u, label_smoothing=0.1, **OPTIONS[options])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop"])
def test_upsampled(layout, dtype, align_corners):
    for source, size in (((9, 17), (36, 68)), ((20, 31), (13, 40)), ((3, 4, 5), (6, 8, 9))):
        _, target, u = batch(dtype, size, 19)
        x = LAYOUTS[layout].make(torch.randn(2, 19, *source).to(dtype)).detach()
        mode = "bilinear" if x.dim() == 4 else "trilinear"
        compare(x, target, u, upsample=mode, align_corners=align_corners)


def test_target_out_of_range_is_nan_and_raised_by_the_next_call():
    x = torch.randn(2, 3, 40, 50, device="cuda", requires_grad=True)
    target = torch.randint(0, 3, (2, 40, 50), device="cuda")
    target[1, 3, 4] = 7
    for options in ({}, {"ce_weight": 0.0}):
        loss = sf.dice_cross_entropy(x, target, **options)
        assert loss.isnan()
        with pytest.raises(IndexError, match="out-of-range class 7"):
            segunc_ops.check()


def test_nothing_synchronises():
    x = torch.randn(2, 19, 64, 64, device="cuda", requires_grad=True)
    u = torch.rand(2, 64, 64, device="cuda", requires_grad=True)
    target = torch.randint(0, 19, (2, 64, 64), device="cuda")
    for options in OPTIONS.values():
        step(x, target, u, **options)
        with synchronisation_raises():
            step(x, target, u, **options)


def test_graphs_replay():
    x = torch.randn(2, 19, 64, 64, device="cuda", requires_grad=True)
    u = torch.rand(2, 64, 64, device="cuda", requires_grad=True)
    target = torch.randint(0, 19, (2, 64, 64), device="cuda")

    def refill() -> None:
        x.normal_()
        u.uniform_()
        target.random_(0, 19)

    assert_graph_replays(lambda: step(x, target, u, batch=True), refill)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    x = torch.randn(3, 19, 129, 131, device="cuda").to(dtype).requires_grad_()
    u = torch.rand(3, 129, 131, device="cuda").requires_grad_()
    target = torch.randint(0, 19, (3, 129, 131), device="cuda")
    assert_same_bits_on_every_run(lambda: step(x, target, u), name=str(dtype))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float16, torch.float16)],
)
def test_peak_memory(dtype, autocast):
    x = torch.randn(2, 19, 512, 512, device="cuda").to(dtype).requires_grad_()
    target = torch.randint(0, 19, (2, 512, 512), device="cuda")

    def run() -> None:
        with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
            loss = sf.dice_cross_entropy(x, target)
        torch.autograd.grad(1024 * loss, x)

    assert peak_memory(run) <= 1.1 * x.nbytes


# ---- regions ----


def region_step(x: Tensor, target: Tensor, u: Tensor, **options: Any) -> tuple[Tensor, ...]:
    loss = sf.dice_bce(x, target, pixel_weight=u, **options)
    return loss, *torch.autograd.grad(loss, (x, u), torch.full_like(loss, 0.75))


@pytest.mark.parametrize("options", ["default", "squared", "jaccard without background", "sum"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_region_support_matrix(layout, dtype, options):
    shapes = ((2, 4, 65, 67), (1, 70, 33, 35), (2, 2, 9, 10, 11))
    for number, target_dtype in enumerate(REGION_DTYPES):
        shape = shapes[number % len(shapes)]
        _, target, mask, u = regions(dtype, shape[2:], shape[1], shape[0], target_dtype)
        x = LAYOUTS[layout].make(torch.randn(shape).to(dtype)).detach()
        own = {**test_regions.OPTIONS[options], "pos_weight": torch.rand(shape[1]) + 0.5}
        leaves = [leaf.detach().cuda().requires_grad_() for leaf in (x, u)]
        moved = {**own, "pos_weight": own["pos_weight"].cuda(), "mask": mask.cuda()}
        found = region_step(leaves[0], target.cuda(), leaves[1], **moved)
        truth, *wanted = region_truth_of(x, target, mask, u, **own)
        size = 1 + float(x.abs().max())
        assert_close(found[0].cpu(), truth, name="loss", scale=size, bias=False)
        for name, a, b in zip(("input", "pixel_weight"), found[1:], wanted, strict=True):
            scale = size * float(b.abs().max())
            assert_close(a.cpu(), 0.75 * b, name=name, scale=scale, bias=False)


def test_a_region_target_that_is_neither_0_nor_1_is_nan_and_raised_by_the_next_call():
    x = torch.randn(2, 3, 40, 50, device="cuda", requires_grad=True)
    for dtype, value in ((torch.float32, 0.5), (torch.uint8, 2), (torch.int64, -1)):
        target = torch.zeros(x.shape, device="cuda", dtype=dtype)
        target[1, 2, 3, 4] = value
        for options in ({}, {"ce_weight": 0.0}):
            assert sf.dice_bce(x, target, **options).isnan()
            with pytest.raises(ValueError, match="a number that is neither 0 nor 1"):
                segunc_ops.check()


def test_regions_neither_synchronise_nor_vary():
    x, target, mask, u = (tensor.detach().cuda() for tensor in regions(size=(129, 131), classes=5))
    x.requires_grad_(), u.requires_grad_()
    for options in ({}, {"batch": True, "mask": mask}):
        region_step(x, target, u, **options)
        with synchronisation_raises():
            region_step(x, target, u, **options)
        assert_same_bits_on_every_run(
            lambda options=options: region_step(x, target, u, **options), name=str([*options])
        )

    def refill() -> None:
        x.normal_()
        target.bernoulli_(0.4)

    assert_graph_replays(lambda: region_step(x, target, u, batch=True), refill)


def test_peak_memory_of_regions():
    large = torch.randn(2, 4, 96, 96, 96, device="cuda", requires_grad=True)
    labels = torch.rand(large.shape, device="cuda") < 0.5
    assert peak_memory(lambda: torch.autograd.grad(sf.dice_bce(large, labels), large)) <= (
        1.1 * large.nbytes
    )
