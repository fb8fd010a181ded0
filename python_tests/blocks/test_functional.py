"""block_uncertainty against float64 torch, block by block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.blocks.cases import CASES, Blocks, compare
from python_tests.comparison import assert_close, assert_same_bits, assert_same_bits_on_every_run
from python_tests.interpolation import random_call
from python_tests.memory import peak_bytes
from python_tests.support import LAYOUTS, LOGITS_DTYPES

# Tensors are small: waking threads would take most of the time.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_type_and_layout(layout, dtype, each_backend):
    for blocks in CASES:
        values = (3 * torch.randn(blocks.shape, dtype=torch.float64)).to(dtype)
        logits = LAYOUTS[layout].make(values)
        found = sf.block_uncertainty(logits, **blocks.options)
        compare(found, logits, blocks, name=f"{layout} {dtype} {blocks}")


def test_blocks_of_the_paper():
    """32, 8 and 18 blocks of an image of Cityscapes."""
    logits = torch.randn(1, 2, 1024, 2048)
    for (size, stride), shape in {
        (256, None): (4, 8),
        (512, None): (2, 4),
        (480, 320): (3, 6),
    }.items():
        grid = sf.block_grid((1024, 2048), size, stride)
        assert grid.shape == shape
        assert grid.number == len(grid.boxes) == math.prod(shape)
        found = sf.block_uncertainty(logits, block_size=size, stride=stride)
        assert found.shape == (1, *shape)
    assert grid.rows == (0, 320, 544)
    assert grid.columns == (0, 320, 640, 960, 1280, 1568)
    assert grid.boxes[7] == (320, 320, 800, 800)


@pytest.mark.parametrize("source", [(256, 512), (64, 128)])
def test_no_map_is_in_memory(source):
    logits, map_bytes = torch.randn(1, 19, *source), 256 * 512 * 4
    options = {"block_size": 96, "stride": 64, "size": (256, 512)}
    assert peak_bytes(lambda: sf.block_uncertainty(logits, **options)) <= map_bytes // 10


def test_blocks_side_by_side_are_average_pooling(each_backend):
    logits = 2 * torch.randn(2, 7, 64, 96)
    maps = sf.predictive_statistics(logits[None])
    pooled = F.avg_pool2d(maps.entropy.double()[:, None], (16, 32))[:, 0]
    found = sf.block_uncertainty(logits, block_size=(16, 32), base=math.e)
    assert_close(found, pooled, name="pooling")


def test_overlapping_blocks_are_average_pooling(each_backend):
    logits = torch.randn(2, 3, 33, 49)
    entropy = torch.special.entr(logits.double().softmax(1)).sum(1, keepdim=True) / math.log(2)
    found = sf.block_uncertainty(logits, block_size=17, stride=8)
    assert_close(found, F.avg_pool2d(entropy, 17, 8)[:, 0], name="pooling")


@pytest.mark.parametrize("base", [1.5, 2.0, math.e, 10])
def test_base(base, each_backend):
    logits = torch.zeros(1, 8, 6, 6)
    found = sf.block_uncertainty(logits, block_size=3, base=base)
    assert_close(found, torch.full((1, 2, 2), math.log(8, base)).double(), name="uniform", scale=4)


def test_certainty_has_no_entropy(each_backend):
    logits = torch.full((1, 5, 4, 9), -300.0)
    logits[:, 2] = 300.0
    assert (sf.block_uncertainty(logits, block_size=3) == 0).all()


def test_a_class_without_mass(each_backend):
    logits = torch.randn(1, 4, 6, 10)
    logits[:, 1] = -math.inf
    found = sf.block_uncertainty(logits, block_size=5)
    keep = sf.block_uncertainty(logits[:, [0, 2, 3]], block_size=5)
    assert_close(found, keep.double(), name="without mass")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_nan_logits_give_nan_blocks_there_alone(dtype, bad, each_backend):
    logits = torch.randn(2, 4, 20, 50).to(dtype)
    logits[1, 2, 11, 33] = bad
    found = sf.block_uncertainty(logits, block_size=10, stride=5).isnan()
    assert found[1, 1:3, 5:7].all()
    assert found.sum() == 4


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_random_interpolated_calls(first, each_backend):
    """Arguments, types, layouts and sizes drawn independently."""
    for seed in range(first, first + 40):
        call = random_call(seed)
        if len(call.size) != 2:
            continue
        generator = torch.Generator().manual_seed(seed)
        block = tuple(int(torch.randint(1, n + 1, (), generator=generator)) for n in call.size)
        stride = tuple(int(torch.randint(1, n + 1, (), generator=generator)) for n in block)
        logits, truth = call.samples[0], call.truth()[0]
        found = sf.block_uncertainty(logits, block_size=block, stride=stride, **call.options)
        compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
        blocks = Blocks((*truth.shape,), block, stride)
        compare(found, truth, blocks, name=f"{call.name} {blocks}", interpolated_in=compute)


def test_the_size_of_the_logits_interpolates_nothing():
    logits = torch.randn(2, 3, 9, 10)
    found = sf.block_uncertainty(logits, block_size=4, size=(9, 10))
    assert_same_bits(found, sf.block_uncertainty(logits, block_size=4), name="own size")


def test_no_images(each_backend):
    for options in ({}, {"size": (8, 9)}):
        found = sf.block_uncertainty(torch.randn(0, 3, 4, 5), block_size=2, **options)
        assert found.shape == ((0, 4, 5) if options else (0, 2, 3))


def test_never_differentiable(each_backend):
    logits = torch.randn(1, 2, 4, 5, requires_grad=True)
    assert not sf.block_uncertainty(logits, block_size=2).requires_grad


def test_the_overlap_changes_nothing():
    """A block has the same mean whatever lies over it."""
    logits = torch.randn(2, 5, 64, 96)
    alone = sf.block_uncertainty(logits, block_size=16)
    for stride in (1, 2, 4, 8):
        found = sf.block_uncertainty(logits, block_size=16, stride=stride)
        step = 16 // stride
        assert_close(found[:, ::step, ::step], alone.double(), name=f"stride {stride}", scale=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits(dtype):
    logits = torch.randn(2, 7, 65, 131).to(dtype)

    def run() -> list[Tensor]:
        return [
            sf.block_uncertainty(logits, block_size=32, stride=20),
            sf.block_uncertainty(logits, block_size=48, stride=31, size=(130, 150)),
        ]

    assert_same_bits_on_every_run(run, name=f"blocks {dtype}")


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_compile_traces_one_graph(name):
    def means(logits: Tensor) -> tuple[Tensor, Tensor]:
        large = sf.block_uncertainty(logits, block_size=8, size=(40, 50), align_corners=True)
        return sf.block_uncertainty(logits, block_size=(5, 8), stride=3), large

    torch.compiler.reset()
    compiled = torch.compile(means, fullgraph=True, dynamic=True, backend="aot_eager")
    with segunc_ops.backend(name):
        for shape in ((2, 3, 9, 14), (1, 3, 8, 21), (3, 3, 30, 17)):
            logits = torch.randn(shape)
            for a, b in zip(compiled(logits), means(logits), strict=True):
                assert_close(a, b.double(), name=f"{shape}")


def test_meta_tensors():
    logits = torch.randn(2, 3, 30, 40, device="meta", dtype=torch.bfloat16)
    found = sf.block_uncertainty(logits, block_size=(16, 12), stride=10)
    assert found.device.type == "meta"
    assert found.shape == (2, 3, 4)
    assert found.dtype == torch.float32


def test_numpy_arrays():
    logits = np.random.default_rng(1).standard_normal((2, 5, 8, 9), np.float32)
    found = sf.block_uncertainty(logits, block_size=4)
    assert isinstance(found, np.ndarray)
    wanted = sf.block_uncertainty(torch.from_numpy(logits), block_size=4)
    assert np.array_equal(found, wanted.numpy())
