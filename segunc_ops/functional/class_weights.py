"""Weights, margins and priors that follow from how often classes occur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import check_number, describe

__all__ = ["class_balanced_weights", "inverse_frequency_weights"]


def check_counts(counts: Tensor | Sequence[float]) -> Tensor:
    """Counts as a tensor ``(C,)`` of float64, on the device where they are.

    Raises:
        TypeError: they are no numbers.
        ValueError: they are not one per class, or one is not positive and finite. What lies on a
            GPU, or is traced, is not read.
    """
    try:
        values = torch.as_tensor(counts)
        if values.is_complex() or values.is_sparse:
            raise TypeError
        values = values.detach().to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"counts: expected a number for each class, got {describe(counts)}"
        ) from None
    if values.dim() != 1 or values.numel() == 0:
        raise ValueError(f"counts: expected shape (C,), one per class, got {tuple(values.shape)}")
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        for index, value in enumerate(values.tolist()):
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"counts: expected a positive number for each class, got {value:g} for class "
                    f"{index}; leave the class out, or count it as 1"
                )
    return values


def relative_log_counts(counts: Tensor) -> Tensor:
    """log n_c less that of the most frequent class, which changes no softmax."""
    logs = counts.log()
    return logs - logs.max()


def variation_scale(counts: Tensor) -> Tensor:
    """BLV's c: log(sum n / n_c), divided by the largest of these; 0 for a single class."""
    rarity = counts.sum().log() - counts.log()
    return rarity / rarity.max().clamp(min=torch.finfo(rarity.dtype).tiny)


def margins(counts: Tensor, max_margin: float) -> Tensor:
    """LDAM's margin of each class: max_margin n_c^(-1/4) / max_k n_k^(-1/4)."""
    return max_margin * (counts.min() / counts) ** 0.25


def class_balanced_weights(
    counts: Tensor | Sequence[float], *, beta: float | None = None
) -> Tensor:
    r"""Class weights by the effective number of samples.

    "Class-Balanced Loss Based on Effective Number of Samples", Cui et al. 2019, equation 4 and
    section 4: with n_c the number of samples of class c,

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad \sum_c w_c = C

    Counts are of images or of instances, which occur hundreds of times. Of pixels there are
    millions: with a fixed beta of 0.999 or less beta^n is then 0 for every class and all weights
    are 1.

    Args:
        counts: n, a positive number for each class, of any type.
        beta: in [0, 1); None is (n - 1) / n with n the sum of the counts.

    Returns:
        The weights, ``(C,)``, float32, on the counts' device; they go to any loss as ``weight``.

    Raises:
        ValueError, TypeError: on counts that are not one positive number per class, naming the
            class; on a beta out of range.
    """
    values = check_counts(counts)
    if beta is None:
        total = values.sum().clamp(min=1)
        log_beta = torch.log1p(-1 / total)
    else:
        beta = check_number("beta", beta, at_least=0.0)
        if beta >= 1:
            raise ValueError(f"beta: expected a number in [0, 1), got {beta:g}")
        log_beta = torch.tensor(beta, dtype=torch.float64, device=values.device).log()
    # 1 - beta^n without the difference, which loses all digits where beta is nearly 1.
    weights = -1 / torch.expm1(values * log_beta)
    return (weights * (values.numel() / weights.sum())).float()


def inverse_frequency_weights(counts: Tensor | Sequence[float]) -> Tensor:
    """Class weights in inverse proportion to the counts, w_c = 1 / n_c, scaled to the sum C.

    Args:
        counts: n, a positive number for each class, of any type.

    Returns:
        The weights, ``(C,)``, float32, on the counts' device.

    Raises:
        ValueError, TypeError: on counts that are not one positive number per class, naming the
            class.
    """
    weights = 1 / check_counts(counts)
    return (weights * (weights.numel() / weights.sum())).float()
