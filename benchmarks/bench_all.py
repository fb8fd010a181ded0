"""Measures every case of a suite under pytest-benchmark.

All implementations of a case are timed together, interleaved, when the first of them is asked
for. Each test then hands its own samples to pytest-benchmark through a clock that advances by
exactly the measured times, so that its table, comparison and JSON hold them like any others.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .case import Case
from .families import OPS, cases
from .measure import Measurement, measure, tell_left_out
from .timing import ReplayClock

_CLOCK = ReplayClock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = torch.device(metafunc.config.getoption("--device"))
    order = list(OPS)
    chosen = cases(metafunc.config.getoption("--suite"), device)
    metafunc.parametrize(
        ("case", "implementation"),
        [
            pytest.param(
                case, name, id=f"{case.id}-{name}", marks=pytest.mark.benchmark(timer=_CLOCK)
            )
            for case in sorted(chosen, key=lambda case: order.index(case.op))
            for name in case.implementations(device)
        ],
    )


@pytest.fixture(scope="session")
def results_of(pytestconfig: pytest.Config) -> Callable[[Case], dict[str, Measurement]]:
    """Measures a case; the latest one's results are kept for its other implementations."""
    device = torch.device(pytestconfig.getoption("--device"))
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    latest: dict[Case, dict[str, Measurement] | Exception] = {}

    def tell(name: str, why: str) -> None:
        # For whoever runs the benchmarks: pytest would keep it from them.
        with capture.global_and_fixture_disabled():
            tell_left_out(name, why)

    def measured(case: Case) -> dict[str, Measurement]:
        if case not in latest:
            latest.clear()
            try:
                latest[case] = measure(
                    case, device, budget=pytestconfig.getoption("--budget"), tell=tell
                )
            except Exception as error:
                # Kept, so that a failing case is not measured again for each implementation.
                latest[case] = error
        result = latest[case]
        if isinstance(result, Exception):
            raise result
        return result

    return measured


def test_case(
    case: Case,
    implementation: str,
    benchmark: BenchmarkFixture,
    results_of: Callable[[Case], dict[str, Measurement]],
) -> None:
    """Measures a case and gives one implementation's samples to pytest-benchmark."""
    measured = results_of(case)
    if implementation not in measured:
        pytest.skip(f"{implementation} does not work here")
    measurement = measured[implementation]
    samples = iter(measurement.samples.seconds)
    benchmark.group = case.id
    benchmark.extra_info.update(measurement.row)
    benchmark.pedantic(
        _CLOCK.advance,
        setup=lambda: ((next(samples),), {}),
        rounds=len(measurement.samples.seconds),
    )
