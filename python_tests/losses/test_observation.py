"""Uncertainties that a loss is given before its call."""

from __future__ import annotations

import pytest
import torch

from python_tests.losses.cases import UNCERTAINTY_LOSSES
from python_tests.support import IGNORED

pytestmark = pytest.mark.usefixtures("each_backend")


def test_an_observation_serves_one_training_call(batch, loss):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(batch.std)
    assert torch.equal(loss(*batch.arguments), expected)
    with pytest.raises(ValueError, match=r"uncertainty: expected one in training mode.*observe"):
        loss(*batch.arguments)


def test_the_latest_observation_counts(batch, loss):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(torch.zeros_like(batch.std))
    loss.observe(batch.std)
    assert torch.equal(loss(*batch.arguments), expected)


@pytest.mark.parametrize("loss_class", UNCERTAINTY_LOSSES)
def test_missing_plain_falls_back_to_cross_entropy(batch, plain, loss_class):
    loss = loss_class(ignore_index=IGNORED, missing="plain")
    assert torch.equal(loss(*batch.arguments), plain)
    loss.observe(batch.std)
    assert not torch.equal(loss(*batch.arguments), plain)
    assert torch.equal(loss(*batch.arguments), plain)


def test_an_argument_goes_before_an_observation_and_uses_it_up(batch, loss):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(torch.zeros_like(batch.std))
    assert torch.equal(loss(*batch.arguments, batch.std), expected)
    with pytest.raises(ValueError, match="uncertainty: expected one in training mode"):
        loss(*batch.arguments)


def test_eval_is_plain_and_keeps_the_observation(batch, loss, plain):
    expected = loss(*batch.arguments, batch.std)
    loss.observe(batch.std)
    loss.eval()
    assert torch.equal(loss(*batch.arguments), plain)
    assert torch.equal(loss(*batch.arguments, batch.std), expected)
    loss.train()
    assert torch.equal(loss(*batch.arguments), expected)
