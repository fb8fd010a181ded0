"""Would the tests notice? Copies of the kernels with one thing broken must fail them.

What is broken stands in each family's mutations.py. Barriers, atomics and the like are not among
it: broken_operations.py breaks them without a copy, wherever they are.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from python_tests.native.builds import Recipe
from python_tests.native.flavors import start_pytest
from python_tests.native.harness import FLAVOR
from python_tests.native.mutation import Mutation, build, has_all_dtypes, locate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FLAVOR != "plain", reason="runs the race build by itself"),
]

HERE = Path(__file__).resolve().parent
FAMILIES = sorted(path.parent.name for path in HERE.glob("*/mutations.py"))
TESTS_FAILED = 1  # pytest's exit status: not that of an error in a test's collection
TIMEOUT_SECONDS = 240


def mutations_of(family: str) -> tuple[Mutation, ...]:
    module = importlib.import_module(f"python_tests.native.{family}.mutations")
    mutations: tuple[Mutation, ...] = module.MUTATIONS
    return mutations


def outcome(family: str, mutation: Mutation | None, directory: Path) -> tuple[int, str]:
    """pytest's exit status, negative after a crash, and the end of its output."""
    build(mutation, family, directory)
    arguments = ["-x", str(HERE / family), "-k", mutation.tests if mutation else ""]
    if not has_all_dtypes(mutation):
        arguments.append("--fewer-dtypes")
    process = start_pytest("race", arguments, directory)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output[-3000:]


def parameters() -> list[Any]:
    """All mutations."""
    return [
        pytest.param(family, mutation, id=f"{family}-{mutation.name.replace(' ', '_')}")
        for family in FAMILIES
        for mutation in mutations_of(family)
    ]


Outcomes = dict[tuple[str, Mutation | None], Future[tuple[int, str]]]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    """Those of every copy that is tested, computed side by side."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    parameters = [call.params for call in calls if call and "family" in call.params]
    wanted = [(p["family"], p.get("mutation")) for p in parameters]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            (family, mutation): pool.submit(
                outcome, family, mutation, tmp_path_factory.mktemp(family)
            )
            for family, mutation in wanted
        }
        pool.shutdown(cancel_futures=True)


def test_what_is_to_break_is_there() -> None:
    """Found before the long run that breaks it."""
    csrc = Recipe.load("race").csrc
    for family in FAMILIES:
        for mutation in mutations_of(family):
            locate(mutation, family, csrc)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_an_unchanged_copy_passes(outcomes: Outcomes, family: str) -> None:
    """What fails below fails because of the mutation, not for want of a type's kernels."""
    status, output = outcomes[family, None].result()
    assert status == 0, output


@pytest.mark.thorough
@pytest.mark.parametrize(("family", "mutation"), parameters())
def test_broken_copies_fail(outcomes: Outcomes, family: str, mutation: Mutation) -> None:
    status, output = outcomes[family, mutation].result()
    crashed = status < 0
    assert crashed or status == TESTS_FAILED, (
        f"the tests do not notice that {family} is broken: {mutation.name}\n{output}"
    )
