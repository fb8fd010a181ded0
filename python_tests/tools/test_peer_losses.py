"""Losses of other packages, where they are installed: the numbers that are kept are theirs."""

from __future__ import annotations

import pytest

from python_tests.peers import BATCHES, assert_same_numbers, numbers, records
from tools.peer_losses import CALLS, LOSSES, call


def test_every_call_is_kept():
    kept = [(record.loss, record.batch, record.options) for record in records()]
    called = [
        (loss, batch, options)
        for loss, batches in CALLS.items()
        for batch, every in batches
        for options in every
    ]
    assert kept == called
    assert {loss for loss, _, _ in kept} == set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_package_gives_what_is_kept(loss):
    pytest.importorskip(LOSSES[loss][0])
    for record in records(loss):
        batch = BATCHES[record.batch]()
        found = numbers(call(loss, batch, record.options), batch.inputs)
        # Some compute in float32.
        assert_same_numbers(found, record.numbers, 1e-6)
