"""Cross-entropy of the logits that a 1x1 convolution makes, beside fused linear cross-entropies.

These never hold all logits at once. They know neither pixel weights nor images: the loss is the
plain mean, and features are given to them as a matrix, which is a view of channels_last ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf

from ..cases import LIGER, OURS, TORCH, TORCH_COMPILED, TORCH_LINEAR, Case
from ..costs import FEATURES
from ..timing import Call
from ..workload import IGNORE_INDEX, Workload, compiled, in_turn
from .cross_entropy import GRADIENT_TOLERANCE, LOSS_TOLERANCE

_LOGITS_DEVIATION = 3.0


class _Inputs(NamedTuple):
    features: Tensor  # (N, FEATURES, H, W), a leaf
    weight: Tensor  # (C, FEATURES), a leaf
    target: Tensor  # (N, H, W) int64


_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _convolved(loss: Callable[..., Tensor], x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return loss(F.conv2d(x, weight[:, :, None, None]), target, ignore_index=IGNORE_INDEX)


_fused_loss = partial(_convolved, sf.cross_entropy)
_torch_loss = partial(_convolved, F.cross_entropy)


def _matrix(features: Tensor) -> Tensor:
    return features.movedim(1, -1).reshape(-1, features.shape[1])


def _torch_linear_loss(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.linear_cross_entropy(
        _matrix(features),
        weight,
        target.reshape(-1),
        ignore_index=IGNORE_INDEX,
        options=torch.nn.LinearCrossEntropyOptions(),
    )


def _liger_loss(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(
        _matrix(features), weight, target.reshape(-1), ignore_index=IGNORE_INDEX
    )
    return loss


class LinearCrossEntropyWorkload(Workload):
    """Mean cross-entropy of projected features, with the gradients of features and weight."""

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        n, c, h, w = case.shape
        self._sets: list[_Inputs] = []
        for _ in range(self.num_sets):
            features = torch.randn((n, h, w, FEATURES), device=device, generator=self._generator)
            if case.layout == "nchw":
                features = features.movedim(-1, 1).contiguous()
            else:
                features = features.movedim(-1, 1)
            weight = torch.randn((c, FEATURES), device=device, generator=self._generator)
            self._sets.append(
                _Inputs(
                    features.requires_grad_(case.is_training),
                    weight.mul_(_LOGITS_DEVIATION * FEATURES**-0.5).requires_grad_(
                        case.is_training
                    ),
                    self._random_target((n, h, w)),
                )
            )
        self._losses: dict[str, _Loss] = {
            OURS: _fused_loss,
            TORCH_LINEAR: _torch_linear_loss,
            LIGER: _liger_loss,
            TORCH_COMPILED: compiled(_torch_loss),
            TORCH: _torch_loss,
        }

    def _step(self, loss: _Loss, inputs: _Inputs) -> Tensor:
        # Convolutions would take TF32 on a GPU, matrix products would not.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            with self._autocast():
                value = loss(*inputs)
            if self.case.is_training:
                value.backward()
        return value

    @staticmethod
    def _take_gradients(inputs: _Inputs) -> tuple[Tensor | None, Tensor | None]:
        gradients = inputs.features.grad, inputs.weight.grad
        inputs.features.grad = inputs.weight.grad = None
        return gradients

    def calls(self) -> dict[str, Call]:
        def step(loss: _Loss, inputs: _Inputs) -> None:
            self._step(loss, inputs)
            self._take_gradients(inputs)

        return {
            name: Call(in_turn(self._sets, partial(step, self._losses[name])))
            for name in self.available
        }

    def check(self) -> None:
        inputs = self._sets[0]
        features, weight = (
            tensor.detach().double().requires_grad_(self.case.is_training)
            for tensor in (inputs.features, inputs.weight)
        )
        exact = _Inputs(features, weight, inputs.target)
        value = _torch_loss(*exact)
        if self.case.is_training:
            value.backward()
        wanted = self._take_gradients(exact)
        for name in self.implementations:
            got = self.attempt(name, partial(self._step, self._losses[name], inputs))
            gradients = self._take_gradients(inputs)
            if got is None:
                continue
            self.assert_close(name, "loss", abs(got.item() / value.item() - 1), LOSS_TOLERANCE)
            for what, gradient, want in zip(
                ("gradient", "weight's gradient"), gradients, wanted, strict=True
            ):
                if want is None:
                    continue
                error = float("nan")  # where there is no gradient at all
                if gradient is not None:
                    error = ((gradient.double() - want).norm() / want.norm()).item()
                self.assert_close(name, what, error, GRADIENT_TOLERANCE[self.case.dtype])
