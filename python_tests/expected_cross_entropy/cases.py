"""Random calls of expected_cross_entropy, and what the specification makes of them in float64."""

from __future__ import annotations

import dataclasses
import random
from typing import NamedTuple

import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_gradients_exist
from python_tests.support import LAYOUTS, LOGITS_DTYPES, REDUCTIONS, TARGET_DTYPES

# Shapes (N, C, *): ragged against tiles and units, of one pixel, empty, without or with up to four
# spatial axes.
SHAPES = (
    (0, 3, 4, 5),
    (2, 3, 0, 4),
    (1, 2, 1, 1),
    (3, 5, 1, 1),
    (7, 4),
    (67, 3),
    (1, 3, 127),
    (2, 5, 33),
    (2, 2, 40, 65),
    (1, 19, 5, 7),
    (2, 11, 8, 9),
    (1, 7, 3, 5, 6),
    (1, 33, 3, 11),
    (1, 4, 2, 2, 2, 3),
)


@dataclasses.dataclass
class Case:
    """Arguments of one call, and the gradient that flows into its result."""

    mean: Tensor
    scale: Tensor
    target: Tensor
    weight: Tensor | None
    pixel_weight: Tensor | None
    ignore_index: int
    reduction: str
    num_draws: int
    antithetic: bool
    seed: int
    upstream: Tensor
    name: str

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What a gradient is wanted of."""
        tensors = {"mean": self.mean, "scale": self.scale, "pixel_weight": self.pixel_weight}
        return {n: t for n, t in tensors.items() if t is not None and t.requires_grad}

    def double(self) -> Case:
        """The same numbers in float64."""
        return dataclasses.replace(
            self,
            **{
                name: tensor.detach().double().requires_grad_(tensor.requires_grad)
                for name in ("mean", "scale", "weight", "pixel_weight", "upstream")
                if (tensor := getattr(self, name)) is not None
            },
        )

    def to(self, device: str) -> Case:
        """The same call on another device."""
        return dataclasses.replace(
            self,
            **{
                field.name: value.detach().to(device).requires_grad_(value.requires_grad)
                for field in dataclasses.fields(self)
                if isinstance(value := getattr(self, field.name), Tensor)
            },
        )


class Outcome(NamedTuple):
    """A loss and the gradients that are wanted."""

    loss: Tensor
    gradients: dict[str, Tensor]


def triangle(num_classes: int) -> int:
    """Elements of a packed factor."""
    return num_classes * (num_classes + 1) // 2


def random_case(seed: int) -> Case:
    """The call of this number, always the same."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    shape = choose.choice(SHAPES)
    images, classes, *spatial = shape
    pixels = (images, *spatial)
    dtype = choose.choice(LOGITS_DTYPES)
    cholesky = choose.random() < 0.4
    channels = triangle(classes) if cholesky else classes
    layouts = [choose.choice([*LAYOUTS]) for _ in range(2)]
    mean, scale = (
        LAYOUTS[layout].make((size * normal((images, width, *spatial))).to(dtype))
        for layout, width, size in zip(
            layouts,
            (classes, channels),
            (choose.choice((0.1, 2.0, 8.0)), choose.choice((0.0, 0.3, 1.0, 4.0))),
            strict=True,
        )
    )
    target = torch.randint(0, classes, pixels, generator=generator)
    target_dtype = choose.choice(TARGET_DTYPES)
    ignore_index = choose.choice([255, choose.randrange(classes)])
    target[uniform(pixels) < choose.choice((0.0, 0.2, 0.5, 1.0))] = ignore_index
    weight = uniform((classes,)) + 0.1 if choose.random() < 0.4 else None
    pixel_weight = None
    if choose.random() < 0.5:
        broadcast = tuple(1 if choose.random() < 0.2 else size for size in pixels)
        pixel_weight = (2 * uniform(broadcast)).to(choose.choice(LOGITS_DTYPES))
        pixel_weight.requires_grad_(choose.random() < 0.6)
    reduction = choose.choice(REDUCTIONS)
    antithetic = choose.random() < 0.4
    num_draws = choose.choice((1, 2, 3, 4, 7, 8, 12, 16, 21, 40))
    num_draws += num_draws % 2 if antithetic else 0
    upstream = normal(pixels if reduction == "none" else ()).to(dtype)
    kind = "Cholesky" if cholesky else "diagonal"
    return Case(
        mean=mean.detach().requires_grad_(choose.random() < 0.85),
        scale=scale.detach().requires_grad_(choose.random() < 0.85),
        target=target.to(target_dtype),
        weight=weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        num_draws=num_draws,
        antithetic=antithetic,
        seed=choose.getrandbits(62),
        upstream=upstream,
        name=f"case {seed} ({shape}, {kind}, {dtype}, {layouts}, {reduction}, {num_draws} draws, "
        f"antithetic={antithetic})",
    )


def loss_of(case: Case) -> Tensor:
    """The library's loss."""
    return sf.expected_cross_entropy(
        case.mean,
        case.scale,
        case.target,
        case.weight,
        num_draws=case.num_draws,
        antithetic=case.antithetic,
        seed=case.seed,
        pixel_weight=case.pixel_weight,
        ignore_index=case.ignore_index,
        reduction=case.reduction,  # type: ignore[arg-type]
    )


