"""The base of all workloads: a case's inputs, calls to time, and the check that they are right.

Inputs are random, and as many sets of them as exceed the last-level cache several times are used
in turn. Half-precision losses run under autocast, as in a trainer; fp16 with a loss scale.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

import segunc_ops

from .case import DTYPES, Case
from .environment import check_native, last_level_cache_bytes
from .implementations import EAGER, Implementation
from .timing import Call

IGNORE_INDEX = 255
IGNORED_SHARE = 0.1
_CACHES = 3
_MAX_SETS = 64
_LOSS_SCALE = 2.0**16  # of fp16
# Relative to the norm of a float64 result; a gradient is rounded to the logits' type, and a mean's
# divisor may be a sum of a million fp32 numbers one by one.
_GRADIENT_TOLERANCE = {"fp32": 5e-5, "bf16": 4e-3, "fp16": 1e-3}
_LOSS_TOLERANCE = 1e-4

_Result = TypeVar("_Result")
_Inputs = TypeVar("_Inputs")
_Function = TypeVar("_Function")
LossFunction = Callable[..., Tensor]


def compiled(function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """`function` by torch.compile, for one shape, or an error where a part would run in eager."""
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)


def by_reference(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """What `function`, one of ours, is specified by: the same of plain torch operations."""

    def run(*inputs: Any) -> _Result:
        with segunc_ops.backend("reference"):
            return function(*inputs)

    return run


def in_turn(sets: Sequence[_Inputs], run: Callable[[_Inputs], object]) -> Callable[[], None]:
    """Calls `run` with the next one of the input sets every time."""
    turns = itertools.cycle(sets)

    def next_one() -> None:
        run(next(turns))

    return next_one


class Workload(ABC, Generic[_Inputs, _Function]):
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
        self.implementations = case.implementations(device)
        # Why a peer cannot run here, by name; known after `check`. One that is in it before is
        # not tried.
        self.unavailable: dict[str, str] = {}
        self._sets = [self._inputs(index) for index in range(self.num_sets)]
        self._functions = self._functions_by_name()

    @abstractmethod
    def _inputs(self, index: int) -> _Inputs:
        """The set of inputs with that number."""

    @abstractmethod
    def _functions_by_name(self) -> Mapping[Implementation, _Function]:
        """What computes the result, by implementation, with `_run`."""

    @abstractmethod
    def _run(self, function: _Function, inputs: _Inputs) -> object:
        """What is timed."""

    @abstractmethod
    def check(self) -> None:
        """Compares every implementation with float64.

        Raises:
            AssertionError: one is further from it than its type explains; names it.
        """

    @property
    def available(self) -> list[Implementation]:
        """The implementations that work here, in the order of reports."""
        return [name for name in self.implementations if name not in self.unavailable]

    def calls(self) -> dict[str, Call]:
        """The case's implementations by name, each using the input sets in turn."""
        return {name: self._call(name) for name in self.available}

    def _call(self, name: Implementation) -> Call:
        return Call(in_turn(self._sets, partial(self._run, self._functions[name])))

    def attempt(self, name: Implementation, run: Callable[[], _Result]) -> _Result | None:
        """What `run` returns, or None where a peer's compiler or package does not work here."""
        if name in self.unavailable:
            return None
        try:
            return run()
        except Exception as error:
            if not name.is_optional:
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

    def assert_loss_close(self, name: str, loss: Tensor, exact: Tensor) -> None:
        error = abs(loss.item() / exact.item() - 1)
        self.assert_close(name, "loss", error, _LOSS_TOLERANCE)

    def assert_gradient_close(
        self,
        name: str,
        gradient: Tensor | None,
        exact: Tensor | None,
        *,
        what: str = "gradient",
        scale: float = 1.0,
    ) -> None:
        """Compares a gradient, which is `scale` times too large, where there should be one."""
        if exact is None:
            return
        error = math.nan  # where there is no gradient at all
        if gradient is not None:
            difference = (gradient.double() / scale).sub_(exact).norm()
            error = (difference / exact.norm()).item()
        self.assert_close(name, what, error, _GRADIENT_TOLERANCE[self.case.dtype])

    def _random_logits(self) -> Tensor:
        *leading, c, h, w = self.case.shape
        channels_last = self.case.layout == "channels_last"
        shape = (*leading, h, w, c) if channels_last else (*leading, c, h, w)
        logits = torch.randn(shape, device=self.device, generator=self._generator).mul_(3)
        logits = logits.to(DTYPES[self.case.dtype])
        return logits.movedim(-1, -3) if channels_last else logits

    def _random_target(self, ignored: float = IGNORED_SHARE) -> Tensor:
        """Classes (int64), a share of them ignored."""
        shape, generator = self.case.target_shape, self._generator
        target = torch.randint(
            0, self.case.num_classes, shape, device=self.device, generator=generator
        )
        return target.masked_fill_(self._random_map() < ignored, IGNORE_INDEX)

    def _random_map(self) -> Tensor:
        """A value from 0 to 1 for every pixel of the target."""
        return torch.rand(self.case.target_shape, device=self.device, generator=self._generator)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.case.dtype == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.case.dtype])


