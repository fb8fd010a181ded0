"""Training by cross-entropy, U-CE or instance-wise uncertainty, resumable to the bit.

The recipe is that of U-CE (Landgraf et al. 2023): SGD with momentum 0.9 and weight decay 1e-4,
the decoder at ten times the encoder's learning rate, polynomial decay, and per step S Monte-Carlo
dropout samples whose standard deviation weights the loss. AdamW in place of SGD has steps that do
not depend on a loss's scale, and learns rare classes in fewer of them. For instance-wise
uncertainty (Almeida et al.) M members train together on the same batches, each weighted by the
entropy of them all, its mean over each component; or a single network, weighted by the masks of an
ensemble trained before. For label uncertainty (Neven et al.) the network gives mean and spread of
its logits.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm.auto import tqdm

from ..functional import PredictiveStatistics
from ..heads import GaussianLogits
from ..losses.instance_uncertainty import instance_uncertainty
from ..metrics import MeanIoU
from ..sampling import PredictiveAccumulator, sample_statistics
from .class_counts import ClassCounts, check_classes
from .datasets import Batch, DatasetError, SegmentationDataset, Size, TrainingBatches, normalize
from .evaluation import deterministic_miou
from .identity import Identity, difference, identify
from .interruption import Interrupted, deferred_interrupt
from .losses import (
    COMPONENT_PARAMETERS,
    CONNECTIVITY,
    COVARIANCE,
    LOSSES,
    LossParameters,
    Parameter,
    TrainedLoss,
    Unit,
    build_loss,
)
from .mask_files import MaskedDataset
from .models import DropoutPlace, EncoderDecoder, class_logits
from .optimizers import OPTIMIZERS
from .output_files import whole_file
from .wording import number_of, number_of_classes

# What a resumed run may change without becoming another experiment. More steps extend it.
_FREE_FIELDS = frozenset(
    {
        "steps",
        "device",
        "channels_last",
        "compile",
        "workers",
        "validate_every",
        "report_every",
    }
)
# Share of the past that the running figures of the progress bar keep from one report to the next.
_MEMORY = 0.8
# What it was of a checkpoint that does not tell.
_BEFORE = {"optimizer": "sgd", "dropout_at": "encoder"}
_STATE = {"config", "num_classes", "step", "members", "ranks", "history"}
_CONFIG = {"steps", "dropout"}
Logits = Tensor | GaussianLogits
"""What a loss takes."""
_NO_CHECKPOINT = "not a checkpoint of `segunc train` or `segunc demo`, or damaged"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another experiment."""


