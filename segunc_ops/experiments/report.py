"""The result table of an experiment, as Markdown and JSON."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import build_info
from .evaluation import Evaluation
from .label_correction import LabelCorrection
from .losses import loss_title
from .output_files import whole_file
from .timing import LossTime
from .training import History, TrainingConfig
from .wording import number_of


@dataclass(frozen=True)
class LossResult:
    """All that one loss's training gave."""

    config: TrainingConfig
    history: History
    evaluation: Evaluation
    time: LossTime
    correction: LabelCorrection | None = None


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned rows; the first is the heading, its first column left and the others right."""
    rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(aligned)} |"

    rule = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return [line(rows[0]), line(rule), *(line(row) for row in rows[1:])]


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f} ms"


def _ratio(native: float | None, reference: float | None) -> str:
    return "-" if native is None or reference is None else f"{reference / native:.1f}x"


FIGURES: tuple[tuple[str, Callable[[Evaluation], str]], ...] = (
    ("mIoU, %", lambda e: _percent(e.mean_iou)),
    ("pixel accuracy, %", lambda e: _percent(e.pixel_accuracy)),
    ("Dice error", lambda e: _number(e.dice_error)),
    ("ECE (15 bins)", lambda e: _number(e.calibration_error)),
    ("Brier score", lambda e: _number(e.brier_score)),
    ("negative log-likelihood", lambda e: _number(e.negative_log_likelihood)),
    ("PAvPU, %", lambda e: _percent(e.pavpu)),
    ("AUROC of errors by uncertainty", lambda e: _number(e.error_auroc)),
    ("area under risk-coverage", lambda e: _number(e.aurc)),
    ("mean uncertainty", lambda e: _number(e.mean_uncertainty)),
)
"""The rows of a summary, and how an evaluation fills them."""


def evaluation_table(evaluation: Evaluation) -> str:
    """Markdown: classes, and the summary, of a single evaluation."""
    classes = [["class", "IoU", "uncertainty"]]
    for name, iou, uncertainty in zip(
        evaluation.class_names, evaluation.iou, evaluation.class_uncertainty, strict=True
    ):
        classes.append([name, _percent(iou), _number(uncertainty)])
    summary = [["", "value"], *([title, text(evaluation)] for title, text in FIGURES)]
    threshold = evaluation.uncertainty_threshold
    note = (
        f"{evaluation.num_pixels:,} labelled pixels, each predicted by the mean of "
        f"{evaluation.num_samples}; uncertainty: standard deviation of the predicted class's "
        "probability, by true class. PAvPU's uncertainty threshold: "
        f"{'none was given' if threshold is None else _number(threshold)}."
    )
    blocks = [markdown(classes), markdown(summary), [note]]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def device_name(device: str) -> str:
    """What the device is called, for a reader of the table."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    return f"{platform.machine()} CPU, {number_of(torch.get_num_threads(), 'thread')}"


def _about_members(results: Mapping[str, LossResult]) -> str:
    """What the column of a loss weighted by members is of: one network, as are the others."""
    notes = []
    for name, result in results.items():
        config, title = result.config, loss_title(name)
        if config.takes_masks:
            notes.append(
                f"{title}: weighted by the masks {config.masks} of an ensemble trained before. "
            )
        elif config.num_models > 1:
            notes.append(f"{title}: the first of {config.members} members trained together. ")
    return "".join(notes)


def _about_counts(results: Mapping[str, LossResult]) -> str:
    """What losses were made of that follow from how often classes occur."""
    notes = []
    for name, result in results.items():
        if (unit := result.config.counted) is not None:
            notes.append(f"{loss_title(name)}: by the {unit} of each class. ")
    return "".join(notes)


def _about_boxes(results: Mapping[str, LossResult]) -> str:
    """Which labels were trained on, where they are no exact ones."""
    exact = next(iter(results.values())).config.exact
    if exact is None:
        return ""
    return (
        "Trained on bounding boxes of the labels' components, but on exact labels of "
        f"{100 * exact:g} % of the images; evaluated on exact labels. "
    )


def _label_table(results: Mapping[str, LossResult]) -> list[str]:
    """How right boxes are, and what networks have made of them."""
    rows: list[list[str]] = []
    for name, result in results.items():
        found = result.correction
        if found is None:
            continue
        images = number_of(found.num_images, "training image")
        rows = [
            [f"labels of {images} with boxes", "boxes", f"replaced by {loss_title(name)}"],
            ["mIoU, %", _percent(found.label_miou), _percent(found.replaced_miou)],
            ["wrong pixels, %", _percent(found.wrong), "-"],
            ["of the wrong ones corrected, %", "-", _percent(found.corrected)],
            ["of the right ones made wrong, %", "-", _percent(found.made_wrong)],
        ]
    return markdown(rows) if rows else []


