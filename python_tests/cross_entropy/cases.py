"""Random calls of cross_entropy, and what torch's own functions make of them in float64."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_gradients_exist
from python_tests.interpolation import interpolate, interpolation_matrices, random_sizes
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, REDUCTIONS, TARGET_DTYPES

# Shapes (N, C, *): ragged against tiles of 32 and 128 pixels and units of 4096, of one pixel or
# class, empty, without or with up to three spatial axes, more classes than a wide tile takes.
SHAPES = (
    (0, 3, 4, 5),
    (2, 3, 0, 4),
    (0, 4),
    (1, 1, 1, 1),
    (3, 5, 1, 1),
    (1, 2, 1, 7),
    (7, 1, 3, 3),
    (6, 4),
    (131, 9),
    (1, 3, 127),
    (2, 8, 129),
    (3, 6, 33),
    (2, 19, 5, 7),
    (1, 11, 16, 16),
    (3, 21, 9, 31),
    (2, 2, 64, 65),
    (1, 7, 3, 5, 6),
    (2, 13, 4, 4, 9),
    (1, 65, 3, 11),
    (1, 150, 6, 6),
    (1, 4, 2, 2, 2, 3),
)


@dataclasses.dataclass
class Case:
    """Arguments of one call, and the gradient that flows into its result."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    pixel_weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float
    upstream: Tensor
    name: str
    upsample: str | None = None
    align_corners: bool = False

    def to(self, device: str) -> Case:
        """The same call on another device; strides stay."""
        moved = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                fresh = value.detach().to(device)
                if fresh.stride() != value.stride():
                    storage = torch.empty(0, dtype=value.dtype, device=device)
                    storage.set_(value.detach().untyped_storage().to(device=device))
                    fresh = storage.as_strided(value.shape, value.stride(), value.storage_offset())
                value = fresh.requires_grad_(value.requires_grad)
            moved[field.name] = value
        return Case(**moved)


class Outcome(NamedTuple):
    """A loss and its gradients; None where a gradient is not wanted."""

    loss: Tensor
    grad_input: Tensor | None
    grad_pixel_weight: Tensor | None


