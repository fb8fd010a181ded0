"""Weighted cross-entropy, of logits at the target's size or interpolated to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import reference

from .. import costs
from ..case import BOTH, ENLARGEMENT, MODES, Case, Layout, Mode, Shape, Study
from ..implementations import (
    COMPILED,
    EAGER,
    GREEN,
    KERNEL,
    LIGHT_GREEN,
    MAX_AUTOTUNE,
    OURS,
    TORCH,
    TORCH_COMPILED,
    Implementation,
)
from ..memory import warm_heap
from ..timing import Call
from ..workload import IGNORE_INDEX, Family, LossFunction, LossWorkload, compiled, in_turn

KORNIA = Implementation("kornia's focal loss", GREEN, is_optional=True)
MONAI = Implementation("MONAI's focal loss", LIGHT_GREEN, is_optional=True)

# Per-pixel weights of U-CE: (1 + standard deviation) ** alpha, a deviation being 0.5 at most.
MAX_DEVIATION, ALPHA = 0.5, 10.0
_MEAN_ALL = 3  # the operators take reductions as integers
# Memory kept warm for the kernel's results: those of a few calls, the heap being fragmented.
_WARM_RESULTS, _MIN_WARM = 3, 64 << 20
_TINY, _PATCHES, _MANY = (1, 19, 16, 16), (2, 19, 64, 64), (2, 150, 128, 128)


class _Loss(Case):
    """The weighted loss, and in training the gradient of the logits."""

    is_loss = True
    matrix_peers = (TORCH_COMPILED, TORCH)
    focal: ClassVar[tuple[Implementation, ...]] = ()  # peers of the showcase

    @classmethod
    def of(
        cls,
        shape: Shape,
        dtype: str = "fp32",
        layout: Layout = "nchw",
        mode: Mode = BOTH,
        study: Study = "",
    ) -> Case:
        """A case as most are: in fp32, of a training step."""
        return cls(shape, dtype, layout, mode, study)

    def everyone(self) -> tuple[Implementation, ...]:
        if self.study == "types":
            return (OURS, TORCH_COMPILED, TORCH)
        if self.study:
            return (OURS, EAGER, TORCH)
        # fp16 recomputes its gradient in the backward operator: no single kernel makes both.
        kernel = () if self.dtype == "fp16" and self.is_training else (KERNEL,)
        autotuned = (MAX_AUTOTUNE,) if self.is_showcase else ()
        focal = self.focal if self.is_showcase else ()
        return (OURS, *kernel, COMPILED, *autotuned, EAGER, TORCH_COMPILED, TORCH, *focal)

    @property
    def bytes_moved(self) -> int:
        passes = 2 if self.is_training else 1  # the gradient is written
        return passes * self.logits_bytes + self.pixels * (costs.TARGET + costs.WEIGHT)

    @property
    def _reads(self) -> int:
        """How often our CPU kernels read everything: fp16 losses recompute their gradient."""
        return 2 if self.is_training and self.dtype == "fp16" else 1

    @property
    def kernel_moves(self) -> int:
        inputs = self.logits_bytes + self.pixels * (costs.TARGET + costs.WEIGHT)
        return self._reads * inputs + self.cleared

    @property
    def cleared(self) -> int:
        return self.logits_bytes if self.is_training else 0  # the gradient

    @property
    def operations(self) -> int:
        values = self.pixels * self.num_classes
        # A pixel: the logarithm of its sum, loss, weight and total; with a gradient its factors.
        forward = values * costs.SOFTMAX_SUM + self.pixels * (costs.LOG + 5)
        backward = values + self.pixels * 6 if self.is_training else 0
        return costs.blending(self) + forward + backward


class CrossEntropy(_Loss):
    """Logits at the target's size."""

    op = "cross_entropy"
    showcase = ((1, 19, 768, 768), "nchw")
    focal = (KORNIA, MONAI)

    @classmethod
    def matrix_shape(cls, classes: int) -> Shape | None:
        return (1, classes, 768, 768)

    @classmethod
    def quick(cls) -> Iterable[Case]:
        return [cls.shown(), cls.shown("bf16"), cls.of(_TINY)]

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        large, _ = cls.showcase
        return [
            *(cls.shown(dtype) for dtype in half[1:]),
            *(cls.shown(dtype, "channels_last") for dtype in ("fp32", *half)),
            *(cls.of(large, dtype, mode="forward") for dtype in ("fp32", *half)),
            cls.of(large, layout="channels_last", mode="forward"),
            *(cls.of((1, c, 768, 768)) for c in (2, 150)),
            cls.of(_TINY, mode="forward"),
            *(cls.of(_PATCHES, mode=mode) for mode in MODES),
        ]

    @classmethod
    def studies(cls, measured: Collection[Case]) -> Iterable[Case]:
        return [
            *(
                cls.of((1, 19, size, size), study="pixels")
                for size in (64, 128, 256, 512, 1024, 2048)
            ),
            *(cls.of((1, 2**k, 256, 256), study="classes") for k in range(1, 9)),
            *cls.matrix(measured),
        ]

    @classmethod
    def full(cls, half: Sequence[str]) -> Iterable[Case]:
        return [
            *cls.product(((1, c, 768, 768) for c in (2, 19, 150)), half),
            *(
                cls.of(shape, dtype, mode=mode)
                for shape, dtype, mode in itertools.product((_TINY, _PATCHES), half, MODES)
            ),
        ]


