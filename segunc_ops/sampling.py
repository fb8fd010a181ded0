"""Samples of logits by Monte-Carlo dropout or from an ensemble, and their statistics from a stream.

The samples never exist together: each is folded into a running state whose size does not depend
on their number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from ._checks import check_size
from ._dtypes import accumulate_dtype
from .functional import PredictiveStatistics, accumulate_statistics, finalize_statistics

__all__ = [
    "BatchNormMode",
    "PredictiveAccumulator",
    "ensemble_statistics",
    "mc_dropout",
    "sample_logits",
    "sample_statistics",
]

BatchNormMode = Literal["batch", "running"]

_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
# Layers that drop inside their own forward pass, with the probability in `dropout`.
_DROPOUT_INSIDE = (nn.MultiheadAttention, nn.RNNBase)


class _State(NamedTuple):
    mean: Tensor
    squared_deviations: Tensor
    entropy_sum: Tensor


class _Offer(NamedTuple):
    """The samples of a rank, as it tells the others before states are exchanged."""

    num_samples: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str


class PredictiveAccumulator:
    """The :class:`~segunc_ops.PredictiveStatistics` of samples that come one at a time.

    The state is the probabilities' running mean and sum of squared deviations (Welford), both
    ``(N, C, *)``, and the sum of the samples' entropies, ``(N, *)``, in float32 (float64 for
    float64 logits), however many samples there are. Up to rounding the result is that of
    :func:`segunc_ops.functional.predictive_statistics` on all samples at once. It can be pickled
    and copied, and two accumulators of different samples can be merged.

    Logits may be interpolated on the way, each to the size of the state, from whatever resolution
    it has: members of an ensemble need not have the same output stride.

    Example:
        >>> accumulator = PredictiveAccumulator()
        >>> for member in ensemble:
        ...     accumulator.update(member(image))
        >>> uncertainty = accumulator.compute().entropy
    """

    def __init__(self) -> None:
        self._count = 0
        self._state: _State | None = None
        self._dtype: torch.dtype | None = None

    @property
    def count(self) -> int:
        """The number of samples so far."""
        return self._count

    def update(
        self, logits: Tensor, size: Sequence[int] | None = None, align_corners: bool = False
    ) -> PredictiveAccumulator:
        """Adds one sample.

        Args:
            logits: ``(N, C, *)``; float32, bfloat16, float16 or float64, of any strides. Type and
                device are those of the first sample. No gradient flows.
            size: the spatial sizes that logits ``(N, C, H, W)`` or ``(N, C, D, H, W)`` are
                interpolated to, such as ``labels.shape[1:]``, without ever being in memory there;
                as for :func:`segunc_ops.functional.predictive_statistics`. None: their own. The
                first sample's decides; later logits may have any resolution, if this is given.
            align_corners: how they are interpolated.

        Returns:
            The accumulator itself.

        Raises:
            ValueError: if device, or shape once interpolated, differ from the first sample's, or
                logits cannot be interpolated to the size.
            TypeError: if the type does, or is no type of logits.
        """
        if not isinstance(logits, Tensor):
            raise TypeError(f"logits: expected a tensor, got {type(logits).__name__}")
        sizes = check_size("logits", logits, size, align_corners)
        shape = logits.shape if sizes is None else logits.shape[:2] + sizes
        state = self._state
        if state is None:
            state = self._allocate(shape, logits.dtype, logits.device)
        else:
            wanted = tuple(state.mean.shape[2:])
            if sizes is not None and sizes != wanted:
                raise ValueError(f"size: expected {wanted} like the samples so far, got {sizes}")
            self._check_fits("logits", shape, logits.dtype, logits.device, interpolates=True)
        accumulate_statistics(*state, logits, self._count + 1, align_corners=align_corners)
        self._state, self._dtype, self._count = state, logits.dtype, self._count + 1
        return self

    def compute(self, return_mean: bool = False) -> PredictiveStatistics:
        """The statistics of the samples so far; more may follow.

        Args:
            return_mean: whether to return the mean probabilities ``(N, C, *)`` too.

        Returns:
            Maps of shape ``(N, *)``, float32 (float64 for float64 logits). With one sample `std`
            is NaN.

        Raises:
            RuntimeError: if there is no sample yet.
        """
        if self._state is None:
            raise RuntimeError("compute: expected at least one sample, got none; call update first")
        return finalize_statistics(*self._state, self._count, return_mean=return_mean)

    def merge(self, other: PredictiveAccumulator) -> PredictiveAccumulator:
        """Adds the samples of another accumulator, which stays as it is; either may be empty.

        Means, squared deviations and entropies are combined by the exact pairwise formulas of
        Chan et al. (1979), so any partition of the samples gives the same result up to rounding.

        Args:
            other: an accumulator of samples of the same shape, type and device.

        Returns:
            The accumulator itself.

        Raises:
            ValueError: if shapes or devices differ.
            TypeError: if types differ, or `other` is no accumulator.
        """
        if not isinstance(other, PredictiveAccumulator):
            raise TypeError(f"other: expected a PredictiveAccumulator, got {type(other).__name__}")
        theirs = other._state
        if theirs is None or other._dtype is None:
            return self
        if self._state is None:
            with torch.inference_mode(False):
                self._state = _State(*(tensor.clone() for tensor in theirs))
            self._dtype, self._count = other._dtype, other._count
            return self
        self._check_fits("other", theirs.mean.shape, other._dtype, theirs.mean.device)
        count = self._count + other._count
        mine = self._state
        delta = theirs.mean - mine.mean
        mine.mean.add_(delta, alpha=other._count / count)
        mine.squared_deviations.add_(theirs.squared_deviations)
        mine.squared_deviations.add_(delta.square_(), alpha=self._count * other._count / count)
        mine.entropy_sum.add_(theirs.entropy_sum)
        self._count = count
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> PredictiveAccumulator:
        """Merges the accumulators of all ranks, so that each has the samples of all.

        States are merged in the order of the ranks by the formulas of :meth:`merge`, with the same
        operations everywhere: on devices of one kind all ranks get the same bits. Ranks may have
        different numbers of samples, or none. Every rank of the group must call; it waits for the
        others. Two states' worth of memory beside the own one are needed meanwhile.

        Args:
            group: the process group, of a backend that serves the samples' device (gloo, nccl);
                None is the default group.

        Returns:
            The accumulator itself; empty if all were.

        Raises:
            RuntimeError: torch.distributed is not initialised, or a rank did not take part: it
                ended, or the group's timeout passed.
            ValueError: on every rank, if shapes or devices of the ranks' samples differ, or the
                group's backend does not serve the device; on one that is not in the group.
            TypeError: on every rank, if types differ.

            After an error the samples are those from before.
        """
        return self._all_reduce("all_reduce", group, None)

    def _all_reduce(
        self, caller: str, group: dist.ProcessGroup | None, failure: BaseException | None
    ) -> PredictiveAccumulator:
        _check_group(caller, group)
        mine: _Offer | str | None = None
        if failure is not None:
            mine = f"{type(failure).__name__}: {failure}"
        elif self._state is not None and self._dtype is not None:
            mean = self._state.mean
            mine = _Offer(self._count, tuple(mean.shape), self._dtype, mean.device.type)
        every: list[_Offer | str | None] = [None] * dist.get_world_size(group)
        with _explained(caller, group):
            dist.all_gather_object(every, mine, group)
        merged = PredictiveAccumulator()
        for rank, offer in _check_offers(caller, every, group).items():
            with _explained(caller, group):
                merged.merge(self._receive(offer, rank, group))
        self._count, self._state, self._dtype = merged._count, merged._state, merged._dtype
        return self

    def _receive(
        self, offer: _Offer, rank: int, group: dist.ProcessGroup | None
    ) -> PredictiveAccumulator:
        """The accumulator of one rank of the group, which that rank sends to all."""
        if rank == dist.get_rank(group):
            sent = self
        else:
            sent = PredictiveAccumulator()
            # By the kind alone CUDA would be the current device, whichever the own samples are on.
            device = self._state.mean.device if self._state else torch.device(offer.device)
            sent._state = self._allocate(offer.shape, offer.dtype, device)
            sent._count, sent._dtype = offer.num_samples, offer.dtype
        assert sent._state is not None
        for part in sent._state:
            dist.broadcast(part, group=group, group_src=rank)
        return sent

    def reset(self) -> PredictiveAccumulator:
        """Forgets all samples, their shape and type, and frees the memory; returns itself."""
        self._count, self._state, self._dtype = 0, None, None
        return self

    def __repr__(self) -> str:
        if self._state is None:
            return "PredictiveAccumulator(count=0)"
        shape = tuple(self._state.mean.shape)
        return f"PredictiveAccumulator(count={self._count}, shape={shape}, dtype={self._dtype})"

    @staticmethod
    def _allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> _State:
        # A tensor made in inference mode could not be updated outside it.
        with torch.inference_mode(False):
            mean = torch.empty(tuple(shape), dtype=accumulate_dtype(dtype), device=device)
            pixels = mean.shape[:1] + mean.shape[2:]
            return _State(mean, torch.empty_like(mean), mean.new_empty(pixels))

    def _check_fits(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        interpolates: bool = False,
    ) -> None:
        assert self._state is not None
        mean = self._state.mean
        if shape != mean.shape:
            advice = ""
            if interpolates and mean.dim() == len(shape) in (4, 5) and shape[:2] == mean.shape[:2]:
                advice = f"pass size={tuple(mean.shape[2:])} to interpolate, or "
            raise ValueError(
                f"{name}: expected shape {tuple(mean.shape)} like the samples so far, got "
                f"{tuple(shape)}; {advice}call reset() before samples of another shape"
            )
        if dtype != self._dtype:
            raise TypeError(f"{name}: expected {self._dtype} like the samples so far, got {dtype}")
        if device != mean.device:
            raise ValueError(
                f"{name}: expected device {mean.device} like the samples so far, got {device}"
            )


def _check_group(caller: str, group: dist.ProcessGroup | None) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{caller}: expected an initialised process group, got none; call "
            "torch.distributed.init_process_group first"
        )
    if dist.get_rank(group) < 0:
        raise ValueError(f"group: expected one that rank {dist.get_rank()} is in, got another")


@contextmanager
def _explained(caller: str, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Says what a failed collective means."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{caller}: expected all {dist.get_world_size(group)} ranks to take part, but on rank "
            f"{dist.get_rank(group)} the exchange failed: {error}"
        ) from error


def _check_offers(
    caller: str, every: Sequence[_Offer | str | None], group: dist.ProcessGroup | None
) -> dict[int, _Offer]:
    """What the ranks with samples offer; where it does not fit, every rank raises the same."""
    for rank, offer in enumerate(every):
        if isinstance(offer, str):
            raise RuntimeError(f"{caller}: rank {rank} failed with {offer}")
    offers = {rank: offer for rank, offer in enumerate(every) if isinstance(offer, _Offer)}
    if not offers:
        return offers
    first, wanted = next(iter(offers.items()))
    for rank, offer in offers.items():
        for name in ("shape", "dtype", "device"):
            if getattr(offer, name) != getattr(wanted, name):
                kind = TypeError if name == "dtype" else ValueError
                raise kind(
                    f"{caller}: expected {name} {getattr(wanted, name)} like the samples of rank "
                    f"{first}, got {getattr(offer, name)} on rank {rank}"
                )
    served = [entry.partition(":")[0] for entry in dist.get_backend_config(group).split(",")]
    if wanted.device not in served:
        raise ValueError(
            f"{caller}: expected samples on {' or '.join(served)}, which the group's backend "
            f"serves, got {wanted.device}"
        )
    return offers


def _drops(module: nn.Module) -> bool:
    """Whether training mode makes this very module drop something."""
    if isinstance(module, _DROPOUT):
        return module.p > 0
    return isinstance(module, _DROPOUT_INSIDE) and module.dropout > 0


def _dropout_changes(model: nn.Module) -> list[tuple[nn.Module, str, object]]:
    changes: list[tuple[nn.Module, str, object]] = [
        (module, "training", True) for module in model.modules() if _drops(module)
    ]
    if not changes:
        raise ValueError(
            f"model: expected at least one dropout layer of torch.nn with p > 0, got none in "
            f"{type(_unwrap(model)).__name__}; torch.nn.functional.dropout cannot be switched from "
            "outside, use a torch.nn.Dropout module instead"
        )
    # In eval mode this layer's fast path skips the dropout modules below it; nothing else there
    # depends on its mode.
    changes += [
        (module, "training", True)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
    ]
    return changes


def _normalization_changes(
    model: nn.Module, batch_norm: BatchNormMode
) -> Iterator[tuple[nn.Module, str, object]]:
    model_training = _unwrap(model).training
    for module in model.modules():
        tracking = isinstance(module, _BatchNorm | _InstanceNorm) and module.track_running_stats
        if not tracking and not isinstance(module, _BatchNorm):
            continue
        if batch_norm == "running":
            yield module, "training", False
        elif model_training and not module.training:
            continue  # frozen on purpose: the training pass does not use its batch either
        else:
            yield module, "training", True
            if isinstance(module, _BatchNorm):
                # Without tracking it passes no running statistics to be updated.
                yield module, "track_running_stats", False
            else:
                # An instance norm always passes them, so they have to be absent.
                yield module, "running_mean", None
                yield module, "running_var", None


@contextmanager
def _changed(changes: Iterable[tuple[nn.Module, str, object]]) -> Iterator[None]:
    """Sets attributes of modules and puts the old values back, whatever happens."""
    before: list[tuple[nn.Module, str, object]] = []
    try:
        for module, name, value in changes:
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)


@contextmanager
def mc_dropout(model: nn.Module) -> Iterator[nn.Module]:
    """Makes the dropout layers of a model random inside the ``with`` block, and nothing else.

    These are torch.nn's ``Dropout``, ``Dropout1d``, ``Dropout2d``, ``Dropout3d``,
    ``AlphaDropout`` and ``FeatureAlphaDropout`` with p > 0, and the dropout inside
    ``MultiheadAttention`` and recurrent layers. All other modules keep their mode, the model
    itself too. Afterwards every mode is what it was, also after an exception.

    Out of reach is ``torch.nn.functional.dropout`` called in a module's own ``forward``: it
    follows that module's mode.

    Args:
        model: a module in any mode, compiled or wrapped in DistributedDataParallel or not.

    Yields:
        The model.

    Raises:
        ValueError: if no layer of the model would drop anything.

    Example:
        >>> model.eval()
        >>> with mc_dropout(model), torch.no_grad():
        ...     sample = model(image)
    """
    with _changed(_dropout_changes(model)):
        yield model


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    # Under no_grad torch 2.10 caches weights cast without their gradient, which the caller's next
    # training pass in the same autocast region would then use.
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _without_ddp(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel, still compiled where it was below that.

    A forward pass through the wrapper broadcasts rank 0's buffers and, under no_grad, cancels the
    broadcast that the next training pass would do.
    """
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        return _without_ddp(inner)
    return model


