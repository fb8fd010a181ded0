"""Components and their means by other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from python_tests import label_maps
from python_tests.support import IGNORED

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])
CONNECTIVITIES = {3: (4, 8), 4: (6, 26)}


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator of components."""
    labels = torch.from_numpy(label_maps.noise((2, 9, 11), 3)).long()
    values = torch.randn(labels.shape, requires_grad=True)
    return {
        "connected_components": [(labels, 8, None), (labels, 4, 1)],
        "component_mean": [(values, labels, 4, 1, None), (values, labels, 8, None, 9.0)],
    }


def component_means(values: Tensor, labels: Tensor, connectivity: int | None) -> Tensor:
    """By SciPy, class by class; 0 where ignored."""
    means = np.zeros(values.shape)
    axes = values.dim() - 1
    full = connectivity in (None, 8, 26)
    structure = ndimage.generate_binary_structure(axes, axes if full else 1)
    for mean, value, label in zip(means, values.double().numpy(), labels.numpy(), strict=True):
        for c in set(label.flatten().tolist()) - {IGNORED}:
            ids, count = ndimage.label(label == c, structure)
            each = [0.0, *ndimage.mean(value, ids, range(1, count + 1))]
            mean += np.array(each)[ids]
    return torch.from_numpy(means)
