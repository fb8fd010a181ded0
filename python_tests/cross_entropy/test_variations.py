"""Focal, PAT, balanced softmax and LDAM against their papers' formulas in float64; focal also
against what other packages gave."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits
from python_tests.cross_entropy.cases import (
    Case,
    random_case,
    random_upsampled_case,
    scales,
)
from python_tests.cross_entropy.variations import LOSSES, Loss, expected
from python_tests.peers import BATCHES, Batch, assert_same_numbers, numbers, records
from python_tests.support import IGNORED, LOGITS_DTYPES, TARGET_DTYPES

COUNTS = torch.tensor([900.0, 1.0, 30.0, 4000.0, 250.0])


def counts_of(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(case.input.numel())
    return 1 + 1000 * torch.rand(case.input.shape[1], generator=generator) ** 4


def compare(loss: Loss, case: Case) -> None:
    counts = counts_of(case)
    actual = loss.call(case, counts)
    leaves = [x for x in (case.input, case.pixel_weight) if x is not None and x.requires_grad]
    grads = torch.autograd.grad(actual, leaves, case.upstream.to(actual.dtype)) if leaves else ()
    value, gradients = expected(loss, case, counts)
    sizes = scales(case)
    if loss.by_size and case.reduction == "mean":
        sizes = scales(replace(case, reduction="sum"))
        sizes = sizes._make(size / len(case.target) for size in sizes)
    compute = torch.float64 if case.input.dtype == torch.float64 else torch.float32
    names = ["loss", *["input" if x is case.input else "pixel_weight" for x in leaves]]
    scale = {
        "loss": sizes.loss,
        "input": sizes.grad_input,
        "pixel_weight": sizes.grad_pixel_weight,
    }
    bfloat16 = case.input.dtype == torch.bfloat16 and case.reduction != "none"
    for name, got, want in zip(names, (actual, *grads), (value, *gradients), strict=True):
        assert_close(
            got,
            want,
            name=f"{case.name}: {name}",
            scale=scale[name] * loss.magnitude,
            compute=compute,
            roundings=2 if bfloat16 and name == "input" else 1,
            bias=False,
        )


def usable(case: Case, loss: Loss) -> Case:
    """With a reduction that the loss has, and a shape (N, C, *)."""
    if loss.by_size and case.reduction == "mean_all":
        case = replace(case, reduction="sum")
    return case


@pytest.mark.parametrize("name", LOSSES)
def test_random_calls(name):
    loss = LOSSES[name]
    for seed in range(120):
        case = random_case(seed)
        if case.input.dim() < 2 or 0 in case.input.shape:
            continue
        compare(loss, usable(case, loss))


@pytest.mark.parametrize("name", LOSSES)
def test_random_upsampled_calls(name):
    loss = LOSSES[name]
    for seed in range(25):
        compare(loss, usable(random_upsampled_case(seed), loss))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("upsample", [None, "bilinear"])
# A detached factor's gradient is not that of the function.
@pytest.mark.parametrize("name", [*sorted({*LOSSES, "focal, 0.5"} - {"PAT, detached"})])
def test_gradcheck(name, upsample, reduction):
    loss = LOSSES.get(name) or LOSSES["focal"]._replace(arguments={"gamma": 0.5})
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 3, 4))
    target[0, 0] = IGNORED
    if upsample:
        x = x.detach()[:, :, :2, :3].requires_grad_()
    smoothing = 0.2 if loss.smooths else 0.0

    def call(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        case = Case(x, target, torch.rand(3), u, IGNORED, reduction, smoothing, x, name, upsample)
        torch.manual_seed(0)
        return loss.call(replace(case, weight=torch.rand(3)), COUNTS[:3])

    assert torch.autograd.gradcheck(call, (x, u))


def test_pixel_adaptive_training_by_hand():
    """Equations 4 and 5, a loop over the pixels."""
    x, target = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.randint(0, 4, (3, 5, 6))
    target[0, :2] = IGNORED
    total = 0.0
    for image in range(3):
        sizes = torch.bincount(target[image][target[image] != IGNORED], minlength=4)
        for row in range(5):
            for column in range(6):
                label = int(target[image, row, column])
                if label == IGNORED:
                    continue
                p = x[image, :, row, column].softmax(0)[label]
                beta = torch.exp((1 - p - 0.3) / 20)
                total += float(beta / sizes[label] * -p.log())
    loss = sf.pixel_adaptive_cross_entropy(x, target, epsilon=0.3, ignore_index=IGNORED)
    assert float(loss) == pytest.approx(total / 3, rel=1e-12)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_weights_of_a_probability(p):
    """The factors that tables of the papers print: a pixel's loss by its cross-entropy."""
    x = torch.tensor([p, 1 - p], dtype=torch.float64).log()
    target = torch.tensor(0)
    plain = float(sf.cross_entropy(x, target))
    for gamma in (0.5, 1.0, 2.0, 5.0):
        loss = sf.focal_cross_entropy(x, target, gamma=gamma)
        assert float(loss) / plain == pytest.approx((1 - p) ** gamma, rel=1e-12)
    for temperature in (1.0, 5.0, 20.0, 50.0):
        for curve, sign in (("equation", 1), ("table", -1)):
            loss = sf.pixel_adaptive_cross_entropy(x, target, temperature=temperature, curve=curve)
            factor = math.exp(sign * (1 - p) / temperature)
            assert float(loss) / plain == pytest.approx(factor, rel=1e-12)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 1.0, 2.0])
