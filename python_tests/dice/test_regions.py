"""Dice and binary cross-entropy of regions: values and gradients against the reference in float64,
which is held against the packages' formulas here; what flows back; memory; errors."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import (
    assert_close,
    assert_raises,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.dice.cases import (
    assert_equals,
    monai_arguments,
    monai_regions,
    nnunet_regions,
    region_truth_of,
    regions,
    tolerance,
)
from python_tests.memory import peak_bytes
from python_tests.peers import BATCHES, Batch, assert_same_numbers, numbers, records
from python_tests.support import LAYOUTS, LOGITS_DTYPES, REGION_DTYPES
from segunc_ops import DeepSupervision, DiceBCELoss

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "over the batch": {"batch": True, "reduction": "mean_all"},
    "squared": {"squared": True, "reduction": "mean_pixels"},
    "jaccard without background": {"jaccard": True, "include_background": False},
    "absent ones left out": {"absent": "skip", "smooth_numerator": 1.0, "batch": True},
    "absent ones are right": {
        "absent": "zero",
        "smooth_numerator": 0.0,
        "smooth_denominator": 0.0,
    },
    "cross-entropy alone": {"dice_weight": 0.0},
    "Dice alone": {"ce_weight": 0.0, "squared": True, "batch": True},
    "sum": {"reduction": "sum", "ce_weight": 0.01, "dice_offset": 0.0},
}
CLASSES = (2, 3, 19, 70)
# One pixel, less than a pack, ragged tiles, more than a unit.
SIZES = ((), (1, 1), (5, 7), (131,), (3, 50, 31))


def compare(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    u: Tensor | None,
    upstream: float = 1.0,
    **options: Any,
) -> None:
    """Loss and gradients against the reference in float64."""
    loss = sf.dice_bce(x, target, mask=mask, pixel_weight=u, **options)
    assert_equals(region_truth_of(x, target, mask, u, **options), loss, x, u, upstream)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_equals_the_reference(dtype, options):
    for classes in CLASSES:
        for size in SIZES:
            x, target, mask, u = regions(dtype, size, classes, images=3)
            if not mask.any():
                continue
            extra = dict(OPTIONS[options])
            if classes % 2:
                extra["pos_weight"] = torch.rand(classes, dtype=torch.float64) + 0.5
            compare(x, target, None, None, -2.5, **extra)
            compare(x, target, mask, u, -2.5, **extra)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype):
    shapes = ((2, 5, 65, 67), (1, 70, 9, 11), (3, 1, 33))
    for number, target_dtype in enumerate(REGION_DTYPES):
        shape = shapes[number % len(shapes)]
        x = LAYOUTS[layout].make(torch.randn(shape).to(dtype)).detach().requires_grad_()
        _, target, mask, _ = regions(dtype, shape[2:], shape[1], shape[0], target_dtype)
        compare(x, target, mask, None)
        # Targets of any strides, too.
        compare(x, LAYOUTS[layout].make(target), None, None, batch=True)
        (gradient,) = torch.autograd.grad(sf.dice_bce(x, target), x)
        if "expanded" not in layout and layout != "crop" and "every" not in layout:
            assert gradient.stride() == torch.empty_like(x).stride()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_masked_pixels_are_never_read(dtype):
    x, target, mask, u = regions(dtype, (9, 33), 5, target_dtype=torch.float32)
    for options in ({}, {"batch": True, "squared": True, "pos_weight": torch.rand(5)}):

        def loss_of(
            x: Tensor, target: Tensor, u: Tensor, options: dict[str, Any] = options
        ) -> Tensor:
            return sf.dice_bce(x, target, mask=mask, pixel_weight=u, **options)

        wanted = torch.autograd.grad(loss_of(x, target, u), (x, u))
        for poison in (float("nan"), float("inf"), -float("inf")):
            bad = torch.where(mask.unsqueeze(1), x.detach(), poison).requires_grad_()
            labels = torch.where(mask.unsqueeze(1), target, poison)
            weights = torch.where(mask, u.detach(), poison).requires_grad_()
            loss = loss_of(bad, labels, weights)
            assert_same_bits(loss, loss_of(x, target, u), name="loss")
            found = torch.autograd.grad(loss, (bad, weights))
            for name, a, b in zip(("input", "pixel_weight"), found, wanted, strict=True):
                assert_same_bits(a, b, name=name)
            assert not found[0].movedim(1, -1)[~mask].any()


@pytest.mark.usefixtures("each_backend")
def test_masked_pixels_count_nothing():
    """As if they were not there."""
    x, target, mask, _ = regions(torch.float64, (40,), images=1)
    for options in ({}, {"squared": True}, {"jaccard": True, "reduction": "mean_pixels"}):
        fewer = sf.dice_bce(x[..., mask[0]], target[..., mask[0]], **options)
        torch.testing.assert_close(sf.dice_bce(x, target, mask=mask, **options), fewer)


@pytest.mark.usefixtures("each_backend")
def test_an_ignore_channel_is_a_mask():
    x, target, mask, _ = regions(torch.float64)
    for dtype in REGION_DTYPES:
        both = torch.cat([target, ~mask.unsqueeze(1)], 1).to(dtype)
        found = sf.dice_bce(x, both, ignore_channel=True)
        torch.testing.assert_close(found, sf.dice_bce(x, target, mask=mask))


@pytest.mark.usefixtures("each_backend")
def test_no_valid_pixel():
    x, target, mask, _ = regions()
    nothing = torch.zeros_like(mask)
    assert sf.dice_bce(x, target, mask=nothing).isnan()
    dice = sf.dice_bce(x, target, mask=nothing, ce_weight=0.0)
    torch.testing.assert_close(dice, torch.tensor(0.0))
    assert not torch.autograd.grad(dice, x)[0].any()


@pytest.mark.usefixtures("each_backend")
def test_empty_inputs():
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5)):
        x = torch.randn(shape, requires_grad=True)
        loss = sf.dice_bce(x, torch.zeros(shape, dtype=torch.bool))
        assert loss.isnan()
        assert torch.autograd.grad(loss, x)[0].shape == shape


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_is_that_of_torch(align_corners):
    options = {"upsample": "bilinear", "align_corners": align_corners}
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (2, 4, 9, 7)).bool()
    loss = sf.dice_bce(x, target, batch=True, ignore_channel=True, **options)
    larger = F.interpolate(x, (9, 7), mode="bilinear", align_corners=align_corners)
    wanted = sf.dice_bce(larger, target, batch=True, ignore_channel=True)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(y, x)[0] for y in (loss, wanted)))
    volume, regions_of_it = torch.randn(1, 2, 2, 3, 2), torch.randint(0, 2, (1, 2, 3, 4, 5))
    larger = F.interpolate(volume, (3, 4, 5), mode="trilinear")
    loss = sf.dice_bce(volume, regions_of_it, upsample="trilinear")
    torch.testing.assert_close(loss, sf.dice_bce(larger, regions_of_it))
    half = x.detach().bfloat16()
    wide = sf.dice_bce(half.float(), target[:, :3], **options)
    assert_same_bits(sf.dice_bce(half, target[:, :3], **options), wide.bfloat16(), name="loss")
    heads = DeepSupervision(DiceBCELoss(**options), [1.0, 0.5])
    one = sf.dice_bce(x, target[:, :3], **options)
    torch.testing.assert_close(heads([x, x], target[:, :3]), 1.5 * one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(dtype):
    """Probabilities of 0 and 1, right and wrong; losses far below 1 keep their digits."""
    x, target, mask, u = regions(dtype, (11, 13), 4)
    for factor in (20.0, 1000.0):
        large = (factor * x.detach()).to(dtype).requires_grad_()
        for options in ({}, {"squared": True, "batch": True}):
            compare(large, target, mask, u, **options)
            compare(large, target, None, None, **options)
            (gradient,) = torch.autograd.grad(sf.dice_bce(large, target, **options), large)
            assert gradient.isfinite().all()
    sure = torch.full((1, 1, 5000), 14.0, dtype=dtype)
    found = sf.dice_bce(sure, torch.ones_like(sure), dice_weight=0.0)
    assert float(found) == pytest.approx(8.3152837e-7, rel=1e-2 if dtype.itemsize == 2 else 1e-4)


def test_infinite_logits_have_their_limits():
    """Of a right one torch's cross-entropy is NaN."""
    x = torch.tensor([[float("inf"), -float("inf")]], dtype=torch.float64)
    right = torch.tensor([[1, 0]])
    dice = sf.dice_bce(x, right, ce_weight=0.0, smooth_numerator=1.0, smooth_denominator=1.0)
    torch.testing.assert_close(dice, torch.zeros((), dtype=torch.float64))
    assert sf.dice_bce(x, 1 - right) == float("inf")


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    x, target, mask, u = regions(dtype, (129, 131), 7)

    def calls() -> tuple[Tensor, ...]:
        plain = sf.dice_bce(x, target)
        loss = sf.dice_bce(x, target, mask=mask, pixel_weight=u, batch=True)
        return plain, loss, *torch.autograd.grad(loss, (x, u))

    assert_same_bits_on_every_run(calls, name=str(dtype), runs=12)


