"""The losses and metrics in TorchUncertainty's routine for segmentation.

Needs torch_uncertainty: ``pip install 'segunc_ops[torch-uncertainty]'``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .._adapters import check_criterion, check_ignored
from ..functional import PredictiveStatistics, as_targets
from ..losses._base import ClassWeightedLoss, UncertaintyWeightedLoss
from ..metrics import SegmentationMetrics
from ..sampling import (
    BatchNormMode,
    PredictiveAccumulator,
    ensemble_statistics,
    sample_statistics,
)
from ..sampling.dropout import check_sampling

try:
    from torch_uncertainty.routines import SegmentationRoutine
except ImportError as error:
    raise ImportError(
        "segunc_ops.integrations.torch_uncertainty needs torch_uncertainty; install it with "
        "`pip install 'segunc_ops[torch-uncertainty]'`"
    ) from error

__all__ = ["SegmentationMapRoutine"]

_IGNORED = 255
_NAMES = {
    "mean_iou": "seg/mIoU",
    "pixel_accuracy": "seg/pixAcc",
    "dice_error": "seg/DiceError",
    "brier_score": "seg/Brier",
    "negative_log_likelihood": "seg/NLL",
    "calibration_error": "cal/ECE",
    "pavpu": "cal/PAvPU",
    "mean_uncertainty": "unc/mean",
    "aurc": "sc/AURC",
    "error_auroc": "sc/ErrorAUROC",
}


class _Counted(nn.Module):
    """Counts every pixel of every batch, and names what comes of it as the stock routine does."""

    def __init__(self, prefix: str, num_classes: int, threshold: float | None) -> None:
        super().__init__()
        self.prefix = prefix
        self.metric = SegmentationMetrics(
            num_classes, threshold=threshold, ignore_index=_IGNORED, scalars_only=True
        )

    def update(self, statistics: PredictiveStatistics, targets: Tensor) -> None:
        assert statistics.mean is not None
        self.metric.update(statistics, targets, 1 - statistics.mean.amax(1))

    def compute(self) -> dict[str, Tensor]:
        values = self.metric.compute()
        return {f"{self.prefix}/{_NAMES[name]}": value for name, value in values.items()}

    def reset(self) -> None:
        self.metric.reset()


class _Nothing(nn.Module):
    """In place of metrics that the routine computes beside the counted ones."""

    def compute(self) -> dict[str, Tensor]:
        return {}

    def reset(self) -> None:
        """There is nothing to forget."""


class SegmentationMapRoutine(SegmentationRoutine):
    """TorchUncertainty's ``SegmentationRoutine``, whose loss and metrics see whole label maps.

    Compared to that

    - targets keep their resolution: logits are interpolated to it, within the loss where the
      criterion has `upsample`, and while they are counted. There targets are resized to the logits;
    - the loss sees maps ``(N, C, H, W)``, ``(N, H, W)``, not a list of pixels, so that losses with
      samples or with components work. Targets of `num_classes` and more are ignored as there;
    - metrics count every pixel in memory that does not grow with the data, not 1 % of the pixels.
      They have its names, and are logged and written to CSV as there;
    - in training U-CE and instance-wise uncertainty sample within the step, and so in its
      precision.

    Models that give several estimates for an image in evaluation (``mc_dropout``,
    ``deep_ensembles``) are evaluated by the mean of their probabilities, as there.

    Args:
        model, num_classes: as for ``SegmentationRoutine``.
        criterion: any loss of logits and class indices, with ``ignore_index=255``; with `upsample`
            for models whose logits have a lower resolution than targets.
        num_samples: how many samples U-CE and instance-wise uncertainty draw in each step by
            Monte-Carlo dropout.
        batch_norm: as for :func:`segunc_ops.sample_statistics`.
        members: an ensemble whose statistics are observed in place of samples. It is not trained,
            and not in checkpoints.
        threshold: of PAvPU, on 1 minus the largest probability; None: there is none.
        **others: what ``SegmentationRoutine`` takes, but for `loss`, `eval_ood` and `log_plots`.

    Raises:
        TypeError: if the criterion is no such loss, or `loss` is given.
        ValueError: if it ignores another label than 255, or needs samples of a model without active
            dropout (see :func:`segunc_ops.insert_dropout`); if `eval_ood` or `log_plots` is given,
            which need metrics that keep all scores.

    Example:
        >>> criterion = UncertaintyAwareCrossEntropyLoss(ignore_index=255, upsample="bilinear")
        >>> routine = SegmentationMapRoutine(model, 19, criterion, optim_recipe=recipe)
        >>> TUTrainer(max_epochs=10).fit(routine, datamodule)
    """

    test_num_flops: int | None = None

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        criterion: ClassWeightedLoss,
        *,
        num_samples: int = 10,
        batch_norm: BatchNormMode = "batch",
        members: Iterable[nn.Module] = (),
        threshold: float | None = None,
        **others: Any,
    ) -> None:
        if "loss" in others:
            raise TypeError("loss: expected none beside a criterion")
        for name in ("eval_ood", "log_plots"):
            if others.get(name):
                raise ValueError(
                    f"{name}: expected False, got {others[name]}; the stock SegmentationRoutine "
                    "evaluates a trained model so"
                )
        check_criterion(criterion)
        check_ignored(criterion, _IGNORED, "the routine's data")
        self._threshold = threshold
        super().__init__(model, num_classes, criterion, **others)
        self._members = tuple(members)
        self._num_samples = 0
        if isinstance(criterion, UncertaintyWeightedLoss) and not self._members:
            _, self._num_samples = check_sampling(
                model, num_samples, batch_norm, stochastic_depth=False
            )
        self._batch_norm: BatchNormMode = batch_norm

    def _init_metrics(self) -> None:
        for stage in ("val", "test"):
            counted = _Counted(stage, self.num_classes, self._threshold)
            setattr(self, f"{stage}_seg_metrics", counted)
            setattr(self, f"{stage}_sbsmpl_seg_metrics", _Nothing())
        self.test_patch_seg_metrics = _Nothing()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the members with the model."""
        for member in getattr(self, "_members", ()):
            member._apply(fn)
        return super()._apply(fn, recurse)

    def _targets(self, targets: Tensor) -> Tensor:
        """Label maps, plain ones of torch's, with one label for all that is ignored."""
        targets = as_targets(targets.as_subclass(Tensor))
        return torch.where(targets >= self.num_classes, _IGNORED, targets)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = self.format_batch_fn(batch)
        targets = self._targets(targets)
        uncertainty = self._uncertainty(images, targets)
        logits = self.forward(images)
        loss: Tensor = self.loss(logits, targets, *uncertainty)
        if self.needs_step_update:
            self.model.update_wrapper(self.current_epoch)
        self.log("train_loss", loss, prog_bar=True, logger=True)
        return loss

    def _uncertainty(self, images: Tensor, targets: Tensor) -> tuple[PredictiveStatistics, ...]:
        if not isinstance(self.loss, UncertaintyWeightedLoss):
            return ()
        options: dict[str, Any] = {
            "size": targets.shape[1:],
            "align_corners": self.loss.align_corners,
        }
        if self._members:
            return (ensemble_statistics(self._members, images, **options),)
        return (
            sample_statistics(
                self.model, images, self._num_samples, batch_norm=self._batch_norm, **options
            ),
        )

    def _evaluate(self, logits: Tensor, targets: Tensor, counted: _Counted) -> None:
        targets = self._targets(targets)
        accumulator = PredictiveAccumulator()
        for estimate in logits.unflatten(0, (-1, len(targets))):
            accumulator.update(estimate, targets.shape[1:], self.loss.align_corners)
        counted.update(accumulator.compute(return_mean=True), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, targets = batch
        self._evaluate(self.forward(images), targets, self.val_seg_metrics)

    def test_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        images, targets = batch
        if self.test_num_flops is None:
            with FlopCounterMode(display=False) as counter:
                logits = self.forward(images)
            self.test_num_flops = counter.get_total_flops()
        else:
            logits = self.forward(images)
        if dataloader_idx == 0:
            self._evaluate(logits, targets, self.test_seg_metrics)
