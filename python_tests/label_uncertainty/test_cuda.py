"""On a GPU: the same calls against float64 on the CPU, and what only a GPU has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits_on_every_run
from python_tests.gpu import assert_graph_replays, peak_memory, synchronisation_raises
from python_tests.label_uncertainty.cases import Batch, batch, compare, loss_of
from python_tests.label_uncertainty.test_functional import OPTIONS
from python_tests.support import LAYOUTS, LOGITS_DTYPES, REDUCTIONS, TARGET_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]


def on_gpu(b: Batch) -> Batch:
    """The same values there, as leaves of the same strides."""
    moved = Batch(*(tensor.detach().cuda() for tensor in b))
    for leaf in moved.leaves():
        leaf.requires_grad_()
    return moved


def step(b: Batch, **options: Any) -> tuple[Tensor, ...]:
    loss = loss_of(b, **options)
    upstream = torch.full_like(loss, 0.75)
    return loss, *torch.autograd.grad(loss, b.leaves(), upstream, materialize_grads=True)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype, options):
    shapes = ((2, 1, 65, 67), (3, 1, 64, 64), (2, 1, 9, 10, 11), (3, 1, 33))
    for shape, target_dtype in zip(shapes, TARGET_DTYPES, strict=True):
        b = batch(dtype, shape[2:], shape[0], target_dtype=target_dtype)
        make = LAYOUTS[layout].make
        leaves = (make(torch.randn(shape).to(dtype)).detach() for _ in range(2))
        mean, log_variance = (leaf.requires_grad_() for leaf in leaves)
        b = b._replace(mean=mean, log_variance=log_variance)
        for reduction in REDUCTIONS:
            shared = {"move": on_gpu, "reduction": reduction, **OPTIONS[options]}
            compare(b, **shared)
            compare(b, weighted=False, exact_images=False, **shared)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_extreme_numbers(dtype):
    for spread in (20.0, 1000.0):
        for options in ({}, {"detach_weight": False}):
            b = batch(dtype, (11, 13), spread=spread)
            compare(b, move=on_gpu, reduction="none", **options)


def test_target_out_of_range_is_nan_and_raised_by_the_next_call():
    b = on_gpu(batch(size=(40, 50)))
    b.target[1, 3, 4] = 7
    loss, *gradients = step(b)
    assert loss.isnan()
    assert all(gradient.isnan().sum() == 1 for gradient in gradients)
    with pytest.raises(IndexError, match="out-of-range class 7"):
        segunc_ops.check()


def test_nothing_synchronises():
    b = on_gpu(batch(size=(64, 64)))
    scores = torch.randn(2, 3, 8, 8, device="cuda")
    labels = torch.randint(0, 3, (2, 8, 8), device="cuda")
    for options in OPTIONS.values():
        step(b, **options)
        sf.bootstrap_targets(scores, scores.exp(), labels, threshold=1.0)
        with synchronisation_raises():
            step(b, **options)
            sf.bootstrap_targets(scores, scores.exp(), labels, threshold=1.0)


def test_graphs_replay():
    b = on_gpu(batch(size=(64, 64)))

    def refill() -> None:
        b.mean.normal_()
        b.log_variance.normal_()
        b.u.uniform_()
        b.target.random_(0, 2)

    assert_graph_replays(lambda: step(b, detach_weight=False), refill)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    b = on_gpu(batch(dtype, (129, 131)))
    assert_same_bits_on_every_run(lambda: step(b), name=str(dtype))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float16, torch.float16)],
)
def test_peak_memory(dtype, autocast):
    b = on_gpu(batch(dtype, (1024, 1024)))
    leaves = b.leaves(weighted=False)

    def run() -> None:
        with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
            loss = loss_of(b, weighted=False)
        torch.autograd.grad(1024 * loss, leaves)

    assert peak_memory(run) <= 1.1 * sum(leaf.nbytes for leaf in leaves)
