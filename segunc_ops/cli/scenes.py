"""The demo's generated scenes, which stand in for --data where its networks are evaluated."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..experiments.datasets import SceneDataset

# A few minutes on two CPU cores, all trainings and the evaluation included.
SIZE = (240, 360)
TRAINING_SCENES = 240
VALIDATION_SCENES = 40
# Of those trained on: their mean uncertainty is known well enough from as many.
REFERENCE_SCENES = 16
BOXED_CLASS = "tree"
"""The class of the demo's networks that are trained on boxes."""


def training_scenes(seed: int, number: int) -> SceneDataset:
    """Scenes to train on, whose labels have the noise of human annotation."""
    from ..experiments.datasets import SceneDataset

    return SceneDataset(number, seed=2 * seed, size=SIZE)


def reference_scenes(seed: int) -> SceneDataset:
    """Those of the training whose mean uncertainty tells when a pixel is uncertain."""
    return training_scenes(seed, REFERENCE_SCENES)


def validation_scenes(seed: int) -> SceneDataset:
    """Other scenes, whose labels are exact."""
    from ..experiments.datasets import SceneDataset

    return SceneDataset(VALIDATION_SCENES, seed=2 * seed + 1, size=SIZE, label_noise=False)


def check_scene_classes(arguments: argparse.Namespace, trained_names: Sequence[str] | None) -> None:
    """Refuses generated scenes, in place of --data, for networks that do not know their classes."""
    from ..experiments.datasets import SceneDataset

    if trained_names != SceneDataset.class_names:
        what = f", and {arguments.checkpoint[0]} has other classes" if arguments.checkpoint else ""
        arguments.parser.error(
            "argument --data: is missing; only networks of `segunc demo` are evaluated on "
            f"generated scenes{what}"
        )
