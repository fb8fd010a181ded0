"""A head that gives logits their mean and their uncertainty, for any backbone's features."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_choice, check_number, check_positive
from ._dtypes import accumulate_dtype

__all__ = ["Covariance", "GaussianHead", "GaussianLogits"]

Covariance = Literal["diagonal", "cholesky"]
"""Whether the logits of a pixel are independent, or have a covariance of C (C + 1) / 2 numbers."""

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class GaussianLogits(NamedTuple):
    """Normally distributed logits, as the losses of label uncertainty take them."""

    mean: Tensor
    """mu, ``(N, C, *)``; of binary labels ``(N, 1, *)``."""
    spread: Tensor
    """Of binary labels the log-variance ``(N, 1, *)``; of more classes standard deviations
    ``(N, C, *)``, or the rows of the lower triangle of a Cholesky factor ``(N, C (C + 1) / 2, *)``.
    """

    @property
    def variance(self) -> Tensor:
        """Of each logit, ``(N, C, *)``, for :func:`segunc_ops.functional.bootstrap_targets`.

        The exponential of the log-variance, the square of the deviation, or the sum of the squares
        of a row of the Cholesky factor; of the mean's type.
        """
        num_classes = self.mean.shape[1]
        if num_classes == 1:
            return self.spread.exp()
        squares = self.spread.square()
        if squares.shape[1] == num_classes:
            return squares
        rows = squares.split([*range(1, num_classes + 1)], 1)
        return torch.stack([row.sum(1) for row in rows], 1)


class GaussianHead(nn.Module):
    r"""The mean and the spread of each pixel's logits, each by a convolution of the features f.

    With :math:`a = W f + b`, and s the smallest deviation

    .. math::
        \mu = W_\mu f + b_\mu, \qquad \log \sigma^2 = a \quad (C = 1), \qquad
        \sigma_c = s + \log(1 + e^{a_c}) \quad \text{(diagonal)}, \qquad
        A_{cc} = s + \log(1 + e^{a_{cc}}), \quad A_{cj} = a_{cj}, \; j < c \quad \text{(Cholesky)}

    W starts at 0 and b such that each logit has the variance asked for, whatever the features.
    Deviations stay above s: at 0 nothing would be learnt of them.

    What comes out has the features' resolution, and losses with ``upsample`` interpolate it.

    Args:
        in_channels: of the features.
        num_classes: C; 1 for binary labels and :class:`segunc_ops.LabelUncertaintyLoss`, more for
            :class:`segunc_ops.ExpectedCrossEntropyLoss`.
        covariance: ``"diagonal"``: logits of a pixel are independent. ``"cholesky"``: they have a
            covariance :math:`A A^\top`, of which the lower triangle A comes out by rows.
        start_variance: of each logit before training. Where labels are bootstrapped it has to be
            below their threshold, or all are replaced in the first step.
        min_deviation: s, at least 0; not for C = 1.
        kernel_size: of the convolutions, odd.
        spatial_dims: axes of the features beside images and channels: 1, 2 or 3.

    Shape:
        - features: ``(N, in_channels, *)`` of any float type.
        - mean: ``(N, C, *)``.
        - spread: ``(N, 1, *)`` log-variances for C = 1; ``(N, C, *)`` standard deviations;
          ``(N, C (C + 1) / 2, *)`` for ``"cholesky"``. Of the mean's type, under autocast too;
          log(1 + e^a) is computed in float32 at least. Both keep the features' memory format.

    Raises:
        ValueError: numbers out of range, a covariance of one class or another word.
        TypeError: what is no number.

    Example:
        >>> head = GaussianHead(256, 19)
        >>> criterion = ExpectedCrossEntropyLoss(ignore_index=255, upsample="bilinear")
        >>> criterion(*head(backbone(images)), labels).backward()
    """

    diagonal: Tensor | None

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        covariance: Covariance = "diagonal",
        start_variance: float = 0.1,
        min_deviation: float = 1e-3,
        kernel_size: int = 1,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.in_channels = check_positive("in_channels", in_channels)
        self.num_classes = check_positive("num_classes", num_classes)
        check_choice("covariance", covariance, get_args(Covariance))
        if covariance == "cholesky" and num_classes == 1:
            raise ValueError("covariance: expected 'diagonal' for one class, got 'cholesky'")
        self.covariance = covariance
        self.start_variance = check_number("start_variance", start_variance, above=0.0)
        self.min_deviation = check_number("min_deviation", min_deviation, at_least=0.0)
        if check_positive("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        if spatial_dims not in _CONVOLUTIONS:
            raise ValueError(f"spatial_dims: expected 1, 2 or 3, got {spatial_dims!r}")
        start = math.sqrt(start_variance) - min_deviation
        if num_classes > 1 and start <= 0:
            raise ValueError(
                f"start_variance: expected more than the square of min_deviation "
                f"{min_deviation:g}, got {start_variance}"
            )
        convolution = _CONVOLUTIONS[spatial_dims]
        triangle = num_classes * (num_classes + 1) // 2
        outputs = triangle if covariance == "cholesky" else num_classes
        padding = kernel_size // 2
        self.mean = convolution(in_channels, num_classes, kernel_size, padding=padding)
        self.spread = convolution(in_channels, outputs, kernel_size, padding=padding)
        diagonal = None
        if covariance == "cholesky":
            of_class = torch.arange(num_classes)
            diagonal = torch.zeros(triangle, dtype=torch.bool)
            diagonal[of_class * (of_class + 3) // 2] = True
            diagonal = diagonal.view(-1, *(1,) * spatial_dims)
        # Follows from the arguments: no part of the state.
        self.register_buffer("diagonal", diagonal, persistent=False)
        self.reset_spread()

    @torch.no_grad()
    def reset_spread(self) -> None:
        """Starts the spread anew, as an initialisation of all layers by a network's own must."""
        bias = self.spread.bias
        assert bias is not None
        self.spread.weight.zero_()
        if self.num_classes == 1:
            bias.fill_(math.log(self.start_variance))
            return
        deviation = math.sqrt(self.start_variance) - self.min_deviation
        inverse = deviation + math.log(-math.expm1(-deviation))  # of log(1 + e^a)
        if self.diagonal is None:
            bias.fill_(inverse)
        else:
            bias.copy_(torch.where(self.diagonal.flatten(), inverse, 0.0))

    def forward(self, features: Tensor) -> GaussianLogits:
        mean, spread = self.mean(features), self.spread(features)
        if self.num_classes == 1:
            return GaussianLogits(mean, spread)
        precise = F.softplus(spread.to(accumulate_dtype(spread.dtype))) + self.min_deviation
        positive = precise.to(spread.dtype)
        if self.diagonal is not None:
            positive = torch.where(self.diagonal, positive, spread)
        return GaussianLogits(mean, positive)

    def extra_repr(self) -> str:
        return (
            f"covariance={self.covariance!r}, start_variance={self.start_variance:g}, "
            f"min_deviation={self.min_deviation:g}"
        )
