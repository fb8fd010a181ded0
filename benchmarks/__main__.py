"""Takes the measurements and reports them: what `make bench` runs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from . import report
from .case import SUITES
from .environment import warn_if_busy


def _devices(asked: str) -> list[str]:
    if asked != "auto":
        return [asked]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Benchmarks against plain PyTorch: a results file, a Markdown table and a plot per device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="suite")
    size.add_argument("--full", action="store_const", const="full", dest="suite")
    size.add_argument("--suite", choices=SUITES, dest="suite", help="default: default")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of rounds per case")
    parser.add_argument("-k", metavar="EXPRESSION", help="only the cases that pytest's -k selects")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder for results")
    parser.set_defaults(suite=None)
    options = parser.parse_args(arguments)
    suite = options.suite or "default"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a device that is there, got 'cuda' without a GPU")

    warn_if_busy()
    here = Path(__file__).parent
    for device in _devices(options.device):
        with tempfile.TemporaryDirectory() as scratch:
            measured = Path(scratch) / "benchmark.json"
            command = [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
                str(here / "bench_all.py"),
                f"--rootdir={here.parent}",
                *("-W", "default"),  # what compilers and torch warn of is not what is measured
                f"--suite={suite}",
                f"--device={device}",
                f"--budget={options.budget}",
                f"--benchmark-json={measured}",
                "--benchmark-columns=median,iqr,rounds",
                "--benchmark-sort=min",
            ]
            if options.k:
                command += ["-k", options.k]
            # From the repository root, which is where the package of benchmarks is found.
            status = subprocess.run(command, cwd=here.parent, check=False).returncode
            if status:
                return status
            rows = report.rows_of(json.loads(measured.read_text(encoding="utf-8")))
        # Partial results must not replace the full table of a device.
        partial = "-selection" if options.k else ""
        suffix = ("" if suite == "default" else f"-{suite}") + partial
        for path in report.write(rows, options.output, suffix=suffix):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
