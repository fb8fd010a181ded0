"""Whole training steps by one loss or another: `python -m benchmarks.training_steps`.

What a loss costs beside a network, which the kernels' own cases do not say. Needs transformers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segunc_ops import (
    CrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
    insert_dropout,
    record_forward,
    sample_statistics,
)

from .environment import check_native, describe, device_name, slug, warn_if_busy
from .memory import peak_bytes, settle_heap
from .timing import Call, interleave

RESULTS = Path(__file__).parent / "results"
ENDING = "-training-steps.json"
_IGNORED = 255
_SAMPLES = 10
_MIN_ROUNDS = 3
# Absolute, of standard deviations of probabilities.
_TOLERANCE = 1e-4

OWN, WITHOUT = "the model's own loss", "no loss"
CE, NAIVE = "CE", "U-CE, samples one by one"
SHARED, FORWARD, MAPS = "U-CE", "U-CE, share_forward", "U-CE, share_forward, maps interpolated"
BITS = "U-CE, share_forward, 16-bit masks"


class _Basic(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, channels: int, out: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, dilation, dilation, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, dilation, dilation, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(2))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[0](self.first(x)).relu()
        return (self.skip(x) + self.norms[1](self.second(inner))).relu()


class _Pyramid(nn.Module):
    """DeepLabV3's atrous spatial pyramid pooling, with its dropout."""

    def __init__(self, channels: int, out: int = 256) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [nn.Conv2d(channels, out, 1)]
            + [nn.Conv2d(channels, out, 3, padding=rate, dilation=rate) for rate in (12, 24, 36)]
        )
        self.pooled = nn.Conv2d(channels, out, 1)
        self.project = nn.Sequential(
            nn.Conv2d(5 * out, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1).relu())


def _deeplab(classes: int) -> nn.Module:
    """DeepLabV3's head on eight residual blocks, at an eighth of the resolution."""
    stages = ((64, 64, 1, 1), (64, 128, 2, 1), (128, 256, 1, 2), (256, 512, 1, 4))
    blocks = [
        block
        for channels, out, stride, dilation in stages
        for block in (
            _Basic(channels, out, stride, dilation),
            _Basic(out, out, 1, dilation),
        )
    ]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        _Pyramid(512),
        nn.Conv2d(256, classes, 1),
    )


def _segformer(classes: int) -> nn.Module:
    """SegFormer-b0 with random weights; of its dropout, that of the head alone."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_labels=classes, drop_path_rate=0.0, semantic_loss_ignore_index=_IGNORED
    )
    return SegformerForSemanticSegmentation(config)


def _dropping_segformer(classes: int) -> nn.Module:
    """The same, dropping what the next stage and the head get of each of its four stages."""
    model = _segformer(classes)
    stages = [f"segformer.stages.{number}" for number in (1, 2, 3)]
    projections = [f"decode_head.linear_projections.{number}" for number in range(4)]
    insert_dropout(model, 0.1, before=stages + projections)
    return model


class Case(NamedTuple):
    """A network, its images ``(N, C, H, W)`` with C classes, and the losses compared."""

    network: str
    shape: tuple[int, int, int, int]
    losses: tuple[str, ...]

    @property
    def title(self) -> str:
        n, classes, height, width = self.shape
        return f"{self.network}, {n} x {height} x {width}, C = {classes}"


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "SegFormer-b0": _segformer,
    "DeepLabV3 on eight residual blocks": _deeplab,
    "SegFormer-b0, dropout after every stage": _dropping_segformer,
}
_SEGFORMER, _DEEPLAB, _DROPPING = NETWORKS
CASES = (
    Case(_SEGFORMER, (2, 150, 512, 512), (CE, OWN, WITHOUT, FORWARD, MAPS)),
    Case(_SEGFORMER, (2, 19, 512, 512), (CE, NAIVE, SHARED, FORWARD, BITS)),
    Case(_DEEPLAB, (2, 19, 256, 256), (CE, NAIVE, SHARED, FORWARD, BITS)),
    Case(_DROPPING, (2, 19, 512, 512), (CE, NAIVE, SHARED, FORWARD, BITS)),
)


@dataclass(frozen=True)
class Figures:
    """What a step took."""

    case: str
    loss: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    rounds: int
    peak_bytes: int


def _naive_deviation(model: nn.Module, images: Tensor, size: torch.Size) -> Tensor:
    """The standard deviation of the predicted class's probability, as one would write it down."""
    probabilities = []
    with torch.no_grad():
        for _ in range(_SAMPLES):
            logits = _logits(model(images))
            large = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            probabilities.append(large.softmax(1))
    samples = torch.stack(probabilities)
    prediction = samples.mean(0).argmax(1, keepdim=True)
    return samples.std(0).gather(1, prediction).squeeze(1)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


