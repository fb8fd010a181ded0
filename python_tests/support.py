"""What the operators support: the table that the tests run over and that docs/support.md prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("none", "mean", "sum", "mean_all")
TARGET_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)
REGION_DTYPES = (torch.bool, *TARGET_DTYPES, *LOGITS_DTYPES)
# The target that tests ignore, unless they draw one.
IGNORED = 255
DEVICES = ("cpu", "cuda")


def _permuted(x: Tensor, order: list[int]) -> Tensor:
    """The same values, dense in memory with the axes in `order`, slowest first."""
    back = [order.index(i) for i in range(x.dim())]
    return x.permute(order).contiguous().permute(back)


def _contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return _permuted(x, [0, *range(2, x.dim()), 1])


def _transposed(x: Tensor) -> Tensor:
    return _permuted(x, [*reversed(range(x.dim()))])


def _crop(x: Tensor) -> Tensor:
    """A window of a larger tensor, in every axis."""
    larger = x.new_zeros([size + 3 for size in x.shape])
    window = larger[tuple(slice(1, 1 + size) for size in x.shape)]
    return window.copy_(x)


def _channels_last_crop(x: Tensor) -> Tensor:
    axes = [0, *range(2, x.dim()), 1]
    larger = x.new_zeros([x.shape[i] + 2 for i in axes])
    window = larger[tuple(slice(2, 2 + x.shape[i]) for i in axes)]
    window.copy_(x.permute(axes))
    return window.permute([axes.index(i) for i in range(x.dim())])


def _every_other(x: Tensor) -> Tensor:
    """Every second element of a larger tensor, in every axis."""
    larger = x.new_zeros([2 * size for size in x.shape])
    return larger[tuple(slice(None, None, 2) for _ in x.shape)].copy_(x)


def _expanded_images(x: Tensor) -> Tensor:
    """The first image repeated, at stride 0."""
    return x[:1].contiguous().expand(x.shape)


def _expanded_pixels(x: Tensor) -> Tensor:
    """The first pixel repeated, at stride 0."""
    first_pixel = (slice(None), slice(None), *(slice(0, 1) for _ in x.shape[2:]))
    return x[first_pixel].contiguous().expand(x.shape)


class Layout(NamedTuple):
    """How logits lie in memory."""

    make: Callable[[Tensor], Tensor]
    """From logits ``(N, C, *)`` to a tensor of that shape and layout (and values, unless it
    repeats some)."""
    traversal: str
    """Which of the kernels' traversals it takes."""


LAYOUTS = {
    "contiguous": Layout(_contiguous, "planar"),
    "channels_last": Layout(_channels_last, "channels_last"),
    "transposed": Layout(_transposed, "strided"),
    "crop": Layout(_crop, "strided"),
    "channels_last crop": Layout(_channels_last_crop, "strided"),
    "every other element": Layout(_every_other, "strided"),
    "expanded images": Layout(_expanded_images, "planar"),
    "expanded pixels": Layout(_expanded_pixels, "strided"),
}


LABEL_DTYPES = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)


class Operator(NamedTuple):
    """What one public function takes and promises."""

    differentiable: str
    dtypes: tuple[torch.dtype, ...] = LOGITS_DTYPES
    """Of its logits, its values or, where it has neither, its labels."""
    layouts: str = "all below"
    deterministic: str = "same bits for any number of threads and on every run"