# ---- the packages ----


def assert_equal(found: Tensor, wanted: Tensor, x: Tensor) -> None:
    """Values and gradients, in float64."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    a, b = (torch.autograd.grad(loss, x)[0] for loss in (found, wanted))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
def test_nnunet(size):
    x, target, mask, _ = regions(torch.float64, size, 4)
    target[0, 2] = False
    for dtype in (torch.bool, torch.int16):
        for batch in (False, True):
            plain = DiceBCELoss.nnunet(batch=batch)(x, target.to(dtype))
            assert_equal(plain, nnunet_regions(x, target, batch, False), x)
            both = torch.cat([target, ~mask.unsqueeze(1)], 1).to(dtype)
            found = DiceBCELoss.nnunet(batch=batch, ignore_channel=True)(x, both)
            assert_equal(found, nnunet_regions(x, both, batch, True), x)


MONAI_OPTIONS = (
    {},
    {"batch": True},
    {"squared": True},
    {"jaccard": True},
    {"include_background": False, "batch": True},
)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
def test_monai(size):
    x, target, _, _ = regions(torch.float64, size, 4)
    target[0, 2] = False
    names = {"squared": "squared_pred"}
    for own in MONAI_OPTIONS:
        theirs = {names.get(name, name): value for name, value in own.items()}
        found = DiceBCELoss.monai(**own)(x, target.double())
        assert_equal(found, monai_regions(x, target, **theirs), x)


# ---- what the packages gave ----


def like_nnunet(batch: Batch, batch_dice: bool, use_ignore_label: bool = False) -> Tensor:
    loss = DiceBCELoss.nnunet(batch=batch_dice, ignore_channel=use_ignore_label)
    return loss(batch.input, batch.target)


def like_monai(batch: Batch, /, weight: list[float] | None = None, **options: Any) -> Tensor:
    """Its weight is of one region's positives; Dice is not weighed by a single one."""
    pos_weight = None if weight is None else torch.tensor(weight, dtype=batch.input.dtype)
    loss = DiceBCELoss.monai(pos_weight=pos_weight, **monai_arguments(options))
    return loss(batch.input, batch.target)


