"""Would the tests notice what nobody thought of? A sample of what `make mutants` draws."""

from __future__ import annotations

import pytest

from python_tests.native.harness import FLAVOR
from tools.mutants.__main__ import CSRC, drawn
from tools.mutants.sources import Mutant
from tools.mutants.workshop import Workshop, all_mutants

# Of the seeds, one whose mutants are of several files that compile soon: minutes in all.
SEED, COUNT = 141, 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.skipif(FLAVOR != "plain", reason="runs all builds by itself"),
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("mutants"))


def test_nothing_changed_survives(workshop: Workshop) -> None:
    assert workshop.control("scale").status == "survived"


@pytest.mark.parametrize(
    "mutant",
    drawn(all_mutants(CSRC), SEED, COUNT),
    ids=lambda mutant: f"{mutant.file}:{mutant.line}",
)
def test_mutants_are_noticed(workshop: Workshop, mutant: Mutant) -> None:
    outcome = workshop.attempt(mutant)
    assert outcome.status != "survived", (
        f"the tests do not notice that in {mutant.file}\n    {mutant.source}\nis\n"
        f"    {mutant.mutated}\nA mutant that changes no result belongs into "
        "tools/mutants/equivalent.py, with the reason."
    )
