"""Cross-entropy with a factor that follows from the probability of a pixel's own class."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from .._checks import check_bool, check_choice, check_number
from .._options import LossOptions
from .._types import REDUCTIONS, Reduction, Upsample
from .._variations import Curve, Focal, PixelAdaptive, Variation
from .cross_entropy import cross_entropy_with

__all__ = ["focal_cross_entropy", "pixel_adaptive_cross_entropy"]

# exp of more is no float32.
_LARGEST_EXPONENT = 80.0


def check_focal(gamma: object) -> Focal:
    """The factor of focal loss.

    Raises:
        TypeError, ValueError: gamma is not a finite number of at least 0.
    """
    return Focal(check_number("gamma", gamma, at_least=0.0))


def check_pixel_adaptive(
    temperature: object, epsilon: object, curve: Curve, size_normalized: bool, detach_weight: bool
) -> PixelAdaptive:
    """The factor of pixel-wise adaptive training.

    Raises:
        TypeError, ValueError: an argument is not what it has to be.
    """
    temperature = check_number("temperature", temperature, above=0.0)
    epsilon = check_number("epsilon", epsilon)
    check_choice("curve", curve, get_args(Curve))
    if (1 + abs(epsilon)) / temperature > _LARGEST_EXPONENT:
        least = (1 + abs(epsilon)) / _LARGEST_EXPONENT
        raise ValueError(
            f"temperature: expected at least {least:g} for epsilon {epsilon:g}, whose weights are "
            f"finite in float32, got {temperature:g}"
        )
    check_bool("size_normalized", size_normalized)
    check_bool("detach_weight", detach_weight)
    return PixelAdaptive(temperature, epsilon, curve, detach_weight, size_normalized)


def check_reduction(modulation: PixelAdaptive, reduction: str) -> None:
    """Raises unless the reduction has a meaning."""
    check_choice("reduction", reduction, REDUCTIONS)
    if modulation.size_normalized and reduction == "mean_all":
        raise ValueError(
            "reduction: expected 'mean', which divides by the number of images, 'sum' or 'none' "
            "with size_normalized, got 'mean_all'; pass size_normalized=False to divide by all "
            "pixels"
        )


def focal_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Cross-entropy whose pixels count less the more certain they are of their class.

    "Focal Loss for Dense Object Detection", Lin et al. 2017, equation 5, for any number of classes:

    .. math:: l = u\, w_y\, (1 - p_y)^\gamma\, (-\log p_y)

    Loss and gradient are finite where p is 1, for exponents below 1 too; both are 0 there.

    Args:
        input, target, weight, pixel_weight: as for :func:`cross_entropy`.
        gamma: the exponent, at least 0; 0 is cross-entropy.
        ignore_index, reduction, upsample, align_corners, overwrite_input: as there. Labels cannot
            be smoothed: the formula has no other class than the labelled one.

    Returns:
        As :func:`cross_entropy`. ``"mean"`` divides by the sum of w_y over the valid pixels; the
        factor is not in it.

    Raises:
        ValueError, TypeError, IndexError: as :func:`cross_entropy`; on a gamma that is negative or
            no number.
    """
    variation = Variation(check_focal(gamma))
    return cross_entropy_with(
        LossOptions(weight, ignore_index, reduction, 0.0, upsample, align_corners, overwrite_input),
        input,
        target,
        pixel_weight,
        variation,
    )


def pixel_adaptive_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    temperature: float = 20.0,
    epsilon: float = 0.0,
    curve: Curve = "equation",
    size_normalized: bool = True,
    detach_weight: bool = False,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Cross-entropy weighted by image-wise class sizes and by a pixel's own probability.

    "Pixel-wise Adaptive Training for Long-tailed Segmentation", Do et al. 2024, equations 4 and 5:

    .. math::
        L = \frac{1}{B} \sum_i \sum_j \frac{\beta_{ij}}{S_i^{y_{ij}}}\, \mathrm{CE}_{ij}, \qquad
        \beta = \exp\frac{1 - p_y - \epsilon}{T}

    S_i^l is the number of pixels of class l in image i, counted in the same call; ignored pixels
    count nothing. The paper's table 1 prints the inverse curve, 1 / beta.

    Args:
        input, target, weight, pixel_weight: as for :func:`cross_entropy`.
        temperature: T, above 0.
        epsilon: finite; a constant factor of all pixels.
        curve: ``"equation"``, or ``"table"`` for the inverse.
        size_normalized: whether losses are divided by S.
        detach_weight: whether beta is a constant for the gradient. The paper differentiates it.
        ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input: as
            there.

    Returns:
        As :func:`cross_entropy`. With `size_normalized` ``"mean"`` is equation 4, the sum divided
        by the number of images B, and there is no ``"mean_all"``.

    Raises:
        ValueError, TypeError, IndexError: as :func:`cross_entropy`; on a temperature that is not
            above 0 or whose weights overflow float32; on ``"mean_all"`` with `size_normalized`.
    """
    modulation = check_pixel_adaptive(temperature, epsilon, curve, size_normalized, detach_weight)
    given = LossOptions(
        weight, ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input
    )
    check_reduction(modulation, given.reduction)
    return cross_entropy_with(given, input, target, pixel_weight, Variation(modulation))
