"""The metrics themselves: which tables each counts, and what it makes of them.

Those that an evaluation reports are listed in ``experiments/evaluation.py`` and ``report.py``, and
those of TorchUncertainty in ``integrations/torch_uncertainty.py``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_bool, check_integer, check_positive, check_share
from .._native.library import check
from ..functional import (
    PredictiveStatistics,
    SegmentationCounts,
    accumulate_counts,
    accumulate_patch_counts,
    empty_counts,
)
from .plots import draw_reliability, draw_risk_coverage, new_axes
from .values import (
    Absent,
    By,
    Reliability,
    RiskCoverageCurve,
    brier_score,
    by_class,
    calibration_error,
    class_dice,
    class_iou,
    class_uncertainty,
    error_auroc,
    macro,
    mean_uncertainty,
    negative_log_likelihood,
    pavpu,
    pixel_accuracy,
    reliability,
    risk_coverage,
)

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "segunc_ops.metrics needs torchmetrics; install it with `pip install 'segunc_ops[metrics]'`"
    ) from error

Measure = Literal["std", "entropy", "expected_entropy", "mutual_information"]

_ABSENT = ("exclude", "zero")
_MEASURES = ("std", "entropy", "expected_entropy", "mutual_information")
_BY = ("target", "prediction")
_NUM_BINS = 15
_WINDOW, _ACCURACY_THRESHOLD = 4, 0.5


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
    return value


def _fingerprint(settings: dict[str, Any]) -> bytes:
    """Tells settings from any others."""
    return hashlib.sha256(repr(sorted(settings.items())).encode()).digest()


def _agreed(fingerprints: Tensor) -> Tensor:
    """The one of all ranks ``(R, 32)``, or zeros, which are nobody's."""
    first = fingerprints[0]
    return torch.where((fingerprints == first).all(), first, 0)


