"""The losses with networks of segmentation_models_pytorch.

Most of its networks end in a layer that enlarges their logits four or eight times. With
:class:`LowResolutionLogits` that happens within the loss in training, and as ever in evaluation.

Needs segmentation_models_pytorch: ``pip install 'segunc_ops[smp]'``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .._adapters import check_interpolating
from .._hooks import Hooked, ReplacedMethod
from ..sampling.models import unwrap

try:
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTSegmentationHead
except ImportError as error:
    raise ImportError(
        "segunc_ops.integrations.smp needs segmentation_models_pytorch; install it with "
        "`pip install 'segunc_ops[smp]'`"
    ) from error

__all__ = ["LowResolutionLogits"]


def _forward(head: SegmentationHead, x: Tensor) -> Tensor:
    if not head.training:
        return type(head).forward(head, x)
    convolution, _, activation = head
    logits: Tensor = activation(convolution(x))
    return logits


def _dpt_forward(head: DPTSegmentationHead, x: Tensor) -> Tensor:
    if not head.training:
        return type(head).forward(head, x)
    logits: Tensor = head.activation(head.head(x))
    return logits


def _low_resolution_forward(model: nn.Module, head: nn.Module) -> Callable[..., Tensor]:
    """The forward method that a head has in training, without its interpolation."""
    name = type(model).__name__
    if isinstance(head, DPTSegmentationHead):
        activation, forward = head.activation, _dpt_forward
    elif isinstance(head, SegmentationHead) and type(head).forward is nn.Sequential.forward:
        _, layer, activation = head
        if not isinstance(layer, nn.Upsample):
            raise ValueError(
                f"model: expected one whose last layer interpolates its logits, got {name}, whose "
                "logits have the images' size; its loss needs nothing but the criterion"
            )
        if layer.mode != "bilinear" or not layer.align_corners:
            raise ValueError(
                "model: expected one that interpolates bilinearly with align_corners=True, got "
                f"{name} with {layer}"
            )
        forward = _forward
    else:
        raise TypeError(
            "model: expected a network of segmentation_models_pytorch with its segmentation head, "
            f"got {name}"
        )
    if not isinstance(activation.activation, nn.Identity):
        raise ValueError(
            f"model: expected activation=None, as losses take logits, got {name} with {activation}"
        )
    return forward


class LowResolutionLogits(Hooked):
    """Makes a network return the logits of its decoder's resolution in training mode.

    ``criterion(model(images), labels)`` is what it was, and so are its gradients, but nothing of
    the labels' size and all classes is ever in memory. In evaluation mode the network is the stock
    one to the bit: for validation, inference and export. Its parameters and their names are as they
    were. The criterion serves both, as interpolation to the size that logits have is none.

    It works until :meth:`remove`, or to the end of a ``with`` block.

    Args:
        model: one of ``FPN``, ``PSPNet``, ``DeepLabV3``, ``DeepLabV3Plus``, ``PAN``, ``UPerNet``,
            ``Segformer`` and ``DPT``, with ``activation=None``; also inside torch.compile's or
            DistributedDataParallel's wrapper. With ``aux_params`` it returns a pair as ever, of
            which the first are the logits.
        criterion: the loss that they go to, with ``upsample="bilinear", align_corners=True``.

    Raises:
        TypeError: if the model is another, or the criterion does not interpolate.
        ValueError: if the model's logits have the images' size already (``Unet``, ``UnetPlusPlus``,
            ``MAnet``, ``Linknet``) or are no logits; if the criterion interpolates otherwise; if
            the model has low-resolution logits already.

    Example:
        >>> criterion = UncertaintyAwareCrossEntropyLoss(
        ...     ignore_index=255, upsample="bilinear", align_corners=True
        ... )
        >>> low_resolution = LowResolutionLogits(model, criterion)
        >>> insert_dropout(model)  # FPN, PSPNet, DeepLabV3 and DPT have dropout of their own
        >>> observer = Observer(model, criterion)
        >>> criterion(model(images), labels).backward()
    """

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        model = unwrap(model)
        head: Any = getattr(model, "segmentation_head", None)
        forward = _low_resolution_forward(model, head)
        check_interpolating(criterion, align_corners=True)
        self._handles = [ReplacedMethod(head, "forward", forward)]
