"""The loss of labels that are uncertain, for networks that answer at a part of their resolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..functional import bootstrap_targets
from ..heads import GaussianLogits
from ..losses import CrossEntropyLoss, ExpectedCrossEntropyLoss, LabelUncertaintyLoss
from ..reference import interpolate

BINARY_THRESHOLD, THRESHOLD = 1.5, 0.35
"""Of the variance, of two classes and of more, whose largest variance falls further."""


class UncertainLabelsLoss(nn.Module):
    """Label uncertainty (Neven et al.) of any number of classes: two losses of equal weight.

    One learns the spread of the logits from how far labels contradict each other, the other takes
    the labels back where the variance is above a threshold. Of two classes, whose logit is one, it
    is :class:`segunc_ops.LabelUncertaintyLoss`; of more
    :class:`segunc_ops.ExpectedCrossEntropyLoss` and the cross-entropy of the means by
    :func:`segunc_ops.functional.bootstrap_targets`.

    Args:
        threshold: of the variance; None takes :data:`BINARY_THRESHOLD` or :data:`THRESHOLD`.
        num_draws: of the logits, of more than two classes; even: they are antithetic.
        ignore_index: label of the pixels that are left out.
        upsample: how logits are interpolated to the label's size.
    """

    def __init__(
        self,
        threshold: float | None,
        num_draws: int,
        ignore_index: int,
        upsample: Literal["bilinear"],
    ) -> None:
        super().__init__()
        self.binary_threshold = BINARY_THRESHOLD if threshold is None else threshold
        self.threshold = THRESHOLD if threshold is None else threshold
        self.ignore_index = ignore_index
        self.upsample = upsample
        self.binary = LabelUncertaintyLoss(self.binary_threshold, ignore_index=ignore_index)
        self.expected = ExpectedCrossEntropyLoss(
            num_draws=num_draws, antithetic=num_draws % 2 == 0, ignore_index=ignore_index
        )
        self.bootstrapped = CrossEntropyLoss(ignore_index=ignore_index, upsample=upsample)

    def _enlarge(self, values: Tensor, target: Tensor) -> Tensor:
        return interpolate(values, target.shape[1:], self.upsample, False)

    def forward(
        self, logits: GaussianLogits, target: Tensor, bootstrap: Tensor | None = None
    ) -> Tensor:
        """The loss of mean and spread (N, C, h, w) by labels (N, H, W)."""
        mean, spread = (self._enlarge(each, target) for each in logits)
        if mean.shape[1] == 1:
            return self.binary(mean, spread, target, bootstrap)
        expected: Tensor = self.expected(mean, spread, target)
        replaced = self.replaced_labels(logits, target, bootstrap)
        own: Tensor = self.bootstrapped(logits.mean, replaced)
        return expected + own

    @torch.no_grad()
    def replaced_labels(
        self, logits: GaussianLogits, target: Tensor, bootstrap: Tensor | None = None
    ) -> Tensor:
        """The labels (N, H, W) that the second loss teaches.

        Of two classes it weights both labels of a pixel; this is the one of more weight.
        """
        variance = self._enlarge(logits.variance, target)
        if variance.shape[1] == 1:
            flips = (variance[:, 0] > self.binary_threshold) & (target != self.ignore_index)
            if bootstrap is not None:
                flips &= bootstrap[:, None, None]
            return torch.where(flips, 1 - target, target)
        return bootstrap_targets(
            self._enlarge(logits.mean, target),
            variance,
            target,
            threshold=self.threshold,
            bootstrap=bootstrap,
            ignore_index=self.ignore_index,
        )
