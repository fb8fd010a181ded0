"""Cross-entropy weighted by class and by pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ._base import ClassWeightedLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import LossArguments

__all__ = ["CrossEntropyLoss"]


class CrossEntropyLoss(ClassWeightedLoss):
    r"""In place of :class:`torch.nn.CrossEntropyLoss` with class indices, plus a weight per pixel.

    With p = softmax(z), label y, class weights w, pixel weight u and smoothing e:

    .. math:: l = u \left[(1 - e)\, w_y (-\log p_y) + \tfrac{e}{C} \sum_c w_c (-\log p_c)\right]

    Args:
        weight: class weights w, ``(C,)``, of any float type; a buffer, which moves with the module
            and is saved with it.
        ignore_index: pixels with this target add nothing and get no gradient.
        reduction: ``"none"``, ``"sum"``, ``"mean"`` (divided by the sum of w_y over the valid
            pixels, as in torch) or ``"mean_all"`` (divided by the number of all pixels).
        label_smoothing: e, in [0, 1].
        upsample: ``"bilinear"`` or, for volumes, ``"trilinear"``: z are the logits interpolated to
            the target's size, which are never in memory. None: no interpolation.
        align_corners: as for :func:`torch.nn.functional.interpolate`.
        overwrite_input: whether the gradient is written over the logits: see
            :func:`segunc_ops.functional.cross_entropy`.

    Shape:
        - input: ``(N, C, *)``, ``(N, C)`` or ``(C,)`` logits; float32, bfloat16, float16 or
          float64.
        - target: ``(N, *)`` (``()`` for ``(C,)``) class indices; int64, int32, int16 or uint8. With
          `upsample` its size need not be that of the logits.
        - pixel_weight: that of the target, or one that broadcasts to it; any float type. It gets a
          gradient if it requires one.
        - result: a scalar, or that of the target for ``"none"``.

    Raises:
        ValueError, TypeError, IndexError: as :func:`segunc_ops.functional.cross_entropy`;
            arguments of the constructor that are out of range there.

    Example:
        >>> loss = CrossEntropyLoss(ignore_index=255)
        >>> loss(model(images), labels).backward()
    """

    def __init__(self, weight: Tensor | None = None, **options: Unpack[LossArguments]) -> None:
        super().__init__(weight, options)

    def forward(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        return self._cross_entropy(input, target, pixel_weight)
