"""Balancing logit variation: cross-entropy of logits with noise that is drawn where it is used."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits, assert_same_bits_on_every_run
from python_tests.cross_entropy.cases import (
    Case,
    random_case,
    random_upsampled_case,
    scales,
)
from python_tests.support import IGNORED
from segunc_ops import LogitVariationCrossEntropyLoss
from segunc_ops._variations import Noise
from segunc_ops.reference.cross_entropy import noise_sizes

COUNTS = torch.tensor([900.0, 1.0, 30.0, 4000.0, 250.0])
FREQUENT = torch.tensor([1e300], dtype=torch.float64)  # of a class that has no noise


def call(case: Case, counts: Tensor, **options: object) -> Tensor:
    return sf.logit_variation_cross_entropy(
        case.input,
        case.target,
        counts,
        case.weight,
        pixel_weight=case.pixel_weight,
        ignore_index=case.ignore_index,
        reduction=case.reduction,
        label_smoothing=case.label_smoothing,
        upsample=case.upsample,
        align_corners=case.align_corners,
        **options,
    )


def noise(shape: tuple[int, ...], counts: Tensor, seed: int, **options: object) -> Tensor:
    """What is added to logits of that shape, in float64: that of logits which are all 0.

    A loss per pixel and class tells its logits but for a constant, which class 0 has no part in if
    it is the most frequent one of all: its noise is 0.
    """
    rare = torch.cat([FREQUENT, counts.double()])
    images, classes, *spatial = shape
    zeros = torch.zeros(images, classes + 1, *spatial, dtype=torch.float64)
    losses = [
        sf.logit_variation_cross_entropy(
            zeros,
            torch.full((images, *spatial), label),
            rare,
            seed=seed,
            reduction="none",
            **options,
        )
        for label in range(classes + 1)
    ]
    return torch.stack([losses[0] - loss for loss in losses[1:]], 1)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_the_kernels_draw_what_the_specification_draws(distribution):
    cases = [random_case(seed) for seed in range(150)]
    cases += [random_upsampled_case(seed) for seed in range(25)]
    for number, case in enumerate(cases):
        if case.input.dim() < 2 or 0 in case.input.shape:
            continue
        counts = 1 + 1000 * torch.rand(case.input.shape[1]) ** 4
        results = []
        exact = replace(
            case, input=case.input.detach().double().requires_grad_(case.input.requires_grad)
        )
        for backend, one in (("native", case), ("reference", exact)):
            leaves = [x for x in (one.input, one.pixel_weight) if x is not None and x.requires_grad]
            with segunc_ops.backend(backend):
                loss = call(one, counts, seed=number, distribution=distribution)
                upstream = one.upstream.to(loss.dtype)
                grads = torch.autograd.grad(loss, leaves, upstream) if leaves else ()
            results.append((loss.detach(), *grads))
        sizes = scales(case)
        names = ["loss", *["input" for _ in leaves if _ is exact.input], "pixel_weight"]
        scale = {
            "loss": sizes.loss,
            "input": sizes.grad_input,
            "pixel_weight": sizes.grad_pixel_weight,
        }
        compute = torch.float64 if case.input.dtype == torch.float64 else torch.float32
        bfloat16 = case.input.dtype == torch.bfloat16 and case.reduction != "none"
        for name, got, want in zip(names, *results, strict=False):
            # Noise of at most 1 is within 4e-7 in single precision.
            assert_close(
                got,
                want.double(),
                name=f"{case.name}: {name}",
                scale=8 * scale[name],
                compute=compute,
                roundings=2 if bfloat16 and name == "input" else 1,
                bias=False,
            )


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_noise_without_size_is_none(distribution):
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, 6, 7))
    loss = sf.logit_variation_cross_entropy(x, target, COUNTS, sigma=0, distribution=distribution)
    wanted = F.cross_entropy(x, target)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(wanted, x)[0])
    one = torch.randn(2, 1, 6, 7)
    assert sf.logit_variation_cross_entropy(one, 0 * target, [3]) == 0


@pytest.mark.parametrize("sigma", [0.3, 0.5, 2.0])
def test_normal_noise_has_the_moments_of_theory(sigma):
    """|delta| of N(0, sigma), clamped to 1, times a class's factor."""
    counts = torch.tensor([1.0, 10.0])
    sizes = noise((4, 2, 128, 128), counts, 7, sigma=sigma)
    rare = torch.cat([FREQUENT, counts.double()])
    factors = (rare.sum().log() - rare.log()) / (rare.sum().log() - rare.log()).max()
    sizes = sizes / factors[1:].view(2, 1, 1)
    normal = torch.distributions.Normal(0, sigma)
    beyond = 2 * (1 - float(normal.cdf(torch.tensor(1.0))))
    # E min(|x|, 1) and E min(x^2, 1)
    density = math.sqrt(2 / math.pi) * sigma
    at_one = math.exp(-1 / (2 * sigma**2))
    mean = density * (1 - at_one) + beyond
    square = sigma**2 * (1 - beyond) - density * at_one + beyond
    for label in range(2):
        one = sizes[:, label].flatten()
        error = 5 / math.sqrt(len(one))
        assert float(one.min()) >= -1e-12
        assert float(one.max()) <= 1 + 1e-12
        assert float((one > 1 - 1e-12).double().mean()) == pytest.approx(beyond, abs=error)
        assert float(one.mean()) == pytest.approx(mean, abs=error)
        assert float(one.square().mean()) == pytest.approx(square, abs=error)
        quartile = float(normal.icdf(torch.tensor(0.625)))
        assert float((one < quartile).double().mean()) == pytest.approx(0.25, abs=error)
    # Classes, pixels and images have numbers of their own.
    for first, second in (
        (sizes[:, 0], sizes[:, 1]),
        (sizes[..., 1:], sizes[..., :-1]),
        (sizes[1:], sizes[:-1]),
    ):
        pair = torch.stack([first.flatten(), second.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(pair.shape[1])


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_uniform_noise(sigma):
    sizes = noise((2, 1, 128, 128), torch.tensor([1.0]), 3, sigma=sigma, distribution="uniform")
    ordered = sizes.flatten().sort().values
    wanted = (sigma * torch.linspace(0, 1, len(ordered), dtype=torch.float64)).clamp(max=1)
    torch.testing.assert_close(ordered, wanted, atol=0.02 * sigma, rtol=0)


def test_seeds():
    x, target = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    loss = LogitVariationCrossEntropyLoss(COUNTS)
    torch.manual_seed(1)
    first, second = loss(x, target), loss(x, target)
    torch.manual_seed(1)
    assert_same_bits(loss(x, target), first, name="loss")
    assert first != second
    for seed in (5, -3, 2**63 - 1, torch.tensor(5)):
        values = [sf.logit_variation_cross_entropy(x, target, COUNTS, seed=seed) for _ in range(2)]
        assert_same_bits(*values, name="loss")
    assert sf.logit_variation_cross_entropy(x, target, COUNTS, seed=4) != values[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_backward_pass_draws_the_same(reduction, dtype):
    """Also where it recomputes, and under checkpointing, which runs the loss twice."""
    x = torch.randn(2, 5, 16, 17).to(dtype).requires_grad_()
    target = torch.randint(0, 5, (2, 16, 17))
    exact = x.detach().double().requires_grad_()
    sizes = noise_sizes(Noise("normal", 0.5, torch.tensor(9)), exact.detach())
    rarity = COUNTS.double().sum().log() - COUNTS.double().log()
    drawn = (rarity / rarity.max()).view(1, 5, 1, 1) * sizes
    wanted = F.cross_entropy(exact + drawn, target, reduction=reduction)
    wanted.sum().backward()

    def loss(x: Tensor) -> Tensor:
        return sf.logit_variation_cross_entropy(x, target, COUNTS, seed=9, reduction=reduction)

    for run in (loss, lambda x: torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False)):
        x.grad = None
        run(x).sum().backward()
        scale = float(exact.grad.abs().max())
        assert_close(x.grad, exact.grad, name="gradient", scale=8 * scale, bias=False)


def test_checkpoints_restore_the_seed():
    x, target = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(0, 5, (2, 6, 7))
    loss = LogitVariationCrossEntropyLoss(COUNTS, reduction="none")
    gradients = []
    for run in (loss, lambda *a: torch.utils.checkpoint.checkpoint(loss, *a, use_reentrant=False)):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(run(x, target).sum(), x)[0])
    assert_same_bits(*gradients, name="gradient")


def test_evaluation_is_plain_cross_entropy():
    x, target = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    loss = LogitVariationCrossEntropyLoss(COUNTS).eval()
    assert_same_bits(loss(x, target), sf.cross_entropy(x, target), name="loss")


def test_the_same_on_every_run():
    x = torch.randn(2, 19, 65, 67, requires_grad=True)
    target = torch.randint(0, 19, (2, 65, 67))
    target[0, :3] = IGNORED
    counts = torch.rand(19) + 0.1

    def run() -> tuple[Tensor, ...]:
        loss = sf.logit_variation_cross_entropy(x, target, counts, seed=1, ignore_index=IGNORED)
        return loss.detach(), *torch.autograd.grad(loss, x)

    assert_same_bits_on_every_run(run, name="noise", runs=10)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigma": -1}, ValueError, "sigma: .*at least 0"),
        ({"distribution": "cauchy"}, ValueError, "distribution: expected one of .*got 'cauchy'"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer"),
        ({"seed": torch.ones(1)}, TypeError, "seed: .*got torch.float32"),
        ({"counts": [1, 0, 2]}, ValueError, "counts: .*class 1"),
    ],
)
def test_errors(options, error, message):
    x, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    arguments = {"counts": [1, 2, 3], **options}
    with pytest.raises(error, match=message):
        sf.logit_variation_cross_entropy(x, target, **arguments)
