"""Options that several commands have, and a check of theirs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..experiments.losses import Parameter
from .argument_types import MAX_SCALE, device_name, real, whole


def parameter_options(group: argparse._ArgumentGroup, parameters: Sequence[Parameter]) -> None:
    """An option for each parameter of a loss."""
    for each in parameters:
        option, kind, default = each.name.replace("_", "-"), each.type, each.default
        types = {float: real(each.minimum, each.maximum), int: whole(int(each.minimum))}
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


def device_option(group: argparse._ArgumentGroup) -> None:
    """What networks run on."""
    group.add_argument(
        "--device", type=device_name, default="cpu", help="cpu, cuda or cuda:N (default: cpu)"
    )


def samples_option(parser: argparse.ArgumentParser) -> None:
    """How often a single network is sampled."""
    parser.add_argument(
        "--samples",
        type=whole(2),
        default=10,
        metavar="S",
        help="Monte-Carlo dropout samples of a single network (default: 10)",
    )


def scale_option(group: argparse._ArgumentGroup) -> None:
    """The resolution of each network of a cascade."""
    group.add_argument(
        "--scale",
        type=real(0.01, MAX_SCALE),
        nargs="+",
        default=[],
        metavar="S",
        help="factor that each network resizes its images by, in their order (default: 1 for all)",
    )


def check_stride(
    arguments: argparse.Namespace, stride: tuple[int, int], block: tuple[int, int]
) -> None:
    """Refuses a --stride whose blocks leave pixels out."""
    if stride[0] > block[0] or stride[1] > block[1]:
        arguments.parser.error(
            f"argument --stride: expected at most the block size {block[0]}x{block[1]}, got "
            f"{stride[0]}x{stride[1]}"
        )
