"""Networks whose logits are interpolated within the loss, in training alone."""

from __future__ import annotations

from torch import nn

__all__ = ["check_interpolating"]


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
