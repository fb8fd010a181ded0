"""``segunc masks``: an ensemble's uncertainty of each image, as files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..experiments.losses import COMPONENT_PARAMETERS
from ..experiments.wording import number_of
from .argument_types import whole
from .data import data_options, folder_dataset, labels_as_trained, say_notes
from .messages import fail, say
from .options import device_option, parameter_options


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    masks = add_parser(
        "masks",
        usage="%(prog)s --data DIR --members CHECKPOINT [CHECKPOINT ...] --output DIR [OPTION ...]",
        help="write an ensemble's uncertainty of each image, for `segunc train --loss iu --masks`",
        description="Writes a float32 TIFF for each image of DIR (laid out as for `segunc train`), "
        "called like it, in the same sub-folder: the mean of the ensemble's predictive entropy, in "
        "nats, over each pixel's component. The same command goes on where it was stopped; under "
        "torchrun the ranks share the work.",
    )
    masks.set_defaults(parser=masks, work=_masks, advice="the same command continues")
    data = data_options(masks, of_networks=True)
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
    parameter_options(
        masks.add_argument_group("components of --values instance"), COMPONENT_PARAMETERS
    )
    machine = masks.add_argument_group("machine")
    device_option(machine)
    machine.add_argument(
        "--workers", type=whole(1), default=1, help="images at a time (default: 1)"
    )


def _masks(arguments: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from ..experiments.masks import MaskError, MaskSettings, load_ensemble, write_masks
    from ..experiments.networks import agreed_class_names, trained_labels
    from ..experiments.output_files import try_output
    from ..experiments.ranks import RankError, ranks_of_environment
    from ..experiments.training import CheckpointError

    error = arguments.parser.error
    try:
        ranks = ranks_of_environment()
        try_output(arguments.output)
        members = load_ensemble(arguments.members)
        num_classes = next(iter(members.values())).num_classes
        trained = trained_labels(arguments.members)
        labels_as_trained(arguments, trained, ranks)
        names = agreed_class_names(trained.values())
        dataset = folder_dataset(arguments, arguments.split, num_classes, ranks, names)
        if ranks.first:
            say_notes(dataset)
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
        return fail(problem)
    of_rank = "" if ranks.size == 1 else f", share of rank {ranks.rank} of {ranks.size}"
    say(
        f"{number_of(count.written, 'mask')} written to {arguments.output}, {count.kept} kept"
        f"{of_rank}."
    )
    return 0
