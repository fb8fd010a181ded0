"""What is measured: the cases, who computes them, and the check that all compute the same.

Inputs are random, and as many sets of them as exceed the last-level cache several times are used
in turn. Half-precision losses run under autocast, as in a trainer; fp16 with a loss scale.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import PredictiveAccumulator, reference

from .environment import check_native, last_level_cache_bytes
from .memory import warm_heap
from .timing import Call, Clock

# How logits lie in memory, or what label maps show.
Layout = Literal["nchw", "channels_last", "street scene", "noise"]
Mode = Literal["forward", "forward+backward"]
Suite = Literal["quick", "default", "full"]

SUITES: tuple[Suite, ...] = ("quick", "default", "full")
OPS = (
    "cross_entropy",
    "upsampled_cross_entropy",
    "predictive_statistics",
    "component_mean",
    "accumulate_counts",
)

OURS = "ours"
KERNEL = "ours, kernel alone"
STREAMED = "ours, streamed"
ALL_TABLES = "ours, all metrics"
COMPILED = "torch.compile"
EAGER = "eager"
TORCH_COMPILED = "F.cross_entropy, torch.compile"
TORCH = "F.cross_entropy"
PLAIN = "softmax, std, xlogy"
TORCHMETRICS = "torchmetrics"
LABELS = "ours, labels alone"
CC3D = "cc3d and NumPy"
CC3D_LABELS = "cc3d, labels alone"
SCIPY = "SciPy, class by class"
CUPY = "CuPy, class by class"
# Peers that need a working compiler for the device, or a package that may be missing.
OPTIONAL = (COMPILED, TORCH_COMPILED, CC3D, CC3D_LABELS, SCIPY, CUPY)

IGNORE_INDEX = 255
# Height and width of the targets of `upsampled_cross_entropy`, in those of the logits.
ENLARGEMENT = 4
IGNORED_SHARE = 0.1
# Per-pixel weights of U-CE: (1 + standard deviation) ** alpha, a deviation being 0.5 at most.
MAX_DEVIATION, ALPHA = 0.5, 10.0
LOSS_SCALE = 2.0**16
_MEAN_ALL = 3  # the operators take reductions as integers
_CACHES = 3
# Memory kept warm for the kernel's results: those of a few calls, the heap being fragmented.
_WARM_RESULTS, _MIN_WARM = 3, 64 << 20
_MAX_SETS = 64
_CALL_OVERHEAD_PIXELS = 128 * 128
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Relative to the norm of a float64 result; a gradient is rounded to the logits' type.
_GRADIENT_TOLERANCE = {"fp32": 1e-5, "bf16": 4e-3, "fp16": 1e-3}
_LOSS_TOLERANCE = 1e-4
# Absolute: probabilities and entropies are of order one. Where the two best classes are closer
# than this in float64, which of them is the prediction is a matter of rounding.
_MAP_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One point of the axes.

    `shape` is ``(N, C, H, W)``, for statistics with S before it, for label maps ``(N, H, W)``.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout = "nchw"
    mode: Mode = "forward"

    @property
    def id(self) -> str:
        """Names the case in reports and on command lines."""
        size = "x".join(map(str, self.shape))
        return f"{self.op}-{size}-{self.dtype}-{self.layout}-{self.mode}"

    @property
    def num_classes(self) -> int:
        return self.shape[-3]

    @property
    def enlargement(self) -> int:
        """Height and width of the targets, in those of the logits."""
        return ENLARGEMENT if self.op == "upsampled_cross_entropy" else 1

    @property
    def pixels(self) -> int:
        """Pixels of all images (of one sample), or of their targets."""
        images = self.shape[0] if self.op == "component_mean" else self.shape[-4]
        return images * self.shape[-2] * self.shape[-1] * self.enlargement**2

    @property
    def logits_bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize

    @property
    def bytes_moved(self) -> int:
        """What any implementation must read and write: each input once, each output once."""
        if self.op == "component_mean":
            # The uint8 label and the value are read, the mean is written.
            return self.pixels + 2 * self.logits_bytes
        if self.op == "predictive_statistics":
            # An int64 prediction and five fp32 maps.
            return self.logits_bytes + self.pixels * (8 + 5 * 4)
        if self.op == "accumulate_counts":
            # The int64 target; tables stay in the cache.
            return self.logits_bytes + self.pixels * 8
        # The int64 target and the fp32 pixel weight are read, the gradient is written.
        gradient = self.logits_bytes if self.mode == "forward+backward" else 0
        return self.logits_bytes + gradient + self.pixels * (8 + 4)

    @property
    def implementations(self) -> tuple[str, ...]:
        """Who computes the case, in the order of reports."""
        if self.op == "component_mean":
            return (OURS, LABELS, CC3D, CC3D_LABELS, SCIPY, CUPY, EAGER)
        if self.op == "predictive_statistics":
            return (OURS, STREAMED, COMPILED, EAGER, PLAIN)
        if self.op == "accumulate_counts":
            peer = (TORCHMETRICS,) if importlib.util.find_spec("torchmetrics") else ()
            return (OURS, ALL_TABLES, EAGER, *peer)
        # fp16 recomputes its gradient in the backward operator: no single kernel makes both.
        kernel = () if self.dtype == "fp16" and self.mode == "forward+backward" else (KERNEL,)
        return (OURS, *kernel, COMPILED, EAGER, TORCH_COMPILED, TORCH)

    @property
    def measures_overhead(self) -> bool:
        """Whether the input is so small that the call, not the computation, takes the time."""
        return self.pixels <= _CALL_OVERHEAD_PIXELS

    @property
    def clock(self) -> Clock | None:
        """The clock to time it by; None is the device's usual one."""
        return "wall" if self.measures_overhead else None


