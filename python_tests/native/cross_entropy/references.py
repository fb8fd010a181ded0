"""What the cross-entropy kernels compute, in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from python_tests.native.harness import Array
from python_tests.native.references import log_softmax, philox

FOCAL, FALLING, RISING = 1, 2, 3  # csrc/math/modulation.h
NORMAL, UNIFORM = 1, 2  # csrc/math/philox.h


class Variation(NamedTuple):
    """What makes another loss of cross-entropy."""

    kind: int = 0
    rate: float = 0.0
    peak: float = 1.0
    detached: bool = False
    image_factor: Array | None = None  # [N, C]
    offset: Array | None = None  # [C]
    scale: float = 1.0
    on_target: bool = False
    noise: int = 0
    sigma: float = 0.0
    seed: int = 0

    def logits(self, logits: Array, index: Array) -> Array:
        """[N, C, P], those that the loss is of."""
        if self.offset is None:
            return logits
        offset = self.offset.astype(np.float64)[None, :, None]
        if self.noise:
            return logits + offset * self._noise(logits.shape)
        if self.on_target:
            offset = np.where(
                np.arange(logits.shape[1])[None, :, None] == index[:, None], offset, 0
            )
        return self.scale * logits + offset

    def _noise(self, shape: tuple[int, ...]) -> Array:
        """|delta|, [N, C, P]."""
        images, classes, pixels = shape
        index = np.arange(images * pixels, dtype=np.uint64)
        groups = np.arange((classes + 3) // 4, dtype=np.uint64)[:, None]
        low = index & np.uint64(0xFFFFFFFF)
        words = philox([low, index >> np.uint64(32), groups, np.uint64(0)], self.seed)
        words = words.reshape(-1, images, pixels).swapaxes(0, 1)
        size = (words >> np.uint64(8)).astype(np.float64) * 2.0**-24
        if self.noise == NORMAL:
            radius, angle = np.sqrt(-2 * np.log(1 - size[:, ::2])), np.pi / 2 * size[:, 1::2]
            size = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2)
            size = size.reshape(words.shape)
        return np.minimum(self.sigma * size[:, :classes], 1)

    def factor(self, p: Array) -> tuple[Array, Array]:
        """Of pixels whose class has probability p, and its derivative by p."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == FOCAL:
                slope = -self.rate * (1 - p) ** (self.rate - 1)
                factor = (1 - p) ** self.rate
            elif self.kind in (FALLING, RISING):
                sign = -1 if self.kind == FALLING else 1
                factor = self.peak * np.exp(-self.rate * (p if sign < 0 else 1 - p))
                slope = sign * self.rate * factor
            else:
                factor, slope = np.ones_like(p), np.zeros_like(p)
        return factor, np.zeros_like(p) if self.detached else slope

    def size(self) -> float:
        """What rounding errors grow by."""
        by_image = 1.0 if self.image_factor is None else float(self.image_factor.max())
        return (1 + self.rate) * max(1.0, self.peak) * by_image


PLAIN = Variation()


class CrossEntropy(NamedTuple):
    """Results of :func:`cross_entropy`, per pixel [N, P] or per logit [N, C, P]."""

    loss: Array  # with the pixel weight
    unweighted: Array  # without it
    gradient: Array  # of the loss with respect to the logits
    magnitude: Array  # [N, P]: what rounding errors of the gradient are relative to
    valid: Array
    bad: Array


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    pixel_weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
    variation: Variation = PLAIN,
) -> CrossEntropy:
    """torch's cross-entropy with a weight per pixel, or a variation of it.

    Args:
        logits: [N, C, P].
        target: [N, P], integer.
        weight: [C] or None.
        pixel_weight: [N, P] or None.
        ignore_index: the target of pixels that count nothing.
        label_smoothing: in [0, 1].
        variation: of the loss.
    """
    classes = logits.shape[1]
    target = target.astype(np.int64)
    valid = target != ignore_index
    bad = valid & ((target < 0) | (target >= classes))
    index = np.where(valid & ~bad, target, 0)
    weight = np.ones(classes) if weight is None else weight.astype(np.float64)
    pixel_weight = np.ones(target.shape) if pixel_weight is None else pixel_weight.astype(float)

    one_hot = np.arange(classes)[None, :, None] == index[:, None]
    soft = ((1 - label_smoothing) * one_hot + label_smoothing / classes) * weight[None, :, None]
    log_probability = log_softmax(variation.logits(logits, index))
    with np.errstate(invalid="ignore", over="ignore"):
        # A class without mass in the target counts nothing, however improbable it is.
        terms = np.where((soft == 0) & ~np.isnan(log_probability), 0, -soft * log_probability)
        unweighted = np.where(valid, terms.sum(1), 0.0)
        unweighted = np.where(bad, np.nan, unweighted)
        total = soft.sum(1, keepdims=True)
        probability = np.exp(log_probability)
        gradient = total * probability - soft
        if variation.kind or variation.image_factor is not None:
            p = np.take_along_axis(probability, index[:, None], 1)[:, 0]
            factor, slope = variation.factor(p)
            pull = np.where(unweighted == 0, 0, unweighted * slope * p)
            if variation.image_factor is not None:
                by_image = np.take_along_axis(variation.image_factor.astype(float), index, 1)
                factor, pull = factor * by_image, pull * by_image
            gradient = factor[:, None] * gradient + pull[:, None] * (one_hot - probability)
            unweighted = unweighted * factor
        gradient = variation.scale * gradient * pixel_weight[:, None]
        loss = np.where(valid, unweighted * pixel_weight, 0.0)
    gradient = np.where(valid[:, None], gradient, 0.0)
    magnitude = np.where(valid, total[:, 0] * np.abs(pixel_weight), 0.0)
    magnitude = magnitude * variation.size() * variation.scale
    return CrossEntropy(loss, unweighted, gradient, magnitude, valid, bad)
