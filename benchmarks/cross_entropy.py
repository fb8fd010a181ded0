"""Weighted cross-entropy, of logits at the target's size or interpolated to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import reference

from .cases import (
    COMPILED,
    EAGER,
    KERNEL,
    KORNIA,
    MAX_AUTOTUNE,
    MONAI,
    OURS,
    TORCH,
    TORCH_COMPILED,
    Case,
)
from .memory import warm_heap
from .timing import Call
from .workload import IGNORE_INDEX, LOSS_SCALE, Workload, compiled, in_turn

# Per-pixel weights of U-CE: (1 + standard deviation) ** alpha, a deviation being 0.5 at most.
MAX_DEVIATION, ALPHA = 0.5, 10.0
_MEAN_ALL = 3  # the operators take reductions as integers
# Memory kept warm for the kernel's results: those of a few calls, the heap being fragmented.
_WARM_RESULTS, _MIN_WARM = 3, 64 << 20
# Relative to the norm of a float64 result; a gradient is rounded to the logits' type.
GRADIENT_TOLERANCE = {"fp32": 1e-5, "bf16": 4e-3, "fp16": 1e-3}
LOSS_TOLERANCE = 1e-4


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


class CrossEntropyWorkload(Workload):
    """Weighted cross-entropy as in a training step: the gradient is fresh every time."""

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        n, _, h, w = case.shape
        self._backward = case.is_training
        self._sets: list[_LossInputs] = []
        for _ in range(self.num_sets):
            pixels = (n, h * case.enlargement, w * case.enlargement)
            target = self._random_target(pixels)
            deviation = torch.rand(pixels, device=device, generator=self._generator) * MAX_DEVIATION
            self._sets.append(
                _LossInputs(
                    self._random_logits().requires_grad_(self._backward),
                    target,
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

    def _step(self, loss: _Loss, inputs: _LossInputs) -> Tensor:
        with self._autocast():
            value = loss(*inputs)
        if self._backward:
            value.backward(self._upstream)
        return value

    def _kernel(self, inputs: _LossInputs) -> tuple[Tensor, ...]:
        """The operator under the autograd function, which makes the gradient in its forward."""
        align_corners = False
        result: tuple[Tensor, ...] = torch.ops.segunc_ops.cross_entropy_forward(
            inputs.logits.detach(),
            inputs.target,
            None,
            inputs.pixel_weight,
            IGNORE_INDEX,
            _MEAN_ALL,
            0.0,
            self._upsampled,
            align_corners,
            self._backward,
            False,
        )
        return result

    def calls(self) -> dict[str, Call]:
        def step(loss: _Loss, inputs: _LossInputs) -> None:
            self._step(loss, inputs)
            # Freed as zero_grad() does, at the expense of the one that made it.
            inputs.logits.grad = None

        def step_call(loss: _Loss) -> Call:
            return Call(in_turn(self._sets, partial(step, loss)))

        def kernel_call() -> Call:
            run = in_turn(self._sets, self._kernel)
            if self.device.type != "cpu":
                return Call(run)  # torch's caching allocator keeps buffers warm there
            size = max(_WARM_RESULTS * self.case.logits_bytes, _MIN_WARM)
            return Call(run, lambda: warm_heap(size))

        return {
            name: kernel_call() if name == KERNEL else step_call(self._losses[name])
            for name in self.available
        }

    def check(self) -> None:
        inputs = self._sets[0]
        exact = inputs.logits.detach().double().requires_grad_(self._backward)
        value = self._losses[TORCH](exact, inputs.target, inputs.pixel_weight.double())
        if self._backward:
            value.backward()
        results: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name in self.implementations:
            if name == KERNEL:
                continue
            stepped = self.attempt(name, partial(self._step, self._losses[name], inputs))
            gradient = self._take_gradient(inputs)
            if stepped is not None:
                results[name] = (stepped.detach(), gradient)
        if KERNEL in self.implementations:
            got, _, made, _ = self._kernel(inputs)
            results[KERNEL] = (got, made if self._backward else None)
        for name, (got, gradient) in results.items():
            error = abs(got.item() / value.item() - 1)
            self.assert_close(name, "loss", error, LOSS_TOLERANCE)
            if exact.grad is None:
                continue
            error = math.nan  # where there is no gradient at all
            if gradient is not None:
                scale = 1.0 if name == KERNEL else self._scale
                difference = (gradient.double() / scale).sub_(exact.grad).norm()
                error = (difference / exact.grad.norm()).item()
            self.assert_close(name, "gradient", error, GRADIENT_TOLERANCE[self.case.dtype])

    @staticmethod
    def _take_gradient(inputs: _LossInputs) -> Tensor | None:
        gradient, inputs.logits.grad = inputs.logits.grad, None
        return gradient
