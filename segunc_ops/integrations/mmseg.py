"""The losses in mmsegmentation's configs, from low-resolution logits, with samples.

:class:`SeguncLoss` is a ``loss_decode`` of any head. :class:`SeguncHook`, among a runner's
``custom_hooks``, makes heads leave the interpolation of their logits to it, and draws the samples
of U-CE and instance-wise uncertainty. A config names both after
``custom_imports = dict(imports=["segunc_ops.integrations.mmseg"])``.

Needs mmsegmentation, by its maintained fork: ``pip install 'segunc_ops[mmseg]'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses
from .._adapters import check_criterion
from .._checks import check_number
from .._hooks import Hooked, ReplacedMethod
from ..functional import accumulate_counts, empty_counts
from ..losses._base import ClassWeightedLoss, UncertaintyWeightedLoss
from ..sampling import BatchNormMode, Observer
from ..sampling.models import changed, unwrap

try:
    from mmengine.hooks import Hook
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.losses.utils import get_class_weight
    from mmseg.registry import HOOKS, MODELS
except ImportError as error:
    raise ImportError(
        "segunc_ops.integrations.mmseg needs mmsegmentation; install it with "
        "`pip install 'segunc_ops[mmseg]'`"
    ) from error

__all__ = ["LowResolutionLoss", "SegmentorObserver", "SeguncHook", "SeguncLoss"]

_EPSILON = torch.finfo(torch.float32).eps


def _make(criterion: str, options: dict[str, Any]) -> ClassWeightedLoss:
    name, _, variant = criterion.partition(".")
    loss = getattr(losses, name, None) if name in losses.__all__ else None
    make = getattr(loss, variant, None) if variant else loss
    if make is None:
        raise ValueError(
            "criterion: expected a loss of segunc_ops by its name, such as 'CrossEntropyLoss' or "
            f"'DiceCrossEntropyLoss.nnunet', got {criterion!r}"
        )
    if loss is not losses.PixelAdaptiveCrossEntropyLoss:  # divided by the number of images
        options = {"reduction": "mean_all", **options}
    made: ClassWeightedLoss = make(**options)
    return made


@MODELS.register_module()
class SeguncLoss(nn.Module):
    """A loss of this library as a head's ``loss_decode``.

    ``dict(type="SeguncLoss")`` is ``dict(type="CrossEntropyLoss")``: the sum over valid pixels is
    divided by the number of all. With ``reduction="mean"`` it is ``avg_non_ignore=True``.

    Args:
        criterion: the name of a loss of logits and class indices, perhaps of a constructor
            (``"DiceCrossEntropyLoss.nnunet"``).
        loss_weight: a factor.
        loss_name: what the log calls it; it counts if that has ``loss`` in it.
        class_weight: weights of the classes, or a file of them, as of mmsegmentation's losses.
        **options: the criterion's own. The head has `ignore_index` and `align_corners`, and decides
            on interpolation.

    Shape:
        - cls_score: ``(N, C, H, W)`` logits.
        - label: ``(N, H, W)`` class indices.
        - weight: ``(N, H, W)``, of pixels; not for losses that are weighted by uncertainty.
        - result: a scalar.

    Raises:
        ValueError: the name or weight of a loss; options that the head has; a weight of pixels, or
            an `avg_factor`, for a loss that has no place for it.
        TypeError: a criterion of other inputs.
        ValueError, TypeError, IndexError: as the criterion.

    Example:
        >>> loss_decode = dict(type="SeguncLoss", criterion="UncertaintyAwareCrossEntropyLoss")
    """

    def __init__(
        self,
        criterion: str = "CrossEntropyLoss",
        *,
        loss_weight: float = 1.0,
        loss_name: str = "loss_ce",
        class_weight: Sequence[float] | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name in ("ignore_index", "upsample", "align_corners"):
            if name in options:
                raise ValueError(f"{name}: expected none, as the head has it, got {options[name]}")
        if class_weight is not None:
            options["weight"] = torch.tensor(get_class_weight(class_weight), dtype=torch.float32)
        self.criterion = _make(criterion, options)
        check_criterion(self.criterion)
        self.loss_weight = check_number("loss_weight", loss_weight, at_least=0.0)
        self._loss_name = loss_name

    @property
    def loss_name(self) -> str:
        return self._loss_name

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = -100,
        *,
        align_corners: bool | None = None,
    ) -> Tensor:
        """
        Args:
            align_corners: how logits are interpolated to the label's size; None: they have it.
        """
        criterion = self.criterion
        if weight is not None and isinstance(criterion, UncertaintyWeightedLoss):
            raise ValueError(
                f"weight: expected None for {type(criterion).__name__}, which is weighted by "
                "uncertainty, got weights of pixels; use it in a head without sampler"
            )
        changes: list[tuple[nn.Module, str, object]] = [
            (criterion, "ignore_index", -100 if ignore_index is None else ignore_index)
        ]
        if align_corners is not None:
            changes.append((criterion, "upsample", "bilinear"))
            changes.append((criterion, "align_corners", align_corners))
        if avg_factor is not None:
            if reduction_override == "sum" or isinstance(criterion, losses.DiceCrossEntropyLoss):
                raise ValueError(
                    "avg_factor: expected None for a loss that is no mean over pixels, got "
                    f"{avg_factor}"
                )
            if reduction_override != "none":
                changes.append((criterion, "reduction", "sum"))
        elif reduction_override not in (None, "mean"):
            changes.append((criterion, "reduction", reduction_override))
        with changed(changes):
            loss: Tensor = criterion(cls_score, label, *([] if weight is None else [weight]))
        if avg_factor is not None and reduction_override != "none":
            loss = loss / (avg_factor + _EPSILON)
        return self.loss_weight * loss


def _losses_of(head: Any) -> list[Any]:
    decode: Any = head.loss_decode
    return list(decode) if isinstance(decode, nn.ModuleList) else [decode]


def _heads(model: Any) -> dict[str, Any]:
    """A segmentor's heads by their names; of a cascade, or of several, each."""
    heads: dict[str, Any] = {}
    for name in ("decode_head", "auxiliary_head"):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            heads.update((f"{name}[{i}]", each) for i, each in enumerate(head))
        elif head is not None:
            heads[name] = head
    if not heads:
        raise TypeError(
            "model: expected a segmentor of mmsegmentation with a decode_head, got "
            f"{type(model).__name__}"
        )
    return heads


