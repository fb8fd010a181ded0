"""The losses, samples and metrics in MONAI's engines.

:class:`SegmentationCriterion` is the ``loss_function`` of a SupervisedTrainer, with or without deep
supervision; :class:`ObserverHandler` draws the samples that U-CE and IU need; and
:class:`MetricHandler` is a metric of a SupervisedEvaluator.

Needs MONAI, and its engines need pytorch-ignite: ``pip install 'segunc_ops[monai]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .._adapters import SharedObservation
from .._hooks import Hooked
from ..functional import as_targets
from ..losses import DeepSupervision
from ..losses._base import ClassWeightedLoss
from ..sampling import BatchNormMode, Observer
from ..sampling.models import pick_logits, unwrap
from ..sampling.samples import Interpolated

if TYPE_CHECKING:
    from torchmetrics import Metric

try:
    from monai.engines import IterationEvents
    from monai.networks.nets import DynUNet
    from monai.utils.enums import CommonKeys
except ImportError as error:
    raise ImportError(
        "segunc_ops.integrations.monai needs MONAI; install it with "
        "`pip install 'segunc_ops[monai]'`"
    ) from error

__all__ = ["MetricHandler", "ObserverHandler", "SegmentationCriterion"]


def _plain(value: Tensor) -> Tensor:
    """A MetaTensor as Tensor: each operation on one copies its metadata."""
    return value.as_subclass(Tensor)


class SegmentationCriterion(SharedObservation):
    r"""A loss of what MONAI's networks return and of labels as its transforms make them.

    In place of ``DiceCELoss(to_onehot_y=True, softmax=True)`` and other losses of one-hot labels.
    With `head_weights` it also takes the place of ``DeepSupervisionLoss``:
    :math:`\sum_i w_i\, \ell(z_i, y)`. All heads have the same loss, weighted by the same
    uncertainty: what an :class:`ObserverHandler`, or a call of :meth:`observe`, tells it serves
    them all.

    Args:
        criterion: any loss of logits and class indices.
        head_weights: a number for each head that the network returns in training mode. One tensor
            ``(B, C, *)``, as networks return in evaluation, has its loss unweighted.

    Shape:
        - input: logits ``(B, C, *)``; with `head_weights` also stacked heads ``(B, heads, C, *)``
          (``DynUNet``), or a sequence of heads (``SegResNetDS``), which may have any size if the
          criterion has `upsample`. Tensor or MetaTensor.
        - target: ``(B, 1, *)`` class indices, of any integer type or whole numbers of a float type;
          with `upsample` of any size. Tensor or MetaTensor.
        - result: that of the criterion, a Tensor.

    Raises:
        TypeError: if the criterion is no such loss.
        ValueError: if a weight is below 0, or none is above; on another number of heads; on labels
            that are no indices. One-hot labels are none: leave out ``AsDiscreted(to_onehot=...)``.

    Example:
        >>> loss_function = SegmentationCriterion(DiceCrossEntropyLoss.monai())
        >>> trainer = SupervisedTrainer(..., loss_function=loss_function)
        >>> heads = SegmentationCriterion(DiceCrossEntropyLoss.monai(), head_weights=[1, 0.5, 0.25])
    """

    def __init__(
        self, criterion: ClassWeightedLoss, head_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(criterion)
        self._heads = None if head_weights is None else DeepSupervision(self._loss, head_weights)

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        heads = _plain(input) if isinstance(input, Tensor) else [_plain(head) for head in input]
        labels = as_targets(_plain(target))
        if self._heads is not None:
            loss: Tensor = self._heads(heads, labels)
        elif isinstance(heads, Tensor):
            loss = self._loss(heads, labels)
        else:
            raise ValueError(
                f"input: expected one tensor of logits, got {len(heads)} in a sequence; pass "
                "head_weights, one for each"
            )
        self._forget()
        return loss


class ObserverHandler(Hooked):
    """Draws the samples of U-CE and IU in a SupervisedTrainer: one of its ``train_handlers``.

    An :class:`~segunc_ops.Observer` of the trainer's network and of its ``loss_function``, from the
    start of a run to its end. A run that ends by an error, or is interrupted, leaves it on the
    network until :meth:`remove`, or to the next run.

    Args:
        num_samples, interpolate, batch_norm, stochastic_depth, share_forward: as for Observer.
        output: picks the logits in what the network returns. By default the first head, where it
            returns several.

    Raises:
        TypeError, ValueError: when the run begins, what Observer raises: if the loss takes no
            samples, or the network has no active dropout (see :func:`~segunc_ops.insert_dropout`).

    Example:
        >>> trainer = SupervisedTrainer(
        ...     network=UNet(..., dropout=0.1),
        ...     loss_function=SegmentationCriterion(UncertaintyAwareCrossEntropyLoss()),
        ...     train_handlers=[ObserverHandler()],
        ...     ...
        ... )
    """

    def __init__(
        self,
        num_samples: int = 10,
        *,
        interpolate: Interpolated = "logits",
        batch_norm: BatchNormMode = "batch",
        stochastic_depth: bool = False,
        output: Callable[[Any], Tensor] | None = None,
        share_forward: bool = False,
    ) -> None:
        self._options: dict[str, Any] = {
            "num_samples": num_samples,
            "interpolate": interpolate,
            "batch_norm": batch_norm,
            "stochastic_depth": stochastic_depth,
            "output": output,
            "share_forward": share_forward,
        }
        self._handles = []

    def attach(self, engine: Any) -> None:
        """Called by the trainer, before it has a network."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _start(self, engine: Any) -> None:
        self.remove()
        options = dict(self._options)
        if options["output"] is None:
            options["output"] = partial(_first_head, unwrap(engine.network))
        self._handles = [Observer(engine.network, engine.loss_function, **options)]

    def _end(self, engine: Any) -> None:
        self.remove()


def _first_head(network: nn.Module, output: Any) -> Tensor:
    """The logits of a network that stacks or lists its heads, or does not."""
    if isinstance(output, (list, tuple)):
        output = output[0]
    elif isinstance(network, DynUNet) and output.dim() == network.spatial_dims + 3:
        output = output[:, 0]
    return pick_logits(output)


class MetricHandler:
    """A metric of a SupervisedEvaluator: its ``key_val_metric``, or an additional one.

    It counts each batch's logits and labels as the network and the loader give them, before they
    are taken apart and postprocessed: neither probabilities nor one-hot maps are in memory, and
    nothing of an image is kept. ``engine.state.metrics`` has the value of each epoch.

    Args:
        metric: of :mod:`segunc_ops.metrics`, or another of torchmetrics that takes logits
            ``(B, C, *)`` and class indices ``(B, *)``.

    Example:
        >>> evaluator = SupervisedEvaluator(
        ...     key_val_metric={"mean_iou": MetricHandler(MeanIoU(num_classes=19))}, ...
        ... )
        >>> evaluator.run()
        >>> evaluator.state.metrics["mean_iou"]
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def attach(self, engine: Any, name: str) -> None:
        """Called by the engine."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._compute, name)

    def _reset(self, engine: Any) -> None:
        self.metric.reset()

    def _update(self, engine: Any) -> None:
        output = engine.state.output
        logits = _plain(output[CommonKeys.PRED]).detach()
        labels = as_targets(_plain(output[CommonKeys.LABEL])).to(logits.device)
        self.metric.to(logits.device)
        self.metric.update(logits, labels)

    def _compute(self, engine: Any, name: str) -> None:
        value = self.metric.compute()
        is_number = isinstance(value, Tensor) and value.dim() == 0
        engine.state.metrics[name] = value.item() if is_number else value
