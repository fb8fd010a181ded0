"""What commands print: results, notes and why they end."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Prints at once: that standard output is full or closed must not come out at exit."""
    try:
        print(text, flush=True)
    except OSError as problem:
        # What it holds already would be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(problem.errno, problem.strerror, "standard output") from problem


def note(text: str) -> None:
    """Tells what the user may want to know, beside the results."""
    print(f"segunc: {text}", file=sys.stderr)


def fail(problem: object) -> int:
    """Tells in one line why a command ends, whatever the names in it hold; its exit status."""
    print(f"segunc: error: {problem}".replace("\n", "\\n"), file=sys.stderr)
    return 1
