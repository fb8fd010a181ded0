"""The loss of uncertain binary labels, of a head's mean and log-variance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops

from .. import costs
from ..case import BOTH, Case
from ..implementations import EAGER, LIGHT_BLUE, LIGHT_GRAY, OURS, Implementation
from ..workload import (
    IGNORE_INDEX,
    IGNORED_SHARE,
    Family,
    LossFunction,
    LossWorkload,
    by_reference,
    compiled,
)

FORMULA = Implementation("its formula", LIGHT_GRAY, label="its formula, eager")
FORMULA_COMPILED = Implementation("its formula, torch.compile", LIGHT_BLUE, is_optional=True)

_THRESHOLD, _SOFTNESS = 1.0, 0.2


class LabelUncertainty(Case):
    """The mean of both losses, and the gradients of mean and log-variance ``(N, 1, H, W)``."""

    op = "label_uncertainty"
    showcase = ((8, 1, 512, 512), "nchw")
    is_loss = True

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return [cls.shown(dtype) for dtype in half]

    @classmethod
    def full(cls, half: Sequence[str]) -> Iterable[Case]:
        shapes = ((1, 1, 128, 128), (8, 1, 512, 512), (8, 1, 1024, 1024))
        return [cls(shape, dtype, mode=BOTH) for shape in shapes for dtype in ("fp32", *half)]

    def everyone(self) -> tuple[Implementation, ...]:
        return (OURS, EAGER, FORMULA_COMPILED, FORMULA)

    @property
    def _targets(self) -> int:
        return self.pixels * costs.TARGET

    @property
    def bytes_moved(self) -> int:
        """Mean and log-variance, and with a gradient those of both."""
        return (4 if self.is_training else 2) * self.logits_bytes + self._targets

    @property
    def kernel_moves(self) -> int:
        """The divisor takes a pass over the targets; fp16 losses recompute their gradients."""
        again = self.dtype == "fp16" and self.is_training
        reads = 2 if again else 1
        return self._targets + reads * (2 * self.logits_bytes + self._targets) + self.cleared

    @property
    def cleared(self) -> int:
        return 2 * self.logits_bytes if self.is_training else 0  # the gradients


def _by_formula(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """As a user writes it, who knows that a variance in float16 overflows."""
    precise = torch.promote_types(mean.dtype, torch.float32)
    mean, log_variance = mean.to(precise), log_variance.to(precise)
    valid = target != IGNORE_INDEX
    y = torch.where(valid, target, 0).to(precise).unsqueeze(1)
    variance = log_variance.exp()
    expected = mean / (1 + math.pi / 8 * variance).sqrt()
    kept = torch.sigmoid((_THRESHOLD - variance) / _SOFTNESS).detach()
    bce = partial(F.binary_cross_entropy_with_logits, reduction="none")
    loss = bce(expected, y) + kept * bce(mean, y) + (1 - kept) * bce(mean, 1 - y)
    return torch.where(valid.unsqueeze(1), loss, 0).sum() / valid.sum()


class LabelUncertaintyWorkload(LossWorkload):
    """Both leaves are fresh every time, and both gradients checked."""

    exact = FORMULA
    leaves = 2

    def _inputs(self, index: int) -> tuple[Tensor, ...]:
        mean, log_variance = (
            self._random_logits().requires_grad_(self.case.is_training) for _ in range(2)
        )
        positive = (self._random_map() < 0.5).long()
        return (
            mean,
            log_variance,
            positive.masked_fill_(self._random_map() < IGNORED_SHARE, IGNORE_INDEX),
        )

    def _functions_by_name(self) -> Mapping[Implementation, LossFunction]:
        ours = segunc_ops.LabelUncertaintyLoss(_THRESHOLD, ignore_index=IGNORE_INDEX)
        return {
            OURS: ours,
            EAGER: by_reference(ours),
            FORMULA_COMPILED: compiled(_by_formula),
            FORMULA: _by_formula,
        }


FAMILY = Family({LabelUncertainty: LabelUncertaintyWorkload}, peers=(FORMULA, FORMULA_COMPILED))
