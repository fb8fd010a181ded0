"""nnU-Net's trainer with this library's losses.

nnU-Net finds trainers outside of its package in the folders that ``nnUNet_extTrainer`` names, for
training and for inference::

    export nnUNet_extTrainer=$(python -m segunc_ops.integrations.nnunet)
    nnUNetv2_train 1 2d 0 -tr nnUNetTrainerUCE

Needs nnunetv2: ``pip install 'segunc_ops[nnunet]'``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..._adapters import check_criterion
from ..._checks import check_number
from ...functional import as_targets
from ...losses import (
    DeepSupervision,
    DiceBCELoss,
    DiceCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)
from ...losses._base import ClassWeightedLoss, UncertaintyWeightedLoss
from ...sampling import Observer, ensemble_statistics

try:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
except ImportError as error:
    raise ImportError(
        "segunc_ops.integrations.nnunet needs nnunetv2; install it with "
        "`pip install 'segunc_ops[nnunet]'`"
    ) from error

__all__ = ["nnUNetTrainerFused", "nnUNetTrainerIU", "nnUNetTrainerUCE"]

TRAINER_FOLDER = Path(__file__).parent / "external"
"""What ``nnUNet_extTrainer`` has to name."""


class _Head(nn.Module):
    """The losses of one head's logits, added up; targets are nnU-Net's, int16 ``(B, 1, ...)``."""

    def __init__(self, ignore_label: int | None, *losses: nn.Module) -> None:
        super().__init__()
        self.ignore_label = ignore_label
        self.losses = nn.ModuleList(losses)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        target = as_targets(target)
        values = [loss(input, target) for loss in self.losses]
        total: Tensor = sum(values[1:], values[0])
        if self.ignore_label is not None:
            # As nnU-Net: without labelled pixels there is no cross-entropy, and Dice is 1.
            labelled = (target != self.ignore_label).any()
            total = torch.where(labelled, total, total.new_full((), -1.0))
        return total


def _first(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The logits of full resolution, with deep supervision or without."""
    return output if isinstance(output, Tensor) else output[0]


class nnUNetTrainerFused(nnUNetTrainer):  # noqa: N801 # as nnU-Net's own are named
    """nnU-Net's trainer with its own loss, computed by this library; the base of the others.

    Loss and gradients are nnU-Net's, for classes and for regions, with an ignore label or without,
    in each head of deep supervision. :meth:`build_criterion` is for losses of one's own, in a file
    in a folder that ``nnUNet_extTrainer`` names, too.

    Example:
        >>> class nnUNetTrainerPAT(nnUNetTrainerFused):
        ...     def build_criterion(self, ignore_index):
        ...         return PixelAdaptiveCrossEntropyLoss(ignore_index=ignore_index)
    """

    def build_criterion(self, ignore_index: int) -> ClassWeightedLoss | None:
        """What takes the place of cross-entropy beside nnU-Net's Dice; None is cross-entropy.

        A loss that takes observed uncertainty is for subclasses of :class:`nnUNetTrainerUCE` and
        :class:`nnUNetTrainerIU`, or of those that observe it themselves from `initialize` on. It
        has ``missing="plain"``: it serves the head of full resolution, and the others have plain
        cross-entropy.
        """
        return None

    def _build_loss(self) -> nn.Module:
        batch = self.configuration_manager.batch_dice
        group = dist.group.WORLD if self.is_ddp and batch else None
        ignored = self.label_manager.ignore_label
        self.criterion: Any = None
        loss: nn.Module
        if self.label_manager.has_regions:
            if type(self).build_criterion is not nnUNetTrainerFused.build_criterion:
                raise ValueError(
                    f"{type(self).__name__}: expected labels of classes, got regions, which have "
                    "a binary cross-entropy each; train them with nnUNetTrainerFused"
                )
            loss = DiceBCELoss.nnunet(batch=batch, group=group, ignore_channel=ignored is not None)
        else:
            ignore_index = -100 if ignored is None else ignored
            options = {"batch": batch, "group": group, "ignore_index": ignore_index}
            self.criterion = self.build_criterion(ignore_index)
            if self.criterion is None:
                loss = _Head(ignored, DiceCrossEntropyLoss.nnunet(**options))
            else:
                self._check_criterion(ignore_index)
                dice = DiceCrossEntropyLoss.nnunet(ce_weight=0.0, **options)
                loss = _Head(ignored, self.criterion, dice)
        if self.enable_deep_supervision:
            loss = self._supervise(loss)
        return loss.to(self.device)

    def _check_criterion(self, ignore_index: int) -> None:
        check_criterion(self.criterion)
        if isinstance(self.criterion, UncertaintyWeightedLoss):
            if type(self).initialize is nnUNetTrainerFused.initialize:
                raise ValueError(
                    f"{type(self).__name__}: expected a subclass of nnUNetTrainerUCE or "
                    f"nnUNetTrainerIU, whose steps observe the uncertainty that "
                    f"{type(self.criterion).__name__} weighs pixels by"
                )
            if self.criterion.missing != "plain":
                raise ValueError(
                    "build_criterion: expected missing='plain', as one observation serves the head "
                    f"of full resolution alone, got {self.criterion.missing!r}"
                )
        if self.criterion.ignore_index != ignore_index:
            raise ValueError(
                f"build_criterion: expected ignore_index={ignore_index}, got "
                f"{self.criterion.ignore_index}"
            )

    def _supervise(self, loss: nn.Module) -> nn.Module:
        supervised = DeepSupervision.nnunet(loss, len(self._get_deep_supervision_scales()))
        if self.is_ddp and not self._do_i_compile():
            # As nnU-Net: DistributedDataParallel wants a gradient of the last head's parameters.
            weights = [*(0.5**i for i in range(len(supervised.weights) - 1)), 1e-6]
            supervised = DeepSupervision(loss, [weight / sum(weights) for weight in weights])
        return supervised

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.loss.train()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.loss.eval()


