"""Connected components of label maps, and means over them."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from .._arrays import accepts_arrays
from .._checks import check_integer, check_logits, check_tensor, describe
from .._native.backend import implementation

__all__ = ["check_labels", "component_mean", "connected_components"]

_FULL_CONNECTIVITY = {3: 8, 4: 26}
_CONNECTIVITIES = {3: (4, 8), 4: (6, 26)}
_SIGNED = {
    torch.bool: torch.int8,
    torch.uint8: torch.uint8,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}
_MAX_COMPONENT_PIXELS = 2**31 - 1


def check_labels(
    labels: Tensor, connectivity: int | None, ignore_index: int | None
) -> tuple[Tensor, int, int | None]:
    """Labels in a type that every device compares, the connectivity, the ignored value in it."""
    check_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels: expected class indices of an integer type, got {labels.dtype}")
    if labels.dim() not in _CONNECTIVITIES:
        raise ValueError(
            f"labels: expected shape (N, H, W) or (N, D, H, W), got {tuple(labels.shape)}"
        )
    allowed = _CONNECTIVITIES[labels.dim()]
    if connectivity is None:
        connectivity = _FULL_CONNECTIVITY[labels.dim()]
    elif check_integer("connectivity", connectivity) not in allowed:
        raise ValueError(
            f"connectivity: expected {allowed[0]} or {allowed[1]} for labels of shape "
            f"{tuple(labels.shape)}, or None, got {connectivity}"
        )
    pixels = math.prod(labels.shape[1:])
    if pixels > _MAX_COMPONENT_PIXELS:
        raise ValueError(
            f"labels: expected images of at most {_MAX_COMPONENT_PIXELS} pixels, got {pixels}"
        )
    if ignore_index is not None:
        ignore_index = check_integer("ignore_index", ignore_index)
    dtype = _SIGNED.get(labels.dtype, labels.dtype)
    bounds = torch.iinfo(torch.uint8 if labels.dtype == torch.bool else labels.dtype)
    if ignore_index is not None and not bounds.min <= ignore_index <= bounds.max:
        ignore_index = None  # no label of this type equals it
    if dtype != labels.dtype:
        if ignore_index is not None and ignore_index > torch.iinfo(dtype).max:
            ignore_index -= 2 ** (8 * labels.element_size())
        labels = labels.view(dtype)
    return labels.contiguous(), connectivity, ignore_index


@accepts_arrays
@torch.no_grad()
def connected_components(
    labels: Tensor, *, connectivity: int | None = None, ignore_index: int | None = None
) -> tuple[Tensor, Tensor]:
    """Connected components of label maps with any number of classes, class 0 included.

    A component is a maximal connected set of pixels of one class. Never differentiable.

    Args:
        labels: ``(N, H, W)``, or ``(N, D, H, W)`` for volumes; any integer type or bool. NumPy
            and CuPy arrays are read in place and give such arrays.
        connectivity: 4 or 8 neighbours, in volumes 6 or 26; None is the larger.
        ignore_index: pixels with this label belong to no component; None ignores none.

    Returns:
        The components, int32, of the shape of `labels`; 0 where ignored, else 1 to K in the raster
        order of each component's first pixel, for every image anew. And their counts, int64,
        ``(N,)``; the K of each image.

    Raises:
        ValueError: a shape or connectivity that does not fit; 2^31 or more pixels an image.
        TypeError: labels that are no integers.
    """
    labels, connectivity, ignore_index = check_labels(labels, connectivity, ignore_index)
    components, counts = implementation(labels.device).connected_components(
        labels, connectivity, ignore_index
    )
    return components, counts


@accepts_arrays
def component_mean(
    values: Tensor,
    labels: Tensor,
    *,
    connectivity: int | None = None,
    ignore_index: int | None = None,
    bound: float | None = None,
) -> Tensor:
    r"""The mean of a map over each pixel's connected component of a label map.

    Of an ensemble's entropy this is the instance-wise uncertainty of Almeida et al.: with
    C(p) the component (see :func:`connected_components`) of pixel p,

    .. math:: m_p = \frac{1}{|C(p)|} \sum_{q \in C(p)} v_q

    It is self-adjoint: the gradient is the component mean of the upstream gradient. On a CPU sums
    are in float64. On CUDA they are in 64-bit fixed point, and a mean is exact to 2^-60 times the
    number of pixels of an image times `bound`, or the largest magnitude of the image's values; in
    images of fewer than 2^16 pixels to 2^-44 times that magnitude, unless `values` are float64.

    Args:
        values: v, ``(N, H, W)`` or ``(N, D, H, W)``; float32, bfloat16, float16 or float64. A
            component with a NaN or an infinity has mean NaN. NumPy and CuPy arrays are read in
            place and give such arrays.
        labels: of the same shape; any integer type or bool.
        connectivity: 4 or 8 neighbours, in volumes 6 or 26; None is the larger.
        ignore_index: pixels with this label are not read, have mean 0 and gradient 0; None
            ignores none.
        bound: a number that no magnitude in `values` exceeds, such as ln C for an entropy of C
            classes. It saves CUDA a pass over the values; there the mean of a component with a
            value of more than four times the bound is NaN.

    Returns:
        m, of the shape and type of `values`.

    Raises:
        ValueError: shapes, devices, connectivity or bound that do not fit; 2^31 or more pixels an
            image.
        TypeError: types that do not fit.
    """
    check_logits("values", values)
    labels, connectivity, ignore_index = check_labels(labels, connectivity, ignore_index)
    if values.shape != labels.shape:
        raise ValueError(
            f"values: expected the shape {tuple(labels.shape)} of labels, got {tuple(values.shape)}"
        )
    if values.device != labels.device:
        raise ValueError(
            f"values: expected device {labels.device} like labels, got {values.device}"
        )
    if bound is not None:
        if not isinstance(bound, Real):
            raise TypeError(f"bound: expected a number, got {describe(bound)}")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound: expected a finite number above 0, got {bound}")
        bound = float(bound)
    mean: Tensor = implementation(values.device).component_mean(
        values, labels, connectivity, ignore_index, bound
    )
    return mean