def test_focal_loss_of_certain_pixels_is_finite(gamma, dtype):
    """p = 1 and p = 0, where slopes are infinite or logarithms are."""
    x = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0]]).T.reshape(1, 2, 3).to(dtype)
    x.requires_grad_()
    target = torch.zeros(1, 3, dtype=torch.long)
    loss = sf.focal_cross_entropy(x, target, gamma=gamma, reduction="none")
    loss.sum().backward()
    assert loss.isfinite().all()
    assert x.grad.isfinite().all()
    assert float(loss[0, 0].detach()) < 1e-100
    assert float(x.grad[0, :, 0].abs().max()) < 1e-100
    assert loss[0, 1] == 400
    assert x.grad[0, :, 1].tolist() == [-1, 1]


def focal(
    batch: Batch,
    /,
    weight: list[float] | None = None,
    alpha: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """With alpha, which is the weight of all classes but the first, whose is 1 - alpha."""
    if alpha is not None:
        weight = [1 - alpha, *[alpha] * (batch.input.shape[1] - 1)]
    weights = None if weight is None else torch.tensor(weight, dtype=batch.input.dtype)
    return sf.focal_cross_entropy(batch.input, batch.target, weights, **options)


def like_kornia(batch: Batch, /, **options: Any) -> torch.Tensor:
    return focal(batch, reduction="sum", **options)


def like_monai(batch: Batch, /, **options: Any) -> torch.Tensor:
    """Its mean is over the valid pixels where some are ignored, else over pixels and classes."""
    if "ignore_index" in options:
        return focal(batch, reduction="mean", **options)
    return focal(batch, reduction="mean_all", **options) / batch.input.shape[1]


def like_torchvision(batch: Batch, /, gamma: float, alpha: float) -> torch.Tensor:
    """A sigmoid is the softmax of a logit and 0; there an alpha below 0 is none."""
    both = torch.cat([torch.zeros_like(batch.input), batch.input], 1)
    two = Batch((both,), (batch.target.squeeze(1).long(),))
    return focal(two, reduction="sum", gamma=gamma, alpha=None if alpha < 0 else alpha)


FOCAL: dict[str, Callable[..., torch.Tensor]] = {
    "kornia's focal_loss": like_kornia,
    "MONAI's FocalLoss": like_monai,
    "torchvision's sigmoid_focal_loss": like_torchvision,
}


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("record", [one for name in FOCAL for one in records(name)], ids=str)
def test_focal_gives_what_the_package_gave(record):
    batch = BATCHES[record.batch]()
    found = numbers(FOCAL[record.loss](batch, **record.options), batch.inputs)
    # MONAI computes in float32.
    assert_same_numbers(found, record.numbers, 1e-6 if "MONAI" in record.loss else 1e-12)


@pytest.mark.usefixtures("each_backend")
def test_logits_adjusted_by_hand():
    """Balanced softmax and LDAM are torch's cross-entropy of other logits."""
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, 6, 7))
    target[0, :2] = IGNORED
    # 0.5 is the margin of the rarest class, of one pixel; 16 times as many have half of it.
    counts = torch.tensor([16, 1, 16, 81, 256])
    margins = torch.tensor([1 / 4, 1 / 2, 1 / 4, 1 / 6, 1 / 8], dtype=torch.float64)
    margins = margins.view(1, 5, 1, 1)
    classes = torch.arange(5).view(1, 5, 1, 1)
    labelled = (classes == target.unsqueeze(1)).double()
    for found, logits in (
        (
            sf.balanced_softmax_cross_entropy(x, target, counts, ignore_index=IGNORED),
            x + counts.double().log().view(1, 5, 1, 1),
        ),
        (
            sf.ldam_cross_entropy(x, target, counts, ignore_index=IGNORED),
            20 * (x - margins * labelled),
        ),
        (
            sf.ldam_cross_entropy(
                x, target, counts, scale=1, margin_on="all", ignore_index=IGNORED
            ),
            x - margins,
        ),
    ):
        wanted = F.cross_entropy(logits, target, ignore_index=IGNORED)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(found, x)[0], torch.autograd.grad(wanted, x)[0]
        )


