"""Small calls of every CUDA kernel, for compute-sanitizer to watch.

Sizes are awkward on purpose: one pixel, one more than a vector or a block, odd class counts,
slices that are not aligned. Results are compared elsewhere; here only the accesses count.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf

_IGNORE_INDEX = 255
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_REDUCTIONS: tuple[sf.Reduction, ...] = ("none", "mean", "sum", "mean_all")
# (classes, height, width)
_SIZES = ((2, 1, 1), (3, 5, 7), (19, 16, 33), (33, 3, 129), (150, 4, 17))


def _logits(size: tuple[int, int, int], dtype: torch.dtype, layout: str, device: str) -> Tensor:
    c, h, w = size
    logits = torch.randn(2, c, h, w, device=device).to(dtype)
    if layout == "channels_last":
        return logits.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.randn(2, c, h, w + 1, device=device).to(dtype)[..., 1:]
    return logits


def _cross_entropy(logits: Tensor, reduction: sf.Reduction, target_dtype: torch.dtype) -> None:
    n, c, h, w = logits.shape
    target = torch.randint(0, c, (n, h, w), device=logits.device)
    target[torch.rand(n, h, w, device=logits.device) < 0.2] = _IGNORE_INDEX
    weight = torch.rand(c, device=logits.device) + 0.5
    for weighted, smoothing, overwrites in (
        (False, 0.0, False),
        (False, 0.0, True),
        (True, 0.1, False),
    ):
        leaf = logits.detach().requires_grad_(True)
        pixel_weight = torch.rand(n, h, w, device=logits.device, requires_grad=weighted)
        loss = sf.cross_entropy(
            leaf.clone() if overwrites else leaf,
            target.to(target_dtype),
            weight if weighted else None,
            pixel_weight=pixel_weight,
            ignore_index=_IGNORE_INDEX,
            reduction=reduction,
            label_smoothing=smoothing,
            overwrite_input=overwrites,
        )
        # Not one, so that the stored gradient is rescaled too.
        loss.backward(torch.full_like(loss, 2.0))
    with torch.no_grad():
        sf.cross_entropy(logits, target, ignore_index=_IGNORE_INDEX, reduction=reduction)


def _upsampled_cross_entropy(
    logits: Tensor, reduction: sf.Reduction, target_dtype: torch.dtype
) -> None:
    """To a larger and to a smaller target, and as a volume."""
    n, c, h, w = logits.shape
    volume = logits.unflatten(-1, (1, w))
    for source, size in (
        (logits, (3 * h + 1, 4 * w)),
        (logits, (h // 2 + 1, w // 4 + 1)),
        (volume, (h + 1, 2, 2 * w)),
    ):
        target = torch.randint(0, c, (n, *size), device=logits.device)
        target[torch.rand(target.shape, device=logits.device) < 0.2] = _IGNORE_INDEX
        for align_corners in (False, True):
            leaf = source.detach().requires_grad_(True)
            pixel_weight = torch.rand(target.shape, device=logits.device, requires_grad=True)
            loss = sf.cross_entropy(
                leaf,
                target.to(target_dtype),
                pixel_weight=pixel_weight,
                ignore_index=_IGNORE_INDEX,
                reduction=reduction,
                label_smoothing=0.1 if align_corners else 0.0,
                upsample="bilinear" if source is logits else "trilinear",
                align_corners=align_corners,
            )
            loss.backward(torch.full_like(loss, 2.0))


def _dice(logits: Tensor, number: int, target_dtype: torch.dtype) -> None:
    """Per image and over the batch, of the target's size and interpolated to a larger one; of
    regions."""
    n, c, h, w = logits.shape
    for size, upsample in (((h, w), None), ((2 * h + 1, 3 * w), "bilinear")):
        target = torch.randint(0, c, (n, *size), device=logits.device)
        target[torch.rand(target.shape, device=logits.device) < 0.2] = _IGNORE_INDEX
        leaf = logits.detach().requires_grad_(True)
        pixel_weight = torch.rand(target.shape, device=logits.device, requires_grad=True)
        loss = sf.dice_cross_entropy(
            leaf,
            target.to(target_dtype),
            pixel_weight=pixel_weight,
            ignore_index=_IGNORE_INDEX,
            batch=number % 2 == 0,
            squared=number % 3 == 0,
            label_smoothing=0.1 if number % 4 == 0 else 0.0,
            upsample=upsample,  # type: ignore[arg-type]
        )
        loss.backward(torch.full_like(loss, 2.0))
    regions = torch.rand(n, c + 1, h, w, device=logits.device) < 0.4
    leaf = logits.detach().requires_grad_(True)
    pixel_weight = torch.rand(n, h, w, device=logits.device, requires_grad=True)
    loss = sf.dice_bce(
        leaf,
        regions.to(target_dtype),
        pixel_weight=pixel_weight,
        batch=number % 2 == 0,
        squared=number % 3 == 0,
        ignore_channel=True,
    )
    loss.backward(torch.full_like(loss, 2.0))


def _label_uncertainty(
    output: Tensor, reduction: sf.Reduction, number: int, target_dtype: torch.dtype
) -> None:
    """Of two of its channels, which lie apart, and of copies of them."""
    n, _, h, w = output.shape
    target = torch.randint(0, 2, (n, h, w), device=output.device)
    target[torch.rand(n, h, w, device=output.device) < 0.2] = _IGNORE_INDEX
    loss = segunc_ops.LabelUncertaintyLoss(
        0.5, detach_weight=number % 2 == 0, ignore_index=_IGNORE_INDEX, reduction=reduction
    )
    for leaf in (output, output.contiguous(memory_format=torch.contiguous_format).clone()):
        leaf = leaf.detach().requires_grad_(True)
        pixel_weight = torch.rand(n, h, w, device=output.device, requires_grad=True)
        bootstrap = None if number % 3 == 0 else torch.arange(n, device=output.device) == 0
        value = loss(leaf[:, :1], leaf[:, 1:2], target.to(target_dtype), bootstrap, pixel_weight)
        value.backward(torch.full_like(value, 2.0))


def _expected_cross_entropy(
    logits: Tensor, reduction: sf.Reduction, number: int, target_dtype: torch.dtype
) -> None:
    """With a diagonal and, of not too many classes, with a triangle."""
    n, c, h, w = logits.shape
    target = torch.randint(0, c, (n, h, w), device=logits.device)
    target[torch.rand(n, h, w, device=logits.device) < 0.2] = _IGNORE_INDEX
    for channels in (c, c * (c + 1) // 2)[: 2 if c < 50 else 1]:
        mean = logits.detach().requires_grad_(True)
        scale = torch.rand(n, channels, h, w, device=logits.device).to(logits.dtype)
        scale.requires_grad_(True)
        pixel_weight = torch.rand(n, h, w, device=logits.device, requires_grad=True)
        for draws, antithetic in ((3 + number % 2, False), (140, number % 2 == 0)):
            loss = sf.expected_cross_entropy(
                mean,
                scale,
                target.to(target_dtype),
                num_draws=draws,
                antithetic=antithetic,
                pixel_weight=pixel_weight,
                ignore_index=_IGNORE_INDEX,
                reduction=reduction,
            )
            loss.backward(torch.full_like(loss, 2.0))


def _statistics(samples: Sequence[Tensor]) -> None:
    """Of their own size, of a larger one and of a smaller one."""
    h, w = samples[0].shape[2:]
    for size in (None, (3 * h + 1, 4 * w), (h // 2 + 1, w // 4 + 1)):
        sf.predictive_statistics(list(samples), size=size, return_mean=True)
        accumulator = segunc_ops.PredictiveAccumulator()
        for sample in samples:
            accumulator.update(sample, size=size, align_corners=size is not None)
        accumulator.compute(return_mean=True)


def _counts(logits: Tensor, target_dtype: torch.dtype) -> None:
    n, c, h, w = logits.shape
    target = torch.randint(0, c, (n, h, w), device=logits.device)
    target[torch.rand(n, h, w, device=logits.device) < 0.2] = _IGNORE_INDEX
    target = target.to(target_dtype)
    statistics = sf.predictive_statistics([logits, -logits])
    thresholds = torch.tensor([0.1, 0.2], dtype=torch.float64, device=logits.device)
    patches = torch.zeros((2, 5), dtype=torch.int64, device=logits.device)
    for values, tables in ((logits, None), (statistics, ("confusion", "calibration", "histogram"))):
        counts = sf.empty_counts(
            c, tables=tables or sf.SegmentationCounts._fields, device=logits.device
        )
        outcome = sf.accumulate_counts(
            counts,
            values,
            target,
            statistics.std,
            ignore_index=_IGNORE_INDEX,
            return_outcome=True,
        )
        assert outcome is not None
        sf.accumulate_patch_counts(patches, outcome, statistics.std, thresholds)
    for size in ((3 * h + 1, 4 * w), (h // 2 + 1, w // 4 + 1)):
        target = torch.randint(0, c, (n, *size), device=logits.device).to(target_dtype)
        counts = sf.empty_counts(c, tables=("confusion", "scores"), device=logits.device)
        sf.accumulate_counts(counts, logits, target, size=size, ignore_index=_IGNORE_INDEX)


def _blocks(logits: Tensor) -> None:
    """Side by side and overlapping, of their own size, of a larger one and of a smaller one."""
    h, w = logits.shape[2:]
    for size in (None, (3 * h + 1, 4 * w), (h // 2 + 1, w // 4 + 1)):
        height, width = size or (h, w)
        block = (height + 1) // 2, (width + 2) // 3
        for stride in (None, 1, tuple((n + 1) // 2 for n in block)):
            sf.block_uncertainty(logits, block_size=block, stride=stride, size=size)


def _components(size: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    """Of maps and of volumes, by every connectivity, with a gradient and without."""
    c, h, w = size
    labels = torch.randint(0, min(c, 3), (2, h, w), device=device)
    labels[torch.rand(2, h, w, device=device) < 0.2] = _IGNORE_INDEX
    for seen, connectivities in ((labels, (4, 8)), (labels.unflatten(-1, (1, w)), (6, 26))):
        for connectivity in connectivities:
            sf.connected_components(seen, connectivity=connectivity, ignore_index=_IGNORE_INDEX)
            values = torch.rand(seen.shape, device=device).to(dtype).requires_grad_(True)
            mean = sf.component_mean(
                values, seen, connectivity=connectivity, ignore_index=_IGNORE_INDEX, bound=1.0
            )
            mean.sum().backward()


def run(device: str) -> int:
    """Runs all cases on `device`; returns how many."""
    torch.manual_seed(0)
    layouts = ("nchw", "channels_last", "sliced")
    target_dtypes = itertools.cycle((torch.int64, torch.int32, torch.int16, torch.uint8))
    reductions = itertools.cycle(_REDUCTIONS)
    count = 0
    for size, dtype, layout in itertools.product(_SIZES, _DTYPES, layouts):
        _cross_entropy(_logits(size, dtype, layout, device), next(reductions), next(target_dtypes))
        _upsampled_cross_entropy(
            _logits(size, dtype, layout, device), next(reductions), next(target_dtypes)
        )
        _dice(_logits(size, dtype, layout, device), count, next(target_dtypes))
        _label_uncertainty(
            _logits(size, dtype, layout, device), next(reductions), count, next(target_dtypes)
        )
        _expected_cross_entropy(
            _logits(size, dtype, layout, device), next(reductions), count, next(target_dtypes)
        )
        _statistics([_logits(size, dtype, layout, device) for _ in range(1 + count % 4)])
        _counts(_logits(size, dtype, layout, device), next(target_dtypes))
        _blocks(_logits(size, dtype, layout, device))
        _components(size, dtype, device)
        count += 7
    if device == "cuda":
        torch.cuda.synchronize()
        segunc_ops.check()
    return count


def main() -> int:
    """Runs every kernel on small inputs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    print(f"{run(parser.parse_args().device)} calls")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
