"""Dice together with cross-entropy, and the losses that trainers make of them by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .._checks import check_number
from .._options import LossOptions
from .._overlap import Absent, Overlap, RegionOptions, RegionReduction
from ..functional.dice import (
    check_overlap,
    check_region_options,
    check_scalar_reduction,
    dice_bce_with,
    dice_cross_entropy_with,
)
from ._base import ClassWeightedLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self, Unpack

    from .._options import LossArguments
    from .._types import Upsample

__all__ = ["DeepSupervision", "DiceBCELoss", "DiceCrossEntropyLoss"]


class DiceCrossEntropyLoss(ClassWeightedLoss):
    r"""Cross-entropy and the Dice loss of the same logits, from one softmax.

    With p = softmax(z), label y, and sums over the valid pixels of an image, or of all images with
    `batch`:

    .. math::
        P_c = \sum p_c, \quad G_c = \sum [y = c], \quad I_c = \sum p_c [y = c], \qquad
        D_c = \frac{2 I_c + s_n}{P_c + G_c + s_d}

    .. math::
        L = \texttt{ce\_weight} \cdot \mathrm{CE} +
            \texttt{dice\_weight} \cdot \operatorname{mean}_c (\texttt{dice\_offset} - D_c)

    :meth:`nnunet`, :meth:`monai`, :meth:`smp` and :meth:`ultralytics` have these packages' options;
    their arguments take the place of single ones.

    Args:
        weight: class weights, ``(C,)``, of the cross-entropy alone; a buffer.
        ce_weight, dice_weight, batch, include_background: as for
            :func:`segunc_ops.functional.dice_cross_entropy`.
        smooth_numerator, smooth_denominator, squared, jaccard, absent: as there.
        dice_offset, group: as there.
        ignore_index, label_smoothing, upsample, align_corners, overwrite_input: as for
            :class:`CrossEntropyLoss`.
        reduction: of the cross-entropy; there is no ``"none"``.

    Shape:
        - input: ``(N, C, *)`` or ``(N, C)`` logits of at least two classes.
        - target: ``(N, *)`` class indices; int64, int32, int16 or uint8. With `upsample` its size
          need not be that of the logits.
        - pixel_weight: that of the target, or one that broadcasts to it; of the cross-entropy.
        - result: a scalar.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as
            :func:`segunc_ops.functional.dice_cross_entropy`.

    Example:
        >>> loss = DiceCrossEntropyLoss.nnunet(batch=True)
        >>> loss(model(images), labels).backward()
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        batch: bool = False,
        include_background: bool = True,
        smooth_numerator: float = 1e-5,
        smooth_denominator: float = 1e-5,
        squared: bool = False,
        jaccard: bool = False,
        absent: Absent = "count",
        dice_offset: float = 1.0,
        group: ProcessGroup | None = None,
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(weight, options)
        check_scalar_reduction(self.reduction)
        self.overlap = check_overlap(
            Overlap(
                ce_weight,
                dice_weight,
                batch,
                include_background,
                smooth_numerator,
                smooth_denominator,
                squared,
                jaccard,
                absent,
                dice_offset,
                group,
            )
        )

    @classmethod
    def _with(cls, given: dict[str, Any], **defaults: Any) -> Self:
        return cls(**(defaults | given))

    @classmethod
    def nnunet(cls, **arguments: Any) -> Self:
        """nnU-Net's ``DC_and_CE_loss``: cross-entropy minus Dice without the background.

        nnU-Net sums over the batch where its plans say ``batch_dice`` (2-D as a rule): pass
        ``batch=True``, and there with several GPUs ``group=torch.distributed.group.WORLD``. For
        regions, a sigmoid per class, there is :class:`DiceBCELoss`.
        """
        return cls._with(arguments, include_background=False, dice_offset=0.0)

    @classmethod
    def monai(cls, **arguments: Any) -> Self:
        """MONAI's ``DiceCELoss(to_onehot_y=True, softmax=True)``: Dice per image and class.

        There `weight` also weighs the classes' Dice, here the cross-entropy alone.
        """
        return cls._with(arguments)

    @classmethod
    def smp(cls, **arguments: Any) -> Self:
        """segmentation_models_pytorch's ``DiceLoss("multiclass")``: no cross-entropy.

        Over the batch, not smoothed; a class that is absent from the batch has loss 0 and is
        counted.
        """
        return cls._with(
            arguments,
            ce_weight=0.0,
            batch=True,
            smooth_numerator=0.0,
            smooth_denominator=0.0,
            absent="zero",
        )

    @classmethod
    def ultralytics(cls, **arguments: Any) -> Self:
        """The loss of a head of Ultralytics' semantic segmentation: over the batch, smoothed by 1.

        The trainer multiplies it by the batch's size and adds 0.4 of an auxiliary head's
        cross-entropy.
        """
        options = {"batch": True, "smooth_numerator": 1.0, "smooth_denominator": 1.0}
        return cls._with(arguments, **options, ignore_index=255)

    def forward(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        check_scalar_reduction(self.reduction)
        options = LossOptions(*[getattr(self, name) for name in LossOptions._fields])
        return dice_cross_entropy_with(options, self.overlap, input, target, pixel_weight)

    def extra_repr(self) -> str:
        return ", ".join([*_differences(self.overlap), super().extra_repr()])


def _differences(overlap: Overlap) -> list[str]:
    """The options that are not the defaults, for a loss's text."""
    defaults = Overlap._field_defaults
    return [
        f"{name}={value!r}" for name, value in overlap._asdict().items() if value != defaults[name]
    ]


class DiceBCELoss(nn.Module):
    r"""Binary cross-entropy and the Dice loss of regions, each with a sigmoid of its own.

    For labels that overlap. With p = sigmoid(z), y in {0, 1}, and sums over the valid pixels of an
    image, or of all images with `batch`:

    .. math::
        P_c = \sum p_c, \quad G_c = \sum y_c, \quad I_c = \sum p_c y_c, \qquad
        D_c = \frac{2 I_c + s_n}{P_c + G_c + s_d}

    .. math::
        L = \texttt{ce\_weight} \cdot \mathrm{BCE} +
            \texttt{dice\_weight} \cdot \operatorname{mean}_c (\texttt{dice\_offset} - D_c)

    :meth:`nnunet` and :meth:`monai` have these packages' options; their arguments take the place of
    single ones.

    Args:
        pos_weight: weights of the regions' positives, ``(C,)``, of the cross-entropy alone; a
            buffer.
        ce_weight, dice_weight, batch, include_background: as for
            :func:`segunc_ops.functional.dice_bce`.
        smooth_numerator, smooth_denominator, squared, jaccard, absent: as there.
        dice_offset, group: as there.
        reduction, ignore_channel, upsample, align_corners, overwrite_input: as there.

    Shape:
        - input: ``(N, C, *)`` or ``(N, C)`` logits.
        - target: that of the input, 0 or 1; bool, integers or floats. One channel more with
          `ignore_channel`; of any size with `upsample`.
        - mask: ``(N, *)``, bool, False where a pixel is ignored.
        - pixel_weight: ``(N, *)``, or one that broadcasts to it; of the cross-entropy.
        - result: a scalar.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`segunc_ops.functional.dice_bce`.

    Example:
        >>> loss = DiceBCELoss.nnunet(batch=True)
        >>> loss(model(images), regions).backward()
    """

    pos_weight: Tensor | None
    overwrite_input: bool

    def __init__(
        self,
        pos_weight: Tensor | None = None,
        *,
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        batch: bool = False,
        include_background: bool = True,
        smooth_numerator: float = 1e-5,
        smooth_denominator: float = 1e-5,
        squared: bool = False,
        jaccard: bool = False,
        absent: Absent = "count",
        dice_offset: float = 1.0,
        group: ProcessGroup | None = None,
        reduction: RegionReduction = "mean",
        ignore_channel: bool = False,
        upsample: Upsample | None = None,
        align_corners: bool = False,
        overwrite_input: bool = False,
    ) -> None:
        super().__init__()
        if pos_weight is not None and not isinstance(pos_weight, Tensor):
            raise TypeError(
                f"pos_weight: expected a tensor or None, got {type(pos_weight).__name__}"
            )
        options = check_region_options(
            RegionOptions(
                pos_weight, reduction, ignore_channel, upsample, align_corners, overwrite_input
            )
        )
        self.register_buffer("pos_weight", pos_weight)
        self.reduction, self.ignore_channel = options.reduction, options.ignore_channel
        self.upsample, self.align_corners = options.upsample, options.align_corners
        self.overwrite_input = options.overwrite_input
        self.overlap = check_overlap(
            Overlap(
                ce_weight,
                dice_weight,
                batch,
                include_background,
                smooth_numerator,
                smooth_denominator,
                squared,
                jaccard,
                absent,
                dice_offset,
                group,
            )
        )

    @classmethod
    def nnunet(cls, **arguments: Any) -> Self:
        """nnU-Net's ``DC_and_BCE_loss``: binary cross-entropy minus Dice, region 0 included.

        As for :meth:`DiceCrossEntropyLoss.nnunet` pass ``batch=True``, and `group`, where nnU-Net's
        plans say ``batch_dice``. Where there is an ignore label pass ``ignore_channel=True``;
        nnU-Net then adds up the regions' cross-entropies instead of averaging them.
        """
        defaults: dict[str, Any] = {"dice_offset": 0.0}
        if arguments.get("ignore_channel"):
            defaults["reduction"] = "mean_pixels"
        return cls(**(defaults | arguments))

    @classmethod
    def monai(cls, **arguments: Any) -> Self:
        """MONAI's ``DiceCELoss(sigmoid=True)`` of one channel, and its Dice of several.

        There `weight` is `pos_weight`. To several channels MONAI adds the cross-entropy of a
        softmax over them, which :class:`DiceCrossEntropyLoss` has; here it is binary as in its
        ``DiceFocalLoss(sigmoid=True, gamma=0)``.
        """
        return cls(**arguments)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        options = RegionOptions(*[getattr(self, name) for name in RegionOptions._fields])
        return dice_bce_with(options, self.overlap, input, target, mask, pixel_weight)

    def extra_repr(self) -> str:
        regions = [] if self.pos_weight is None else [f"num_regions={self.pos_weight.numel()}"]
        flags = ("ignore_channel", "upsample", "align_corners", "overwrite_input")
        given = [f"{name}={value!r}" for name in flags if (value := getattr(self, name))]
        reduction = f"reduction={self.reduction!r}"
        return ", ".join([*regions, *_differences(self.overlap), reduction, *given])


class DeepSupervision(nn.Module):
    """The weighted sum of a loss over the heads of a network, at several resolutions or one.

    .. math:: L = \\sum_i w_i\\, \\ell(z_i, y_i)

    Args:
        loss: of one head: ``loss(input, target)``.
        weights: w, a number for each head; heads of weight 0 are left out. More heads than weights
            are an error.

    Shape:
        - input: a sequence of the heads' logits, ``(N, C, *)`` each of its own size, or stacked
          heads ``(N, heads, C, *)``. A tensor ``(N, C, *)`` is a network without further heads, as
          many are in evaluation: its loss is not weighted.
        - target: a sequence of the heads' targets, ``(N, *)`` of their sizes, or one target for
          all; where a head has another size the loss needs `upsample`.
        - result: that of the loss.

    Example:
        >>> loss = DeepSupervision(DiceCrossEntropyLoss.nnunet(), [4 / 7, 2 / 7, 1 / 7])
        >>> loss([full, half, quarter], [labels, labels_half, labels_quarter]).backward()
    """

    weights: tuple[float, ...]

    def __init__(self, loss: Callable[..., Any], weights: Sequence[float]) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"loss: expected a module, got {type(loss).__name__}")
        self.loss = loss
        self.weights = tuple(check_number("weights", w, at_least=0.0) for w in weights)
        if not any(self.weights):
            raise ValueError(f"weights: expected one above 0, got {self.weights}")

    @classmethod
    def nnunet(cls, loss: Callable[..., Any], heads: int) -> Self:
        """nnU-Net's weights of so many heads: 1, 1/2, 1/4, ... with 0 for the last, of sum 1."""
        weights = [0.5**i for i in range(heads)]
        if heads > 1:
            weights[-1] = 0.0
        return cls(loss, [w / sum(weights) for w in weights])

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Any:
        if isinstance(input, Tensor):
            one = target if isinstance(target, Tensor) else target[0]
            if input.dim() != one.dim() + 2:
                return self.loss(input, one)
            input = input.unbind(1)
        heads = len(input)
        if heads != len(self.weights):
            raise ValueError(f"input: expected {len(self.weights)} heads, got {heads}")
        targets = [target] * heads if isinstance(target, Tensor) else target
        if len(targets) != heads:
            raise ValueError(f"target: expected one or {heads}, got {len(targets)}")
        losses = [
            weight * self.loss(logits, labels)
            for weight, logits, labels in zip(self.weights, input, targets, strict=True)
            if weight
        ]
        return sum(losses[1:], losses[0])

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