def cases(suite: Suite, device: torch.device, op: str | None = None) -> list[Case]:
    """The cases of a suite, all or those of one operation.

    ``"quick"`` is a look at the showcase, ``"default"`` adds types, layouts, class counts and
    small inputs one at a time, ``"full"`` is the product of the axes. Each begins with the
    smaller one's cases, so that a run that is cut short has the most telling ones.
    """
    half = ["bf16"] + (["fp16"] if device.type == "cuda" else [])
    modes: tuple[Mode, ...] = ("forward", "forward+backward")
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    both: Mode = "forward+backward"

    def loss(shape: tuple[int, ...], dtype: str, layout: Layout, mode: Mode) -> Case:
        return Case("cross_entropy", shape, dtype, layout, mode)

    def upsampled(
        shape: tuple[int, ...], dtype: str, layout: Layout = "nchw", mode: Mode = both
    ) -> Case:
        return Case("upsampled_cross_entropy", shape, dtype, layout, mode)

    def statistics(shape: tuple[int, ...], dtype: str, layout: Layout = "nchw") -> Case:
        return Case("predictive_statistics", shape, dtype, layout)

    def means(shape: tuple[int, ...], content: Layout) -> Case:
        return Case("component_mean", shape, "fp32", content)

    def counts(shape: tuple[int, ...], dtype: str, layout: Layout = "nchw") -> Case:
        return Case("accumulate_counts", shape, dtype, layout)

    showcase = (1, 19, 768, 768)
    city = (1, 1024, 2048)
    patches = (2, 19, 64, 64)
    tiny = (1, 19, 16, 16)
    quarter = (1, 19, 192, 192)
    many = (2, 150, 128, 128)
    wide = (10, 1, 150, 256, 256)
    evaluated = (4, 19, 512, 512)
    chosen: list[Case] = [
        loss(showcase, "fp32", "nchw", both),
        loss(showcase, "bf16", "nchw", both),
        loss(tiny, "fp32", "nchw", both),
        upsampled(quarter, "fp32"),
        statistics((10, *showcase), "fp32"),
        means(city, "street scene"),
        counts(evaluated, "fp32"),
    ]
    if suite in ("default", "full"):
        chosen += [loss(showcase, dtype, "nchw", both) for dtype in half[1:]]
        chosen += [loss(showcase, dtype, "channels_last", both) for dtype in ("fp32", *half)]
        chosen += [loss(showcase, dtype, "nchw", "forward") for dtype in ("fp32", *half)]
        chosen += [loss(showcase, "fp32", "channels_last", "forward")]
        chosen += [loss((1, c, 768, 768), "fp32", "nchw", both) for c in (2, 150)]
        chosen += [loss(tiny, "fp32", "nchw", "forward")]
        chosen += [loss(patches, "fp32", "nchw", mode) for mode in modes]
        chosen += [upsampled(quarter, dtype) for dtype in half]
        chosen += [upsampled(quarter, "fp32", "channels_last")]
        chosen += [upsampled(quarter, "fp32", mode="forward")]
        chosen += [upsampled(shape, "fp32") for shape in ((1, 2, 192, 192), many, tiny)]
        chosen += [statistics((10, *showcase), dtype) for dtype in half]
        chosen += [statistics((10, *showcase), "fp32", "channels_last")]
        chosen += [statistics((10, *patches), "fp32")]
        chosen += [means(city, "noise"), means((8, 360, 480), "street scene")]
        chosen += [counts(evaluated, dtype) for dtype in half]
        chosen += [counts(evaluated, "fp32", "channels_last")]
    if suite == "full":
        chosen += [
            loss((1, c, 768, 768), dtype, layout, mode)
            for c, dtype, layout, mode in itertools.product(
                (2, 19, 150), ("fp32", *half), layouts, modes
            )
        ]
        chosen += [
            loss(shape, dtype, "nchw", mode)
            for shape, dtype, mode in itertools.product((tiny, patches), half, modes)
        ]
        chosen += [
            upsampled(shape, dtype, layout, mode)
            for shape, dtype, layout, mode in itertools.product(
                ((1, 2, 192, 192), quarter, many), ("fp32", *half), layouts, modes
            )
        ]
        chosen += [
            statistics(shape, dtype, layout)
            for shape, dtype, layout in itertools.product(
                ((10, 1, 2, 768, 768), (10, *showcase), wide), ("fp32", *half), layouts
            )
        ]
        chosen += [
            counts(shape, dtype, layout)
            for shape, dtype, layout in itertools.product(
                ((4, 2, 512, 512), evaluated, (1, 150, 512, 512)), ("fp32", *half), layouts
            )
        ]
    return [case for case in dict.fromkeys(chosen) if op in (None, case.op)]