def _pick_logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in ("out", "logits"):
            if key in output:
                logits: Tensor = output[key]
                return logits
        got = f"a mapping with {sorted(map(str, output))}"
    else:
        got = type(output).__name__
    raise TypeError(
        "output: expected the model to return a tensor or a mapping with 'out' or 'logits', got "
        f"{got}; pass output= to pick the logits"
    )


def _check_initialized(name: str, model: nn.Module) -> None:
    if any(is_lazy(p) for p in model.parameters()) or any(is_lazy(b) for b in model.buffers()):
        raise ValueError(
            f"{name}: expected initialised parameters, got lazy ones in "
            f"{type(_unwrap(model)).__name__}; run it once before sampling"
        )


def _call(model: nn.Module, input: Any) -> Any:
    if isinstance(input, Mapping):
        return model(**input)
    if isinstance(input, tuple):
        return model(*input)
    return model(input)


def _draw(
    model: nn.Module, input: Any, batch_norm: BatchNormMode, pick: Callable[[Any], Tensor]
) -> Tensor:
    with mc_dropout(model), _changed(_normalization_changes(model, batch_norm)):
        return _forward(model, input, pick)


def _forward(model: nn.Module, input: Any, pick: Callable[[Any], Tensor]) -> Tensor:
    with torch.no_grad(), _without_autocast_cache():
        logits = pick(_call(model, input))
    if not isinstance(logits, Tensor):
        raise TypeError(f"output: expected the logits as a tensor, got {type(logits).__name__}")
    return logits


