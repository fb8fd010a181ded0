"""Accuracy, time and blocks of a cascade over thresholds and blocks, each point measured.

A point is a cascade that is run, nothing is put together from parts. First each is run over all
images for its accuracy; then all take turns on some images, one at a time, for their times, which a
machine that is busy for a while thus changes alike. An image's time is the median of its
repetitions, after runs that warm up; a point's is the mean over images, whose blocks differ. The
record is written whole after each measurement, and the same sweep goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import build_info
from ..cascade import Cascade, agreement_map, block_oracle, pixel_oracle
from ..functional import block_uncertainty, predictive_statistics
from ..metrics.values import class_iou, macro
from .cascades import CascadeNetwork
from .datasets import SegmentationDataset, collate, normalize
from .experiment import telling_images
from .identity import identify
from .output_files import remove_partial_files, try_output
from .plots import AgreementPanel, Curve, Level, plot_agreement, plot_trade_off
from .report import device_name, finite, markdown, write_text
from .wording import number_of, number_of_classes

SWEEP_FILES = ("sweep.md", "sweep.json", "sweep.png", "agreement.png")
"""What :func:`sweep` writes."""

_FORMAT = "segunc sweep 1"
# Shares of the blocks that the thresholds between the two ends let through.
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
_ENDS = (math.inf, -math.inf)
_ORDER_REPEATS = 5

Size = tuple[int, int]


class SweepError(ValueError):
    """A sweep that cannot be made, or not in this folder."""


@dataclass(frozen=True)
class Blocks:
    """Which blocks a cascade chooses among."""

    block_size: Size
    stride: Size
    context: int = 0

    def __str__(self) -> str:
        text = f"{_size(self.block_size)}"
        if self.stride != self.block_size:
            text += f", stride {_size(self.stride)}"
        return text + (f", context {self.context}" if self.context else "")


def _size(size: Size) -> str:
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class Point:
    """What a cascade achieves at a threshold."""

    threshold: float
    """In bits; the ends are infinity, the fast network, and -infinity, every block."""
    mean_iou: float
    blocks: tuple[float, ...]
    """That each network but the first has seen of an image, in the mean."""
    milliseconds: float = math.nan
    """An image takes, once timed."""


@dataclass
class BlockSweep:
    """The points of some blocks."""

    blocks: Blocks
    number: float = math.nan
    """Of blocks an image has, in the mean."""
    thresholds: list[float] = field(default_factory=list)
    """That were chosen for them."""
    oracle: Point | None = None
    """With the best network for each block, which only labels tell; without a time."""
    points: dict[float, Point] = field(default_factory=dict)


@dataclass
class Timing:
    """The times of all points."""

    of: dict[str, Any] = field(default_factory=dict)
    """Which points, images and repetitions; others are timed anew."""
    milliseconds: list[list[float]] = field(default_factory=list)
    """Of each image that has been timed, for each point."""


@dataclass
class Sweep:
    """What has been measured so far."""

    identity: dict[str, Any]
    """Of networks, images and device, which a sweep goes on with."""
    order: list[int] = field(default_factory=list)
    """The networks, the fastest first."""
    alone: list[Point] = field(default_factory=list)
    """Each network on whole images, in the order given."""
    pixel_oracle: float | None = None
    """mIoU of the best network for each pixel."""
    sweeps: dict[Blocks, BlockSweep] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": _FORMAT,
            "identity": self.identity,
            "order": self.order,
            "alone": [point_to_dict(point) for point in self.alone],
            "pixel_oracle": self.pixel_oracle,
            "blocks": [
                {
                    **asdict(each.blocks),
                    "number": each.number,
                    "thresholds": each.thresholds,
                    "oracle": None if each.oracle is None else point_to_dict(each.oracle),
                    "points": [point_to_dict(each.points[t]) for t in sorted(each.points)],
                }
                for each in self.sweeps.values()
                if not math.isnan(each.number)  # of images that they fit in
            ],
            "timing": asdict(self.timing),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Sweep:
        """The same of what :meth:`to_dict` gave."""
        sweep = cls(
            record["identity"],
            record["order"],
            [_point_from_dict(point) for point in record["alone"]],
            record["pixel_oracle"],
            timing=Timing(**record["timing"]),
        )
        for each in record["blocks"]:
            blocks = Blocks(tuple(each["block_size"]), tuple(each["stride"]), each["context"])
            oracle = each["oracle"]
            points = [_point_from_dict(point) for point in each["points"]]
            sweep.sweeps[blocks] = BlockSweep(
                blocks,
                _number(each["number"]),
                each["thresholds"],
                None if oracle is None else _point_from_dict(oracle),
                {point.threshold: point for point in points},
            )
        return sweep


def _number(value: Any) -> float:
    """JSON has none that is not finite."""
    return math.nan if value is None else float(value)


def point_to_dict(point: Point) -> dict[str, Any]:
    """Plain values for JSON."""
    record = asdict(point)
    if math.isinf(point.threshold):
        record["threshold"] = str(point.threshold)  # which JSON has no number for
    return record


def _point_from_dict(record: dict[str, Any]) -> Point:
    return Point(
        _number(record["threshold"]),
        _number(record["mean_iou"]),
        tuple(record["blocks"]),
        _number(record["milliseconds"]),
    )


class _Score:
    """mIoU of predictions, every labelled pixel counted."""

    def __init__(self, dataset: SegmentationDataset, device: torch.device) -> None:
        self._classes, self._ignored = len(dataset.class_names), dataset.ignore_index
        self._confusion = torch.zeros(self._classes**2, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        labelled = target != self._ignored
        pairs = self._classes * target[labelled].long() + prediction[labelled]
        self._confusion += torch.bincount(pairs, minlength=len(self._confusion))

    @property
    def mean_iou(self) -> float:
        confusion = self._confusion.unflatten(0, (self._classes, self._classes))
        return float(macro(class_iou(confusion), "exclude", self._ignored))


@dataclass(frozen=True)
class _Measurement:
    """Runs networks over a dataset."""

    networks: Sequence[CascadeNetwork]
    dataset: SegmentationDataset
    device: torch.device
    progress: Callable[[int], object]

    def image(self, index: int) -> tuple[Tensor, Tensor]:
        """A normalised image (1, 3, H, W) and its target (1, H, W)."""
        batch = collate([self.dataset[index]])
        images = normalize(batch.images, self.device, channels_last=False)
        return images, batch.target.to(self.device)

    def images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them."""
        for index in range(len(self.dataset)):
            yield self.image(index)
            self.progress(1)

    def score(self) -> _Score:
        """Of all images, none of which is in it yet."""
        return _Score(self.dataset, self.device)

    def logits(self, index: int, images: Tensor) -> Tensor:
        """A network's, which must know the data's classes."""
        network, num_classes = self.networks[index], len(self.dataset.class_names)
        logits: Tensor = network.network(images)
        if logits.dim() != 4 or logits.shape[1] != num_classes:
            raise SweepError(
                f"{network.name}: gives an output of shape {tuple(logits.shape)}, but the data "
                f"have {number_of_classes(num_classes)}; expected (N, {num_classes}, h, w)"
            )
        return logits

    def prediction(self, index: int, images: Tensor) -> Tensor:
        """A network's on whole images."""
        logits = self.logits(index, images)
        return predictive_statistics([logits], size=images.shape[2:]).prediction

    def cascade(self, order: Sequence[int], blocks: Blocks, threshold: float) -> Cascade:
        """Of the networks with these indices."""
        return Cascade(
            [self.networks[index].network for index in order],
            blocks.block_size,
            threshold,
            blocks.stride,
            context=blocks.context,
        )

    def take_turns(
        self, runs: Sequence[Callable[[Tensor], object]], image: int, repeats: int
    ) -> list[float]:
        """The median milliseconds of each run on an image."""
        images, _ = self.image(image)
        taken: list[list[float]] = [[] for _ in runs]
        for _ in range(repeats):
            for run, times in zip(runs, taken, strict=True):
                self._wait()
                started = time.perf_counter()
                run(images)
                self._wait()
                times.append(1e3 * (time.perf_counter() - started))
                self.progress(1)
        return [statistics.median(times) for times in taken]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def fastest_first(self) -> list[int]:
        """The networks by their time on the first image."""
        runs = [partial(self.prediction, index) for index in range(len(self.networks))]
        self.take_turns(runs, 0, 1)  # warms up
        times = self.take_turns(runs, 0, _ORDER_REPEATS)
        return sorted(range(len(times)), key=lambda index: times[index])

    def alone(self, index: int) -> Point:
        """A network on whole images."""
        score = self.score()
        for images, target in self.images():
            score.add(self.prediction(index, images), target)
        return Point(math.nan, score.mean_iou, ())

    def point(self, order: Sequence[int], blocks: Blocks, threshold: float) -> Point:
        """The cascade at a threshold."""
        cascade, score = self.cascade(order, blocks, threshold), self.score()
        seen: list[list[int]] = []
        for images, target in self.images():
            result = cascade(images)
            score.add(result.prediction, target)
            seen.append(result.block_counts(len(order))[0, 1:].tolist())
        return Point(threshold, score.mean_iou, _means(seen))

    def pixel_oracle(self, order: Sequence[int]) -> float:
        """mIoU of the best network for each pixel, all on whole images."""
        score, ignored = self.score(), self.dataset.ignore_index
        for images, target in self.images():
            predictions = [self.prediction(index, images) for index in order]
            score.add(pixel_oracle(predictions, target, ignore_index=ignored).prediction, target)
        return score.mean_iou

    def block_oracle(self, order: Sequence[int], blocks: Blocks) -> Point:
        """The best network for each block, all but the fastest on blocks."""
        fast, *others = order
        cascades = [self.cascade([fast, other], blocks, -math.inf) for other in others]
        score = self.score()
        seen: list[list[int]] = []
        for images, target in self.images():
            best = block_oracle(
                [
                    self.prediction(fast, images),
                    *(cascade(images).prediction for cascade in cascades),
                ],
                target,
                blocks.block_size,
                blocks.stride,
                ignore_index=self.dataset.ignore_index,
            )
            score.add(best.prediction, target)
            seen.append([int((best.model == number).sum()) for number in range(1, len(order))])
        return Point(math.nan, score.mean_iou, _means(seen))

    def panels(self, order: Sequence[int], blocks: Blocks) -> list[AgreementPanel]:
        """Where the fastest and, on blocks, the slowest network are right."""
        fast, slow = order[0], order[-1]
        uncertain, every = (
            self.cascade([fast, slow], blocks, threshold) for threshold in (math.inf, -math.inf)
        )
        ignored = self.dataset.ignore_index
        panels = []
        for index in telling_images(self.dataset):
            images, target = self.image(index)
            of_fast = uncertain(images)
            predictions = (of_fast.prediction, every(images).prediction)
            agreement = agreement_map(*predictions, target, ignore_index=ignored)
            best = block_oracle(
                predictions, target, blocks.block_size, blocks.stride, ignore_index=ignored
            )
            panels.append(
                AgreementPanel(
                    self.dataset[index].image,
                    agreement[0].cpu().numpy(),
                    of_fast.uncertainty[0].cpu().numpy(),
                    best.model[0].cpu().numpy(),
                )
            )
        return panels

    def uncertainties(self, fast: int, every: Sequence[Blocks]) -> list[list[Tensor]]:
        """Of the fast network's blocks, an image's for each kind of blocks."""
        found: list[list[Tensor]] = [[] for _ in every]
        for images, _ in self.images():
            logits = self.logits(fast, images)
            for blocks, values in zip(every, found, strict=True):
                try:
                    uncertainty = block_uncertainty(
                        logits,
                        block_size=blocks.block_size,
                        stride=blocks.stride,
                        size=images.shape[2:],
                    )
                except ValueError as problem:
                    raise SweepError(f"image {len(values)} of the data: {problem}") from None
                values.append(uncertainty.flatten().cpu())
        return found