_Result = TypeVar("_Result")


class Workload(ABC):
    """A case with its inputs on a device: calls to time, and the check that they are right."""

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        check_native(device)
        self.case = case
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        # Call overhead is measured warm: there the caches are part of the answer.
        wanted = (
            1
            if case.measures_overhead
            else math.ceil(_CACHES * last_level_cache_bytes(device) / case.bytes_moved)
        )
        self.num_sets = min(wanted, _MAX_SETS)
        # Why a compiled peer cannot run here, by name; known after `check`.
        self.unavailable: dict[str, str] = {}

    def _random_logits(self) -> Tensor:
        *leading, c, h, w = self.case.shape
        channels_last = self.case.layout == "channels_last"
        shape = (*leading, h, w, c) if channels_last else (*leading, c, h, w)
        logits = torch.randn(shape, device=self.device, generator=self._generator).mul_(3)
        logits = logits.to(_DTYPES[self.case.dtype])
        return logits.movedim(-1, -3) if channels_last else logits

    @abstractmethod
    def calls(self) -> dict[str, Call]:
        """The case's implementations by name, each using the input sets in turn."""

    @abstractmethod
    def check(self) -> None:
        """Compares every implementation with float64.

        Raises:
            AssertionError: one is further from it than its type explains; names it.
        """

    def attempt(self, name: str, run: Callable[[], _Result]) -> _Result | None:
        """What `run` returns, or None where a peer's compiler or package does not work here."""
        try:
            return run()
        except Exception as error:
            if name not in OPTIONAL:
                raise
            self.unavailable[name] = f"{type(error).__name__}: {error}"
            return None

    def assert_close(self, name: str, what: str, error: float, tolerance: float) -> None:
        # Written so that a NaN fails.
        if not error <= tolerance:
            raise AssertionError(
                f"{self.case.id}: {what} of {name!r} differs from float64 by {error:.2e}, more "
                f"than {tolerance:.0e}"
            )


class _LossInputs(NamedTuple):
    logits: Tensor  # (N, C, H, W), a leaf
    target: Tensor  # (N, H, W) int64
    pixel_weight: Tensor  # (N, H, W) fp32


_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _cross_entropy_by(
    function: Callable[..., Tensor],
    logits: Tensor,
    target: Tensor,
    pixel_weight: Tensor,
    upsample: sf.Upsample | None = None,
) -> Tensor:
    """The weighted loss by ours or by the reference, which take the same arguments."""
    return function(
        logits,
        target,
        pixel_weight=pixel_weight,
        ignore_index=IGNORE_INDEX,
        reduction="mean_all",
        upsample=upsample,
    )


_fused_cross_entropy = partial(_cross_entropy_by, sf.cross_entropy)
_reference_cross_entropy = partial(_cross_entropy_by, reference.cross_entropy)