class LossWorkload(Workload[tuple[Tensor, ...], LossFunction]):
    """A loss as in a training step: the gradient of the logits is fresh every time.

    Logits, a leaf, are the first of the inputs.
    """

    exact: ClassVar[Implementation] = EAGER
    """Whose result in float64 the others are compared with."""
    leaves: ClassVar[int] = 1
    """How many of the inputs, the first ones, are leaves with a gradient."""

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        self._backward = case.is_training
        self._scale = _LOSS_SCALE if case.dtype == "fp16" else 1.0
        self._upstream = None if self._scale == 1.0 else torch.tensor(self._scale, device=device)

    def _inputs(self, index: int) -> tuple[Tensor, ...]:
        return self._random_logits().requires_grad_(self.case.is_training), self._random_target()

    def _step(self, loss: LossFunction, inputs: tuple[Tensor, ...]) -> Tensor:
        with self._autocast():
            value = loss(*inputs)
        if self._backward:
            value.backward(self._upstream)
        return value

    def _run(self, function: LossFunction, inputs: tuple[Tensor, ...]) -> None:
        self._step(function, inputs)
        # Freed as zero_grad() does, at the expense of the one that made it.
        self._take_gradients(inputs)

    def _take_gradients(self, inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
        leaves = inputs[: self.leaves]
        gradients = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return gradients

    def _result(
        self, name: Implementation, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor | None]] | None:
        """The loss and its gradients; None where a peer does not work here."""
        loss = self.attempt(name, partial(self._step, self._functions[name], inputs))
        gradients = self._take_gradients(inputs)
        return None if loss is None else (loss.detach(), gradients)

    def check(self) -> None:
        inputs = self._sets[0]
        exact = tuple(
            tensor.detach().double() if tensor.is_floating_point() else tensor for tensor in inputs
        )
        for leaf in exact[: self.leaves]:
            leaf.requires_grad_(self._backward)
        value = self._functions[self.exact](*exact)
        if self._backward:
            value.backward()
        wanted = self._take_gradients(exact)
        for name in self.implementations:
            result = None if name.is_partial else self._result(name, inputs)
            if result is not None:
                loss, gradients = result
                self.assert_loss_close(name, loss, value)
                for gradient, want in zip(gradients, wanted, strict=True):
                    self.assert_gradient_close(name, gradient, want, scale=self._scale)


class Family(NamedTuple):
    """What a family is known by: its operations with their workloads, and its peers."""

    workloads: Mapping[type[Case], type[Workload[Any, Any]]]
    # Implementations that other families do not have.
    peers: tuple[Implementation, ...] = ()
    # Distributions that they come from, whose versions the rows of results carry.
    packages: tuple[str, ...] = ()
