"""Fixtures of the experiments' tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from python_tests.experiments.cases import SIZE, write_pair
from segunc_ops.experiments.datasets import SceneDataset


@pytest.fixture(autouse=True)
def _hangup_is_not_ignored() -> Iterator[None]:
    """As it is where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def train_scenes() -> SceneDataset:
    return SceneDataset(12, seed=0, size=SIZE)


@pytest.fixture(scope="module")
def val_scenes() -> SceneDataset:
    return SceneDataset(5, seed=1, size=SIZE, label_noise=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            label = np.full((48, 64), 11)
            label[:40] = (np.arange(64) // 16 + index) % 3
            write_pair(tmp_path, split, f"{index:03}", label)
    return tmp_path