def _torch_cross_entropy(
    logits: Tensor,
    target: Tensor,
    pixel_weight: Tensor,
    upsample: sf.Upsample | None = None,
) -> Tensor:
    """The weighted loss as a user writes it."""
    if upsample is not None:
        logits = F.interpolate(logits, target.shape[1:], mode=upsample)
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")
    return (loss * pixel_weight).sum() / target.numel()


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # fullgraph: a peer that silently fell back to eager would flatter us.
    return torch.compile(function, dynamic=False, fullgraph=True)


class CrossEntropyWorkload(Workload):
    """Weighted cross-entropy as in a training step: the gradient is fresh every time."""

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        n, c, h, w = case.shape
        self._backward = case.mode == "forward+backward"
        self._sets: list[_LossInputs] = []
        for _ in range(self.num_sets):
            pixels = (n, h * case.enlargement, w * case.enlargement)
            target = torch.randint(0, c, pixels, device=device, generator=self._generator)
            ignored = torch.rand(pixels, device=device, generator=self._generator) < IGNORED_SHARE
            deviation = torch.rand(pixels, device=device, generator=self._generator) * MAX_DEVIATION
            self._sets.append(
                _LossInputs(
                    self._random_logits().requires_grad_(self._backward),
                    target.masked_fill_(ignored, IGNORE_INDEX),
                    (1 + deviation) ** ALPHA,
                )
            )
        scale = LOSS_SCALE if case.dtype == "fp16" else 1.0
        self._upstream = None if scale == 1.0 else torch.tensor(scale, device=device)
        self._scale = scale
        self._upsampled = case.op == "upsampled_cross_entropy"
        interpolation: dict[str, Any] = {"upsample": "bilinear"} if self._upsampled else {}
        fused, by_reference, by_torch = (
            partial(loss, **interpolation)
            for loss in (_fused_cross_entropy, _reference_cross_entropy, _torch_cross_entropy)
        )
        self._losses: dict[str, _Loss] = {
            OURS: fused,
            COMPILED: _compiled(by_reference),
            EAGER: by_reference,
            TORCH_COMPILED: _compiled(by_torch),
            TORCH: by_torch,
        }

    def _autocast(self) -> AbstractContextManager[object]:
        if self.case.dtype == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.case.dtype])

    def _step(self, loss: _Loss, inputs: _LossInputs) -> Tensor:
        with self._autocast():
            value = loss(*inputs)
        if self._backward:
            value.backward(self._upstream)
        return value

    def _kernel(self, inputs: _LossInputs) -> tuple[Tensor, ...]:
        """The operator under the autograd function, which makes the gradient in its forward."""
        name = "upsampled_cross_entropy" if self._upsampled else "cross_entropy"
        operator = getattr(torch.ops.segunc_ops, f"{name}_forward")
        align_corners = (False,) if self._upsampled else ()
        result: tuple[Tensor, ...] = operator(
            inputs.logits.detach(),
            inputs.target,
            None,
            inputs.pixel_weight,
            IGNORE_INDEX,
            _MEAN_ALL,
            0.0,
            *align_corners,
            self._backward,
            False,
        )
        return result

    def calls(self) -> dict[str, Call]:
        def step_call(loss: _Loss) -> Call:
            sets = itertools.cycle(self._sets)

            def run() -> None:
                inputs = next(sets)
                self._step(loss, inputs)
                # Freed as zero_grad() does, at the expense of the one that made it.
                inputs.logits.grad = None

            return Call(run)

        def kernel_call() -> Call:
            sets = itertools.cycle(self._sets)

            def run() -> None:
                self._kernel(next(sets))

            if self.device.type != "cpu":
                return Call(run)  # torch's caching allocator keeps buffers warm there
            size = max(_WARM_RESULTS * self.case.logits_bytes, _MIN_WARM)
            return Call(run, lambda: warm_heap(size))

        return {
            name: kernel_call() if name == KERNEL else step_call(self._losses[name])
            for name in self.case.implementations
            if name not in self.unavailable
        }

    def check(self) -> None:
        inputs = self._sets[0]
        exact = inputs.logits.detach().double().requires_grad_(self._backward)
        value = self._losses[TORCH](exact, inputs.target, inputs.pixel_weight.double())
        if self._backward:
            value.backward()
        results: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, loss in self._losses.items():
            stepped = self.attempt(name, partial(self._step, loss, inputs))
            gradient = self._take_gradient(inputs)
            if stepped is not None:
                results[name] = (stepped.detach(), gradient)
        if KERNEL in self.case.implementations:
            got, _, made, _ = self._kernel(inputs)
            results[KERNEL] = (got, made if self._backward else None)
        for name, (got, gradient) in results.items():
            error = abs(got.item() / value.item() - 1)
            self.assert_close(name, "loss", error, _LOSS_TOLERANCE)
            if exact.grad is None:
                continue
            error = math.nan  # where there is no gradient at all
            if gradient is not None:
                scale = 1.0 if name == KERNEL else self._scale
                difference = (gradient.double() / scale).sub_(exact.grad).norm()
                error = (difference / exact.grad.norm()).item()
            self.assert_close(name, "gradient", error, _GRADIENT_TOLERANCE[self.case.dtype])

    @staticmethod
    def _take_gradient(inputs: _LossInputs) -> Tensor | None:
        gradient, inputs.logits.grad = inputs.logits.grad, None
        return gradient


