"""Fixtures of the losses' tests."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from python_tests.losses.cases import UNCERTAINTY_LOSSES, Batch
from python_tests.support import IGNORED
from segunc_ops import CrossEntropyLoss


@pytest.fixture
def batch() -> Batch:
    return Batch()


@pytest.fixture(params=UNCERTAINTY_LOSSES)
def loss(request: pytest.FixtureRequest) -> nn.Module:
    return request.param(ignore_index=IGNORED)


@pytest.fixture
def plain(batch: Batch) -> Tensor:
    return CrossEntropyLoss(ignore_index=IGNORED, reduction="mean_all")(*batch.arguments)
