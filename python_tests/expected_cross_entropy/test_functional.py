"""Values: of the kernels against the specification, and of both against what they have to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits, assert_same_bits_on_every_run
from python_tests.expected_cross_entropy.cases import (
    batch,
    compare,
    random_case,
    run,
    triangle,
)
from python_tests.support import IGNORED, REDUCTIONS
from segunc_ops import ExpectedCrossEntropyLoss
from segunc_ops.reference.expected_cross_entropy import normal_draws


@pytest.mark.usefixtures("one_thread")
def test_the_kernels_compute_what_the_specification_says():
    for number in range(160):
        case = random_case(number)
        compare(case, run(case))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(
    ("classes", "cholesky"), [(19, False), (150, False), (19, True), (150, True)]
)
def test_many_classes(classes, cholesky, antithetic):
    size = (4, 6) if cholesky and classes > 100 else (9, 11)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        mean, scale, target, _ = batch(dtype, size, cholesky=cholesky, classes=classes)
        with torch.no_grad():
            scale *= 0.3 if cholesky else 1
        results = []
        for backend in ("auto", "reference"):
            with segunc_ops.backend(backend):
                loss = sf.expected_cross_entropy(
                    *(t if backend == "auto" else t.double() for t in (mean, scale)),
                    target,
                    ignore_index=IGNORED,
                    antithetic=antithetic,
                    seed=5,
                )
            results.append((loss.detach(), *torch.autograd.grad(loss, (mean, scale))))
        for got, want in zip(*results, strict=True):
            error = (got.double() - want).abs().max()
            assert error <= bound * max(1.0, float(want.abs().max())), error
        # Relative to the largest, gradients of a mean are small numbers.
        for got, want in zip(results[0][1:], results[1][1:], strict=True):
            assert (got - want).abs().max() <= 2 * bound * want.abs().max()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("cholesky", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_scale_of_zero_is_cross_entropy(reduction, cholesky):
    mean, scale, target, u = batch(cholesky=cholesky)
    weight = torch.rand(3, dtype=torch.float64) + 0.5
    scale = torch.zeros_like(scale, requires_grad=True)
    options = {"ignore_index": IGNORED, "reduction": reduction, "pixel_weight": u}
    loss = sf.expected_cross_entropy(mean, scale, target, weight, num_draws=5, **options)
    wanted = sf.cross_entropy(mean, target, weight, **options)
    torch.testing.assert_close(loss, wanted)
    for got, want in zip(
        torch.autograd.grad(loss.sum(), (mean, u)),
        torch.autograd.grad(wanted.sum(), (mean, u)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("antithetic", [False, True])
def test_a_diagonal_is_a_factor_without_the_rest(antithetic):
    mean, scale, target, _ = batch(classes=4)
    packed = torch.zeros(2, triangle(4), *target.shape[1:], dtype=torch.float64)
    rows, columns = torch.tril_indices(4, 4)
    packed[:, rows == columns] = scale.detach()
    packed.requires_grad_()
    results = []
    for factor in (scale, packed):
        loss = sf.expected_cross_entropy(
            mean, factor, target, ignore_index=IGNORED, antithetic=antithetic, seed=2
        )
        results.append((loss.detach(), *torch.autograd.grad(loss, (mean, factor))))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    torch.testing.assert_close(results[0][2], results[1][2][:, rows == columns])


@pytest.mark.usefixtures("each_backend")
def test_each_pixel_class_and_draw_has_numbers_of_its_own():
    draws = normal_draws((2, 64, 64), 3, 6, False, torch.tensor(11))
    n = draws.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = {1: 1, 2: 2, 3: 15, 4: 96, 6: 10170}[power] ** 0.5
        assert abs(float((draws**power).mean()) - moment) < 5 * spread / n**0.5
    for one, other in (
        (draws[1:], draws[:-1]),
        (draws[3:], draws[:-3]),
        (draws[:, 1:], draws[:, :-1]),
        (draws[:, :, 1:], draws[:, :, :-1]),
        (draws[..., 1:], draws[..., :-1]),
        (draws[1:].abs(), draws[:-1].abs()),
    ):
        pair = torch.stack([one.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / pair.shape[1] ** 0.5
    paired = normal_draws((2, 64, 64), 3, 6, True, torch.tensor(11))
    torch.testing.assert_close(paired[::2], draws[:3])
    torch.testing.assert_close(paired[1::2], -draws[:3])


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("hidden", [torch.nan, torch.inf])
@pytest.mark.parametrize("cholesky", [False, True])
def test_ignored_pixels_are_never_read(cholesky, hidden):
    mean, scale, target, u = batch(cholesky=cholesky)
    options = {"ignore_index": IGNORED, "seed": 1, "reduction": "sum"}
    results = []
    for fill in (None, hidden):
        leaves = [t.detach().clone() for t in (mean, scale)]
        weights = u.detach().clone()
        if fill is not None:
            for leaf in leaves:
                leaf.movedim(1, -1)[target == IGNORED] = fill
            weights[target == IGNORED] = fill
        leaves = [t.requires_grad_() for t in (*leaves, weights)]
        loss = sf.expected_cross_entropy(*leaves[:2], target, pixel_weight=leaves[2], **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for got, want in zip(*results, strict=True):
        assert_same_bits(got, want, name="result")
    assert results[0][1].movedim(1, -1)[target == IGNORED].eq(0).all()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(dtype):
    """Logits that a softmax saturates at, classes that are masked, spreads beyond exp's range."""
    mean = torch.tensor([[0.0, 1e4, -1e4], [1e4, 0, -torch.inf], [3.0, 1.0, 2.0]], dtype=dtype)
    scale = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.5, 1.0], [1e3, 1e3, 0.0]], dtype=dtype)
    target = torch.tensor([0, 0, 1])
    mean.requires_grad_()
    scale.requires_grad_()
    loss = sf.expected_cross_entropy(mean, scale, target, seed=1, reduction="none")
    assert loss[0].item() == pytest.approx(1e4, rel=1e-3)
    assert loss[1] == 0
    assert loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), (mean, scale)):
        assert gradient.isfinite().all()
    masked = torch.tensor([[0.0, -torch.inf]], dtype=dtype)
    of_masked = sf.expected_cross_entropy(masked, torch.ones_like(masked), torch.tensor([1]))
    assert of_masked == torch.inf
    nowhere = torch.full_like(masked, torch.nan)
    assert sf.expected_cross_entropy(nowhere, nowhere, torch.tensor([1])).isnan()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("cholesky", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_is_that_of_torch(align_corners, cholesky):
    mean, scale, _, _ = batch(cholesky=cholesky)
    target = torch.randint(0, 3, (2, 7, 9))
    options = {"upsample": "bilinear", "align_corners": align_corners}
    loss = sf.expected_cross_entropy(mean, scale, target, seed=4, **options)
    larger = (
        F.interpolate(t, (7, 9), mode="bilinear", align_corners=align_corners)
        for t in (mean, scale)
    )
    wanted = sf.expected_cross_entropy(*larger, target, seed=4)
    torch.testing.assert_close(loss, wanted)
    found = torch.autograd.grad(loss, (mean, scale))
    torch.testing.assert_close(found, torch.autograd.grad(wanted, (mean, scale)))
    volumes = torch.randn(1, 3, 2, 3, 2), torch.rand(1, 3, 2, 3, 2)
    target = torch.randint(0, 3, (1, 3, 4, 5))
    loss = sf.expected_cross_entropy(*volumes, target, upsample="trilinear", seed=4)
    larger = (F.interpolate(t, (3, 4, 5), mode="trilinear") for t in volumes)
    torch.testing.assert_close(loss, sf.expected_cross_entropy(*larger, target, seed=4))


@pytest.mark.usefixtures("each_backend")
def test_types_of_results():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        mean, scale, target, _ = batch(dtype)
        loss = sf.expected_cross_entropy(mean, scale, target, ignore_index=IGNORED, seed=1)
        assert loss.dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            precise = sf.expected_cross_entropy(mean, scale, target, ignore_index=IGNORED, seed=1)
        assert precise.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, precise.detach().double(), name="loss", bias=False)


