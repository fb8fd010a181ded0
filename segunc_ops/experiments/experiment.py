"""Trains several losses alike, evaluates them and writes table and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import build_info
from .._variations import PixelAdaptive
from ..functional import class_sizes, component_mean, connected_components
from ..losses import PixelAdaptiveCrossEntropyLoss
from ..reference.cross_entropy import modulation_factor
from .boxed import BoxedDataset
from .class_counts import (
    ClassCounts,
    CountsError,
    check_classes,
    count_classes,
    counts_apply,
    counts_from_dict,
    read_counts,
)
from .class_statistics import describe_no_effect, write_counts
from .datasets import EvenlySpaced, SegmentationDataset, class_shares, collate, normalize
from .evaluation import (
    Autocast,
    Evaluation,
    Predict,
    evaluate,
    predict_by_dropout,
    predict_by_ensemble,
    seeded,
)
from .label_correction import (
    LabelCorrection,
    label_panels,
    measure_correction,
    most_wrong_images,
)
from .losses import LOSSES, build_loss, loss_title
from .output_files import remove_partial_files, try_output, try_room
from .plots import (
    Panel,
    plot_curves,
    plot_label_panels,
    plot_learning_curves,
    plot_panels,
    scale_limits,
)
from .report import LossResult, evaluation_table, finite, write_tables, write_text
from .timing import LossTime, time_loss
from .training import (
    CheckpointError,
    Trainer,
    TrainingConfig,
    check_resumable,
    checkpoint_bytes,
    identify_data,
    read_checkpoint,
)

NUM_PANELS = 4
MAX_PANEL_CANDIDATES = 100
# The mean uncertainty over the training images, PAvPU's threshold, is taken over so many of them.
MAX_REFERENCE_IMAGES = 64


EVALUATION_FILES = ("metrics.md", "metrics.json", "curves.png", "panels.png")
"""What :func:`evaluate_checkpoints` writes."""


def checkpoint_path(folder: Path, loss: str) -> Path:
    """Where an experiment in `folder` keeps the state of the training by `loss`."""
    return folder / f"checkpoint-{loss}.pt"


def _panels_path(folder: Path, loss: str) -> Path:
    return folder / f"panels-{loss}.png"


def _labels_path(folder: Path, loss: str) -> Path:
    return folder / f"labels-{loss}.png"


def counts_path(folder: Path) -> Path:
    """Where an experiment in `folder` keeps how often classes occur, if one of its losses needs it.

    No result: it stays for further losses on the same label maps.
    """
    return folder / "class-counts.json"


def run_files(losses: Sequence[str]) -> list[str]:
    """What an experiment with these losses writes to its folder."""
    of_losses = [
        path_of(Path(), loss).name for loss in losses for path_of in (checkpoint_path, _panels_path)
    ]
    of_labels = [
        _labels_path(Path(), loss).name for loss in losses if LOSSES[loss].of_distributions
    ]
    return [*of_losses, *of_labels, "learning-curves.png", "table.md", "table.json"]


@dataclass(frozen=True)
class Experiment:
    """Which losses are compared, on what, and where the results go.

    ``config.loss`` is replaced by each of ``losses`` in turn; ``eval_samples`` is S of the
    evaluation; ``folder`` gets ``table.md``, ``table.json``, the PNGs and a checkpoint per loss.
    ``checkpoints`` are what :func:`read_checkpoints` found to be resumed; None reads them.
    ``reference`` has the images whose mean uncertainty is PAvPU's threshold; None takes those that
    are trained on.
    """

    config: TrainingConfig
    losses: Sequence[str]
    train: SegmentationDataset
    validation: SegmentationDataset
    folder: Path
    eval_samples: int = 10
    resume: bool = False
    progress: bool = True
    checkpoints: Mapping[str, dict[str, Any]] | None = None
    reference: SegmentationDataset | None = None

    def checkpoint(self, loss: str) -> Path:
        """Where the training by `loss` keeps its state."""
        return checkpoint_path(self.folder, loss)


def read_checkpoints(folder: Path, losses: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the runs in a folder have left to go on from, by their loss.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    paths = {loss: checkpoint_path(folder, loss) for loss in losses}
    return {loss: read_checkpoint(path) for loss, path in paths.items() if path.is_file()}


def recorded_steps(folder: Path, checkpoints: Mapping[str, dict[str, Any]]) -> int | None:
    """How many steps runs are to have; None if there are none.

    Args:
        folder: of the runs, for messages.
        checkpoints: as :func:`read_checkpoints` gives them.

    Raises:
        CheckpointError: the runs have different numbers.
    """
    steps = {loss: state["config"]["steps"] for loss, state in checkpoints.items()}
    if len(set(steps.values())) > 1:
        told = ", ".join(
            f"{checkpoint_path(folder, loss).name} {number}" for loss, number in steps.items()
        )
        raise CheckpointError(
            f"{folder}: its runs have different numbers of steps ({told}); pass "
            "--steps, or one --loss"
        )
    return next(iter(steps.values()), None)


def _known_counts(
    experiment: Experiment, checkpoints: Mapping[str, dict[str, Any]]
) -> ClassCounts | None:
    """Counts that need not be made again: those of a run that goes on, else of the same data.

    Raises:
        CheckpointError: the run that goes on has counts of other classes.
    """
    for loss in experiment.losses:
        written = checkpoints.get(loss, {"config": {}})["config"].get("counts")
        if written is not None and LOSSES[loss].needs is not None:
            try:
                counts = counts_from_dict(written)
                check_classes(counts, experiment.train)
            except CountsError as problem:
                raise CheckpointError(
                    f"{experiment.checkpoint(loss)}: was trained with other counts ({problem})"
                ) from None
            return counts
    path, connectivity = counts_path(experiment.folder), experiment.config.connectivity
    if path.is_file():
        try:
            counts = read_counts(path)
        except CountsError:
            return None
        if counts_apply(counts, experiment.train, connectivity):
            return counts
    return None


def with_counts(experiment: Experiment) -> Experiment:
    """The experiment with how often classes occur, where one of its losses needs it.

    Unless they are given, they are those of the run that is resumed, or those that an earlier one
    in the same folder has left of the same label maps, or are counted there and left.

    Raises:
        CheckpointError: a checkpoint that is to be resumed cannot be read, or its counts are of
            other classes.
        CountsError: a class has none of what a loss needs, or counts are of other classes.
        DatasetError: a label map cannot be used.
        OutputError: the folder cannot be written to.
    """
    configs = [replace(experiment.config, loss=loss) for loss in experiment.losses]
    if all(config.counted is None for config in configs):
        return experiment
    counts, train = experiment.config.counts, experiment.train
    if counts is None:
        checkpoints = experiment.checkpoints or {}
        if experiment.resume and experiment.checkpoints is None:
            checkpoints = read_checkpoints(experiment.folder, experiment.losses)
            experiment = replace(experiment, checkpoints=checkpoints)
        counts = _known_counts(experiment, checkpoints)
    if counts is None:
        with tqdm(
            total=len(train),
            desc="count classes",
            unit="image",
            disable=not experiment.progress,
            dynamic_ncols=True,
        ) as bar:
            counts = count_classes(
                train, connectivity=experiment.config.connectivity, progress=bar.update
            )
        path = counts_path(experiment.folder)
        try_output(path.parent, [path.name])
        remove_partial_files(path.parent, [path.name])
        write_counts(counts, path)
    check_classes(counts, train)
    for config in configs:
        build_loss(config.loss, config, train.ignore_index, counts)
    return replace(experiment, config=replace(experiment.config, counts=counts))


def count_warnings(experiment: Experiment) -> list[str]:
    """What a user should know of losses that counts change nothing of."""
    warnings = []
    for loss in experiment.losses:
        config = replace(experiment.config, loss=loss)
        if config.counted is None or config.counts is None:
            continue
        weight = build_loss(loss, config, experiment.train.ignore_index, config.counts).weight
        if isinstance(weight, torch.Tensor):
            problem = describe_no_effect(weight, config.counts.of(config.counted), config.counted)
            warnings += [f"{loss}: {problem}"] if problem else []
    return warnings


def _resumed(experiment: Experiment) -> Mapping[str, dict[str, Any]]:
    """What is resumed; refuses what cannot be before the first training, not after hours of it."""
    if not experiment.resume:
        return {}
    checkpoints = experiment.checkpoints
    if checkpoints is None:
        checkpoints = read_checkpoints(experiment.folder, experiment.losses)
    data = identify_data(experiment.train, experiment.validation)
    for loss, state in checkpoints.items():
        config = replace(experiment.config, loss=loss)
        check_resumable(experiment.checkpoint(loss), state, config, data)
    return checkpoints


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _check_ranks(experiment: Experiment) -> None:
    """Raises where ranks would train, and write, the same network each, or count classes for it."""
    configs = [replace(experiment.config, loss=loss) for loss in experiment.losses]
    alone = [config.loss for config in configs if config.num_models == 1]
    if alone and _num_ranks() > 1:
        raise ValueError(
            f"losses: expected those of members that train together on {_num_ranks()} ranks, got "
            f"{', '.join(alone)}, which trains one network; run it in a single process"
        )


def _try_checkpoints(experiment: Experiment, resumed: Mapping[str, dict[str, Any]]) -> None:
    """Tries whether the checkpoints that are not there yet fit, and a new one beside an old one."""
    num_classes = len(experiment.train.class_names)
    files = {
        loss: (
            experiment.checkpoint(loss),
            checkpoint_bytes(replace(experiment.config, loss=loss), num_classes),
        )
        for loss in experiment.losses
    }
    missing = [file for loss, file in files.items() if loss not in resumed]
    try_room([*missing, max(files.values(), key=lambda file: file[1])])


def _train(experiment: Experiment, loss: str, state: dict[str, Any] | None) -> Trainer:
    trainer = Trainer(
        replace(experiment.config, loss=loss),
        experiment.train,
        experiment.validation,
        experiment.checkpoint(loss),
    )
    if state is not None:
        trainer.resume(state)
    trainer.fit(progress=experiment.progress)
    return trainer


def _evaluate(experiment: Experiment, trainer: Trainer) -> Evaluation:
    """As `segunc eval` does, in batches of the same size, hence with the same dropout masks."""
    config = trainer.config
    reference = EvenlySpaced(experiment.reference or experiment.train, MAX_REFERENCE_IMAGES)
    with tqdm(
        total=len(reference) + len(experiment.validation),
        desc=f"evaluate {config.loss}",
        unit="image",
        disable=not experiment.progress,
        dynamic_ncols=True,
    ) as bar:
        evaluation, _ = evaluate(
            predict_by_dropout(trainer.model, experiment.eval_samples),
            experiment.validation,
            device=trainer.device,
            num_samples=experiment.eval_samples,
            reference=reference,
            seed=config.seed,
            channels_last=config.channels_last,
            autocast=config.autocast,
            progress=bar.update,
        )
    return evaluation


def _time(trainer: Trainer) -> LossTime:
    """Times the loss on a training batch; the statistics it needs come from the model."""
    config = trainer.config
    # Training saw at least one.
    batch = next(filter(trainer.is_labelled, trainer.batches.iterate(0, config.steps)))
    images, target, mask, bootstrap = trainer.inputs(batch)
    for model in trainer.models:
        model.train()
    with torch.no_grad(), config.autocast():
        logits, statistics = trainer.forward(images, alone=True)
    return time_loss(
        partial(trainer.loss, mask=mask, bootstrap=bootstrap),
        logits[0],
        target,
        statistics,
        num_samples=config.members
        if config.trained_loss.weighted_by == "members"
        else config.samples,
        repeats=3 if config.trained_loss.of_distributions else 9,
    )


def telling_images(dataset: SegmentationDataset) -> list[int]:
    """The image with the most classes in each part of the dataset; a video's frames are alike."""

    def num_classes(index: int) -> int:
        label = dataset.label(index)
        return len(np.unique(label[label != dataset.ignore_index]))

    size = len(dataset)
    candidates = np.linspace(0, size - 1, min(size, MAX_PANEL_CANDIDATES)).astype(int)
    parts = np.array_split(candidates, min(NUM_PANELS, size))
    return [max(part.tolist(), key=num_classes) for part in parts]


