"""Does the host execution notice bugs? Small kernels with one planted bug each, and repaired."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import FLAVOR, Array

SCHEDULES = range(12)

# What some builds cannot see, since the result is right under every schedule that they try: values
# exchanged by a shuffle that ordered no memory, increments and blocks that never meet.
ONLY_RACE = {"shuffle_as_barrier", "plain_increment", "unordered_blocks"}

PROBES = (
    "missing_barrier",
    "reused_buffer",
    "assumed_lockstep",
    "shuffle_as_barrier",
    "divergent_barrier",
    "early_return",
    "wrong_mask",
    "returned_lanes",
    "plain_increment",
    "plain_store",
    "missing_initialization",
    "late_initialization",
    "shared_overrun",
    "misaligned_vector",
    "unordered_blocks",
    "lost_union",
    "waiting_block",
    "sum_elsewhere",
)
# The sanitizers end the process at these.
ENDS_PROCESS = {"assumed_lockstep", "shared_overrun"} if FLAVOR == "sanitize" else set()


def run(host: ModuleType, probe: str, seed: int, *, correct: bool) -> Array:
    data = np.zeros(host.probe_data_size, np.int32)
    if probe == "lost_union":
        data[:] = np.arange(data.size)
    host.set_seed(seed)
    host.run_probe(probe, correct, data)
    if probe == "lost_union":  # any tree of the same sets is right
        for _ in range(256):
            data = data[data]
    return data


def outcomes(
    host: ModuleType, probe: str, *, correct: bool, expected: Array | None = None
) -> Counter[str]:
    """Of several schedules. expected: what the correct version gives, without which it runs."""
    if expected is None:
        expected = run(host, probe, 0, correct=True)
    counts: Counter[str] = Counter()
    for seed in SCHEDULES:
        try:
            data = run(host, probe, seed, correct=correct)
        except host.HostExecutionError:
            counts["refused"] += 1
        else:
            counts["right" if np.array_equal(data, expected) else "wrong"] += 1
    return counts


def test_every_probe_is_listed(host: ModuleType) -> None:
    assert tuple(host.probes()) == PROBES


@pytest.mark.parametrize("probe", PROBES)
def test_correct_kernels_pass(host: ModuleType, probe: str) -> None:
    assert outcomes(host, probe, correct=True) == {"right": len(SCHEDULES)}


@pytest.mark.parametrize("probe", [p for p in PROBES if p not in ENDS_PROCESS])
def test_planted_bugs_are_noticed(host: ModuleType, probe: str) -> None:
    counts = outcomes(host, probe, correct=False)
    if FLAVOR == "race" or probe not in ONLY_RACE:
        assert counts["refused"] + counts["wrong"] > 0, counts


def message(host: ModuleType, probe: str) -> str:
    """The first refusal of a kernel with its bug."""
    for seed in SCHEDULES:
        try:
            run(host, probe, seed, correct=False)
        except host.HostExecutionError as error:
            return str(error)
    raise AssertionError(f"{probe} is never refused")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("divergent_barrier", "a divergent barrier"),
        ("early_return", "has returned while others wait|after some threads have returned"),
        ("wrong_mask", "the mask names a lane"),
        ("returned_lanes", "the mask names a lane that has returned|deadlock: block"),
        ("misaligned_vector", "a misaligned vector access"),
        ("waiting_block", "no progress"),
    ],
)
def test_messages_name_the_fault(host: ModuleType, probe: str, words: str) -> None:
    assert re.search(words, message(host, probe))


@pytest.mark.skipif(FLAVOR != "race", reason="the race build's messages")
@pytest.mark.parametrize("probe", ["missing_barrier", "plain_increment", "unordered_blocks"])
def test_races_name_both_places(host: ModuleType, probe: str) -> None:
    text = message(host, probe)
    assert text.startswith("race: ")
    assert text.count("probes.cu:") == 2, text


@pytest.mark.skipif(FLAVOR == "sanitize", reason="AddressSanitizer ends the process instead")
def test_overruns_of_shared_arrays_are_named(host: ModuleType) -> None:
    assert "past the end of a shared array" in message(host, "shared_overrun")


def test_a_seed_repeats_its_schedule(host: ModuleType) -> None:
    switches = []
    for _ in range(2):
        before = host.counters()["switches"]
        run(host, "reused_buffer", 7, correct=True)
        switches.append(host.counters()["switches"] - before)
    assert switches[0] == switches[1] > 0


@pytest.mark.skipif(FLAVOR == "race", reason="refused there under every schedule")
def test_seeds_differ_in_their_schedules(host: ModuleType) -> None:
    last = {int(run(host, "plain_store", seed, correct=False)[0]) for seed in SCHEDULES}
    assert len(last) > 1


def test_a_failure_leaves_the_next_launch_intact(host: ModuleType) -> None:
    with pytest.raises(host.HostExecutionError):
        run(host, "divergent_barrier", 3, correct=False)
    assert np.array_equal(
        run(host, "missing_barrier", 3, correct=True), run(host, "missing_barrier", 0, correct=True)
    )


# ---- Operations broken on request

# The correct version of a probe has its bug again when this operation of it breaks.
BROKEN = (
    ("missing_barrier", "barrier"),
    ("reused_buffer", "barrier"),
    ("assumed_lockstep", "warp_sync"),
    ("shuffle_as_barrier", "warp_sync"),
    ("wrong_mask", "exchange"),
    ("returned_lanes", "exchange"),
    ("plain_increment", "atomic"),
    ("unordered_blocks", "relaxed"),
    ("lost_union", "atomic"),
)
# Two increments seldom meet elsewhere, and a processor's plain accesses of a word are whole.
ONLY_RACE_BROKEN = ONLY_RACE | {"lost_union"}


@pytest.fixture
def intact(host: ModuleType) -> Iterator[None]:
    """Breaks nothing beyond the test."""
    yield
    host.clear_fault()


def operations(host: ModuleType, probe: str) -> list[tuple[str, str, str, int, int]]:
    """Kind, file, function, line and number of runs of those that a probe runs."""
    host.record_operations()
    run(host, probe, 0, correct=True)
    recorded: list[tuple[str, str, str, int, int]] = host.recorded_operations()
    return recorded


@pytest.mark.usefixtures("intact")
@pytest.mark.parametrize(("probe", "kind"), BROKEN)
def test_broken_operations_are_noticed(host: ModuleType, probe: str, kind: str) -> None:
    places = [place for place in operations(host, probe) if place[0] == kind]
    assert places
    expected = run(host, probe, 0, correct=True)
    if probe in ENDS_PROCESS:
        pytest.skip("ends the process")
    for _, file, function, line, _ in places:
        assert function.startswith((f"{probe}_kernel", "operator()"))
        host.inject_fault(kind, file, line)
        counts = outcomes(host, probe, correct=True, expected=expected)
        if FLAVOR == "race" or probe not in ONLY_RACE_BROKEN:
            assert counts["refused"] + counts["wrong"] > 0, (line, counts)
    host.clear_fault()
    assert outcomes(host, probe, correct=True, expected=expected) == {"right": len(SCHEDULES)}


def test_operations_are_recorded_once_each(host: ModuleType) -> None:
    recorded = operations(host, "reused_buffer")
    assert [place[0] for place in recorded] == ["barrier", "barrier"]
    assert len({place[3] for place in recorded}) == 2
    assert {place[4] for place in recorded} == {4 * 4 * 256}  # rounds, blocks, threads
    assert all(place[1].endswith("host_execution/probes.cu") for place in recorded)
    assert operations(host, "misaligned_vector") == []


@pytest.mark.usefixtures("intact")
@pytest.mark.skipif(FLAVOR != "race", reason="elsewhere a sum is seldom late")
def test_a_block_may_sum_again_at_once(host: ModuleType) -> None:
    """What block_sum promises and no kernel makes use of yet: that needs both of its barriers."""
    barriers = [place for place in operations(host, "sum_elsewhere") if place[0] == "barrier"]
    assert [function for _, _, function, *_ in barriers] == ["block_sum", "block_sum"]
    expected = run(host, "sum_elsewhere", 0, correct=True)
    for kind, file, _, line, _ in barriers:
        host.inject_fault(kind, file, line)
        assert outcomes(host, "sum_elsewhere", correct=True, expected=expected)["refused"]


# ---- Launches that a GPU refuses


def test_static_and_dynamic_shared_memory_share_a_limit(host: ModuleType) -> None:
    left = host.max_shared_bytes - host.probe_static_bytes
    host.launch_of_shape(dynamic_shared_bytes=left)
    words = rf"{left + 4} bytes of dynamic, more than"
    with pytest.raises(host.HostExecutionError, match=words):
        host.launch_of_shape(dynamic_shared_bytes=left + 4)
    # A kernel has its arrays in every launch, not only where it reaches them.
    host.launch_of_shape(dynamic_shared_bytes=left, reaches=False)
    with pytest.raises(host.HostExecutionError, match=words):
        host.launch_of_shape(dynamic_shared_bytes=left + 4, reaches=False)


@pytest.mark.parametrize(
    "shape", [{"threads": 0}, {"threads": 1025}, {"blocks": 0}, {"blocks": 2**31}]
)
def test_launches_of_no_gpu_are_refused(host: ModuleType, shape: dict[str, int]) -> None:
    with pytest.raises(RuntimeError, match=r"invalid launch configuration|a grid of"):
        host.launch_of_shape(**shape, reaches=False)
    host.launch_of_shape(threads=1024, reaches=False)