def _means(rows: Sequence[Sequence[int]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(column) for column in zip(*rows, strict=True))


def share_thresholds(uncertainty: Tensor, shares: Iterable[float]) -> list[float]:
    """Thresholds that let about these shares of blocks through, rounded to four digits."""
    falling = uncertainty.sort(descending=True).values
    places = [min(round(share * len(falling)), len(falling) - 1) for share in shares]
    thresholds = {float(f"{max(0.0, float(falling[place])):.4g}") for place in places}
    return sorted(thresholds, reverse=True)


def _open(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> Sweep:
    """The sweep that a folder holds, or a new one."""
    path = folder / "sweep.json"
    identity = json.loads(json.dumps(identity))
    if overwrite or not path.exists():
        return Sweep(identity)
    advice = "pass --overwrite or another --output"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ValueError(record["format"])
        sweep = Sweep.from_dict(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SweepError(f"{path}: is no record of a sweep, or damaged; {advice}") from None
    for name, value in identity.items():
        if sweep.identity.get(name) != value:
            raise SweepError(f"{path}: is a sweep of other {name}; {advice}")
    return sweep


@torch.no_grad()
def sweep(
    networks: Sequence[CascadeNetwork],
    dataset: SegmentationDataset,
    folder: Path,
    every: Sequence[Blocks],
    *,
    thresholds: Sequence[float] | None = None,
    shares: Sequence[float] | None = None,
    device: torch.device,
    timed_images: int = 20,
    repeats: int = 3,
    overwrite: bool = False,
    title: str = "",
    progress: bool = True,
) -> Sweep:
    """Measures the cascade of some networks, the fastest first, over thresholds and blocks.

    What `folder` holds of the same sweep is kept; further blocks and thresholds extend it.

    Args:
        networks: two or more, in any order.
        dataset: images and labels, of any sizes.
        folder: gets ``sweep.json`` after each measurement, then ``sweep.md`` and the
            pictures.
        every: the blocks.
        thresholds: in bits, beside the two ends; None chooses some by the fast network's blocks.
        shares: of these blocks that the chosen ones let through; None: 5 to 70 %.
        device: where.
        timed_images: how many are timed, evenly spaced.
        repeats: timed runs of each of them.
        overwrite: whether to start again.
        title: heading of the plot.
        progress: whether to show a progress bar.

    Raises:
        SweepError: the folder holds another sweep, a network gives something else than logits of
            the data's classes, or blocks are larger than an image.
        OutputError: the folder cannot be written to, which is tried first.
    """
    try_output(folder, SWEEP_FILES)
    identity = {
        "networks": [f"{network.digest} at {network.network.scale:g}" for network in networks],
        "data": identify(dataset),
        "device": device_name(str(device)),
    }
    found = _open(folder, identity, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder, SWEEP_FILES)
    if overwrite:
        # An older sweep's results must not pass for this one's if it is interrupted.
        for name in SWEEP_FILES:
            (folder / name).unlink(missing_ok=True)
    for network in networks:
        network.network.to(device).eval()
    for blocks in every:
        found.sweeps.setdefault(blocks, BlockSweep(blocks))
    shares = _SHARES if shares is None else shares
    wanted = [found.sweeps[blocks] for blocks in dict.fromkeys(every)]
    work = _Work(found, wanted, thresholds, shares)

    def write() -> None:
        record = {"build": build_info(), **found.to_dict()}
        write_text(folder / "sweep.json", json.dumps(finite(record), indent=2) + "\n")

    with tqdm(unit="run", disable=not progress, dynamic_ncols=True) as bar:
        measurement = _Measurement(networks, dataset, device, bar.update)
        if not found.order:
            found.order = measurement.fastest_first()
            write()
        bar.reset(len(dataset) * work.left(len(networks)))
        if fresh := work.fresh:
            bar.set_description("uncertainty")
            kinds = [each.blocks for each in fresh]
            uncertainties = measurement.uncertainties(found.order[0], kinds)
            for each, values in zip(fresh, uncertainties, strict=True):
                each.number = statistics.fmean(map(len, values))
                each.thresholds = share_thresholds(torch.cat(values), shares)
            write()
            bar.total = bar.n + len(dataset) * work.left(len(networks))
        for index in range(len(found.alone), len(networks)):
            bar.set_description("whole images")
            found.alone.append(measurement.alone(index))
            write()
        if found.pixel_oracle is None:
            bar.set_description("oracle by pixels")
            found.pixel_oracle = measurement.pixel_oracle(found.order)
            write()
        for each in work.wanted:
            if each.oracle is None:
                bar.set_description(f"oracle by blocks of {each.blocks}")
                each.oracle = measurement.block_oracle(found.order, each.blocks)
                write()
            for threshold in work.missing(each):
                bar.set_description(f"blocks of {each.blocks}, threshold {threshold:.3g}")
                point = measurement.point(found.order, each.blocks, threshold)
                each.points[threshold] = point
                write()
        bar.set_description("times")
        _time(found, measurement, timed_images, repeats, bar, write)
    names = [network.name for network in networks]
    write_text(folder / "sweep.md", sweep_table(found, names))
    _plot(found, names, folder / "sweep.png", title)
    plot_agreement(
        measurement.panels(found.order, every[0]),
        folder / "agreement.png",
        f"{names[found.order[0]]} and, on blocks of {every[0]}, {names[found.order[-1]]}",
    )
    return found


@dataclass(frozen=True)
class _Work:
    """What is asked for and not measured yet."""

    found: Sweep
    wanted: Sequence[BlockSweep]
    thresholds: Sequence[float] | None
    shares: Sequence[float]

    @property
    def fresh(self) -> list[BlockSweep]:
        """Blocks of which nothing is known."""
        return [each for each in self.wanted if math.isnan(each.number)]

    def missing(self, each: BlockSweep) -> list[float]:
        """Thresholds without a point."""
        chosen = each.thresholds if self.thresholds is None else self.thresholds
        return sorted({*_ENDS, *chosen} - each.points.keys(), reverse=True)

    def left(self, num_networks: int) -> int:
        """Passes over the images, by what is known of thresholds."""
        unknown = len(self.fresh) * len(self.shares) if self.thresholds is None else 0
        return (
            num_networks
            - len(self.found.alone)
            + (self.found.pixel_oracle is None)
            + bool(self.fresh)
            + sum(len(self.missing(each)) + (each.oracle is None) for each in self.wanted)
            + unknown
        )


def _time(
    found: Sweep,
    measurement: _Measurement,
    timed_images: int,
    repeats: int,
    bar: tqdm,
    write: Callable[[], object],
) -> None:
    """Times all networks and points, which take turns."""
    size = len(measurement.dataset)
    images = np.linspace(0, size - 1, min(size, timed_images)).astype(int).tolist()
    points = [
        (each, threshold) for each in found.sweeps.values() for threshold in sorted(each.points)
    ]
    runs: list[Callable[[Tensor], object]] = [
        partial(measurement.prediction, index) for index in range(len(found.alone))
    ]
    runs += [measurement.cascade(found.order, each.blocks, threshold) for each, threshold in points]
    of = {
        "points": [f"{each.blocks}: {threshold}" for each, threshold in points],
        "images": images,
        "repeats": repeats,
    }
    if found.timing.of != of:
        found.timing = Timing(of)
    timing = found.timing.milliseconds
    left = images[len(timing) :]
    bar.total = bar.n + len(runs) * (repeats * len(left) + bool(left))
    if left:
        measurement.take_turns(runs, left[0], 1)  # warms up
    for image in left:
        timing.append(measurement.take_turns(runs, image, repeats))
        write()
    means = [statistics.fmean(times) for times in zip(*timing, strict=True)]
    found.alone = [
        replace(point, milliseconds=mean)
        for point, mean in zip(found.alone, means[: len(found.alone)], strict=True)
    ]
    for (each, threshold), mean in zip(points, means[len(found.alone) :], strict=True):
        each.points[threshold] = replace(each.points[threshold], milliseconds=mean)
    write()


def fastest_reaching(found: Sweep, mean_iou: float) -> tuple[Blocks, Point] | None:
    """The fastest point with at least this mIoU; None if there is none."""
    reaching = [each for each in _points(found) if each[1].mean_iou >= mean_iou]
    return min(reaching, key=lambda each: each[1].milliseconds, default=None)


def best_within(found: Sweep, milliseconds: float) -> tuple[Blocks, Point] | None:
    """The most accurate point that takes at most this long; None if there is none."""
    within = [each for each in _points(found) if each[1].milliseconds <= milliseconds]
    return max(within, key=lambda each: each[1].mean_iou, default=None)


def best_between(found: Sweep) -> tuple[Blocks, Point] | None:
    """The most accurate point that is better than the fastest and faster than the slowest network.

    None if there is none.
    """
    fast, slow = (found.alone[found.order[place]] for place in (0, -1))
    between = [
        each
        for each in _points(found)
        if each[1].mean_iou > fast.mean_iou and each[1].milliseconds < slow.milliseconds
    ]
    return max(between, key=lambda each: each[1].mean_iou, default=None)


def no_worse(found: Sweep, point: Point) -> list[int]:
    """Networks that are as fast and as accurate on whole images as a cascade."""
    return [
        index
        for index, alone in enumerate(found.alone)
        if alone.milliseconds <= point.milliseconds and alone.mean_iou >= point.mean_iou
    ]


def _points(found: Sweep) -> list[tuple[Blocks, Point]]:
    return [
        (each.blocks, point) for each in found.sweeps.values() for point in each.points.values()
    ]


def sweep_finding(found: Sweep, names: Sequence[str]) -> str:
    """In a sentence, whether a cascade is worth its while.

    Args:
        found: all of it.
        names: of the networks, in the order given.
    """
    fast, slow = found.order[0], found.order[-1]
    chosen = best_between(found)
    if chosen is None:
        text = f"No cascade is more accurate than {names[fast]} and faster than {names[slow]}."
    else:
        blocks, point = chosen
        text = (
            f"Blocks of {blocks} with a threshold of {point.threshold:g} bits are more accurate "
            f"than {names[fast]} ({100 * point.mean_iou:.2f} against "
            f"{100 * found.alone[fast].mean_iou:.2f} % mIoU) and faster than {names[slow]} "
            f"({point.milliseconds:.2f} against {found.alone[slow].milliseconds:.2f} ms; "
            f"{100 * found.alone[slow].mean_iou:.2f} % mIoU)."
        )
    return " ".join(text.split())


def sweep_table(found: Sweep, names: Sequence[str]) -> str:
    """Markdown: networks and oracles, then every point, and what they show.

    Args:
        found: all of it.
        names: of the networks, in the order given.
    """
    order = found.order
    whole = [["whole images", "ms an image", "mIoU, %"]]
    for index in order:
        point = found.alone[index]
        whole.append([names[index], f"{point.milliseconds:.2f}", f"{100 * point.mean_iou:.2f}"])
    assert found.pixel_oracle is not None
    whole.append(["oracle by pixels", "-", f"{100 * found.pixel_oracle:.2f}"])
    rows = [["blocks", "threshold, bits", "blocks an image", "ms an image", "mIoU, %"]]
    for each in found.sweeps.values():
        if each.oracle is None:
            continue
        for point in (each.oracle, *(each.points[t] for t in sorted(each.points, reverse=True))):
            seen = " / ".join(f"{blocks:.2f}" for blocks in point.blocks)
            is_oracle = point is each.oracle
            rows.append(
                [
                    str(each.blocks),
                    "oracle" if is_oracle else f"{point.threshold:g}",
                    f"{seen} of {each.number:g}",
                    "-" if is_oracle else f"{point.milliseconds:.2f}",
                    f"{100 * point.mean_iou:.2f}",
                ]
            )
    of, images = found.timing.of, found.identity["data"]["images"]
    note = (
        f"mIoU over {number_of(images, 'image')}. ms: all take turns on "
        f"{number_of(len(of['images']), 'image')}, one at a time; mean over these of the median of "
        f"{number_of(of['repeats'], 'repetition')}. Threshold inf: the fastest network, and the "
        f"uncertainty of its blocks; -inf: every block. {found.identity['device']}, torch "
        f"{torch.__version__}."
    )
    tables = [markdown(whole), markdown(rows), [sweep_finding(found, names)], [note]]
    return "\n\n".join("\n".join(table) for table in tables) + "\n"


def _plot(found: Sweep, names: Sequence[str], path: Path, title: str) -> None:
    """Accuracy against time: a curve for each kind of blocks, networks and oracles as lines."""
    curves, levels = [], []
    for index in found.order:
        point = found.alone[index]
        levels.append(Level(names[index], point.mean_iou, point.milliseconds))
    assert found.pixel_oracle is not None
    levels.append(Level("oracle by pixels", found.pixel_oracle))
    for each in found.sweeps.values():
        if each.oracle is None:
            continue
        points = sorted(each.points.values(), key=lambda point: -point.threshold)
        times = [point.milliseconds for point in points]
        values = [point.mean_iou for point in points]
        curves.append(Curve(f"blocks of {each.blocks}", times, values, each.oracle.mean_iou))
    plot_trade_off(curves, levels, path, title)
