"""Model selection by uncertainty (Huang et al.): a fast model, better ones where it is unsure."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._blocks import check_blocks
from ._checks import (
    check_device,
    check_integer,
    check_positive,
    check_target_dtype,
    check_tensor,
    describe,
)
from ._types import PredictiveStatistics
from .functional import BlockGrid, block_grid, predictive_statistics
from .sampling.models import changed, check_initialized, forward, pick_logits, without_ddp

__all__ = [
    "AGREEMENT_COLOURS",
    "AGREEMENT_NAMES",
    "Cascade",
    "CascadeResult",
    "OracleResult",
    "agreement_map",
    "block_oracle",
    "model_map",
    "pixel_oracle",
    "select_pixels",
]

AGREEMENT_NAMES = ("both right", "only the fast right", "only the accurate right", "both wrong")
"""What the values of :func:`agreement_map` mean."""
AGREEMENT_COLOURS = ("#d9d9d9", "#2c7fb8", "#41ab5d", "#c0392b")
"""A colour for each, as hexadecimal red, green and blue."""

_AGREEMENT_IGNORED = 255
_BITS = 1 / math.log(2)  # of a nat


class CascadeResult(NamedTuple):
    """What a cascade makes of N images, and which model made which block."""

    prediction: Tensor
    """Class indices, ``(N, H, W)``, int64."""
    uncertainty: Tensor
    """Mean entropy in bits by which it was decided last who makes a block, ``(N, rows, columns)``:
    that of the model before the one that made it, or of its own if that left it as it was."""
    model: Tensor
    """Index of the model that made each block, ``(N, rows, columns)``, int64."""
    probabilities: Tensor | None = None
    """``(N, C, H, W)``, if asked for."""

    def block_counts(self, num_models: int) -> Tensor:
        """How many blocks of each image each model has seen, ``(N, num_models)``, int64.

        Its mean over images is the blocks an image that the time is made of. The first model sees
        whole images, hence every block.
        """
        made = self.model.flatten(1)
        order = torch.arange(num_models, device=made.device)
        return (made[..., None] >= order).sum(1)


class OracleResult(NamedTuple):
    """The best that a selection could make of some predictions, as only labels can tell."""

    prediction: Tensor
    """Class indices, ``(N, H, W)``."""
    model: Tensor
    """Index of the model that was chosen, int64; ``(N, H, W)`` by pixels, ``(N, rows, columns)`` by
    blocks."""


def _context(value: object) -> tuple[int, int]:
    """Rows and columns of pixels around a block."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"context: expected an integer or (height, width), got {pair}")
    height, width = (check_integer("context", each) for each in pair)
    if min(height, width) < 0:
        raise ValueError(f"context: expected at least 0, got {min(height, width)}")
    return height, width


def _thresholds(threshold: object, stages: int) -> tuple[float, ...]:
    """One for each model but the first."""
    given: list[Any]
    if isinstance(threshold, Sequence) and not isinstance(threshold, str):
        given = list(threshold)
        if len(given) != stages:
            raise ValueError(
                f"threshold: expected one number or {stages}, one for each model but the first, "
                f"got {len(given)}"
            )
    else:
        given = [threshold] * stages
    thresholds = []
    for each in given:
        if not isinstance(each, Real) or isinstance(each, bool):
            raise TypeError(f"threshold: expected a number, got {describe(each)}")
        each = float(each)
        if math.isnan(each) or -math.inf < each < 0:
            raise ValueError(
                f"threshold: expected bits of at least 0, got {each}; -inf takes every block"
            )
        thresholds.append(each)
    return tuple(thresholds)


