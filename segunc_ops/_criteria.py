"""What integrations ask of a loss."""

from __future__ import annotations

from torch import nn

from .losses import ExpectedCrossEntropyLoss
from .losses._base import ClassWeightedLoss

__all__ = ["check_criterion", "check_interpolating"]


def check_criterion(criterion: object) -> None:
    """Raises TypeError unless a loss is one of logits and class indices."""
    if not isinstance(criterion, ClassWeightedLoss) or isinstance(
        criterion, ExpectedCrossEntropyLoss
    ):
        raise TypeError(
            "criterion: expected a loss of segunc_ops that takes logits and class indices, got "
            f"{type(criterion).__name__}"
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
