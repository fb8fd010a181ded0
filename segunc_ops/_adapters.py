"""What the adapters of trainers share: what they ask of a loss, and how they call it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .losses import ExpectedCrossEntropyLoss
from .losses._base import ClassWeightedLoss

__all__ = [
    "SharedObservation",
    "at_least_float",
    "check_criterion",
    "check_ignored",
    "check_interpolating",
]


def at_least_float(logits: Tensor) -> Tensor:
    """Half precision at the low resolution as float32, so that the loss is."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def check_criterion(criterion: object) -> None:
    """Raises TypeError unless a loss is one of logits and class indices."""
    if not isinstance(criterion, ClassWeightedLoss) or isinstance(
        criterion, ExpectedCrossEntropyLoss
    ):
        raise TypeError(
            "criterion: expected a loss of segunc_ops that takes logits and class indices, got "
            f"{type(criterion).__name__}"
        )


def check_ignored(criterion: ClassWeightedLoss, ignore_index: int, whose: str) -> None:
    """Raises ValueError unless a loss ignores the label that a trainer's data have for that."""
    if criterion.ignore_index != ignore_index:
        raise ValueError(
            f"criterion: expected ignore_index={ignore_index}, which {whose} have, got "
            f"{criterion.ignore_index}"
        )


def check_interpolating(criterion: object, *, align_corners: bool) -> None:
    """Raises unless a loss interpolates logits to labels' size as the network would.

    Raises:
        TypeError: it is no loss that can.
        ValueError: it is told not to, or to do it otherwise.
    """
    if not isinstance(criterion, nn.Module) or not hasattr(criterion, "upsample"):
        raise TypeError(
            "criterion: expected a loss of segunc_ops that interpolates logits, got "
            f"{type(criterion).__name__}"
        )
    if criterion.upsample != "bilinear":
        raise ValueError(
            "criterion: expected upsample='bilinear', as in training the logits have a lower "
            f"resolution than labels, got {criterion.upsample!r}"
        )
    if criterion.align_corners is not align_corners:
        raise ValueError(
            f"criterion: expected align_corners={align_corners}, as the model interpolates, got "
            f"{criterion.align_corners}"
        )


class SharedObservation(nn.Module):
    """A loss of several outputs of one pass, all weighted by the same uncertainty."""

    def __init__(self, criterion: ClassWeightedLoss) -> None:
        super().__init__()
        check_criterion(criterion)
        self.criterion = criterion
        self.upsample, self.align_corners = criterion.upsample, criterion.align_corners
        self._observed: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def observe(self, *uncertainty: Any, **named: Any) -> None:
        """Keeps what weights the next call in training mode, as the criterion's ``observe`` does.

        Raises:
            TypeError: if the criterion takes no uncertainty.
        """
        self._observe(uncertainty, named)
        self._observed = uncertainty, named

    def _observe(self, uncertainty: tuple[Any, ...], named: dict[str, Any]) -> None:
        observe = getattr(self.criterion, "observe", None)
        if observe is None:
            raise TypeError(
                "criterion: expected a loss that takes uncertainty, got "
                f"{type(self.criterion).__name__}, which needs no Observer"
            )
        observe(*uncertainty, **named)

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        """Of one output, by what was observed, which the call before has used up."""
        if self.training and self._observed is not None:
            self._observe(*self._observed)
        loss: Tensor = self.criterion(input, target)
        return loss

    def _forget(self) -> None:
        if self.training:
            self._observed = None
