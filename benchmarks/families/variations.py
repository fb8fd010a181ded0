"""Variations of cross-entropy: what they take beside what cross-entropy itself takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf

from .. import costs
from ..case import Case
from ..implementations import (
    COMPILED,
    EAGER,
    LIGHT_BLUE,
    LIGHT_GRAY,
    OURS,
    PINK,
    Implementation,
)
from ..workload import IGNORE_INDEX, Family, LossFunction, LossWorkload, by_reference, compiled

CROSS_ENTROPY = Implementation("ours, cross_entropy", PINK, is_partial=True)
# Not checked: it has other numbers.
TORCH_NOISE = Implementation("torch's noise, eager", LIGHT_GRAY, is_partial=True)
TORCH_NOISE_COMPILED = Implementation(
    "torch's noise, torch.compile", LIGHT_BLUE, is_optional=True, is_partial=True
)

# Of how many pixels the most frequent and the rarest class have.
_MOST, _LEAST = 1e9, 1e5
_SEED, _SIGMA = 0, 0.5
_ROUNDS = 9  # times that are close to each other are related


class _Loss(NamedTuple):
    function: LossFunction
    arguments: Callable[[Tensor], dict[str, Any]] = lambda counts: {}
    """Its own, from the classes' counts."""
    peers: tuple[Implementation, ...] = (COMPILED, EAGER)


_LOSSES = {
    "focal_cross_entropy": _Loss(sf.focal_cross_entropy),
    "pixel_adaptive_cross_entropy": _Loss(sf.pixel_adaptive_cross_entropy),
    "class_balanced_cross_entropy": _Loss(
        sf.cross_entropy, lambda counts: {"weight": sf.class_balanced_weights(counts)}
    ),
    "balanced_softmax_cross_entropy": _Loss(
        sf.balanced_softmax_cross_entropy, lambda counts: {"counts": counts}
    ),
    "ldam_cross_entropy": _Loss(sf.ldam_cross_entropy, lambda counts: {"counts": counts}),
    "logit_variation_cross_entropy": _Loss(
        sf.logit_variation_cross_entropy,
        lambda counts: {"counts": counts, "seed": _SEED, "sigma": _SIGMA},
        # The reference makes the kernel's own noise from integers, which nobody would do in torch.
        (TORCH_NOISE_COMPILED, TORCH_NOISE),
    ),
}


class _Variation(Case):
    """The mean of the loss, and the gradient of the logits."""

    loss: ClassVar[_Loss]
    showcase = ((1, 19, 768, 768), "nchw")
    is_loss = True

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return [cls.shown(dtype) for dtype in half]

    @property
    def is_showcase(self) -> bool:
        return False  # they have a table of their own

    @property
    def min_rounds(self) -> int:
        return _ROUNDS

    def everyone(self) -> tuple[Implementation, ...]:
        return (OURS, CROSS_ENTROPY, *self.loss.peers)

    @property
    def bytes_moved(self) -> int:
        return 2 * self.logits_bytes + self.pixels * costs.TARGET

    @property
    def kernel_moves(self) -> int:
        """The divisor takes a pass over the targets; fp16 losses recompute their gradient."""
        targets = self.pixels * costs.TARGET
        reads = 2 if self.dtype == "fp16" else 1
        return targets + reads * (self.logits_bytes + targets) + self.cleared

    @property
    def cleared(self) -> int:
        return self.logits_bytes  # the gradient


def _by_torch_noise(rarity: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Balancing logit variation as a user writes it."""
    noise = (_SIGMA * torch.randn_like(logits)).clamp(-1, 1).abs()
    logits = logits + rarity.view(-1, 1, 1) * noise
    return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)


class VariationWorkload(LossWorkload):
    """A variation and, of the same inputs, cross-entropy."""

    def _functions_by_name(self) -> Mapping[Implementation, LossFunction]:
        assert isinstance(self.case, _Variation)
        function, arguments, _ = self.case.loss
        shares = torch.linspace(0, 1, self.case.num_classes, device=self.device)
        counts = _MOST * (_LEAST / _MOST) ** shares
        loss = partial(function, ignore_index=IGNORE_INDEX, **arguments(counts))
        rarity = (counts.sum() / counts).log()
        by_torch_noise = partial(_by_torch_noise, rarity / rarity.max())
        return {
            OURS: loss,
            CROSS_ENTROPY: partial(sf.cross_entropy, ignore_index=IGNORE_INDEX),
            COMPILED: by_reference(compiled(loss)),
            EAGER: by_reference(loss),
            TORCH_NOISE_COMPILED: compiled(by_torch_noise),
            TORCH_NOISE: by_torch_noise,
        }


# They differ in their losses alone.
OPS = tuple(type(op, (_Variation,), {"op": op, "loss": loss}) for op, loss in _LOSSES.items())
FAMILY = Family(
    dict.fromkeys(OPS, VariationWorkload),
    peers=(CROSS_ENTROPY, TORCH_NOISE_COMPILED, TORCH_NOISE),
)