class _Whole:
    """Hides a value from torchmetrics, which takes the axes off tensors of one element: those of
    one class, one bin or one threshold."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _CountingMetric(Metric):
    """A metric over the tables that it names.

    Args:
        num_classes: C.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own, such as ``dist_sync_on_step``.
    """

    is_differentiable = False
    full_state_update = False

    confusion: Tensor
    uncertainty_sums: Tensor
    calibration: Tensor
    scores: Tensor
    histogram: Tensor
    settings: Tensor

    _tables: tuple[str, ...] = ()
    _uses_uncertainty = False
    _measure: str = "std"

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = -100,
        from_probabilities: bool = False,
        num_bins: int | None = None,
        **kwargs: Any,
    ) -> None:
        if num_bins is not None and "calibration" not in self._tables:
            raise TypeError(f"num_bins: expected none, as {type(self).__name__} has no bins")
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = check_integer("ignore_index", ignore_index)
        self.from_probabilities = from_probabilities
        bins = _NUM_BINS if num_bins is None else num_bins
        counts = empty_counts(num_classes, num_bins=bins, tables=self._tables)
        for name in self._tables:
            self.add_state(name, getattr(counts, name), dist_reduce_fx="sum")
        self._settings: dict[str, Any] = {}
        self._declare(
            num_classes=int(num_classes),
            ignore_index=self.ignore_index,
            from_probabilities=bool(from_probabilities),
            **({"num_bins": int(bins)} if "calibration" in self._tables else {}),
        )

    def _declare(self, **settings: Any) -> None:
        """Makes what counts depend on, beside the data, a part of the state.

        A collection takes metrics of equal states for one and updates the first alone, and it
        compares with a tolerance, which numbers of a byte do not fall into.
        """
        self._settings |= settings
        fingerprint = torch.tensor(list(_fingerprint(self._settings)), dtype=torch.uint8)
        self.add_state("settings", fingerprint, dist_reduce_fx=_agreed)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Moves what there is and leaves its types: counts and thresholds are exact in theirs."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, exclude_state)

    def update(
        self,
        input: Tensor | PredictiveStatistics,
        target: Tensor,
        uncertainty: Tensor | None = None,
        *,
        size: Sequence[int] | None = None,
        align_corners: bool = False,
    ) -> None:
        """Counts a batch.

        Args:
            input: logits ``(N, C, *)`` of any float type and strides, probabilities if
                `from_probabilities`, or :class:`~segunc_ops.PredictiveStatistics`.
            target: class indices ``(N, *)``; int64, int32, int16 or uint8.
            uncertainty: ``(N, *)``, any float type, in [0, 256); by default the map of the
                statistics that the metric was told to take. Metrics that use none disregard it.
            size: the target's spatial sizes, ``target.shape[1:]``, to which logits, or
                probabilities, of any resolution are interpolated while they are counted; as for
                :func:`segunc_ops.functional.accumulate_counts`. None: they have it.
            align_corners: how they are interpolated.

        Raises:
            ValueError: shapes or devices that do not fit, or something that is missing.
            TypeError: types that do not fit.
            IndexError: a target that is no class and not `ignore_index`; nothing was counted. On
                CUDA the error comes with the next call or with ``compute()``.
        """
        self._count(input, target, uncertainty, size, align_corners)

    def _count(
        self,
        input: Tensor | PredictiveStatistics,
        target: Tensor,
        uncertainty: Tensor | None,
        size: Sequence[int] | None,
        align_corners: bool,
        return_outcome: bool = False,
    ) -> Tensor | None:
        return accumulate_counts(
            SegmentationCounts(**{name: getattr(self, name) for name in self._tables}),
            input,
            target,
            self._uncertainty_of(input, uncertainty),
            size=size,
            align_corners=align_corners,
            from_probabilities=self.from_probabilities,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            return_outcome=return_outcome,
        )

    def _uncertainty_of(
        self, input: Tensor | PredictiveStatistics, given: Tensor | None
    ) -> Tensor | None:
        if not self._uses_uncertainty:
            return None
        if given is None:
            if not isinstance(input, PredictiveStatistics):
                raise ValueError(
                    f"uncertainty: expected a map, as {type(self).__name__} is made of it and "
                    "input is no PredictiveStatistics; got none"
                )
            chosen: Tensor = getattr(input, self._measure)
            return chosen
        return given

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(lambda: _Whole(compute()))

        @functools.wraps(compute)
        def whole() -> Any:
            found = wrapped()
            if not isinstance(found, _Whole):
                return found  # of the cache
            if self.compute_with_cache:
                self._computed = found.value
            return found.value

        return whole

    def compute(self) -> Any:
        """The value over all pixels so far; NaN without any.

        Raises:
            ValueError: the counts are those of a metric of other settings, by a loaded state or
                `compute_groups` that were given to a collection.
        """
        if self.device.type == "cuda":
            check()  # a target that is no class must not go unnoticed
        if bytes(self.settings.tolist()) != _fingerprint(self._settings):
            own = ", ".join(f"{name}={value}" for name, value in self._settings.items())
            raise ValueError(
                f"settings: expected counts of {type(self).__name__} with {own}, got those of a "
                "metric of other settings; load a state of the same, and leave compute_groups of "
                "a collection to torchmetrics"
            )
        return self._value()

    def _value(self) -> Any:
        raise NotImplementedError

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draws the value, or several (torchmetrics').

        Args:
            val: what ``compute()`` or ``forward()`` have returned, or a list of it; by default
                ``compute()`` is called.
            ax: axes to draw into, by default new ones.

        Returns:
            The figure and its axes.
        """
        figure, axes = self._plot(val, ax)
        return figure if ax is None else ax.get_figure(), axes


class MeanIoU(_CountingMetric):
    r"""Mean over the classes of the intersection over union, (U-CE, eq. 9).

    .. math:: \mathrm{IoU}_c = \frac{TP_c}{TP_c + FP_c + FN_c}

    Args:
        num_classes: C.
        absent: what a class counts that occurs neither in targets nor in predictions:
            ``"exclude"`` leaves it out of the mean, ``"zero"`` takes it as 0.
        average: ``"macro"`` for the mean, ``"none"`` for every class's own, ``(C,)``; there absent
            classes are NaN, or 0.
        ignore_index: pixels with this target are left out. If it is a class, that is in no mean and
            its own value is NaN; so it is in all metrics.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.

    Example:
        >>> metric = MeanIoU(num_classes=19, ignore_index=255)
        >>> for image, target in loader:
        ...     metric.update(model(image), target)
        >>> metric.compute()
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    plot_legend_name = "Class"
    _tables = ("confusion",)

    def __init__(
        self,
        num_classes: int,
        *,
        absent: Absent = "exclude",
        average: Literal["macro", "none"] = "macro",
        ignore_index: int = -100,
        from_probabilities: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            ignore_index=ignore_index,
            from_probabilities=from_probabilities,
            **kwargs,
        )
        self.absent: Any = _choice("absent", absent, _ABSENT)
        self.average = _choice("average", average, ("macro", "none"))

    def _value(self) -> Tensor:
        take = macro if self.average == "macro" else by_class
        return take(class_iou(self.confusion), self.absent, self.ignore_index)


class PixelAccuracy(_CountingMetric):
    """Share of the valid pixels whose prediction is the target.

    Args:
        num_classes: C.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _tables = ("confusion",)

    def _value(self) -> Tensor:
        return pixel_accuracy(self.confusion)


