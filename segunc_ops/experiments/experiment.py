"""Trains several losses alike, evaluates them and writes table and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from ..sampling import sample_statistics
from .datasets import SegmentationDataset, class_shares, collate, normalize
from .evaluation import Evaluation, evaluate
from .plots import LOSS_TITLES, Panel, plot_learning_curves, plot_panels
from .report import LossResult, write_tables
from .timing import LossTime, time_loss
from .training import LossName, Trainer, TrainingConfig

NUM_PANELS = 4
MAX_PANEL_CANDIDATES = 100


@dataclass(frozen=True)
class Experiment:
    """Which losses are compared, on what, and where the results go.

    ``config.loss`` is replaced by each of ``losses`` in turn; ``eval_samples`` is S of the
    evaluation; ``folder`` gets ``table.md``, ``table.json``, the PNGs and a checkpoint per loss.
    """

    config: TrainingConfig
    losses: Sequence[LossName]
    train: SegmentationDataset
    validation: SegmentationDataset
    folder: Path
    eval_samples: int = 10
    resume: bool = False
    progress: bool = True

    def checkpoint(self, loss: LossName) -> Path:
        """Where the training by `loss` keeps its state."""
        return self.folder / f"checkpoint-{loss}.pt"


def _train(experiment: Experiment, loss: LossName) -> Trainer:
    trainer = Trainer(
        replace(experiment.config, loss=loss),
        experiment.train,
        experiment.validation,
        experiment.checkpoint(loss),
    )
    if experiment.resume:
        trainer.resume()
    trainer.fit(progress=experiment.progress)
    return trainer


def _evaluate(experiment: Experiment, trainer: Trainer) -> Evaluation:
    config = trainer.config
    with tqdm(
        total=len(experiment.validation),
        desc=f"evaluate {config.loss}",
        unit="image",
        disable=not experiment.progress,
        dynamic_ncols=True,
    ) as bar:
        return evaluate(
            trainer.model,
            experiment.validation,
            device=trainer.device,
            num_samples=experiment.eval_samples,
            batch_size=config.batch_size,
            seed=config.seed,
            channels_last=config.channels_last,
            autocast=config.autocast,
            progress=bar.update,
        )


def _time(trainer: Trainer) -> LossTime:
    """Times the loss on a training batch; the statistics it needs come from the model."""
    config = trainer.config
    batch = next(trainer.batches.iterate(0, 1))
    images, target, mask = trainer.inputs(batch)
    for model in trainer.models:
        model.train()
    with torch.no_grad(), config.autocast():
        logits, statistics = trainer.forward(images, alone=True)
    return time_loss(
        partial(trainer.loss, mask=mask),
        logits[0],
        target,
        statistics,
        num_samples=config.members if config.loss == "iu" else config.samples,
    )


def _telling_images(dataset: SegmentationDataset) -> list[int]:
    """The image with the most classes in each part of the dataset; a video's frames are alike."""

    def num_classes(index: int) -> int:
        label = dataset.label(index)
        return len(np.unique(label[label != dataset.ignore_index]))

    size = len(dataset)
    candidates = np.linspace(0, size - 1, min(size, MAX_PANEL_CANDIDATES)).astype(int)
    parts = np.array_split(candidates, min(NUM_PANELS, size))
    return [max(part.tolist(), key=num_classes) for part in parts]


def _panels(experiment: Experiment, trainer: Trainer, indices: Sequence[int]) -> list[Panel]:
    config = trainer.config
    trainer.model.eval()
    panels = []
    with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for index in indices:
            sample = experiment.validation[index]
            images = collate([sample]).images
            with config.autocast():
                statistics = sample_statistics(
                    trainer.model,
                    normalize(images, trainer.device, config.channels_last),
                    experiment.eval_samples,
                    batch_norm="running",
                )
            panels.append(
                Panel(
                    image=sample.image,
                    label=sample.label,
                    prediction=statistics.prediction[0].cpu().numpy(),
                    uncertainty=statistics.std[0].cpu().numpy(),
                )
            )
    return panels


def run(experiment: Experiment) -> str:
    """Runs the experiment.

    Where torch.distributed is initialised every rank runs it; the first does all but the training
    of the other ranks' members.

    Returns:
        The table, as written to ``table.md``; nothing on ranks that are not the first.

    Raises:
        KeyboardInterrupt: after Ctrl-C; what was trained is in the checkpoints.
        CheckpointError: `resume` met a checkpoint of another experiment.
        DivergedError: a loss is no longer finite.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
        for loss in experiment.losses:
            _train(experiment, loss)
        return ""
    experiment.folder.mkdir(parents=True, exist_ok=True)
    if not experiment.resume:
        # An older run's results must not pass for this one's if it is interrupted.
        for loss in experiment.losses:
            experiment.checkpoint(loss).unlink(missing_ok=True)
            (experiment.folder / f"panels-{loss}.png").unlink(missing_ok=True)
        for name in ("learning-curves.png", "table.md", "table.json"):
            (experiment.folder / name).unlink(missing_ok=True)
    names = experiment.train.class_names
    results: dict[str, LossResult] = {}
    pictures: dict[str, list[Panel]] = {}
    telling = _telling_images(experiment.validation)
    for loss in experiment.losses:
        trainer = _train(experiment, loss)
        results[loss] = LossResult(
            config=trainer.config,
            history=trainer.history,
            evaluation=_evaluate(experiment, trainer),
            time=_time(trainer),
        )
        pictures[loss] = _panels(experiment, trainer, telling)
    every = [panel.uncertainty.ravel() for panels in pictures.values() for panel in panels]
    limit = float(np.nanpercentile(np.concatenate(every), 99.5))
    for name, panels in pictures.items():
        evaluation = results[name].evaluation
        plot_panels(
            panels,
            names,
            experiment.folder / f"panels-{name}.png",
            ignore_index=experiment.train.ignore_index,
            title=f"{LOSS_TITLES[name]}: mIoU {100 * evaluation.mean_iou:.1f} %, "
            f"ECE {evaluation.calibration_error:.3f}",
            uncertainty_limit=limit,
        )
    plot_learning_curves(
        {loss: result.history for loss, result in results.items()},
        experiment.folder / "learning-curves.png",
    )
    return write_tables(results, class_shares(experiment.train), experiment.folder)
