"""The training steps that are timed."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import docs, training_steps
from benchmarks.training_steps import CASES, NETWORKS, Case, Steps

CPU = torch.device("cpu")
SIZE = 32


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_steps_train_by_equal_losses(case):
    if case.network != "DeepLabV3 on eight residual blocks":
        pytest.importorskip("transformers", reason="needs transformers")
    _, classes, *_ = case.shape
    steps = Steps(case._replace(shape=(2, classes, SIZE, SIZE)), CPU)
    steps.check()
    before = [parameter.clone() for parameter in steps.model.parameters()]
    for call in steps.calls().values():
        call.run()
    assert all(parameter.grad is None for parameter in steps.model.parameters())
    changed = [
        not torch.equal(old, new) for old, new in zip(before, steps.model.parameters(), strict=True)
    ]
    assert sum(changed) > 0.9 * len(changed)


def test_losses_that_differ_are_an_error(monkeypatch):
    case = Case(
        "tiny", (1, 3, 8, 8), (training_steps.CE, training_steps.NAIVE, training_steps.SHARED)
    )
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Dropout(0.5))
    monkeypatch.setattr(training_steps, "NETWORKS", {**NETWORKS, "tiny": lambda classes: tiny})
    rows = training_steps.measure(case, CPU, budget=0.01)
    assert [row.loss for row in rows] == list(case.losses)
    assert all(0 < row.q1_ms <= row.median_ms <= row.q3_ms for row in rows)
    right = training_steps._naive_deviation
    monkeypatch.setattr(training_steps, "_naive_deviation", lambda *args: 1.1 * right(*args))
    with pytest.raises(AssertionError, match="tiny, 1 x 8 x 8, C = 3: losses"):
        training_steps.measure(case, CPU, budget=0.01)


def test_the_page_has_a_table(tmp_path):
    row = {"case": "A", "median_ms": 100.0, "q1_ms": 1, "q3_ms": 2, "rounds": 3, "peak_bytes": 2e6}
    rows = [{**row, "loss": "CE"}, {**row, "loss": "U-CE", "median_ms": 150.0}]
    environment = {"device": "A CPU, 2 threads", "peers": "transformers 5"}
    content = {"environment": environment, "rows": rows}
    (tmp_path / f"a-cpu{training_steps.ENDING}").write_text(json.dumps(content))
    ((title, table),) = docs._training_steps(tmp_path)
    assert title == "A CPU, 2 threads, transformers 5"
    assert table.splitlines()[2:] == [
        "| A | CE | 100 ms | 1.00x | 2 MB |",
        "| A | U-CE | 150 ms | 1.50x | 2 MB |",
    ]