def random_case(seed: int) -> Case:
    """The call of this number, always the same."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    shape = choose.choice(SHAPES)
    single = choose.random() < 0.03
    dtype = choose.choice(LOGITS_DTYPES)
    layout = choose.choice([*LAYOUTS])
    logits = (choose.choice((0.1, 2.0, 8.0)) * normal(shape)).to(dtype)
    logits = LAYOUTS[layout].make(logits)
    images, classes, *spatial = shape
    pixels = (images, *spatial)
    target = torch.randint(0, classes, pixels, generator=generator)
    target_dtype = choose.choice(TARGET_DTYPES)
    # An ignored value outside the classes, or one of them.
    outside = [255] if target_dtype == torch.uint8 else [-100, -1, 255]
    ignore_index = choose.choice([*outside, choose.randrange(classes)])
    target[uniform(pixels) < choose.choice((0.0, 0.2, 0.2, 0.5, 1.0))] = ignore_index
    target = target.to(target_dtype)
    if choose.random() < 0.2:
        target = target.mT.contiguous().mT if target.dim() >= 2 else target
    weight = None
    if choose.random() < 0.5:
        weight = uniform((classes,)) + 0.1
        if choose.random() < 0.3:
            weight[choose.randrange(classes)] = 0
        weight = weight.to(choose.choice((dtype, torch.float32, torch.float64)))
    pixel_weight = None
    if choose.random() < 0.5:
        broadcast = [1 if choose.random() < 0.2 else size for size in pixels]
        drop = choose.randrange(len(pixels)) if choose.random() < 0.2 else 0
        pixel_weight = (2 * uniform(tuple(broadcast[drop:]))).to(choose.choice(LOGITS_DTYPES))
    if single:
        logits, target = logits.new_tensor(normal((classes,)).tolist()), target.new_tensor(0)
        pixel_weight = None if pixel_weight is None else pixel_weight.new_tensor(1.5)
    wants_input = choose.random() < 0.85
    wants_pixel_weight = pixel_weight is not None and choose.random() < 0.6
    if wants_pixel_weight:
        pixel_weight.requires_grad_()
    reduction = choose.choice(REDUCTIONS)
    result_shape = target.shape if reduction == "none" else ()
    upstream = (normal(tuple(result_shape)) * choose.choice((1.0, 16.0))).to(dtype)
    if choose.random() < 0.2:
        upstream = torch.ones((), dtype=dtype).expand(result_shape)
    return Case(
        input=logits.detach().requires_grad_(wants_input),
        target=target,
        weight=weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=choose.choice((0.0, 0.0, 0.1, 1.0)),
        upstream=upstream,
        name=f"case {seed} ({tuple(logits.shape)}, {dtype}, {layout}, {reduction})",
    )


def random_upsampled_case(seed: int) -> Case:
    """The call of this number whose logits are interpolated."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    upsample = choose.choice(("bilinear", "bilinear", "trilinear"))
    source, size = random_sizes(choose, upsample == "trilinear")
    images, classes = choose.choice((1, 2, 3)), choose.choice((1, 2, 5, 19, 40))
    if math.prod(size) > 4000:
        images, classes = 1, min(classes, 5)
    dtype = choose.choice(LOGITS_DTYPES)
    layout = choose.choice([*LAYOUTS])
    logits = torch.randn((images, classes, *source), generator=generator, dtype=torch.float64)
    logits = LAYOUTS[layout].make((choose.choice((0.1, 2.0, 8.0)) * logits).to(dtype))
    target = torch.randint(0, classes, (images, *size), generator=generator)
    ignore_index = choose.choice((255, choose.randrange(classes)))
    target[uniform(*target.shape) < choose.choice((0.0, 0.2, 0.5, 1.0))] = ignore_index
    weight = uniform(classes) + 0.1 if choose.random() < 0.5 else None
    pixel_weight = 2 * uniform(*target.shape) if choose.random() < 0.5 else None
    if pixel_weight is not None:
        pixel_weight = pixel_weight.to(choose.choice(LOGITS_DTYPES))
        pixel_weight.requires_grad_(choose.random() < 0.6)
    reduction = choose.choice(REDUCTIONS)
    upstream = torch.randn(target.shape if reduction == "none" else (), generator=generator)
    return Case(
        input=logits.detach().requires_grad_(choose.random() < 0.9),
        target=target.to(choose.choice(TARGET_DTYPES)),
        weight=weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=choose.choice((0.0, 0.0, 0.1, 1.0)),
        upstream=upstream.to(dtype),
        name=f"case {seed} ({tuple(logits.shape)} to {size}, {dtype}, {layout}, {reduction})",
        upsample=upsample,
        align_corners=choose.random() < 0.5,
    )


def run(case: Case) -> Outcome:
    """The library's answer."""
    loss = sf.cross_entropy(
        case.input,
        case.target,
        case.weight,
        pixel_weight=case.pixel_weight,
        ignore_index=case.ignore_index,
        reduction=case.reduction,  # type: ignore[arg-type]
        label_smoothing=case.label_smoothing,
        upsample=case.upsample,  # type: ignore[arg-type]
        align_corners=case.align_corners,
    )
    return Outcome(loss.detach(), *_gradients(case, loss, case.input, case.pixel_weight))