class DiceError(_CountingMetric):
    r"""One minus the mean over the classes of the Dice coefficient.

    .. math:: 1 - \frac{1}{C} \sum_c \frac{2 TP_c}{2 TP_c + FP_c + FN_c}

    Args:
        num_classes: C.
        absent: whether a class that occurs nowhere is left out (``"exclude"``) or has Dice 0
            (``"zero"``).
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _tables = ("confusion",)

    def __init__(
        self,
        num_classes: int,
        *,
        absent: Absent = "exclude",
        ignore_index: int = -100,
        from_probabilities: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            ignore_index=ignore_index,
            from_probabilities=from_probabilities,
            **kwargs,
        )
        self.absent: Any = _choice("absent", absent, _ABSENT)

    def _value(self) -> Tensor:
        return 1 - macro(class_dice(self.confusion), self.absent, self.ignore_index)


class ExpectedCalibrationError(_CountingMetric):
    r"""Gap between confidence and accuracy over equal-width bins of the confidence.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n}
        \left| \mathrm{accuracy}_b - \mathrm{confidence}_b \right|

    A bin is (a, b], so confidence 1 is in the last one; confidences are rounded to 2^-24 first.
    torchmetrics' bins are [a, b), with one more bin for confidence 1 alone.

    Args:
        num_classes: C.
        num_bins: B, 15 by default.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _tables = ("calibration",)

    def _value(self) -> Tensor:
        return calibration_error(self.calibration)


class ReliabilityDiagram(_CountingMetric):
    """Accuracy by confidence: what :class:`ExpectedCalibrationError` sums up, bin by bin.

    ``compute()`` returns :class:`Reliability`.

    Args:
        num_classes: C.
        num_bins: B, 15 by default: bins (a, b] of equal width.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    _tables = ("calibration",)

    def _value(self) -> Reliability:
        return reliability(self.calibration)

    def plot(self, val: Reliability | None = None, ax: Any = None) -> Any:
        """Draws accuracy over confidence as bars, with the diagonal of perfect calibration.

        Args:
            val: what ``compute()`` has returned; by default it is called.
            ax: axes to draw into, by default new ones.

        Returns:
            The figure and its axes.
        """
        figure, axes = new_axes(ax)
        draw_reliability(val if val is not None else self.compute(), axes)
        return figure, axes


class BrierScore(_CountingMetric):
    r"""Mean over the pixels of the squared error of the probabilities, summed over the classes.

    .. math:: \sum_c (p_c - [c = y])^2

    Statistics need their mean (``return_mean=True``).

    Args:
        num_classes: C.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 2.0
    _tables = ("scores",)

    def _value(self) -> Tensor:
        return brier_score(self.scores)


class NegativeLogLikelihood(_CountingMetric):
    """Mean over the pixels of -log p of the target, in nats.

    Infinite where a target has probability 0 or one below e^-1024, which no float type holds.
    Statistics need their mean (``return_mean=True``).

    Args:
        num_classes: C.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _tables = ("scores",)

    def _value(self) -> Tensor:
        return negative_log_likelihood(self.scores)


class _UncertaintyMetric(_CountingMetric):
    """A metric that needs an uncertainty for every pixel.

    Args:
        num_classes: C.
        measure: which map of :class:`~segunc_ops.PredictiveStatistics` is the uncertainty, where
            ``update`` is given none.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    _uses_uncertainty = True

    def __init__(
        self,
        num_classes: int,
        *,
        measure: Measure = "std",
        ignore_index: int = -100,
        from_probabilities: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            ignore_index=ignore_index,
            from_probabilities=from_probabilities,
            **kwargs,
        )
        self._measure = _choice("measure", measure, _MEASURES)
        self._declare(measure=self._measure)