def _check_head(name: str, head: Any) -> None:
    kind = type(head)
    if not isinstance(head, BaseDecodeHead) or kind.loss_by_feat is not BaseDecodeHead.loss_by_feat:
        raise TypeError(
            f"{name}: expected a head whose loss_by_feat is BaseDecodeHead's, got {kind.__name__} "
            "with its own; use SeguncLoss with it on logits of full size, by low_resolution=False"
        )
    if head.sampler is not None:
        raise ValueError(
            f"{name}: expected a head without sampler, got {type(head.sampler).__name__}, which "
            "picks pixels by logits of full size; use low_resolution=False"
        )
    for loss in _losses_of(head):
        if not isinstance(loss, SeguncLoss):
            raise TypeError(
                f"{name}: expected SeguncLoss as loss_decode, got {type(loss).__name__}"
            )
    if head.out_channels < 2:
        raise ValueError(
            f"{name}: expected at least two out_channels, of which one may be the background, got "
            f"{head.out_channels}"
        )


@torch.no_grad()
def _accuracy(logits: Tensor, label: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
    """The share of valid pixels that are right, in percent, as mmsegmentation's ``accuracy``."""
    counts = empty_counts(logits.shape[1], tables=("confusion",), device=logits.device)
    accumulate_counts(
        counts,
        logits.detach(),
        label,
        size=label.shape[1:],
        align_corners=align_corners,
        ignore_index=ignore_index,
    )
    confusion: Any = counts.confusion
    right, valid = confusion.diagonal().sum(), confusion.sum()
    accuracy: Tensor = 100 * (right + _EPSILON) / (valid + _EPSILON)
    return accuracy[None]


def _loss_by_feat(head: Any, seg_logits: Tensor, batch_data_samples: Any) -> dict[str, Tensor]:
    """A head's, on logits of its own resolution."""
    label = head._stack_batch_gt(batch_data_samples).squeeze(1)
    result: dict[str, Tensor] = {}
    for loss in _losses_of(head):
        value = loss(
            seg_logits,
            label,
            ignore_index=head.ignore_index,
            align_corners=head.align_corners,
        )
        name = loss.loss_name
        result[name] = result[name] + value if name in result else value
    ignored = -100 if head.ignore_index is None else head.ignore_index
    result["acc_seg"] = _accuracy(seg_logits, label, ignored, head.align_corners)
    return result


class LowResolutionLoss(Hooked):
    """Makes a segmentor's heads leave the interpolation of their logits to their losses.

    What they log is what it was, ``acc_seg`` too, and so are gradients, but nothing of the labels'
    size and all classes is ever in memory. Prediction is not concerned.

    It works until :meth:`remove`, or to the end of a ``with`` block.

    Args:
        model: a segmentor; also inside DistributedDataParallel. All losses of its decode heads and
            auxiliary heads are :class:`SeguncLoss`.

    Raises:
        TypeError: if it has no such heads; if a head computes its losses otherwise (DAHead,
            DDRHead, EncHead, PIDHead, PointHead, STDCHead, heads that match masks), or by another
            loss.
        ValueError: if a head samples its pixels or has one channel; if its losses take
            low-resolution logits already.

    Example:
        >>> low_resolution = LowResolutionLoss(model)
    """

    def __init__(self, model: nn.Module) -> None:
        heads = _heads(unwrap(model))
        for name, head in heads.items():
            _check_head(name, head)
        self._handles = []
        for head in heads.values():
            self._handles.append(ReplacedMethod(head, "loss_by_feat", _loss_by_feat))


class _Criteria(nn.Module):
    """The losses of all heads that samples are for."""

    def __init__(self, criteria: Sequence[nn.Module], align_corners: bool) -> None:
        super().__init__()
        self.criteria: Any = nn.ModuleList(criteria)
        self.align_corners = align_corners

    def observe(self, uncertainty: Any) -> None:
        for criterion in self.criteria:
            criterion.observe(uncertainty)


def _sampled(heads: Mapping[str, Any]) -> list[nn.Module]:
    return [
        loss.criterion
        for head in heads.values()
        for loss in _losses_of(head)
        if isinstance(loss, SeguncLoss) and isinstance(loss.criterion, UncertaintyWeightedLoss)
    ]


def _images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs["inputs"] if "inputs" in kwargs else args[0]


class SegmentorObserver(Observer):
    """An Observer for the losses of all heads of a segmentor.

    Samples are logits of the (last) decode head, and serve the auxiliary heads' losses, too. They
    are drawn before the step's pass, which has the losses in it and so cannot be shared.

    Args:
        model: a segmentor; also inside DistributedDataParallel.
        num_samples, batch_norm, stochastic_depth: as for :class:`segunc_ops.Observer`.

    Raises:
        TypeError: if no head has a :class:`SeguncLoss` that needs samples.
        ValueError: as :class:`segunc_ops.Observer`.

    Example:
        >>> observer = SegmentorObserver(model, 10)
    """

    def __init__(
        self,
        model: nn.Module,
        num_samples: int = 10,
        *,
        batch_norm: BatchNormMode = "batch",
        stochastic_depth: bool = False,
    ) -> None:
        heads = _heads(unwrap(model))
        criteria = _sampled(heads)
        if not criteria:
            raise TypeError("model: expected a head with a SeguncLoss that needs samples, got none")
        *_, last = (head for name, head in heads.items() if name.startswith("decode_head"))
        super().__init__(
            model,
            _Criteria(criteria, last.align_corners),
            num_samples,
            batch_norm=batch_norm,
            stochastic_depth=stochastic_depth,
            inputs=_images,
        )


@HOOKS.register_module()
class SeguncHook(Hook):
    """A runner's hook: low-resolution logits, and samples where losses need them, in its training.

    Args:
        low_resolution: whether heads leave interpolation to their losses:
            :class:`LowResolutionLoss`.
        num_samples, batch_norm, stochastic_depth: as for :class:`SegmentorObserver`.

    Raises:
        TypeError, ValueError: before training, as these.

    Example:
        >>> custom_hooks = [dict(type="SeguncHook", num_samples=10)]
    """

    def __init__(
        self,
        *,
        low_resolution: bool = True,
        num_samples: int = 10,
        batch_norm: BatchNormMode = "batch",
        stochastic_depth: bool = False,
    ) -> None:
        self._low_resolution = low_resolution
        self._options: dict[str, Any] = {
            "num_samples": num_samples,
            "batch_norm": batch_norm,
            "stochastic_depth": stochastic_depth,
        }
        self._hooked: list[Hooked] = []

    def before_train(self, runner: Any) -> None:
        model = runner.model
        if self._low_resolution:
            self._hooked.append(LowResolutionLoss(model))
        if _sampled(_heads(unwrap(model))):
            self._hooked.append(SegmentorObserver(model, **self._options))

    def after_train(self, runner: Any) -> None:
        while self._hooked:
            self._hooked.pop().remove()