def sample_logits(
    model: nn.Module,
    input: Any,
    num_samples: int = 10,
    *,
    batch_norm: BatchNormMode = "batch",
    output: Callable[[Any], Tensor] | None = None,
) -> Generator[Tensor, None, None]:
    """Logits of stochastic forward passes, one at a time and without gradients.

    Every pass runs under :func:`mc_dropout`; all other modules are in the mode they are in. The
    model is touched during a pass alone: between two samples its modes are its own, so it may be
    trained meanwhile, and a generator that is dropped halfway leaves nothing behind. Running
    statistics of torch.nn's batch and instance normalisation are never updated. (Other modules
    that write to their buffers in training mode, such as spectral normalisation, still do.)

    Args:
        model: any module, in training or eval mode. A compiled model stays compiled. Of
            DistributedDataParallel the module inside is called: no buffers are broadcast.
        input: the argument of the model; a tuple is passed as positional, a mapping as keyword
            arguments.
        num_samples: how many passes.
        batch_norm: ``"batch"``: batch normalisation uses the batch's own statistics, as it does
            in the training pass of U-CE (Landgraf et al. 2023, Algorithm 1); layers in eval mode
            in a model in training mode are frozen and use their running statistics.
            ``"running"``: it uses the running statistics, as in eval mode. Instance
            normalisation that tracks running statistics follows; SyncBatchNorm with ``"batch"``
            synchronises, so all ranks must draw as many samples.
        output: picks the logits from what the model returns. By default that is a tensor, or a
            mapping with ``"out"`` (torchvision) or ``"logits"`` (transformers).

    Returns:
        A generator of `num_samples` tensors of the shape and type that the model gives.

    Raises:
        ValueError: at once, if the model has no dropout or has uninitialised lazy parameters, or
            `num_samples` or `batch_norm` is out of range.
        TypeError: if no logits are found in what the model returns.

    Example:
        >>> for logits in sample_logits(model, images, 10):
        ...     accumulator.update(logits)
    """
    num_samples = operator.index(num_samples)
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    if batch_norm not in get_args(BatchNormMode):
        raise ValueError(
            f"batch_norm: expected one of {get_args(BatchNormMode)}, got {batch_norm!r}"
        )
    _check_initialized("model", model)
    model = _without_ddp(model)
    _dropout_changes(model)
    pick = _pick_logits if output is None else output
    return (_draw(model, input, batch_norm, pick) for _ in range(num_samples))


