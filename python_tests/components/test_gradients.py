"""Gradients of component_mean."""

from __future__ import annotations

import pytest
import torch

import segunc_ops
import segunc_ops.functional as sf
from python_tests import label_maps
from python_tests.components.cases import BACKENDS, CONNECTIVITIES


@BACKENDS
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 3, 4, 5)])
def test_gradients(shape, backend):
    """Against numerical ones; the map is linear, hence its derivative of any order is known."""
    labels = torch.from_numpy(label_maps.noise(shape, 3))
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with segunc_ops.backend(backend):
        for connectivity in CONNECTIVITIES[len(shape)]:

            def run(values, connectivity=connectivity):
                return sf.component_mean(values, labels, connectivity=connectivity, ignore_index=1)

            assert torch.autograd.gradcheck(run, values)
            assert torch.autograd.gradgradcheck(run, values)


def test_the_gradient_is_the_mean_of_the_upstream_gradient():
    labels = torch.from_numpy(label_maps.noise((2, 40, 70), 3))
    values = torch.randn(labels.shape, requires_grad=True)
    upstream = torch.randn(labels.shape)
    sf.component_mean(values, labels, bound=10.0).backward(upstream)
    assert torch.equal(values.grad, sf.component_mean(upstream, labels))
    with torch.no_grad():
        assert not sf.component_mean(values, labels).requires_grad
    assert not sf.component_mean(values.detach(), labels).requires_grad


def test_the_bare_operator_is_differentiable():
    """As in a program of torch.export, which keeps the operator and loses the Function."""
    labels = torch.from_numpy(label_maps.noise((2, 9, 11), 3))
    values = torch.randn(labels.shape, requires_grad=True)
    upstream = torch.randn(labels.shape)
    torch.ops.segunc_ops.component_mean(values, labels, 8, None, None).backward(upstream)
    assert torch.equal(values.grad, sf.component_mean(upstream, labels))