LIKE: dict[str, Callable[..., Tensor]] = {
    "nnU-Net's DC_and_BCE_loss": like_nnunet,
    "MONAI's DiceCELoss(sigmoid=True)": like_monai,
    "MONAI's DiceLoss(sigmoid=True)": partial(like_monai, lambda_ce=0.0),
    "MONAI's DiceFocalLoss(sigmoid=True, gamma=0)": like_monai,
}


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("record", [one for name in LIKE for one in records(name)], ids=str)
def test_gives_what_the_package_gave(record):
    batch = BATCHES[record.batch]()
    found = numbers(LIKE[record.loss](batch, **record.options), batch.inputs)
    assert_same_numbers(found, record.numbers, tolerance(record))


# ---- what flows back ----


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    x, target, mask, u = regions(torch.float64, (2, 3))
    weight = torch.rand(3, dtype=torch.float64) + 0.5

    def loss(x: Tensor, u: Tensor) -> Tensor:
        return sf.dice_bce(x, target, weight, mask=mask, pixel_weight=u, **OPTIONS[options])

    assert torch.autograd.gradcheck(loss, (x, u))
    # Weights that broadcast, and logits that are a view of a leaf.
    assert torch.autograd.gradcheck(lambda x, u: loss(x.mT.contiguous().mT * 2, u), (x, u[:1]))


@pytest.mark.parametrize("wants_u", [True, False, None])
@pytest.mark.parametrize("wants_x", [True, False])
def test_which_gradients_exist(wants_x, wants_u):
    x, target, _, u = regions()
    x.requires_grad_(wants_x)
    weights = None if wants_u is None else u.requires_grad_(wants_u)
    loss = sf.dice_bce(x, target, pixel_weight=weights)
    assert loss.requires_grad == (wants_x or bool(wants_u))
    if loss.requires_grad:
        loss.backward()
    assert (x.grad is not None) == wants_x
    assert (u.grad is not None) == bool(wants_u)


