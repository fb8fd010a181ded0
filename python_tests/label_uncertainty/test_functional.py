"""Values against the closed formulas in 60 digits, and the kernels against the reference."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits, assert_same_bits_on_every_run
from python_tests.label_uncertainty.cases import (
    LEAVES,
    Batch,
    batch,
    closed_formula,
    compare,
    loss_of,
)
from python_tests.memory import peak_bytes
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, REDUCTIONS, TARGET_DTYPES
from segunc_ops._label_uncertainty import LabelUncertaintyOptions

OPTIONS = {
    "both": {},
    "uncertainty alone": {"bootstrap_weight": 0.0},
    "bootstrapping alone": {"uncertainty_weight": 0.0},
    "weights": {"uncertainty_weight": 0.3, "bootstrap_weight": 2.0, "threshold": 0.0},
    "weight not detached": {"detach_weight": False},
    "weight alone, not detached": {"detach_weight": False, "uncertainty_weight": 0.0},
}
# One pixel, less than a pack, ragged tiles, more than a unit.
SIZES = ((), (1, 1), (5, 7), (131,), (3, 50, 31))
MEANS = (-60.0, -21.5, -3.0, -0.01, 0.02, 0.7, 12.0, 60.0)
LOG_VARIANCES = (-60.0, -20.0, -1.0, 0.0, 0.3, 1.5, 4.9, 20.0, 60.0)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_closed_formulas(options):
    """To twelve digits, values and gradients, also where they are tiny."""
    pixels = [*product(MEANS, LOG_VARIANCES, (0, 1), (True, False))]
    columns = torch.tensor([p[:2] for p in pixels], dtype=torch.float64).unbind(1)
    leaves = [column.clone().requires_grad_() for column in columns]
    target, bootstrap = (torch.tensor([p[i] for p in pixels]) for i in (2, 3))
    given = {"threshold": 1.0, "reduction": "none", **OPTIONS[options]}
    chosen = LabelUncertaintyOptions(**given)
    loss = sf.label_uncertainty.label_uncertainty_with(chosen, *leaves, target, bootstrap)
    gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    truth = torch.tensor([closed_formula(*p, chosen) for p in pixels], dtype=torch.float64)
    for name, found, wanted in zip(
        ("loss", "mean", "log_variance"), (loss, *gradients), truth.unbind(1), strict=True
    ):
        if found is None:
            assert not wanted.any()
            continue
        # Numbers under e^-600 are as good as 0.
        torch.testing.assert_close(
            found, wanted, rtol=1e-12, atol=1e-260, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_number_is_finite(dtype):
    """Variances that overflow, logits that saturate: the flipped label's loss, no NaN."""
    numbers = torch.tensor([0.0, 1.0, 60.0, 88.0, 200.0, 1000.0, 1e30])
    numbers = torch.cat([numbers, -numbers])
    pairs = torch.cartesian_prod(numbers, numbers).to(dtype)
    for label, detach in product((0, 1), (True, False)):
        leaves = [column.clone().requires_grad_() for column in pairs.unbind(1)]
        target = torch.full(leaves[0].shape, label)
        options = LabelUncertaintyOptions(1.0, detach_weight=detach, reduction="none")
        loss = sf.label_uncertainty.label_uncertainty_with(options, *leaves, target)
        gradients = torch.autograd.grad(loss.sum(), leaves)
        assert all(values.isfinite().all() for values in (loss, *gradients))
        flipped = leaves[1] > 10
        of_bootstrap = sf.bootstrapped_bce(*leaves, target, threshold=1.0, reduction="none")
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(
            leaves[0], 1.0 - target.to(dtype), reduction="none"
        )
        torch.testing.assert_close(of_bootstrap[flipped], wanted[flipped])
        # No share of the gradient comes from a weight that is 0.
        assert not gradients[1][flipped & (leaves[0] == 0)].any()


