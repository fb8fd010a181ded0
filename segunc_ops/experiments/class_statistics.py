"""What follows from how often classes occur: weights, margins and priors; table, picture, file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import build_info
from ..functional import class_balanced_weights, inverse_frequency_weights
from ..functional.class_weights import margins
from .class_counts import UNITS, ClassCounts, CountsError, counts_to_dict
from .losses import BETA, MAX_MARGIN, Unit
from .output_files import remove_partial_files, try_output
from .plots import plot_class_counts
from .report import finite, markdown, write_text
from .wording import number_of

STATISTICS_FILES = ("stats.md", "stats.json", "stats.png")
"""What :func:`write_statistics` writes."""

# Weights of mean 1 that differ less make no difference to a training.
_LEVEL = 1e-3


@dataclass(frozen=True)
class Derived:
    """What a loss is made of that follows from counts."""

    title: str
    """Heading of its column."""
    unit: Unit
    """What is counted."""
    losses: str
    """Which need it, for messages."""
    values: tuple[float, ...] | None
    """``(C,)``; None where a class has no counts."""
    problem: str | None = None
    """Why there are none, or why they change nothing."""


def describe_no_effect(weights: Tensor, counts: Sequence[int], unit: Unit) -> str | None:
    """Says that class weights are alike though counts are not, if it is so.

    Args:
        weights: ``(C,)``, of mean 1.
        counts: that they follow from.
        unit: what was counted.
    """
    if len(set(counts)) == 1 or float(weights.max() - weights.min()) > _LEVEL:
        return None
    least, most = min(counts), max(counts)
    return (
        f"the weights of all classes are 1 for {least:,} to {most:,} {unit} and change nothing: "
        "beta^n is 0 for all of them. Leave --beta out, or count what is rarer (--balanced-by "
        "images or instances)"
    )


def derive(
    counts: ClassCounts, *, beta: float | None = None, max_margin: float = MAX_MARGIN.default
) -> list[Derived]:
    """Weights, margins and priors, as the losses make them.

    Args:
        counts: of each class.
        beta: of class-balanced weights; None is (n - 1) / n.
        max_margin: LDAM's.
    """

    def balanced(values: Tensor) -> Tensor:
        return class_balanced_weights(values, beta=beta)

    columns: list[tuple[str, Unit, str, Callable[[Tensor], Tensor]]] = [
        ("inverse frequency", "pixels", "inverse frequency", inverse_frequency_weights),
        *((f"CB, {unit}", unit, f"cb and cbfocal by {unit}", balanced) for unit in UNITS),
        ("LDAM margin", "pixels", "ldam", lambda n: margins(n, max_margin)),
        ("BMS log prior", "pixels", "bms", lambda n: (n / n.sum()).log()),
    ]
    derived = []
    for title, unit, losses, formula in columns:
        numbers = counts.of(unit)
        try:
            values = formula(torch.tensor(counts.of_every_class(unit, losses), dtype=torch.float64))
        except CountsError as problem:
            derived.append(Derived(title, unit, losses, None, str(problem)))
            continue
        level = describe_no_effect(values, numbers, unit) if title.startswith("CB") else None
        derived.append(Derived(title, unit, losses, tuple(values.tolist()), level))
    return derived


def statistics_table(
    counts: ClassCounts, derived: Sequence[Derived], *, beta: float | None, max_margin: float
) -> str:
    """Markdown: how often each class occurs, and what follows."""
    labelled = sum(counts.pixels)
    rows = [["class", "pixels", "% of pixels", "images", "instances", "pixels an instance"]]
    for index, name in enumerate(counts.class_names):
        pixels, images, instances = (counts.of(unit)[index] for unit in UNITS)
        rows.append(
            [
                name,
                f"{pixels:,}",
                f"{100 * pixels / max(1, labelled):.3f}",
                f"{images:,}",
                f"{instances:,}",
                f"{pixels / instances:,.0f}" if instances else "-",
            ]
        )
    made = [["class", *(each.title for each in derived)]]
    for index, name in enumerate(counts.class_names):
        made.append(
            [
                name,
                *("-" if each.values is None else f"{each.values[index]:.4g}" for each in derived),
            ]
        )
    note = (
        f"{number_of(counts.num_images, 'image')}, {labelled:,} labelled and "
        f"{number_of(counts.unlabelled, 'other pixel')}; instances: connected components of the "
        f"label maps, {counts.connectivity} neighbours. Weights have mean 1. CB: class-balanced, "
        f"beta {BETA.unset if beta is None else f'{beta:g}'}. LDAM: by pixels, the largest margin "
        f"{max_margin:g}. BMS: the logarithm of the share of pixels, which balanced softmax adds "
        "to logits."
    )
    blocks = [markdown(rows), markdown(made), [note]]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _record(counts: ClassCounts, **more: Any) -> str:
    record = {"build": build_info(), **more, **counts_to_dict(counts)}
    return json.dumps(finite(record), indent=2) + "\n"


def write_counts(counts: ClassCounts, path: Path) -> None:
    """Writes what :func:`segunc_ops.experiments.class_counts.read_counts` reads.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, _record(counts))


def write_statistics(
    counts: ClassCounts,
    derived: Sequence[Derived],
    folder: Path,
    *,
    beta: float | None = None,
    max_margin: float = MAX_MARGIN.default,
    title: str = "",
) -> str:
    """Writes ``stats.md``, ``stats.json`` and ``stats.png``.

    Args:
        counts: of each class.
        derived: what :func:`derive` makes of them by `beta` and `max_margin`.
        folder: of the files.
        beta: as there.
        max_margin: as there.
        title: heading of the picture.

    Returns:
        The table, as written to ``stats.md``.

    Raises:
        OutputError: they cannot be written.
    """
    try_output(folder, STATISTICS_FILES)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder, STATISTICS_FILES)
    table = statistics_table(counts, derived, beta=beta, max_margin=max_margin)
    write_text(folder / "stats.md", table)
    made = [
        {"title": each.title, "unit": each.unit, "values": each.values, "problem": each.problem}
        for each in derived
    ]
    record = _record(counts, beta=beta, max_margin=max_margin, derived=made)
    write_text(folder / "stats.json", record)
    plot_class_counts(
        {unit: counts.of(unit) for unit in UNITS},
        counts.class_names,
        folder / "stats.png",
        title,
    )
    return table
