"""What ``segunc`` runs: a command, and how it ends."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

from .messages import fail
from .parser import build_parser

_SIGNALLED = 128


def _run_command(arguments: argparse.Namespace) -> int:
    work: Callable[[argparse.Namespace], int] = arguments.work
    advice: str | None = arguments.advice
    if advice is None:
        return work(arguments)
    from ..experiments import MissingExtrasError, require_extras

    try:
        require_extras()
    except MissingExtrasError as problem:
        return fail(problem)
    from ..experiments.datasets import DatasetError
    from ..experiments.interruption import interrupting_signals

    try:
        with interrupting_signals():
            return work(arguments)
    except DatasetError as problem:
        return fail(problem)
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone, which SIGHUP tells of
            print(f"\nsegunc: interrupted; {advice}", file=sys.stderr)
        return _SIGNALLED + getattr(stop, "signum", signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit status: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM, 129 after
        SIGHUP. Wrong arguments exit with 2.
    """
    arguments = build_parser().parse_args(argv)
    # Closed by its caller, as `2>&-` does: progress and notes have nowhere to go.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # Messages say what matters; of a TIFF that lacks its end, others than its own values are read.
    warnings.filterwarnings("ignore", module=r"PIL\.|matplotlib")
    warnings.filterwarnings("error", "Truncated File Read", module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that cannot print a name shows its code points.
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run_command(arguments)
    except OSError as problem:
        named = problem.filename is not None
        return fail(f"{problem.filename}: {problem.strerror}" if named else problem)
    except MemoryError as problem:
        return fail(f"not enough memory ({problem}); a smaller --crop or --batch-size takes less")
