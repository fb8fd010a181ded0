"""``segunc stats``: how often classes occur."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..experiments.losses import BETA, CONNECTIVITY, MAX_MARGIN
from .data import class_options, data_options, folder_dataset, given_class_names, say_notes
from .messages import note, say
from .options import parameter_options


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    stats = add_parser(
        "stats",
        usage="%(prog)s DIR [OPTION ...]",
        help="pixels, images and instances of each class; weights, margins and priors that follow",
        description="Counts the label maps of DIR, laid out as for `segunc train`: pixels, images "
        "and instances (connected components) of each class. Shows them with the class weights, "
        "margins and priors that losses for long tails make of them, and writes stats.md, "
        "stats.json, which `segunc train --counts` reads, and stats.png.",
    )
    stats.set_defaults(parser=stats, work=_stats, advice="the same command starts again")
    data = data_options(stats, positional=True)
    class_options(data)
    data.add_argument(
        "--split",
        choices=("train", "val", "all"),
        default="train",
        help="of DIR; all of its images if it has no train and val (default: train)",
    )
    parameter_options(stats.add_argument_group("instances"), [CONNECTIVITY])
    parameter_options(stats.add_argument_group("what follows"), [BETA, MAX_MARGIN])
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


def _stats(arguments: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from ..experiments.class_counts import count_classes
    from ..experiments.class_statistics import STATISTICS_FILES, derive, write_statistics
    from ..experiments.interruption import deferred_interrupt
    from ..experiments.output_files import try_output
    from ..experiments.ranks import ALONE

    folder = arguments.output
    try_output(folder, STATISTICS_FILES)
    if any((folder / name).exists() for name in STATISTICS_FILES) and not arguments.overwrite:
        arguments.parser.error(
            f"{folder} holds statistics already; pass --overwrite or another --output"
        )
    names = given_class_names(arguments)
    dataset = folder_dataset(arguments, arguments.split, arguments.classes, ALONE, names)
    say_notes(dataset)
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
    say(f"\n{table}")
    for each in derived:
        if each.problem is not None:
            absent = each.values is None
            note(f"warning: {each.problem if absent else f'{each.title}: {each.problem}'}")
    say(f"Written to {folder}: {', '.join(STATISTICS_FILES)}.")
    return 0