def adaptive_weights(
    modulation: PixelAdaptive, probabilities: Tensor, target: Tensor, ignore_index: int
) -> Tensor:
    """What PAT (Do et al. 2024, equations 4 and 5) weights the cross-entropy of each pixel by.

    beta / S, with S the number of pixels of its class in the image, times the number of all its
    labelled pixels: a mean over pixels weights each by 1.

    Args:
        modulation: PAT's temperature, curve and whether it divides by S.
        probabilities: (N, C, H, W).
        target: (N, H, W).
        ignore_index: label of pixels without a weight, which are NaN.
    """
    labelled = target != ignore_index
    index = torch.where(labelled, target, 0).long()[:, None]
    weight = modulation_factor(modulation, probabilities.gather(1, index).log())
    if modulation.size_normalized:
        sizes = class_sizes(target, probabilities.shape[1], ignore_index=ignore_index)
        own = sizes[..., None, None].expand_as(probabilities).gather(1, index)
        weight = weight * sizes.sum(1)[:, None, None, None] / own
    return torch.where(labelled, weight[:, 0], torch.nan)


def make_panels(
    predict: Predict,
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    seed: int = 0,
    channels_last: bool = False,
    autocast: Autocast = nullcontext,
    modulation: PixelAdaptive | None = None,
) -> list[Panel]:
    """Pictures of the telling images of a dataset, with the components of their labels.

    Args:
        predict: makes the predictions, with their mean.
        dataset: images and labels.
        device: of the model.
        seed: of the dropout masks.
        channels_last: layout of the images.
        autocast: context of the forward passes.
        modulation: of the training by PAT, whose weights are then shown too.
    """
    panels = []
    with seeded(seed, device):
        for index in telling_images(dataset):
            sample = dataset[index]
            batch = collate([sample])
            with autocast():
                statistics = predict(normalize(batch.images, device, channels_last))
            label, ignored = batch.target.to(device), dataset.ignore_index
            components, _ = connected_components(label, ignore_index=ignored)
            instance = component_mean(statistics.entropy, label, ignore_index=ignored)
            weight = None
            if modulation is not None:
                assert statistics.mean is not None
                weights = adaptive_weights(modulation, statistics.mean, label, ignored)
                weight = weights[0].cpu().numpy()
            panels.append(
                Panel(
                    image=sample.image,
                    label=sample.label,
                    prediction=statistics.prediction[0].cpu().numpy(),
                    uncertainty=statistics.std[0].cpu().numpy(),
                    components=components[0].cpu().numpy(),
                    instance_uncertainty=instance[0].cpu().numpy(),
                    weight=weight,
                )
            )
    return panels