OPERATORS = {
    "cross_entropy": Operator("once, in input and pixel_weight"),
    "cross_entropy(upsample=...)": Operator("once, in input and pixel_weight"),
    "dice_cross_entropy": Operator("once, in input and pixel_weight"),
    "dice_cross_entropy(upsample=...)": Operator("once, in input and pixel_weight"),
    "expected_cross_entropy": Operator("once, in mean, scale and pixel_weight"),
    "dice_bce": Operator("once, in input and pixel_weight"),
    "label_uncertainty_bce": Operator("once, in mean, log_variance and pixel_weight"),
    "bootstrapped_bce": Operator("once, in mean, log_variance and pixel_weight"),
    "predictive_statistics": Operator("no"),
    "predictive_statistics(size=...)": Operator("no"),
    "accumulate_statistics": Operator("no"),
    "block_uncertainty": Operator("no"),
    "block_uncertainty(size=...)": Operator("no"),
    "connected_components": Operator("no", LABEL_DTYPES, "any, by a contiguous copy"),
    "component_mean": Operator(
        "any number of times, in values", layouts="any, by a contiguous copy"
    ),
    "accumulate_counts": Operator("no"),
    "accumulate_counts(size=...)": Operator("no"),
}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


RESULTS = Path(__file__).parent.parent / "docs" / "compatibility.json"
"""What `make compatibility` has found, a row for each version of torch."""


def versions(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of what the tests came to beside versions of torch."""
    if not rows:
        return ["No such run is on record yet."]
    lines = [
        "| torch | its CUDA | Python | CPU library | CUDA library | passed | skipped | failed |",
        "|---|---|---|---|---|--:|--:|---|",
    ]
    for row in rows:
        failed = ", ".join(f"`{name}`" for name in row["failed"])
        lines.append(
            f"| {row['torch']} | {row['cuda']} | {row['python']} | {row['cpu_library']} | "
            f"{row['cuda_library']} | {row['passed']} | {row['skipped']} | "
            f"{len(row['failed'])}{': ' if failed else ''}{failed} |"
        )
    return lines


def markdown() -> str:
    """The page docs/support.md."""
    lines = [
        "# What is supported",
        "",
        "Generated from `python_tests/support.py`, the table that the tests run over:",
        "`python -m python_tests.support > docs/support.md`.",
        "",
        "| function | device | types | layouts | differentiable | deterministic |",
        "|---|---|---|---|---|---|",
    ]
    for name, operator in OPERATORS.items():
        dtypes = ", ".join(map(name_of, operator.dtypes))
        for device in DEVICES:
            lines.append(
                f"| `{name}` | {device} | {dtypes} | {operator.layouts} | "
                f"{operator.differentiable} | {operator.deterministic} |"
            )
    lines += [
        "",
        "Types are those of the logits, of `component_mean`'s values and of the labels of",
        f"`connected_components`. Targets are {', '.join(map(name_of, TARGET_DTYPES))};",
        "`as_targets` makes class indices of other types so. Those of `dice_bce` may also be bool",
        "or of the logits' types, those of `label_uncertainty_bce` and `bootstrapped_bce` bool.",
        "Pixel weights have any of these, labels of `component_mean` are any integers or bool.",
        "Logits are `(N, C)` or `(N, C, *spatial)`, for cross-entropy also `(C,)`; label maps are",
        "`(N, H, W)` or `(N, D, H, W)`. With `upsample` or `size` logits are `(N, C, H, W)` or",
        "`(N, C, D, H, W)`, targets and maps of any size, also for `accumulate_statistics` where",
        "its state has another size.",
        "",
        "| layout of the logits | traversal |",
        "|---|---|",
        *(f"| {name} | {layout.traversal} |" for name, layout in LAYOUTS.items()),
        "",
        "## Versions",
        "",
        "One wheel serves every Python >= 3.10 and every torch >= 2.10. `make compatibility` puts",
        "it beside the CUDA builds of several versions of torch and runs the tests that need no",
        "GPU; *native* says that the library is loaded. Skipped are tests of other hardware.",
        "",
        *versions(json.loads(RESULTS.read_text())),
        "",
        "The CUDA library holds code for the compute capabilities that `segunc info` lists, and",
        "PTX, which the driver translates for any other from 10.0 on. Compiled by CUDA 13, as by",
        "`make wheel`, it needs an NVIDIA driver 580 or later, also beside a torch for CUDA 12;",
        "`segunc info` says what yours supports.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