def test_second_derivatives_raise_and_name_the_operator():
    x, target, _, _ = regions(torch.float64, (2, 2))
    (gradient,) = torch.autograd.grad(sf.dice_bce(x, target), x, create_graph=True)
    with pytest.raises(RuntimeError, match="dice_bce: second derivatives are not implemented"):
        gradient.sum().backward()
    with segunc_ops.backend("reference"):
        assert torch.autograd.gradgradcheck(lambda x: sf.dice_bce(x, target), x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    x, target, mask, u = regions()

    def loss(x: Tensor, u: Tensor) -> Tensor:
        return sf.dice_bce(x * 2, target, mask=mask, pixel_weight=u)

    plain = torch.autograd.grad(2.5 * loss(x, u), (x, u))
    (2.5 * checkpoint(loss, x, u, use_reentrant=reentrant)).backward()
    assert_same_bits(x.grad, plain[0], name="input")
    assert_same_bits(u.grad, plain[1], name="pixel_weight")


def test_autocast():
    """As torch's losses: float32 of bfloat16 logits, without a copy of these."""
    x, target, _, _ = regions(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sf.dice_bce(x, target)
    assert loss.dtype == torch.float32
    assert sf.dice_bce(x, target).dtype == torch.bfloat16
    truth, wanted, _ = region_truth_of(x, target, None, None)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == torch.bfloat16
    assert_close(gradient, wanted, name="gradient", bias=False)


def test_gradients_of_float16_do_not_underflow():
    """Scaled by GradScaler's factor before they are rounded."""
    x, target, _, _ = regions(torch.float16, (300, 400), images=1)
    scale = 32768.0  # the loss itself is float16
    (gradient,) = torch.autograd.grad(scale * sf.dice_bce(x, target).float(), x)
    _, wanted, _ = region_truth_of(x, target, None, None)
    assert_close(gradient, wanted * scale, name="gradient", scale=1.0, bias=False)
    assert (gradient != 0).float().mean() > 0.75


class Subclass(Tensor):
    """As MONAI's MetaTensor."""


@pytest.mark.usefixtures("each_backend")
def test_subclasses():
    x, target, mask, u = regions()
    plain = sf.dice_bce(x, target, mask=mask, pixel_weight=u)
    others = (tensor.as_subclass(Subclass) for tensor in (x, target.float()))
    found = sf.dice_bce(*others, mask=mask.as_subclass(Subclass), pixel_weight=u)
    assert isinstance(found, Subclass)
    assert_same_bits(found.as_subclass(Tensor), plain, name="loss")
    a, b = (torch.autograd.grad(loss, x)[0].as_subclass(Tensor) for loss in (found, plain))
    assert_same_bits(a, b, name="gradient")


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"absent": "skip", "reduction": "mean_pixels", "ignore_channel": True},
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_compile_traces_one_graph(options):
    def loss_of(x: Tensor, target: Tensor, u: Tensor) -> Tensor:
        return sf.dice_bce(x, target, pixel_weight=u, **options)

    for dtype in (torch.float32, torch.float16):
        torch.compiler.reset()
        compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((4, 5), (7, 3)):
            x, target, mask, u = regions(dtype, size)
            if "ignore_channel" in options:
                target = torch.cat([target, ~mask.unsqueeze(1)], 1)
            found, wanted = compiled(x, target, u), loss_of(x, target, u)
            assert_same_bits(found, wanted, name="loss")
            upstream = torch.full_like(found, 2.5)
            gradients = torch.autograd.grad(found, (x, u), upstream)
            truth = torch.autograd.grad(wanted, (x, u), upstream)
            for a, b in zip(gradients, truth, strict=True):
                assert_same_bits(a, b, name=f"gradient {dtype}")


@pytest.mark.parametrize("target_dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_needs_the_gradient_and_little_else(dtype, target_dtype):
    shape = (2, 4, 32, 48, 48)
    x = torch.randn(shape).to(dtype).requires_grad_()
    target = (torch.rand(shape) < 0.5).to(target_dtype)
    mask = torch.rand(2, 32, 48, 48) < 0.5

    def step(loss: Callable[..., Tensor], **options: Any) -> None:
        x.grad = None
        (3 * loss(x, target, **options)).backward()

    for options in ({}, {"mask": mask}):
        step(sf.dice_bce, **options)
        x.grad = None
        assert peak_bytes(lambda options=options: step(sf.dice_bce, **options)) <= 1.1 * x.nbytes
    if dtype == torch.float32:
        both = torch.cat([target, target[:, :1]], 1)
        only = peak_bytes(lambda: sf.dice_bce(x, both, ignore_channel=True).backward())
        assert only <= 1.1 * x.nbytes  # nothing of it is copied
        assert peak_bytes(lambda: step(nnunet_regions, batch_dice=False, ignores=False)) >= (
            4 * x.nbytes
        )


# ---- the module ----


@pytest.mark.usefixtures("each_backend")
def test_module_is_the_function():
    x, target, mask, u = regions(torch.float64)
    weight = torch.rand(3, dtype=torch.float64)
    options = {"batch": True, "squared": True, "absent": "skip", "reduction": "mean_pixels"}
    loss = DiceBCELoss(weight, **options)
    wanted = sf.dice_bce(x, target, weight, mask=mask, pixel_weight=u, **options)
    torch.testing.assert_close(loss(x, target, mask, u), wanted)
    assert set(loss.state_dict()) == {"pos_weight"}
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(x, target, mask, u), wanted)
    heads = DeepSupervision(DiceBCELoss(), [1.0, 0.5])
    torch.testing.assert_close(heads([x, x], [target, target]), 1.5 * DiceBCELoss()(x, target))


def test_module_arguments_and_text():
    parameters = inspect.signature(DiceBCELoss).parameters
    own = set(inspect.signature(sf.dice_bce).parameters)
    assert set(parameters) == own - {"input", "target", "pixel_weight", "mask"}
    text = repr(DiceBCELoss.nnunet(batch=True, ignore_channel=True))
    for part in ("batch=True", "dice_offset=0.0", "reduction='mean_pixels'", "ignore_channel=True"):
        assert part in text
    assert "num_regions=2" in repr(DiceBCELoss(torch.ones(2)))
    assert "upsample='bilinear'" in repr(DiceBCELoss(upsample="bilinear"))
    with pytest.raises(TypeError, match="pos_weight: expected a tensor or None, got list"):
        DiceBCELoss([1.0])
    with pytest.raises(ValueError, match="absent: expected one of"):
        DiceBCELoss.monai(absent="nothing")


# ---- errors ----


def _x(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5))


