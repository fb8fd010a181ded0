"""The examples run, and learn."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_plain_pytorch_example_learns(capsys):
    losses = runpy.run_path(str(EXAMPLES / "plain_pytorch.py"))["train"](steps=20)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert "step" in capsys.readouterr().out


def test_the_cascade_of_the_example_gains_by_few_blocks(capsys):
    rows = runpy.run_path(str(EXAMPLES / "model_selection.py"))["compare"](steps=40)
    (_, fast, none), *between, (_, _, all_blocks) = rows
    assert (none, all_blocks) == (0, 9)
    assert any(right > fast + 0.03 and blocks < 5 for _, right, blocks in between)
    assert "blocks" in capsys.readouterr().out


def test_the_example_of_box_labels_learns(capsys):
    losses = runpy.run_path(str(EXAMPLES / "box_labels.py"))["train"](epochs=2)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert "IoU of other discs" in capsys.readouterr().out
