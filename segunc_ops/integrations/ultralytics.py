"""The losses in Ultralytics' trainer for semantic segmentation, by its callbacks.

This module imports nothing of Ultralytics and has none of its code. Ultralytics is licensed under
the AGPL-3.0, or by its makers: whoever installs it decides on that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._adapters import at_least_float, check_criterion, check_ignored, check_interpolating
from .._checks import check_number
from ..functional import PredictiveStatistics, as_targets
from ..losses import CrossEntropyLoss, DiceCrossEntropyLoss
from ..losses._base import ClassWeightedLoss, UncertaintyWeightedLoss
from ..sampling import BatchNormMode, ensemble_statistics, sample_statistics
from ..sampling.dropout import check_sampling
from ..sampling.models import changed, unwrap

__all__ = ["LossReplacement"]

_IGNORED = 255
_MASKS, _IMAGES = "semantic_mask", "img"

Heads = Tensor | tuple[Tensor, ...] | list[Tensor]


def _main(heads: Heads) -> Tensor:
    """The logits, which in training come with those of the auxiliary head."""
    return heads if isinstance(heads, Tensor) else heads[0]


class LossReplacement:
    """A callback for ``on_train_start`` that makes one of the losses that of the model.

    For the task ``semantic``. The loss is

    .. math:: N \\, (\\texttt{criterion} + \\texttt{dice\\_weight} \\cdot \\mathrm{Dice}
        + \\texttt{auxiliary\\_weight} \\cdot \\mathrm{CE}_\\mathrm{aux})

    of N images, where a criterion that has Dice already, such as
    :meth:`DiceCrossEntropyLoss.ultralytics <segunc_ops.DiceCrossEntropyLoss.ultralytics>`, gets
    none added: with that one it is the trainer's own, and so are its three items. All logits are
    interpolated within the losses. U-CE and instance-wise uncertainty sample in training, within
    the step's autocast; in validation, which is of the averaged model, they are plain
    cross-entropy. Checkpoints have nothing of it.

    For one process: Ultralytics starts others without the callbacks that it was given.

    Args:
        criterion: any loss of logits and class indices, with ``upsample="bilinear"`` and
            ``ignore_index=255``. Class weights are its `weight`; Ultralytics' own (`cls_pw`, and
            those of Cityscapes) have no part.
        num_samples: how many samples U-CE and instance-wise uncertainty draw in each step by
            Monte-Carlo dropout.
        batch_norm: as for :func:`segunc_ops.sample_statistics`.
        members: an ensemble of trained models, such as ``YOLO("best.pt").model``, whose statistics
            are observed in place of samples.
        dice_weight: of Dice beside a criterion that has none.
        auxiliary_weight: of the auxiliary head's cross-entropy.

    Raises:
        TypeError: if the criterion is no such loss.
        ValueError: if it lacks ``upsample="bilinear"`` or ignores another label than 255. At start:
            if the task is another, several processes train, or samples are needed of a model
            without active dropout (see :func:`segunc_ops.insert_dropout`).

    Example:
        >>> criterion = DiceCrossEntropyLoss.ultralytics(upsample="bilinear")
        >>> model = YOLO("yolo26n-sem.yaml")
        >>> model.add_callback("on_train_start", LossReplacement(criterion))
        >>> model.train(data="cityscapes8.yaml", epochs=3)
    """

    def __init__(
        self,
        criterion: ClassWeightedLoss,
        *,
        num_samples: int = 10,
        batch_norm: BatchNormMode = "batch",
        members: Iterable[nn.Module] = (),
        dice_weight: float = 1.0,
        auxiliary_weight: float = 0.4,
    ) -> None:
        check_criterion(criterion)
        check_interpolating(criterion, align_corners=False)
        check_ignored(criterion, _IGNORED, "the masks")
        self.criterion = criterion
        self.is_sampled = isinstance(criterion, UncertaintyWeightedLoss)
        self.num_samples = num_samples
        self.members = tuple(members)
        self.batch_norm: BatchNormMode = batch_norm
        check_number("dice_weight", dice_weight, at_least=0.0)
        self.auxiliary_weight = check_number("auxiliary_weight", auxiliary_weight, at_least=0.0)
        self.dice: nn.Module | None = None
        if dice_weight and not isinstance(criterion, DiceCrossEntropyLoss):
            self.dice = DiceCrossEntropyLoss.ultralytics(
                ce_weight=0.0, dice_weight=dice_weight, upsample="bilinear"
            )
        self.auxiliary = CrossEntropyLoss(
            criterion.weight, ignore_index=_IGNORED, upsample="bilinear"
        )

    def __call__(self, trainer: Any) -> None:
        """What the trainer calls at its start."""
        if trainer.args.task != "semantic":
            raise ValueError(f"task: expected 'semantic', got {trainer.args.task!r}")
        if getattr(trainer, "world_size", 1) > 1:
            raise ValueError(
                f"device: expected one process, got {trainer.world_size}; others have no callbacks"
            )
        model = unwrap(trainer.model)
        if self.members:
            for member in self.members:
                member.to(trainer.device).float()
        elif self.is_sampled:
            check_sampling(model, self.num_samples, self.batch_norm, stochastic_depth=False)
        for each in (model, trainer.ema.ema if trainer.ema else None):
            if each is not None:
                each.criterion = _Criterion(self, each)


class _Criterion:
    """What Ultralytics calls with what a model returns; no module, so in no state dict."""

    def __init__(self, replacement: LossReplacement, model: nn.Module) -> None:
        self._replacement = replacement
        self._model = model

    def __call__(self, heads: Heads, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        its, logits = self._replacement, _main(heads)
        if logits.dim() != 4 or logits.shape[1] < 2:
            raise ValueError(
                "model: expected logits (N, C, H, W) of at least two classes, got "
                f"{tuple(logits.shape)}"
            )
        masks = as_targets(batch[_MASKS].to(logits.device), squeeze=False)
        trains = self._model.training and torch.is_grad_enabled()
        for module in (its.criterion, its.auxiliary, its.dice):
            if module is not None:
                module.to(logits.device).train(trains)
        uncertainty = self._sample(batch[_IMAGES], masks) if trains else ()
        labelled = (masks != _IGNORED).any()

        def computed(loss: nn.Module, logits: Tensor, *others: Any) -> Tensor:
            # Without labelled pixels each is 0, as Ultralytics has it.
            value: Tensor = loss(at_least_float(logits), masks, *others)
            return torch.where(labelled, value, 0.0)

        main = computed(its.criterion, logits, *uncertainty)
        if isinstance(its.criterion, DiceCrossEntropyLoss):
            total, items = main, self._split(main, computed, logits)
        else:
            dice = main.new_zeros(()) if its.dice is None else computed(its.dice, logits)
            total, items = main + dice, (main, dice)
        auxiliary = main.new_zeros(())
        if not isinstance(heads, Tensor) and len(heads) > 1 and its.auxiliary_weight:
            auxiliary = its.auxiliary_weight * computed(its.auxiliary, heads[1])
        names = ("ce_loss", "dice_loss", "aux_loss")
        report = dict(zip(names, (item.detach() for item in (*items, auxiliary)), strict=True))
        return (total + auxiliary) * len(logits), report

    def _split(self, total: Tensor, computed: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of Dice + CE, for the log: one more reading of the logits."""
        criterion: Any = self._replacement.criterion
        alone = criterion.overlap._replace(dice_weight=0.0)
        if not alone.ce_weight:
            return total.new_zeros(()), total
        with torch.no_grad(), changed([(criterion, "overlap", alone)]):
            part = computed(criterion, logits)
        return part, total - part

    def _sample(self, images: Tensor, masks: Tensor) -> tuple[PredictiveStatistics, ...]:
        its = self._replacement
        if not its.is_sampled:
            return ()
        options: dict[str, Any] = {"size": masks.shape[1:], "output": _main}
        if its.members:
            return (ensemble_statistics(its.members, images, **options),)
        return (
            sample_statistics(
                self._model, images, its.num_samples, batch_norm=its.batch_norm, **options
            ),
        )
