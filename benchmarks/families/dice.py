"""Dice and cross-entropy, of classes and of regions, as nnU-Net and MONAI have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf

from .. import costs
from ..case import BOTH, ENLARGEMENT, Case, Shape, Traffic
from ..implementations import EAGER, GREEN, LIGHT_BLUE, LIGHT_GRAY, OURS, Implementation
from ..workload import Family, LossFunction, LossWorkload, by_reference, compiled

NNUNET = Implementation("nnU-Net's formula", LIGHT_GRAY, label="nnU-Net's formula, eager")
NNUNET_COMPILED = Implementation("nnU-Net's formula, torch.compile", LIGHT_BLUE, is_optional=True)
MONAI = Implementation("MONAI's Dice loss", GREEN, is_optional=True)

_SMOOTH, _FLOOR = 1e-5, 1e-8
_REGION_SHARE = 0.3  # of the pixels, in each region


class _Dice(Case):
    """The loss, and the gradient of the logits ``(N, C, *)``."""

    showcase = ((2, 4, 96, 96, 96), "nchw")
    others: ClassVar[tuple[Shape, ...]] = ()
    is_loss = True

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return [cls(shape, "fp32", mode=BOTH) for shape in cls.others]

    @property
    def is_showcase(self) -> bool:
        return True

    def everyone(self) -> tuple[Implementation, ...]:
        return (OURS, EAGER, NNUNET_COMPILED, NNUNET, MONAI)

    @property
    def num_classes(self) -> int:
        return self.shape[1]

    @property
    def num_samples(self) -> int:
        return 1

    @property
    def target_shape(self) -> Shape:
        n, _, *size = self.shape
        return (n, *(length * self.enlargement for length in size))

    @property
    def target_bytes(self) -> int:
        return self.pixels * costs.TARGET

    @property
    def bytes_moved(self) -> int:
        return 2 * self.logits_bytes + self.target_bytes

    @property
    def kernel_moves(self) -> int:
        """Logits and targets are read for the sums, and again for the gradient."""
        return self.bytes_moved + self.logits_bytes + self.target_bytes

    @property
    def cleared(self) -> int:
        return self.logits_bytes  # the gradient


class DiceCrossEntropy(_Dice):
    """Of classes, one of which each pixel has."""

    op = "dice_cross_entropy"
    others = ((2, 19, 512, 512),)


class UpsampledDiceCrossEntropy(_Dice):
    """The same of logits that are interpolated to the target's size."""

    op = "upsampled_dice_cross_entropy"
    showcase = ((2, 4, 24, 24, 24), "nchw")
    others = ((2, 19, 128, 128),)
    enlargement = ENLARGEMENT

    def traffic(self, implementation: str) -> Traffic | None:
        return None  # how often a source row is read depends on the bands


class DiceBCE(_Dice):
    """Of regions, which overlap."""

    op = "dice_bce"

    @property
    def target_bytes(self) -> int:
        return self.pixels * self.num_classes  # a bool each


def _dice(p: Tensor, one_hot: Tensor) -> Tensor:
    """The mean of images and classes, as nnU-Net has it without `batch_dice`."""
    axes = tuple(range(2, p.dim()))
    total = p.sum(axes) + one_hot.sum(axes)
    dice = (2 * (p * one_hot).sum(axes) + _SMOOTH) / (total + _SMOOTH).clip(_FLOOR)
    return dice.mean()


def _nnunet_loss(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.softmax(1)
    one_hot = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
    one_hot.scatter_(1, target.unsqueeze(1), True)
    return F.cross_entropy(logits, target) - _dice(p[:, 1:], one_hot[:, 1:])


def _nnunet_region_loss(logits: Tensor, target: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    return bce - _dice(logits.sigmoid(), target)


# MONAI subtracts Dice from 1.


def _monai_loss(logits: Tensor, target: Tensor) -> Tensor:
    from monai.losses import DiceCELoss

    both = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    loss: Tensor = both(logits, target.unsqueeze(1))
    return loss - 1


def _monai_region_loss(logits: Tensor, target: Tensor) -> Tensor:
    from monai.losses import DiceLoss

    dice: Tensor = DiceLoss(sigmoid=True)(logits, target)
    return dice - 1 + F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def _interpolated(loss: LossFunction, mode: sf.Upsample) -> LossFunction:
    def of_small(logits: Tensor, target: Tensor) -> Tensor:
        return loss(F.interpolate(logits, target.shape[1:], mode=mode), target)

    return of_small


class DiceWorkload(LossWorkload):
    """Classes without an ignored pixel, since MONAI knows none; the background has no Dice."""

    exact = NNUNET

    def _inputs(self, index: int) -> tuple[Tensor, ...]:
        logits = self._random_logits().requires_grad_(self.case.is_training)
        return logits, self._random_target(ignored=0.0)

    def _functions_by_name(self) -> Mapping[Implementation, LossFunction]:
        ours: LossFunction = partial(
            sf.dice_cross_entropy, include_background=False, dice_offset=0.0
        )
        formula, monai = _nnunet_loss, _monai_loss
        if self.case.enlargement > 1:
            mode: sf.Upsample = "bilinear" if len(self.case.shape) == 4 else "trilinear"
            ours = partial(ours, upsample=mode)
            formula, monai = (_interpolated(loss, mode) for loss in (formula, monai))
        return _by_name(ours, formula, monai)


class RegionsWorkload(LossWorkload):
    """Regions, each with a Dice of its own."""

    exact = NNUNET

    def _inputs(self, index: int) -> tuple[Tensor, ...]:
        logits = self._random_logits()
        share = torch.rand(logits.shape, device=self.device, generator=self._generator)
        return logits.requires_grad_(self.case.is_training), share < _REGION_SHARE

    def _functions_by_name(self) -> Mapping[Implementation, LossFunction]:
        ours = partial(sf.dice_bce, dice_offset=0.0)
        return _by_name(ours, _nnunet_region_loss, _monai_region_loss)


def _by_name(
    ours: LossFunction, formula: LossFunction, monai: LossFunction
) -> Mapping[Implementation, LossFunction]:
    return {
        OURS: ours,
        EAGER: by_reference(ours),
        NNUNET_COMPILED: compiled(formula),
        NNUNET: formula,
        MONAI: monai,
    }


FAMILY = Family(
    {
        DiceCrossEntropy: DiceWorkload,
        UpsampledDiceCrossEntropy: DiceWorkload,
        DiceBCE: RegionsWorkload,
    },
    peers=(NNUNET, NNUNET_COMPILED, MONAI),
)