def _about_runs(results: Mapping[str, LossResult]) -> str:
    """What else a reader should know of how the networks were trained."""
    notes = []
    for name, result in results.items():
        for step, before in result.history.extended:
            notes.append(
                f"{loss_title(name)}: extended from {number_of(before, 'step')} at step {step}. "
            )
        if skipped := result.history.unlabelled_steps:
            batches = number_of(result.config.steps, "batch", "batches")
            notes.append(
                f"{loss_title(name)}: {skipped} of {batches} had no labelled pixel and "
                f"{'was' if skipped == 1 else 'were'} left out. "
            )
    return "".join(notes)


def format_table(results: Mapping[str, LossResult], class_shares: Sequence[float]) -> str:
    """Markdown: classes, summary and time of the loss, a column per loss.

    Args:
        results: by the loss's name; at least one.
        class_shares: share of each class among the labelled training pixels.
    """
    names = list(results)
    titles = [loss_title(name) for name in names]
    evaluations = [result.evaluation for result in results.values()]
    first = next(iter(results.values()))

    per_class = [
        [
            "class",
            "% of pixels",
            *(f"IoU {title}" for title in titles),
            *(f"uncertainty {title}" for title in titles),
        ]
    ]
    for index, name in enumerate(first.evaluation.class_names):
        per_class.append(
            [
                name,
                f"{100 * class_shares[index]:.2f}",
                *(_percent(evaluation.iou[index]) for evaluation in evaluations),
                *(_number(evaluation.class_uncertainty[index]) for evaluation in evaluations),
            ]
        )

    summary = [["", *titles]]
    summary += [[title, *map(text, evaluations)] for title, text in FIGURES]
    summary.append(
        ["training, s", *(f"{result.history.seconds:.0f}" for result in results.values())]
    )

    shape, size = (" x ".join(map(str, each)) for each in (first.time.shape, first.time.size))
    timing = [
        [f"time on logits {shape}, labels {size}", "segunc_ops", "PyTorch reference", "ratio"]
    ]
    for title, result in zip(titles, results.values(), strict=True):
        time = result.time
        timing.append(
            [
                f"{title} forward + backward",
                _milliseconds(time.step),
                _milliseconds(time.reference_step),
                _ratio(time.step, time.reference_step),
            ]
        )
        if time.statistics is not None:
            timing.append(
                [
                    f"{title} statistics of {time.num_samples} samples",
                    _milliseconds(time.statistics),
                    _milliseconds(time.reference_statistics),
                    _ratio(time.statistics, time.reference_statistics),
                ]
            )

    config = first.config
    kernels = build_info()["cuda" if torch.device(config.device).type == "cuda" else "cpu"]
    note = (
        f"{number_of(config.steps, 'step')} of {config.batch_size} crops of {config.crop[0]} x "
        f"{config.crop[1]}, {config.optimizer} with learning rate {config.learning_rate:g}, seed "
        f"{config.seed}; evaluated on the mean of {first.evaluation.num_samples} Monte-Carlo "
        "dropout samples over "
        f"{first.evaluation.num_pixels:,} labelled pixels; uncertainty: standard deviation of the "
        f"predicted class's probability, by true class; PAvPU by its mean over training images. "
        f"{_about_boxes(results)}{_about_members(results)}{_about_counts(results)}{_about_runs(results)}"
        f"{device_name(config.device)}, torch {torch.__version__}, kernels: {kernels}; "
        "times are medians."
    )
    labels = _label_table(results)
    blocks = [markdown(per_class), markdown(summary), *([labels] if labels else [])]
    blocks += [markdown(timing), [note]]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def finite(value: Any) -> Any:
    """NaN and infinity have no place in JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(path) as file:
        # An argument that is no text in the console's encoding holds lone surrogates.
        file.write(text.encode("utf-8", "backslashreplace"))


def write_tables(
    results: Mapping[str, LossResult], class_shares: Sequence[float], folder: Path
) -> str:
    """Writes ``table.md`` and ``table.json`` into `folder`; returns the Markdown.

    Raises:
        OutputError: they cannot be written.
    """
    table = format_table(results, class_shares)
    device = next(iter(results.values())).config.device
    record = {
        "device": device_name(device),
        "build": build_info(),
        "class_shares": list(class_shares),
        "results": {
            name: {
                "config": asdict(result.config),
                "evaluation": result.evaluation.to_dict(),
                "time": asdict(result.time),
                "history": asdict(result.history),
                **({} if result.correction is None else {"labels": asdict(result.correction)}),
            }
            for name, result in results.items()
        },
    }
    write_text(folder / "table.md", table)
    write_text(folder / "table.json", json.dumps(finite(record), indent=2) + "\n")
    return table
