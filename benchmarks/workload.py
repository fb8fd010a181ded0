"""The base of all workloads: a case's inputs, calls to time, and the check that they are right.

Inputs are random, and as many sets of them as exceed the last-level cache several times are used
in turn. Half-precision losses run under autocast, as in a trainer; fp16 with a loss scale.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from .cases import DTYPES, OPTIONAL, Case
from .environment import check_native, last_level_cache_bytes
from .timing import Call

IGNORE_INDEX = 255
IGNORED_SHARE = 0.1
LOSS_SCALE = 2.0**16
_CACHES = 3
_MAX_SETS = 64

_Result = TypeVar("_Result")
_Inputs = TypeVar("_Inputs")


def compiled(function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """`function` by torch.compile, for one shape, or an error where a part would run in eager."""
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)


def in_turn(sets: Sequence[_Inputs], run: Callable[[_Inputs], object]) -> Callable[[], None]:
    """Calls `run` with the next one of the input sets every time."""
    turns = itertools.cycle(sets)

    def next_one() -> None:
        run(next(turns))

    return next_one


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
        self.implementations = case.implementations(device)
        # Why a peer cannot run here, by name; known after `check`. One that is in it before is
        # not tried.
        self.unavailable: dict[str, str] = {}

    def _random_logits(self) -> Tensor:
        *leading, c, h, w = self.case.shape
        channels_last = self.case.layout == "channels_last"
        shape = (*leading, h, w, c) if channels_last else (*leading, c, h, w)
        logits = torch.randn(shape, device=self.device, generator=self._generator).mul_(3)
        logits = logits.to(DTYPES[self.case.dtype])
        return logits.movedim(-1, -3) if channels_last else logits

    def _random_target(self, pixels: tuple[int, ...]) -> Tensor:
        """Classes (int64), a share of them ignored."""
        target = torch.randint(
            0, self.case.num_classes, pixels, device=self.device, generator=self._generator
        )
        ignored = torch.rand(pixels, device=self.device, generator=self._generator) < IGNORED_SHARE
        return target.masked_fill_(ignored, IGNORE_INDEX)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.case.dtype == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.case.dtype])

    @property
    def available(self) -> list[str]:
        """The implementations that work here, in the order of reports."""
        return [name for name in self.implementations if name not in self.unavailable]

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
        if name in self.unavailable:
            return None
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
