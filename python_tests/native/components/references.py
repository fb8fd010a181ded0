"""What the component kernels compute, in float64 NumPy."""

from __future__ import annotations

import numpy as np
import skimage.measure

from python_tests.native.harness import Array


def numbered_in_raster_order(partition: Array) -> Array:
    """Any numbers of components to 1..K by their first pixel; 0 stays."""
    values, first, inverse = np.unique(partition, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values == 0, -1, first))
    rank = np.empty(len(values), np.int32)
    rank[order] = np.arange(len(values)) + (values[order[0]] != 0)
    return rank[inverse].reshape(partition.shape)


def components(labels: Array, diagonal: bool, ignored: int | None) -> tuple[Array, Array]:
    """scikit-image's numbering of each image's components, and their number.

    Args:
        labels: [N, H, W] or [N, D, H, W], integer.
        diagonal: whether pixels that share a corner or an edge alone are neighbours.
        ignored: the label of pixels without a component, as a value of the labels' type.
    """
    # Any integers to small ones: an image library has its own idea of large or negative labels.
    _, flat = np.unique(labels, return_inverse=True)
    small = flat.reshape(labels.shape).astype(np.int64)
    if ignored is not None:
        small[labels == labels.dtype.type(ignored)] = -1
    ids = np.zeros(labels.shape, np.int32)
    counts = np.zeros(len(labels), np.int64)
    for i, image in enumerate(small):
        if image.size:
            ids[i], counts[i] = skimage.measure.label(
                image, background=-1, return_num=True, connectivity=image.ndim if diagonal else 1
            )
            if image.ndim > 2:  # there it may number along another axis first
                ids[i] = numbered_in_raster_order(ids[i])
    return ids, counts


def component_mean(values: Array, ids: Array) -> Array:
    """Each pixel's mean over its component, 0 outside; NaN with a value that is no finite number.

    Args:
        values: [N, *spatial], float64.
        ids: [N, *spatial], from 1 on in each image, 0 outside.
    """
    means = np.zeros(values.shape)
    for i in range(len(values)):
        flat = ids[i].ravel()
        finite = np.isfinite(values[i].ravel())
        summed = np.where(finite, values[i].ravel(), np.nan)
        sums = np.bincount(flat, np.where(flat > 0, summed, 0.0), minlength=1)
        means[i] = (sums / np.maximum(np.bincount(flat, minlength=1), 1))[ids[i]]
    return means