def _block_means(entropy: Tensor, block_size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The mean of each block of maps in nats, ``(N, rows, columns)``, in bits."""
    means = entropy
    for dim, block, step in zip((-2, -1), block_size, stride, strict=True):
        every = means.unfold(dim, block, step).mean(-1, dtype=_summing(entropy))
        if (means.shape[dim] - block) % step:
            shifted = means.narrow(dim, means.shape[dim] - block, block)
            every = torch.cat([every, shifted.mean(dim, True, dtype=every.dtype)], dim)
        means = every
    return (_BITS * means).to(entropy.dtype)


def _summing(values: Tensor) -> torch.dtype:
    """The type of sums over blocks."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def _above(uncertainty: Tensor, threshold: float) -> Tensor:
    """Where the next model has to decide; NaN, too, where it is to have everything."""
    if threshold == -math.inf:
        return torch.ones_like(uncertainty, dtype=torch.bool)
    return uncertainty > threshold


class _Place(NamedTuple):
    """Of a block."""

    image: int
    row: int
    column: int


_Span = tuple[slice, slice]
"""Rows and columns of pixels."""


def _pixels(tensor: Tensor, span: _Span) -> Tensor:
    """A view of ``(..., H, W)``."""
    return tensor[..., span[0], span[1]]


@dataclass(frozen=True)
class _Crops:
    """Where blocks lie in images, and in the crops, all of one size, that a model sees of them."""

    grid: BlockGrid
    context: tuple[int, int]
    multiple_of: int

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of a crop."""
        height, width = (
            min(_round_up(block + 2 * around, self.multiple_of), pixels)
            for block, around, pixels in zip(
                self.grid.block_size, self.context, self.grid.size, strict=True
            )
        )
        return height, width

    @cached_property
    def overlap(self) -> bool:
        """Whether two blocks share a pixel."""
        return any(
            after - before < block
            for starts, block in zip(
                (self.grid.rows, self.grid.columns), self.grid.block_size, strict=True
            )
            for before, after in pairwise(starts)
        )

    def _starts(self, place: _Place) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the block, and of its crop: around it, but shifted into the image."""
        block = (self.grid.rows[place.row], self.grid.columns[place.column])
        row, column = (
            min(max(start - around, 0), pixels - length)
            for start, around, pixels, length in zip(
                block, self.context, self.grid.size, self.size, strict=True
            )
        )
        return block, (row, column)

    def block(self, place: _Place) -> _Span:
        """The block in its image."""
        return _span(self._starts(place)[0], self.grid.block_size)

    def crop(self, place: _Place) -> _Span:
        """The crop in its image."""
        return _span(self._starts(place)[1], self.size)

    def inner(self, place: _Place) -> _Span:
        """The block in its crop."""
        (row, column), (top, left) = self._starts(place)
        return _span((row - top, column - left), self.grid.block_size)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _span(start: tuple[int, int], size: tuple[int, int]) -> _Span:
    return slice(start[0], start[0] + size[0]), slice(start[1], start[1] + size[1])


class _Block(NamedTuple):
    """What a model makes of a block."""

    prediction: Tensor
    """``(h, w)``."""
    entropy: Tensor
    """``(h, w)``, in nats."""
    probabilities: Tensor | None
    """``(C, h, w)``, where they are needed."""


class _Function(nn.Module):
    """A model that is no module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


class Cascade(nn.Module):
    r"""A fast model for whole images, better ones for the blocks where it is unsure (Huang et al.).

    The first model segments the whole image. Where the mean entropy of its softmax over a block,
    in bits, is strictly above the threshold, the next model segments the block's pixels anew, and
    its result takes the place of what was there; where such blocks overlap, their probabilities are
    averaged. Of further models each gets those of the blocks before it of which the one before is
    still too unsure.

    .. math:: u_b = \frac{1}{|b|} \sum_{i \in b} \Big(-\sum_c p_{ic} \log_2 p_{ic}\Big)

    Blocks start every `stride` pixels; the last one along an axis is shifted into the image, so
    that all have one size: a 1024 x 2048 image has 32 blocks of 256, 8 of 512, and 18 of 480 with
    stride 320. All crops of a call have one size too and run in as few batches as `max_batch`
    allows. Models run in evaluation mode without gradients; afterwards every module is in the mode
    it was in. A call waits for the device once for each model but the first, to know which blocks
    there are.

    Args:
        models: two or more, from fast to accurate: modules, compiled or wrapped in
            DistributedDataParallel or not, or other callables, from images ``(N, ., H, W)`` to
            logits ``(N, C, h, w)`` of any resolution, which are interpolated to the images'.
        block_size: pixels, one number or (height, width), at most those of the images.
        threshold: of the mean entropy, in bits: one for all, or one for each model but the first.
            0 leaves the fast model what it is certain of, infinity everything; ``-inf`` takes every
            block.
        stride: from one block's start to the next, in pixels; None puts blocks side by side.
        context: pixels around a block that the next model sees too, as much as the image has;
            its result is taken within the block alone. One number or (height, width).
        max_batch: crops that run at once; None runs as many as have together no more pixels than
            the images, or one.
        multiple_of: what models need heights and widths to be a multiple of. Crops get more context
            to that end; images, and crops as large as they are, are padded with their last pixels.
        output: picks the logits from what a model returns; None takes a tensor, or ``"out"`` or
            ``"logits"`` of a mapping.

    Raises:
        ValueError: fewer than two models, lazy ones that have not run, a negative threshold or the
            wrong number of them, other sizes that cannot be.
        TypeError: arguments of other types.

    Example:
        >>> cascade = Cascade([fast, accurate], block_size=256, threshold=0.4)
        >>> result = cascade(images)
        >>> result.prediction, (result.model == 1).sum((1, 2))  # and blocks of each image
    """

    def __init__(
        self,
        models: Sequence[Callable[..., Any]],
        block_size: int | tuple[int, int],
        threshold: float | Sequence[float],
        stride: int | tuple[int, int] | None = None,
        *,
        context: int | tuple[int, int] = 0,
        max_batch: int | None = None,
        multiple_of: int = 1,
        output: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if callable(models) and not isinstance(models, nn.ModuleList):
            raise TypeError("models: expected several, got one; pass a list")
        models = list(models)
        if len(models) < 2:
            raise ValueError(f"models: expected at least two, got {len(models)}")
        for number, model in enumerate(models):
            if not callable(model):
                raise TypeError(
                    f"models[{number}]: expected a module or function, got {describe(model)}"
                )
            if isinstance(model, nn.Module):
                check_initialized(f"models[{number}]", model)
        self.models = nn.ModuleList(
            model if isinstance(model, nn.Module) else _Function(model) for model in models
        )
        # Of images whose size is not known yet.
        self.block_size, self.stride = check_blocks((sys.maxsize, sys.maxsize), block_size, stride)
        self.thresholds = _thresholds(threshold, len(models) - 1)
        self.context = _context(context)
        self.max_batch = None if max_batch is None else check_positive("max_batch", max_batch)
        self.multiple_of = check_positive("multiple_of", multiple_of)
        self.output = output

    def extra_repr(self) -> str:
        """What stands beside the models where the cascade is printed."""
        return (
            f"block_size={self.block_size}, thresholds={self.thresholds}, stride={self.stride}, "
            f"context={self.context}"
        )

    def _statistics(
        self, number: int, images: Tensor, return_mean: bool
    ) -> tuple[PredictiveStatistics, int]:
        """Of what a model makes of images, at their size; and the number of classes."""
        size = images.shape[2:]
        height, width = (_round_up(length, self.multiple_of) for length in size)
        padded = (height, width) != tuple(size)
        if padded:
            images = F.pad(images, (0, width - size[1], 0, height - size[0]), mode="replicate")
        model = without_ddp(self.models[number])
        trained = [(module, "training", False) for module in model.modules() if module.training]
        with changed(trained):
            logits = forward(model, images, pick_logits if self.output is None else self.output)
        if logits.dim() != 4 or len(logits) != len(images) or 0 in logits.shape[1:]:
            raise ValueError(
                f"models[{number}]: expected logits of shape ({len(images)}, C, h, w) for images "
                f"of shape {tuple(images.shape)}, got {tuple(logits.shape)}"
            )
        check_device(f"models[{number}]", logits, images.device)
        statistics = predictive_statistics([logits], size=(height, width), return_mean=return_mean)
        if padded:
            span = _span((0, 0), (size[0], size[1]))
            # Copies, as they are written to and returned.
            maps = [None if each is None else _pixels(each, span).clone() for each in statistics]
            statistics = PredictiveStatistics._make(maps)
        return statistics, logits.shape[1]

    def _crops(self, images: Tensor) -> _Crops:
        check_tensor("images", images)
        if images.dim() != 4:
            raise ValueError(
                f"images: expected shape (N, channels, H, W), got {tuple(images.shape)}"
            )
        grid = block_grid(images.shape[2:], self.block_size, self.stride)
        return _Crops(grid, self.context, self.multiple_of)

    @torch.no_grad()
    def forward(self, images: Tensor, *, return_probabilities: bool = False) -> CascadeResult:
        """Segments images.

        Args:
            images: ``(N, channels, H, W)``, whatever the models take.
            return_probabilities: whether to return these too, ``(N, C, H, W)``. Without, no such
                tensor is made, but for one image at a time where blocks overlap.

        Raises:
            ValueError: blocks larger than the images; models that give something else than logits
                of their input, of another number of classes than the first, or elsewhere.
            TypeError: no logits in what a model returns.
        """
        crops = self._crops(images)
        statistics, num_classes = self._statistics(0, images, return_probabilities)
        # Of the map that comes with the prediction, which costs less than a pass of its own.
        uncertainty = _block_means(statistics.entropy, self.block_size, self.stride)
        prediction, probabilities = statistics.prediction, statistics.mean
        made = torch.zeros_like(uncertainty, dtype=torch.int64)
        taken = _above(uncertainty, self.thresholds[0])
        for number in range(1, len(self.models)):
            places = [_Place(*place) for place in taken.nonzero().tolist()]
            if not places:
                break
            blocks = self._blocks(
                number, images, crops, places, num_classes, return_probabilities or crops.overlap
            )
            fresh = _replace(prediction, probabilities, blocks, crops, places)
            made[taken] = number
            if number < len(self.thresholds):
                uncertainty = uncertainty.masked_scatter(taken, fresh.to(uncertainty.dtype))
                taken = taken & _above(uncertainty, self.thresholds[number])
        return CascadeResult(prediction, uncertainty, made, probabilities)

    def _blocks(
        self,
        number: int,
        images: Tensor,
        crops: _Crops,
        places: Sequence[_Place],
        num_classes: int,
        return_mean: bool,
    ) -> Iterator[_Block]:
        """What a model makes of each block, one image after another."""
        height, width = crops.size
        fitting = self.max_batch or max(1, images[:, 0].numel() // (height * width))
        batches = -(-len(places) // fitting)
        layout = torch.contiguous_format
        if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
            layout = torch.channels_last
        for batch in range(batches):
            # Of sizes that differ by one at most.
            first, last = (len(places) * each // batches for each in (batch, batch + 1))
            inputs = torch.empty(
                (last - first, images.shape[1], height, width),
                dtype=images.dtype,
                device=images.device,
                memory_format=layout,
            )
            for each, place in zip(inputs, places[first:last], strict=True):
                each.copy_(_pixels(images[place.image], crops.crop(place)))
            statistics, found = self._statistics(number, inputs, return_mean)
            if found != num_classes:
                raise ValueError(
                    f"models[{number}]: expected logits of {num_classes} classes like models[0], "
                    f"got {found}"
                )
            for index, place in enumerate(places[first:last]):
                inner = crops.inner(place)
                yield _Block(
                    _pixels(statistics.prediction[index], inner),
                    _pixels(statistics.entropy[index], inner),
                    None if statistics.mean is None else _pixels(statistics.mean[index], inner),
                )


def _replace(
    prediction: Tensor,
    probabilities: Tensor | None,
    blocks: Iterator[_Block],
    crops: _Crops,
    places: Sequence[_Place],
) -> Tensor:
    """Puts blocks, which come in the order of their places, where they belong.

    Args:
        prediction: ``(N, H, W)``.
        probabilities: ``(N, C, H, W)``, or None.
        blocks: with their mean probabilities if some overlap or `probabilities` are wanted.
        crops: where they lie.
        places: of each, sorted by image.

    Returns:
        The mean entropy of each block, in bits.
    """
    uncertainty = []
    for image, group in groupby(places, lambda place: place.image):
        within = list(group)
        canvas: Tensor | None = None
        cover = torch.zeros_like(prediction[image])
        for place in within:
            _pixels(cover, crops.block(place)).add_(1)
        for place in within:
            block, span = next(blocks), crops.block(place)
            uncertainty.append(block.entropy.mean(dtype=_summing(block.entropy)))
            if not crops.overlap:
                _pixels(prediction[image], span).copy_(block.prediction)
            if block.probabilities is None:
                continue
            if canvas is None:
                if probabilities is None:
                    canvas = block.probabilities.new_zeros(len(block.probabilities), *cover.shape)
                else:
                    canvas = probabilities[image].masked_fill_(cover > 0, 0)
            _pixels(canvas, span).add_(block.probabilities / _pixels(cover, span))
        if crops.overlap and canvas is not None:
            prediction[image] = torch.where(cover > 0, canvas.argmax(0), prediction[image])
    return _BITS * torch.stack(uncertainty)


@torch.no_grad()
def select_pixels(
    logits: Sequence[Tensor],
    threshold: float | Sequence[float],
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
) -> CascadeResult:
    """A cascade by pixels (Huang et al.): each takes the next model's result where it is unsure.

    All models have seen the whole images, so it saves no time: it shows what selection can reach.

    Args:
        logits: of two or more models, from fast to accurate, ``(N, C, h, w)`` of any resolution.
        threshold: of a pixel's entropy in bits, as for :class:`Cascade`.
        size: (H, W) that logits are interpolated to; None: they are of one size, which is kept.
        align_corners: how, as for :func:`segunc_ops.functional.predictive_statistics`.

    Returns:
        The result, whose blocks are pixels.

    Raises:
        ValueError: fewer than two models, shapes or classes that differ, a negative threshold or
            the wrong number of them.
        TypeError: types that do not fit.
    """
    logits = list(logits)
    if len(logits) < 2:
        raise ValueError(f"logits: expected those of at least two models, got {len(logits)}")
    thresholds = _thresholds(threshold, len(logits) - 1)

    def statistics(number: int) -> PredictiveStatistics:
        each, first = logits[number], logits[0]
        if each.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"logits[{number}]: expected {tuple(first.shape[:2])} images and classes like "
                f"the first, got {tuple(each.shape[:2])}"
            )
        return predictive_statistics([each], size=size, align_corners=align_corners)

    of_fast = statistics(0)
    prediction, uncertainty = of_fast.prediction, _BITS * of_fast.entropy
    model = torch.zeros_like(prediction)
    taken = _above(uncertainty, thresholds[0])
    for number in range(1, len(logits)):
        fresh = statistics(number)
        if fresh.prediction.shape != prediction.shape:
            raise ValueError(
                f"logits[{number}]: expected {tuple(prediction.shape[1:])} pixels like the first, "
                f"got {tuple(fresh.prediction.shape[1:])}; pass size= to interpolate"
            )
        prediction = torch.where(taken, fresh.prediction, prediction)
        model = torch.where(taken, number, model)
        if number < len(thresholds):
            entropy = (_BITS * fresh.entropy).to(uncertainty.dtype)
            uncertainty = torch.where(taken, entropy, uncertainty)
            taken = taken & _above(uncertainty, thresholds[number])
    return CascadeResult(prediction, uncertainty, model)


def _right(predictions: Sequence[Tensor], target: Tensor, ignore_index: int) -> Tensor:
    """Which labelled pixels each model has right, ``(M, N, H, W)``."""
    check_tensor("target", target)
    check_target_dtype("target", target)
    if target.dim() != 3:
        raise ValueError(f"target: expected shape (N, H, W), got {tuple(target.shape)}")
    check_integer("ignore_index", ignore_index)
    for number, prediction in enumerate(predictions):
        name = f"predictions[{number}]"
        check_tensor(name, prediction)
        if prediction.shape != target.shape:
            raise ValueError(
                f"{name}: expected the target's shape {tuple(target.shape)}, got "
                f"{tuple(prediction.shape)}"
            )
        check_device(name, prediction, target.device)
    labelled = target != ignore_index
    return torch.stack([(prediction == target) & labelled for prediction in predictions])


def _check_predictions(predictions: Sequence[Tensor]) -> None:
    if len(predictions) < 2:
        raise ValueError(
            f"predictions: expected those of at least two models, got {len(predictions)}"
        )


def _choose(predictions: Sequence[Tensor], model: Tensor) -> Tensor:
    """Of each pixel, what the model with that index predicts, ``(N, H, W)``."""
    return torch.stack([*predictions]).gather(0, model[None])[0]


@torch.no_grad()
def pixel_oracle(
    predictions: Sequence[Tensor], target: Tensor, *, ignore_index: int = -100
) -> OracleResult:
    """Each pixel from a model that has it right: what no selection by pixels can surpass.

    Args:
        predictions: class indices ``(N, H, W)`` of two or more models, from fast to accurate. Of
            those that are right, as of those that are wrong where none is, the first is taken.
        target: class indices, ``(N, H, W)``.
        ignore_index: label of the pixels that count for nothing; the first model has them.

    Returns:
        The prediction, and the model of each pixel.

    Raises:
        ValueError: fewer than two predictions, shapes that differ.
        TypeError: types that do not fit.
    """
    predictions = list(predictions)
    _check_predictions(predictions)
    model = _right(predictions, target, ignore_index).int().argmax(0)
    return OracleResult(_choose(predictions, model), model)


@torch.no_grad()
def block_oracle(
    predictions: Sequence[Tensor],
    target: Tensor,
    block_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    ignore_index: int = -100,
) -> OracleResult:
    """Each block from the model with the most right pixels in it, of equally many the first.

    Where blocks overlap a pixel is that of the last of the models that its blocks are from, as a
    cascade replaces what earlier models have made.

    Args:
        predictions: class indices ``(N, H, W)`` of two or more models, from fast to accurate; those
            of all but the first may come from a cascade whose threshold is ``-inf``.
        target: class indices, ``(N, H, W)``.
        block_size, stride: as for :class:`Cascade`.
        ignore_index: label of the pixels that count for nothing.

    Returns:
        The prediction, and the model of each block.

    Raises:
        ValueError: fewer than two predictions, shapes that differ, blocks larger than the target.
        TypeError: types that do not fit.
    """
    predictions = list(predictions)
    _check_predictions(predictions)
    right = _right(predictions, target, ignore_index)
    grid = block_grid(target.shape[1:], block_size, stride)
    spans = [_span((top, left), grid.block_size) for top, left, _, _ in grid.boxes]
    counts = [_pixels(right, span).flatten(-2).sum(-1) for span in spans]
    best = torch.stack(counts, -1).argmax(0)
    model = best.unflatten(1, grid.shape)
    of_pixels = model_map(model, grid.size, block_size, stride)
    return OracleResult(_choose(predictions, of_pixels), model)


@torch.no_grad()
def model_map(
    model: Tensor,
    size: Sequence[int],
    block_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
) -> Tensor:
    """Which model made each pixel, from which made each block.

    Where blocks overlap that is the last of their models, which replaces what earlier ones made.

    Args:
        model: of a :class:`CascadeResult`, ``(N, rows, columns)``.
        size: the images' height and width.
        block_size, stride: those of the cascade.

    Returns:
        ``(N, H, W)``, int64.

    Raises:
        ValueError: another number of blocks, blocks larger than the images.
        TypeError: types that do not fit.
    """
    check_tensor("model", model)
    grid = block_grid(size, block_size, stride)
    if model.dim() != 3 or tuple(model.shape[1:]) != grid.shape:
        raise ValueError(
            f"model: expected shape (N, {grid.shape[0]}, {grid.shape[1]}), got {tuple(model.shape)}"
        )
    of_pixels = model.new_zeros(len(model), *grid.size)
    for index, (top, left, _, _) in enumerate(grid.boxes):
        pixels = _pixels(of_pixels, _span((top, left), grid.block_size))
        torch.maximum(pixels, model.flatten(1)[:, index, None, None], out=pixels)
    return of_pixels


@torch.no_grad()
def agreement_map(
    fast: Tensor, accurate: Tensor, target: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Where two models are right: what a selection between them can gain, and lose.

    Args:
        fast: class indices of one model, ``(N, H, W)``.
        accurate: those of the other.
        target: class indices, ``(N, H, W)``.
        ignore_index: label of the pixels that count for nothing.

    Returns:
        ``(N, H, W)``, uint8: 0 both are right, 1 only the fast one, 2 only the accurate one, 3 both
        are wrong, 255 ignored. :data:`AGREEMENT_NAMES` and :data:`AGREEMENT_COLOURS` go with it.

    Raises:
        ValueError: shapes that differ.
        TypeError: types that do not fit.
    """
    right = _right([fast, accurate], target, ignore_index)
    agreement = (3 - right[0].int() * 2 - right[1].int()).to(torch.uint8)
    return agreement.masked_fill_(target == ignore_index, _AGREEMENT_IGNORED)
