"""Changes the kernels' sources at random, one thing at a time, and runs the native tests.

    python -m tools.mutants --seed 0 --count 200
    python -m tools.mutants --files 'scale/*' 'common/device/vector.h' --rooms scale

Needs the builds of `make native-tests NATIVE_TESTS=all`. A row per mutant: noticed by which build
and test, or survived. Known equivalent ones (equivalent.py) are left out.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .equivalent import reason_of
from .sources import Mutant
from .workshop import ROOMS, Workshop, all_mutants

CSRC = Path(__file__).resolve().parents[2] / "csrc"
STATUSES = ("noticed", "survived", "equivalent", "invalid")


def drawn(mutants: Iterable[Mutant], seed: int, count: int) -> list[Mutant]:
    """A sample that stays the same where the sources do, whatever changes around them."""

    def rank(mutant: Mutant) -> bytes:
        text = f"{seed} {mutant.file} {mutant.source} {mutant.mutated}"
        return hashlib.sha256(text.encode()).digest()

    unknown = sorted((m for m in mutants if reason_of(m) is None), key=lambda m: m.start)
    return sorted(unknown, key=rank)[:count]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table by file, and the share noticed of those that make a difference."""
    by_file: dict[str, Counter[str]] = {}
    for row in rows:
        for name in (row["file"], "all"):
            by_file.setdefault(name, Counter())[row["status"]] += 1
    lines = [f"{'':44}" + "".join(f"{status:>12}" for status in (*STATUSES, "share"))]
    for name in sorted(by_file, key=lambda name: (name == "all", name)):
        counts = by_file[name]
        real = counts["noticed"] + counts["survived"]
        share = f"{counts['noticed'] / real:.1%}" if real else "-"
        cells = [*(str(counts[status]) for status in STATUSES), share]
        lines.append(f"{name:44}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="how many are drawn")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS, help="whose tests run")
    parser.add_argument("--files", nargs="+", default=["*"], help="patterns, relative to csrc")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        workshop = Workshop(Path(directory), options.rooms)
        files = workshop.files()
        candidates = [
            mutant
            for mutant in all_mutants(CSRC)
            if mutant.file in files
            and any(fnmatch.fnmatch(mutant.file, pattern) for pattern in options.files)
        ]
        for mutant in drawn(candidates, options.seed, options.count):
            outcome = workshop.attempt(mutant)
            rows.append({**asdict(mutant), **asdict(outcome)})
            by = f" by {outcome.flavor}, {outcome.how}: {outcome.test}" if outcome.test else ""
            print(f"{mutant.file}:{mutant.line}: {outcome.status}{by} ({outcome.seconds:.0f} s)")
            print(f"    {mutant.source}\n    {mutant.mutated}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    print(summary(rows))
    return int(any(row["status"] == "survived" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