def _panels(experiment: Experiment, trainer: Trainer) -> list[Panel]:
    config, criterion = trainer.config, trainer.criterion
    return make_panels(
        predict_by_dropout(trainer.model, experiment.eval_samples),
        experiment.validation,
        device=trainer.device,
        seed=config.seed,
        channels_last=config.channels_last,
        autocast=config.autocast,
        modulation=criterion.modulation
        if isinstance(criterion, PixelAdaptiveCrossEntropyLoss)
        else None,
    )


def _told(correction: LabelCorrection | None) -> str:
    if correction is None or correction.corrected is None or correction.made_wrong is None:
        return ""
    return (
        f"; of the wrong ones {100 * correction.corrected:.1f} % are corrected, of the right ones "
        f"{100 * correction.made_wrong:.1f} % made wrong"
    )


def _label_pictures(experiment: Experiment, trainer: Trainer) -> LabelCorrection | None:
    """Draws what the network has made of the labels, and measures it where they are boxes."""
    train, loss = experiment.train, trainer.config.loss
    correction = None
    indices: list[int] = []
    if isinstance(train, BoxedDataset):
        correction = measure_correction(trainer, train)
        indices = most_wrong_images(train, NUM_PANELS)
    plot_label_panels(
        label_panels(trainer, indices or telling_images(train)),
        train.class_names,
        _labels_path(experiment.folder, loss),
        ignore_index=train.ignore_index,
        title=f"{loss_title(loss)}: labels of training images{_told(correction)}",
    )
    return correction