def sample_statistics(
    model: nn.Module,
    input: Any,
    num_samples: int = 10,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    batch_norm: BatchNormMode = "batch",
    return_mean: bool = False,
    output: Callable[[Any], Tensor] | None = None,
) -> PredictiveStatistics:
    """Predictive statistics of Monte-Carlo dropout; memory does not grow with the samples.

    The first half of a step of U-CE (Landgraf et al. 2023, Algorithm 1); its `std` is the sigma of
    :class:`segunc_ops.losses.UncertaintyAwareCrossEntropyLoss`.

    Args:
        model, input, num_samples, batch_norm, output: as for :func:`sample_logits`.
        size, align_corners: what each sample's logits are interpolated to, such as
            ``labels.shape[1:]``, and how; as for :meth:`PredictiveAccumulator.update`.
        return_mean: whether to return the mean probabilities ``(N, C, *)`` too.

    Returns:
        Maps of shape ``(N, *)``, float32 (float64 for float64 logits). With one sample `std` is
        NaN.

    Raises:
        ValueError, TypeError: as :func:`sample_logits` and :class:`PredictiveAccumulator`.

    Example:
        >>> statistics = sample_statistics(model, images, 10)
        >>> loss = criterion(model(images), labels, statistics)
    """
    accumulator = PredictiveAccumulator()
    for logits in sample_logits(model, input, num_samples, batch_norm=batch_norm, output=output):
        accumulator.update(logits, size, align_corners)
        del logits  # else it would live on through the next forward pass
    return accumulator.compute(return_mean)