_Maps = tuple[Tensor, ...]


def _streamed_statistics(samples: Tensor) -> _Maps:
    accumulator = PredictiveAccumulator()
    for sample in samples:
        accumulator.update(sample)
    *maps, _ = accumulator.compute()
    return tuple(maps)


def _fused_statistics(samples: Tensor) -> _Maps:
    *maps, _ = sf.predictive_statistics(samples)
    return tuple(maps)


def _plain_statistics(samples: Tensor) -> _Maps:
    """As one would write it down, with the deviation of every class; the reference is leaner."""
    p = samples.float().softmax(2)
    mean = p.mean(0)
    confidence, prediction = mean.max(1)
    std = p.std(0).gather(1, prediction.unsqueeze(1)).squeeze(1)
    entropy = -torch.special.xlogy(mean, mean).sum(1)
    expected = -torch.special.xlogy(p, p).sum(2).mean(0)
    return prediction, confidence, std, entropy, expected, entropy - expected


class StatisticsWorkload(Workload):
    """All maps of `predictive_statistics` from S samples, without gradients."""

    NAMES = (
        "prediction",
        "confidence",
        "std",
        "entropy",
        "expected entropy",
        "mutual information",
    )

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        self._sets = [self._random_logits() for _ in range(self.num_sets)]
        self._statistics: dict[str, Callable[[Tensor], _Maps]] = {
            OURS: _fused_statistics,
            STREAMED: _streamed_statistics,
            COMPILED: _compiled(reference.predictive_statistics),
            EAGER: reference.predictive_statistics,
            PLAIN: _plain_statistics,
        }

    @torch.no_grad()
    def _run(self, statistics: Callable[[Tensor], _Maps], samples: Tensor) -> _Maps:
        return statistics(samples)

    def calls(self) -> dict[str, Call]:
        def call(statistics: Callable[[Tensor], _Maps]) -> Call:
            sets = itertools.cycle(self._sets)

            def run() -> None:
                self._run(statistics, next(sets))

            return Call(run)

        return {
            name: call(self._statistics[name])
            for name in self.case.implementations
            if name not in self.unavailable
        }

    def check(self) -> None:
        samples = self._sets[0]
        results: dict[str, _Maps] = {}
        for name, statistics in self._statistics.items():
            maps = self.attempt(name, partial(self._run, statistics, samples))
            if maps is not None:
                results[name] = maps
        rows = samples.shape[-2]
        # A few rows at a time: ten samples in float64 would take gigabytes.
        step = max(1, (1 << 25) * rows // samples.numel())
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            self._check_rows(samples[..., part, :], results, part)

    def _check_rows(self, samples: Tensor, results: dict[str, _Maps], part: slice) -> None:
        p = samples.double().softmax(2)
        mean = p.mean(0)
        best, classes = mean.topk(min(2, mean.shape[1]), dim=1)
        clear = best[:, 0] - best[:, -1] > _MAP_TOLERANCE
        prediction = classes[:, 0]
        entropy = torch.special.entr(mean).sum(1)
        expected = torch.special.entr(p).sum(2).mean(0)
        std = p.std(0).gather(1, prediction[:, None])[:, 0]
        exact = (prediction, best[:, 0], std, entropy, expected, entropy - expected)
        for name, maps in results.items():
            for what, got, want in zip(self.NAMES, maps, exact, strict=True):
                error = (got[..., part, :] - want).abs()
                worst = error[clear].max().item() if clear.any() else 0.0
                self.assert_close(name, what, worst, _MAP_TOLERANCE)