class nnUNetTrainerUCE(nnUNetTrainerFused):  # noqa: N801
    """U-CE and Dice: dropout in the network, from which each step draws samples.

    nnU-Net's plans have no dropout, so the network gets it behind each convolution
    (``dropout_op``). That changes names of parameters: checkpoints are those of this trainer,
    pretrained weights of a network without dropout do not load. Heads of lower resolution have
    plain cross-entropy.

    Attributes:
        dropout: the probability, by whole channels; a subclass may have another.
        num_samples: of each step.
        alpha: of U-CE.
    """

    dropout: ClassVar[float] = 0.1
    num_samples: ClassVar[int] = 10
    alpha: ClassVar[float] = 10.0

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network with dropout; nnU-Net calls it for inference, too."""
        check_number("dropout", cls.dropout, above=0.0)
        configuration_manager = copy.deepcopy(configuration_manager)
        options = configuration_manager.network_arch_init_kwargs
        if "dropout_op" not in options:
            raise ValueError(
                "plans: expected a network that takes dropout_op, got "
                f"{configuration_manager.network_arch_class_name}; override "
                "build_network_architecture and use segunc_ops.insert_dropout"
            )
        options["dropout_op"] = f"torch.nn.Dropout{len(configuration_manager.patch_size)}d"
        options["dropout_op_kwargs"] = {"p": cls.dropout}
        network: nn.Module = nnUNetTrainerFused.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        return network

    def build_criterion(self, ignore_index: int) -> ClassWeightedLoss:
        return UncertaintyAwareCrossEntropyLoss(
            self.alpha, ignore_index=ignore_index, reduction="mean", missing="plain"
        )

    def initialize(self) -> None:
        super().initialize()
        self.observer = Observer(self.network, self.criterion, self.num_samples, output=_first)


class nnUNetTrainerIU(nnUNetTrainerFused):  # noqa: N801
    """Instance-wise uncertainty and Dice, by an ensemble of folds that were trained before.

    The members are in memory together, and each runs once in a step.

    Attributes:
        member_trainer: whose folds are the members.
        member_folds: which of them.
        member_checkpoint: the file of each.
        exponent: of the loss.
    """

    member_trainer: ClassVar[str] = "nnUNetTrainer"
    member_folds: ClassVar[tuple[int | str, ...]] = (0, 1, 2)
    member_checkpoint: ClassVar[str] = "checkpoint_final.pth"
    exponent: ClassVar[float] = 2.0

    def build_criterion(self, ignore_index: int) -> ClassWeightedLoss:
        return InstanceUncertaintyCrossEntropyLoss(
            self.exponent, ignore_index=ignore_index, reduction="mean", missing="plain"
        )

    def initialize(self) -> None:
        super().initialize()
        self._members = [self._load_member(fold) for fold in self.member_folds]
        self.network.register_forward_pre_hook(self._observe)

    def _load_member(self, fold: int | str) -> nn.Module:
        plans = self.plans_manager
        folder = f"{self.member_trainer}__{plans.plans_name}__{self.configuration_name}"
        file = Path(self.output_folder_base).parent / folder / f"fold_{fold}"
        file /= self.member_checkpoint
        if not file.exists():
            raise FileNotFoundError(
                f"{type(self).__name__}: expected the folds {self.member_folds} of "
                f"{self.member_trainer} trained before, got no {file}"
            )
        trainer = recursive_find_trainer_class_by_name(self.member_trainer)
        member: nn.Module = trainer.build_network_architecture(
            plans,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            False,
        )
        # nnU-Net's checkpoints hold its configuration beside tensors.
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        member.load_state_dict(checkpoint["network_weights"])
        return member.requires_grad_(False).eval().to(self.device)

    def _observe(self, network: nn.Module, args: tuple[Tensor, ...]) -> None:
        if network.training and torch.is_grad_enabled():
            self.criterion.observe(ensemble_statistics(self._members, args[0]))
