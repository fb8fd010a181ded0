"""On a GPU: the same calls against float64 on the CPU, and what only a GPU has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.blocks.cases import CASES, Blocks, compare
from python_tests.comparison import (
    accumulate_dtype,
    assert_close,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.gpu import assert_graph_replays, peak_memory, synchronisation_raises
from python_tests.interpolation import FEW_PIXELS, TILED
from python_tests.support import LAYOUTS, LOGITS_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]

# Beside those of a CPU: several tiles of rows and columns, and cells that tiles cut.
LARGE = (
    Blocks((2, 19, 256, 1024), 256),
    Blocks((1, 19, 257, 1029), (128, 256), (64, 100)),
    Blocks((1, 21, 480, 800), 160, 96),
    Blocks((1, 5, 20, 600), (8, 100), (3, 50)),
)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks(layout, dtype):
    for blocks in (*CASES, *LARGE):
        logits = LAYOUTS[layout].make(3 * torch.randn(blocks.shape).to(dtype))
        found = sf.block_uncertainty(LAYOUTS[layout].make(logits.cuda()), **blocks.options)
        compare(found.cpu(), logits, blocks, name=f"{layout} {dtype} {blocks}")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpolated_blocks(layout, dtype, align_corners):
    """As on the CPU, in the type that both compute in."""
    compute = accumulate_dtype(dtype)
    make = LAYOUTS[layout].make
    for shape, size in (*TILED, *FEW_PIXELS):
        if len(size) != 2:
            continue
        logits = 3 * torch.randn(shape).to(dtype)
        block = tuple((2 * n + 2) // 3 for n in size)
        stride = tuple((n + 2) // 3 for n in block)
        options = {"size": size, "align_corners": align_corners}
        options |= {"block_size": block, "stride": stride}
        wanted = sf.block_uncertainty(make(logits.to(compute)), **options)
        found = sf.block_uncertainty(make(logits.cuda()), **options)
        assert_close(
            found.cpu(),
            wanted.double(),
            name=f"{layout} {dtype} {shape} to {size}",
            scale=1 + 2 * float(logits.double().abs().max()),
            bias=False,  # of the CPU's result, which is rounded too
        )


def test_the_overlap_changes_nothing():
    logits = torch.randn(1, 7, 128, 512, device="cuda")
    alone = sf.block_uncertainty(logits, block_size=64)
    for stride in (1, 16, 32):
        step = 64 // stride
        found = sf.block_uncertainty(logits, block_size=64, stride=stride)
        assert_same_bits(found[:, ::step, ::step].contiguous(), alone, name=f"stride {stride}")


def test_no_map_is_in_memory():
    logits = torch.randn(1, 19, 1024, 2048, device="cuda")
    call = lambda: sf.block_uncertainty(logits, block_size=480, stride=320)  # noqa: E731
    assert peak_memory(call) <= 1024 * 2048 * 4 // 100


def test_nan_logits_give_nan_blocks():
    logits = torch.randn(2, 4, 20, 50, device="cuda")
    logits[1, 2, 11, 33] = torch.nan
    found = sf.block_uncertainty(logits, block_size=10, stride=5).isnan()
    assert found[1, 1:3, 5:7].all()
    assert found.sum() == 4


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_cuda_graphs(dtype):
    logits = torch.randn(2, 11, 32, 36, device="cuda").to(dtype)

    def calls() -> tuple[Tensor, ...]:
        return (
            sf.block_uncertainty(logits, block_size=16, stride=10),
            sf.block_uncertainty(logits, block_size=16, size=(50, 60)),
        )

    assert_graph_replays(calls, logits.normal_)


def test_nothing_synchronises():
    logits = torch.randn(2, 19, 64, 64, device="cuda")
    sf.block_uncertainty(logits, block_size=16)
    with synchronisation_raises():
        sf.block_uncertainty(logits, block_size=16)
        sf.block_uncertainty(logits, block_size=16, size=(70, 80))


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    logits = torch.randn(3, 19, 129, 131, device="cuda").to(dtype)

    def calls() -> tuple[Tensor, ...]:
        return (
            sf.block_uncertainty(logits, block_size=64, stride=40),
            sf.block_uncertainty(logits, block_size=64, size=(250, 270)),
        )

    assert_same_bits_on_every_run(calls, name=str(dtype))
