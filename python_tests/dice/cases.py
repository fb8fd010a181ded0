"""Batches for Dice and cross-entropy, of classes and of regions, and the losses of packages by
their formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import accumulate_dtype, assert_close
from python_tests.peers import Record
from python_tests.support import IGNORED


def batch(
    dtype: torch.dtype = torch.float32,
    size: tuple[int, ...] = (5, 7),
    classes: int = 3,
    images: int = 2,
    ignored: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and pixel weights that require a gradient, and targets."""
    x = (3 * torch.randn(images, classes, *size)).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (images, *size))
    target[torch.rand(target.shape) < ignored] = IGNORED
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return x, target, torch.rand(images, *size, dtype=compute).requires_grad_()


def loss_of(x: Tensor, target: Tensor, u: Tensor | None = None, **options: Any) -> Tensor:
    return sf.dice_cross_entropy(x, target, pixel_weight=u, ignore_index=IGNORED, **options)


def truth_of(
    x: Tensor, target: Tensor, u: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The reference's loss in float64 and its gradients."""
    return _truth_by(lambda z, weights: loss_of(z, target, weights, **options), x, u)


def _truth_by(
    reference: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    exact = x.detach().double().requires_grad_()
    weights = None if u is None else u.detach().double().requires_grad_()
    with segunc_ops.backend("reference"):
        loss = reference(exact, weights)
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), exact.grad, None if weights is None else weights.grad


def assert_equals(
    truth: tuple[Tensor, Tensor, Tensor | None],
    loss: Tensor,
    x: Tensor,
    u: Tensor | None,
    upstream: float,
) -> None:
    """Compares a loss, and what of a gradient `upstream` flows back, with the truth."""
    leaves = [leaf for leaf in (x, u) if leaf is not None]
    found = torch.autograd.grad(
        loss, leaves, torch.tensor(upstream, dtype=loss.dtype), allow_unused=True
    )
    value, *wanted = truth
    compute = accumulate_dtype(x.dtype)
    # A unit of these losses: their pixels' surprises are of the size of the logits.
    size = 1 + float(x.detach().double().nan_to_num().abs().max())
    assert_close(loss, value, name="loss", scale=size, compute=compute, bias=False)
    for name, a, b in zip(("input", "pixel_weight"), found, wanted, strict=False):
        if b is None:
            assert a is None or not a.any()
            continue
        scale = size * float(b.abs().max()) * abs(upstream)
        assert_close(a, b * upstream, name=name, scale=scale, compute=compute, bias=False)


class Regions(NamedTuple):
    """Logits and pixel weights that require a gradient, targets, and which pixels count."""

    x: Tensor
    target: Tensor
    mask: Tensor
    u: Tensor


def regions(
    dtype: torch.dtype = torch.float32,
    size: tuple[int, ...] = (5, 7),
    classes: int = 3,
    images: int = 2,
    target_dtype: torch.dtype = torch.bool,
) -> Regions:
    x = (3 * torch.randn(images, classes, *size)).to(dtype).requires_grad_()
    target = (torch.rand(x.shape) < 0.4).to(target_dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    u = torch.rand(images, *size, dtype=compute).requires_grad_()
    return Regions(x, target, torch.rand(images, *size) < 0.8, u)


def region_truth_of(
    x: Tensor, target: Tensor, mask: Tensor | None, u: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The reference's loss in float64 and its gradients."""

    def reference(z: Tensor, weights: Tensor | None) -> Tensor:
        return sf.dice_bce(z, target, mask=mask, pixel_weight=weights, **options)

    return _truth_by(reference, x, u)


# ---- the packages' own losses, of valid pixels alone ----


def _sums(x: Tensor, target: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """P, G and I."""
    valid = target != IGNORED
    p = x.softmax(1) * valid.unsqueeze(1)
    one_hot = F.one_hot(torch.where(valid, target, 0), x.shape[1]).movedim(-1, 1)
    one_hot = (one_hot * valid.unsqueeze(1)).to(p.dtype)
    return p.sum(axes), one_hot.sum(axes), (p * one_hot).sum(axes)


def _axes(x: Tensor, batch: bool) -> tuple[int, ...]:
    return (0,) * batch + tuple(range(2, x.dim()))


def nnunet(x: Tensor, target: Tensor, batch_dice: bool = False) -> Tensor:
    """nnU-Net 2.8's DC_and_CE_loss with its MemoryEfficientSoftDiceLoss."""
    p, g, i = _sums(x, target, _axes(x, batch_dice))
    p, g, i = p[..., 1:], g[..., 1:], i[..., 1:]
    dice = (2 * i + 1e-5) / (p + g + 1e-5).clip(1e-8)
    return F.cross_entropy(x, target, ignore_index=IGNORED) - dice.mean()


def monai(
    x: Tensor,
    target: Tensor,
    batch: bool = False,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
) -> Tensor:
    """MONAI 1.6's DiceCELoss(to_onehot_y=True, softmax=True), which ignores no pixel."""
    axes = _axes(x, batch)
    p, one_hot = x.softmax(1), F.one_hot(target, x.shape[1]).movedim(-1, 1).to(x.dtype)
    first = 0 if include_background else 1
    p, one_hot = p[:, first:], one_hot[:, first:]
    i = (p * one_hot).sum(axes)
    total = (p**2 if squared_pred else p).sum(axes) + one_hot.sum(axes)
    if jaccard:
        total = 2 * (total - i)
    dice = 1 - (2 * i + 1e-5) / (total + 1e-5)
    return dice.mean() + F.cross_entropy(x, target)


def smp(x: Tensor, target: Tensor) -> Tensor:
    """segmentation_models_pytorch 0.6's DiceLoss("multiclass", ignore_index)."""
    p, g, i = _sums(x, target, _axes(x, True))
    loss = 1 - 2 * i / (p + g).clamp_min(1e-7)
    return (loss * (g > 0)).mean()


def ultralytics(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The formula of Ultralytics 8.4, of one head and one image of the batch size's factor."""
    p, g, i = _sums(x, target, _axes(x, True))
    dice = (2 * i + 1) / (p + g + 1)
    return F.cross_entropy(x, target, weight, ignore_index=IGNORED) + (1 - dice).mean()


def nnunet_regions(x: Tensor, target: Tensor, batch_dice: bool, ignores: bool) -> Tensor:
    """nnU-Net 2.8's DC_and_BCE_loss, with its MemoryEfficientSoftDiceLoss of all regions."""
    mask = torch.ones_like(x[:, :1])
    if ignores:
        target, mask = target[:, :-1], (1 - target[:, -1:].to(x.dtype)).bool().to(x.dtype)
    y = target.to(x.dtype)
    axes, p = _axes(x, batch_dice), x.sigmoid()
    sums = [(values * mask).sum(axes) for values in (p * y, y, p)]
    dice = (2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5).clip(1e-8)
    bce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    bce = (bce * mask).sum() / mask.sum().clip(min=1e-8) if ignores else bce.mean()
    return bce - dice.mean()


def monai_regions(
    x: Tensor,
    target: Tensor,
    batch: bool = False,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
) -> Tensor:
    """MONAI 1.6's DiceLoss(sigmoid=True), and BCE as its DiceCELoss has it of one channel."""
    y, first = target.to(x.dtype), 0 if include_background else 1
    axes, p, labels = _axes(x, batch), x.sigmoid()[:, first:], y[:, first:]
    i = (p * labels).sum(axes)
    total = (p**2 if squared_pred else p).sum(axes) + labels.sum(axes)
    if jaccard:
        total = 2 * (total - i)
    dice = 1 - (2 * i + 1e-5) / (total + 1e-5)
    return dice.mean() + F.binary_cross_entropy_with_logits(x, y)


_OF_MONAI = {
    "squared_pred": "squared",
    "smooth_nr": "smooth_numerator",
    "smooth_dr": "smooth_denominator",
    "lambda_dice": "dice_weight",
    "lambda_ce": "ce_weight",
}


def monai_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """MONAI's options by their names here."""
    return {_OF_MONAI.get(name, name): value for name, value in options.items()}


def tolerance(record: Record) -> float:
    """What a package's own arithmetic is exact to for logits in float64."""
    if record.loss.startswith("nnU-Net") or "Focal" in record.loss:
        return 2e-7  # its sums, or labels of regions, are in float32
    if record.options.get("squared_pred"):
        return 1e-8  # the norm of the labels is in float32
    return 1e-12


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator of the family, for torch.library.opcheck."""
    x, target, u = (t.detach() for t in batch())
    volume = tuple(t.detach() for t in batch(torch.bfloat16, (2, 3, 4)))[:2]
    weight = torch.rand(3) + 0.5
    small = torch.randn(2, 3, 3, 4)
    plain = (IGNORED, 0.0, False, False)
    smooth = (IGNORED, 0.1, False, False)
    interpolates = (IGNORED, 0.1, True, False)

    def slopes(images: int) -> tuple[Tensor, Tensor]:
        return torch.randn(images, 2, 3, dtype=torch.float64), torch.tensor(0.5).double()

    upstream = torch.tensor(2.0)
    z, y, mask, v = (t.detach() for t in regions())
    strided = torch.rand(2, 4, 5, 7)[:, :3] < 0.5  # without a last channel
    calls: dict[str, list[tuple[object, ...]]] = {
        "dice_bce_forward": [
            (z, y, None, None, None, True, False, True),
            (z, strided, weight, v, mask, False, True, False),
        ],
        "dice_bce_backward": [
            (upstream, z, y, None, None, None, *slopes(2), True, False, True, False),
            (upstream, z, strided, weight, v, mask, *slopes(1), False, True, True, True),
        ],
        "dice_cross_entropy_forward": [
            (x, target, None, None, *plain, True, False, True),
            (x, target, weight, u, *smooth, False, True, True),
            (*volume, None, None, *plain, False, False, False),
            (small, target, weight, u, *interpolates, True, False, True),
        ],
        "dice_cross_entropy_backward": [
            (upstream, x, target, None, None, *slopes(2), *plain, True, False, True, False),
            (upstream, x, target, weight, u, *slopes(1), *smooth, False, True, True, True),
            (upstream, *volume, None, None, *slopes(1), *plain, False, False, True, False),
            (
                upstream,
                small,
                target,
                weight,
                u,
                *slopes(2),
                *interpolates,
                True,
                False,
                True,
                True,
            ),
        ],
    }
    calls["dice_bce_backward_"] = calls["dice_bce_backward"]
    calls["dice_cross_entropy_backward_"] = calls["dice_cross_entropy_backward"][:-1]
    return calls