class UpsampledCrossEntropy(_Loss):
    """Logits that are interpolated to the target's size."""

    op = "upsampled_cross_entropy"
    showcase = ((1, 19, 192, 192), "nchw")
    enlargement = ENLARGEMENT

    @classmethod
    def matrix_shape(cls, classes: int) -> Shape | None:
        return (1, classes, 192, 192) if classes < 150 else _MANY

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        quarter, _ = cls.showcase
        return [
            *super().default(half),
            cls.of(quarter, mode="forward"),
            *(cls.of(shape) for shape in ((1, 2, 192, 192), _MANY, _TINY)),
        ]

    @classmethod
    def studies(cls, measured: Collection[Case]) -> Iterable[Case]:
        return cls.matrix(measured)

    @classmethod
    def full(cls, half: Sequence[str]) -> Iterable[Case]:
        return cls.product(((1, 2, 192, 192), cls.showcase[0], _MANY), half)

    @property
    def kernel_moves(self) -> int:
        """The logits are read a band of rows at a time and one row more.

        Gradients of a row that two bands share, and of all rows unless they are fp32 and
        contiguous, wait in fp32 scratch memory.
        """
        rows = min(max(self.shape[-4] * self.shape[-2] // 32, 1), 8)
        scratch = 0
        if self.is_training:
            gathered = 2 * prod(self.shape) * costs.ACCUMULATED  # out and in again
            buffered = self.dtype != "fp32" or self.layout != "nchw"
            scratch = gathered // rows + (gathered if buffered else 0)
        return super().kernel_moves + self._reads * (self.logits_bytes // rows) + scratch

    @property
    def operations(self) -> int:
        # Both rows get their gradients (4), which shrink (4) once for every source row.
        values = self.pixels * self.num_classes if self.is_training else 0
        return super().operations + values * 4 + values * 4 // self.enlargement


class _Inputs(NamedTuple):
    logits: Tensor  # (N, C, H, W), a leaf
    target: Tensor  # (N, H, W) int64
    pixel_weight: Tensor  # (N, H, W) fp32


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


def _kornia_cross_entropy(logits: Tensor, target: Tensor, pixel_weight: Tensor) -> Tensor:
    from kornia.losses import focal_loss

    # In half precision it would not come to the same.
    logits = logits.float()
    loss: Tensor = focal_loss(
        logits, target, alpha=None, gamma=0.0, reduction="none", ignore_index=IGNORE_INDEX
    )
    return (loss.sum(1) * pixel_weight).sum() / target.numel()


def _monai_cross_entropy(logits: Tensor, target: Tensor, pixel_weight: Tensor) -> Tensor:
    from monai.losses import FocalLoss

    focal = FocalLoss(
        to_onehot_y=True, gamma=0.0, reduction="none", use_softmax=True, ignore_index=IGNORE_INDEX
    )
    loss: Tensor = focal(logits, target.unsqueeze(1)).sum(1)
    return (loss * pixel_weight).sum() / target.numel()


class CrossEntropyWorkload(LossWorkload):
    """Weighted cross-entropy."""

    exact = TORCH

    def _inputs(self, index: int) -> _Inputs:
        target = self._random_target()
        pixel_weight = (1 + self._random_map() * MAX_DEVIATION) ** ALPHA
        logits = self._random_logits().requires_grad_(self.case.is_training)
        return _Inputs(logits, target, pixel_weight)

    def _functions_by_name(self) -> Mapping[Implementation, LossFunction]:
        interpolation: dict[str, Any] = {}
        if self.case.enlargement > 1:
            interpolation["upsample"] = "bilinear"
        fused, by_reference, by_torch = (
            partial(loss, **interpolation)
            for loss in (_fused_cross_entropy, _reference_cross_entropy, _torch_cross_entropy)
        )
        return {
            OURS: fused,
            COMPILED: compiled(by_reference),
            # Its CUDA graphs would first copy every set of inputs to where the first one was.
            MAX_AUTOTUNE: compiled(by_reference, "max-autotune-no-cudagraphs"),
            EAGER: by_reference,
            TORCH_COMPILED: compiled(by_torch),
            TORCH: by_torch,
            # At gamma = 0 a focal loss is cross-entropy.
            KORNIA: _kornia_cross_entropy,
            MONAI: _monai_cross_entropy,
        }

    def _kernel(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The operator under the autograd function, which makes the gradient in its forward."""
        logits, target, pixel_weight = inputs
        align_corners = False
        result: tuple[Tensor, ...] = torch.ops.segunc_ops.cross_entropy_forward(
            logits.detach(),
            target,
            None,
            pixel_weight,
            IGNORE_INDEX,
            _MEAN_ALL,
            0.0,
            self.case.enlargement > 1,
            align_corners,
            self._backward,
            False,
        )
        return result

    def _call(self, name: Implementation) -> Call:
        if name != KERNEL:
            return super()._call(name)
        run = in_turn(self._sets, self._kernel)
        if self.device.type != "cpu":
            return Call(run)  # torch's caching allocator keeps buffers warm there
        size = max(_WARM_RESULTS * self.case.logits_bytes, _MIN_WARM)
        return Call(run, lambda: warm_heap(size))

    def _result(
        self, name: Implementation, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor | None]] | None:
        if name != KERNEL:
            return super()._result(name, inputs)
        loss, _, gradient, _ = self._kernel(inputs)
        return loss, [gradient if self._backward else None]


FAMILY = Family(
    {
        CrossEntropy: CrossEntropyWorkload,
        UpsampledCrossEntropy: CrossEntropyWorkload,
    },
    peers=(KORNIA, MONAI),
    packages=("kornia", "monai"),
)
