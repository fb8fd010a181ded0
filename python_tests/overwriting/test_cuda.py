"""On a GPU: the same bits as with a gradient of its own, and the memory that it does not take."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from python_tests.comparison import assert_same_bits
from python_tests.gpu import assert_graph_replays, peak_memory, synchronisation_raises
from python_tests.overwriting.cases import LOSSES, leaf, made, outcome
from python_tests.support import LOGITS_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]

# Pixels that fit vectors and that do not, of one tile and of many.
SIZES = ((64, 64), (65, 67), (129, 257))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_same_numbers(name, layout):
    for number, dtype in enumerate(LOGITS_DTYPES):
        for classes in (5,) if "counts" in LOSSES[name].arguments else (5, 19, 33, 150):
            loss = LOSSES[name].on("cuda")
            if classes != 5:
                loss = loss.without_weights()
            x = leaf(dtype, layout, SIZES[(number + classes) % 3], classes)
            target = loss.targets(x).cuda()
            x = x.detach().cuda().requires_grad_()
            found = outcome(loss, x, target, overwrite_input=True)
            for a, b in zip(found, outcome(loss, x, target), strict=True):
                assert_same_bits(a, b, name=f"{dtype} {classes}")


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "per pixel"])
def test_peak_memory(name):
    loss = LOSSES[name].on("cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        features = leaf(dtype, size=(512, 512))
        target = loss.targets(features).cuda()
        x = features.detach().cuda().requires_grad_()
        x.grad = torch.zeros_like(x)  # of the model, not of the loss

        def step(x: Tensor = x, target: Tensor = target) -> None:
            (1024 * loss(made(x), target, overwrite_input=True)).backward()

        assert peak_memory(step) <= 1.05 * x.nbytes


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_synchronises_and_graphs_replay(name):
    loss = LOSSES[name].on("cuda")
    x = leaf(size=(64, 64))
    target = loss.targets(x).cuda()
    x = x.detach().cuda().requires_grad_()

    def step() -> Sequence[Tensor]:
        value = loss(made(x), target, overwrite_input=True).sum()
        return value.detach(), *torch.autograd.grad(3 * value, x)

    step()
    with synchronisation_raises():
        step()
    assert_graph_replays(step, lambda: x.normal_())
