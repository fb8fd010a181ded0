"""Images whose labels are boxes, but for a share of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..box_labels import BoxLabels
from .datasets import Sample, SegmentationDataset
from .identity import identify
from .losses import CONNECTIVITY


class BoxedDataset:
    """A dataset with bounding boxes for labels, but for a seeded share of its images.

    Args:
        dataset: with exact labels.
        exact_share: of the images that keep them, in [0, 1].
        seed: draws these images.
        background: classes that have no boxes; None: every class has.

    Raises:
        ValueError: a share outside [0, 1].
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        exact_share: float,
        *,
        seed: int = 0,
        background: Sequence[int] | None = None,
    ) -> None:
        self.exact = dataset
        self.background = None if background is None else tuple(background)
        self._boxes = BoxLabels(
            dataset,
            exact_share,
            seed=seed,
            background=self.background,
            ignore_index=dataset.ignore_index,
            connectivity=CONNECTIVITY.default,
        )
        self.bootstrap: NDArray[np.bool_] = self._boxes.bootstrap.numpy()
        """(length,), whether an image's labels are boxes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0 to C - 1."""
        return self.exact.class_names

    @property
    def ignore_index(self) -> int:
        """Label of the pixels that count for nothing."""
        return self.exact.ignore_index

    @property
    def num_exact(self) -> int:
        """How many images keep their labels."""
        return int(np.count_nonzero(~self.bootstrap))

    def contents(self) -> dict[str, Any]:
        """Those of the dataset, and which labels are boxes.

        Raises:
            DatasetError: a file cannot be read.
        """
        share, seed = self._boxes.exact_share, self._boxes.seed
        none = "" if self.background is None else f", none of classes {self.background}"
        return {
            **identify(self.exact)["contents"],
            "boxes": f"but for {share:g} of the images, seed {seed}{none}",
        }

    def __len__(self) -> int:
        return len(self.exact)

    def __getitem__(self, index: int) -> Sample:
        sample = self.exact[index]
        boxed = bool(self.bootstrap[index])
        label = self._boxes.boxes(sample.label) if boxed else sample.label
        return sample._replace(label=label, bootstrap=boxed)

    def label(self, index: int) -> NDArray[np.integer]:
        """The label map (H, W) alone."""
        label = self.exact.label(index)
        boxes: NDArray[np.integer] = self._boxes.boxes(label) if self.bootstrap[index] else label
        return boxes