class ClassUncertainty(_UncertaintyMetric):
    """Mean uncertainty of each class's pixels, ``(C,)``; NaN for a class without pixels.

    Args:
        num_classes: C.
        by: whether a pixel belongs to its ``"target"`` or to its ``"prediction"``.
        measure: which map of :class:`~segunc_ops.PredictiveStatistics` is the uncertainty, where
            ``update`` is given none.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    plot_lower_bound = 0.0
    plot_legend_name = "Class"
    _tables = ("confusion", "uncertainty_sums")

    def __init__(
        self,
        num_classes: int,
        *,
        by: By = "target",
        measure: Measure = "std",
        ignore_index: int = -100,
        from_probabilities: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            measure=measure,
            ignore_index=ignore_index,
            from_probabilities=from_probabilities,
            **kwargs,
        )
        self.by: Any = _choice("by", by, _BY)

    def _value(self) -> Tensor:
        return class_uncertainty(self.confusion, self.uncertainty_sums, self.by)


class RiskCoverage(_UncertaintyMetric):
    """Error rate among the most certain pixels, for every share of them, and the curve's area.

    ``compute()`` returns a :class:`RiskCoverageCurve`. Uncertainties are compared by their bins,
    128 an octave from 2^-24 to 256; pixels of one bin are taken as equally uncertain and kept in
    random order, of which the area is the mean. It is exact up to that.

    Args:
        num_classes: C.
        measure: which map of :class:`~segunc_ops.PredictiveStatistics` is the uncertainty, where
            ``update`` is given none.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    _tables = ("histogram",)

    def _value(self) -> RiskCoverageCurve:
        return risk_coverage(self.histogram)

    def plot(self, val: RiskCoverageCurve | None = None, ax: Any = None) -> Any:
        """Draws risk over coverage.

        Args:
            val: what ``compute()`` has returned; by default it is called.
            ax: axes to draw into, by default new ones.

        Returns:
            The figure and its axes.
        """
        figure, axes = new_axes(ax)
        draw_risk_coverage(val if val is not None else self.compute(), axes)
        return figure, axes