class DivergedError(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class TrainingConfig(LossParameters):
    """All that determines a training run besides the data.

    ``loss`` is a name in :data:`LOSSES`, whose parameters are fields too. ``amp`` is None,
    ``"bf16"`` or ``"fp16"`` (CUDA only, with gradient scaling); ``validate_every`` counts steps,
    as do ``steps`` and ``report_every``. ``optimizer`` is a name in :data:`OPTIMIZERS`, whose
    learning rate is taken if ``learning_rate`` is None; ``momentum`` is AdamW's first beta too.
    ``dropout_at`` is that of :class:`EncoderDecoder`. ``samples`` is S of losses weighted by
    samples; of those weighted by members, ``members`` train together; unless ``masks``, the
    fingerprint of a :class:`MaskedDataset`, says that the uncertainty comes with the images.
    ``counts`` are what losses are made of that need some, such as balanced softmax. ``exact`` is
    for the record: the share of the images that keep their labels, if the dataset gives the others
    boxes.
    """

    loss: str
    steps: int
    batch_size: int = 8
    crop: Size = (128, 192)
    scale: tuple[float, float] = (0.5, 2.0)
    optimizer: str = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dropout: float = 0.2
    dropout_at: DropoutPlace = "encoder"
    samples: int = 10
    members: int = 3
    masks: str | None = None
    counts: ClassCounts | None = None
    exact: float | None = None
    seed: int = 0
    device: str = "cpu"
    amp: str | None = None
    channels_last: bool = False
    compile: bool = False
    workers: int = 1
    validate_every: int = 50
    report_every: int = 5

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss: expected one of {tuple(LOSSES)}, got {self.loss!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer: expected one of {tuple(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", OPTIMIZERS[self.optimizer].learning_rate)
        if self.amp not in (None, "bf16", "fp16"):
            raise ValueError(f"amp: expected None, 'bf16' or 'fp16', got {self.amp!r}")
        if self.amp == "fp16" and torch.device(self.device).type == "cpu":
            raise ValueError("amp: fp16 needs a CUDA device; use bf16 on the CPU")
        if self.trained_loss.weighted_by == "samples" and self.samples < 2:
            raise ValueError(f"samples: a deviation needs at least 2, got {self.samples}")
        if self.trained_loss.weighted_by == "members" and self.masks is None and self.members < 2:
            raise ValueError(f"members: an ensemble needs at least 2, got {self.members}")

    @property
    def trained_loss(self) -> TrainedLoss:
        """What is known of the loss."""
        return LOSSES[self.loss]

    @property
    def counted(self) -> Unit | None:
        """What of :attr:`counts` the loss is made of."""
        return self.trained_loss.counted(self)

    @property
    def takes_masks(self) -> bool:
        """Whether the uncertainty comes with the images."""
        return self.trained_loss.weighted_by == "members" and self.masks is not None

    @property
    def num_models(self) -> int:
        """How many networks train together."""
        together = self.trained_loss.weighted_by == "members" and not self.takes_masks
        return self.members if together else 1

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that tell a run from another of this loss, which not all of them matter to.

        Counts do, too, where there are some; they are compared class by class.
        """
        loss = self.trained_loss
        free = _names(each.parameters for each in LOSSES.values()) - _names([loss.parameters])
        free |= _FREE_FIELDS | {"counts"}
        if self.counted == "instances":
            free -= {CONNECTIVITY.name}
        if loss.weighted_by != "samples":
            free |= {"samples"}
        if loss.weighted_by != "members":
            free |= {"masks"}
        if self.num_models == 1:
            free |= {"members"}
        if self.takes_masks:  # their components are those they were made of
            free |= _names([COMPONENT_PARAMETERS])
        return {name: value for name, value in asdict(self).items() if name not in free}

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the forward passes."""
        if self.amp is None:
            return nullcontext()
        dtype = torch.bfloat16 if self.amp == "bf16" else torch.float16
        return torch.autocast(torch.device(self.device).type, dtype)


@dataclass
class History:
    """What a training run reports as it goes.

    ``extended`` has, for each time that a run was given more steps, the step it had reached and the
    steps it was to have before. ``unlabelled_steps`` counts the steps whose batch had no labelled
    pixel; they trained nothing and have no entry.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train_miou: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_miou: list[float] = field(default_factory=list)
    extended: list[tuple[int, int]] = field(default_factory=list)
    unlabelled_steps: int = 0
    seconds: float = 0.0


def polynomial_decay(step: int, total: int, power: float = 0.9) -> float:
    """The factor (1 - t/T)^0.9 on the learning rates at step t of T."""
    return float((1 - step / total) ** power)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint that is either the old or the new one, never half of it."""
    with whole_file(path) as file:
        torch.save(state, file)


def build_network(num_classes: int, config: Mapping[str, Any]) -> EncoderDecoder:
    """The network that a configuration trains, or has trained.

    Args:
        num_classes: C.
        config: a :class:`TrainingConfig` as a dictionary, as checkpoints hold it.
    """
    config = _BEFORE | dict(config)
    spread = LOSSES[config["loss"]].of_distributions if config["loss"] in LOSSES else False
    return EncoderDecoder(
        num_classes,
        dropout=config["dropout"],
        dropout_at=config["dropout_at"],
        covariance=config[COVARIANCE.name] if spread else None,
        start_variance=config["start_variance"] if spread else 1.0,
    )


def checkpoint_bytes(config: TrainingConfig, num_classes: int) -> int:
    """About how many bytes the checkpoint of a training takes."""
    with torch.device("meta"):
        model = build_network(num_classes, asdict(config))
    state = sum(tensor.nbytes for tensor in model.state_dict().values())
    kept = sum(parameter.nbytes for parameter in model.parameters())
    kept *= OPTIMIZERS[config.optimizer].moments
    return config.num_models * (state + kept) + 8 * num_classes**2


def _member_seed(seed: int, number: int) -> int:
    """The seed of a member's weights; the first one's are those of a network trained alone."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence([seed, 2, number]).generate_state(1)[0])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a :class:`Trainer` has written.

    Raises:
        CheckpointError: the file is missing or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch passes checksums over
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        complete = set(state) >= _STATE and set(state["config"]) >= _CONFIG and state["members"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever comes of other bytes
        raise CheckpointError(f"{path}: {_NO_CHECKPOINT}") from error
    if damaged or not complete:
        raise CheckpointError(f"{path}: {_NO_CHECKPOINT}")
    return state


def identify_data(
    train: SegmentationDataset, validation: SegmentationDataset
) -> dict[str, Identity]:
    """What a training's data are told by.

    Raises:
        DatasetError: a file cannot be read.
    """
    return {"training": identify(train), "validation": identify(validation)}


def _differences(
    state: dict[str, Any], config: TrainingConfig, data: dict[str, Identity]
) -> Iterator[str]:
    """In what a checkpoint's training is not the one that is to go on."""
    for part, now in data.items():
        before = state.get("data", {}).get(part)
        if before is None:
            yield "does not tell what data it was trained with, as one of an older version"
        elif (other := difference(before, now, part, masks=config.takes_masks)) is not None:
            yield other
    written, steps = state["config"], state["config"]["steps"]
    for name, value in config.identity.items():
        before = written.get(name, _BEFORE.get(name))
        if before != value:
            yield f"was trained with {name} = {before}, not {value}"
    yield from _count_differences(written.get("counts"), config)
    if config.steps < steps:
        yield f"was trained with steps = {steps}, not {config.steps}; it can only be extended"


def _count_differences(written: dict[str, Any] | None, config: TrainingConfig) -> Iterator[str]:
    """The first class whose count is another than a loss that needs it was trained with."""
    unit, counts = config.counted, config.counts
    if unit is None or counts is None:
        return
    before = () if written is None else written[unit]
    if len(before) != len(counts.of(unit)):
        classes = number_of_classes(len(before))
        yield f"was trained with the {unit} of {classes}, not {len(counts.of(unit))}"
        return
    for index, (old, new) in enumerate(zip(before, counts.of(unit), strict=True)):
        if old != new:
            yield f"was trained with {old} {unit} of {counts.called(index)}, not {new}"
            return


def check_resumable(
    path: Path, state: dict[str, Any], config: TrainingConfig, data: dict[str, Identity]
) -> None:
    """Raises unless a training may go on from a checkpoint.

    Args:
        path: of the checkpoint, for messages.
        state: what :func:`read_checkpoint` found in it.
        config: the recipe of the training.
        data: as :func:`identify_data` gives it.

    Raises:
        CheckpointError: another recipe or other data made it, or it has more steps; says which.
    """
    for problem in _differences(state, config, data):
        raise CheckpointError(
            f"{path}: {problem}; resume with what it was trained with, or start another run"
        )


def load_members(path: Path, *, finished: bool = False) -> list[EncoderDecoder]:
    """The networks of a checkpoint in evaluation mode: one, or all that trained together.

    Args:
        path: what a :class:`Trainer` has written.
        finished: whether the training must have come to its end.

    Raises:
        CheckpointError: the file is missing, is no checkpoint, of another network or, where that
            matters, of an interrupted training.
    """
    state = read_checkpoint(path)
    step, steps = state["step"], state["config"]["steps"]
    if finished and step < steps:
        raise CheckpointError(
            f"{path}: its training stopped at step {step} of {steps}; finish it with "
            "`segunc train --resume`"
        )
    models = []
    for weights in state["members"]:
        model = build_network(state["num_classes"], state["config"])
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: holds weights of another network") from error
        models.append(model.eval())
    return models


class Trainer:
    """Trains an :class:`EncoderDecoder`, or several together.

    Two trainers whose configurations differ only in the loss start from the same weights and see
    the same batches. Members that train together start from weights of their own and see the same
    batches; where torch.distributed is initialised they are dealt to its ranks, and the first
    rank, which has the first member, validates and writes the checkpoint of all.

    Args:
        config: the recipe.
        train: images to learn from.
        validation: images for the mIoU of the learning curve, that of the first member.
        checkpoint: file that is written before and after every validation and at Ctrl-C, SIGTERM or
            SIGHUP; None writes none.

    Raises:
        DatasetError: a file of the data, whose digests go into the checkpoint, cannot be read.
        CountsError: a class has none of what the loss needs, or counts are of other classes.
        ValueError: there are more ranks than members, the dataset's masks are not those of the
            configuration, it has too few classes for the loss, or no counts and the loss needs
            some.
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
        if config.takes_masks:
            found = train.fingerprint if isinstance(train, MaskedDataset) else None
            if found != config.masks:
                raise ValueError(f"train: expected masks {config.masks}, got {found}")
        self.rank, self.num_ranks = 0, 1
        if config.num_models > 1 and dist.is_available() and dist.is_initialized():
            self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        if self.num_ranks > config.num_models:
            raise ValueError(
                f"members: expected one for each of {self.num_ranks} ranks, got {config.members}"
            )
        self._numbers = range(self.rank, config.num_models, self.num_ranks)
        self.models = [self._build_model(number) for number in self._numbers]
        least = config.trained_loss.min_classes
        if self.num_classes < least:
            raise ValueError(
                f"loss: {config.loss!r} expected at least {least} classes, got {self.num_classes}"
            )
        if config.counted is not None and config.counts is not None:
            check_classes(config.counts, train)
        self.criterion = build_loss(config.loss, config, self.ignore_index, config.counts)
        self.criterion.to(self.device)
        assert config.learning_rate is not None  # the configuration has filled it in
        by = OPTIMIZERS[config.optimizer]
        self.optimizer = by.make(
            [
                group
                for model in self.models
                for group in model.parameter_groups(config.learning_rate, by.decoder_factor)
            ],
            config.momentum,
            config.weight_decay,
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
        self._data: dict[str, Identity] = {}
        if checkpoint is not None:
            self._data = identify_data(train, validation)
        self.step = 0
        self.history = History()
        self._owes_validation = False
        self._running_loss = math.nan
        shape = (self.num_classes, self.num_classes)
        self._confusion = torch.zeros(shape, dtype=torch.float64, device=self.device)

    @property
    def model(self) -> EncoderDecoder:
        """The network that is evaluated: the first one."""
        return self.models[0]

    def _build_model(self, number: int) -> EncoderDecoder:
        config = self.config
        torch.manual_seed(_member_seed(config.seed, number))
        model = build_network(self.num_classes, asdict(config))
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        if config.compile:
            # Samples may run the decoder alone.
            model.encoder.compile()
            model.decoder.compile()
        return model

    def inputs(self, batch: Batch) -> Batch:
        """A batch on the device, images standardised."""
        images, *others = batch
        target, mask, bootstrap = (
            None if each is None else each.to(self.device, non_blocking=True) for each in others
        )
        assert target is not None
        images = normalize(images, self.device, self.config.channels_last)
        return Batch(images, target, mask, bootstrap)

    def forward(
        self, images: Tensor, *, alone: bool = False
    ) -> tuple[list[Logits], PredictiveStatistics | None]:
        """Logits with gradient of each network here and, where the loss needs them, statistics.

        These, at the size of the images, are of S samples for U-CE, of all members, those of other
        ranks too unless `alone`, for instance-wise uncertainty.
        """
        statistics, size = None, images.shape[2:]
        samples, by_samples = self.config.samples, self.config.trained_loss.weighted_by == "samples"
        if by_samples and self.model.samples_share_encoder:
            # This step's own pass of the encoder serves the samples, too.
            maps = self.model.encoder(images)
            fixed = [each.detach() for each in maps]
            statistics = sample_statistics(self.model.decoder, (fixed,), samples, size=size)
            return [self.model.decoder(maps)], statistics
        if by_samples:
            statistics = sample_statistics(self.model, images, samples, size=size)
        if self.config.trained_loss.of_distributions:
            return [model.distribution(images) for model in self.models], None
        logits: list[Tensor] = [model(images) for model in self.models]
        if self.config.num_models > 1:
            accumulator = PredictiveAccumulator()
            for each in logits:
                accumulator.update(each, size)
            if self.num_ranks > 1 and not alone:
                accumulator.all_reduce()
            statistics = accumulator.compute()
        return [*logits], statistics

    def loss(
        self,
        logits: Logits,
        target: Tensor,
        statistics: PredictiveStatistics | None,
        mask: Tensor | None = None,
        bootstrap: Tensor | None = None,
    ) -> Tensor:
        """The criterion's scalar; a mask of instance uncertainty goes before statistics."""
        if self.config.trained_loss.of_distributions:
            of_distribution: Tensor = self.criterion(logits, target, bootstrap)
            return of_distribution
        if self.config.trained_loss.weighted_by == "members" and mask is not None:
            loss: Tensor = self.criterion(logits, target, instance_uncertainty=mask)
        elif statistics is not None:
            loss = self.criterion(logits, target, statistics)
        else:
            loss = self.criterion(logits, target)
        return loss

    def _ensemble_mask(self, statistics: PredictiveStatistics, target: Tensor) -> Tensor:
        """The instance uncertainty that all members share."""
        by_target = self.config.components == "target"
        return instance_uncertainty(
            statistics.entropy,
            target if by_target else statistics.prediction,
            num_classes=self.num_classes,
            connectivity=self.config.connectivity,
            ignore_index=self.ignore_index if by_target else None,
        )

    def is_labelled(self, batch: Batch) -> bool:
        """Whether any pixel of a batch counts."""
        return bool((batch.target != self.ignore_index).any())

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """One update; returns the loss, and the first network's logits, and the target.

        The loss is this rank's share of the mean over all members. A batch without a labelled pixel
        has no loss (its mean is 0 / 0) and leaves networks, optimiser, scaler and random numbers
        as they are: None. All ranks see the same batch, hence skip it alike.
        """
        if not self.is_labelled(batch):
            self.step += 1
            self.history.unlabelled_steps += 1
            return None
        decay = polynomial_decay(self.step, self.config.steps)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * decay
        images, target, mask, bootstrap = self.inputs(batch)
        with self.config.autocast():
            logits, statistics = self.forward(images)
            if self.config.num_models > 1:
                assert statistics is not None
                mask = self._ensemble_mask(statistics, target)
            # No two share a parameter: the sum gives each network the gradient of its own loss.
            if self.step < self.config.flip_after * self.config.steps:
                bootstrap = torch.zeros(len(target), dtype=torch.bool, device=target.device)
            losses = [self.loss(each, target, statistics, mask, bootstrap) for each in logits]
            loss = torch.stack(losses).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        first = logits[0]
        if isinstance(first, GaussianLogits):
            first = class_logits(first.mean)
        return loss.detach() / self.config.num_models, first.detach(), target

    def fit(self, *, progress: bool = True) -> History:
        """Trains to the last step.

        Args:
            progress: whether to show a progress bar.

        Returns:
            The history, that of resumed steps included.

        Raises:
            KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the checkpoint is written.
            DivergedError: the loss is not finite; the checkpoint is that of before.
            DatasetError: not a single batch had a labelled pixel.
        """
        config = self.config
        for model in self.models:
            model.train()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=f"train {config.loss}",
            unit="step",
            disable=not progress or self.rank > 0,
            dynamic_ncols=True,
        )
        batches = self.batches.iterate(self.step, config.steps)
        with deferred_interrupt() as stop, bar:
            started, first = time.perf_counter(), self.step
            stopped = False
            if self._owes_validation:
                self._validate()
                started = time.perf_counter()
                stopped = self._sum_over_ranks(float(stop.is_set())) > 0
            latest: Tensor | None = None  # the loss of the last batch that has one
            try:
                for batch in () if stopped else batches:
                    outcome = self.train_step(batch)
                    latest = latest if outcome is None else outcome[0]
                    bar.update()
                    last = self.step == config.steps
                    reports = self.step % config.report_every == 0 or last
                    validates = self.step % config.validate_every == 0 or last
                    # What has diverged is not saved over what had not.
                    if latest is not None and (reports or validates):
                        value = self._finite(latest)
                    if reports and outcome is not None:
                        self._report(value, *outcome[1:])
                        images = (self.step - first) * config.batch_size
                        bar.set_postfix_str(
                            f"loss {self._running_loss:.3f}, "
                            f"mIoU {self.history.train_miou[-1]:.3f}, "
                            f"{images / (time.perf_counter() - started):.1f} images/s"
                        )
                    if validates:
                        self.history.seconds += time.perf_counter() - started
                        # Whatever befalls the validation, the steps are kept.
                        self._owes_validation = True
                        self.save()
                        self._validate()
                        started, first = time.perf_counter(), self.step
                    stopped = self._sum_over_ranks(float(stop.is_set())) > 0
                    if stopped:
                        break
            finally:
                batches.close()
            if stopped:
                self.history.seconds += time.perf_counter() - started
                if latest is not None:
                    self._finite(latest)
                self.save()
                raise Interrupted(stop.signum)
        if self.history.unlabelled_steps == config.steps:
            raise DatasetError(
                f"not one pixel of {number_of(config.steps, 'batch', 'batches')} of "
                f"{config.batch_size} crops of "
                f"{config.crop[0]} x {config.crop[1]} was labelled (all are "
                f"{self.ignore_index}, which is ignored); label more, or enlarge the crop"
            )
        return self.history

    def _sum_over_ranks(self, value: float) -> float:
        """The same on every rank, so that all decide alike."""
        if self.num_ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def _finite(self, loss: Tensor) -> float:
        """The loss of all members; raises if it is no number."""
        value = self._sum_over_ranks(float(loss))
        if not math.isfinite(value):
            raise DivergedError(
                f"the {self.config.loss} loss is {value} at step {self.step}; "
                "lower the learning rate, or a parameter that raises the weights"
            )
        return value

    def _report(self, value: float, logits: Tensor, target: Tensor) -> None:
        fresh = math.isnan(self._running_loss)
        self._running_loss = value if fresh else _mix(self._running_loss, value)
        miou = MeanIoU(self.num_classes, ignore_index=self.ignore_index, sync_on_compute=False).to(
            self.device
        )
        miou.update(logits.detach(), target, size=target.shape[1:])
        self._confusion.mul_(_MEMORY).add_(miou.confusion)
        miou.confusion = self._confusion  # the batches before count too
        self.history.steps.append(self.step)
        self.history.loss.append(value)
        self.history.train_miou.append(float(miou.compute()))

    def _validate(self) -> None:
        """Validates, and writes the checkpoint, which then owes no validation."""
        if self.rank == 0:
            self._measure_validation()
        self._owes_validation = False
        self.save()

    def _measure_validation(self) -> None:
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
        """Writes the checkpoint, if there is to be one; of several ranks the first writes it."""
        if self.checkpoint is None:
            return
        mine: dict[str, Any] = {
            "models": [model.state_dict() for model in self.models],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            mine["cuda_random_state"] = torch.cuda.get_rng_state(self.device)
        ranks = [mine] if self.num_ranks == 1 else self._gather(mine)
        if not ranks:
            return
        models = [each.pop("models") for each in ranks]
        members = [models[i % len(models)][i // len(models)] for i in range(self.config.num_models)]
        save_atomically(
            {
                "config": asdict(self.config),
                "num_classes": self.num_classes,
                "data": self._data,
                "step": self.step,
                "model": members[0],
                "members": members,
                "ranks": ranks,
                "history": asdict(self.history),
                "owes_validation": self._owes_validation,
                "running_loss": self._running_loss,
                "confusion": self._confusion,
            },
            self.checkpoint,
        )

    def _gather(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """What every rank has, in main memory, for the first; nothing for the others."""
        file = io.BytesIO()
        torch.save(mine, file)
        every: list[bytes] | None = [b""] * self.num_ranks if self.rank == 0 else None
        dist.gather_object(file.getvalue(), every)
        return [
            torch.load(io.BytesIO(each), map_location="cpu", weights_only=True)
            for each in every or ()
        ]

    def resume(self, state: dict[str, Any] | None = None) -> bool:
        """Continues from the checkpoint; False if there is none.

        Where the configuration has more steps than the checkpoint's, the run is extended: from the
        step it has reached the learning rate decays over the new number of steps.

        Args:
            state: what :func:`read_checkpoint` has found in it; None reads it.

        Raises:
            CheckpointError: it cannot be read, or another recipe, other data or another number of
                ranks made it.
        """
        if self.checkpoint is None or (state is None and not self.checkpoint.is_file()):
            return False
        state = read_checkpoint(self.checkpoint) if state is None else state
        check_resumable(self.checkpoint, state, self.config, self._data)
        if len(state["ranks"]) != self.num_ranks:
            raise CheckpointError(
                f"{self.checkpoint}: was trained on {number_of(len(state['ranks']), 'rank')}, "
                f"not {self.num_ranks}"
            )
        mine = state["ranks"][self.rank]
        self.step = state["step"]
        for number, model in zip(self._numbers, self.models, strict=True):
            model.load_state_dict(state["members"][number])
        self.optimizer.load_state_dict(mine["optimizer"])
        self.scaler.load_state_dict(mine["scaler"])
        self.history = History(**state["history"])
        if self.config.steps > (before := state["config"]["steps"]):
            self.history.extended.append((self.step, before))
        self._owes_validation = state["owes_validation"]
        self._running_loss = state["running_loss"]
        self._confusion.copy_(state["confusion"])
        torch.set_rng_state(mine["random_state"])
        if self.device.type == "cuda" and "cuda_random_state" in mine:
            torch.cuda.set_rng_state(mine["cuda_random_state"], self.device)
        return True


def _names(parameters: Iterable[Iterable[Parameter]]) -> set[str]:
    return {each.name for some in parameters for each in some}


def _mix(before: float, now: float) -> float:
    return _MEMORY * before + (1 - _MEMORY) * now