def test_an_adjustment_by_equal_counts_is_none():
    x, target = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    same = torch.full((5,), 17)
    torch.testing.assert_close(
        sf.balanced_softmax_cross_entropy(x, target, same), F.cross_entropy(x, target)
    )
    torch.testing.assert_close(
        sf.ldam_cross_entropy(x, target, same, scale=2, margin_on="all"),
        F.cross_entropy(2 * x, target),
    )
    torch.testing.assert_close(
        sf.ldam_cross_entropy(x, target, COUNTS, scale=1, max_margin=0), F.cross_entropy(x, target)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_read_at_ignored_pixels(name):
    loss = LOSSES[name]
    target = torch.randint(0, 5, (2, 9, 33))
    ignored = torch.rand(target.shape) < 0.3
    target[ignored] = IGNORED
    clean = torch.randn(2, 5, 9, 33)
    results = []
    for poison in (0.0, float("nan"), float("inf")):
        x = clean.masked_fill(ignored.unsqueeze(1), poison).requires_grad_()
        case = Case(x, target, None, None, IGNORED, "sum", 0.0, x, name)
        value = loss.call(case, COUNTS)
        (gradient,) = torch.autograd.grad(value, x)
        assert not gradient.movedim(1, -1)[ignored].any()
        results.append((value.detach(), gradient))
    for other in results[1:]:
        assert_same_bits(other[0], results[0][0], name="loss")
        assert_same_bits(other[1], results[0][1], name="gradient")


@pytest.mark.parametrize("name", LOSSES)
def test_the_reference_agrees(name):
    """The specification, which is what runs without kernels."""
    loss = LOSSES[name]
    cases = [random_upsampled_case(seed) for seed in (3, 8, 21)]
    cases += [random_case(seed) for seed in range(20)]
    for case in cases:
        if case.input.dim() > 1 and 0 not in case.input.shape:
            with segunc_ops.backend("reference"):
                compare(loss, usable(case, loss))


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_calls(name):
    loss = LOSSES[name]
    torch.compiler.reset()
    x, target = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(0, 5, (2, 6, 7))

    def step(x: torch.Tensor) -> torch.Tensor:
        return loss.call(Case(x, target, None, None, IGNORED, "mean", 0.0, x, name), COUNTS)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), step(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(step(x), x))


@pytest.mark.parametrize("name", LOSSES)
def test_transforms_and_second_derivatives(name):
    loss = LOSSES[name]
    x, target = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(0, 5, (2, 6, 7))

    def step(x: torch.Tensor) -> torch.Tensor:
        return loss.call(Case(x, target, None, None, IGNORED, "mean", 0.0, x, name), COUNTS)

    (gradient,) = torch.autograd.grad(step(x), x, create_graph=True)
    torch.testing.assert_close(torch.func.grad(step)(x.detach()), gradient)
    with pytest.raises(RuntimeError, match="cross_entropy: second derivatives"):
        gradient.sum().backward()


