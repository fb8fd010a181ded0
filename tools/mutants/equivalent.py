"""Mutants that change no result, and why: nobody can notice them.

They are known by their file and by the line that the change leads to, so they follow it wherever it
moves, and have to be judged anew when it changes.
"""

from __future__ import annotations

from .sources import Mutant

# By file: changed lines, white space aside, with the reason.
EQUIVALENT: dict[str, dict[str, str]] = {}


def reason_of(mutant: Mutant) -> str | None:
    return EQUIVALENT.get(mutant.file, {}).get(mutant.mutated)