class ErrorDetectionAUROC(_UncertaintyMetric):
    """Area under the ROC curve of the uncertainty as a detector of wrong pixels.

    The probability that a wrong pixel is more uncertain than a correct one, ties counting half;
    uncertainties within one bin (128 an octave from 2^-24 to 256) tie. NaN without wrong or without
    correct pixels.

    Args:
        num_classes: C.
        measure: which map of :class:`~segunc_ops.PredictiveStatistics` is the uncertainty, where
            ``update`` is given none.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _tables = ("histogram",)

    def _value(self) -> Tensor:
        return error_auroc(self.histogram)


class _PatchMetric(_UncertaintyMetric):
    """A metric that may also count patches by accuracy and uncertainty."""

    patches: Tensor
    thresholds: Tensor

    def _add_patches(
        self, threshold: float | Sequence[float], window: int, accuracy_threshold: float
    ) -> None:
        self._single = isinstance(threshold, Real) or getattr(threshold, "ndim", None) == 0
        given: Any = (threshold,) if self._single or isinstance(threshold, str) else threshold
        try:
            values = [float(value) for value in given]
        except (TypeError, ValueError):
            values = []
        if not values or not all(value >= 0 for value in values):
            raise ValueError(
                f"threshold: expected a number >= 0 or a sequence of them, got {threshold!r}"
            )
        accuracy_threshold = check_share("accuracy_threshold", accuracy_threshold)
        self._window = check_positive("window", window)
        self._accuracy_threshold = accuracy_threshold
        self._declare(thresholds=values, window=self._window, accuracy_threshold=accuracy_threshold)
        thresholds = torch.tensor(values, dtype=torch.float64)
        self.register_buffer("thresholds", thresholds, persistent=False)
        empty = torch.zeros((len(values), 5), dtype=torch.int64)
        self.add_state("patches", empty, dist_reduce_fx="sum")

    def _count_patches(self, outcome: Tensor | None, uncertainty: Tensor | None) -> None:
        assert outcome is not None
        assert uncertainty is not None
        accumulate_patch_counts(
            self.patches,
            outcome,
            uncertainty,
            self.thresholds,
            window=self._window,
            accuracy_threshold=self._accuracy_threshold,
        )

    def _patch_value(self) -> Tensor:
        value = pavpu(self.patches)
        return value[0] if self._single else value


def _check_patches(target: Tensor) -> None:
    if isinstance(target, Tensor) and target.dim() < 3:
        raise ValueError(
            f"target: expected shape (N, *, H, W), as patches are made of it, got "
            f"{tuple(target.shape)}"
        )


class PAvPU(_PatchMetric):
    r"""Patch accuracy versus patch uncertainty.

    .. math:: \frac{n_{ac} + n_{iu}}{n_{ac} + n_{au} + n_{ic} + n_{iu}}

    with the numbers of patches that are accurate or inaccurate and certain or uncertain. Patches of
    `window` x `window` pixels lie side by side; those that would cross the border are dropped, and
    so are those without valid pixels. Over a patch's valid pixels, it is accurate if the share of
    correct ones is above `accuracy_threshold`, uncertain if the mean uncertainty is above the
    threshold, both strictly. An uncertainty is counted in units of 2^-24.

    Args:
        num_classes: C.
        threshold: of the uncertainty, such as the training set's mean; or several, which give a
            value each, ``(K,)``.
        window: edge of a patch in pixels.
        accuracy_threshold: in [0, 1].
        measure: which map of :class:`~segunc_ops.PredictiveStatistics` is the uncertainty, where
            ``update`` is given none.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    plot_legend_name = "Threshold"

    def __init__(
        self,
        num_classes: int,
        *,
        threshold: float | Sequence[float],
        window: int = _WINDOW,
        accuracy_threshold: float = _ACCURACY_THRESHOLD,
        measure: Measure = "std",
        ignore_index: int = -100,
        from_probabilities: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            measure=measure,
            ignore_index=ignore_index,
            from_probabilities=from_probabilities,
            **kwargs,
        )
        self._add_patches(threshold, window, accuracy_threshold)

    def update(
        self,
        input: Tensor | PredictiveStatistics,
        target: Tensor,
        uncertainty: Tensor | None = None,
        *,
        size: Sequence[int] | None = None,
        align_corners: bool = False,
    ) -> None:
        """Counts a batch's patches; arguments and errors as in the other metrics.

        Targets are ``(N, *, H, W)``; patches lie in the last two axes.
        """
        _check_patches(target)
        uncertainty = self._uncertainty_of(input, uncertainty)
        outcome = self._count(input, target, uncertainty, size, align_corners, return_outcome=True)
        self._count_patches(outcome, uncertainty)

    def _value(self) -> Tensor:
        return self._patch_value()