@pytest.mark.usefixtures("each_backend")
def test_functions_are_parts_of_the_sum():
    b = batch(torch.float64)
    shared = {"pixel_weight": b.u, "ignore_index": IGNORED, "reduction": "none"}
    parts = (
        sf.label_uncertainty_bce(b.mean, b.log_variance, b.target, **shared),
        sf.bootstrapped_bce(
            b.mean, b.log_variance, b.target, threshold=1.0, bootstrap=b.bootstrap, **shared
        ),
    )
    torch.testing.assert_close(loss_of(b, reduction="none"), parts[0] + parts[1])
    weighted = loss_of(b, reduction="none", uncertainty_weight=0.5, bootstrap_weight=3.0)
    torch.testing.assert_close(weighted, 0.5 * parts[0] + 3 * parts[1])


@pytest.mark.usefixtures("each_backend")
def test_a_small_variance_is_plain_cross_entropy():
    b = batch(torch.float64, ignored=0.0)
    certain = b._replace(log_variance=torch.full_like(b.mean, -80.0))
    plain = torch.nn.functional.binary_cross_entropy_with_logits(
        b.mean.squeeze(1), b.target.double()
    )
    found = sf.label_uncertainty_bce(certain.mean, certain.log_variance, b.target)
    torch.testing.assert_close(found, plain)
    found = sf.bootstrapped_bce(
        certain.mean, certain.log_variance, b.target, threshold=10.0, reduction="mean_all"
    )
    torch.testing.assert_close(found, plain)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction):
    b = batch(torch.float64)
    each = loss_of(b, reduction="none")
    assert not each[b.target == IGNORED].any()
    valid = (b.target != IGNORED).sum()
    wanted = {
        "none": each,
        "sum": each.sum(),
        "mean": each.sum() / valid,
        "mean_all": each.sum() / b.target.numel(),
    }
    torch.testing.assert_close(loss_of(b, reduction=reduction), wanted[reduction])


@pytest.mark.usefixtures("each_backend")
def test_shapes_that_are_the_same_to_it():
    b = batch(torch.float64)
    wanted = loss_of(b, reduction="none")
    flat = b._replace(mean=b.mean.squeeze(1), log_variance=b.log_variance.squeeze(1))
    assert_same_bits(loss_of(flat, reduction="none"), wanted, name="without a channel")
    channel = b._replace(target=b.target.unsqueeze(1), u=b.u.unsqueeze(1))
    found = loss_of(channel, reduction="none")
    assert_same_bits(found, wanted.unsqueeze(1), name="a channel in the target")
    narrow = b._replace(u=b.u[:, :1])
    spread = b._replace(u=b.u[:, :1].expand_as(b.u))
    assert_same_bits(loss_of(narrow), loss_of(spread), name="weights that broadcast")
    one = batch(torch.float64, (), images=5)
    vector = one._replace(mean=one.mean.squeeze(1), log_variance=one.log_variance.squeeze(1))
    assert_same_bits(loss_of(vector), loss_of(one), name="images of a pixel")


@pytest.mark.usefixtures("each_backend")
@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_is_that_of_torch(align_corners):
    options = {"upsample": "bilinear", "align_corners": align_corners}
    b = batch(torch.float64, size=(4, 5))
    target = torch.randint(0, 2, (3, 9, 7))
    larger = [
        F.interpolate(leaf, (9, 7), mode="bilinear", align_corners=align_corners)
        for leaf in (b.mean, b.log_variance)
    ]
    module = segunc_ops.LabelUncertaintyLoss(1.0, detach_weight=False, **options)
    plain = segunc_ops.LabelUncertaintyLoss(1.0, detach_weight=False)
    losses = module(b.mean, b.log_variance, target), plain(*larger, target)
    torch.testing.assert_close(*losses)
    found, wanted = (torch.autograd.grad(loss, (b.mean, b.log_variance)) for loss in losses)
    torch.testing.assert_close(found, wanted)
    each = sf.label_uncertainty_bce(
        b.mean, b.log_variance, target.unsqueeze(1), reduction="none", **options
    )
    assert each.shape == (3, 1, 9, 7)
    volume, labels = torch.randn(1, 1, 2, 3, 2), torch.randint(0, 2, (1, 3, 4, 5))
    larger = [F.interpolate(volume, (3, 4, 5), mode="trilinear")] * 2
    given = {"threshold": 1.0}
    loss = sf.bootstrapped_bce(volume, volume, labels, upsample="trilinear", **given)
    torch.testing.assert_close(loss, sf.bootstrapped_bce(*larger, labels, **given))


