"""On a GPU: the same calls as on the CPU, and what only a GPU has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests import label_maps
from python_tests.comparison import assert_close, assert_same_bits, assert_same_bits_on_every_run
from python_tests.components.cases import CONNECTIVITIES
from python_tests.gpu import assert_graph_replays, synchronisation_raises
from python_tests.support import LABEL_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]


def compare(labels: Tensor, values: Tensor, name: str, **options: object) -> None:
    """Components, their means and the gradient of these, with the CPU's of float64 values.

    A GPU sums in fixed point: to 2^-62 of the pixels times the largest value.
    """
    found = sf.connected_components(labels.cuda(), **options)
    for kind, a, b in zip(
        ("ids", "counts"), found, sf.connected_components(labels, **options), strict=True
    ):
        assert_same_bits(a.cpu(), b, name=f"{name}: {kind}")
    upstream = torch.randn(values.shape).to(values.dtype)
    on_gpu = values.cuda().requires_grad_()
    exact = values.to(torch.float64, copy=True).requires_grad_()
    means = sf.component_mean(on_gpu, labels.cuda(), **options)
    truth = sf.component_mean(exact, labels, **options)
    means.backward(upstream.cuda())
    truth.backward(upstream.double())
    largest = float(max(values.abs().max(), upstream.abs().max()))
    fixed_point = 2.0**-62 * labels[0].numel() / torch.finfo(torch.float64).eps
    scale = largest * max(1.0, fixed_point)
    for kind, a, b in (("means", means, truth.detach()), ("gradient", on_gpu.grad, exact.grad)):
        assert_close(a, b, name=f"{name}: {kind}", scale=scale, bias=False)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("pattern", label_maps.PATTERNS)
def test_patterns(pattern, connectivity):
    for height, width in ((70, 131), (97, 64), (33, 500), (512, 1024)):
        labels = torch.from_numpy(label_maps.PATTERNS[pattern](height, width)[None].copy())
        name = f"{pattern} {height} x {width}"
        compare(labels, torch.randn(labels.shape), name, connectivity=connectivity)


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_label_types(dtype):
    for shape in ((2, 40, 70), (1, 5, 19, 33)):
        labels = torch.from_numpy(label_maps.noise(shape, 3)).to(dtype)
        for connectivity in CONNECTIVITIES[len(shape)]:
            options = {"connectivity": connectivity, "ignore_index": 1}
            compare(labels, torch.randn(shape), f"{dtype} {shape}", **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_of_other_types(dtype):
    labels = torch.from_numpy(label_maps.noise((2, 70, 131), 3, 0.7))
    compare(labels, torch.randn(labels.shape).to(dtype), str(dtype), ignore_index=1)


def test_cuda_graphs():
    labels = torch.from_numpy(label_maps.noise((2, 75, 140), 3)).cuda()
    values = torch.randn(labels.shape, device="cuda")

    def calls() -> tuple[Tensor, ...]:
        return (*sf.connected_components(labels), sf.component_mean(values, labels, bound=9.0))

    assert_graph_replays(calls, lambda: (labels.random_(0, 3), values.uniform_(-9, 9)))


def test_nothing_synchronises():
    labels = torch.from_numpy(label_maps.noise((2, 75, 140), 3)).cuda()
    values = torch.randn(labels.shape, device="cuda")
    sf.component_mean(values, labels)
    with synchronisation_raises():
        sf.connected_components(labels)
        sf.component_mean(values, labels)


def test_same_bits_on_every_run():
    labels = torch.from_numpy(label_maps.noise((2, 200, 333), 3)).cuda()
    values = torch.randn(labels.shape, device="cuda")

    def run() -> tuple[Tensor, ...]:
        return (*sf.connected_components(labels), sf.component_mean(values, labels))

    assert_same_bits_on_every_run(run, name="components")


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_boxes(dtype):
    labels = torch.from_numpy(label_maps.noise((3, 40, 70), 3, share=0.9)).to(dtype)
    options = {"ignore_index": 2, "exact": torch.tensor([False, True, False])}
    on_gpu = {**options, "exact": options["exact"].cuda()}
    found = sf.boxes_from_masks(labels.cuda(), **on_gpu)
    assert_same_bits(found.cpu(), sf.boxes_from_masks(labels, **options), name=f"boxes of {dtype}")