def test_seeds():
    mean, scale, target, _ = batch(torch.float32)
    loss = ExpectedCrossEntropyLoss(ignore_index=IGNORED)
    torch.manual_seed(1)
    first, second = loss(mean, scale, target), loss(mean, scale, target)
    torch.manual_seed(1)
    assert_same_bits(loss(mean, scale, target), first, name="loss")
    assert first != second

    def seeded(seed: object) -> Tensor:
        return sf.expected_cross_entropy(
            mean,
            scale,
            target,
            seed=seed,
            ignore_index=IGNORED,  # type: ignore[arg-type]
        )

    for seed in (5, -3, 2**63 - 1, torch.tensor(5)):
        assert_same_bits(seeded(seed), seeded(seed), name="loss")
    assert_same_bits(seeded(5), seeded(torch.tensor(5)), name="loss")
    assert seeded(4) != seeded(5)


@pytest.mark.parametrize("cholesky", [False, True])
def test_the_same_on_every_run(cholesky):
    mean, scale, target, _ = batch(torch.float32, (43, 51), cholesky=cholesky, classes=5)

    def once() -> tuple[Tensor, ...]:
        loss = sf.expected_cross_entropy(mean, scale, target, seed=1, ignore_index=IGNORED)
        return loss.detach(), *torch.autograd.grad(loss, (mean, scale))

    assert_same_bits_on_every_run(once, name="expected_cross_entropy", runs=6)


