"""The running state of samples that come one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import check_size, check_tensor
from .._dtypes import accumulate_dtype
from ..functional import PredictiveStatistics, accumulate_statistics, finalize_statistics
from .ranks import Offer, check_group, check_offers, explained

__all__ = ["PredictiveAccumulator", "merge_ranks"]


class _State(NamedTuple):
    mean: Tensor
    squared_deviations: Tensor
    entropy_sum: Tensor


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
        check_tensor("logits", logits)
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
        merge_ranks(self, "all_reduce", group)
        return self

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


def merge_ranks(
    accumulator: PredictiveAccumulator,
    caller: str,
    group: dist.ProcessGroup | None,
    failure: BaseException | None = None,
) -> None:
    """:meth:`PredictiveAccumulator.all_reduce` for a caller that errors name.

    Args:
        failure: why this rank has nothing to give: all ranks raise an error that quotes it.
    """
    check_group(caller, group)
    mine: Offer | str | None = None
    if failure is not None:
        mine = f"{type(failure).__name__}: {failure}"
    elif accumulator._state is not None and accumulator._dtype is not None:
        mean = accumulator._state.mean
        mine = Offer(accumulator.count, tuple(mean.shape), accumulator._dtype, mean.device.type)
    every: list[Offer | str | None] = [None] * dist.get_world_size(group)
    with explained(caller, group):
        dist.all_gather_object(every, mine, group)
    merged = PredictiveAccumulator()
    for rank, offer in check_offers(caller, every, group).items():
        with explained(caller, group):
            merged.merge(_receive(accumulator, offer, rank, group))
    accumulator._count = merged._count
    accumulator._state, accumulator._dtype = merged._state, merged._dtype


def _receive(
    mine: PredictiveAccumulator, offer: Offer, rank: int, group: dist.ProcessGroup | None
) -> PredictiveAccumulator:
    """The accumulator of one rank of the group, which that rank sends to all."""
    if rank == dist.get_rank(group):
        sent = mine
    else:
        sent = PredictiveAccumulator()
        # By the kind alone CUDA would be the current device, whichever the own samples are on.
        device = mine._state.mean.device if mine._state else torch.device(offer.device)
        sent._state = sent._allocate(offer.shape, offer.dtype, device)
        sent._count, sent._dtype = offer.num_samples, offer.dtype
    assert sent._state is not None
    for part in sent._state:
        dist.broadcast(part, group=group, group_src=rank)
    return sent
