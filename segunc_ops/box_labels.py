"""A dataset whose labels are bounding boxes, but for a share of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._checks import check_integer, check_share
from .functional import boxes_from_masks

__all__ = ["BoxLabels"]


class ImagesAndLabels(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sequence[Any]: ...


class BoxLabels(Dataset[tuple[Any, ...]]):
    """Turns exact labels into boxes, but for a share of the images.

    What :func:`segunc_ops.functional.boxes_from_masks` makes of a label map takes its place. An
    item is that of the dataset with one bool more, whether its labels are boxes: what losses of
    label uncertainty take as `bootstrap`.

    Args:
        dataset: map-style; an item is an image, its label map and whatever else. Label maps are
            ``(H, W)`` or, with a channel, ``(1, H, W)``, of volumes ``(D, H, W)`` or
            ``(1, D, H, W)``: tensors or NumPy arrays of any integer type.
        exact_share: of the images that keep their labels, in [0, 1].
        seed: draws these images. Those of a smaller share are among those of a larger one.
        background, ignore_index, connectivity: as for
            :func:`segunc_ops.functional.boxes_from_masks`.

    Attributes:
        bootstrap: bool ``(length,)``, True where labels are boxes.

    Raises:
        ValueError: a share outside [0, 1].
        TypeError: a share that is no number.

    Example:
        >>> loader = DataLoader(BoxLabels(dataset, exact_share=0.2), batch_size=8)
        >>> for images, labels, bootstrap in loader:
        ...     loss = criterion(mean, log_variance, labels, bootstrap)
    """

    bootstrap: Tensor

    def __init__(
        self,
        dataset: ImagesAndLabels,
        exact_share: float = 0.2,
        *,
        seed: int = 0,
        background: int | Sequence[int] | None = 0,
        ignore_index: int | None = None,
        connectivity: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.exact_share = check_share("exact_share", exact_share)
        self.seed = check_integer("seed", seed)
        self.background = background
        self.ignore_index = ignore_index
        self.connectivity = connectivity
        length = len(dataset)
        order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
        self.bootstrap = torch.ones(length, dtype=torch.bool)
        self.bootstrap[order[: round(exact_share * length)]] = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, label, *others = self.dataset[index]
        bootstrap = bool(self.bootstrap[index])
        if bootstrap:
            label = self.boxes(label)
        return (image, label, *others, bootstrap)

    def boxes(self, label: Any) -> Any:
        """A label map as boxes.

        Args:
            label: as those of the dataset.

        Raises:
            TypeError: it is neither a tensor nor a NumPy array, or has no integers.
            ValueError: it has another number of axes.
        """
        if not hasattr(label, "ndim"):
            raise TypeError(
                f"label: expected a tensor or an array of class indices, got {type(label).__name__}"
            )
        alone = label.ndim > 2 and label.shape[0] == 1
        boxes = boxes_from_masks(
            label if alone else label[None],
            background=self.background,
            ignore_index=self.ignore_index,
            connectivity=self.connectivity,
        )
        return boxes if alone else boxes[0]
