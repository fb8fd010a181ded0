"""``segunc demo``: trainings on generated street scenes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..experiments.losses import DEMO, ENSEMBLE_LOSSES, LOSSES, UNCERTAIN_LABELS
from . import scenes
from .argument_types import whole
from .messages import fail, say
from .training import (
    Recipe,
    resumed_checkpoints,
    run_experiments,
    run_folder,
    training_config,
    training_options,
)

if TYPE_CHECKING:
    from ..experiments.datasets import SceneDataset
    from ..experiments.experiment import Experiment
    from ..experiments.ranks import Ranks

# Boxes have an experiment of their own: of trees, against the plain loss, of half the steps.
_BOXES = "boxes"
_EXACT = 0.2
_PLAIN = "ce"
# A cascade of one of the networks, of images at a quarter of their size and at it: nothing more is
# trained.
_CASCADE = "cascade"
_CASCADE_SCALES = (0.25, 1.0)
# Where a cascade can be the faster one; more blocks take longer than the whole image.
_CASCADE_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)
_CASCADE_TIMED = 5

_RECIPE = Recipe(
    losses=DEMO,
    steps=500,
    crop=(128, 192),
    scale=(0.6, 1.1),
    optimizer="adamw",
    dropout_at="decoder",
    channels_last=True,
    validations=4,
)


def _titles(losses: Sequence[str]) -> str:
    """Such as "CE, IU and LDAM"."""
    *first, last = (LOSSES[name].title for name in losses)
    return f"{', '.join(first)} and {last}"


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    demo = add_parser(
        "demo",
        usage="%(prog)s [OPTION ...]",
        help=f"train on generated street scenes by {_titles(DEMO)}; print a table, write pictures",
    )
    demo.set_defaults(parser=demo, work=_demo, advice="the same command with --resume continues")
    demo.add_argument(
        "--scenes",
        type=whole(1),
        default=scenes.TRAINING_SCENES,
        metavar="N",
        help=f"how many are trained on (default: {scenes.TRAINING_SCENES})",
    )
    training_options(demo, _RECIPE)


def _exact_losses(arguments: argparse.Namespace) -> list[str]:
    """Those that the demo compares on exact labels."""
    return [loss for loss in dict.fromkeys(arguments.loss) if loss not in UNCERTAIN_LABELS]


def _boxed_losses(arguments: argparse.Namespace) -> list[str]:
    """Those that it compares on boxes: the plain one, and those that doubt their labels."""
    doubting = [loss for loss in UNCERTAIN_LABELS if loss in arguments.loss]
    return [_PLAIN, *doubting] if doubting else []


def _cascade_loss(arguments: argparse.Namespace) -> str | None:
    """Of those that it compares, the first that trains a network alone."""
    losses = (loss for loss in _exact_losses(arguments) if loss not in ENSEMBLE_LOSSES)
    return next(losses, None)


def _boxed_experiment(
    arguments: argparse.Namespace,
    train: SceneDataset,
    validation: SceneDataset,
    reference: SceneDataset,
) -> Experiment:
    """The demo's experiment on boxes: half as many steps, of two classes."""
    from ..experiments.boxed import BoxedDataset
    from ..experiments.experiment import Experiment, read_checkpoints, recorded_steps

    folder = run_folder(arguments) / _BOXES
    losses = _boxed_losses(arguments)
    checkpoints = read_checkpoints(folder, losses) if arguments.resume else None
    config = training_config(arguments, num_images=len(train), checkpoints=None)
    steps = max(1, config.steps // 2)
    if checkpoints and arguments.steps is None and arguments.epochs is None:
        steps = recorded_steps(folder, checkpoints) or steps
    return Experiment(
        config=replace(
            config,
            steps=steps,
            validate_every=math.ceil(steps / arguments.validations),
            exact=_EXACT,
        ),
        losses=losses,
        train=BoxedDataset(
            train.of_class(scenes.BOXED_CLASS), _EXACT, seed=arguments.seed, background=[0]
        ),
        validation=validation.of_class(scenes.BOXED_CLASS),
        folder=folder,
        eval_samples=arguments.samples,
        resume=arguments.resume,
        checkpoints=checkpoints,
        reference=reference.of_class(scenes.BOXED_CLASS),
    )


def _measure_cascade(arguments: argparse.Namespace, experiments: Sequence[Experiment]) -> None:
    """Measures a cascade of a network that the demo has trained, and tells what came out."""
    from ..experiments.cascades import cascade_networks
    from ..experiments.sweep import SWEEP_FILES, Blocks, sweep, sweep_table

    experiment, loss = experiments[0], _cascade_loss(arguments)
    assert loss is not None
    checkpoint = experiment.checkpoint(loss)
    networks = cascade_networks([checkpoint] * 2, scales=_CASCADE_SCALES)
    height, width = scenes.SIZE
    block = (height // 3, width // 3)
    folder = experiment.folder / _CASCADE
    found = sweep(
        networks,
        experiment.validation,
        folder,
        [Blocks(block, block, context=height // 10)],
        shares=_CASCADE_SHARES,
        device=torch.device(arguments.device),
        timed_images=_CASCADE_TIMED,
        overwrite=True,
        title=f"cascade of the network trained by {LOSSES[loss].title}",
    )
    say(f"\n{sweep_table(found, [network.name for network in networks])}")
    say(f"Written to {folder}: {', '.join(SWEEP_FILES)}.")


def _experiments(arguments: argparse.Namespace, ranks: Ranks) -> list[Experiment]:
    """On exact labels, and on boxes."""
    from tqdm.auto import tqdm

    from ..experiments.class_counts import AbsentClassError, CountsError
    from ..experiments.experiment import Experiment, with_counts

    train = scenes.training_scenes(arguments.seed, arguments.scenes)
    validation = scenes.validation_scenes(arguments.seed)
    reference = scenes.reference_scenes(arguments.seed)
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
    if losses := _exact_losses(arguments):
        checkpoints = resumed_checkpoints(arguments, losses)
        experiments.append(
            Experiment(
                config=training_config(arguments, num_images=len(train), checkpoints=checkpoints),
                losses=losses,
                train=train,
                validation=validation,
                folder=run_folder(arguments),
                eval_samples=arguments.samples,
                resume=arguments.resume,
                checkpoints=checkpoints,
                reference=reference,
            )
        )
    if _boxed_losses(arguments):
        experiments.append(_boxed_experiment(arguments, train, validation, reference))
    try:
        return [with_counts(each) for each in experiments]
    except AbsentClassError as problem:
        raise CountsError(f"{problem.finding}; generate more scenes (--scenes)") from problem


def _demo(arguments: argparse.Namespace) -> int:
    from ..experiments.experiment import run_files
    from ..experiments.sweep import SWEEP_FILES, SweepError

    folder, files = run_folder(arguments), dict[Path, Sequence[str]]()
    finish = None
    if _cascade_loss(arguments):
        files[folder / _CASCADE] = SWEEP_FILES
        finish = _measure_cascade
    if losses := _boxed_losses(arguments):
        files[folder / _BOXES] = run_files(losses)
    if losses := _exact_losses(arguments):
        files[folder] = run_files(losses)
    try:
        return run_experiments(arguments, _experiments, files, finish)
    except SweepError as problem:
        return fail(problem)