def _with(**options: Any) -> Callable[[], Any]:
    return lambda: sf.dice_bce(_x(), _x(), **options)


SHAPES = "target: expected shape (2, 3, 4, 5) for input of shape (2, 3, 4, 5), got "
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "input integers": (
        lambda: sf.dice_bce(_x().int(), _x()),
        TypeError,
        "input: expected float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "interpolated volumes that are none": (
        _with(upsample="trilinear"),
        ValueError,
        "input: expected shape (N, C, D, H, W) with pixels for upsample='trilinear', got",
    ),
    "interpolated and written over": (
        _with(upsample="bilinear", overwrite_input=True),
        ValueError,
        "overwrite_input: expected False with upsample",
    ),
    "input of a pixel": (
        lambda: sf.dice_bce(_x(3), _x(3)),
        ValueError,
        "input: expected shape (N, C, *) with C > 0, got (3,)",
    ),
    "target no tensor": (
        lambda: sf.dice_bce(_x(), 1),
        TypeError,
        "target: expected a tensor, got int",
    ),
    "class indices": (
        lambda: sf.dice_bce(_x(), _x(2, 4, 5).long()),
        ValueError,
        SHAPES + "(2, 4, 5); for class indices there is dice_cross_entropy",
    ),
    "class indices of a channel": (
        lambda: sf.dice_bce(_x(), _x(2, 1, 4, 5).long()),
        ValueError,
        SHAPES + "(2, 1, 4, 5); for class indices there is dice_cross_entropy",
    ),
    "a mask without its channel": (
        lambda: sf.dice_bce(_x(2, 1, 4, 5), _x(2, 4, 5)),
        ValueError,
        "target: expected shape (2, 1, 4, 5) for input of shape (2, 1, 4, 5), got (2, 4, 5); pass "
        "target.unsqueeze(1)",
    ),
    "a channel more": (
        lambda: sf.dice_bce(_x(), _x(2, 4, 4, 5)),
        ValueError,
        SHAPES + "(2, 4, 4, 5); if its last channel says what to ignore, pass ignore_channel=True",
    ),
    "no channel more": (
        _with(ignore_channel=True),
        ValueError,
        "target: expected shape (2, 4, 4, 5) for input of shape (2, 3, 4, 5) and "
        "ignore_channel=True, got (2, 3, 4, 5)",
    ),
    "target of a type that is not read": (
        lambda: sf.dice_bce(_x(), _x().char()),
        TypeError,
        "target: expected bool, int64, int32, int16, uint8 or a type of logits, got torch.int8; "
        "pass target.bool()",
    ),
    "target with a gradient": (
        lambda: sf.dice_bce(_x(), _x().requires_grad_()),
        ValueError,
        "target: expected one that needs no gradient; pass target.detach()",
    ),
    "mask of numbers": (
        _with(mask=_x(2, 4, 5)),
        TypeError,
        "mask: expected a bool tensor, got torch.float32",
    ),
    "mask with a channel": (
        _with(mask=_x(2, 1, 4, 5).bool()),
        ValueError,
        "mask: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 1, 4, 5); pass "
        "mask.squeeze(1)",
    ),
    "two masks": (
        lambda: sf.dice_bce(_x(), _x(2, 4, 4, 5), mask=_x(2, 4, 5).bool(), ignore_channel=True),
        ValueError,
        "mask: expected none with ignore_channel=True, got one",
    ),
    "pos_weight of another shape": (
        _with(pos_weight=torch.ones(4)),
        ValueError,
        "pos_weight: expected shape (3,), one per class, got (4,)",
    ),
    "pixel weight of another shape": (
        _with(pixel_weight=torch.ones(2, 4, 6)),
        ValueError,
        "pixel_weight: expected a number a pixel (2, 4, 5) or one that broadcasts to it, got "
        "(2, 4, 6)",
    ),
    "reduction unknown": (
        _with(reduction="none"),
        ValueError,
        "reduction: expected one of ('mean', 'mean_pixels', 'mean_all', 'sum'), got 'none'",
    ),
    "nothing but background": (
        lambda: sf.dice_bce(_x(2, 1, 4), _x(2, 1, 4), include_background=False),
        ValueError,
        "include_background: expected True for an input of one channel, got False",
    ),
    "ignore_channel a number": (
        _with(ignore_channel=1),
        TypeError,
        "ignore_channel: expected a bool, got int",
    ),
    "ce_weight below 0": (
        _with(ce_weight=-1.0),
        ValueError,
        "ce_weight: expected a finite number of at least 0, got -1.0",
    ),
    "target on another device": (
        lambda: sf.dice_bce(_x(), _x().to("meta")),
        ValueError,
        "target: expected device cpu like input, got meta",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, backend):
    call, exception, message = ERRORS[name]
    assert_raises(call, exception, message, backend=backend)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", REGION_DTYPES)
