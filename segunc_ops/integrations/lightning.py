"""The losses in Lightning's ``Trainer``, by two callbacks.

:class:`SamplingCallback` draws the samples of U-CE and instance-wise uncertainty while a fit runs.
:class:`MetricsCallback` counts validation and test batches in constant memory and logs the scalars.
Losses without samples need neither: a ``LightningModule`` holds them as any other module.

Needs Lightning: ``pip install 'segunc_ops[lightning]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Literal

from torch import Tensor, nn

from ..sampling import BatchNormMode, Observer

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "segunc_ops.integrations.lightning needs Lightning; install it with "
        "`pip install 'segunc_ops[lightning]'`"
    ) from error

__all__ = ["MetricsCallback", "SamplingCallback"]

_LOGITS, _LABELS, _UNCERTAINTY = "logits", "labels", "uncertainty"


def _part(name: str, module: nn.Module, where: str | Callable[[Any], nn.Module]) -> nn.Module:
    """The module's part that an argument says, by an attribute's name or a function."""
    if callable(where):
        part: Any = where(module)
    else:
        try:
            part = attrgetter(where)(module)
        except AttributeError:
            children = ", ".join(child for child, _ in module.named_children()) or "none"
            raise ValueError(
                f"{name}: expected an attribute of {type(module).__name__}, whose modules are "
                f"{children}, got {where!r}; pass its name, or a function that returns it"
            ) from None
    if not isinstance(part, nn.Module):
        raise TypeError(f"{name}: expected a module, got {type(part).__name__}")
    return part


class SamplingCallback(Callback):
    """Attaches an :class:`~segunc_ops.Observer` for the duration of a fit.

    It is there after ``configure_model``, before the first pass, and removed when the fit ends, by
    an error too. Samples are drawn in each training pass of the network, within the precision that
    the trainer has, on each rank from its own images; validation is not sampled, and the criterion
    is plain cross-entropy there.

    Args:
        network: attribute of the ``LightningModule``, dotted if need be, or a function of it: what
            ``training_step`` calls for the logits, compiled or not. Not the ``LightningModule``
            itself unless ``training_step`` calls ``self(images)``.
        criterion: likewise, the loss.
        num_samples, batch_norm, share_forward: as for :class:`~segunc_ops.Observer`.
        **options: others of :class:`~segunc_ops.Observer`.

    Raises:
        ValueError: when the fit starts, if the module has no such part, or the network no active
            dropout (see :func:`segunc_ops.insert_dropout`).
        TypeError: when the fit starts, if the criterion needs no samples.

    Example:
        >>> trainer = Trainer(callbacks=[SamplingCallback("model", num_samples=10)])
        >>> trainer.fit(module)  # whose criterion is UncertaintyAwareCrossEntropyLoss
    """

    def __init__(
        self,
        network: str | Callable[[Any], nn.Module] = "network",
        criterion: str | Callable[[Any], nn.Module] = "criterion",
        num_samples: int = 10,
        *,
        batch_norm: BatchNormMode = "batch",
        share_forward: bool = False,
        **options: Any,
    ) -> None:
        self._network = network
        self._criterion = criterion
        self._options = {
            "num_samples": num_samples,
            "batch_norm": batch_norm,
            "share_forward": share_forward,
            **options,
        }
        self.observer: Observer | None = None
        """That of the running fit."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()
        self.observer = Observer(
            _part("network", pl_module, self._network),
            _part("criterion", pl_module, self._criterion),
            **self._options,
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        observer, self.observer = self.observer, None
        if observer is not None:
            observer.remove()


def _returned(outputs: Any, batch: Any) -> Mapping[str, Tensor]:
    if not isinstance(outputs, Mapping) or not {_LOGITS, _LABELS} <= set(outputs):
        got = ", ".join(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs)
        raise ValueError(
            f"outputs: expected validation_step and test_step to return a dict with '{_LOGITS}' "
            f"and '{_LABELS}', got {got}; or pass outputs, a function that makes one"
        )
    return outputs


class MetricsCallback(Callback):
    """Counts each validation or test batch, forgets its logits, and logs the scalars of an epoch.

    The metrics are no part of the ``LightningModule``, so they are not in its checkpoints. Over
    ranks torchmetrics adds the counts up. Batches of the sanity check are not counted.

    Args:
        metrics: one of :mod:`segunc_ops.metrics`, or a torchmetrics ``MetricCollection`` of them.
            Single numbers are logged, as ``val_mean_iou`` or ``test_mean_iou``; of a metric alone
            under its class's name.
        outputs: makes of what the step returned, and of its batch, a dict with ``"logits"`` (of any
            resolution), ``"labels"`` ``(N, *)`` and, where the metrics need it, ``"uncertainty"``.
            By default the step returns such a dict.
        align_corners: how logits of another resolution than the labels' are interpolated.
        prog_bar: whether the progress bar shows them.

    Example:
        >>> metrics = SegmentationMetrics(
        ...     19, uncertainty=False, ignore_index=255, scalars_only=True
        ... )
        >>> trainer = Trainer(callbacks=[MetricsCallback(metrics)])
    """

    def __init__(
        self,
        metrics: nn.Module,
        *,
        outputs: Callable[[Any, Any], Mapping[str, Tensor]] = _returned,
        align_corners: bool = False,
        prog_bar: bool = False,
    ) -> None:
        self.metrics: Any = metrics
        self._outputs = outputs
        self._align_corners = align_corners
        self._prog_bar = prog_bar

    def _count(self, outputs: Any, batch: Any) -> None:
        found = self._outputs(outputs, batch)
        logits, labels = found[_LOGITS], found[_LABELS]
        uncertainty = found.get(_UNCERTAINTY)
        given: dict[str, Any] = {} if uncertainty is None else {_UNCERTAINTY: uncertainty}
        if (size := labels.shape[1:]) != logits.shape[2:]:
            given.update(size=size, align_corners=self._align_corners)
        self.metrics.to(logits.device).update(logits, labels, **given)

    def _log(self, module: LightningModule, stage: Literal["val", "test"]) -> None:
        values = self.metrics.compute()
        self.metrics.reset()
        if not isinstance(values, Mapping):
            values = {type(self.metrics).__name__: values}
        scalars = {
            f"{stage}_{name}": value.float()
            for name, value in values.items()
            if isinstance(value, Tensor) and value.dim() == 0
        }
        # The same on all ranks already, which Lightning asks to be told.
        module.log_dict(scalars, prog_bar=self._prog_bar, sync_dist=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._count(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.reset()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(outputs, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, "test")
