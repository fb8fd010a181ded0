"""Of broken_operations.py: does it complain where it has to?"""

from __future__ import annotations

from typing import Any

import pytest

from python_tests.native import broken_operations
from python_tests.native.broken_operations import Operation, check_noticed, core, unreached
from python_tests.native.harness import FLAVOR

pytestmark = pytest.mark.skipif(FLAVOR != "plain", reason="the same everywhere")


def row(name: str, noticed: bool | None) -> dict[str, Any]:
    return {"family": "scale", "name": name, "noticed": noticed}


def test_what_is_unnoticed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    check_noticed([row("a", True), row("b", None)])
    with pytest.raises(AssertionError, match="no operation was broken"):
        check_noticed([row("b", None)])
    with pytest.raises(AssertionError, match=r"scale's tests do not notice .*'b'"):
        check_noticed([row("a", True), row("b", False)])
    monkeypatch.setattr(broken_operations, "_harmless", lambda family: {"b": "a reason"})
    check_noticed([row("a", True), row("b", False)])
    check_noticed([row("a", True), row("b", None)])
    with pytest.raises(AssertionError, match="called harmless by scale"):
        check_noticed([row("a", True), row("b", True)])
    with pytest.raises(AssertionError, match="called harmless by scale"):
        check_noticed([row("a", True)])


def test_calls_that_no_test_runs_are_found() -> None:
    missed = unreached([])
    assert any(place.startswith("common/device/block.h:") for place in missed)
    assert any(place.startswith("components/cuda/") for place in missed)
    file, line = missed[0].split(":")
    assert missed[0] not in unreached([{"file": file, "line": int(line)}])


def test_the_core_has_each_kind_of_a_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = [
        Operation("scale", f"{kind} {line}", kind, "a.cu", "f", line)
        for kind in ("barrier", "atomic")
        for line in (1, 2)
    ]
    assert [operation.name for operation in core(operations)] == ["barrier 1", "atomic 1"]
    monkeypatch.setattr(broken_operations, "_harmless", lambda family: {"barrier 1": "a reason"})
    assert [operation.name for operation in core(operations)] == ["barrier 2", "atomic 1"]