def test_boolean_targets():
    b = batch(torch.float64, ignored=0.0)
    for make in (Tensor.bool, lambda t: t.bool().unsqueeze(1).contiguous().squeeze(1)):
        assert_same_bits(loss_of(b._replace(target=make(b.target))), loss_of(b), name="loss")


@pytest.mark.usefixtures("each_backend")
def test_exact_images_are_never_flipped():
    """Whatever their variance: they have the loss of their labels, and train the variance."""
    b = batch(torch.float64, spread=1.0)
    loud = b._replace(log_variance=(b.log_variance.detach() + 8).requires_grad_())
    options = {"uncertainty_weight": 0.0, "reduction": "none"}
    exact = torch.zeros_like(b.bootstrap)
    found = loss_of(loud._replace(bootstrap=exact), weighted=False, **options)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(
        b.mean.squeeze(1), (b.target == 1).double(), reduction="none"
    )
    plain = torch.where(b.target == IGNORED, 0, plain)
    torch.testing.assert_close(found, plain)
    mixed = loss_of(loud, weighted=False, **options)
    all_flip = loss_of(loud, weighted=False, exact_images=False, **options)
    assert_same_bits(mixed[~b.bootstrap], found[~b.bootstrap], name="exact images")
    assert_same_bits(mixed[b.bootstrap], all_flip[b.bootstrap], name="other images")
    for detach in (True, False):
        total = loss_of(loud._replace(bootstrap=exact), detach_weight=detach)
        alone = loss_of(loud, bootstrap_weight=0.0)
        a, w = (torch.autograd.grad(loss, loud.log_variance)[0] for loss in (total, alone))
        assert_same_bits(a, w, name="gradient of the variance")
        assert a.any()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_ignored_pixels_are_never_read(dtype):
    b = batch(dtype, (9, 33))
    ignored = b.target == IGNORED
    for options in ({}, {"detach_weight": False, "reduction": "none"}):
        loss = loss_of(b, **options)
        wanted = torch.autograd.grad(loss.sum(), b.leaves())
        for poison in (float("nan"), float("inf"), -float("inf")):
            bad = b._replace(
                mean=torch.where(ignored.unsqueeze(1), poison, b.mean.detach()).requires_grad_(),
                log_variance=torch.where(
                    ignored.unsqueeze(1), poison, b.log_variance.detach()
                ).requires_grad_(),
                u=torch.where(ignored, poison, b.u.detach()).requires_grad_(),
            )
            found = loss_of(bad, **options)
            assert_same_bits(found, loss, name="loss")
            gradients = torch.autograd.grad(found.sum(), bad.leaves())
            for name, a, w in zip(LEAVES, gradients, wanted, strict=True):
                assert_same_bits(a, w, name=name)
                assert not a.reshape(ignored.shape)[ignored].any()


@pytest.mark.usefixtures("each_backend")
def test_no_valid_pixel_and_no_pixel():
    b = batch(torch.float64)
    b.target.fill_(IGNORED)
    assert loss_of(b).isnan()
    for reduction in ("sum", "mean_all"):
        loss = loss_of(b, reduction=reduction)
        assert loss == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, b.leaves()))
    for images, size in ((0, (4, 5)), (2, (0, 5))):
        empty = batch(torch.float64, size, images)
        assert loss_of(empty).isnan()
        for reduction in ("none", "sum"):
            loss = loss_of(empty, reduction=reduction)
            assert not loss.any()
            gradients = torch.autograd.grad(loss.sum(), empty.leaves())
            shapes = [leaf.shape for leaf in empty.leaves()]
            assert [g.shape for g in gradients] == shapes


@pytest.mark.usefixtures("each_backend")
def test_nan_is_not_hidden():
    for leaf in ("mean", "log_variance"):
        for part in ("both", "uncertainty alone", "bootstrapping alone"):
            b = batch(torch.float64, ignored=0.0)
            value = getattr(b, leaf).detach().clone()
            value[0, 0, 2, 3] = float("nan")
            b = b._replace(**{leaf: value.requires_grad_()})
            loss = loss_of(b, reduction="none", **OPTIONS[part])
            assert loss[0, 2, 3].isnan()
            assert loss.isnan().sum() == 1


