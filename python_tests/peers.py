"""What losses of other packages give for batches by formula: `peers.json`, which
`python -m tools.peer_losses` writes where the packages are installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from python_tests.support import IGNORED

RECORDS = Path(__file__).with_name("peers.json")


class Batch(NamedTuple):
    """Logits ``(N, C, *)`` of a network's heads and the labels of each.

    Labels are class indices ``(N, *)``, or regions ``(N, C, *)`` of 0 and 1.
    """

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    @property
    def input(self) -> Tensor:
        """The logits of the only head."""
        (only,) = self.inputs
        return only

    @property
    def target(self) -> Tensor:
        """The labels of the only head."""
        (only,) = self.targets
        return only


class Numbers(NamedTuple):
    """A loss, its gradient's length, and the gradient along a few directions.

    Two gradients with the same projections on directions that know nothing of either are the same.
    """

    value: float
    norm: float
    projections: list[float]


# ---- batches ----


def _spread(shape: Sequence[int], irrational: float) -> Tensor:
    """Numbers in [0, 1) that follow no pattern of rows or classes, the same with every torch."""
    index = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return (index * index * irrational).frac().reshape(*shape)


def _logits(*shape: int) -> Tensor:
    return (6 * _spread(shape, 0.6180339887498949) - 3).requires_grad_()


def _labels(classes: int, *shape: int) -> Tensor:
    return (classes * _spread(shape, 0.4142135623730951)).long()


def _classes(*shape: int) -> Batch:
    images, classes, *size = shape
    return Batch((_logits(*shape),), (_labels(classes, images, *size),))


def _without_classes(*shape: int) -> Batch:
    """No image shows the last class, and the first none of class 2."""
    x, target = _classes(*shape).input, _classes(*shape).target
    target[target == shape[1] - 1] = 0
    target[0][target[0] == 2] = 1
    return Batch((x,), (target,))


def _with_ignored(*shape: int) -> Batch:
    x, target = _without_classes(*shape).input, _without_classes(*shape).target
    target[_spread(target.shape, 0.7320508075688772) < 0.2] = IGNORED
    return Batch((x,), (target,))


def _heads(*shapes: tuple[int, ...]) -> Batch:
    heads = [_without_classes(*shape) for shape in shapes]
    return Batch(tuple(head.input for head in heads), tuple(head.target for head in heads))


def _regions(*shape: int) -> Batch:
    """The first image shows no region 0."""
    target = (_spread(shape, 0.7320508075688772) < 0.4).double()
    target[0, 0] = 0
    return Batch((_logits(*shape),), (target,))


def _regions_with_ignored(*shape: int) -> Batch:
    """The last channel of the labels is 1 where a pixel is ignored."""
    images, _, *size = shape
    ignored = (_spread((images, 1, *size), 0.4142135623730951) < 0.2).double()
    x, target = _regions(*shape).input, _regions(*shape).target
    return Batch((x,), (torch.cat([target, ignored], 1),))


BATCHES: dict[str, Callable[[], Batch]] = {
    "images": lambda: _classes(2, 5, 4, 6),
    "images without classes": lambda: _without_classes(2, 5, 4, 6),
    "images with ignored pixels": lambda: _with_ignored(2, 5, 4, 6),
    "volumes": lambda: _classes(2, 4, 3, 4, 5),
    "volumes without classes": lambda: _without_classes(2, 4, 3, 4, 5),
    "volumes with ignored voxels": lambda: _with_ignored(2, 4, 3, 4, 5),
    "three heads": lambda: _heads((2, 5, 8, 12), (2, 5, 4, 6), (2, 5, 2, 3)),
    "regions": lambda: _regions(2, 3, 4, 6),
    "regions in volumes": lambda: _regions(2, 3, 3, 4, 5),
    "one region": lambda: _regions(2, 1, 4, 6),
    "regions with ignored pixels": lambda: _regions_with_ignored(2, 3, 4, 6),
}


# ---- numbers of a loss ----


def numbers(loss: Tensor, inputs: Sequence[Tensor]) -> Numbers:
    """Of a scalar loss and its gradient with respect to the logits of all heads."""
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    gradient = torch.cat([part.double().flatten() for part in gradients])
    directions = [_spread(gradient.shape, root) - 0.5 for root in (0.3166, 0.6056, 0.1231)]
    along = [gradient @ (direction / direction.norm()) for direction in directions]
    return Numbers(
        float(loss.detach()), float(gradient.norm()), [float(number) for number in along]
    )


def assert_same_numbers(found: Numbers, wanted: Numbers, tolerance: float) -> None:
    """To a share of the loss and of the gradient's length."""
    for a, b, scale in (
        (found.value, wanted.value, abs(wanted.value)),
        (found.norm, wanted.norm, wanted.norm),
        *((a, b, wanted.norm) for a, b in zip(found.projections, wanted.projections, strict=True)),
    ):
        assert abs(a - b) <= tolerance * scale, (found, wanted)


# ---- what the packages gave ----


class Record(NamedTuple):
    """One call of a package's loss, by its options there."""

    loss: str
    batch: str
    options: dict[str, Any]
    numbers: Numbers

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.loss}({options}) of {self.batch}"


def records(loss: str | None = None) -> list[Record]:
    """All, or those of one loss."""
    every = [
        Record(one["loss"], one["batch"], one["options"], Numbers(**one["numbers"]))
        for one in json.loads(RECORDS.read_text())["records"]
    ]
    return [record for record in every if loss in (None, record.loss)]