def test_targets_that_are_neither_0_nor_1(dtype):
    """The first of them is told, in every type; what is masked is not looked at."""
    x = torch.zeros(2, 3, 300, requires_grad=True)
    values = [0.25, float("nan"), -1.0, 2.0] if dtype.is_floating_point else [2, 255]
    if dtype in (torch.int16, torch.int32, torch.int64):
        values += [-1, 257]
    if dtype == torch.int64:
        values += [1 << 32, (1 << 32) + 1]
    if dtype == torch.bool:
        return
    # The images of the last lie apart.
    for target in (torch.zeros(2, 3, 300), torch.zeros(2, 4, 300)[:, :3]):
        for value in values:
            labels = target.to(dtype)
            labels[1, 1, 277] = value
            text = re.escape(f"target: expected 0 or 1, got {value:g}"[:36])
            with pytest.raises(ValueError, match=text):
                sf.dice_bce(x, labels)
            with pytest.raises(ValueError, match=text), torch.no_grad():
                sf.dice_bce(x, labels, ce_weight=0.0)
            mask = torch.ones(2, 300, dtype=torch.bool)
            mask[1, 277] = False
            assert sf.dice_bce(x, labels, mask=mask).isfinite()


def test_equals_torchs_binary_cross_entropy():
    x, target, _, _ = regions(torch.float64, (31, 33), 6)
    weight = torch.rand(6, dtype=torch.float64) + 0.5
    wanted = F.binary_cross_entropy_with_logits(
        x.movedim(1, -1), target.double().movedim(1, -1), pos_weight=weight
    )
    assert_equal(sf.dice_bce(x, target, weight, dice_weight=0.0), wanted, x)