def evaluate_checkpoints(
    models: Sequence[nn.Module],
    dataset: SegmentationDataset,
    folder: Path,
    *,
    device: torch.device,
    num_samples: int = 10,
    reference: SegmentationDataset | None = None,
    threshold: float | None = None,
    seed: int = 0,
    title: str = "",
    progress: bool = True,
) -> str:
    """Evaluates trained networks, also on other data than they were trained on.

    Args:
        models: one, which is sampled by Monte-Carlo dropout, or the members of an ensemble.
        dataset: what they are evaluated on.
        folder: gets ``metrics.md``, ``metrics.json``, ``curves.png`` and ``panels.png``.
        device: where.
        num_samples: S of Monte-Carlo dropout.
        reference: training images, whose mean uncertainty is PAvPU's threshold.
        threshold: PAvPU's; by default that of `reference`.
        seed: of the dropout masks.
        title: heading of the pictures.
        progress: whether to show a progress bar.

    Returns:
        The table, as written to ``metrics.md``.

    Raises:
        OutputError: `folder` cannot be written to, which is tried first.
    """
    try_output(folder, EVALUATION_FILES)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder, EVALUATION_FILES)
    models = [model.to(device) for model in models]
    if len(models) > 1:
        predict, num_samples = predict_by_ensemble(models), len(models)
    else:
        predict = predict_by_dropout(models[0], num_samples)
    if threshold is not None:
        reference = None
    if reference is not None:
        reference = EvenlySpaced(reference, MAX_REFERENCE_IMAGES)
    total = len(dataset) + (0 if reference is None else len(reference))
    with tqdm(
        total=total, desc="evaluate", unit="image", disable=not progress, dynamic_ncols=True
    ) as bar:
        evaluation, metrics = evaluate(
            predict,
            dataset,
            device=device,
            num_samples=num_samples,
            reference=reference,
            threshold=threshold,
            seed=seed,
            progress=bar.update,
        )
    table = evaluation_table(evaluation)
    write_text(folder / "metrics.md", table)
    record = {"build": build_info(), "evaluation": evaluation.to_dict()}
    write_text(folder / "metrics.json", json.dumps(finite(record), indent=2) + "\n")
    plot_curves(metrics, folder / "curves.png", title)
    plot_panels(
        make_panels(predict, dataset, device=device, seed=seed),
        dataset.class_names,
        folder / "panels.png",
        ignore_index=dataset.ignore_index,
        title=title,
    )
    return table


