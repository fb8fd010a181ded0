"""The loss of uncertain binary labels (Neven et al.)."""

from __future__ import annotations

from torch import Tensor, nn

from .._label_uncertainty import LabelUncertaintyOptions
from ..functional import Reduction, Upsample
from ..functional.label_uncertainty import check_label_uncertainty, label_uncertainty_with

__all__ = ["LabelUncertaintyLoss"]


class LabelUncertaintyLoss(nn.Module):
    r"""Learns which binary labels are uncertain, and flips those that are.

    Neven et al.: a network gives a mean :math:`\mu` and a log-variance :math:`\log \sigma^2` of
    each pixel's logit. With BCE(z, y) that of sigmoid(z), and the threshold :math:`\tau`

    .. math::
        W = \operatorname{sigmoid}\left(\frac{\tau - \sigma^2}{0.2}\right), \qquad
        l = u \left[a\, \mathrm{BCE}\left(\frac{\mu}{\sqrt{1 + \pi \sigma^2 / 8}}, y\right) +
            b \left(W\, \mathrm{BCE}(\mu, y) + (1 - W)\, \mathrm{BCE}(\mu, 1 - y)\right)\right]

    The first part teaches the variance; the second one, whose W is a constant to the gradient,
    takes the label back where the variance is above the threshold. A pixel thus has two minima: its
    label with a small variance, and the flipped label with a large one.

    Args:
        threshold: :math:`\tau`, at least 0.
        uncertainty_weight, bootstrap_weight: a and b, at least 0. A part of weight 0 is left out.
        detach_weight: whether W is a constant to the gradient.
        ignore_index: pixels with this target add nothing and get no gradient.
        reduction: ``"none"``, ``"sum"``, ``"mean"`` (divided by the number of valid pixels) or
            ``"mean_all"`` (divided by that of all pixels).
        upsample: ``"bilinear"`` or, for volumes, ``"trilinear"``: mean and log-variance are
            interpolated to the target's size. None: no interpolation.
        align_corners: as for :func:`torch.nn.functional.interpolate`.

    Shape:
        - mean, log_variance: ``(N, *)`` or ``(N, 1, *)``; float32, bfloat16, float16 or float64.
        - target: 0 or 1, that of mean, or that without its channel; int64, int32, int16, uint8 or
          bool. With `upsample` of any size.
        - bootstrap: ``(N,)``, bool: False for images whose labels are exact, which train the
          variance and are never flipped.
        - pixel_weight: u, that of the target, or one that broadcasts to it. It gets a gradient if
          it requires one.
        - result: a scalar, or that of the target for ``"none"``.

    Raises:
        ValueError, TypeError, IndexError: as :func:`segunc_ops.functional.bootstrapped_bce`.

    Example:
        >>> loss = LabelUncertaintyLoss(threshold=1.0)
        >>> mean, log_variance = model(images).chunk(2, 1)
        >>> loss(mean, log_variance, labels, bootstrap=~exact).backward()
    """

    reduction: Reduction

    def __init__(
        self,
        threshold: float,
        *,
        uncertainty_weight: float = 1.0,
        bootstrap_weight: float = 1.0,
        detach_weight: bool = True,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        upsample: Upsample | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        options = check_label_uncertainty(
            LabelUncertaintyOptions(
                threshold,
                uncertainty_weight,
                bootstrap_weight,
                detach_weight,
                ignore_index,
                reduction,
                upsample,
                align_corners,
            )
        )
        for name, value in options._asdict().items():
            setattr(self, name, value)

    def forward(
        self,
        mean: Tensor,
        log_variance: Tensor,
        target: Tensor,
        bootstrap: Tensor | None = None,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        options = LabelUncertaintyOptions(
            *[getattr(self, name) for name in LabelUncertaintyOptions._fields]
        )
        return label_uncertainty_with(options, mean, log_variance, target, bootstrap, pixel_weight)

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={getattr(self, name)!r}" for name in LabelUncertaintyOptions._fields
        )
