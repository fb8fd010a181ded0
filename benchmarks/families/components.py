"""The mean over connected components, beside what a user would put together without it.

Street scenes are generated, or read from the folder of label maps (PNG) that the environment
variable ``SEGUNC_LABEL_MAPS`` names; either is enlarged to the case's size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import reference

from ..case import Case, Shape
from ..implementations import (
    BLUE,
    BROWN,
    DARK_GRAY,
    EAGER,
    GREEN,
    LIGHT_BLUE,
    LIGHT_BROWN,
    LIGHT_GREEN,
    NAVY,
    OURS,
    PINK,
    Implementation,
)
from ..workload import Family, Workload

_on_cpu = partial(Implementation, device="cpu", is_optional=True)
_on_gpu = partial(Implementation, device="cuda", is_optional=True)
LABELS = Implementation("ours, labels alone", PINK, is_partial=True)
CC3D = _on_cpu("cc3d and NumPy", BLUE)
CC3D_LABELS = _on_cpu("cc3d, labels alone", LIGHT_BLUE, is_partial=True)
SKIMAGE = _on_cpu("scikit-image and NumPy", GREEN)
SKIMAGE_LABELS = _on_cpu("scikit-image, labels alone", LIGHT_GREEN, is_partial=True)
OPENCV = _on_cpu("OpenCV, class by class", BROWN)
SCIPY = _on_cpu("SciPy, class by class", LIGHT_BROWN)
CUPY = _on_gpu("CuPy, class by class", GREEN)
CUCIM = _on_gpu("cuCIM and torch", BLUE)
CUCIM_LABELS = _on_gpu("cuCIM, labels alone", LIGHT_BLUE, is_partial=True)
COLORCC = _on_gpu("colorcc and torch", BROWN)
COLORCC_LABELS = _on_gpu("colorcc, labels alone", LIGHT_BROWN, is_partial=True)
BKECCL = _on_gpu("bkeccl, class by class", NAVY)
BKECCL_LABELS = _on_gpu("bkeccl, labels alone, class by class", DARK_GRAY, is_partial=True)
_PEERS = (
    LABELS,
    *(CC3D, CC3D_LABELS, SKIMAGE, SKIMAGE_LABELS, OPENCV, SCIPY),
    *(CUPY, CUCIM, CUCIM_LABELS, COLORCC, COLORCC_LABELS, BKECCL, BKECCL_LABELS),
)

_CONNECTIVITY: Literal[8] = 8
_NOISE_CLASSES = 19
_ENLARGED_FROM = (256, 512)
# Values are of order one and sums exact: what is left is the rounding of the result.
_TOLERANCE = 1e-6


class ComponentMean(Case):
    """Means of a map over the components of label maps ``(N, H, W)``."""

    op = "component_mean"
    showcase = ((1, 1024, 2048), "street scene")

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return [cls.shown(layout="noise"), cls((8, 360, 480), "fp32", "street scene")]

    def everyone(self) -> tuple[Implementation, ...]:
        return (OURS, *_PEERS, EAGER)

    @property
    def target_shape(self) -> Shape:
        return self.shape

    @property
    def bytes_moved(self) -> int:
        return self.pixels + 2 * self.logits_bytes  # the uint8 label and the value in, the mean out

    @property
    def kernel_moves(self) -> int:
        return self.bytes_moved + 2 * self.pixels // 8  # a bit, where a run starts, out and in

    @property
    def cleared(self) -> int:
        return self.logits_bytes


def _street_scene(index: int) -> NDArray[np.uint8]:
    if folder := os.environ.get("SEGUNC_LABEL_MAPS"):
        from PIL import Image

        files = sorted(Path(folder).glob("*.png"))
        return np.asarray(Image.open(files[index % len(files)]), np.uint8)
    from segunc_ops.experiments.scenes import generate_scene

    label: NDArray[np.uint8] = generate_scene(0, index, _ENLARGED_FROM)[1]
    return label


def _enlarged(label: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows = np.arange(height) * label.shape[0] // height
    columns = np.arange(width) * label.shape[1] // width
    return np.ascontiguousarray(label[rows[:, None], columns])


def _batch(images: list[NDArray[Any]]) -> NDArray[Any]:
    return np.stack(images) if len(images) > 1 else images[0][None]


def _cc3d_labels(labels: NDArray[np.uint8]) -> NDArray[Any]:
    import cc3d

    # Its class 0 is background.
    return _batch(
        [
            cc3d.connected_components(image + np.uint8(1), connectivity=_CONNECTIVITY)
            for image in labels
        ]
    )


def _skimage_labels(labels: NDArray[np.uint8]) -> NDArray[Any]:
    from skimage.measure import label

    return _batch([label(image, background=-1, connectivity=2) for image in labels])


def _mean_by_label(values: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.float32]:
    means = []
    for image, ids in zip(values, labels, strict=True):
        flat = ids.ravel()
        mean = np.bincount(flat, image.ravel()) / np.maximum(np.bincount(flat), 1)
        means.append(mean.astype(np.float32)[flat].reshape(image.shape))
    return _batch(means)


def _opencv_mean(values: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Class by class, as it labels binary images."""
    import cv2

    means = np.zeros_like(values)
    for image, label, mean in zip(values, labels, means, strict=True):
        for one in np.unique(label):
            mask = (label == one).view(np.uint8)
            _, ids = cv2.connectedComponents(mask, connectivity=_CONNECTIVITY)
            flat = ids.ravel()
            # The other classes are its component 0.
            each = np.bincount(flat, image.ravel()) / np.maximum(np.bincount(flat), 1)
            each[0] = 0
            mean += each.astype(np.float32)[flat].reshape(image.shape)
    return means