# ---- kernels ----


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_equals_the_reference(dtype, options):
    for size, reduction in product(SIZES, REDUCTIONS):
        b = batch(dtype, size)
        if (b.target == IGNORED).all():
            continue
        for weighted, exact_images in ((True, True), (False, False), (True, False)):
            compare(b, weighted, reduction=reduction, exact_images=exact_images, **OPTIONS[options])


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype):
    for shape in ((2, 1, 65, 67), (2, 1, 3, 33, 35), (3, 1, 9)):
        make = LAYOUTS[layout].make
        mean, log_variance = (
            make(torch.randn(shape).to(dtype)).detach().requires_grad_() for _ in range(2)
        )
        b = batch(dtype, shape[2:], shape[0])._replace(mean=mean, log_variance=log_variance)
        for target_dtype in TARGET_DTYPES:
            typed = b._replace(target=b.target.to(target_dtype))
            compare(typed)
            compare(typed, exact_images=False, reduction="none")
        found = torch.autograd.grad(loss_of(b), (mean, log_variance))
        if "expanded" not in layout and layout != "crop" and "every" not in layout:
            for gradient in found:
                assert gradient.stride() == torch.empty_like(mean).stride()


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_mean_and_variance_may_lie_differently(dtype):
    """As halves of a head's channels do, and as anything does."""
    for make in (
        lambda: torch.randn(2, 2, 33, 35),
        lambda: torch.randn(2, 33, 35, 2).permute(0, 3, 1, 2),
    ):
        output = make().to(dtype)
        mean, log_variance = (half.detach().requires_grad_() for half in output.chunk(2, 1))
        b = batch(dtype, (33, 35), 2)._replace(mean=mean, log_variance=log_variance)
        compare(b)
        compare(b._replace(mean=batch(dtype, (33, 35), 2).mean), exact_images=False)
    many = batch(dtype, (2, 3, 2, 3, 2), 2)
    swapped = many._replace(mean=many.mean.detach().mT.contiguous().mT.requires_grad_())
    compare(swapped)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_extreme_numbers(dtype):
    for spread in (20.0, 1000.0):
        for options in ({}, {"detach_weight": False}):
            b = batch(dtype, (11, 13), spread=spread)
            compare(b, reduction="none", **options)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    b = batch(dtype, (129, 131))

    def calls() -> tuple[Tensor, ...]:
        loss = loss_of(b)
        return (loss, *torch.autograd.grad(loss, b.leaves()))

    assert_same_bits_on_every_run(calls, name=str(dtype), runs=12)


def test_autocast():
    b = batch(torch.bfloat16)
    assert loss_of(b).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(b)
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, b.leaves())
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_gradients_of_float16_do_not_underflow():
    """Scaled by GradScaler's factor before they are rounded."""
    b = batch(torch.float16, (300, 400), images=1, ignored=0.0)
    scale = 32768.0
    loss = loss_of(b, weighted=False)
    found = torch.autograd.grad(scale * loss.float(), (b.mean, b.log_variance))
    for gradient in found:
        assert (gradient != 0).float().mean() > 0.75


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_needs_the_gradients_and_little_else(dtype, reduction, apart):
    """Also of halves of a head's channels, which are not copied."""
    output = torch.randn(2, 2, 256, 512).to(dtype)
    halves = output.chunk(2, 1) if apart else [half.clone() for half in output.chunk(2, 1)]
    b = batch(dtype, (256, 512), 2)._replace(
        mean=halves[0].detach().requires_grad_(), log_variance=halves[1].detach().requires_grad_()
    )
    leaves = b.leaves(weighted=False)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss_of(b, weighted=False, reduction=reduction).backward()

    step()  # what is allocated once in a process is no part of it
    for leaf in leaves:
        leaf.grad = None
    assert peak_bytes(step) <= 1.1 * output.nbytes


def test_backends_agree_on_what_flows():
    for backend in ("native", "reference"):
        with segunc_ops.backend(backend):
            b: Batch = batch()
            loss_of(b).backward()
            assert all(leaf.grad is not None for leaf in b.leaves())
