"""Cross-entropy of logits that are adjusted by how often classes occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from .._checks import check_choice, check_number, check_tensor
from .._options import LossOptions
from .._types import Reduction, Upsample
from .._variations import Adjustment, Distribution, Margins, Noise, Variation
from .class_weights import check_counts, margins, relative_log_counts, variation_scale
from .cross_entropy import cross_entropy_with
from .seeds import seed_tensor

__all__ = [
    "balanced_softmax_cross_entropy",
    "ldam_cross_entropy",
    "logit_variation_cross_entropy",
]


def balanced_adjustment(counts: Tensor | Sequence[float]) -> Adjustment:
    """The logits of balanced softmax.

    Raises:
        ValueError, TypeError: counts are none.
    """
    return Adjustment(relative_log_counts(check_counts(counts)))


def ldam_adjustment(
    counts: Tensor | Sequence[float], max_margin: object, scale: object, margin_on: object
) -> Adjustment:
    """The logits of LDAM.

    Raises:
        ValueError, TypeError: an argument is not what it has to be.
    """
    max_margin = check_number("max_margin", max_margin, at_least=0.0)
    scale = check_number("scale", scale, above=0.0)
    check_choice("margin_on", margin_on, get_args(Margins))
    offset = -scale * margins(check_counts(counts), max_margin)
    return Adjustment(offset, scale, margin_on == "target")


def variation_adjustment(
    counts: Tensor | Sequence[float],
    sigma: object,
    distribution: Distribution,
) -> Adjustment:
    """The logits of balancing logit variation, but for the seed of their noise.

    Raises:
        ValueError, TypeError: an argument is not what it has to be.
    """
    sigma = check_number("sigma", sigma, at_least=0.0)
    check_choice("distribution", distribution, get_args(Distribution))
    scale = variation_scale(check_counts(counts))
    return Adjustment(scale, noise=Noise(distribution, sigma))


def seeded(adjustment: Adjustment, seed: int | Tensor | None, device: torch.device) -> Adjustment:
    """With a seed for this call: that one, or one that torch's generator of the device draws.

    Raises:
        ValueError, TypeError: the seed is no integer.
    """
    assert adjustment.noise is not None
    return adjustment._replace(noise=adjustment.noise._replace(seed=seed_tensor(seed, device)))


def balanced_softmax_cross_entropy(
    input: Tensor,
    target: Tensor,
    counts: Tensor | Sequence[float],
    weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Cross-entropy of logits that have the classes' prior added, which prediction leaves out.

    "Balanced Meta-Softmax for Long-Tailed Visual Recognition", Ren et al. 2020, equation 4: with
    n_c the number of pixels, instances or images of class c in the training set,

    .. math:: l = u\, w_y \left(-\log \frac{n_y e^{z_y}}{\sum_c n_c e^{z_c}}\right)

    Args:
        input, target, weight, pixel_weight: as for :func:`cross_entropy`.
        counts: n, a positive number for each class, of any type; only their ratios matter. A tensor
            on a GPU is not waited for: a count of zero there makes losses that are no number.
        ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input: as
            there.

    Returns:
        As :func:`cross_entropy`.

    Raises:
        ValueError, TypeError, IndexError: as :func:`cross_entropy`; on counts that are not one
            positive number per class, naming the class.
    """
    variation = Variation(adjustment=balanced_adjustment(counts))
    return cross_entropy_with(
        LossOptions(
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            upsample,
            align_corners,
            overwrite_input,
        ),
        input,
        target,
        pixel_weight,
        variation,
    )


def ldam_cross_entropy(
    input: Tensor,
    target: Tensor,
    counts: Tensor | Sequence[float],
    weight: Tensor | None = None,
    *,
    max_margin: float = 0.5,
    scale: float = 20.0,
    margin_on: Margins = "target",
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Cross-entropy that asks of rare classes to be ahead by a larger margin.

    "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", Cao et al. 2019,
    equations 13 and 14: with margins m_c = max_margin (n_c / min_k n_k)^(-1/4),

    .. math:: l = u\, w_y \left(-\log
        \frac{e^{s (z_y - m_y)}}{e^{s (z_y - m_y)} + \sum_{c \ne y} e^{s z_c}}\right)

    Args:
        input, target, weight, pixel_weight, counts: as for :func:`balanced_softmax_cross_entropy`.
        max_margin: the margin of the rarest class, at least 0.
        scale: s, above 0.
        margin_on: ``"target"``, or ``"all"`` for margins off every logit, as the comparison in
            "Pixel-wise Adaptive Training" (Do et al. 2024, table 2) has it.
        ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input: as
            there.

    Returns:
        As :func:`cross_entropy`.

    Raises:
        ValueError, TypeError, IndexError: as :func:`balanced_softmax_cross_entropy`; on a margin or
            scale out of range.
    """
    variation = Variation(adjustment=ldam_adjustment(counts, max_margin, scale, margin_on))
    return cross_entropy_with(
        LossOptions(
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            upsample,
            align_corners,
            overwrite_input,
        ),
        input,
        target,
        pixel_weight,
        variation,
    )


def logit_variation_cross_entropy(
    input: Tensor,
    target: Tensor,
    counts: Tensor | Sequence[float],
    weight: Tensor | None = None,
    *,
    sigma: float = 0.5,
    distribution: Distribution = "normal",
    seed: int | Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Cross-entropy of logits with noise, which is larger the rarer their class is.

    "Balancing Logit Variation for Long-tailed Semantic Segmentation", Wang et al. 2023, equations 3
    and 4: with a random number delta for each pixel and class,

    .. math::
        l = u\, w_y\, \mathrm{CE}(z_c + c_c |\delta|), \qquad
        c_c = \frac{\log \sum_k n_k - \log n_c}{\max_j (\log \sum_k n_k - \log n_j)}, \qquad
        \delta \sim N(0, \sigma) \text{ clamped to } [-1, 1]

    The noise is made where it is used, forward and backward, and takes no memory: a counter-based
    generator gives the same number for the same seed, pixel and class. It is for training: a loss
    that is to be compared over time is :func:`cross_entropy`.

    Args:
        input, target, weight, pixel_weight, counts: as for :func:`balanced_softmax_cross_entropy`.
        sigma: of the normal distribution, or the largest size of the uniform one; at least 0.
        distribution: ``"normal"``, or ``"uniform"`` on [-sigma, sigma].
        seed: of the noise, an integer or an int64 tensor ``()``; None draws one by torch's
            generator of the input's device, which ``torch.manual_seed`` sets and checkpointing
            restores.
        ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input: as
            there. With `upsample` noise is added to the interpolated logits.

    Returns:
        As :func:`cross_entropy`.

    Raises:
        ValueError, TypeError, IndexError: as :func:`balanced_softmax_cross_entropy`; on a negative
            sigma, an unknown distribution, a seed that is no integer.
    """
    check_tensor("input", input)
    adjustment = seeded(variation_adjustment(counts, sigma, distribution), seed, input.device)
    options = LossOptions(
        weight, ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input
    )
    variation = Variation(adjustment=adjustment)
    return cross_entropy_with(options, input, target, pixel_weight, variation)
