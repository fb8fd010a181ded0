"""Networks with dropout, and statistics in float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from python_tests.statistics.cases import expected
from segunc_ops import PredictiveAccumulator, PredictiveStatistics

MAPS = ("prediction", "confidence", "std", "entropy", "expected_entropy", "mutual_information")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((2, 5, 7, 9), (3, 4), (1, 2, 3, 4, 5), (1, 19, 1, 1), (2, 1, 3), (0, 3, 4, 4))


def accumulate(samples: Iterable[Tensor]) -> PredictiveAccumulator:
    accumulator = PredictiveAccumulator()
    for sample in samples:
        accumulator.update(sample)
    return accumulator


def expected_maps(samples: Tensor) -> dict[str, Tensor]:
    """The definitions, in float64."""
    prediction = samples.double().softmax(2).mean(0).argmax(1)
    return {"prediction": prediction, **expected(samples, prediction)}


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    # Measured in units of the accumulating type; entropies add C terms of up to 1/e.
    tolerance = 1e-12 if actual.dtype == torch.float64 else 4e-6
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
        msg=lambda m: f"{name}: {m}",
    )


def assert_statistics_close(actual: PredictiveStatistics, expected: PredictiveStatistics) -> None:
    assert torch.equal(actual.prediction, expected.prediction)
    names = MAPS[1:] if expected.mean is None else (*MAPS[1:], "mean")
    for name in names:
        assert getattr(actual, name).dtype == getattr(expected, name).dtype
        assert_close(getattr(actual, name), getattr(expected, name), name)


class Network(nn.Module):
    """Two convolutions, a norm and a dropout, with what a trainer's model may add."""

    def __init__(
        self, norm: nn.Module | None = None, dropout: nn.Module | None = None, classes: int = 4
    ):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.dropout = nn.Dropout2d(0.5) if dropout is None else dropout
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, input: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.encoder(input))))) * scale


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def snapshot(model: nn.Module) -> tuple[list[bool], list[tuple[int, int, Tensor]]]:
    """Modes; and of every buffer and parameter its identity, version and value."""
    tensors = [*model.parameters(), *model.buffers()]
    return modes(model), [(id(t), t._version, t.detach().clone()) for t in tensors]


def assert_untouched(model: nn.Module, before: tuple) -> None:
    after = snapshot(model)
    assert after[0] == before[0]
    assert [entry[:2] for entry in after[1]] == [entry[:2] for entry in before[1]]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(after[1], before[1], strict=True))
