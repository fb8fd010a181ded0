"""Of broken_operations.py: does it complain where it has to?"""

from __future__ import annotations

from typing import Any

import pytest

from python_tests.native import broken_operations
from python_tests.native.broken_operations import check_noticed, unreached
from python_tests.native.harness import FLAVOR

pytestmark = pytest.mark.skipif(FLAVOR != "plain", reason="the same everywhere")


def row(name: str, noticed: bool) -> dict[str, Any]:
    return {"family": "scale", "name": name, "noticed": noticed}


def test_what_is_unnoticed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    check_noticed([row("a", True), row("b", True)])
    with pytest.raises(AssertionError, match="no operation was broken"):
        check_noticed([])
    with pytest.raises(AssertionError, match=r"scale's tests do not notice .*'b'"):
        check_noticed([row("a", True), row("b", False)])
    monkeypatch.setattr(broken_operations, "_harmless", lambda family: {"b": "a reason"})
    check_noticed([row("a", True), row("b", False)])
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