def run(case: Case) -> Outcome:
    """The library's answer."""
    loss, leaves = loss_of(case), case.leaves
    assert loss.requires_grad == bool(leaves), case.name
    values = ()
    if leaves:
        values = torch.autograd.grad(loss, [*leaves.values()], case.upstream.to(loss.dtype))
    return Outcome(loss.detach(), dict(zip(leaves, values, strict=True)))


def expected(case: Case) -> Outcome:
    """The specification's, in float64."""
    with segunc_ops.backend("reference"):
        return run(case.double())


def compare(case: Case, actual: Outcome) -> None:
    """An outcome against that of the specification, each result with its own scale."""
    truth = expected(case)
    assert_gradients_exist(actual.gradients, dict.fromkeys(case.leaves, True))
    assert actual.loss.dtype == case.mean.dtype, case.name
    if case.target.numel() == 0:
        return
    compute = torch.float64 if case.mean.dtype == torch.float64 else torch.float32
    largest = 6.0  # of normal numbers, which 24 bits make
    mean, scale = (float(t.detach().double().abs().max()) for t in (case.mean, case.scale))
    width = case.mean.shape[1] if case.scale.shape[1] > case.mean.shape[1] else 1
    surprise = 1.0 + 2 * (mean + largest * scale * width)
    valid = case.target != case.ignore_index
    weights = torch.ones(case.mean.shape[1]) if case.weight is None else case.weight
    weight = float(weights.max())
    by_pixel = 1.0 if case.pixel_weight is None else float(case.pixel_weight.detach().max())
    divisor = {
        "none": 1.0,
        "sum": 1.0,
        "mean_all": float(case.target.numel()),
        "mean": float(weights.double()[case.target[valid].long()].sum()) or 1.0,
    }[case.reduction]
    terms = 1.0 if case.reduction == "none" else float(case.target.numel())
    upstream = float(case.upstream.double().abs().max())
    factor = weight * upstream / divisor
    repeated = 1.0
    if case.pixel_weight is not None:
        repeated = case.target.numel() / max(case.pixel_weight.numel(), 1)
    scales = {
        "loss": terms * by_pixel * weight * surprise / divisor,
        "mean": by_pixel * factor * surprise,
        "scale": largest * by_pixel * factor * surprise,
        "pixel_weight": repeated * factor * surprise,
    }
    # A scalar loss makes its gradient in the forward pass and multiplies it by the upstream factor
    # in the backward pass: in bfloat16 both steps round.
    twice = case.mean.dtype == torch.bfloat16 and case.reduction != "none"
    wanted = {"loss": truth.loss, **truth.gradients}
    for name, got in {"loss": actual.loss, **actual.gradients}.items():
        assert_close(
            got,
            wanted[name].double(),
            name=f"{case.name}: {name}",
            scale=scales[name],
            compute=compute,
            roundings=2 if twice and name in ("mean", "scale") else 1,
            bias=False,
        )


def batch(
    dtype: torch.dtype = torch.float64,
    size: tuple[int, ...] = (3, 4),
    *,
    cholesky: bool = False,
    classes: int = 3,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, scale, target with ignored pixels and pixel weights; all but the target want one."""
    generator = torch.Generator().manual_seed(1)
    channels = triangle(classes) if cholesky else classes
    mean = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    scale = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, *size), generator=generator)
    target[0, 0] = 255
    weight = torch.rand(target.shape, generator=generator, dtype=torch.float64)
    leaves = (t.to(dtype).requires_grad_() for t in (mean, scale))
    mean, scale = leaves
    return mean, scale, target, weight.to(dtype).requires_grad_()


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator of the family, for torch.library.opcheck."""
    mean, scale, target, u = (t.detach() for t in batch(torch.float32))
    factor = batch(torch.float32, cholesky=True)[1].detach()
    half = tuple(t.detach() for t in batch(torch.bfloat16, cholesky=True)[:3])
    weight, seed = torch.rand(3) + 0.5, torch.tensor(5)
    one, divisor = torch.tensor(2.0), torch.tensor(3.0, dtype=torch.float64)
    upstream = torch.rand(target.shape)
    none, mean_ = 0, 1
    all_, one_ = (True, True, True), (False, True, False)  # gradients
    return {
        "expected_cross_entropy_forward": [
            (mean, scale, target, None, None, seed, 255, mean_, 3, False, True, True, False),
            (mean, factor, target, weight, u, seed, 255, none, 6, True, False, False, False),
            (*half, None, None, seed, 255, mean_, 4, True, True, False, False),
        ],
        "expected_cross_entropy_backward": [
            (one, mean, scale, target, None, u, seed, divisor, 255, mean_, 3, False, *all_),
            (upstream, mean, factor, target, weight, u, seed, divisor, 255, none, 6, True, *one_),
            (one, *half, None, None, seed, divisor, 255, mean_, 4, True, *one_),
        ],
    }
