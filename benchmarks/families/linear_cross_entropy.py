"""Cross-entropy of the logits that a 1x1 convolution makes, beside fused linear cross-entropies.

These never hold all logits at once. They know neither pixel weights nor images: the loss is the
plain mean, and features are given to them as a matrix, which is a view of channels_last ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf

from .. import costs
from ..case import Case, Traffic
from ..implementations import BLUE, NAVY, OURS, TORCH, TORCH_COMPILED, Implementation
from ..workload import IGNORE_INDEX, Family, Workload, compiled

TORCH_LINEAR = Implementation("F.linear_cross_entropy", BLUE, is_optional=True)
LIGER = Implementation("Liger", NAVY, device="cuda", is_optional=True)

FEATURES = 256  # input channels of the 1x1 convolution
_LOGITS_DEVIATION = 3.0


class LinearCrossEntropy(Case):
    """The mean of the loss, and gradients of features and weight; the shape is the logits'."""

    op = "linear_cross_entropy"
    # Of channels_last features the matrix that torch's function takes is a view.
    showcase = ((1, 19, 192, 192), "channels_last")
    is_loss = True

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return [cls((2, 150, 128, 128), "fp32", "channels_last", "forward+backward")]

    def everyone(self) -> tuple[Implementation, ...]:
        return (OURS, TORCH_LINEAR, LIGER, TORCH_COMPILED, TORCH)

    @property
    def bytes_moved(self) -> int:
        passes = 2 if self.is_training else 1  # gradients are written
        features = self.pixels * FEATURES * self.itemsize
        matrix = FEATURES * self.num_classes * self.itemsize
        return passes * (features + matrix) + self.pixels * costs.TARGET

    def traffic(self, implementation: str) -> Traffic | None:
        return None  # the convolution is torch's


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


class LinearCrossEntropyWorkload(Workload[_Inputs, _Loss]):
    """Mean cross-entropy of projected features, with the gradients of features and weight."""

    def _inputs(self, index: int) -> _Inputs:
        n, c, h, w = self.case.shape
        features = torch.randn((n, h, w, FEATURES), device=self.device, generator=self._generator)
        features = features.movedim(-1, 1)
        if self.case.layout == "nchw":
            features = features.contiguous()
        weight = torch.randn((c, FEATURES), device=self.device, generator=self._generator)
        weight.mul_(_LOGITS_DEVIATION * FEATURES**-0.5)
        return _Inputs(
            features.requires_grad_(self.case.is_training),
            weight.requires_grad_(self.case.is_training),
            self._random_target(),
        )

    def _functions_by_name(self) -> Mapping[Implementation, _Loss]:
        return {
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

    def _run(self, function: _Loss, inputs: _Inputs) -> None:
        self._step(function, inputs)
        self._take_gradients(inputs)

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
            got = self.attempt(name, partial(self._step, self._functions[name], inputs))
            gradients = self._take_gradients(inputs)
            if got is None:
                continue
            self.assert_loss_close(name, got, value)
            for what, gradient, want in zip(
                ("gradient", "weight's gradient"), gradients, wanted, strict=True
            ):
                self.assert_gradient_close(name, gradient, want, what=what)


FAMILY = Family(
    {LinearCrossEntropy: LinearCrossEntropyWorkload},
    peers=(TORCH_LINEAR, LIGER),
    packages=("liger-kernel",),
)
