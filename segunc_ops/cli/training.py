"""What trainings have in common, of the demo's scenes and of other data."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from ..experiments.losses import ENSEMBLE_LOSSES, LOSSES, Parameter
from ..experiments.models import DropoutPlace
from ..experiments.optimizers import OPTIMIZERS
from .argument_types import MAX_SCALE, real, run_name, whole
from .messages import fail, note, say
from .options import device_option, parameter_options

if TYPE_CHECKING:
    from ..experiments.class_counts import ClassCounts
    from ..experiments.experiment import Experiment
    from ..experiments.ranks import Ranks
    from ..experiments.training import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """The defaults of a training that differ between the demo and other data."""

    losses: Sequence[str]
    steps: int
    crop: tuple[int, int]
    scale: tuple[float, float]
    optimizer: str
    dropout_at: str
    channels_last: bool
    validations: int


def training_options(parser: argparse.ArgumentParser, recipe: Recipe) -> argparse._ArgumentGroup:
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
        type=whole(1),
        help=f"updates (default: {steps}; with --resume those of the run, which more extend)",
    )
    length.add_argument(
        "--epochs", type=whole(1), help="in place of --steps: passes over the images"
    )
    group.add_argument("--batch-size", type=whole(2), default=4, metavar="N", help="default: 4")
    group.add_argument(
        "--crop",
        type=whole(32),
        nargs=2,
        default=list(crop),
        metavar=("H", "W"),
        help="height and width of the random crops, in pixels; smaller images are padded, and "
        f"ignored there (default: {crop[0]} {crop[1]})",
    )
    group.add_argument(
        "--scale",
        type=real(0.05, MAX_SCALE),
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
        type=real(0),
        help="of the encoder; by sgd the decoder learns ten times as fast, by adamw as fast "
        f"(default: {', '.join(rates)})",
    )
    group.add_argument(
        "--dropout",
        type=real(0.001, 1),
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
        type=whole(0),
        default=0,
        help="of weights, crops and dropout (default: 0)",
    )
    uncertainty = parser.add_argument_group("uncertainty")
    uncertainty.add_argument(
        "--samples",
        type=whole(2),
        default=10,
        metavar="S",
        help="Monte-Carlo dropout samples per U-CE step and in the evaluation (default: 10)",
    )
    uncertainty.add_argument(
        "--members",
        type=whole(2),
        default=3,
        metavar="M",
        help=f"networks that train together ({', '.join(ENSEMBLE_LOSSES)}); torchrun deals them "
        "to its ranks (default: 3)",
    )
    _loss_options(parser)
    machine = parser.add_argument_group("machine")
    device_option(machine)
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
        "--workers", type=whole(1), default=1, help="threads that prepare batches (default: 1)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, default=Path("runs"), help="default: runs")
    output.add_argument("--name", type=run_name, help="folder in it (default: the command)")
    output.add_argument(
        "--resume", action="store_true", help="continue an interrupted run, or extend one"
    )
    return output


def _loss_options(parser: argparse.ArgumentParser) -> None:
    """A group of options for each loss; those of parameters that losses share stand once."""
    told: set[Parameter] = set()
    for loss in LOSSES.values():
        parameters = [each for each in loss.parameters if each not in told]
        if parameters:
            takers = [name for name in LOSSES if set(parameters) & set(LOSSES[name].parameters)]
            group = parser.add_argument_group(f"{loss.about} ({', '.join(takers)})")
            parameter_options(group, parameters)
            told.update(parameters)


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def run_folder(arguments: argparse.Namespace) -> Path:
    """Where a training leaves its files."""
    folder: Path = arguments.output / (arguments.name or arguments.command)
    return folder


def training_config(
    arguments: argparse.Namespace,
    *,
    num_images: int,
    checkpoints: Mapping[str, dict[str, Any]] | None,
    masks: str | None = None,
    counts: ClassCounts | None = None,
) -> TrainingConfig:
    """The configuration that options ask for.

    Args:
        arguments: of the command.
        num_images: of an epoch.
        checkpoints: that are resumed, whose number of steps holds unless an option says otherwise.
        masks: what tells those of --masks from others.
        counts: how often each class occurs.
    """
    from ..experiments.experiment import recorded_steps
    from ..experiments.training import TrainingConfig

    steps = arguments.steps
    if arguments.epochs is not None:
        steps = arguments.epochs * max(1, num_images // arguments.batch_size)
    if steps is None and checkpoints:
        steps = recorded_steps(run_folder(arguments), checkpoints)
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


def resumed_checkpoints(
    arguments: argparse.Namespace, losses: Sequence[str]
) -> dict[str, dict[str, Any]] | None:
    """What --resume goes on from; None without it.

    Raises:
        CheckpointError: one cannot be read.
    """
    from ..experiments.experiment import read_checkpoints

    if not arguments.resume:
        return None
    return read_checkpoints(run_folder(arguments), losses)


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
    say(f"Written to {experiment.folder}: {files} ({seconds:.0f} s).")


def run_experiments(
    arguments: argparse.Namespace,
    make: Callable[[argparse.Namespace, Ranks], list[Experiment]],
    files: Mapping[Path, Collection[str]],
    finish: Callable[[argparse.Namespace, list[Experiment]], None] | None = None,
) -> int:
    """Trains, evaluates and compares.

    Args:
        arguments: of the command.
        make: the experiments, with how often classes occur.
        files: what will be written, by folder, where that is tried before the work.
        finish: what the first of the ranks does in the end.

    Returns:
        The exit status.
    """
    from ..experiments.class_counts import CountsError
    from ..experiments.experiment import count_warnings, run
    from ..experiments.output_files import try_output
    from ..experiments.ranks import RankError, process_group, ranks_of_environment
    from ..experiments.training import CheckpointError, DivergedError

    if arguments.amp == "fp16" and torch.device(arguments.device).type == "cpu":
        arguments.parser.error("argument --amp: fp16 needs --device cuda; use bf16 on the CPU")
    if arguments.resume and getattr(arguments, "overwrite", False):
        arguments.parser.error("argument --overwrite: not with --resume")
    if arguments.scale[0] > arguments.scale[1]:
        arguments.parser.error("argument --scale: expected MIN not above MAX")
    started = time.perf_counter()
    try:
        ranks = ranks_of_environment()
        _check_ranks(arguments, ranks)
        device = ranks.device(arguments.device)
        arguments.device = str(device)
        for folder, names in files.items() if ranks.first else ():
            try_output(folder, names)
        experiments = make(arguments, ranks)
        for experiment in experiments if ranks.first else ():
            for warning in count_warnings(experiment):
                note(f"warning: {warning}")
        with process_group(ranks, device):
            for experiment in experiments:
                table = run(experiment)
                if ranks.first:
                    say(f"\n{table}")
                    _say_written(experiment, time.perf_counter() - started)
        if ranks.first and finish is not None:
            finish(arguments, experiments)
    except CheckpointError as problem:
        arguments.parser.error(f"argument --resume: {problem}")
    except (CountsError, DivergedError, RankError) as problem:
        return fail(problem)
    return 0
