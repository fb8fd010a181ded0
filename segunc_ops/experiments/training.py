"""Training by cross-entropy or by uncertainty-aware cross-entropy, resumable to the bit.

The recipe is that of U-CE (Landgraf et al. 2023): SGD with momentum 0.9 and weight decay 1e-4,
the decoder at ten times the encoder's learning rate, polynomial decay, and per step S Monte-Carlo
dropout samples whose standard deviation weights the loss.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..functional import PredictiveStatistics
from ..losses import CrossEntropyLoss, UncertaintyAwareCrossEntropyLoss
from ..sampling import sample_statistics
from .datasets import Batch, SegmentationDataset, Size, TrainingBatches, normalize
from .evaluation import class_iou, confusion_matrix, deterministic_miou
from .models import EncoderDecoder

LossName = Literal["ce", "uce"]

# What a resumed run may change without becoming another experiment.
_FREE_FIELDS = frozenset({"device", "channels_last", "compile", "workers"})
# Share of the past that the running figures of the progress bar keep from one report to the next.
_MEMORY = 0.8


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another experiment."""


class DivergedError(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class TrainingConfig:
    """All that determines a training run besides the data.

    ``amp`` is None, ``"bf16"`` or ``"fp16"`` (CUDA only, with gradient scaling); ``samples`` and
    ``alpha`` are S and the exponent of U-CE; ``validate_every`` counts steps, as do ``steps`` and
    ``report_every``.
    """

    loss: LossName
    steps: int
    batch_size: int = 8
    crop: Size = (128, 192)
    scale: tuple[float, float] = (0.5, 2.0)
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dropout: float = 0.2
    samples: int = 10
    alpha: float = 10.0
    seed: int = 0
    device: str = "cpu"
    amp: str | None = None
    channels_last: bool = False
    compile: bool = False
    workers: int = 1
    validate_every: int = 50
    report_every: int = 5

    def __post_init__(self) -> None:
        if self.loss not in ("ce", "uce"):
            raise ValueError(f"loss: expected 'ce' or 'uce', got {self.loss!r}")
        if self.amp not in (None, "bf16", "fp16"):
            raise ValueError(f"amp: expected None, 'bf16' or 'fp16', got {self.amp!r}")
        if self.amp == "fp16" and torch.device(self.device).type == "cpu":
            raise ValueError("amp: fp16 needs a CUDA device; use bf16 on the CPU")
        if self.loss == "uce" and self.samples < 2:
            raise ValueError(f"samples: a deviation needs at least 2, got {self.samples}")

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the forward passes."""
        if self.amp is None:
            return nullcontext()
        dtype = torch.bfloat16 if self.amp == "bf16" else torch.float16
        return torch.autocast(torch.device(self.device).type, dtype)


@dataclass
class History:
    """What a training run reports as it goes."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train_miou: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_miou: list[float] = field(default_factory=list)
    seconds: float = 0.0


def polynomial_decay(step: int, total: int, power: float = 0.9) -> float:
    """The factor (1 - t/T)^0.9 on the learning rates at step t of T."""
    return float((1 - step / total) ** power)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint that is either the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that a step is never cut in half.

    A second Ctrl-C interrupts at once. Does nothing outside the main thread, which alone
    receives signals.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def request(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Trainer:
    """Trains an :class:`EncoderDecoder`.

    Two trainers whose configurations differ only in the loss start from the same weights and see
    the same batches.

    Args:
        config: the recipe.
        train: images to learn from.
        validation: images for the mIoU of the learning curve.
        checkpoint: file that is written at every validation and at Ctrl-C; None writes none.
    """

    def __init__(
        self,
        config: TrainingConfig,
        train: SegmentationDataset,
        validation: SegmentationDataset,
        checkpoint: Path | None = None,
    ) -> None:
        self.config = config
        self.validation = validation
        self.checkpoint = checkpoint
        self.device = torch.device(config.device)
        self.num_classes = len(train.class_names)
        self.ignore_index = train.ignore_index
        torch.manual_seed(config.seed)
        self.model = EncoderDecoder(self.num_classes, dropout=config.dropout)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        if config.compile:
            self.model.compile()
        self.criterion = self._build_criterion().to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameter_groups(config.learning_rate),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.batches = TrainingBatches(
            train,
            batch_size=config.batch_size,
            crop=config.crop,
            seed=config.seed,
            scale=config.scale,
            workers=config.workers,
        )
        self.step = 0
        self.history = History()
        self._running_loss = math.nan
        shape = (self.num_classes, self.num_classes)
        self._confusion = torch.zeros(shape, dtype=torch.float64, device=self.device)

    def _build_criterion(self) -> nn.Module:
        if self.config.loss == "ce":
            return CrossEntropyLoss(ignore_index=self.ignore_index)
        return UncertaintyAwareCrossEntropyLoss(
            alpha=self.config.alpha, ignore_index=self.ignore_index
        )

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch on the device, images standardised."""
        images = normalize(batch.images, self.device, self.config.channels_last)
        return images, batch.target.to(self.device, non_blocking=True)

    def forward(self, images: Tensor) -> tuple[Tensor, PredictiveStatistics | None]:
        """Logits with gradient and, for U-CE, the statistics of S samples without."""
        statistics = None
        if self.config.loss == "uce":
            statistics = sample_statistics(self.model, images, self.config.samples)
        return self.model(images), statistics

    def loss(
        self, logits: Tensor, target: Tensor, statistics: PredictiveStatistics | None
    ) -> Tensor:
        """The criterion's scalar."""
        if statistics is None:
            loss: Tensor = self.criterion(logits, target)
        else:
            loss = self.criterion(logits, target, statistics)
        return loss

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One update; returns loss, logits and target."""
        decay = polynomial_decay(self.step, self.config.steps)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * decay
        images, target = self.inputs(batch)
        with self.config.autocast():
            logits, statistics = self.forward(images)
            loss = self.loss(logits, target, statistics)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return loss.detach(), logits.detach(), target

    def fit(self, *, progress: bool = True) -> History:
        """Trains to the last step.

        Args:
            progress: whether to show a progress bar.

        Returns:
            The history, that of resumed steps included.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the checkpoint is written.
            DivergedError: the loss is not finite.
        """
        config = self.config
        self.model.train()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=f"train {config.loss}",
            unit="step",
            disable=not progress,
            dynamic_ncols=True,
        )
        batches = self.batches.iterate(self.step, config.steps)
        with deferred_interrupt() as stop, bar:
            started, first = time.perf_counter(), self.step
            try:
                for batch in batches:
                    loss, logits, target = self.train_step(batch)
                    bar.update()
                    last = self.step == config.steps
                    if self.step % config.report_every == 0 or last:
                        self._report(loss, logits, target)
                        images = (self.step - first) * config.batch_size
                        bar.set_postfix_str(
                            f"loss {self._running_loss:.3f}, "
                            f"mIoU {self.history.train_miou[-1]:.3f}, "
                            f"{images / (time.perf_counter() - started):.1f} images/s"
                        )
                    if self.step % config.validate_every == 0 or last:
                        self.history.seconds += time.perf_counter() - started
                        self._validate()
                        self.save()
                        started, first = time.perf_counter(), self.step
                    if stop.is_set():
                        break
            finally:
                batches.close()
            if stop.is_set():
                self.history.seconds += time.perf_counter() - started
                self.save()
                raise KeyboardInterrupt
        return self.history

    def _report(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        value = float(loss)
        if not math.isfinite(value):
            raise DivergedError(
                f"the {self.config.loss} loss is {value} at step {self.step}; "
                "lower the learning rate"
            )
        fresh = math.isnan(self._running_loss)
        self._running_loss = value if fresh else _mix(self._running_loss, value)
        confusion = confusion_matrix(logits.argmax(1), target, self.num_classes, self.ignore_index)
        self._confusion.mul_(_MEMORY).add_(confusion)
        self.history.steps.append(self.step)
        self.history.loss.append(value)
        self.history.train_miou.append(float(class_iou(self._confusion).nanmean()))

    def _validate(self) -> None:
        miou = deterministic_miou(
            self.model,
            self.validation,
            device=self.device,
            batch_size=self.config.batch_size,
            channels_last=self.config.channels_last,
            autocast=self.config.autocast,
        )
        self.history.validation_steps.append(self.step)
        self.history.validation_miou.append(miou)

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        state = {
            "config": asdict(self.config),
            "num_classes": self.num_classes,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
            "history": asdict(self.history),
            "running_loss": self._running_loss,
            "confusion": self._confusion,
        }
        if self.device.type == "cuda":
            state["cuda_random_state"] = torch.cuda.get_rng_state(self.device)
        save_atomically(state, self.checkpoint)

    def resume(self) -> bool:
        """Continues from the checkpoint; False if there is none.

        Raises:
            CheckpointError: it cannot be read, or another recipe wrote it.
        """
        if self.checkpoint is None or not self.checkpoint.is_file():
            return False
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            written = state["config"]
        except Exception as error:
            raise CheckpointError(f"{self.checkpoint}: not a checkpoint ({error})") from error
        if state["num_classes"] != self.num_classes:
            raise CheckpointError(
                f"{self.checkpoint}: was trained for {state['num_classes']} classes, "
                f"not {self.num_classes}"
            )
        for name, value in asdict(self.config).items():
            if name not in _FREE_FIELDS and written.get(name) != value:
                raise CheckpointError(
                    f"{self.checkpoint}: was trained with {name} = {written.get(name)}, not {value}"
                )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])
        self._running_loss = state["running_loss"]
        self._confusion.copy_(state["confusion"])
        torch.set_rng_state(state["random_state"])
        if self.device.type == "cuda" and "cuda_random_state" in state:
            torch.cuda.set_rng_state(state["cuda_random_state"], self.device)
        return True


def _mix(before: float, now: float) -> float:
    return _MEMORY * before + (1 - _MEMORY) * now
