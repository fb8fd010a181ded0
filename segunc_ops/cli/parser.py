"""The argument parser of ``segunc``, which its commands put together.

Each command is a file, with an ``add_command`` that adds its parser. That one sets, beside its
options, ``parser``: itself, which refuses wrong combinations; ``work``: what the parsed arguments
are passed to, and what returns the exit status; ``advice``: what the user reads after an
interruption, or None for a command that needs no extras and ends at once.
"""

from __future__ import annotations

import argparse

from . import demo, evaluate, info, masks, predict, stats, sweep, train

_COMMANDS = (demo, train, stats, masks, predict, evaluate, sweep, info)
"""In the order of the help."""


def build_parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="segunc",
        description="Uncertainty-aware semantic segmentation.",
        epilog="`segunc COMMAND --help` shows the options of a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add_command(commands.add_parser)
    return parser
