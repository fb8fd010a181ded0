"""Expected cross-entropy: what its draws cost, of which no memory has any."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

import segunc_ops.functional as sf

from .. import costs
from ..case import Case
from ..implementations import EAGER, LIGHT_GRAY, OURS, Implementation
from ..workload import IGNORE_INDEX, Family, LossFunction, LossWorkload, by_reference

# Not checked: it has other numbers.
TORCH_DRAWS = Implementation("torch.randn of all draws, eager", LIGHT_GRAY, is_partial=True)

_DRAWS, _SEED = 16, 0
_SPREAD = 1.0


class ExpectedCrossEntropy(Case):
    """The mean of the loss, and the gradients of mean and scale, which is a diagonal."""

    op = "expected_cross_entropy"
    showcase = ((1, 19, 256, 256), "nchw")
    is_loss = True

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return [cls.shown(dtype) for dtype in half]

    @property
    def channels(self) -> int:
        """Of the scale."""
        return self.num_classes

    def everyone(self) -> tuple[Implementation, ...]:
        return (OURS, TORCH_DRAWS, EAGER)

    @property
    def input_bytes(self) -> int:
        return self.pixels * (self.num_classes + self.channels) * self.itemsize

    @property
    def bytes_moved(self) -> int:
        return 2 * self.input_bytes + self.pixels * costs.TARGET

    @property
    def kernel_moves(self) -> int:
        """The divisor takes a pass over the targets; fp16 losses draw again for their gradient."""
        targets = self.pixels * costs.TARGET
        reads = 2 if self.dtype == "fp16" else 1
        return targets + reads * (self.input_bytes + targets) + self.cleared

    @property
    def cleared(self) -> int:
        return self.input_bytes  # the gradients


class FactorExpectedCrossEntropy(ExpectedCrossEntropy):
    """The same with a Cholesky factor."""

    op = "cholesky_expected_cross_entropy"

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return ()

    @property
    def channels(self) -> int:
        return self.num_classes * (self.num_classes + 1) // 2


def _by_torch_draws(mean: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    """The loss as a user writes it."""
    classes = mean.shape[1]
    draws = torch.randn(_DRAWS, *mean.shape, device=mean.device, dtype=mean.dtype)
    if scale.shape[1] == classes:
        offset = scale * draws
    else:
        factor = scale.new_zeros(len(scale), classes, classes, *scale.shape[2:])
        rows, columns = torch.tril_indices(classes, classes)
        factor[:, rows, columns] = scale
        offset = torch.einsum("nij...,snj...->sni...", factor, draws)
    log_p = torch.log_softmax(mean + offset, 2)
    valid = target != IGNORE_INDEX
    labels = torch.where(valid, target, 0).expand(_DRAWS, *target.shape).unsqueeze(2)
    loss = math.log(_DRAWS) - torch.logsumexp(log_p.gather(2, labels).squeeze(2), 0)
    return (loss * valid).sum() / valid.sum()


class ExpectedWorkload(LossWorkload):
    """Mean, scale and targets."""

    def _inputs(self, index: int) -> tuple[Tensor, ...]:
        case = self.case
        assert isinstance(case, ExpectedCrossEntropy)
        mean = self._random_logits().requires_grad_(case.is_training)
        shape = (mean.shape[0], case.channels, *mean.shape[2:])
        scale = _SPREAD * torch.rand(shape, device=self.device, generator=self._generator)
        scale = scale.to(mean.dtype).requires_grad_(case.is_training)
        return mean, scale, self._random_target()

    def _step(self, loss: LossFunction, inputs: tuple[Tensor, ...]) -> Tensor:
        value = super()._step(loss, inputs)
        inputs[1].grad = None  # freed as that of the first is by others
        return value

    def _functions_by_name(self) -> Mapping[Implementation, LossFunction]:
        ours = partial(
            sf.expected_cross_entropy, num_draws=_DRAWS, seed=_SEED, ignore_index=IGNORE_INDEX
        )
        return {OURS: ours, TORCH_DRAWS: _by_torch_draws, EAGER: by_reference(ours)}


FAMILY = Family(
    {ExpectedCrossEntropy: ExpectedWorkload, FactorExpectedCrossEntropy: ExpectedWorkload},
    peers=(TORCH_DRAWS,),
)
