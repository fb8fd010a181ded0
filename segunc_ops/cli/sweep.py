"""``segunc sweep``: accuracy and time of a cascade over thresholds and blocks."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..experiments.wording import number_of
from . import scenes
from .argument_types import bits, height_and_width, real, whole
from .data import data_options, folder_dataset, labels_as_trained, say_notes
from .messages import fail, say
from .options import check_stride, device_option, scale_option

if TYPE_CHECKING:
    from ..experiments.datasets import SegmentationDataset
    from ..experiments.sweep import Blocks, Point

    Answer = tuple[Blocks, Point]


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
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
    sweep.set_defaults(parser=sweep, work=_sweep, advice="the same command continues")
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
    scale_option(sweep.add_argument_group("networks"))
    data_options(sweep, required=False, of_networks=True)
    blocks = sweep.add_argument_group("cascade")
    blocks.add_argument(
        "--block-size",
        type=height_and_width,
        nargs="+",
        metavar="B",
        help="edge of the blocks in pixels, or HEIGHTxWIDTH (default: a quarter and a half of the "
        "first image's height)",
    )
    blocks.add_argument(
        "--stride",
        type=height_and_width,
        nargs="+",
        metavar="S",
        help="from one block to the next: one for all, or one for each --block-size (default: that "
        "size)",
    )
    blocks.add_argument(
        "--context",
        type=whole(0),
        nargs="+",
        default=[0],
        metavar="P",
        help="pixels around a block that the next network sees too; each is measured (default: 0)",
    )
    blocks.add_argument(
        "--threshold",
        type=bits,
        nargs="+",
        metavar="T",
        help="of the mean entropy of a block, in bits; infinity and -infinity are always there "
        "(default: those that let 5 to 70 %% of the fastest network's blocks through)",
    )
    answer = sweep.add_argument_group("answer")
    answer.add_argument(
        "--time-ms", type=real(0), metavar="T", help="tell what is best in this time an image"
    )
    answer.add_argument(
        "--miou",
        type=real(0, 100.001),
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
    device_option(machine)
    machine.add_argument(
        "--repeats",
        type=whole(1),
        default=3,
        metavar="N",
        help="timed runs of each of them, whose median counts (default: 3)",
    )
    machine.add_argument(
        "--timed-images",
        type=whole(1),
        default=20,
        metavar="N",
        help="that are timed, evenly spaced (default: 20)",
    )
    machine.add_argument(
        "--seed", type=whole(0), default=0, help="of generated scenes (default: 0)"
    )


def _sweep_data(arguments: argparse.Namespace, num_classes: int | None) -> SegmentationDataset:
    """The validation images."""
    from ..experiments.networks import agreed_class_names, trained_labels
    from ..experiments.ranks import ALONE

    trained = trained_labels(arguments.checkpoint)
    names = agreed_class_names(trained.values())
    dataset: SegmentationDataset
    if arguments.data is None:
        scenes.check_scene_classes(arguments, names)
        dataset = scenes.validation_scenes(arguments.seed)
    else:
        labels_as_trained(arguments, trained, ALONE)
        folders = folder_dataset(arguments, "val", num_classes, ALONE, names)
        say_notes(folders)
        dataset = folders
    return dataset


def _swept_blocks(arguments: argparse.Namespace, size: tuple[int, int]) -> list[Blocks]:
    """Those that options ask for, of an image of this size."""
    from ..experiments.sweep import Blocks

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
        check_stride(arguments, stride, block)
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
    from ..experiments.cascades import cascade_networks
    from ..experiments.factories import FactoryError
    from ..experiments.report import finite
    from ..experiments.sweep import (
        SWEEP_FILES,
        SweepError,
        best_within,
        fastest_reaching,
        no_worse,
        point_to_dict,
        sweep,
        sweep_table,
    )
    from ..experiments.training import CheckpointError

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
        return fail(problem)
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
        say(json.dumps(finite({**found.to_dict(), "answers": answers}), indent=2))
        return 0
    say(f"\n{sweep_table(found, [network.name for network in networks])}")
    for what, chosen in asked.values():
        if chosen is None:
            say(f"{what}: no point of the sweep.")
            continue
        blocks, point = chosen
        say(
            f"{what}: threshold {point.threshold:g} with blocks of {blocks}, "
            f"{point.milliseconds:.2f} ms, mIoU {100 * point.mean_iou:.2f} %"
        )
        if not arguments.model:
            say(f"  {_cascade_command(arguments, found.order, chosen)}")
        for index in no_worse(found, point):
            alone = found.alone[index]
            say(
                f"  {networks[index].name} on whole images is no worse: {alone.milliseconds:.2f} "
                f"ms, mIoU {100 * alone.mean_iou:.2f} %"
            )
    say(f"Written to {arguments.output}: {', '.join(SWEEP_FILES)}.")
    return 0
