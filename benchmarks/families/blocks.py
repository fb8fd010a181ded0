"""The uncertainty of blocks: mean entropies of the softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf

from .. import costs
from ..case import ENLARGEMENT, Case
from ..implementations import COMPILED, EAGER, MAX_AUTOTUNE, OURS, Implementation
from ..workload import Family, Workload, compiled

# A block's edge, as that of the paper's 32 blocks an image.
_BLOCK = 256
# Absolute, in bits.
_TOLERANCE = 1e-4


class _Blocks(Case):
    """Blocks side by side."""

    @property
    def bytes_moved(self) -> int:
        return self.logits_bytes  # blocks are few

    @property
    def operations(self) -> int:
        # Of the classes also sum d e^d; of a pixel its entropy, and its part in a block.
        of_the_classes = self.pixels * self.num_classes * (costs.SOFTMAX_SUM + 2)
        return costs.blending(self) + of_the_classes + self.pixels * (costs.LOG + 4)

    def everyone(self) -> tuple[Implementation, ...]:
        autotuned = (MAX_AUTOTUNE,) if self.is_showcase else ()
        return (OURS, COMPILED, *autotuned, EAGER)


class BlockUncertainty(_Blocks):
    """Logits of the image's size."""

    op = "block_uncertainty"
    showcase = ((1, 19, 1024, 2048), "nchw")

    @classmethod
    def full(cls, half: Sequence[str]) -> Iterable[Case]:
        shapes = ((4, 2, 512, 512), cls.showcase[0], (1, 150, 512, 512))
        return cls.product(shapes, half)


class UpsampledBlockUncertainty(_Blocks):
    """Logits that are interpolated to the image's size."""

    op = "upsampled_block_uncertainty"
    showcase = ((1, 19, 256, 512), "nchw")
    enlargement = ENLARGEMENT


_Size = tuple[int, int]
_Function = Callable[[Tensor, _Size, _Size], Tensor]


def _fused_blocks(logits: Tensor, size: _Size, block: _Size) -> Tensor:
    return sf.block_uncertainty(logits, block_size=block, size=size)


def _pooled_blocks(logits: Tensor, size: _Size, block: _Size) -> Tensor:
    """As one would write it down."""
    logits = logits.float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear")
    entropy = torch.special.entr(logits.softmax(1)).sum(1, keepdim=True)
    return F.avg_pool2d(entropy, block).squeeze(1) / math.log(2)


class BlocksWorkload(Workload[Tensor, _Function]):
    """Means of blocks, without gradients."""

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        _, height, width = case.target_shape
        self._sizes = (height, width), (min(height, _BLOCK), min(width, _BLOCK))

    def _inputs(self, index: int) -> Tensor:
        return self._random_logits()

    def _functions_by_name(self) -> Mapping[Implementation, _Function]:
        return {
            OURS: _fused_blocks,
            COMPILED: compiled(_pooled_blocks),
            # Its CUDA graphs would first copy every set of inputs to where the first one was.
            MAX_AUTOTUNE: compiled(_pooled_blocks, "max-autotune-no-cudagraphs"),
            EAGER: _pooled_blocks,
        }

    @torch.no_grad()
    def _run(self, function: _Function, inputs: Tensor) -> Tensor:
        return function(inputs, *self._sizes)

    def check(self) -> None:
        logits = self._sets[0]
        exact = _exact_blocks(logits, *self._sizes)
        for name in self.implementations:
            means = self.attempt(name, partial(self._run, self._functions[name], logits))
            if means is not None:
                error = float((means - exact).abs().max())
                self.assert_close(name, "means", error, _TOLERANCE)


def _exact_blocks(logits: Tensor, size: _Size, block: _Size) -> Tensor:
    """Image by image in float64."""
    height, width = block
    means = []
    for image in logits.double().split(1):
        large = F.interpolate(image, size, mode="bilinear")
        entropy = torch.special.entr(large.softmax(1)).sum(1) / math.log(2)
        rows = entropy.unfold(1, height, height).unfold(2, width, width)
        means.append(rows.mean((3, 4)))
    return torch.cat(means)


FAMILY = Family({BlockUncertainty: BlocksWorkload, UpsampledBlockUncertainty: BlocksWorkload})
