"""Samples for losses in trainers that only ever call ``criterion(output, target)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .._hooks import Hooked
from .._torch import flatten, in_backward
from ..functional import PredictiveStatistics
from .dropout import BatchNormMode, check_sampling
from .masks import check_mask_bits
from .models import in_sample
from .samples import Interpolated, check_interpolate, sample_statistics
from .sharing import RecordedForward, StepRecorder

__all__ = ["Observer"]

Inputs = Callable[[tuple[Any, ...], dict[str, Any]], Any]

_LABELS = ("labels", "num_items_in_batch")


@runtime_checkable
class _Observing(Protocol):
    def observe(self, uncertainty: PredictiveStatistics, /) -> None: ...


def _without_labels(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments without those that transformers' models compute a loss of."""
    named = {name: value for name, value in kwargs.items() if name not in _LABELS}
    if args and named:
        raise ValueError(
            "inputs: expected positional or keyword arguments of the model, got both; pass a "
            "function that makes of them what sample_statistics takes"
        )
    return named or args


def _plain(value: Any) -> Any:
    """Tensors of any subclass as Tensor, which they share their memory with."""
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value


class Observer(Hooked):
    """Gives a loss the samples it needs, in a trainer that knows of none.

    Forward hooks on the model draw :func:`sample_statistics` whenever it is called in training mode
    with gradients, within the step's own autocast, and pass them to ``criterion.observe``; the call
    of the loss that follows uses them up. In evaluation, and without gradients, nothing is sampled.
    The loss follows: it is in training mode after a sampled pass, else in evaluation mode, where it
    is plain cross-entropy. Samples that others draw of the model, such as an observer for another
    loss, change nothing. What a backward pass computes once more (activation checkpointing of the
    whole model) is not sampled anew.

    The observer works until :meth:`remove`, or to the end of a ``with`` block.

    Args:
        model: what the trainer calls, or the module in its DistributedDataParallel.
        criterion: a loss with ``observe``:
            :class:`~segunc_ops.losses.UncertaintyAwareCrossEntropyLoss` or
            :class:`~segunc_ops.losses.InstanceUncertaintyCrossEntropyLoss`.
        num_samples, interpolate, batch_norm, stochastic_depth, mask_bits, output: as for
            :func:`sample_statistics`.
        size: what the samples' logits are interpolated to, which is the target's size.
            ``"input"``: the spatial size of the model's first tensor with any; None: their own; or
            sizes.
        inputs: makes of the positional and keyword arguments of the trainer's call what the
            samples' passes get, as :func:`sample_statistics` takes it. By default these are the
            same but for the labels of transformers' models.
        share_forward: whether samples take what comes before the first dropout from the training
            step's own pass: the samples cost no second encoder. They are then drawn after the pass,
            not before it. In the first pass modules may set themselves up, which prevents it; later
            it is an error where it cannot be.

    Raises:
        TypeError: if the criterion needs no samples.
        ValueError: if the model has no active dropout (see :func:`insert_dropout`), or another
            argument is out of range. In a step: what :func:`sample_statistics` raises.

    Example:
        >>> criterion = UncertaintyAwareCrossEntropyLoss(ignore_index=255)
        >>> observer = Observer(model, criterion)
        >>> trainer.fit(model)  # calls criterion(model(images), labels)
        >>> observer.remove()
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        num_samples: int = 10,
        *,
        size: Literal["input"] | Sequence[int] | None = "input",
        interpolate: Interpolated = "logits",
        batch_norm: BatchNormMode = "batch",
        stochastic_depth: bool = False,
        mask_bits: int | None = None,
        output: Callable[[Any], Tensor] | None = None,
        inputs: Inputs | None = None,
        share_forward: bool = False,
    ) -> None:
        if not isinstance(criterion, _Observing):
            raise TypeError(
                "criterion: expected a loss with observe(), such as "
                f"UncertaintyAwareCrossEntropyLoss, got {type(criterion).__name__}, which takes no "
                "samples and needs no Observer"
            )
        if isinstance(size, str) and size != "input":
            raise ValueError(f"size: expected 'input', None or sizes, got {size!r}")
        self._model, self._num_samples = check_sampling(
            model, num_samples, batch_norm, stochastic_depth
        )
        self._criterion = criterion
        self._size = size
        self._options: dict[str, Any] = {
            "interpolate": check_interpolate(interpolate),
            "batch_norm": batch_norm,
            "stochastic_depth": stochastic_depth,
            "mask_bits": check_mask_bits(mask_bits),
            "output": output,
            "align_corners": getattr(criterion, "align_corners", False),
        }
        self._inputs = _without_labels if inputs is None else inputs
        self._recorder = StepRecorder(self._model) if share_forward else None
        self.num_observed = 0
        """How many passes were sampled."""
        self._handles = [self._model.register_forward_pre_hook(self._before, with_kwargs=True)]
        if share_forward:
            self._handles.append(
                self._model.register_forward_hook(self._after, with_kwargs=True, always_call=True)
            )

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if in_sample() or in_backward():
            return
        sampled = module.training and torch.is_grad_enabled()
        if isinstance(self._criterion, nn.Module):
            self._criterion.train(sampled)
        if not sampled:
            return
        if self._recorder is None:
            self._sample(args, kwargs, None)
        else:
            self._recorder.begin(args, kwargs)

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if in_sample() or self._recorder is None or not self._recorder.is_recording:
            return
        recorded = self._recorder.end(output)
        if output is not None:
            self._sample(args, kwargs, recorded)

    def _sample(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], recorded: RecordedForward | None
    ) -> None:
        input = _plain(self._inputs(args, kwargs))
        size = self._size
        if size == "input":
            images = [x for x in flatten(input)[0] if isinstance(x, Tensor) and x.dim() > 2]
            size = images[0].shape[2:] if images else None
        statistics = sample_statistics(
            self._model,
            input,
            self._num_samples,
            size=size,
            share_forward=recorded,
            **self._options,
        )
        self._criterion.observe(statistics)
        self.num_observed += 1