def test_class_sizes():
    for dtype in TARGET_DTYPES:
        target = torch.randint(0, 7, (3, 61, 83))
        target[torch.rand(target.shape) < 0.2] = 255
        sizes = sf.class_sizes(target.to(dtype), 6, ignore_index=2)
        wanted = torch.stack([torch.bincount(image.flatten(), minlength=256) for image in target])
        wanted = wanted[:, :6]
        wanted[:, 2] = 0
        assert torch.equal(sizes, wanted)
        with segunc_ops.backend("reference"):
            assert torch.equal(sf.class_sizes(target.to(dtype), 6, ignore_index=2), wanted)
    assert sf.class_sizes(torch.zeros(0, 4, dtype=torch.long), 3).shape == (0, 3)
    assert sf.class_sizes(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_class_weights():
    weights = sf.class_balanced_weights([10, 100, 1000], beta=0.99)
    effective = torch.tensor([1 - 0.99**n for n in (10, 100, 1000)], dtype=torch.float64)
    wanted = 1 / effective * 3 / (1 / effective).sum()
    torch.testing.assert_close(weights, wanted.float())
    # (n - 1) / n of n = 1110.
    beta = 1109 / 1110
    effective = torch.tensor([1 - beta**n for n in (10, 100, 1000)], dtype=torch.float64)
    torch.testing.assert_close(
        sf.class_balanced_weights(torch.tensor([10, 100, 1000])),
        (3 / effective / (1 / effective).sum()).float(),
    )
    # Millions of pixels: a fixed beta makes no difference between them.
    torch.testing.assert_close(
        sf.class_balanced_weights([3_000_000, 50_000_000], beta=0.999), torch.ones(2)
    )
    assert sf.class_balanced_weights([1, 1], beta=0).tolist() == [1, 1]
    torch.testing.assert_close(sf.inverse_frequency_weights([1, 3]), torch.tensor([1.5, 0.5]))


def _arguments() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, y: sf.focal_cross_entropy(x, y, gamma=-1),
            ValueError,
            "gamma: .*at least 0.*-1",
        ),
        (lambda x, y: sf.focal_cross_entropy(x, y, gamma="2"), TypeError, "gamma: .*got str"),
        (
            lambda x, y: sf.focal_cross_entropy(x, y, gamma=float("nan")),
            ValueError,
            "gamma: .*got nan",
        ),
        (
            lambda x, y: sf.pixel_adaptive_cross_entropy(x, y, temperature=0),
            ValueError,
            "temperature: .*above 0, got 0",
        ),
        (
            lambda x, y: sf.pixel_adaptive_cross_entropy(x, y, temperature=0.001),
            ValueError,
            "temperature: expected at least 0.0125 .*got 0.001",
        ),
        (
            lambda x, y: sf.pixel_adaptive_cross_entropy(x, y, curve="inverse"),
            ValueError,
            "curve: expected one of .*table.*got 'inverse'",
        ),
        (
            lambda x, y: sf.pixel_adaptive_cross_entropy(x, y, reduction="mean_all"),
            ValueError,
            "reduction: .*size_normalized=False",
        ),
        (
            lambda x, y: sf.pixel_adaptive_cross_entropy(x, y, detach_weight=1),
            TypeError,
            "detach_weight: expected a bool",
        ),
        (
            lambda x, y: sf.balanced_softmax_cross_entropy(x, y, [3, 0, 1]),
            ValueError,
            "counts: .*got 0 for class 1",
        ),
        (
            lambda x, y: sf.balanced_softmax_cross_entropy(x, y, [3, float("nan"), 1]),
            ValueError,
            "counts: .*got nan for class 1",
        ),
        (
            lambda x, y: sf.balanced_softmax_cross_entropy(x, y, [3, 1]),
            ValueError,
            r"counts: expected shape \(3,\).*got \(2,\)",
        ),
        (
            lambda x, y: sf.balanced_softmax_cross_entropy(x, y, torch.ones(3, 1)),
            ValueError,
            r"counts: expected shape \(C,\).*got \(3, 1\)",
        ),
        (
            lambda x, y: sf.balanced_softmax_cross_entropy(x, y, None),
            TypeError,
            "counts: expected a number for each class, got NoneType",
        ),
        (
            lambda x, y: sf.balanced_softmax_cross_entropy(x, y, torch.ones(3, device="meta")),
            ValueError,
            "counts: expected device cpu",
        ),
        (
            lambda x, y: sf.ldam_cross_entropy(x, y, [1, 2, 3], scale=0),
            ValueError,
            "scale: .*above 0",
        ),
        (
            lambda x, y: sf.ldam_cross_entropy(x, y, [1, 2, 3], max_margin=-0.1),
            ValueError,
            "max_margin: .*at least 0",
        ),
        (
            lambda x, y: sf.ldam_cross_entropy(x, y, [1, 2, 3], margin_on="each"),
            ValueError,
            "margin_on: expected one of",
        ),
        (lambda x, y: sf.class_balanced_weights([1, 2], beta=1), ValueError, r"beta: .*\[0, 1\)"),
        (lambda x, y: sf.inverse_frequency_weights([1, 0]), ValueError, "counts: .*class 1"),
        (lambda x, y: sf.class_sizes(y, 0), ValueError, "num_classes: expected at least 1"),
        (lambda x, y: sf.class_sizes(x, 3), TypeError, "target: expected int64, int32, int16"),
        (lambda x, y: sf.class_sizes(y[0, 0, 0], 3), ValueError, r"target: .*\(N, \*\), got \(\)"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(*_arguments())
