"""Every loss in training steps: on two ranks, and in thousands of them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from python_tests.ranks import run_ranks
from python_tests.support import IGNORED
from segunc_ops import (
    BalancedSoftmaxCrossEntropyLoss,
    CrossEntropyLoss,
    DeepSupervision,
    DiceBCELoss,
    DiceCrossEntropyLoss,
    ExpectedCrossEntropyLoss,
    FocalCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    LabelUncertaintyLoss,
    LDAMCrossEntropyLoss,
    LogitVariationCrossEntropyLoss,
    Observer,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
    ensemble_statistics,
    losses,
)

CLASSES, SIZE = 6, (12, 10)
COUNTS = [1.0, 2.0, 3.0, 40.0, 5.0, 60.0]
CALLS, STEPS = 2, 2000


class Network(nn.Module):
    """Logits at half the resolution, with dropout before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))


def of_indices(kind: Callable[..., nn.Module], *arguments: object) -> Callable[[], nn.Module]:
    return lambda: kind(*arguments, ignore_index=IGNORED, upsample="bilinear")


CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "CE": of_indices(CrossEntropyLoss),
    "U-CE": of_indices(UncertaintyAwareCrossEntropyLoss),
    "IU": of_indices(InstanceUncertaintyCrossEntropyLoss),
    "focal": of_indices(FocalCrossEntropyLoss),
    "PAT": of_indices(PixelAdaptiveCrossEntropyLoss),
    "balanced softmax": of_indices(BalancedSoftmaxCrossEntropyLoss, COUNTS),
    "LDAM": of_indices(LDAMCrossEntropyLoss, COUNTS),
    "BLV": of_indices(LogitVariationCrossEntropyLoss, COUNTS),
    "Dice + CE": of_indices(DiceCrossEntropyLoss),
    "deep supervision": lambda: DeepSupervision(CRITERIA["CE"](), (1.0, 0.5)),
    "expected CE": of_indices(ExpectedCrossEntropyLoss),
    "Dice + BCE": lambda: DiceBCELoss(upsample="bilinear"),
    "label uncertainty": of_indices(LabelUncertaintyLoss, 1.0),
}


class Steps:
    """A network, one of the losses, and training steps with what that loss needs."""

    def __init__(self, name: str, network: nn.Module, seed: int = 0) -> None:
        self.name, self.network = name, network
        self.criterion = CRITERIA[name]()
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(2, 3, *SIZE, generator=generator)
        self.labels = torch.randint(CLASSES, (2, *SIZE), generator=generator)
        self.labels[:, :2] = IGNORED
        inside = network.module if isinstance(network, DistributedDataParallel) else network
        self.members = [copy.deepcopy(inside).eval() for _ in range(2)]
        if name == "U-CE":
            self.observer = Observer(network, self.criterion, 3, share_forward=True)

    def loss(self) -> Tensor:
        torch.manual_seed(1)  # of the noise and the dropout
        logits = self.network(self.images)
        if self.name == "IU":
            statistics = ensemble_statistics(self.members, self.images, size=SIZE)
            loss = self.criterion(logits, self.labels, statistics)
        elif self.name == "deep supervision":
            loss = self.criterion([logits, F.avg_pool2d(logits, 2)], self.labels)
        elif self.name == "expected CE":
            loss = self.criterion(logits, F.softplus(logits), self.labels)
        elif self.name == "Dice + BCE":
            regions = self.labels.unsqueeze(1) == torch.arange(CLASSES).view(-1, 1, 1)
            loss = self.criterion(logits, regions)
        elif self.name == "label uncertainty":
            binary = torch.where(self.labels == IGNORED, IGNORED, self.labels % 2)
            loss = self.criterion(logits[:, :1], logits[:, 1:2], binary.unsqueeze(1))
        else:
            loss = self.criterion(logits, self.labels)
        assert isinstance(loss, Tensor)
        return loss

    def backward(self) -> None:
        self.network.zero_grad(set_to_none=True)
        self.loss().backward()


def test_every_loss_is_here():
    made = {type(make()).__name__ for make in CRITERIA.values()}
    assert made == {name for name in losses.__all__ if name[0].isupper()}


def network() -> Network:
    torch.manual_seed(0)
    return Network().train()


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


def on_rank(rank: int, size: int, folder: Path) -> dict[str, list[list[Tensor]]]:
    found = {}
    for name in CRITERIA:
        steps = Steps(name, DistributedDataParallel(network()), seed=rank)
        found[name] = []
        for _ in range(CALLS):
            steps.backward()
            found[name].append(gradients(steps.network))
    return found


@pytest.mark.thorough
def test_two_ranks_have_the_mean_of_their_gradients(tmp_path):
    ranks = run_ranks(on_rank, 2, tmp_path)
    for name in CRITERIA:
        alone = [Steps(name, network(), seed=rank) for rank in range(2)]
        for call in range(CALLS):
            for steps in alone:
                steps.backward()
            expected = [
                sum(both) / 2 for both in zip(*(gradients(s.network) for s in alone), strict=True)
            ]
            for rank in ranks:
                for mine, mean in zip(rank[name][call], expected, strict=True):
                    torch.testing.assert_close(mine, mean, rtol=1e-4, atol=1e-6, msg=name)


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("names", [["U-CE"], [*CRITERIA]], ids=["U-CE", "all in turn"])
def test_thousands_of_steps_gather_nothing(names):
    each = [Steps(name, network()) for name in names]
    optimizers = [
        torch.optim.SGD(steps.network.parameters(), lr=1e-3, momentum=0.9) for steps in each
    ]

    def run(number: int) -> tuple[int, int]:
        for index in range(number):
            each[index % len(each)].backward()
            optimizers[index % len(each)].step()
        gc.collect()
        return resident_bytes(), len(gc.get_objects())

    memory, objects = run(STEPS // 4)
    more_memory, more_objects = run(STEPS)
    # The allocator's own pools move by about a megabyte.
    assert more_memory - memory < 3 * 2**20
    assert more_objects - objects < STEPS / 20
