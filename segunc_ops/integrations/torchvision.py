"""The losses with torchvision's segmentation networks and in its reference training script.

Its networks enlarge their logits eight or sixteen times in their forward pass. With
:class:`LowResolutionLogits` that happens within the loss in training, and as ever in evaluation.
:class:`SegmentationCriterion` is the script's criterion for what they return.

Needs torchvision: ``pip install 'segunc_ops[torchvision]'``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .._adapters import SharedObservation, check_interpolating
from .._checks import check_number
from .._hooks import Hooked, ReplacedMethod
from ..losses._base import ClassWeightedLoss
from ..sampling.models import unwrap

try:
    from torchvision.models.segmentation import FCN, LRASPP
except ImportError as error:
    raise ImportError(
        "segunc_ops.integrations.torchvision needs torchvision; install it with "
        "`pip install 'segunc_ops[torchvision]'`"
    ) from error

__all__ = ["LowResolutionLogits", "SegmentationCriterion"]

_OUT, _AUX = "out", "aux"


def _forward(model: Any, x: Tensor) -> dict[str, Tensor]:
    if not model.training:
        return type(model).forward(model, x)
    features = model.backbone(x)
    result = OrderedDict([(_OUT, model.classifier(features[_OUT]))])
    if model.aux_classifier is not None:
        result[_AUX] = model.aux_classifier(features[_AUX])
    return result


def _lraspp_forward(model: Any, input: Tensor) -> dict[str, Tensor]:
    if not model.training:
        return type(model).forward(model, input)
    return OrderedDict([(_OUT, model.classifier(model.backbone(input)))])


def _low_resolution_forward(model: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """The forward method that a network has in training, without its interpolations."""
    if type(model).forward is FCN.forward:  # DeepLabV3's, too
        return _forward
    if type(model).forward is LRASPP.forward:
        return _lraspp_forward
    raise TypeError(
        "model: expected one with the forward method of torchvision's FCN, DeepLabV3 or LRASPP, "
        f"got {type(model).__name__}"
    )


class LowResolutionLogits(Hooked):
    """Makes a network return logits of its classifiers' resolution in training mode.

    ``criterion(model(images), labels)`` is what it was, and so are its gradients, but nothing of
    the labels' size and all classes is ever in memory. In evaluation mode the network is the stock
    one to the bit: for validation, inference and export. Its parameters and their names are as they
    were. The criterion serves both, as interpolation to the size that logits have is none.

    It works until :meth:`remove`, or to the end of a ``with`` block.

    Args:
        model: of :mod:`torchvision.models.segmentation`; also inside torch.compile's or
            DistributedDataParallel's wrapper.
        criterion: the loss that ``"out"`` goes to, or :class:`SegmentationCriterion`; with
            ``upsample="bilinear"``.

    Raises:
        TypeError: if the model has another forward method, or the criterion does not interpolate.
        ValueError: if the criterion interpolates otherwise; if the model has low-resolution logits
            already, or somebody else's forward method.

    Example:
        >>> criterion = SegmentationCriterion(
        ...     UncertaintyAwareCrossEntropyLoss(ignore_index=255, upsample="bilinear")
        ... )
        >>> low_resolution = LowResolutionLogits(model, criterion)
        >>> observer = Observer(model, criterion)
        >>> criterion(model(images), labels).backward()
    """

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        model = unwrap(model)
        forward = _low_resolution_forward(model)
        check_interpolating(criterion, align_corners=False)
        self._handles = [ReplacedMethod(model, "forward", forward)]


class SegmentationCriterion(SharedObservation):
    r"""The loss of a network's dict: :math:`\ell(\text{out}) + 0.5\, \ell(\text{aux})`.

    In place of the reference script's ``criterion(inputs, target)``. The auxiliary classifier has
    the same loss, weighted by the same uncertainty: what an Observer, or a call of :meth:`observe`,
    tells it serves both. An auxiliary classifier without weight costs the loss nothing.

    Args:
        criterion: any loss of logits and class indices.
        auxiliary_weight: of the loss of ``"aux"``, where the network returns one.

    Shape:
        - input: a mapping with ``"out"``, perhaps ``"aux"``: logits ``(N, C, H, W)``.
        - target: ``(N, H, W)`` class indices; with `upsample` of any size.
        - result: that of the criterion.

    Raises:
        TypeError: if the criterion is no such loss, or the input no such mapping.
        ValueError: if the weight is below 0.

    Example:
        >>> criterion = SegmentationCriterion(CrossEntropyLoss(ignore_index=255))
        >>> criterion(model(images), labels).backward()
    """

    def __init__(self, criterion: ClassWeightedLoss, auxiliary_weight: float = 0.5) -> None:
        super().__init__(criterion)
        self.auxiliary_weight = check_number("auxiliary_weight", auxiliary_weight, at_least=0.0)

    def forward(self, input: Mapping[str, Tensor], target: Tensor) -> Tensor:
        if not isinstance(input, Mapping) or _OUT not in input:
            raise TypeError(
                f"input: expected a mapping with {_OUT!r}, as torchvision's networks return, got "
                f"{type(input).__name__}"
            )
        loss = self._loss(input[_OUT], target)
        if _AUX in input and self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * self._loss(input[_AUX], target)
        self._forget()
        return loss

    def extra_repr(self) -> str:
        return f"auxiliary_weight={self.auxiliary_weight:g}"