class SegmentationMetrics(_PatchMetric):
    """All of this module's metrics from one pass over the pixels.

    ``compute()`` returns a dictionary of ``mean_iou``, ``class_iou`` (C,), ``pixel_accuracy``,
    ``dice_error`` and ``calibration_error``; with `scores` of ``brier_score`` and
    ``negative_log_likelihood``; with `uncertainty` of ``mean_uncertainty``, ``class_uncertainty``
    (C,) by target, ``predicted_class_uncertainty`` (C,), ``aurc``, ``error_auroc`` and, given a
    `threshold`, ``pavpu``. The curves are there as ``reliability``, a :class:`Reliability`, and
    ``risk_coverage``, a :class:`RiskCoverageCurve`. With `scalars_only` it has what is a single
    number, so that loggers take it as it is, such as Lightning's ``log_dict``.

    Args:
        num_classes: C.
        scores: whether to count the Brier score and the likelihood, for which statistics need their
            mean.
        uncertainty: whether to count uncertainties, which then every update needs.
        threshold: of PAvPU, one or several; without it there is none.
        window: PAvPU's edge of a patch.
        accuracy_threshold: PAvPU's.
        absent: whether classes that occur nowhere are left out of means over classes
            (``"exclude"``) or count 0 (``"zero"``).
        num_bins: bins of confidence.
        scalars_only: whether ``compute()`` leaves out values by class and curves.
        measure: which map of :class:`~segunc_ops.PredictiveStatistics` is the uncertainty, where
            ``update`` is given none.
        ignore_index: pixels with this target are left out.
        from_probabilities: whether `input` tensors hold probabilities instead of logits.
        **kwargs: torchmetrics' own.

    Example:
        >>> metrics = SegmentationMetrics(num_classes=19, threshold=0.05, ignore_index=255)
        >>> for image, target in loader:
        ...     statistics = sample_statistics(model, image, return_mean=True)
        ...     metrics.update(statistics, target)
        >>> metrics.compute()["pavpu"]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        scores: bool = True,
        uncertainty: bool = True,
        threshold: float | Sequence[float] | None = None,
        window: int = _WINDOW,
        accuracy_threshold: float = _ACCURACY_THRESHOLD,
        absent: Absent = "exclude",
        num_bins: int = _NUM_BINS,
        scalars_only: bool = False,
        measure: Measure = "std",
        ignore_index: int = -100,
        from_probabilities: bool = False,
        **kwargs: Any,
    ) -> None:
        if threshold is not None and not uncertainty:
            raise ValueError(f"threshold: expected None without uncertainty, got {threshold!r}")
        check_bool("scalars_only", scalars_only)
        tables = ["confusion", "calibration"]
        tables += ["scores"] if scores else []
        tables += ["uncertainty_sums", "histogram"] if uncertainty else []
        self._tables = tuple(tables)
        self._uses_uncertainty = uncertainty
        super().__init__(
            num_classes,
            measure=measure,
            ignore_index=ignore_index,
            from_probabilities=from_probabilities,
            num_bins=num_bins,
            **kwargs,
        )
        self.absent: Any = _choice("absent", absent, _ABSENT)
        self._has_patches = threshold is not None
        if threshold is not None:
            self._add_patches(threshold, window, accuracy_threshold)
            if scalars_only and not self._single:
                raise ValueError(
                    f"threshold: expected one number with scalars_only, got {threshold!r}; make a "
                    "PAvPU for each"
                )
        self._scalars_only = scalars_only

    def update(
        self,
        input: Tensor | PredictiveStatistics,
        target: Tensor,
        uncertainty: Tensor | None = None,
        *,
        size: Sequence[int] | None = None,
        align_corners: bool = False,
    ) -> None:
        """Counts a batch; arguments and errors as in the other metrics."""
        if self._has_patches:
            _check_patches(target)
        uncertainty = self._uncertainty_of(input, uncertainty)
        outcome = self._count(
            input, target, uncertainty, size, align_corners, return_outcome=self._has_patches
        )
        if self._has_patches:
            self._count_patches(outcome, uncertainty)

    def _value(self) -> dict[str, Any]:
        iou, means = class_iou(self.confusion), (self.absent, self.ignore_index)
        values: dict[str, Any] = {
            "mean_iou": macro(iou, *means),
            "class_iou": by_class(iou, *means),
            "pixel_accuracy": pixel_accuracy(self.confusion),
            "dice_error": 1 - macro(class_dice(self.confusion), *means),
            "calibration_error": calibration_error(self.calibration),
            "reliability": reliability(self.calibration),
        }
        if "scores" in self._tables:
            values["brier_score"] = brier_score(self.scores)
            values["negative_log_likelihood"] = negative_log_likelihood(self.scores)
        if self._uses_uncertainty:
            tables = self.confusion, self.uncertainty_sums
            values["mean_uncertainty"] = mean_uncertainty(*tables)
            values["class_uncertainty"] = class_uncertainty(*tables, "target")
            values["predicted_class_uncertainty"] = class_uncertainty(*tables, "prediction")
            values["risk_coverage"] = risk_coverage(self.histogram)
            values["aurc"] = values["risk_coverage"].area
            values["error_auroc"] = error_auroc(self.histogram)
        if self._has_patches:
            values["pavpu"] = self._patch_value()
        if self._scalars_only:
            return {
                name: value
                for name, value in values.items()
                if isinstance(value, Tensor) and value.dim() == 0
            }
        return values

    def plot(self, val: dict[str, Any] | None = None, ax: Any = None) -> Any:
        """Draws the curves: reliability and, with uncertainties, risk over coverage.

        Args:
            val: what ``compute()`` has returned; by default it is called.
            ax: as many axes as there are curves, by default new ones; one with `scalars_only`,
                whose numbers are drawn, as there are no curves.

        Returns:
            The figure and its axes: one, or an array of two.
        """
        if self._scalars_only:
            return super().plot(val, ax)
        values = val if val is not None else self.compute()
        figure, axes = new_axes(ax, 2 if self._uses_uncertainty else 1)
        draw_reliability(values["reliability"], axes[0] if self._uses_uncertainty else axes)
        if self._uses_uncertainty:
            draw_risk_coverage(values["risk_coverage"], axes[1])
        return figure, axes