@pytest.mark.usefixtures("each_backend")
def test_module():
    mean, scale, target, u = batch()
    weight = torch.tensor([1.0, 2.0, 0.5])
    loss = ExpectedCrossEntropyLoss(
        weight, num_draws=6, antithetic=True, ignore_index=IGNORED, reduction="sum"
    )
    torch.manual_seed(3)
    found = loss(mean, scale, target, u)
    torch.manual_seed(3)
    wanted = sf.expected_cross_entropy(
        mean,
        scale,
        target,
        weight,
        num_draws=6,
        antithetic=True,
        pixel_weight=u,
        ignore_index=IGNORED,
        reduction="sum",
    )
    assert_same_bits(found, wanted, name="loss")
    assert list(loss.state_dict()) == ["weight"]
    assert repr(loss) == (
        "ExpectedCrossEntropyLoss(num_draws=6, antithetic=True, num_classes=3, ignore_index=255, "
        "reduction='sum')"
    )
    for option in ("label_smoothing", "overwrite_input"):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            ExpectedCrossEntropyLoss(**{option: 0})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_draws": 0}, ValueError, "num_draws: expected at least 1, got 0"),
        ({"num_draws": 2.5}, TypeError, "num_draws: expected an integer"),
        ({"num_draws": 3, "antithetic": True}, ValueError, "num_draws: expected an even number"),
        ({"antithetic": 1}, TypeError, "antithetic: expected a bool"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer"),
        ({"seed": torch.ones(1)}, TypeError, "seed: .*got torch.float32"),
        (
            {"scale": torch.rand(2, 4, 4, 5)},
            ValueError,
            r"scale: expected shape \(2, 3, 4, 5\), or",
        ),
        ({"scale": torch.rand(2, 3, 5, 4)}, ValueError, r"got \(2, 3, 5, 4\)"),
        ({"scale": torch.rand(2, 3, 4, 5).half()}, TypeError, "scale: expected torch.float32"),
        ({"scale": 1.0}, TypeError, "scale: expected a tensor"),
        ({"mean": torch.rand(2, 1, 4, 5)}, ValueError, "mean: .*at least 2 classes"),
        ({"mean": torch.rand(3)}, ValueError, "mean: .*at least 2 classes"),
        ({"mean": torch.ones(2, 3, 4, 5).long()}, TypeError, "mean: expected float32"),
        ({"target": torch.zeros(2, 4, 6).long()}, ValueError, "target: expected shape"),
        ({"target": torch.full((2, 4, 5), 3)}, IndexError, r"target: expected a class in \[0, 3\)"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of"),
        ({"upsample": "cubic"}, ValueError, "upsample: expected None or one of"),
        ({"upsample": "trilinear"}, ValueError, r"mean: expected shape \(N, C, D, H, W\)"),
        ({"weight": torch.ones(4)}, ValueError, r"weight: expected shape \(3,\)"),
        ({"pixel_weight": torch.ones(7)}, ValueError, "pixel_weight: expected the target's shape"),
    ],
)
@pytest.mark.usefixtures("each_backend")
def test_errors(arguments, error, message):
    given = {
        "mean": torch.randn(2, 3, 4, 5),
        "scale": torch.rand(2, 3, 4, 5),
        "target": torch.randint(0, 3, (2, 4, 5)),
    }
    with pytest.raises(error, match=message):
        sf.expected_cross_entropy(**{**given, **arguments})
