"""Fixtures of the sampling tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(2, 3, 6, 6) + 1
