"""Statistics of the members of an ensemble, in one process or over many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..functional import PredictiveStatistics
from .accumulator import PredictiveAccumulator, merge_ranks
from .models import changed, check_initialized, forward, pick_logits, unwrap, without_ddp
from .ranks import check_group

__all__ = ["ensemble_statistics"]


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
            f"models: expected several modules, got one {type(unwrap(models)).__name__}; pass a "
            "list"
        )
    for number, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise TypeError(f"models[{number}]: expected a module, got {type(model).__name__}")
        check_initialized(f"models[{number}]", model)
        member = without_ddp(model)
        with changed([(module, "training", False) for module in member.modules()]):
            logits = forward(member, input, pick)
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
    pick = pick_logits if output is None else output
    if group is not None:
        check_group("ensemble_statistics", group)
    try:
        _accumulate_members(accumulator, models, input, pick, size, align_corners)
    except Exception as error:
        if group is not None:
            # The other ranks are told instead of being left waiting.
            with suppress(Exception):
                merge_ranks(accumulator, "ensemble_statistics", group, error)
        raise
    if group is not None:
        merge_ranks(accumulator, "ensemble_statistics", group)
    if not accumulator.count:
        raise ValueError("models: expected at least one member, got none")
    return accumulator.compute(return_mean)
