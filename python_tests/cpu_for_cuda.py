"""A pytest plugin: the CUDA tests with the CPU in place of the GPU, so that slips show early.

    python -m pytest -p python_tests.cpu_for_cuda -m cuda python_tests/**/test_cuda.py

What asks for a tensor on "cuda" gets one on the CPU, with memory of its own; streams are nothing,
graphs are not captured, memory is not counted. Tests of what only a GPU does are skipped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LATE = "an error comes with the next call"
_MEMORY = "its memory is counted"
_CLOCK = "it has a clock"
ONLY_A_GPU = {
    "test_bad_targets_of_interpolated_logits": _LATE,
    "test_target_out_of_range_is_nan_and_raised_by_the_next_call": _LATE,
    "test_check_raises_what_is_pending": _LATE,
    "test_a_bad_target_is_in_no_count_and_raised_by_the_next_call": _LATE,
    "test_more_draws_than_a_warp_has_room_for": "there are warps",
    "test_devices_must_agree": "there are two devices",
    "test_device_clock_times_the_device": _CLOCK,
    "test_device_clock_leaves_out_launches": _CLOCK,
    "test_a_region_target_that_is_neither_0_nor_1_is_nan_and_raised_by_the_next_call": _LATE,
    "test_peak_memory": _MEMORY,
    "test_peak_memory_of_regions": _MEMORY,
    "test_upsampling_takes_an_eighth_of_the_memory": _MEMORY,
    "test_interpolated_statistics_take_no_more_memory_than_their_maps": _MEMORY,
    "test_no_map_is_in_memory": _MEMORY,
}
"""Tests, with what a CPU does not do in the place of a GPU."""


class CpuForCuda(TorchFunctionMode):
    """Replaces the device "cuda" by "cpu" in every call of torch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.cuda:
            return args[0].clone()
        moves = False

        def replaced(value: Any) -> Any:
            nonlocal moves
            if isinstance(value, str | torch.device) and str(value).partition(":")[0] == "cuda":
                moves = True
                return torch.device("cpu")
            return value

        result = func(
            *map(replaced, args), **{name: replaced(each) for name, each in (kwargs or {}).items()}
        )
        # A move to another device never gives the tensor itself.
        return result.clone() if moves and args and result is args[0] else result


class _Stream:
    def wait_stream(self, other: object) -> None:
        """Nothing is queued."""

    def synchronize(self) -> None:
        """Nothing is queued."""


class _Generator(torch.Generator):
    def __new__(cls, device: object = None) -> _Generator:
        return super().__new__(cls, "cpu")


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _call_twice(calls: Callable[[], Sequence[Tensor]], refill: Callable[[], object]) -> None:
    """In place of a graph's capture and replay."""
    calls()
    with torch.no_grad():
        refill()
    calls()


def _only_call(step: Callable[[], object]) -> int:
    step()
    return 0


_OF_TORCH: dict[str, Any] = {"Generator": _Generator, "autocast": _Autocast}
_PROPERTIES = SimpleNamespace(total_memory=0, L2_cache_size=1 << 20)
_OF_CUDA: dict[str, Any] = {
    "Stream": _Stream,
    "current_stream": _Stream,
    "stream": contextlib.nullcontext,
    "synchronize": lambda device=None: None,
    "_sleep": lambda cycles: None,
    "get_device_properties": lambda device=None: _PROPERTIES,
}
_OF_TESTS: dict[str, Any] = {
    "assert_graph_replays": _call_twice,
    "synchronisation_raises": contextlib.nullcontext,
    "peak_memory": _only_call,
}


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests import what is replaced."""
    # Not above: conftest.py registers it for pytest first.
    from python_tests import gpu

    places = ((torch, _OF_TORCH), (torch.cuda, _OF_CUDA), (gpu, _OF_TESTS))
    for place, replacements in places:
        for name, replacement in replacements.items():
            setattr(place, name, replacement)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Takes back that there is no GPU, but for the tests that need one."""
    for item in items:
        if item.get_closest_marker("cuda") is None:
            continue
        item.own_markers = [mark for mark in item.own_markers if mark.name != "skip"]
        name = getattr(item, "originalname", item.name)
        if name in ONLY_A_GPU:
            item.add_marker(pytest.mark.skip(reason=f"only on a GPU: {ONLY_A_GPU[name]}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Runs a test with the CPU in place of the GPU."""
    with CpuForCuda():
        return (yield)