class Steps:
    """A network in training, and its steps."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        images, classes, *size = case.shape
        self._case, self._device = case, device
        self.model = NETWORKS[case.network](classes).to(device).train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self._images = torch.randn(images, 3, *size, device=device)
        labels = torch.randint(classes, (images, *size), device=device)
        self._labels = labels.masked_fill_(torch.rand(labels.shape, device=device) < 0.1, _IGNORED)
        options: Any = {"ignore_index": _IGNORED, "upsample": "bilinear"}
        self._plain = CrossEntropyLoss(**options)
        self._weighted = UncertaintyAwareCrossEntropyLoss(**options)

    def calls(self) -> dict[str, Call]:
        """The steps of the case's losses, by loss."""
        losses: dict[str, Callable[[], Tensor]] = {
            CE: self._ce,
            OWN: self._own,
            WITHOUT: lambda: _logits(self.model(self._images)).sum(),
            NAIVE: self._naive,
            SHARED: self._shared,
            FORWARD: self._forward,
            MAPS: lambda: self._forward(interpolate="maps"),
            BITS: lambda: self._forward(mask_bits=16),
        }
        return {name: Call(self._step(losses[name])) for name in self._case.losses}

    def check(self) -> None:
        """Compares losses that should be equal, of the same dropout.

        Raises:
            AssertionError: they are not.
        """
        for pair in ((CE, OWN), (NAIVE, SHARED)):
            if set(pair) <= set(self._case.losses):
                values = []
                for loss in (self._ce, self._own) if OWN in pair else (self._naive, self._shared):
                    torch.manual_seed(1)
                    values.append(loss().item())
                if not abs(values[0] - values[1]) <= _TOLERANCE * abs(values[1]):
                    raise AssertionError(f"{self._case.title}: losses {pair} are {values}")

    def _step(self, loss: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            loss().backward()
            self._optimizer.step()
            self._optimizer.zero_grad()

        return step

    def _ce(self) -> Tensor:
        loss: Tensor = self._plain(_logits(self.model(self._images)), self._labels)
        return loss

    def _own(self) -> Tensor:
        loss: Tensor = self.model(self._images, labels=self._labels).loss
        return loss

    def _naive(self) -> Tensor:
        size = self._labels.shape[1:]
        sigma = _naive_deviation(self.model, self._images, size)
        logits = _logits(self.model(self._images))
        large = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        valid = self._labels != _IGNORED
        each = F.cross_entropy(large, self._labels, ignore_index=_IGNORED, reduction="none")
        weight = (1 + sigma) ** self._weighted.alpha
        return (each * weight * valid).sum() / self._labels.numel()

    def _shared(self) -> Tensor:
        size = self._labels.shape[1:]
        statistics = sample_statistics(self.model, self._images, _SAMPLES, size=size)
        loss: Tensor = self._weighted(_logits(self.model(self._images)), self._labels, statistics)
        return loss

    def _forward(self, **options: Any) -> Tensor:
        with record_forward(self.model) as forward:
            logits = _logits(self.model(self._images))
        statistics = sample_statistics(
            self.model,
            self._images,
            _SAMPLES,
            size=self._labels.shape[1:],
            share_forward=forward,
            **options,
        )
        loss: Tensor = self._weighted(logits, self._labels, statistics)
        return loss


def measure(case: Case, device: torch.device, *, budget: float) -> list[Figures]:
    """The steps of a case, timed in turn.

    Raises:
        AssertionError: losses that should be equal are not.
    """
    settle_heap()
    steps = Steps(case, device)
    steps.check()
    calls = steps.calls()
    timed = interleave(calls, device, clock="wall", budget=budget, min_rounds=_MIN_ROUNDS)
    found = []
    for name, samples in timed.items():
        first, third = samples.quartiles
        found.append(
            Figures(
                case=case.title,
                loss=name,
                median_ms=_milliseconds(samples.median),
                q1_ms=_milliseconds(first),
                q3_ms=_milliseconds(third),
                rounds=len(samples.seconds),
                peak_bytes=peak_bytes(calls[name].run, device),
            )
        )
    return found


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Times training steps, and writes a results file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_steps", description=__doc__
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of rounds per case")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    check_native(device)
    warn_if_busy()
    rows = []
    for case in CASES:
        rows += measure(case, device, budget=options.budget)
        for row in rows[-len(case.losses) :]:
            print(f"{row.case}: {row.loss} {row.median_ms:.0f} ms", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{slug(device_name(device))}{ENDING}"
    environment = describe(device, ("transformers",))
    content = {"environment": environment, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
