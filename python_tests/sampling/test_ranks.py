"""Accumulators and ensembles over several ranks, against the same in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import segunc_ops.functional as sf
from python_tests.ranks import run_ranks
from python_tests.sampling.cases import accumulate, assert_statistics_close
from segunc_ops import PredictiveAccumulator, ensemble_statistics

# Samples of each rank: unequal, with an empty rank first, between or last.
COUNTS = {2: ((3, 1), (0, 2), (2, 0)), 3: ((2, 0, 3), (1, 1, 1), (0, 4, 0))}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SHAPES = ((2, 5, 7, 9), (0, 3, 4, 4))
CASES = [
    (size, counts, dtype, shape)
    for size, every in COUNTS.items()
    for counts in every
    for dtype in DTYPES
    for shape in SHAPES
]


def samples_of(counts: tuple[int, ...], dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
    """All samples, those of the lowest rank first."""
    generator = torch.Generator().manual_seed(sum(counts))
    return [(3 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(sum(counts))]


def member(number: int) -> nn.Module:
    torch.manual_seed(number)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5))
    return nn.Sequential(model, nn.Conv2d(6, 4, 1))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(9))


class Failing(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        raise ArithmeticError("no logits today")


def error_of(call: Callable[[], Any]) -> tuple[type[Exception], str]:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    return raised.type, str(raised.value)


def work(rank: int, size: int, folder: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for case in CASES:
        if case[0] == size:
            samples = samples_of(*case[1:])
            before = sum(case[1][:rank])
            mine = accumulate(samples[before : before + case[1][rank]])
            assert mine.all_reduce() is mine
            found[case] = (mine.count, tuple(mine._state), mine.compute(return_mean=True))
    world = dist.group.WORLD
    members = [member(number) for number in range(rank, 5, size)] if rank else []
    found["ensemble"] = ensemble_statistics(members, images(), group=world)
    found["empty"] = PredictiveAccumulator().all_reduce().count
    own = accumulate([torch.zeros(1, 3, 4 + rank)])
    other = accumulate([torch.zeros(1, 3, 4, dtype=torch.float64 if rank else torch.float32)])
    found["errors"] = {
        "shape": error_of(own.all_reduce),
        "dtype": error_of(other.all_reduce),
        "no members": error_of(lambda: ensemble_statistics([], images(), group=world)),
        "failing": error_of(
            lambda: ensemble_statistics([Failing() if rank else member(0)], images(), group=world)
        ),
    }
    found["kept"] = (own.count, other.count)
    group = dist.new_group([0, 1])
    if rank < 2:
        found["subgroup"] = accumulate([torch.full((1, 2, 3), 1.0 + rank)]).all_reduce(group).count
    else:
        found["subgroup"] = error_of(lambda: PredictiveAccumulator().all_reduce(group))
    if rank == 0:  # the others leave
        lonely = accumulate([torch.zeros(1, 3, 4)])
        found["lonely"] = (error_of(lonely.all_reduce), lonely.count)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict[Any, Any]]]:
    return {
        size: run_ranks(work, size, tmp_path_factory.mktemp(f"ranks-{size}")) for size in (2, 3)
    }


@pytest.mark.parametrize(("size", "counts", "dtype", "shape"), CASES, ids=str)
def test_all_reduce_gives_the_statistics_of_one_process(found, size, counts, dtype, shape):
    expected = sf.predictive_statistics(samples_of(counts, dtype, shape), return_mean=True)
    first = found[size][0][size, counts, dtype, shape]
    assert_statistics_close(first[2], expected)
    for rank in found[size]:
        count, state, _ = rank[size, counts, dtype, shape]
        assert count == sum(counts)
        # The same bits on every rank: -0.0 and NaN told apart.
        for mine, theirs in zip(state, first[1], strict=True):
            assert mine.numpy().tobytes() == theirs.numpy().tobytes()


@pytest.mark.parametrize("size", [2, 3])
def test_ensemble_over_ranks(found, size):
    # Rank 0 has no member, so their order is that of the other ranks.
    numbers = [number for rank in range(1, size) for number in range(rank, 5, size)]
    expected = ensemble_statistics([member(number) for number in numbers], images())
    for rank in found[size]:
        assert_statistics_close(rank["ensemble"], expected)
        for mine, theirs in zip(rank["ensemble"][:6], found[size][0]["ensemble"][:6], strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        (
            "shape",
            ValueError,
            "all_reduce: expected shape (1, 3, 4) like the samples of rank 0, got (1, 3, 5) on "
            "rank 1",
        ),
        (
            "dtype",
            TypeError,
            "all_reduce: expected dtype torch.float32 like the samples of rank 0, got "
            "torch.float64 on rank 1",
        ),
        ("no members", ValueError, "models: expected at least one member, got none"),
    ],
)
def test_every_rank_raises_the_same_error(found, size, what, kind, message):
    assert [rank["errors"][what] for rank in found[size]] == [(kind, message)] * size


@pytest.mark.parametrize("size", [2, 3])
def test_a_failing_member_is_told_to_the_other_ranks(found, size):
    first, *others = [rank["errors"]["failing"] for rank in found[size]]
    assert first == (
        RuntimeError,
        "ensemble_statistics: rank 1 failed with ArithmeticError: no logits today",
    )
    assert others == [(ArithmeticError, "no logits today")] * (size - 1)


@pytest.mark.parametrize("size", [2, 3])
def test_errors_and_missing_ranks_lose_no_samples(found, size):
    assert all(rank["kept"] == (1, 1) for rank in found[size])
    assert all(rank["empty"] == 0 for rank in found[size])
    (kind, message), count = found[size][0]["lonely"]
    assert kind is RuntimeError
    assert f"expected all {size} ranks to take part, but on rank 0" in message
    assert count == 1


def test_groups(found):
    assert [rank["subgroup"] for rank in found[3][:2]] == [2, 2]
    assert found[3][2]["subgroup"] == (
        ValueError,
        "group: expected one that rank 2 is in, got another",
    )


def test_no_process_group_is_an_error():
    accumulator = accumulate([torch.zeros(1, 3, 4)])
    with pytest.raises(RuntimeError, match=r"all_reduce: .* call torch.distributed.init_process_g"):
        accumulator.all_reduce()
    assert accumulator.count == 1
