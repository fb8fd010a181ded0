"""What the specifications of several families use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dtypes import accumulate_dtype


def valid_labels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which pixels count, and every pixel's class with 0 where it does not."""
    valid = target != ignore_index
    labels = torch.where(valid, target, torch.zeros_like(target)).long()
    check_classes("target", labels, num_classes, f" or {ignore_index}")
    return valid, labels


def check_classes(name: str, labels: Tensor, num_classes: int, or_else: str = "") -> None:
    # Reading the values would synchronise a GPU or break a compiled graph; there gather checks.
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        value = labels[outside][0].item()
        raise IndexError(f"{name}: expected a class in [0, {num_classes}){or_else}, got {value}")


def class_sizes(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels of each class and image; see :func:`segunc_ops.functional.class_sizes`."""
    flat = target.unsqueeze(-1).flatten(1).long()
    counts = (flat != ignore_index) & (flat >= 0) & (flat < num_classes)
    sizes = torch.zeros(len(flat), num_classes, dtype=torch.int64, device=target.device)
    return sizes.scatter_add_(1, torch.where(counts, flat, 0), counts.long())


def reduce_loss(
    loss: Tensor, valid: Tensor, normalizer_terms: Tensor | None, reduction: str
) -> Tensor:
    """Reduces per-pixel losses that are 0 where ignored; the four reductions, and by images."""
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if reduction == "mean_all":
        return total / loss.numel()
    if reduction == "mean_images":
        return total / loss.shape[0]
    if normalizer_terms is None:
        return total / valid.sum()
    return total / torch.where(valid, normalizer_terms, 0).sum()


def interpolate(logits: Tensor, size: Sequence[int], mode: str, align_corners: bool) -> Tensor:
    """:func:`torch.nn.functional.interpolate`, in float32 (float64) even under autocast.

    Args:
        logits: ``(N, C, *source)``.
        size: of the result ``(N, C, *size)``.
        mode: ``"bilinear"`` or ``"trilinear"``.
        align_corners: as for torch.
    """
    device = logits.device.type
    without_autocast: AbstractContextManager[object] = nullcontext()
    if device != "meta":  # which autocast does not know
        without_autocast = torch.autocast(device, enabled=False)
    with without_autocast:
        wide = logits.to(accumulate_dtype(logits.dtype))
        return F.interpolate(wide, [*size], mode=mode, align_corners=align_corners)


def at_size(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Logits ``(N, C, *)``, interpolated unless they have that size."""
    if tuple(size) == tuple(logits.shape[2:]):
        return logits
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return interpolate(logits, size, mode, align_corners)
