"""Predictions from machine code beside measurements."""

from __future__ import annotations

from typing import Any

import pytest

from tools.predictions import TABLE, compare, read_table


def row(share: float, implementation: str = "ours", **changes: object) -> dict[str, Any]:
    """A row of the benchmarks."""
    return {
        "op": "cross_entropy",
        "shape": "1x19x768x768",
        "dtype": "fp32",
        "layout": "nchw",
        "mode": "forward+backward",
        "study": "",
        "implementation": implementation,
        "fraction_of_copy": share,
        **changes,
    }


def predicted(share: float, **changes: object) -> dict[str, Any]:
    """A row of the table."""
    case = {"op": "cross_entropy", "classes": 19, "dtype": "fp32", "layout": "nchw"}
    return {
        "case": {**case, "mode": "forward+backward", **changes},
        "share": {
            "H100": {"of_copy": share, "bound": "memory"},
            "H200": {"of_copy": share / 2, "bound": "issue"},
        },
    }


@pytest.mark.parametrize(
    ("device", "expected", "agrees"),
    [("NVIDIA H100 80GB HBM3", (0.9, "memory"), True), ("NVIDIA H200", (0.45, "issue"), False)],
)
def test_a_prediction_meets_its_measurement(device, expected, agrees):
    rows = [row(0.1, "eager"), row(0.7), row(0.8, "ours, kernel alone"), row(0.2, study="pixels")]
    (found,) = compare(rows, [predicted(0.9), predicted(0.9, classes=21)], device)
    assert (found.predicted, found.bound) == expected
    assert found.measured == 0.8
    assert found.agrees == agrees
    assert found.case == "cross_entropy [1, 19, 768, 768] fp32 nchw, ours, kernel alone"


def test_other_devices_and_cases_have_none():
    assert not [*compare([row(0.7)], [predicted(0.9)], "NVIDIA A100")]
    assert not [*compare([row(0.7, dtype="bf16")], [predicted(0.9)], "NVIDIA H100")]
    samples = row(0.5, op="predictive_statistics", shape="10x1x19x8x8", mode="forward")
    table = [predicted(0.6, op="predictive_statistics", mode="forward")]
    assert [each.measured for each in compare([samples], table, "NVIDIA H100")] == [0.5]


def test_the_table_is_of_the_benchmarks_cases():
    if not TABLE.parent.exists():
        pytest.skip("the tests run apart from the repository")
    table = read_table()
    assert len({str(each["case"]) for each in table}) == len(table) >= 20
    for each in table:
        assert set(each["share"]) == {"H100", "H200"}
        assert 0 < each["share"]["H200"]["of_copy"] <= 1
