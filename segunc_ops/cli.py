"""The ``segunc`` command: ``demo``, ``train``, ``stats``, ``masks``, ``predict``, ``sweep`` ..."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from . import build_info
from .experiments import MAX_CLASSES
from .experiments.losses import (
    BETA,
    COMPONENT_PARAMETERS,
    CONNECTIVITY,
    COUNTING_LOSSES,
    COVARIANCE,
    DEFAULT,
    DEMO,
    ENSEMBLE_LOSSES,
    LOSSES,
    MAX_MARGIN,
    UNCERTAIN_LABELS,
    Parameter,
)
from .experiments.models import DropoutPlace
from .experiments.optimizers import OPTIMIZERS
from .experiments.wording import number_of, number_of_classes

if TYPE_CHECKING:
    from .experiments.class_counts import ClassCounts
    from .experiments.datasets import FolderDataset, SceneDataset, SegmentationDataset
    from .experiments.experiment import Experiment
    from .experiments.label_mapping import LabelMapping
    from .experiments.mask_files import MaskedDataset
    from .experiments.networks import TrainedLabels
    from .experiments.predictions import CascadePredictor, Predictor
    from .experiments.ranks import Ranks
    from .experiments.sweep import Blocks, Point
    from .experiments.training import TrainingConfig

    Answer = tuple[Blocks, Point]

_IGNORE_INDEX = 255
_HELD_OUT = 0.2
_MAX_WHOLE = (1 << 31) - 1
_MAX_SCALE = 100.0
_USAGE_ERROR = 2
_SIGNALLED = 128

# A few minutes on two CPU cores, all trainings and the evaluation included.
_DEMO_SIZE = (240, 360)
_DEMO_TRAIN_SCENES = 240
_DEMO_VAL_SCENES = 40
# Boxes have an experiment of their own: of trees, against the plain loss, of half the steps.
_DEMO_BOXES = "boxes"
_DEMO_BOXED_CLASS = "tree"
_DEMO_EXACT = 0.2
_DEMO_PLAIN = "ce"
# Of those trained on: their mean uncertainty is known well enough from as many.
_DEMO_REFERENCE_SCENES = 16
# A cascade of one of the networks, of images at a quarter of their size and at it: nothing more is
# trained.
_DEMO_CASCADE = "cascade"
_DEMO_CASCADE_SCALES = (0.25, 1.0)
# Where a cascade can be the faster one; more blocks take longer than the whole image.
_DEMO_CASCADE_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)
_DEMO_CASCADE_TIMED = 5


def _whole(minimum: int, maximum: int = _MAX_WHOLE) -> type[int]:
    """An argparse type: integers of at least `minimum` and at most `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {value}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"expected at most {maximum}, got {value}")
        return value

    return parse  # type: ignore[return-value]


def _real(minimum: float, maximum: float = float("inf")) -> type[float]:
    """An argparse type: numbers in [minimum, maximum)."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not minimum <= value < maximum:
            raise argparse.ArgumentTypeError(
                f"expected a number in [{minimum:g}, {maximum:g}), got {text}"
            )
        return value

    return parse  # type: ignore[return-value]


def _share(text: str) -> float:
    """An argparse type: numbers in [0, 1]."""
    value = _real(-math.inf)(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return value


def _device(text: str) -> str:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError(f"{text!r} asked for, but torch finds no CUDA device")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise argparse.ArgumentTypeError(
                f"{text!r} asked for, but there are {torch.cuda.device_count()} CUDA devices"
            )
    return text


def _run_name(text: str) -> str:
    if not text or Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"expected a plain folder name, got {text!r}")
    return text


def _parameter_options(group: argparse._ArgumentGroup, parameters: Sequence[Parameter]) -> None:
    """An option for each parameter of a loss."""
    for each in parameters:
        option, kind, default = each.name.replace("_", "-"), each.type, each.default
        types = {float: _real(each.minimum, each.maximum), int: _whole(int(each.minimum))}
        if kind is bool:
            group.add_argument(
                f"--no-{option}" if default else f"--{option}",
                dest=each.name,
                action="store_false" if default else "store_true",
                help=each.help,
            )
            continue
        if default is None:
            default = each.unset
        elif kind is float:
            default = f"{default:g}"
        group.add_argument(
            f"--{option}",
            type=types.get(kind, kind) if each.choices is None else kind,
            choices=each.choices,
            default=each.default,
            help=f"{each.help} (default: {default})",
        )


def _loss_options(parser: argparse.ArgumentParser) -> None:
    """A group of options for each loss; those of parameters that losses share stand once."""
    told: set[Parameter] = set()
    for loss in LOSSES.values():
        parameters = [each for each in loss.parameters if each not in told]
        if parameters:
            takers = [name for name in LOSSES if set(parameters) & set(LOSSES[name].parameters)]
            group = parser.add_argument_group(f"{loss.about} ({', '.join(takers)})")
            _parameter_options(group, parameters)
            told.update(parameters)


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _device_option(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda or cuda:N (default: cpu)"
    )


def _samples_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples",
        type=_whole(2),
        default=10,
        metavar="S",
        help="Monte-Carlo dropout samples of a single network (default: 10)",
    )


def _data_options(
    parser: argparse.ArgumentParser,
    *,
    required: bool = True,
    of_networks: bool = False,
    positional: bool = False,
) -> argparse._ArgumentGroup:
    """Where images and label maps are, and how labels are read; for networks, as in training."""
    trained = "as in training, else " if of_networks else ""
    parser.set_defaults(data_argument="DIR" if positional else "--data")
    data = parser.add_argument_group("data")
    if positional:
        data.add_argument("data", type=Path, metavar="DIR", help="the data set's folder")
    else:
        data.add_argument(
            "--data",
            type=Path,
            required=required,
            metavar="DIR",
            help="the data set's folder (required)"
            if required
            else "the data set's folder (default: generated scenes, for networks of the demo)",
        )
    data.add_argument(
        "--ignore-index",
        type=_whole(-_MAX_WHOLE),
        default=None if of_networks else _IGNORE_INDEX,
        metavar="CLASS",
        help="the class, after --map, of pixels that count for nothing (default: "
        f"{trained}{_IGNORE_INDEX})",
    )
    files = parser.add_argument_group(
        "how DIR is laid out", "Not needed for the layouts and endings in docs/data.md."
    )
    files.add_argument(
        "--image-suffix",
        metavar="END",
        help="end of the images' stems that label maps do not share, such as _leftImg8bit",
    )
    files.add_argument(
        "--label-suffix",
        metavar="END",
        help="end of the label maps' stems, such as _mask; one with a dash: --label-suffix=-mask",
    )
    files.add_argument(
        "--map",
        nargs="+",
        metavar="LABEL:CLASS",
        help="classes by labels, such as 0:0 255:1; rest:255 ignores all that are not listed, "
        "which are refused otherwise. Or one word: cityscapes (its 34 ids to 19 classes), "
        "reduce-zero-label (0 ignored, the others one less) or none (default: "
        f"{trained}none, but cityscapes for label maps named *_gtFine_labelIds or "
        "*_gtCoarse_labelIds)",
    )
    files.add_argument(
        "--held-out",
        type=_real(0.001, 1),
        metavar="SHARE",
        help="of the images for validation, if DIR has no train and val, else refused (default: "
        f"{_HELD_OUT:g})",
    )
    return data


def _class_options(data: argparse._ArgumentGroup) -> None:
    """How many classes there are and what they are called."""
    data.add_argument(
        "--classes", type=_whole(1, MAX_CLASSES), metavar="C", help="default: as labelled"
    )
    data.add_argument("--class-names", nargs="+", metavar="NAME", help="of classes 0, 1, ...")


def _box_options(parser: argparse.ArgumentParser) -> None:
    """Labels that are boxes, and of one class."""
    boxes = parser.add_argument_group("labels that are uncertain")
    boxes.add_argument(
        "--class",
        dest="one_class",
        metavar="CLASS",
        help="this class alone, by its name or number, against the rest: two classes",
    )
    boxes.add_argument(
        "--exact",
        type=_share,
        metavar="SHARE",
        help="train on bounding boxes of components, by every loss, but for this share "
        "of the images, drawn by --seed; evaluate on exact labels (default: all are exact)",
    )
    boxes.add_argument(
        "--background",
        nargs="+",
        metavar="CLASS",
        help="classes that have no boxes, by name or number (default: of two classes the first, of "
        "more none)",
    )


@dataclass(frozen=True)
class _Recipe:
    """The defaults of a training that differ between the demo and other data."""

    losses: Sequence[str]
    steps: int
    crop: tuple[int, int]
    scale: tuple[float, float]
    optimizer: str
    dropout_at: str
    channels_last: bool
    validations: int


_DEMO_RECIPE = _Recipe(
    losses=DEMO,
    steps=500,
    crop=(128, 192),
    scale=(0.6, 1.1),
    optimizer="adamw",
    dropout_at="decoder",
    channels_last=True,
    validations=4,
)
_TRAIN_RECIPE = _Recipe(
    losses=DEFAULT,
    steps=4000,
    crop=(256, 256),
    scale=(0.5, 2.0),
    optimizer="sgd",
    dropout_at="encoder",
    channels_last=False,
    validations=6,
)


def _training_options(parser: argparse.ArgumentParser, recipe: _Recipe) -> argparse._ArgumentGroup:
    """The options of both trainings, with the defaults of one of them; returns those of output."""
    losses, steps, crop, scale = recipe.losses, recipe.steps, recipe.crop, recipe.scale
    group = parser.add_argument_group("training")
    group.add_argument(
        "--loss",
        nargs="+",
        choices=tuple(LOSSES),
        default=list(losses),
        help="losses to train alike and compare: "
        f"{', '.join(f'{name} ({loss.about})' for name, loss in LOSSES.items())} "
        f"(default: {' '.join(losses)})",
    )
    length = group.add_mutually_exclusive_group()
    parser.set_defaults(default_steps=steps, validations=recipe.validations)
    length.add_argument(
        "--steps",
        type=_whole(1),
        help=f"updates (default: {steps}; with --resume those of the run, which more extend)",
    )
    length.add_argument(
        "--epochs", type=_whole(1), help="in place of --steps: passes over the images"
    )
    group.add_argument("--batch-size", type=_whole(2), default=4, metavar="N", help="default: 4")
    group.add_argument(
        "--crop",
        type=_whole(32),
        nargs=2,
        default=list(crop),
        metavar=("H", "W"),
        help="height and width of the random crops, in pixels; smaller images are padded, and "
        f"ignored there (default: {crop[0]} {crop[1]})",
    )
    group.add_argument(
        "--scale",
        type=_real(0.05, _MAX_SCALE),
        nargs=2,
        default=list(scale),
        metavar=("MIN", "MAX"),
        help="range of the factor that images are resized by before they are cropped (default: "
        f"{scale[0]:g} {scale[1]:g})",
    )
    group.add_argument(
        "--optimizer",
        choices=tuple(OPTIMIZERS),
        default=recipe.optimizer,
        help="sgd as in U-CE, or adamw, whose steps do not depend on a loss's scale (default: "
        f"{recipe.optimizer})",
    )
    rates = [f"{by.learning_rate:g} by {name}" for name, by in OPTIMIZERS.items()]
    group.add_argument(
        "--lr",
        type=_real(0),
        help="of the encoder; by sgd the decoder learns ten times as fast, by adamw as fast "
        f"(default: {', '.join(rates)})",
    )
    group.add_argument(
        "--dropout",
        type=_real(0.001, 1),
        default=0.2,
        help="its probability (default: 0.2)",
    )
    group.add_argument(
        "--dropout-at",
        choices=get_args(DropoutPlace),
        default=recipe.dropout_at,
        help="after each stage of the encoder, as in U-CE, or in the decoder alone, whose samples "
        f"have one pass of the encoder in common (default: {recipe.dropout_at})",
    )
    group.add_argument(
        "--seed",
        type=_whole(0),
        default=0,
        help="of weights, crops and dropout (default: 0)",
    )
    uncertainty = parser.add_argument_group("uncertainty")
    uncertainty.add_argument(
        "--samples",
        type=_whole(2),
        default=10,
        metavar="S",
        help="Monte-Carlo dropout samples per U-CE step and in the evaluation (default: 10)",
    )
    uncertainty.add_argument(
        "--members",
        type=_whole(2),
        default=3,
        metavar="M",
        help=f"networks that train together ({', '.join(ENSEMBLE_LOSSES)}); torchrun deals them "
        "to its ranks (default: 3)",
    )
    _loss_options(parser)
    machine = parser.add_argument_group("machine")
    _device_option(machine)
    machine.add_argument(
        "--amp",
        nargs="?",
        const="bf16",
        choices=("bf16", "fp16"),
        help="autocast; fp16 scales gradients and needs CUDA (without a value: bf16)",
    )
    machine.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=recipe.channels_last,
        help=f"memory layout of images and network (default: {_yes_or_no(recipe.channels_last)})",
    )
    machine.add_argument("--compile", action="store_true", help="torch.compile the network")
    machine.add_argument(
        "--workers", type=_whole(1), default=1, help="threads that prepare batches (default: 1)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, default=Path("runs"), help="default: runs")
    output.add_argument("--name", type=_run_name, help="folder in it (default: the command)")
    output.add_argument(
        "--resume", action="store_true", help="continue an interrupted run, or extend one"
    )
    return output


def _predict_options(predict: argparse.ArgumentParser) -> None:
    predict.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="of `segunc train` or `segunc demo`; holds one network, or all that trained together",
    )
    predict.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help="image files, and folders for every image in them and their sub-folders; hidden "
        "files are left out",
    )
    predict.add_argument(
        "--members",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="further checkpoints, whose networks make an ensemble with those of the first",
    )
    predict.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="of the maps; may hold those of other images, but no folder of IMAGES and not lie in "
        "one",
    )
    _samples_option(predict)
    predict.add_argument(
        "--seed",
        type=_whole(0),
        default=0,
        help="of the dropout; an image's results depend on it and on no other image (default: 0)",
    )
    cascade = predict.add_argument_group(
        "cascade",
        "The first network segments whole images, the others the blocks where the one before is "
        "unsure; `segunc sweep` finds thresholds.",
    )
    cascade.add_argument(
        "--cascade",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="further checkpoints, from fast to accurate, in place of --members",
    )
    cascade.add_argument(
        "--threshold",
        type=_bits,
        nargs="+",
        metavar="T",
        help="of the mean entropy of a block, in bits: one for all, or one for each further "
        "network; inf, or =-inf for every block",
    )
    cascade.add_argument(
        "--block-size",
        type=_edges,
        metavar="B",
        help="edge of the blocks in pixels, or HEIGHTxWIDTH",
    )
    cascade.add_argument(
        "--stride",
        type=_edges,
        metavar="S",
        help="from one block to the next (default: the block size)",
    )
    cascade.add_argument(
        "--context",
        type=_whole(0),
        metavar="P",
        help="pixels around a block that the next network sees too (default: 0)",
    )
    _scale_option(cascade)
    _device_option(predict.add_argument_group("machine"))


def _edges(text: str) -> tuple[int, int]:
    """An argparse type: HEIGHTxWIDTH in pixels, or one number for both."""
    number = _whole(1)
    height, separator, width = text.partition("x")
    return (number(height), number(width if separator else height))


def _bits(text: str) -> float:
    """An argparse type: thresholds of entropy."""
    if text in ("inf", "-inf"):
        return float(text)
    return _real(0)(text)


def _scale_option(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--scale",
        type=_real(0.01, _MAX_SCALE),
        nargs="+",
        default=[],
        metavar="S",
        help="factor that each network resizes its images by, in their order (default: 1 for all)",
    )


def _sweep_options(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    sweep = add_parser(
        "sweep",
        usage="%(prog)s [CHECKPOINT ...] [--model MODULE:FACTORY ...] [--data DIR] [OPTION ...]",
        help="accuracy, time and blocks of a cascade of networks over thresholds and blocks",
        description="Measures cascades of two or more networks: the fastest segments whole images, "
        "the others the blocks where the one before is unsure. Runs each threshold on the "
        "validation images and writes sweep.md, sweep.json, sweep.png (accuracy against time) and "
        "agreement.png (where the fastest and the slowest are right). The same command goes on "
        "where it was stopped; further blocks and thresholds extend it.",
    )
    sweep.set_defaults(parser=sweep)
    sweep.add_argument(
        "checkpoint",
        type=Path,
        nargs="*",
        metavar="CHECKPOINT",
        help="of `segunc train` or `segunc demo`, of one network each, in any order",
    )
    sweep.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="MODULE:FACTORY",
        help="networks of your own, after the checkpoints: package.module:factory, a function "
        "without arguments that returns the network with its weights, from images (N, 3, H, W), "
        "(RGB - 115) / 60, to logits (N, C, h, w) of any resolution",
    )
    _scale_option(sweep.add_argument_group("networks"))
    _data_options(sweep, required=False, of_networks=True)
    blocks = sweep.add_argument_group("cascade")
    blocks.add_argument(
        "--block-size",
        type=_edges,
        nargs="+",
        metavar="B",
        help="edge of the blocks in pixels, or HEIGHTxWIDTH (default: a quarter and a half of the "
        "first image's height)",
    )
    blocks.add_argument(
        "--stride",
        type=_edges,
        nargs="+",
        metavar="S",
        help="from one block to the next: one for all, or one for each --block-size (default: that "
        "size)",
    )
    blocks.add_argument(
        "--context",
        type=_whole(0),
        nargs="+",
        default=[0],
        metavar="P",
        help="pixels around a block that the next network sees too; each is measured (default: 0)",
    )
    blocks.add_argument(
        "--threshold",
        type=_bits,
        nargs="+",
        metavar="T",
        help="of the mean entropy of a block, in bits; infinity and -infinity are always there "
        "(default: those that let 5 to 70 %% of the fastest network's blocks through)",
    )
    answer = sweep.add_argument_group("answer")
    answer.add_argument(
        "--time-ms", type=_real(0), metavar="T", help="tell what is best in this time an image"
    )
    answer.add_argument(
        "--miou",
        type=_real(0, 100.001),
        metavar="M",
        help="tell what reaches this mIoU first, in %%",
    )
    answer.add_argument(
        "--json", action="store_true", help="print sweep.json and these answers, and no table"
    )
    output = sweep.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        default=Path("runs") / "sweep",
        metavar="DIR",
        help="default: runs/sweep",
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace a sweep that is in --output"
    )
    machine = sweep.add_argument_group("machine")
    _device_option(machine)
    machine.add_argument(
        "--repeats",
        type=_whole(1),
        default=3,
        metavar="N",
        help="timed runs of each of them, whose median counts (default: 3)",
    )
    machine.add_argument(
        "--timed-images",
        type=_whole(1),
        default=20,
        metavar="N",
        help="that are timed, evenly spaced (default: 20)",
    )
    machine.add_argument(
        "--seed", type=_whole(0), default=0, help="of generated scenes (default: 0)"
    )


def _stats_options(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    stats = add_parser(
        "stats",
        usage="%(prog)s DIR [OPTION ...]",
        help="pixels, images and instances of each class; weights, margins and priors that follow",
        description="Counts the label maps of DIR, laid out as for `segunc train`: pixels, images "
        "and instances (connected components) of each class. Shows them with the class weights, "
        "margins and priors that losses for long tails make of them, and writes stats.md, "
        "stats.json, which `segunc train --counts` reads, and stats.png.",
    )
    stats.set_defaults(parser=stats)
    data = _data_options(stats, positional=True)
    _class_options(data)
    data.add_argument(
        "--split",
        choices=("train", "val", "all"),
        default="train",
        help="of DIR; all of its images if it has no train and val (default: train)",
    )
    _parameter_options(stats.add_argument_group("instances"), [CONNECTIVITY])
    _parameter_options(stats.add_argument_group("what follows"), [BETA, MAX_MARGIN])
    output = stats.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        default=Path("runs") / "stats",
        metavar="DIR",
        help="default: runs/stats",
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace statistics that are in --output"
    )


def _titles(losses: Sequence[str]) -> str:
    *first, last = (LOSSES[name].title for name in losses)
    return f"{', '.join(first)} and {last}"


def build_parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="segunc",
        description="Uncertainty-aware semantic segmentation.",
        epilog="`segunc COMMAND --help` shows the options of a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        usage="%(prog)s [OPTION ...]",
        help=f"train on generated street scenes by {_titles(DEMO)}; print a table, write pictures",
    )
    demo.set_defaults(parser=demo)
    demo.add_argument(
        "--scenes",
        type=_whole(1),
        default=_DEMO_TRAIN_SCENES,
        metavar="N",
        help=f"how many are trained on (default: {_DEMO_TRAIN_SCENES})",
    )
    _training_options(demo, _DEMO_RECIPE)
    train = commands.add_parser(
        "train",
        usage="%(prog)s --data DIR [OPTION ...]",
        help="train, evaluate and compare networks on a folder of images and label maps",
        description="Trains on DIR, laid out as train/ trainannot/ val/ valannot/, as "
        "images/{train,val} labels/{train,val}, like Cityscapes, or undivided with IMAGE_mask.png "
        "beside IMAGE.jpg: images in any format of 8 or 16 bits, one-channel label maps as PNG, "
        "TIFF, BMP or GIF.",
    )
    train.set_defaults(parser=train)
    data = _data_options(train)
    _class_options(data)
    data.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="iu: weight a single network by these, as `segunc masks` wrote them, in place of "
        "members that train together",
    )
    data.add_argument(
        "--counts",
        type=Path,
        metavar="FILE",
        help=f"{', '.join(COUNTING_LOSSES)}: how often each class occurs, a stats.json of `segunc "
        "stats` (default: counted in the training images)",
    )
    _box_options(train)
    output = _training_options(train, _TRAIN_RECIPE)
    output.add_argument(
        "--overwrite", action="store_true", help="start again where a run left a checkpoint"
    )
    _stats_options(commands.add_parser)
    masks = commands.add_parser(
        "masks",
        usage="%(prog)s --data DIR --members CHECKPOINT [CHECKPOINT ...] --output DIR [OPTION ...]",
        help="write an ensemble's uncertainty of each image, for `segunc train --loss iu --masks`",
        description="Writes a float32 TIFF for each image of DIR (laid out as for `segunc train`), "
        "called like it, in the same sub-folder: the mean of the ensemble's predictive entropy, in "
        "nats, over each pixel's component. The same command goes on where it was stopped; under "
        "torchrun the ranks share the work.",
    )
    masks.set_defaults(parser=masks)
    data = _data_options(masks, of_networks=True)
    data.add_argument(
        "--split", choices=("train", "val"), default="train", help="of DIR (default: train)"
    )
    masks.add_argument(
        "--members",
        type=Path,
        nargs="+",
        required=True,
        metavar="CHECKPOINT",
        help="networks of the ensemble, which `segunc train` has trained with different seeds, or "
        "together",
    )
    masks.add_argument("--output", type=Path, required=True, metavar="DIR", help="of the masks")
    masks.add_argument(
        "--values",
        choices=("instance", "entropy"),
        default="instance",
        help="the instance uncertainty or the entropy of each pixel (default: instance)",
    )
    _parameter_options(
        masks.add_argument_group("components of --values instance"), COMPONENT_PARAMETERS
    )
    machine = masks.add_argument_group("machine")
    _device_option(machine)
    machine.add_argument(
        "--workers", type=_whole(1), default=1, help="images at a time (default: 1)"
    )
    predict = commands.add_parser(
        "predict",
        usage="%(prog)s CHECKPOINT IMAGES [IMAGES ...] --output DIR [OPTION ...]",
        help="class map and uncertainty of images without labels",
        description="Writes of each image, at its size and turned as its EXIF tag says: "
        "DIR/classes/NAME.png, the index of each pixel's class as grey value; "
        "DIR/colors/NAME.png, the same in colours (a palette PNG, whose palette indices are the "
        "classes); DIR/std/NAME.tif, the standard deviation of the predicted class's probability "
        "over samples or networks; DIR/entropy/NAME.tif, the predictive entropy in nats. NAME is "
        "the image's file name without its suffix, below the sub-folder it was found in. TIFFs "
        "are float32. A single network is sampled by Monte-Carlo dropout, several are an "
        "ensemble or, with --cascade, a cascade: without std, but with DIR/model/NAME.png, the "
        "index of the network that made each pixel. The same command goes on where it was "
        "stopped.",
    )
    predict.set_defaults(parser=predict)
    _predict_options(predict)
    evaluation = commands.add_parser(
        "eval",
        usage="%(prog)s CHECKPOINT [CHECKPOINT ...] [--data DIR] [OPTION ...]",
        help="all metrics and plots of trained networks, also on other data",
        description="Evaluates checkpoints of `segunc train` or `segunc demo`: a single network by "
        "Monte-Carlo dropout, several as an ensemble. Writes metrics.md, metrics.json, curves.png "
        "(reliability, risk over coverage) and panels.png.",
    )
    evaluation.set_defaults(parser=evaluation)
    evaluation.add_argument(
        "checkpoint",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="of one network, or of the members of an ensemble",
    )
    data = _data_options(evaluation, required=False, of_networks=True)
    data.add_argument(
        "--class-names",
        nargs="+",
        metavar="NAME",
        help="of classes 0, 1, ... (default: as in training)",
    )
    data.add_argument(
        "--split",
        choices=("train", "val", "all"),
        default="val",
        help="of DIR; all of its images if it has no train and val (default: val)",
    )
    evaluation.add_argument(
        "--threshold",
        type=_real(0),
        metavar="U",
        help="uncertainty from which a pixel is uncertain, for PAvPU, the share of patches that "
        "are accurate and certain or neither (default: the mean over DIR's training images, which "
        "are predicted too)",
    )
    _samples_option(evaluation)
    evaluation.add_argument(
        "--seed",
        type=_whole(0),
        default=0,
        help="of dropout and generated scenes (default: 0)",
    )
    evaluation.add_argument(
        "--output", type=Path, metavar="DIR", help="default: eval beside the first checkpoint"
    )
    evaluation.add_argument(
        "--overwrite", action="store_true", help="replace an evaluation that is in --output"
    )
    _device_option(evaluation.add_argument_group("machine"))
    _sweep_options(commands.add_parser)
    info = commands.add_parser(
        "info",
        help="versions, instruction set, CUDA targets, what is loaded",
        description="Shows the versions of segunc_ops and torch, the instruction set that the CPU "
        "kernels use, the CUDA targets that were built, and which native libraries are loaded or "
        "why they are not: what a bug report needs.",
    )
    info.set_defaults(parser=info)
    return parser


