"""``segunc info``: versions and what is built."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .. import build_info
from .messages import say


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    info = add_parser(
        "info",
        help="versions, instruction set, CUDA targets, what is loaded",
        description="Shows the versions of segunc_ops and torch, the instruction set that the CPU "
        "kernels use, the CUDA targets that were built, and which native libraries are loaded or "
        "why they are not: what a bug report needs.",
    )
    info.set_defaults(parser=info, work=_info, advice=None)


def _info(arguments: argparse.Namespace) -> int:
    for name, value in build_info().items():
        if isinstance(value, (list, tuple)):
            value = " ".join(map(str, value)) or None
        say(f"{name + ':':14}{'-' if value is None else value}")
    return 0
