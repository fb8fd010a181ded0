"""A process group's ranks together have the loss and the gradient of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import segunc_ops
import segunc_ops.functional as sf
from python_tests.ranks import run_ranks
from python_tests.support import IGNORED

RANKS = 2
OPTIONS: tuple[dict[str, Any], ...] = (
    {"batch": True},
    {"batch": True, "absent": "skip", "include_background": False, "squared": True},
    {"batch": False},
    {"batch": False, "absent": "skip", "reduction": "sum"},
    {"batch": True, "reduction": "mean_all", "jaccard": True},
)


def images() -> tuple[Tensor, Tensor]:
    """Of all ranks; the first two have other classes, and more ignored pixels, than the others."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 3, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (4, 6, 7), generator=generator)
    target[:2] = target[:2].clamp(max=1)
    target[:2, :3] = IGNORED
    return x, target


def regions() -> tuple[Tensor, Tensor]:
    """Of all ranks, with the channel of what is ignored, as the targets of `images`."""
    target = images()[1]
    classes = torch.arange(4).view(1, -1, 1, 1)
    return images()[0], torch.cat([target[:, None] == classes, target[:, None] == IGNORED], 1)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(3, 4, 3, padding=1).double()


def step(model: nn.Module, x: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss, of classes or of regions, and the gradient of the first layer."""
    if target.dtype == torch.bool:
        loss = sf.dice_bce(model(x), target, ignore_channel=True, **options)
    else:
        loss = sf.dice_cross_entropy(model(x), target, ignore_index=IGNORED, **options)
    model.zero_grad()
    loss.backward()
    gradient = next(iter(model.parameters())).grad
    assert gradient is not None
    return loss.detach(), gradient.clone()


def work(rank: int, size: int, folder: Path) -> list[tuple[Tensor, Tensor]]:
    model = DistributedDataParallel(network())
    results = []
    for backend in ("native", "reference"):
        with segunc_ops.backend(backend):
            for batch in (images(), regions()):
                x, target = (tensor.chunk(size)[rank] for tensor in batch)
                for options in OPTIONS:
                    results.append(step(model, x, target, group=dist.group.WORLD, **options))
    x, target = (tensor.chunk(size)[rank] for tensor in images())
    alone = dist.new_group([1])
    if rank == 0:
        with pytest.raises(ValueError, match="group: expected one that rank 0 is in, got another"):
            step(model.module, x, target, group=alone)
    else:
        plain = step(model.module, x, target)
        grouped = step(model.module, x, target, group=alone)
        for a, b in zip(plain, grouped, strict=True):
            torch.testing.assert_close(a, b)
    with pytest.raises(TypeError, match=r"group: expected a torch.distributed process group"):
        step(model.module, x, target, group=1)
    return results


def test_ranks_together_are_one_process(tmp_path):
    found = run_ranks(work, RANKS, tmp_path)
    for rank in range(RANKS):
        cases = [(batch, options) for batch in (images(), regions()) for options in OPTIONS]
        for number, (batch, options) in enumerate(2 * cases):
            loss, gradient = step(network(), *batch, **options)
            torch.testing.assert_close(found[rank][number][0], loss, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found[rank][number][1], gradient, rtol=1e-10, atol=1e-13)
