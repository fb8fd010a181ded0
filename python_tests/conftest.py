"""What all tests share: no GPU means no CUDA tests, and every test leaves torch as it found it.

The tests of `native` need no package: it is imported by the fixtures that are about it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import python_tests.importable_trainers  # noqa: F401

# Failures of the asserts in what tests share show the values.
pytest.register_assert_rewrite(
    *(f"python_tests.{name}" for name in ("comparison", "gpu", "memory")),
    *(
        f"python_tests.{family}.cases"
        for family in (
            *("cross_entropy", "dice", "label_uncertainty", "expected_cross_entropy"),
            *("overwriting", "statistics", "blocks", "components", "counts"),
        )
    ),
    *(f"python_tests.{part}.cases" for part in ("losses", "sampling", "metrics", "experiments")),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _torch_state() -> Iterator[None]:
    """Seeds torch; puts threads and deterministic mode back."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def one_thread() -> None:
    """For thousands of tiny calls, which threads only slow down."""
    torch.set_num_threads(1)


@pytest.fixture(params=["auto", "reference"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test once with the native kernels, where they are there, and once with the reference."""
    import segunc_ops

    with segunc_ops.backend(request.param):
        yield


@pytest.fixture
def native_kernels() -> Iterator[None]:
    """No test passes on the reference, and none leaves an error for the next."""
    import segunc_ops

    with segunc_ops.backend("native"):
        yield
        segunc_ops.check()
