"""The examples run, and learn."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_the_plain_pytorch_example_learns(capsys):
    path = Path(__file__).parents[1] / "examples" / "plain_pytorch.py"
    losses = runpy.run_path(str(path))["train"](steps=20)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert "step" in capsys.readouterr().out
