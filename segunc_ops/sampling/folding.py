"""Several samples in one pass: an input's images repeated along the batch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._torch import flatten, unflatten

__all__ = ["SamplesPerPass", "by_folds", "fold", "unfold"]

_Result = TypeVar("_Result")
SamplesPerPass = int | Literal["auto"]

# On a CPU more pixels in a pass save no calls worth having, and leave the cache.
_MAX_CPU_PIXELS = 2**14
# By model and shape of the input: the most samples that an accelerator had memory for.
_fitted: WeakKeyDictionary[nn.Module, dict[torch.Size, int]] = WeakKeyDictionary()


def _images(input: Any) -> Tensor | None:
    tensors = (leaf for leaf in flatten(input)[0] if isinstance(leaf, Tensor))
    return next((tensor for tensor in tensors if tensor.dim() > 0), None)


def _on_cpu(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _divisors(num_samples: int) -> list[int]:
    """In falling order: passes of equal size."""
    return [n for n in range(num_samples, 0, -1) if num_samples % n == 0]


def _folds(
    samples_per_pass: SamplesPerPass, num_samples: int, model: nn.Module, input: Any
) -> Iterator[int]:
    """How many samples to draw in a pass: the next where memory was not enough for the last."""
    images = _images(input)
    if samples_per_pass != "auto":
        asked = operator.index(samples_per_pass)
        if asked < 1:
            raise ValueError(f"samples_per_pass: expected at least 1 or 'auto', got {asked}")
        if asked > 1 and images is None:
            raise ValueError(
                f"samples_per_pass: expected 1 for an input without a tensor of images, got {asked}"
            )
        yield next(n for n in _divisors(num_samples) if n <= asked)
        return
    if images is None or images.dim() < 3:
        yield 1
        return
    pixels = images.shape[0] * images.shape[2:].numel()
    if _on_cpu(images):
        yield next(n for n in _divisors(num_samples) if n * pixels <= _MAX_CPU_PIXELS or n == 1)
        return
    known = _fitted.setdefault(model, {})
    most = known.get(images.shape, num_samples)
    for in_pass in _divisors(num_samples):
        if in_pass <= most:
            known[images.shape] = in_pass
            yield in_pass


def by_folds(
    draw: Callable[[int], _Result],
    samples_per_pass: SamplesPerPass,
    num_samples: int,
    model: nn.Module,
    input: Any,
) -> _Result:
    """What `draw` returns of a number of samples in a pass for which there is memory.

    Raises:
        ValueError: `samples_per_pass` is out of range; the input has no tensor to repeat.
    """
    lacking: torch.OutOfMemoryError | None = None
    for in_pass in _folds(samples_per_pass, num_samples, model, input):
        try:
            return draw(in_pass)
        except torch.OutOfMemoryError as error:
            lacking = error.with_traceback(None)  # whose frames hold what has to be freed
    assert lacking is not None
    raise lacking


def fold(input: Any, times: int) -> Any:
    """An input whose tensors of a batch hold it `times` times, one after another."""
    if times == 1:
        return input
    images = _images(input)
    assert images is not None
    leaves, structure = flatten(input)
    repeated = [
        torch.cat([leaf] * times)  # which keeps channels_last
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == images.shape[0]
        else leaf
        for leaf in leaves
    ]
    return unflatten(repeated, structure)


def unfold(logits: Tensor, times: int) -> tuple[Tensor, ...]:
    """The samples in the logits of a folded input.

    Raises:
        ValueError: they are not as many for each.
    """
    if times == 1:
        return (logits,)
    if logits.dim() == 0 or logits.shape[0] % times:
        raise ValueError(
            f"samples_per_pass: expected logits of each of the images of {times} batches, got "
            f"shape {tuple(logits.shape)}; pass samples_per_pass=1 for such a model"
        )
    return logits.chunk(times)
