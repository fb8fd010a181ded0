"""On a GPU: the same calls against the specification on the CPU, and what only a GPU has."""

from __future__ import annotations

import pytest
import torch

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits_on_every_run
from python_tests.expected_cross_entropy.cases import (
    Outcome,
    batch,
    compare,
    random_case,
    run,
    triangle,
)
from python_tests.gpu import assert_graph_replays, peak_memory, synchronisation_raises
from python_tests.support import IGNORED
from segunc_ops import ExpectedCrossEntropyLoss

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]


def test_random_calls():
    for number in range(400):
        case = random_case(number)
        found = run(case.to("cuda"))
        gradients = {name: gradient.cpu() for name, gradient in found.gradients.items()}
        compare(case, Outcome(found.loss.cpu(), gradients))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("draws", [2, 64, 130, 256, 512])
def test_draws_of_a_team_of_any_size(draws, antithetic):
    dtypes = (torch.float32, torch.float64) if draws <= 256 else (torch.float32,)
    for dtype in dtypes:
        for cholesky in (False, True):
            mean, scale, target, _ = batch(dtype, (17, 19), cholesky=cholesky, classes=7)
            options = {"ignore_index": IGNORED, "seed": 3, "num_draws": draws}
            results = []
            for device in ("cpu", "cuda"):
                leaves = [t.detach().to(device).requires_grad_() for t in (mean, scale)]
                loss = sf.expected_cross_entropy(
                    *leaves, target.to(device), antithetic=antithetic, **options
                )
                results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
            bound = 1e-5 if dtype == torch.float32 else 1e-10
            for got, want in zip(*reversed(results), strict=True):
                assert (got.cpu() - want).abs().max() <= bound * max(1, float(want.abs().max()))


def test_more_draws_than_a_warp_has_room_for():
    mean, scale, target, _ = (t.cuda() for t in batch(torch.float32))
    with pytest.raises(ValueError, match="num_draws: expected at most 512 on a GPU, got 513"):
        sf.expected_cross_entropy(mean, scale, target, num_draws=513, ignore_index=IGNORED)


def test_target_out_of_range_is_nan_and_raised_by_the_next_call():
    x = torch.randn(2, 3, 40, 50, device="cuda", requires_grad=True)
    target = torch.randint(0, 3, (2, 40, 50), device="cuda")
    target[1, 3, 4] = 7
    assert sf.expected_cross_entropy(x, x, target).isnan()
    with pytest.raises(IndexError, match="out-of-range class 7"):
        segunc_ops.check()


@pytest.mark.parametrize("cholesky", [False, True])
def test_nothing_synchronises(cholesky):
    mean, scale, target, u = (t.detach().cuda() for t in batch(torch.float32, cholesky=cholesky))
    mean.requires_grad_()
    scale.requires_grad_()
    loss = ExpectedCrossEntropyLoss(ignore_index=IGNORED)
    loss(mean, scale, target, u).backward()
    with synchronisation_raises():
        loss(mean, scale, target, u).backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_graphs_replay(reduction):
    """With a seed in memory of the graph, which the caller changes."""
    mean, scale, target, _ = (t.detach().cuda() for t in batch(torch.float32, (33, 35)))
    seed = torch.tensor(7, device="cuda")
    leaves = mean.requires_grad_(), scale.requires_grad_()

    def calls() -> tuple[torch.Tensor, ...]:
        loss = sf.expected_cross_entropy(
            *leaves, target, seed=seed, ignore_index=IGNORED, reduction=reduction
        )
        return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)

    def refill() -> None:
        seed.add_(1)
        for leaf in leaves:
            leaf.normal_()

    assert_graph_replays(calls, refill)


@pytest.mark.parametrize("cholesky", [False, True])
def test_peak_memory(cholesky):
    channels = triangle(19) if cholesky else 19
    mean = torch.randn(2, 19, 256, 256, device="cuda", requires_grad=True)
    scale = torch.rand(2, channels, 256, 256, device="cuda", requires_grad=True)
    target = torch.randint(0, 19, (2, 256, 256), device="cuda")
    inputs = mean.nbytes + scale.nbytes

    def step() -> None:
        mean.grad = scale.grad = None
        sf.expected_cross_entropy(mean, scale, target).backward()

    assert inputs + peak_memory(step) <= 1.2 * 2 * inputs


def test_the_same_on_every_run():
    mean, scale, target, _ = (
        t.detach().cuda() for t in batch(torch.float32, (129, 131), classes=19)
    )
    leaves = mean.requires_grad_(), scale.requires_grad_()

    def once() -> tuple[torch.Tensor, ...]:
        loss = sf.expected_cross_entropy(*leaves, target, seed=1, ignore_index=IGNORED)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    assert_same_bits_on_every_run(once, name="expected_cross_entropy", runs=10)