def run(experiment: Experiment) -> str:
    """Runs the experiment.

    Where torch.distributed is initialised every rank runs it; the first does all but the training
    of the other ranks' members.

    Returns:
        The table, as written to ``table.md``; nothing on ranks that are not the first.

    Raises:
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP; what was trained is in the checkpoints.
        CheckpointError: `resume` met a checkpoint of another experiment or other data.
        CountsError: a class has none of what a loss needs, or counts are of other classes.
        DatasetError: an image or label map cannot be used, or no batch had a labelled pixel.
        DivergedError: a loss is no longer finite.
        OutputError: the folder cannot be written to, which is tried first.
        ValueError: there are several ranks, and a loss that trains one network.
    """
    _check_ranks(experiment)
    experiment = with_counts(experiment)
    resumed = _resumed(experiment)
    if _num_ranks() > 1 and dist.get_rank() > 0:
        for loss in experiment.losses:
            _train(experiment, loss, resumed.get(loss))
        return ""
    written = run_files(experiment.losses)
    try_output(experiment.folder, written)
    experiment.folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(experiment.folder, written)
    if not experiment.resume:
        # An older run's results must not pass for this one's if it is interrupted.
        for name in written:
            (experiment.folder / name).unlink(missing_ok=True)
    _try_checkpoints(experiment, resumed)
    names = experiment.train.class_names
    results: dict[str, LossResult] = {}
    pictures: dict[str, list[Panel]] = {}
    for loss in experiment.losses:
        trainer = _train(experiment, loss, resumed.get(loss))
        results[loss] = LossResult(
            config=trainer.config,
            history=trainer.history,
            evaluation=_evaluate(experiment, trainer),
            time=_time(trainer),
            correction=_label_pictures(experiment, trainer)
            if trainer.config.trained_loss.of_distributions
            else None,
        )
        pictures[loss] = _panels(experiment, trainer)
    limits = scale_limits([panel for panels in pictures.values() for panel in panels])
    for name, panels in pictures.items():
        evaluation = results[name].evaluation
        plot_panels(
            panels,
            names,
            _panels_path(experiment.folder, name),
            ignore_index=experiment.train.ignore_index,
            title=f"{loss_title(name)}: mIoU {100 * evaluation.mean_iou:.1f} %, "
            f"ECE {evaluation.calibration_error:.3f}, PAvPU {100 * (evaluation.pavpu or 0):.1f} %",
            limits=limits,
        )
    plot_learning_curves(
        {loss: result.history for loss, result in results.items()},
        experiment.folder / "learning-curves.png",
    )
    return write_tables(results, class_shares(experiment.train), experiment.folder)