def _ndimage_mean(ndimage: Any, xp: Any, values: Any, labels: Any) -> Any:
    """Class by class, as `ndimage` knows one class alone."""
    means = xp.zeros_like(values)
    for image, label, mean in zip(values, labels, means, strict=True):
        for one in xp.unique(label):
            ids, count = ndimage.label(label == one, xp.ones((3, 3)))
            index = xp.arange(1, int(count) + 1)
            each = ndimage.sum_labels(image, ids, index) / xp.bincount(ids.ravel())[1:]
            inside = ids > 0
            mean[inside] = each.astype(mean.dtype)[ids[inside] - 1]
    return means


def _scipy_mean(values: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    import scipy.ndimage

    means: NDArray[np.float32] = _ndimage_mean(scipy.ndimage, np, values, labels)
    return means


def _cupy_mean(values: Any, labels: Any) -> Any:
    import cupy
    import cupyx.scipy.ndimage

    return _ndimage_mean(cupyx.scipy.ndimage, cupy, values, labels)


def _cucim_labels(labels: Tensor) -> Tensor:
    import cupy
    from cucim.skimage.measure import label

    images = cupy.from_dlpack(labels)
    return torch.from_dlpack(
        cupy.stack([label(image, background=-1, connectivity=2) for image in images])
    )


def _colorcc_labels(labels: Tensor) -> Tensor:
    import colorcc

    # It labels RGB images.
    images = labels[..., None].expand(*labels.shape, 3).contiguous()
    return torch.stack([colorcc.label(image, conn=_CONNECTIVITY)[0] for image in images])


def _bkeccl_labels(labels: Tensor) -> Tensor:
    """Class by class, as it labels binary images."""
    import bkeccl

    ids = torch.zeros(labels.shape, dtype=torch.int32, device=labels.device)
    for label, numbered in zip(labels, ids, strict=True):
        count = 0
        for one in label.unique():
            mask = label == one
            each, components = bkeccl.ccl(mask)
            numbered += torch.where(mask, torch.from_dlpack(each) + count, 0)
            count += int(components)
    return ids


def _mean_of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """What torch makes of labels on a GPU."""
    means = torch.empty_like(values)
    for image, ids, mean in zip(values, labels, means, strict=True):
        flat = ids.flatten()
        sums = torch.bincount(flat, image.flatten().double())
        mean.view(-1).copy_((sums / torch.bincount(flat).clamp(min=1)).float()[flat])
    return means


_Inputs = tuple[Tensor, Tensor]  # values (N, H, W) fp32 and labels (N, H, W) uint8
_Mean = Callable[[Tensor, Tensor], Any]


def _by_label(labelled: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> _Mean:
    return lambda values, labels: _mean_by_label(values.numpy(), labelled(labels.numpy()))


def _by_gpu_label(labelled: Callable[[Tensor], Tensor]) -> _Mean:
    return lambda values, labels: _mean_of_labels(values, labelled(labels))


def _with_cupy(values: Tensor, labels: Tensor) -> Any:
    import cupy

    return _cupy_mean(cupy.from_dlpack(values), cupy.from_dlpack(labels))


class ComponentMeanWorkload(Workload[_Inputs, _Mean]):
    """Means of a map over the components of label maps, full connectivity."""

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        self._noise = np.random.default_rng(seed)
        super().__init__(case, device, seed=seed)

    def _inputs(self, index: int) -> _Inputs:
        count, height, width = self.case.shape
        if self.case.layout == "noise":
            labels = self._noise.integers(0, _NOISE_CLASSES, self.case.shape).astype(np.uint8)
        else:
            indices = range(index * count, (index + 1) * count)
            labels = np.stack([_enlarged(_street_scene(i), height, width) for i in indices])
            labels = np.minimum(labels, np.uint8(254))  # one is added for cc3d
        return self._random_map(), torch.from_numpy(labels).to(self.device)

    def _functions_by_name(self) -> Mapping[Implementation, _Mean]:
        return {
            OURS: partial(sf.component_mean, bound=1.0),
            LABELS: lambda values, labels: sf.connected_components(labels),
            EAGER: lambda values, labels: reference.component_mean(
                values, labels, _CONNECTIVITY, None
            ),
            CC3D: _by_label(_cc3d_labels),
            CC3D_LABELS: lambda values, labels: _cc3d_labels(labels.numpy()),
            SKIMAGE: _by_label(_skimage_labels),
            SKIMAGE_LABELS: lambda values, labels: _skimage_labels(labels.numpy()),
            OPENCV: lambda values, labels: _opencv_mean(values.numpy(), labels.numpy()),
            SCIPY: lambda values, labels: _scipy_mean(values.numpy(), labels.numpy()),
            CUPY: _with_cupy,
            CUCIM: _by_gpu_label(_cucim_labels),
            CUCIM_LABELS: lambda values, labels: _cucim_labels(labels),
            COLORCC: _by_gpu_label(_colorcc_labels),
            COLORCC_LABELS: lambda values, labels: _colorcc_labels(labels),
            BKECCL: _by_gpu_label(_bkeccl_labels),
            BKECCL_LABELS: lambda values, labels: _bkeccl_labels(labels),
        }

    def _run(self, function: _Mean, inputs: _Inputs) -> None:
        function(*inputs)

    def check(self) -> None:
        values, labels = self._sets[0]
        exact = reference.component_mean(values.double(), labels, _CONNECTIVITY, None).cpu()
        for name in self.implementations:
            means = self.attempt(name, partial(self._functions[name], values, labels))
            if means is None or name.is_partial:
                continue
            error = (torch.as_tensor(means, device="cpu").double() - exact).abs().max().item()
            self.assert_close(name, "mean", error, _TOLERANCE)
        components = sf.connected_components(labels)[0]
        ids, _ = reference.connected_components(labels, _CONNECTIVITY, None)
        self.assert_close(LABELS, "numbering", float((components != ids).sum()), 0)


FAMILY = Family(
    {ComponentMean: ComponentMeanWorkload},
    peers=_PEERS,
    packages=(
        *("connected-components-3d", "scikit-image", "opencv-python-headless", "scipy", "numpy"),
        *("cupy-cuda12x", "cupy-cuda13x", "cucim-cu13", "colorcc", "bkeccl"),
    ),
)
