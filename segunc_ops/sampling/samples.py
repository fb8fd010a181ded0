"""Samples of logits by Monte-Carlo dropout, and their statistics."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import prod
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_choice, check_logits, check_size
from .._dtypes import accumulate_dtype
from ..functional import PredictiveStatistics, predictive_statistics
from .accumulator import PredictiveAccumulator
from .dropout import BatchNormMode, check_modes, check_sampling, sampling_modes
from .folding import SamplesPerPass, by_folds, fold, unfold
from .masks import check_mask_bits
from .models import forward, pick_logits, unwrap
from .sharing import Prefix, RecordedForward

__all__ = ["Interpolated", "check_interpolate", "sample_logits", "sample_statistics"]

Interpolated = Literal["logits", "maps"]


def sample_logits(
    model: nn.Module,
    input: Any,
    num_samples: int = 10,
    *,
    batch_norm: BatchNormMode = "batch",
    stochastic_depth: bool = False,
    mask_bits: int | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> Generator[Tensor, None, None]:
    """Logits of stochastic forward passes, one at a time and without gradients.

    Every pass runs under :func:`mc_dropout`; all other modules are in the mode they are in. The
    model is touched during a pass alone: between two samples its modes are its own, so it may be
    trained meanwhile, and a generator that is dropped halfway leaves nothing behind. Threads that
    sample one model wait for each other; what else runs it in a thread meanwhile finds it changed.
    Running statistics of torch.nn's batch and instance normalisation are never updated. (Other
    modules that write to their buffers in training mode, such as spectral normalisation, still do.)

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
        stochastic_depth: as for :func:`mc_dropout`.
        mask_bits: how many random bits an ``nn.Dropout`` on a CPU draws for each value, 16 or 8.
            torch draws them one by one, for which a sample waits; so few are drawn several at a
            time. p is rounded to a multiple of ``2**-mask_bits``, by which the values that are
            kept are scaled. None: torch's own numbers, as everywhere else: on other devices, of
            compiled models, of other layers.
        output: picks the logits from what the model returns. By default that is a tensor, or a
            mapping with ``"out"`` (torchvision) or ``"logits"`` (transformers).

    Returns:
        A generator of `num_samples` tensors of the shape and type that the model gives.

    Raises:
        ValueError: at once, if the model has no dropout or has uninitialised lazy parameters, or
            `num_samples`, `batch_norm` or `mask_bits` is out of range.
        TypeError: if no logits are found in what the model returns.

    Example:
        >>> for logits in sample_logits(model, images, 10):
        ...     accumulator.update(logits)
    """
    model, num_samples = check_sampling(model, num_samples, batch_norm, stochastic_depth)
    check_mask_bits(mask_bits)
    pick = pick_logits if output is None else output

    def draw() -> Tensor:
        with sampling_modes(model, batch_norm, stochastic_depth, mask_bits):
            return forward(model, input, pick)

    return (draw() for _ in range(num_samples))


def sample_statistics(
    model: nn.Module,
    input: Any,
    num_samples: int = 10,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    interpolate: Interpolated = "logits",
    batch_norm: BatchNormMode = "batch",
    stochastic_depth: bool = False,
    mask_bits: int | None = None,
    return_mean: bool = False,
    output: Callable[[Any], Tensor] | None = None,
    share: bool | None = None,
    share_forward: RecordedForward | None = None,
    samples_per_pass: SamplesPerPass = 1,
) -> PredictiveStatistics:
    """Predictive statistics of Monte-Carlo dropout, in memory that does not grow with the samples.

    The first half of a step of U-CE (Landgraf et al. 2023, Algorithm 1); its `std` is the sigma of
    :class:`segunc_ops.losses.UncertaintyAwareCrossEntropyLoss`.

    Modules that run before the first dropout run in the first pass alone: the others are given
    their outputs again, which stay in memory until the last; so do results of torch's operators
    between them. The samples are, to the bit, those of S whole passes with the same random numbers.
    Every random number of torch counts as dropout, as drawn by ``torch.nn.functional.dropout`` or
    stochastic depth. Nothing is shared, and every pass is whole, where that might give other
    samples: of compiled models, DataParallel, subclasses of Tensor that define their own operators,
    while torch.func transforms or another TorchDispatchMode is active or a CUDA graph is captured;
    where a pass writes to memory that was there before, sets attributes of its modules or changes
    lists and dicts in these (state that a module keeps elsewhere, as within an object of its own,
    is not seen), or draws from Python's or NumPy's global generators before torch's.

    Args:
        model, input, num_samples, batch_norm, stochastic_depth, mask_bits, output: as for
            :func:`sample_logits`.
        size, align_corners: what each sample's logits are interpolated to, such as
            ``labels.shape[1:]``, and how; as for :meth:`PredictiveAccumulator.update`. Samples that
            together take less memory than a running state of that size are kept until the last.
        interpolate: what is interpolated to `size`. ``"logits"``: those of each sample.
            ``"maps"``: the statistics, made at the logits' own resolution, which costs a fraction
            where that is low; `prediction` is then that of the nearest logits.
        return_mean: whether to return the mean probabilities ``(N, C, *)`` too.
        share: whether what comes before the first dropout runs once. None: where it can; True: an
            error says why it cannot.
        share_forward: what :func:`record_forward` has recorded of this step's own forward pass of
            the same input: samples then begin at its first dropout.
        samples_per_pass: how many samples a pass draws at most, of images repeated along the batch;
            passes have equal numbers of them. It saves calls where images are small (3.5x at one of
            32 x 48 on a CPU). What comes before the first dropout is then computed as often, once,
            and batch normalisation with ``"batch"`` sees all samples of a pass. ``"auto"``: on a
            CPU as many as have 16,384 pixels together, on other devices as many as there is memory
            for, which the first call finds out. Models must treat images of a batch alike.

    Returns:
        Maps of shape ``(N, *)``, float32 (float64 for float64 logits). With one sample `std` is
        NaN.

    Raises:
        ValueError, TypeError: as :func:`sample_logits` and :class:`PredictiveAccumulator`.
        ValueError: if nothing can be shared though it is asked for; if `share_forward` is of
            another model, input, state or mode, or is given with several samples in a pass; if the
            model gives logits of another number of images than it gets.

    Example:
        >>> statistics = sample_statistics(model, images, 10)
        >>> loss = criterion(model(images), labels, statistics)
    """
    model, num_samples = check_sampling(model, num_samples, batch_norm, stochastic_depth)
    check_mask_bits(mask_bits)
    maps_size, maps_aligned = None, align_corners
    if check_interpolate(interpolate) == "maps" and size is not None:
        maps_size, size, align_corners = size, None, False
    pick = pick_logits if output is None else output
    if share_forward is not None:
        if share is False:
            raise ValueError("share_forward: expected none with share=False, got one")
        if samples_per_pass == "auto":
            samples_per_pass = 1
        if samples_per_pass != 1:
            raise ValueError(
                f"samples_per_pass: expected 1 or 'auto' with share_forward, got {samples_per_pass}"
            )
        check_modes(model, batch_norm, stochastic_depth)

    def draw(in_pass: int) -> PredictiveStatistics:
        passes = num_samples // in_pass
        if share_forward is not None:
            prefix = share_forward.prefix(model, input)
        else:
            prefix = Prefix(model)
            if share is False or (share is None and passes == 1):
                prefix.reason = "it is not asked for"
        folded = fold(input, in_pass)
        collected = _Samples(num_samples, size, align_corners)
        sampling = sampling_modes(model, batch_norm, stochastic_depth, mask_bits)
        with sampling, prefix.installed():
            for _ in range(passes):
                logits = prefix.run(lambda: forward(model, folded, pick))
                if share and prefix.reason is not None:
                    raise ValueError(
                        f"share: expected False or None for {type(unwrap(model)).__name__}, of "
                        f"which nothing can be shared: {prefix.reason}"
                    )
                samples = unfold(logits, in_pass)
                if maps_size is not None:
                    check_size("logits", samples[0], maps_size, maps_aligned)
                collected.add(samples)
                del logits, samples  # else they would live on through the next forward pass
        return collected.compute(return_mean)

    statistics = by_folds(draw, samples_per_pass, num_samples, model, input)
    return statistics if maps_size is None else _enlarged(statistics, maps_size, maps_aligned)


class _Samples:
    """Logits of samples: kept until the last where that takes less memory than a running state."""

    def __init__(self, num_samples: int, size: Sequence[int] | None, align_corners: bool) -> None:
        self._num_samples, self._size, self._align_corners = num_samples, size, align_corners
        self._state = PredictiveAccumulator()
        self._kept: list[Tensor] | None = None
        self._is_empty = True

    def add(self, samples: Sequence[Tensor]) -> None:
        """Adds the samples of a pass."""
        if self._is_empty:
            self._is_empty = False
            if _are_small(samples[0], self._num_samples, self._size, self._align_corners):
                self._kept = []
        if self._kept is None:
            for sample in samples:
                self._state.update(sample, self._size, self._align_corners)
        else:
            # A compiled model may write the next over them.
            self._kept += [sample.clone() for sample in samples]

    def compute(self, return_mean: bool) -> PredictiveStatistics:
        """The statistics of all samples."""
        if self._kept is None:
            return self._state.compute(return_mean)
        return predictive_statistics(
            self._kept,
            size=self._size,
            align_corners=self._align_corners,
            return_mean=return_mean,
        )


def check_interpolate(interpolate: Interpolated) -> Interpolated:
    """What is interpolated, or an error."""
    check_choice("interpolate", interpolate, get_args(Interpolated))
    return interpolate


def _enlarged(
    statistics: PredictiveStatistics, size: Sequence[int], align_corners: bool
) -> PredictiveStatistics:
    """Maps interpolated to `size`."""
    prediction, maps, mean = statistics[0], statistics[1:-1], statistics.mean
    if tuple(size) == prediction.shape[1:]:
        return statistics
    sizes = [*size]
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    small = torch.stack(maps).flatten(0, 1).unsqueeze(1)
    large = F.interpolate(small, sizes, mode=mode, align_corners=align_corners)
    if mean is not None:
        mean = F.interpolate(mean, sizes, mode=mode, align_corners=align_corners)
    nearest = F.interpolate(prediction.unsqueeze(1).float(), sizes, mode="nearest-exact")
    large = large.squeeze(1).unflatten(0, (len(maps), -1))
    confidence, std, entropy, expected_entropy, mutual_information = large
    return PredictiveStatistics(
        prediction=nearest.squeeze(1).long(),
        confidence=confidence,
        std=std,
        entropy=entropy,
        expected_entropy=expected_entropy,
        mutual_information=mutual_information,
        mean=mean,
    )


def _are_small(
    logits: Tensor, num_samples: int, size: Sequence[int] | None, align_corners: bool
) -> bool:
    """Whether samples that are to be enlarged take no more memory than a running state at the size.

    Then one pass over all of them is faster, too: the state is neither read nor written.
    """
    check_logits("logits", logits)
    sizes = check_size("logits", logits, size, align_corners)
    if sizes is None:
        return False
    images, classes = logits.shape[:2]
    state = images * (2 * classes + 1) * prod(sizes)
    itemsize = accumulate_dtype(logits.dtype).itemsize
    return num_samples * logits.numel() * logits.element_size() <= state * itemsize