def _gradients(
    case: Case, loss: Tensor, input: Tensor, pixel_weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    leaves = {
        name: tensor
        for name, tensor in (("input", input), ("pixel_weight", pixel_weight))
        if tensor is not None and tensor.requires_grad
    }
    if not leaves:
        assert not loss.requires_grad, "a gradient that nobody asked for"
        return None, None
    values = torch.autograd.grad(loss, [*leaves.values()], case.upstream.to(loss.dtype))
    found = dict(zip(leaves, values, strict=True))
    return found.get("input"), found.get("pixel_weight")


def expected(case: Case, dtype: torch.dtype = torch.float64) -> Outcome:
    """torch's own functions on the same values: F.cross_entropy and what reduces it.

    Interpolation is torch's too, but where float64 is the truth of a call in single precision:
    there coordinates are rounded to that, as in any implementation, and sums are in float64.
    """
    leaf = case.input.detach().to(dtype).requires_grad_(case.input.requires_grad)
    input = leaf
    if case.upsample is not None and dtype == torch.float64 != case.input.dtype:
        input = interpolate(leaf, matrices(case))
    elif case.upsample is not None:
        input = F.interpolate(
            leaf, case.target.shape[1:], mode=case.upsample, align_corners=case.align_corners
        )
    weight = None if case.weight is None else case.weight.to(dtype)
    target = case.target.long()
    options = {"ignore_index": case.ignore_index, "label_smoothing": case.label_smoothing}
    pixel_weight = case.pixel_weight
    if pixel_weight is not None:
        pixel_weight = pixel_weight.detach().to(dtype).requires_grad_(pixel_weight.requires_grad)
    if pixel_weight is None and case.reduction != "mean_all":
        loss = F.cross_entropy(input, target, weight, reduction=case.reduction, **options)
    else:
        loss = F.cross_entropy(input, target, weight, reduction="none", **options)
        if pixel_weight is not None:
            valid = case.target != case.ignore_index
            loss = torch.where(valid, loss * pixel_weight, 0)
        if case.reduction != "none":
            loss = loss.sum() / normalizer(case)
    return Outcome(loss.detach(), *_gradients(case, loss, leaf, pixel_weight))


def matrices(case: Case) -> list[Tensor]:
    """The interpolation matrices of a call's spatial axes."""
    return interpolation_matrices(case.input, case.target.shape[1:], case.align_corners)


def normalizer(case: Case) -> float:
    """What a scalar loss is divided by."""
    if case.reduction == "mean_all":
        return float(case.target.numel()) or float("nan")
    if case.reduction == "sum":
        return 1.0
    labels = case.target[case.target != case.ignore_index].long()
    total = float(labels.numel() if case.weight is None else case.weight.double()[labels].sum())
    return total or float("nan")


class Scales(NamedTuple):
    """The size of the terms that the results are sums of, which rounding errors are relative to."""

    loss: float
    grad_input: float
    grad_pixel_weight: float


def scales(case: Case) -> Scales:
    """Sizes for :func:`comparison.assert_close`."""
    if case.input.numel() == 0:
        return Scales(1.0, 1.0, 1.0)
    logits = case.input.detach().double()
    # -log p = log s - (z_y - max z) is at most this, and so are its terms.
    surprise = 1.0 + 2 * float(logits.abs().max())
    weight = 1.0 if case.weight is None else float(case.weight.double().max())
    by_pixel = 1.0 if case.pixel_weight is None else float(case.pixel_weight.detach().max())
    upstream = float(case.upstream.double().abs().max())
    divisor = 1.0 if case.reduction == "none" else normalizer(case)
    divisor = divisor if divisor == divisor else 1.0
    terms = 1.0 if case.reduction == "none" else float(case.target.numel())
    repeated = 1.0
    if case.pixel_weight is not None:
        repeated = case.target.numel() / max(case.pixel_weight.numel(), 1)
    # Single precision is compared with a truth that is exact; double with one whose exponents
    # z - log s are as badly rounded as the logits are large.
    exponent = surprise if case.input.dtype == torch.float64 else 1.0
    gathered = 1.0
    if case.upsample is not None:
        # Interpolated logits are rounded as well; a gradient is the sum of many pixels'.
        exponent = surprise
        gathered = math.prod(max(1.0, float(m.sum(0).max())) for m in matrices(case))
    return Scales(
        loss=terms * by_pixel * weight * surprise / divisor,
        grad_input=gathered * by_pixel * weight * upstream * exponent / divisor,
        grad_pixel_weight=repeated * weight * surprise * upstream / divisor,
    )


def compare(case: Case, actual: Outcome, peer: Outcome | None = None) -> None:
    """An outcome against float64 torch, each result with its own scale."""
    truth = expected(case)
    sizes = scales(case)
    compute = torch.float64 if case.input.dtype == torch.float64 else torch.float32
    assert actual.loss.dtype == case.input.dtype, case.name
    gradients = {"input": actual.grad_input, "pixel_weight": actual.grad_pixel_weight}
    assert_gradients_exist(
        gradients,
        {
            "input": case.input.requires_grad,
            "pixel_weight": case.pixel_weight is not None and case.pixel_weight.requires_grad,
        },
    )
    # A scalar loss makes its gradient in the forward pass and multiplies it by the upstream factor
    # in the backward pass: in bfloat16 (float16 waits for the factor) both steps round.
    scalar_bfloat16 = case.input.dtype == torch.bfloat16 and case.reduction != "none"
    for name, got, want, scale in zip(actual._fields, actual, truth, sizes, strict=True):
        if got is not None:
            assert_close(
                got,
                want,
                name=f"{case.name}: {name}",
                scale=scale,
                compute=compute,
                roundings=2 if name == "grad_input" and scalar_bfloat16 else 1,
                peer=None if peer is None else getattr(peer, name),
                bias=0 not in case.input.stride(),  # errors of repeated pixels repeat
            )
    ignored = case.target == case.ignore_index
    same_pixels = case.input.dim() > 1 and case.upsample is None
    if actual.grad_input is not None and same_pixels:
        assert not actual.grad_input.movedim(1, -1)[ignored].any(), f"{case.name}: ignored pixels"


EXTREMES = {
    "NaN in the target's class": [float("nan"), 1.0, -2.0, 0.5],
    "NaN in another class": [1.0, float("nan"), -2.0, 0.5],
    "only NaN": [float("nan")] * 4,
    "+inf in the target's class": [float("inf"), 1.0, -2.0, 0.5],
    "+inf in another class": [0.0, float("inf"), -2.0, 0.5],
    "two +inf": [float("inf"), float("inf"), 0.0, 1.0],
    "-inf in the target's class": [-float("inf"), 1.0, -2.0, 0.5],
    "-inf in another class": [0.0, -float("inf"), -2.0, 0.5],
    "only -inf": [-float("inf")] * 4,
    "NaN and +inf": [float("nan"), float("inf"), 0.0, 1.0],
    "NaN and -inf": [float("nan"), -float("inf"), -float("inf"), 1.0],
    "huge": [3e4, -3e4, 1e4, 0.0],
    "huge for the target": [-6e4, 6e4, 0.0, 1.0],
    "all equal and huge": [6e4] * 4,
    "tiny": [1e-7, -1e-7, 0.0, 1e-8],
    "denormal probabilities": [0.0, -88.0, -95.0, -103.0],
    "confident": [0.0, -17.0, -18.0, -40.0],
}


def batch(
    dtype: torch.dtype = torch.float32,
    size: tuple[int, ...] = (4, 5),
    source: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (2, 3, *source) and pixel weights (2, *size) that require gradients, targets with
    ignored; logits are of the targets' size unless a `source` is given."""
    x = torch.randn(2, 3, *(source or size), dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randint(0, 3, (2, *size))
    target[torch.rand(target.shape) < 0.2] = IGNORED
    u = (torch.rand(2, *size, dtype=torch.float64) + 0.5).to(dtype).requires_grad_()
    return x, target, u


def loss_of(x: Tensor, target: Tensor, u: Tensor | None = None, **options: object) -> Tensor:
    return sf.cross_entropy(x, target, pixel_weight=u, ignore_index=IGNORED, **options)


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator of cross-entropy: each reduction, with and without gradients,
    dtype, layout."""
    calls: dict[str, list[tuple[object, ...]]] = {}
    for dtype, reduction in ((torch.float32, 0), (torch.bfloat16, 1), (torch.float16, 3)):
        x, target, u = (t.detach() for t in batch(dtype))
        last = x.contiguous(memory_format=torch.channels_last)
        weight, weights, one = torch.rand(3), u.float(), torch.ones((), dtype=torch.float64)
        for logits, wants in ((x, False), (x, True), (last, True)):
            upstream = torch.rand(target.shape if reduction == 0 else ())
            for source, interpolation in (
                (logits, (False, False)),
                (logits[:, :, :3, :2], (True, True)),
            ):
                options = (IGNORED, reduction, 0.1, *interpolation, wants, wants)
                factors, offset = torch.rand(2, 3), torch.rand(3)
                varied = factors, offset, torch.tensor(7), 2, 0.1, 1.1, False, 1.0, False, 1, 0.5
                overwrites = wants and source is logits
                for places in ("", "_") if overwrites else ("",):
                    for more in ((), varied):
                        calls.setdefault(f"cross_entropy_forward{places}", []).append(
                            (source, target, weight, weights, *options, *more)
                        )
                        calls.setdefault(f"cross_entropy_backward{places}", []).append(
                            (upstream, source, target, None, weights, one, *options, *more)
                        )
        calls.setdefault("scale_", []).append((x.clone(), torch.tensor(2.0)))
    return calls