def _accumulate_members(
    accumulator: PredictiveAccumulator,
    models: Iterable[nn.Module],
    input: Any,
    pick: Callable[[Any], Tensor],
    size: Sequence[int] | None,
    align_corners: bool,
) -> None:
    if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
        raise TypeError(
            f"models: expected several modules, got one {type(_unwrap(models)).__name__}; pass a "
            "list"
        )
    for number, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise TypeError(f"models[{number}]: expected a module, got {type(model).__name__}")
        _check_initialized(f"models[{number}]", model)
        member = _without_ddp(model)
        with _changed([(module, "training", False) for module in member.modules()]):
            logits = _forward(member, input, pick)
        accumulator.update(logits, size, align_corners)
        del logits  # else it would live on through the next forward pass


def ensemble_statistics(
    models: Iterable[nn.Module],
    input: Any,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    return_mean: bool = False,
    output: Callable[[Any], Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> PredictiveStatistics:
    """Predictive statistics of an ensemble; memory does not grow with its members.

    The first half of instance-wise uncertainty (Almeida et al.): its `entropy` is what
    :class:`segunc_ops.losses.InstanceUncertaintyCrossEntropyLoss` averages over components. Members
    run one after another in evaluation mode, without gradients; afterwards every module is in the
    mode it was in.

    Args:
        models: the members, in any mode, compiled or wrapped in DistributedDataParallel or not. A
            generator may make each when its turn comes.
        input: the argument of every member; a tuple is passed as positional, a mapping as keyword
            arguments.
        size, align_corners: what each member's logits are interpolated to, such as
            ``labels.shape[1:]``, and how; as for :meth:`PredictiveAccumulator.update`. Members
            may then give logits of different resolutions.
        return_mean: whether to return the mean probabilities ``(N, C, *)`` too.
        output: picks the logits from what a member returns, as for :func:`sample_logits`.
        group: the members are those of all ranks of this process group
            (``torch.distributed.group.WORLD`` for all): each rank passes its own, of any number
            or none, and the same input; all get the same statistics, to the bit on devices of one
            kind. None is no communication.

    Returns:
        Maps of shape ``(N, *)``, float32 (float64 for float64 logits). With one member `std` is
        NaN.

    Raises:
        ValueError: no member, on any rank; a member with uninitialised lazy parameters; logits of
            members that differ in shape, once interpolated, or device; a size that does not fit.
        TypeError: something else than modules; no logits in what a member returns; logits of
            members that differ in type.
        RuntimeError: with `group`, as :meth:`PredictiveAccumulator.all_reduce`. A rank whose own
            member fails raises that error, and all others one that quotes it.

    Example:
        >>> statistics = ensemble_statistics(members, images)
        >>> loss = criterion(members[0](images), labels, statistics)
    """
    accumulator = PredictiveAccumulator()
    pick = _pick_logits if output is None else output
    if group is not None:
        _check_group("ensemble_statistics", group)
    try:
        _accumulate_members(accumulator, models, input, pick, size, align_corners)
    except Exception as error:
        if group is not None:
            # The other ranks are told instead of being left waiting.
            with suppress(Exception):
                accumulator._all_reduce("ensemble_statistics", group, error)
        raise
    if group is not None:
        accumulator._all_reduce("ensemble_statistics", group, None)
    if not accumulator.count:
        raise ValueError("models: expected at least one member, got none")
    return accumulator.compute(return_mean)