def _run_folder(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.output / (arguments.name or arguments.command)
    return folder


def _config(
    arguments: argparse.Namespace,
    *,
    num_images: int,
    checkpoints: Mapping[str, dict[str, Any]] | None,
    masks: str | None = None,
    counts: ClassCounts | None = None,
) -> TrainingConfig:
    from .experiments.experiment import recorded_steps
    from .experiments.training import TrainingConfig

    steps = arguments.steps
    if arguments.epochs is not None:
        steps = arguments.epochs * max(1, num_images // arguments.batch_size)
    if steps is None and checkpoints:
        steps = recorded_steps(_run_folder(arguments), checkpoints)
    if steps is None:
        steps = arguments.default_steps
    return TrainingConfig(
        loss=arguments.loss[0],
        steps=steps,
        batch_size=arguments.batch_size,
        crop=tuple(arguments.crop),
        scale=tuple(arguments.scale),
        optimizer=arguments.optimizer,
        learning_rate=arguments.lr,
        dropout=arguments.dropout,
        dropout_at=arguments.dropout_at,
        samples=arguments.samples,
        members=arguments.members,
        **{
            each.name: getattr(arguments, each.name)
            for loss in LOSSES.values()
            for each in loss.parameters
        },
        masks=masks,
        counts=counts,
        exact=getattr(arguments, "exact", None),
        seed=arguments.seed,
        device=arguments.device,
        amp=arguments.amp,
        channels_last=arguments.channels_last,
        compile=arguments.compile,
        workers=arguments.workers,
        validate_every=math.ceil(steps / arguments.validations),
    )


def _checkpoints(
    arguments: argparse.Namespace, losses: Sequence[str]
) -> dict[str, dict[str, Any]] | None:
    """What --resume goes on from."""
    from .experiments.experiment import read_checkpoints

    if not arguments.resume:
        return None
    return read_checkpoints(_run_folder(arguments), losses)


def _demo_scenes(seed: int, train: int) -> tuple[SceneDataset, SceneDataset]:
    """Scenes to train on, and others whose labels are exact."""
    from .experiments.datasets import SceneDataset

    return (
        SceneDataset(train, seed=2 * seed, size=_DEMO_SIZE),
        SceneDataset(_DEMO_VAL_SCENES, seed=2 * seed + 1, size=_DEMO_SIZE, label_noise=False),
    )


def _demo_boxes(
    arguments: argparse.Namespace,
    train: SceneDataset,
    validation: SceneDataset,
    reference: SceneDataset,
) -> Experiment:
    """The demo's experiment on boxes: half as many steps, of two classes."""
    from .experiments.boxed import BoxedDataset
    from .experiments.experiment import Experiment, read_checkpoints, recorded_steps

    folder = _run_folder(arguments) / _DEMO_BOXES
    losses = _demo_box_losses(arguments)
    checkpoints = read_checkpoints(folder, losses) if arguments.resume else None
    config = _config(arguments, num_images=len(train), checkpoints=None)
    steps = max(1, config.steps // 2)
    if checkpoints and arguments.steps is None and arguments.epochs is None:
        steps = recorded_steps(folder, checkpoints) or steps
    return Experiment(
        config=replace(
            config,
            steps=steps,
            validate_every=math.ceil(steps / arguments.validations),
            exact=_DEMO_EXACT,
        ),
        losses=losses,
        train=BoxedDataset(
            train.of_class(_DEMO_BOXED_CLASS), _DEMO_EXACT, seed=arguments.seed, background=[0]
        ),
        validation=validation.of_class(_DEMO_BOXED_CLASS),
        folder=folder,
        eval_samples=arguments.samples,
        resume=arguments.resume,
        checkpoints=checkpoints,
        reference=reference.of_class(_DEMO_BOXED_CLASS),
    )


def _demo_losses(arguments: argparse.Namespace) -> list[str]:
    """Those that the demo compares on exact labels."""
    return [loss for loss in dict.fromkeys(arguments.loss) if loss not in UNCERTAIN_LABELS]


def _demo_box_losses(arguments: argparse.Namespace) -> list[str]:
    """Those that it compares on boxes: the plain one, and those that doubt their labels."""
    doubting = [loss for loss in UNCERTAIN_LABELS if loss in arguments.loss]
    return [_DEMO_PLAIN, *doubting] if doubting else []


def _demo_cascade_loss(arguments: argparse.Namespace) -> str | None:
    """Of those that it compares, the first that trains a network alone."""
    losses = (loss for loss in _demo_losses(arguments) if loss not in ENSEMBLE_LOSSES)
    return next(losses, None)


def _demo_cascade(arguments: argparse.Namespace, experiment: Experiment, loss: str) -> None:
    """Measures a cascade of a network that the demo has trained, and tells what came out."""
    from .experiments.cascades import cascade_networks
    from .experiments.sweep import SWEEP_FILES, Blocks, sweep, sweep_table

    checkpoint = experiment.checkpoint(loss)
    networks = cascade_networks([checkpoint] * 2, scales=_DEMO_CASCADE_SCALES)
    height, width = _DEMO_SIZE
    block = (height // 3, width // 3)
    folder = experiment.folder / _DEMO_CASCADE
    found = sweep(
        networks,
        experiment.validation,
        folder,
        [Blocks(block, block, context=height // 10)],
        shares=_DEMO_CASCADE_SHARES,
        device=torch.device(arguments.device),
        timed_images=_DEMO_CASCADE_TIMED,
        overwrite=True,
        title=f"cascade of the network trained by {LOSSES[loss].title}",
    )
    _say(f"\n{sweep_table(found, [network.name for network in networks])}")
    _say(f"Written to {folder}: {', '.join(SWEEP_FILES)}.")


def _demo(arguments: argparse.Namespace, ranks: Ranks) -> list[Experiment]:
    from tqdm.auto import tqdm

    from .experiments.experiment import Experiment

    train, validation = _demo_scenes(arguments.seed, arguments.scenes)
    reference, _ = _demo_scenes(arguments.seed, _DEMO_REFERENCE_SCENES)
    with tqdm(
        total=len(train) + len(validation),
        desc="generate scenes",
        unit="image",
        disable=not ranks.first,
    ) as bar:
        for dataset in (train, validation):
            for index in range(len(dataset)):
                dataset[index]
                bar.update()
    experiments = []
    if losses := _demo_losses(arguments):
        checkpoints = _checkpoints(arguments, losses)
        experiments.append(
            Experiment(
                config=_config(arguments, num_images=len(train), checkpoints=checkpoints),
                losses=losses,
                train=train,
                validation=validation,
                folder=_run_folder(arguments),
                eval_samples=arguments.samples,
                resume=arguments.resume,
                checkpoints=checkpoints,
                reference=reference,
            )
        )
    if _demo_box_losses(arguments):
        experiments.append(_demo_boxes(arguments, train, validation, reference))
    return experiments


def _mapping(arguments: argparse.Namespace) -> LabelMapping | None:
    from .experiments.label_mapping import parse_mapping

    mapping: LabelMapping | None = None
    if arguments.map is not None:
        try:
            mapping = parse_mapping(arguments.map, arguments.ignore_index)
        except ValueError as problem:
            arguments.parser.error(f"argument --map: {problem}")
    return mapping


def _labels_as_trained(
    arguments: argparse.Namespace, told: Mapping[Path, TrainedLabels], ranks: Ranks
) -> None:
    """Reads labels as the training of these networks did, unless options say otherwise."""

    def choose(option: str, given: str | None, trained: dict[Path, str], usual: str) -> str | None:
        differing: dict[str, Path] = {}
        for path, value in trained.items():
            differing.setdefault(value, path)
        if given is not None:
            if (others := sorted(differing.keys() - {given})) and ranks.first:
                _note(f"{option} {given} is not that of the training ({', '.join(others)})")
            return given
        if len(differing) > 1:
            (one, path), (other, place) = list(differing.items())[:2]
            arguments.parser.error(
                f"argument {option}: {path} was trained with {one}, {place} with {other}; pass one"
            )
        chosen = next(iter(differing), None)
        if chosen not in (None, usual) and ranks.first:
            _note(f"labels are read as in training, with {option} {chosen}")
        return chosen

    ignored = None if arguments.ignore_index is None else str(arguments.ignore_index)
    indices = {path: str(labels.ignore_index) for path, labels in told.items()}
    ignored = choose("--ignore-index", ignored, indices, str(_IGNORE_INDEX))
    arguments.ignore_index = _IGNORE_INDEX if ignored is None else int(ignored)
    parsed = _mapping(arguments)
    given = None if parsed is None else str(parsed) or "none"
    mappings = {path: labels.mapping for path, labels in told.items()}
    mapping = choose("--map", given, mappings, "none")
    arguments.map = None if mapping is None else mapping.split()


def _note(text: str) -> None:
    print(f"segunc: {text}", file=sys.stderr)


def _folder_dataset(
    arguments: argparse.Namespace,
    split: str,
    num_classes: int | None,
    ranks: Ranks,
    class_names: Sequence[str] | None = None,
    *,
    for_training: bool = False,
) -> FolderDataset:
    """A split of --data, every image and label map of it checked."""
    from tqdm.auto import tqdm

    from .experiments.datasets import DatasetError, FolderDataset, one_class_names
    from .experiments.layouts import find_split, is_divided

    mapping = _mapping(arguments)
    try:
        folders = find_split(
            arguments.data, "val" if split == "all" else split, arguments.label_suffix
        )
        divided = is_divided(arguments.data, arguments.label_suffix)
        if divided and arguments.held_out is not None:
            arguments.parser.error(
                f"argument --held-out: {arguments.data} is divided into train and val already; "
                "leave the option out"
            )
        if split == "all" and (divided or arguments.held_out is not None):
            arguments.parser.error(
                "argument --split: all is for data that is not divided, without --held-out"
            )
        held_out = _HELD_OUT if arguments.held_out is None else arguments.held_out
        options = {
            "ignore_index": arguments.ignore_index,
            "image_suffix": arguments.image_suffix,
            "label_suffix": arguments.label_suffix,
            "part": None if divided or split == "all" else (split, held_out),
        }
        dataset = FolderDataset(
            *folders,
            num_classes=num_classes,
            class_names=class_names,
            mapping=mapping,
            **options,
        )
        if getattr(arguments, "one_class", None) is not None:
            name, mapping = _one_class(arguments, dataset, num_classes, class_names)
            dataset = FolderDataset(
                *folders, class_names=one_class_names(name), mapping=mapping, **options
            )
    except DatasetError as problem:
        arguments.parser.error(f"argument {arguments.data_argument}: {problem}")
    try:
        with tqdm(
            total=len(dataset), desc=f"check {split}", unit="image", disable=not ranks.first
        ) as bar:
            dataset.scan(bar.update, for_training=for_training)
    except DatasetError:
        _say_notes(dataset)  # what was done unasked may be the reason
        raise
    return dataset


def _class_index(
    arguments: argparse.Namespace, option: str, text: str, names: Sequence[str], num_classes: int
) -> int:
    """The class that an option names, or gives the number of."""
    if text not in names and not (text.isdecimal() and int(text) < num_classes):
        known = ", ".join(names[:20]) if names else "pass --class-names, or its number"
        arguments.parser.error(f"argument {option}: {text!r} is no class ({known})")
    return names.index(text) if text in names else int(text)


def _one_class(
    arguments: argparse.Namespace,
    dataset: FolderDataset,
    num_classes: int | None,
    class_names: Sequence[str] | None,
) -> tuple[str, LabelMapping]:
    """What --class is called, and the mapping that leaves it and the rest."""
    from .experiments.label_mapping import one_class_mapping

    names = class_names or dataset.mapping.class_names or ()
    limit = len(names) or num_classes or dataset.mapping.num_classes or MAX_CLASSES
    index = _class_index(arguments, "--class", arguments.one_class, names, limit)
    try:
        mapping = one_class_mapping(dataset.mapping, index, arguments.ignore_index)
    except ValueError as problem:
        arguments.parser.error(f"argument --class: {problem}")
    return names[index] if names else f"class {index}", mapping


def _boxed_dataset(arguments: argparse.Namespace, dataset: FolderDataset) -> SegmentationDataset:
    """The dataset, by --exact with boxes."""
    from .experiments.boxed import BoxedDataset

    error = arguments.parser.error
    if arguments.exact is None:
        if arguments.background is not None:
            error("argument --background: expected --exact, which alone makes boxes")
        return dataset
    background = [0] if dataset.num_classes == 2 else None
    if arguments.background is not None:
        background = [
            _class_index(arguments, "--background", each, dataset.class_names, dataset.num_classes)
            for each in arguments.background
        ]
        if len({*background}) == dataset.num_classes:
            error("argument --background: leaves no class that has boxes")
    return BoxedDataset(dataset, arguments.exact, seed=arguments.seed, background=background)


def _say_notes(*datasets: FolderDataset) -> None:
    for note in dict.fromkeys(note for dataset in datasets for note in dataset.notes):
        _note(note)


def _say_shared_images(train: FolderDataset, validation: FolderDataset) -> None:
    """Warns of validation images that are learnt from, whose figures say nothing of others."""
    shared = validation.shared_images(train)
    if shared:
        one, other = shared[0]
        number = f"{len(shared)} of {number_of(len(validation), 'validation image')}"
        _note(
            f"warning: {number} {'is a' if len(shared) == 1 else 'are'} training image"
            f"{'s' if len(shared) > 1 else ''} too, byte for byte ({one} is {other}); the "
            "validation says little of other images"
        )


def _masked_dataset(
    arguments: argparse.Namespace, dataset: FolderDataset, ranks: Ranks
) -> MaskedDataset:
    """The dataset with --masks, every one of them checked."""
    from tqdm.auto import tqdm

    from .experiments.datasets import DatasetError
    from .experiments.mask_files import MaskedDataset

    try:
        masked = MaskedDataset(dataset, arguments.masks)
    except DatasetError as problem:
        arguments.parser.error(f"argument --masks: {problem}")
    with tqdm(total=len(masked), desc="check masks", unit="image", disable=not ranks.first) as bar:
        masked.scan(bar.update)
    return masked


def _class_names(arguments: argparse.Namespace) -> list[str] | None:
    """Those of --class-names."""
    error = arguments.parser.error
    names: list[str] | None = arguments.class_names
    if names and len(names) == 1 and Path(names[0]).is_file():
        error(
            f"argument --class-names: expected names, got the file {names[0]}; pass what it holds"
        )
    if names and arguments.classes and len(names) != arguments.classes:
        expected = number_of(arguments.classes, "name")
        error(f"argument --class-names: expected {expected}, got {len(names)}")
    return names


def _given_counts(arguments: argparse.Namespace) -> ClassCounts | None:
    """Those of --counts."""
    from .experiments.class_counts import CountsError, read_counts

    error = arguments.parser.error
    if arguments.counts is None:
        return None
    if not set(COUNTING_LOSSES) & set(arguments.loss):
        known = " or ".join(COUNTING_LOSSES)
        error(f"argument --counts: expected --loss {known}, which alone use them")
    try:
        counts = read_counts(arguments.counts)
    except CountsError as problem:
        error(f"argument --counts: {problem}")
    return counts


def _check_given_counts(
    arguments: argparse.Namespace, counts: ClassCounts, dataset: FolderDataset, ranks: Ranks
) -> None:
    """Refuses counts of other classes; tells those of other label maps."""
    from .experiments.class_counts import CountsError, check_classes, source_of

    try:
        check_classes(counts, dataset)
    except CountsError as problem:
        arguments.parser.error(f"argument --counts: {arguments.counts}: {problem}")
    if counts.source != source_of(dataset) and ranks.first:
        _note(f"{arguments.counts} was counted in other label maps than those of the training")


def _train(arguments: argparse.Namespace, ranks: Ranks) -> list[Experiment]:
    from .experiments.experiment import Experiment

    error = arguments.parser.error
    names = _class_names(arguments)
    counts = _given_counts(arguments)
    splits: list[FolderDataset] = []
    for split in ("train", "val"):
        # Validation labels must be classes that training knows.
        num_classes = arguments.classes
        if splits and arguments.one_class is None:
            num_classes = splits[0].num_classes
        splits.append(
            _folder_dataset(
                arguments, split, num_classes, ranks, names, for_training=split == "train"
            )
        )
    if ranks.first:
        _say_notes(*splits)
        _say_shared_images(*splits)
        classes = splits[0].num_classes
        print(
            f"{number_of_classes(classes)}, {len(splits[0])} training and "
            f"{number_of(len(splits[1]), 'validation image')} in {arguments.data}",
            file=sys.stderr,
        )
    for loss in arguments.loss:
        least = LOSSES[loss].min_classes
        if splits[0].num_classes < least:
            error(
                f"argument --loss: {loss} expected at least {least} classes, got "
                f"{splits[0].num_classes}"
            )
    if counts is not None:
        _check_given_counts(arguments, counts, splits[0], ranks)
    train = _boxed_dataset(arguments, splits[0])
    if arguments.covariance != COVARIANCE.default and splits[0].num_classes == 2:
        error("argument --covariance: expected more than two classes, whose logits it is between")
    masks = None
    if arguments.masks is not None:
        if not set(ENSEMBLE_LOSSES) & set(arguments.loss):
            known = " or ".join(ENSEMBLE_LOSSES)
            error(f"argument --masks: expected --loss {known}, which alone uses them")
        if arguments.exact is not None:
            error("argument --masks: not with --exact: they are of exact labels")
        train = masked = _masked_dataset(arguments, splits[0], ranks)
        masks = masked.fingerprint
    losses = list(dict.fromkeys(arguments.loss))
    checkpoints = _checkpoints(arguments, losses)
    experiment = Experiment(
        config=_config(
            arguments,
            num_images=len(train),
            checkpoints=checkpoints,
            masks=masks,
            counts=counts,
        ),
        losses=losses,
        train=train,
        validation=splits[1],
        folder=_run_folder(arguments),
        eval_samples=arguments.samples,
        resume=arguments.resume,
        checkpoints=checkpoints,
    )
    existing = [loss for loss in experiment.losses if experiment.checkpoint(loss).exists()]
    if existing and not (arguments.resume or arguments.overwrite):
        error(
            f"argument --name: {experiment.checkpoint(existing[0])} exists; pass --resume to "
            "continue it, --overwrite to start again, or another --name"
        )
    return [experiment]


def _check_ranks(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Only members that train together have something to do on several ranks."""
    if ranks.size == 1:
        return
    error = arguments.parser.error
    if not set(arguments.loss) <= set(ENSEMBLE_LOSSES):
        known = " or ".join(ENSEMBLE_LOSSES)
        error(
            f"argument --loss: expected {known} alone on {ranks.size} ranks, got {arguments.loss}"
        )
    if getattr(arguments, "masks", None) is not None:
        error(f"argument --masks: expected a single rank, got {ranks.size}")
    if arguments.members < ranks.size:
        error(
            f"argument --members: expected one for each of {ranks.size} ranks, got "
            f"{arguments.members}"
        )


def _say_written(experiment: Experiment, seconds: float) -> None:
    pictures = sorted(path.name for path in experiment.folder.glob("*.png"))
    checkpoints = [experiment.checkpoint(loss).name for loss in experiment.losses]
    files = ", ".join(["table.md", "table.json", *pictures, *checkpoints])
    _say(f"Written to {experiment.folder}: {files} ({seconds:.0f} s).")


def _run(arguments: argparse.Namespace) -> int:
    from .experiments.class_counts import AbsentClassError, CountsError
    from .experiments.experiment import count_warnings, run, run_files, with_counts
    from .experiments.output_files import try_output
    from .experiments.ranks import RankError, process_group, ranks_of_environment
    from .experiments.sweep import SWEEP_FILES, SweepError
    from .experiments.training import CheckpointError, DivergedError

    if arguments.amp == "fp16" and torch.device(arguments.device).type == "cpu":
        arguments.parser.error("argument --amp: fp16 needs --device cuda; use bf16 on the CPU")
    if arguments.resume and getattr(arguments, "overwrite", False):
        arguments.parser.error("argument --overwrite: not with --resume")
    if arguments.scale[0] > arguments.scale[1]:
        arguments.parser.error("argument --scale: expected MIN not above MAX")
    make = _demo if arguments.command == "demo" else _train
    started = time.perf_counter()
    try:
        ranks = ranks_of_environment()
        _check_ranks(arguments, ranks)
        device = ranks.device(arguments.device)
        arguments.device = str(device)
        folder, losses = _run_folder(arguments), arguments.loss
        cascade_loss = None
        if make is _demo:
            losses = _demo_losses(arguments)
            cascade_loss = _demo_cascade_loss(arguments)
            if ranks.first and cascade_loss:
                try_output(folder / _DEMO_CASCADE, SWEEP_FILES)
            if ranks.first and (on_boxes := _demo_box_losses(arguments)):
                try_output(folder / _DEMO_BOXES, run_files(on_boxes))
        if ranks.first and losses:
            try_output(folder, run_files(losses))
        experiments = [with_counts(each) for each in make(arguments, ranks)]
        for experiment in experiments if ranks.first else ():
            for warning in count_warnings(experiment):
                _note(f"warning: {warning}")
        with process_group(ranks, device):
            for experiment in experiments:
                table = run(experiment)
                if ranks.first:
                    _say(f"\n{table}")
                    _say_written(experiment, time.perf_counter() - started)
        if ranks.first and cascade_loss:
            _demo_cascade(arguments, experiments[0], cascade_loss)
    except CheckpointError as problem:
        arguments.parser.error(f"argument --resume: {problem}")
    except AbsentClassError as problem:
        if make is not _demo:
            return _fail(problem)
        return _fail(f"{problem.finding}; generate more scenes (--scenes)")
    except (CountsError, DivergedError, RankError, SweepError) as problem:
        return _fail(problem)
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from .experiments.class_counts import count_classes
    from .experiments.class_statistics import STATISTICS_FILES, derive, write_statistics
    from .experiments.interruption import deferred_interrupt
    from .experiments.output_files import try_output
    from .experiments.ranks import ALONE

    folder = arguments.output
    try_output(folder, STATISTICS_FILES)
    if any((folder / name).exists() for name in STATISTICS_FILES) and not arguments.overwrite:
        arguments.parser.error(
            f"{folder} holds statistics already; pass --overwrite or another --output"
        )
    names = _class_names(arguments)
    dataset = _folder_dataset(arguments, arguments.split, arguments.classes, ALONE, names)
    _say_notes(dataset)
    with tqdm(
        total=len(dataset), desc=f"count {arguments.split}", unit="image", dynamic_ncols=True
    ) as bar:
        counts = count_classes(dataset, connectivity=arguments.connectivity, progress=bar.update)
    settings = {"beta": arguments.beta, "max_margin": arguments.max_margin}
    derived = derive(counts, **settings)
    split = "" if arguments.split == "all" else f", {arguments.split}"
    # Who interrupts now is too late: files are never left half of one count, half of another.
    with deferred_interrupt():
        table = write_statistics(
            counts, derived, folder, **settings, title=f"{arguments.data}{split}"
        )
    _say(f"\n{table}")
    for each in derived:
        if each.problem is not None:
            absent = each.values is None
            _note(f"warning: {each.problem if absent else f'{each.title}: {each.problem}'}")
    _say(f"Written to {folder}: {', '.join(STATISTICS_FILES)}.")
    return 0


def _masks(arguments: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from .experiments.masks import MaskError, MaskSettings, load_ensemble, write_masks
    from .experiments.networks import agreed_class_names, trained_labels
    from .experiments.output_files import try_output
    from .experiments.ranks import RankError, ranks_of_environment
    from .experiments.training import CheckpointError

    error = arguments.parser.error
    try:
        ranks = ranks_of_environment()
        try_output(arguments.output)
        members = load_ensemble(arguments.members)
        num_classes = next(iter(members.values())).num_classes
        trained = trained_labels(arguments.members)
        _labels_as_trained(arguments, trained, ranks)
        names = agreed_class_names(trained.values())
        dataset = _folder_dataset(arguments, arguments.split, num_classes, ranks, names)
        if ranks.first:
            _say_notes(dataset)
        share = len(range(ranks.rank, len(dataset), ranks.size))
        with tqdm(
            total=share, desc="masks", unit="image", disable=not ranks.first, dynamic_ncols=True
        ) as bar:
            count = write_masks(
                members,
                dataset,
                arguments.output,
                MaskSettings(arguments.values, arguments.components, arguments.connectivity),
                device=ranks.device(arguments.device),
                workers=arguments.workers,
                ranks=ranks,
                progress=bar.update,
            )
    except CheckpointError as problem:
        error(f"{problem}")
    except (MaskError, RankError) as problem:
        return _fail(problem)
    of_rank = "" if ranks.size == 1 else f", share of rank {ranks.rank} of {ranks.size}"
    _say(
        f"{number_of(count.written, 'mask')} written to {arguments.output}, {count.kept} kept"
        f"{of_rank}."
    )
    return 0


def _check_cascade_options(arguments: argparse.Namespace) -> None:
    """Those of --cascade go together."""
    error = arguments.parser.error
    needed = {"--threshold": arguments.threshold, "--block-size": arguments.block_size}
    others = {
        "--stride": arguments.stride,
        "--context": arguments.context,
        "--scale": arguments.scale or None,
    }
    if not arguments.cascade:
        for name, value in {**needed, **others}.items():
            if value is not None:
                error(f"argument {name}: is of --cascade, which is missing")
        return
    if arguments.members:
        error("argument --members: not with --cascade")
    for name, value in needed.items():
        if value is None:
            error(f"argument {name}: is missing, which --cascade needs")
    further = len(arguments.cascade)
    if len(arguments.threshold) not in (1, further):
        error(
            f"argument --threshold: expected one, or {further} for as many further networks, got "
            f"{len(arguments.threshold)}"
        )
    if arguments.scale and len(arguments.scale) != 1 + further:
        error(
            f"argument --scale: expected {number_of(1 + further, 'factor')}, got "
            f"{len(arguments.scale)}"
        )
    _check_stride(arguments, arguments.stride or arguments.block_size, arguments.block_size)


def _check_stride(
    arguments: argparse.Namespace, stride: tuple[int, int], block: tuple[int, int]
) -> None:
    """Blocks must leave no pixels out."""
    if stride[0] > block[0] or stride[1] > block[1]:
        arguments.parser.error(
            f"argument --stride: expected at most the block size {block[0]}x{block[1]}, got "
            f"{stride[0]}x{stride[1]}"
        )


def _predictor(arguments: argparse.Namespace) -> Predictor:
    """By dropout, or an ensemble."""
    from .experiments.datasets import number_classes
    from .experiments.networks import load_networks, trained_class_names
    from .experiments.predictions import Predictor

    checkpoints = [arguments.checkpoint, *arguments.members]
    networks = load_networks(checkpoints)
    names = trained_class_names(checkpoints) or number_classes(
        next(iter(networks.values())).num_classes
    )
    return Predictor(networks, names, arguments.samples, arguments.seed)


def _cascade_predictor(arguments: argparse.Namespace) -> CascadePredictor:
    """By --cascade."""
    from .experiments.cascades import cascade_networks
    from .experiments.datasets import number_classes
    from .experiments.networks import trained_class_names
    from .experiments.predictions import CascadePredictor

    checkpoints = [arguments.checkpoint, *arguments.cascade]
    networks = cascade_networks(checkpoints, scales=arguments.scale)
    num_classes = networks[0].num_classes
    assert num_classes is not None
    thresholds = tuple(arguments.threshold)
    return CascadePredictor(
        networks,
        trained_class_names(checkpoints) or number_classes(num_classes),
        arguments.block_size,
        arguments.stride or arguments.block_size,
        thresholds * len(arguments.cascade) if len(thresholds) == 1 else thresholds,
        arguments.context or 0,
    )


def _predict(arguments: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from .experiments.datasets import DatasetError
    from .experiments.predictions import (
        CascadePredictor,
        PredictionError,
        check_folder,
        check_images,
        find_images,
        write_predictions,
    )
    from .experiments.training import CheckpointError

    error = arguments.parser.error
    _check_cascade_options(arguments)
    try:
        sources = find_images(arguments.images)
    except DatasetError as problem:
        error(f"argument IMAGES: {problem}")
    try:
        check_folder(arguments.output, arguments.images, sources)
        predictor = _cascade_predictor(arguments) if arguments.cascade else _predictor(arguments)
        with tqdm(total=len(sources), desc="check images", unit="image", dynamic_ncols=True) as bar:
            checked = check_images(sources, bar.update)
        if isinstance(predictor, CascadePredictor):
            predictor.check(sources, checked)
        with tqdm(total=len(sources), desc="predict", unit="image", dynamic_ncols=True) as bar:
            count = write_predictions(
                predictor,
                sources,
                checked,
                arguments.output,
                device=torch.device(arguments.device),
                progress=bar.update,
            )
    except CheckpointError as problem:
        error(f"{problem}")
    except PredictionError as problem:
        return _fail(problem)
    if "colors" not in predictor.kinds:
        _note(f"no colours of {len(predictor.class_names)} classes, as a palette has 256")
    if arguments.cascade:
        how = f"a cascade of {len(predictor.networks)}"
    elif len(predictor.networks) == 1:
        how = f"{arguments.samples} dropout samples"
    else:
        how = f"an ensemble of {len(predictor.networks)}"
    _say(
        f"{number_of(count.written, 'image')} predicted by {how}, {count.kept} kept; in "
        f"{arguments.output}: "
        f"{', '.join(predictor.kinds)}."
    )
    return 0


def _check_scene_classes(
    arguments: argparse.Namespace, trained_names: Sequence[str] | None
) -> None:
    """Generated scenes, in place of --data, are for networks that know their classes."""
    from .experiments.datasets import SceneDataset

    if trained_names != SceneDataset.class_names:
        what = f", and {arguments.checkpoint[0]} has other classes" if arguments.checkpoint else ""
        arguments.parser.error(
            "argument --data: is missing; only networks of `segunc demo` are evaluated on "
            f"generated scenes{what}"
        )


def _eval_data(
    arguments: argparse.Namespace, num_classes: int
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """What is evaluated, and the training images that go with it."""
    from .experiments.datasets import DatasetError, number_classes, one_class_names
    from .experiments.layouts import find_split
    from .experiments.networks import agreed_class_names, trained_labels
    from .experiments.ranks import ALONE

    error = arguments.parser.error
    trained = trained_labels(arguments.checkpoint)
    trained_names = agreed_class_names(trained.values())
    if arguments.data is None:
        found = trained_names or number_classes(num_classes)
        boxed = found == one_class_names(_DEMO_BOXED_CLASS)
        if not boxed:
            _check_scene_classes(arguments, found)
        train, validation = _demo_scenes(arguments.seed, _DEMO_REFERENCE_SCENES)
        if boxed:
            return validation.of_class(_DEMO_BOXED_CLASS), train.of_class(_DEMO_BOXED_CLASS)
        return validation, train
    names = arguments.class_names or trained_names
    if names and len(names) != num_classes:
        error(
            f"argument --class-names: expected {number_of(num_classes, 'name')}, got {len(names)}"
        )
    _labels_as_trained(arguments, trained, ALONE)
    reference: FolderDataset | None = None
    dataset = _folder_dataset(arguments, arguments.split, num_classes, ALONE, names)
    if arguments.threshold is None and arguments.split == "all":
        _note("without training images there is no PAvPU; pass --threshold")
    elif arguments.threshold is None:
        try:
            find_split(arguments.data, "train", arguments.label_suffix)
        except DatasetError:
            _note(f"no training images in {arguments.data}, hence no PAvPU; pass --threshold")
        else:
            reference = _folder_dataset(arguments, "train", num_classes, ALONE, names)
    _say_notes(*(each for each in (dataset, reference) if each is not None))
    return dataset, reference


def _eval(arguments: argparse.Namespace) -> int:
    from .experiments.experiment import EVALUATION_FILES, evaluate_checkpoints
    from .experiments.networks import load_networks
    from .experiments.output_files import try_output
    from .experiments.training import CheckpointError

    error = arguments.parser.error
    folder = arguments.output or arguments.checkpoint[0].parent / "eval"
    try_output(folder, EVALUATION_FILES)
    if any((folder / name).exists() for name in EVALUATION_FILES) and not arguments.overwrite:
        error(f"{folder} holds an evaluation already; pass --overwrite or another --output")
    try:
        models = [*load_networks(arguments.checkpoint).values()]
        dataset, reference = _eval_data(arguments, models[0].num_classes)
    except CheckpointError as problem:
        error(f"{problem}")
    table = evaluate_checkpoints(
        models,
        dataset,
        folder,
        device=torch.device(arguments.device),
        num_samples=arguments.samples,
        reference=reference,
        threshold=arguments.threshold,
        seed=arguments.seed,
        title=f"{', '.join(map(str, arguments.checkpoint))} on "
        f"{arguments.data or 'generated scenes'}",
    )
    _say(f"\n{table}")
    _say(f"Written to {folder}: {', '.join(EVALUATION_FILES)}.")
    return 0


def _sweep_data(arguments: argparse.Namespace, num_classes: int | None) -> SegmentationDataset:
    """The validation images."""
    from .experiments.networks import agreed_class_names, trained_labels
    from .experiments.ranks import ALONE

    trained = trained_labels(arguments.checkpoint)
    names = agreed_class_names(trained.values())
    dataset: SegmentationDataset
    if arguments.data is None:
        _check_scene_classes(arguments, names)
        _, dataset = _demo_scenes(arguments.seed, _DEMO_REFERENCE_SCENES)
    else:
        _labels_as_trained(arguments, trained, ALONE)
        folders = _folder_dataset(arguments, "val", num_classes, ALONE, names)
        _say_notes(folders)
        dataset = folders
    return dataset


def _swept_blocks(arguments: argparse.Namespace, size: tuple[int, int]) -> list[Blocks]:
    """Those that options ask for, of an image of this size."""
    from .experiments.sweep import Blocks

    error = arguments.parser.error
    edges = [max(1, size[0] // 4), max(1, size[0] // 2)]
    sizes = arguments.block_size or [(edge, min(edge, size[1])) for edge in edges]
    strides = arguments.stride or sizes
    if len(strides) == 1:
        strides = strides * len(sizes)
    if len(strides) != len(sizes):
        error(
            f"argument --stride: expected one, or {len(sizes)} for as many of --block-size, got "
            f"{len(strides)}"
        )
    for stride, block in zip(strides, sizes, strict=True):
        _check_stride(arguments, stride, block)
    return [
        Blocks(block, stride, context)
        for block, stride in zip(sizes, strides, strict=True)
        for context in arguments.context
    ]


def _cascade_command(arguments: argparse.Namespace, order: Sequence[int], chosen: Answer) -> str:
    """What applies a point of a sweep."""
    blocks, point = chosen
    first, *others = (shlex.quote(str(arguments.checkpoint[index])) for index in order)
    words = ["segunc predict", first, "IMAGES --output maps --cascade", *others]
    if arguments.scale:
        words += ["--scale", *(f"{arguments.scale[index]:g}" for index in order)]
    words.append(f"--threshold={point.threshold:g}")
    words.append(f"--block-size {blocks.block_size[0]}x{blocks.block_size[1]}")
    if blocks.stride != blocks.block_size:
        words.append(f"--stride {blocks.stride[0]}x{blocks.stride[1]}")
    if blocks.context:
        words.append(f"--context {blocks.context}")
    return " ".join(words)


def _sweep(arguments: argparse.Namespace) -> int:
    from .experiments.cascades import cascade_networks
    from .experiments.factories import FactoryError
    from .experiments.report import finite
    from .experiments.sweep import (
        SWEEP_FILES,
        SweepError,
        best_within,
        fastest_reaching,
        no_worse,
        point_to_dict,
        sweep,
        sweep_table,
    )
    from .experiments.training import CheckpointError

    error = arguments.parser.error
    number = len(arguments.checkpoint) + len(arguments.model)
    if number < 2:
        error(f"argument CHECKPOINT: expected two networks or more, with --model, got {number}")
    if arguments.scale and len(arguments.scale) != number:
        error(
            f"argument --scale: expected {number_of(number, 'factor')}, got {len(arguments.scale)}"
        )
    try:
        networks = cascade_networks(arguments.checkpoint, arguments.model, arguments.scale)
        dataset = _sweep_data(arguments, networks[0].num_classes)
        height, width = dataset.label(0).shape
        found = sweep(
            networks,
            dataset,
            arguments.output,
            _swept_blocks(arguments, (height, width)),
            thresholds=arguments.threshold,
            device=torch.device(arguments.device),
            timed_images=arguments.timed_images,
            repeats=arguments.repeats,
            overwrite=arguments.overwrite,
            title=f"cascade on {arguments.data or 'generated scenes'}",
        )
    except CheckpointError as problem:
        error(f"{problem}")
    except FactoryError as problem:
        error(f"argument --model: {problem}")
    except SweepError as problem:
        return _fail(problem)
    asked: dict[str, tuple[str, Answer | None]] = {}
    if arguments.time_ms is not None:
        what = f"within {arguments.time_ms:g} ms"
        asked["time_ms"] = what, best_within(found, arguments.time_ms)
    if arguments.miou is not None:
        what = f"at {arguments.miou:g} % mIoU"
        asked["miou"] = what, fastest_reaching(found, arguments.miou / 100)
    if arguments.json:
        answers = {
            name: None if chosen is None else {**asdict(chosen[0]), **point_to_dict(chosen[1])}
            for name, (_, chosen) in asked.items()
        }
        _say(json.dumps(finite({**found.to_dict(), "answers": answers}), indent=2))
        return 0
    _say(f"\n{sweep_table(found, [network.name for network in networks])}")
    for what, chosen in asked.values():
        if chosen is None:
            _say(f"{what}: no point of the sweep.")
            continue
        blocks, point = chosen
        _say(
            f"{what}: threshold {point.threshold:g} with blocks of {blocks}, "
            f"{point.milliseconds:.2f} ms, mIoU {100 * point.mean_iou:.2f} %"
        )
        if not arguments.model:
            _say(f"  {_cascade_command(arguments, found.order, chosen)}")
        for index in no_worse(found, point):
            alone = found.alone[index]
            _say(
                f"  {networks[index].name} on whole images is no worse: {alone.milliseconds:.2f} "
                f"ms, mIoU {100 * alone.mean_iou:.2f} %"
            )
    _say(f"Written to {arguments.output}: {', '.join(SWEEP_FILES)}.")
    return 0


def _info() -> int:
    for name, value in build_info().items():
        if isinstance(value, (list, tuple)):
            value = " ".join(map(str, value)) or None
        _say(f"{name + ':':14}{'-' if value is None else value}")
    return 0


def _fail(problem: object) -> int:
    """Tells in one line why a command ends, whatever the names in it hold; its exit status."""
    print(f"segunc: error: {problem}".replace("\n", "\\n"), file=sys.stderr)
    return 1


def _say(text: str) -> None:
    """Prints at once: that standard output is full or closed must not come out at exit."""
    try:
        print(text, flush=True)
    except OSError as problem:
        # What it holds already would be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(problem.errno, problem.strerror, "standard output") from problem


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "info":
        return _info()
    from .experiments import MissingExtrasError, require_extras

    try:
        require_extras()
    except MissingExtrasError as problem:
        return _fail(problem)
    from .experiments.datasets import DatasetError
    from .experiments.interruption import interrupting_signals

    again = "the same command starts again"
    going_on = "the same command continues"
    commands = {
        "stats": (_stats, again),
        "eval": (_eval, again),
        "masks": (_masks, going_on),
        "sweep": (_sweep, going_on),
        "predict": (_predict, going_on),
    }
    work, advice = commands.get(
        arguments.command, (_run, "the same command with --resume continues")
    )
    try:
        with interrupting_signals():
            return work(arguments)
    except DatasetError as problem:
        return _fail(problem)
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone, which SIGHUP tells of
            print(f"\nsegunc: interrupted; {advice}", file=sys.stderr)
        return _SIGNALLED + getattr(stop, "signum", signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit status: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM, 129 after
        SIGHUP. Wrong arguments exit with 2.
    """
    arguments = build_parser().parse_args(argv)
    # Closed by its caller, as `2>&-` does: progress and notes have nowhere to go.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # Messages say what matters; of a TIFF that lacks its end, others than its own values are read.
    warnings.filterwarnings("ignore", module=r"PIL\.|matplotlib")
    warnings.filterwarnings("error", "Truncated File Read", module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that cannot print a name shows its code points.
            stream.reconfigure(errors="backslashreplace")
    try:
        return _command(arguments)
    except OSError as problem:
        named = problem.filename is not None
        return _fail(f"{problem.filename}: {problem.strerror}" if named else problem)
    except MemoryError as problem:
        return _fail(f"not enough memory ({problem}); a smaller --crop or --batch-size takes less")


if __name__ == "__main__":
    sys.exit(main())
