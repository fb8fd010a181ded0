"""Figures of a case, and what becomes of cases that fail or are left out."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import measure
from benchmarks.families.cross_entropy import CrossEntropy
from benchmarks.implementations import COMPILED, OURS, TORCH, TORCH_COMPILED
from benchmarks.timing import Call

CPU = torch.device("cpu")
SMALL = (2, 5, 9, 13)


@pytest.fixture
def small_copy(monkeypatch):
    monkeypatch.setattr(
        measure, "copy_call", lambda device, cache: (Call(lambda: time.sleep(1e-3)), 1 << 20)
    )
    monkeypatch.setattr(measure, "matmul_rate", lambda device: 100.0)


class TestMeasure:
    def test_figures_are_derived(self, uncompiled, small_copy):
        case = CrossEntropy((1, 3, 160, 160), "fp32", mode="forward+backward")
        measured = measure.measure(case, CPU, budget=0.0)
        assert tuple(measured) == case.implementations(CPU)
        for name, measurement in measured.items():
            row = measurement.row
            assert row["implementation"] == name
            assert row["gb_per_s"] == pytest.approx(
                case.bytes_moved / measurement.samples.median / 1e9, rel=1e-3
            )
            assert row["fraction_of_copy"] == pytest.approx(
                row["gb_per_s"] / row["copy_gb_per_s"], rel=2e-3
            )
            assert row["gflop_per_s"] == pytest.approx(
                case.operations / measurement.samples.median / 1e9, rel=1e-3
            )
            assert row["matmul_gflop_per_s"] == 100.0
            assert row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
            assert {"device", "isa", "torch", "python", "segunc_ops", "threads", "date"} <= set(row)
        assert measured[OURS].figures.peak_over_logits < 1.1
        assert measured[TORCH].figures.peak_over_logits > 2

    def test_what_is_left_out_is_told(self, uncompiled, small_copy):
        case = CrossEntropy(SMALL, "fp32")
        peers = (COMPILED, TORCH_COMPILED)
        told = []
        measured = measure.measure(
            case, CPU, budget=0.0, leave_out=peers, tell=lambda *what: told.append(what)
        )
        assert set(measured) == set(case.implementations(CPU)) - set(peers)
        assert told == [(name, "as asked") for name in peers]

    def test_a_reason_is_told_once(self, capsys):
        measure.tell_left_out.cache_clear()
        for why in ("it is missing", "it is broken", "it is missing"):
            measure.tell_left_out("a peer", why)
        lines = capsys.readouterr().err.splitlines()
        reasons = ("it is missing", "it is broken")
        assert lines == [f"benchmarks: a peer left out: {why}" for why in reasons]

    def test_failing_cases_do_not_lose_the_others(
        self, uncompiled, small_copy, monkeypatch, tmp_path, capsys
    ):
        good = CrossEntropy((1, 3, 8, 8), "fp32")
        bad = CrossEntropy(SMALL, "fp8")
        monkeypatch.setattr(measure, "cases", lambda suite, device: [bad, good])
        arguments = ["--budget", "0", "--output", str(tmp_path)]
        assert measure.main(arguments) == 1
        assert "cross_entropy-2x5x9x13-fp8" in capsys.readouterr().err
        (path,) = tmp_path.glob("*.json")
        rows = json.loads(path.read_text())
        assert [row["implementation"] for row in rows] == list(good.implementations(CPU))
