"""Networks and their training: steps, losses, interruption, errors."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.experiments.cases import SIZE, InterruptingScenes, PartlyLabelled, config
from segunc_ops.experiments import output_files, training
from segunc_ops.experiments.datasets import DatasetError, FolderDataset, Sample, SceneDataset
from segunc_ops.experiments.evaluation import evaluate, predict_by_dropout, predict_by_ensemble
from segunc_ops.experiments.experiment import make_panels
from segunc_ops.experiments.interruption import (
    Interrupted,
    deferred_interrupt,
    interrupting_signals,
)
from segunc_ops.experiments.layouts import find_split
from segunc_ops.experiments.models import EncoderDecoder
from segunc_ops.experiments.optimizers import OPTIMIZERS
from segunc_ops.sampling import sample_statistics


@pytest.mark.parametrize("size", [(64, 96), (61, 45)])
def test_model_answers_at_a_quarter_of_the_resolution(size):
    quarter = tuple(-(-n // 4) for n in size)
    assert EncoderDecoder(5)(torch.zeros(2, 3, *size)).shape == (2, 5, *quarter)


@pytest.mark.parametrize("loss", ["ce", "uce", "iu"])
def test_training_on_crops_that_four_does_not_divide(train_scenes, loss):
    """Logits, statistics, masks and metrics meet at the size of the labels."""
    settings = config(loss, steps=2, crop=(45, 61), validate_every=2)
    odd = SceneDataset(3, seed=1, size=(61, 47))
    trainer = training.Trainer(settings, train_scenes, odd)
    history = trainer.fit(progress=False)
    assert np.isfinite([*history.loss, *history.validation_miou]).all()
    evaluation, counted = evaluate(
        predict_by_dropout(trainer.model, 2), odd, device=trainer.device, num_samples=2
    )
    assert counted.confusion.sum() == evaluation.num_pixels
    panels = make_panels(predict_by_ensemble(trainer.models), odd, device=trainer.device)
    for panel in panels:
        for name in ("prediction", "uncertainty", "components", "instance_uncertainty"):
            assert getattr(panel, name).shape == (61, 47), name


def test_polynomial_decay():
    assert training.polynomial_decay(0, 10) == 1
    assert training.polynomial_decay(5, 10) == pytest.approx(0.5**0.9)
    assert training.polynomial_decay(9, 10) > 0


@pytest.mark.parametrize("loss", ["ce", "uce", "iu", "dice"])
def test_training_lowers_the_loss(train_scenes, val_scenes, loss):
    trainer = training.Trainer(config(loss, steps=25, validate_every=25), train_scenes, val_scenes)
    decoder = trainer.optimizer.param_groups[1]["lr"]
    assert decoder == pytest.approx(10 * trainer.optimizer.param_groups[0]["lr"])
    history = trainer.fit(progress=False)
    assert np.mean(history.loss[-5:]) < 0.8 * np.mean(history.loss[:3])
    assert history.validation_steps == [25]
    assert trainer.model.training


@pytest.mark.parametrize("dropout_at", ["encoder", "decoder"])
def test_adamw_lowers_the_loss(train_scenes, val_scenes, dropout_at):
    settings = config("uce", steps=25, validate_every=25, optimizer="adamw", dropout_at=dropout_at)
    trainer = training.Trainer(settings, train_scenes, val_scenes)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    by = OPTIMIZERS["adamw"]
    assert settings.learning_rate == by.learning_rate
    encoder, decoder = (group["lr"] for group in trainer.optimizer.param_groups)
    assert decoder == pytest.approx(by.decoder_factor * encoder)
    history = trainer.fit(progress=False)
    assert np.mean(history.loss[-5:]) < 0.8 * np.mean(history.loss[:3])


def test_samples_that_share_the_encoder_are_those_of_whole_passes(train_scenes, val_scenes):
    """The same dropout masks give the same statistics, to rounding, and the encoder runs once."""
    images = torch.rand(2, 3, 45, 61)
    model = EncoderDecoder(5, dropout=0.5, dropout_at="decoder")
    passes: list[object] = []
    model.encoder.register_forward_hook(lambda *arguments: passes.append(arguments))
    for _ in range(3):
        model(images)  # running statistics of these images
    del passes[:]
    torch.manual_seed(1)
    shared = predict_by_dropout(model, 4)(images)
    assert len(passes) == 1
    torch.manual_seed(1)
    whole = sample_statistics(model, images, 4, size=(45, 61), batch_norm="running")
    assert len(passes) == 5
    assert float(whole.std.min()) > 0
    for name in ("confidence", "std", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(shared, name), getattr(whole, name))

    settings = config("uce", dropout_at="decoder", samples=3, batch_size=2)
    trainer = training.Trainer(settings, train_scenes, val_scenes)
    state = copy.deepcopy(trainer.model.state_dict())
    torch.manual_seed(2)
    _, statistics = trainer.forward(images)
    after = copy.deepcopy(trainer.model.state_dict())
    trainer.model.load_state_dict(state)
    torch.manual_seed(2)
    expected = sample_statistics(trainer.model, images, 3, size=(45, 61))
    torch.testing.assert_close(statistics.std, expected.std)
    trainer.model(images)  # running statistics move by the step's own pass, and no other
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(after[name], value, msg=name)


def test_dropout_is_at_the_encoder_or_the_decoder():
    with pytest.raises(ValueError, match="dropout_at: expected one of"):
        EncoderDecoder(5, dropout_at="head")
    by_place = [EncoderDecoder(5, dropout_at=place) for place in ("encoder", "decoder")]
    names = [
        {name for name, module in model.named_modules() if getattr(module, "p", 0) > 0}
        for model in by_place
    ]
    assert names[0] == {f"encoder.stages.{i}.{2 if i > 1 else 1}" for i in range(4)}
    assert names[1] == {"decoder.dropout"}
    first, second = (model.state_dict() for model in by_place)
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in second.items()
    }


def test_checkpoints_that_do_not_tell_are_of_sgd_and_the_encoder(
    tmp_path, train_scenes, val_scenes
):
    checkpoint = tmp_path / "checkpoint.pt"
    trainer = training.Trainer(config(steps=1), train_scenes, val_scenes, checkpoint)
    trainer.fit(progress=False)
    state = training.read_checkpoint(checkpoint)
    for name in ("optimizer", "dropout_at"):
        del state["config"][name]
    training.save_atomically(state, checkpoint)
    (model,) = training.load_members(checkpoint)
    assert not model.samples_share_encoder
    assert training.Trainer(config(steps=1), train_scenes, val_scenes, checkpoint).resume()
    for changes, message in (
        ({"optimizer": "adamw"}, "optimizer = sgd, not adamw"),
        ({"dropout_at": "decoder"}, "dropout_at = encoder, not decoder"),
    ):
        other = training.Trainer(
            config(steps=1, learning_rate=0.01, **changes), train_scenes, val_scenes, checkpoint
        )
        with pytest.raises(training.CheckpointError, match=message):
            other.resume()


def test_losses_start_alike(train_scenes, val_scenes):
    trainers = [training.Trainer(config(loss), train_scenes, val_scenes) for loss in ("ce", "uce")]
    first, second = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("loss", "changes"),
    [("ce", {}), ("uce", {}), ("uce", {"optimizer": "adamw", "dropout_at": "decoder"})],
)
def test_resumed_training_equals_uninterrupted_training(tmp_path, val_scenes, loss, changes):
    scenes_ = InterruptingScenes()
    settings = config(loss, steps=7, validate_every=2, **changes)
    through = training.Trainer(settings, scenes_, val_scenes)
    through.fit(progress=False)

    checkpoint = tmp_path / "checkpoint.pt"
    scenes_.countdown = 15
    interrupted = training.Trainer(settings, scenes_, val_scenes, checkpoint)
    handler = signal.getsignal(signal.SIGINT)  # of a background job: none
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(progress=False)
    assert 0 < interrupted.step < settings.steps
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]

    torch.manual_seed(99)
    resumed = training.Trainer(settings, scenes_, val_scenes, checkpoint)
    assert resumed.resume()
    assert resumed.step == interrupted.step
    resumed.fit(progress=False)
    expected, found = through.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("steps", "loss", "train_miou", "validation_steps", "validation_miou"):
        assert getattr(resumed.history, name) == getattr(through.history, name)


def test_resume_refuses_another_recipe_and_broken_files(tmp_path, train_scenes, val_scenes):
    checkpoint = tmp_path / "checkpoint.pt"
    trainer = training.Trainer(config(steps=1), train_scenes, val_scenes, checkpoint)
    assert not trainer.resume()
    trainer.fit(progress=False)
    other = training.Trainer(config(steps=1, seed=3), train_scenes, val_scenes, checkpoint)
    with pytest.raises(training.CheckpointError, match="trained with seed = 0, not 3"):
        other.resume()
    state = training.read_checkpoint(checkpoint)
    del state["data"]
    training.save_atomically(state, checkpoint)
    with pytest.raises(training.CheckpointError, match="does not tell what data"):
        other.resume()
    checkpoint.write_bytes(b"half a file")
    with pytest.raises(training.CheckpointError, match="not a checkpoint"):
        other.resume()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "lovasz"}, "loss"),
        ({"amp": "fp8"}, "amp"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"amp": "fp16"}, "amp"),
        ({"loss": "uce", "samples": 1}, "samples"),
    ],
)
def test_config_checks_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


class OneClass(SceneDataset):
    class_names = ("anything",)


def test_dice_needs_two_classes(val_scenes):
    with pytest.raises(ValueError, match="loss: 'dice' expected at least 2 classes, got 1"):
        training.Trainer(config("dice"), OneClass(3, size=SIZE), val_scenes)


def test_divergence_is_an_error(train_scenes, val_scenes):
    trainer = training.Trainer(config(learning_rate=1e30), train_scenes, val_scenes)
    with pytest.raises(training.DivergedError, match="lower the learning rate"):
        trainer.fit(progress=False)


# Batches without a labelled pixel


def state_of(trainer: training.Trainer) -> list[object]:
    return copy.deepcopy(
        [
            [model.state_dict() for model in trainer.models],
            trainer.optimizer.state_dict()["state"],
            trainer.scaler.state_dict(),
            torch.get_rng_state(),
        ]
    )


@pytest.mark.parametrize(
    ("loss", "amp"), [("ce", None), ("ce", "bf16"), ("uce", None), ("iu", None)]
)
def test_a_batch_without_a_labelled_pixel_counts_nothing(val_scenes, loss, amp):
    settings = config(loss, steps=3, crop=(32, 32), samples=2, members=2, amp=amp)
    trainer = training.Trainer(settings, PartlyLabelled(settings, {1}), val_scenes)
    first, empty, last = trainer.batches.iterate(0, 3)
    assert trainer.train_step(first) is not None
    before = state_of(trainer)
    assert trainer.train_step(empty) is None
    torch.testing.assert_close(state_of(trainer), before, rtol=0, atol=0)
    assert trainer.step == 2
    assert trainer.train_step(last) is not None
    # The decay of the learning rate goes by steps, whatever they hold.
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 / 3) ** 0.9)


@pytest.mark.parametrize("empty", [{0}, {1, 3}])
def test_unlabelled_batches_leave_no_entry_in_the_history(tmp_path, val_scenes, empty):
    settings = config(steps=4, crop=(32, 32), validate_every=2)
    train = PartlyLabelled(settings, empty)
    checkpoint = tmp_path / "checkpoint.pt"
    history = training.Trainer(settings, train, val_scenes, checkpoint).fit(progress=False)
    assert history.steps == [step + 1 for step in range(4) if step not in empty]
    assert len(history.loss) == len(history.train_miou) == len(history.steps)
    assert np.isfinite([*history.loss, *history.validation_miou]).all()
    assert history.validation_steps == [2, 4]
    assert history.unlabelled_steps == len(empty)
    resumed = training.Trainer(settings, train, val_scenes, checkpoint)
    assert resumed.resume()
    assert resumed.history.unlabelled_steps == len(empty)


def test_training_without_any_labelled_pixel_is_an_error(val_scenes):
    settings = config(steps=2, crop=(32, 40))
    trainer = training.Trainer(settings, PartlyLabelled(settings, {0, 1}), val_scenes)
    message = r"not one pixel of 2 batches of 4 crops of 32 x 40 was labelled \(all are 255"
    with pytest.raises(DatasetError, match=message):
        trainer.fit(progress=False)
    assert not trainer.history.loss


def test_divergence_is_found_beside_unlabelled_batches(tmp_path, val_scenes):
    """Also where the step that reports has none, the last one included."""
    settings = config(steps=4, crop=(32, 32), learning_rate=1e30, report_every=4)
    train = PartlyLabelled(settings, {2, 3})
    trainer = training.Trainer(settings, train, val_scenes, tmp_path / "checkpoint.pt")
    with pytest.raises(training.DivergedError, match="lower the learning rate"):
        trainer.fit(progress=False)
    assert not trainer.history.loss
    assert not list(tmp_path.iterdir())


def test_ctrl_c_does_not_save_what_has_diverged(tmp_path, val_scenes):
    settings = config(steps=6, learning_rate=1e30, report_every=6, validate_every=6)
    trainer = training.Trainer(
        settings, InterruptingScenes(20), val_scenes, tmp_path / "checkpoint.pt"
    )
    with pytest.raises(training.DivergedError):
        trainer.fit(progress=False)
    assert not list(tmp_path.iterdir())


# What a resumed run may change


def folder_dataset(root: Path, split: str = "train", **options: Any) -> FolderDataset:
    options = {"num_classes": 3, "ignore_index": 11, **options}
    return FolderDataset(*find_split(root, split), **options)


def change_data(root: Path, what: str) -> None:
    if what == "an image less":
        for folder in ("train", "trainannot"):
            next((root / folder).glob("003.*")).unlink()
    elif what == "renamed":
        (root / "train" / "003.jpg").rename(root / "train" / "004.jpg")
        (root / "trainannot" / "003.png").rename(root / "trainannot" / "004.png")
    else:  # one byte, which leaves the size as it was
        path = next((root / what).glob("001.*"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        (None, {"ignore_index": 255}, "with ignore_index = 11, not 255"),
        (None, {"num_classes": 4}, "for 3 classes, not 4"),
        (None, {"class_names": "abc"}, "with class 0 called 'class 0', not 'a'"),
        ("an image less", {}, "with 4 training images, not 3"),
        ("renamed", {}, r"with other training data: names of files \w+, not"),
        ("train", {}, r"with other training data: images \w+, not"),
        ("trainannot", {}, r"with other training data: label maps \w+, not"),
        ("valannot", {}, r"with other validation data: label maps \w+, not"),
    ],
)
def test_resume_refuses_other_data(tmp_path, folder, what, options, message):
    checkpoint = tmp_path / "checkpoint.pt"
    val = folder_dataset(folder, "val")
    training.Trainer(config(), folder_dataset(folder), val, checkpoint).save()
    if what is not None:
        change_data(folder, what)
    val = folder_dataset(folder, "val", **options)
    other = training.Trainer(config(), folder_dataset(folder, **options), val, checkpoint)
    with pytest.raises(training.CheckpointError, match=f"was trained {message}"):
        other.resume()


def test_data_are_the_same_wherever_they_lie(tmp_path, folder):
    checkpoint = tmp_path / "checkpoint.pt"
    validation = folder_dataset(folder, "val")
    training.Trainer(config(), folder_dataset(folder), validation, checkpoint).save()
    for name in ("train", "trainannot"):
        shutil.move(folder / name, folder / "elsewhere" / name)
    moved = folder_dataset(folder / "elsewhere")
    assert training.Trainer(config(), moved, validation, checkpoint).resume()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "other training data: seed 0, not 2"),
        ({"label_noise": False}, "other training data: label noise True, not False"),
        ({"size": (64, 64)}, r"other training data: size \(64, 96\), not \(64, 64\)"),
        ({"length": 9}, "12 training images, not 9"),
    ],
)
def test_resume_refuses_other_scenes(tmp_path, train_scenes, val_scenes, changes, message):
    checkpoint = tmp_path / "checkpoint.pt"
    training.Trainer(config(), train_scenes, val_scenes, checkpoint).save()
    scenes_ = SceneDataset(**{"length": 12, "seed": 0, "size": SIZE, **changes})
    with pytest.raises(training.CheckpointError, match=f"was trained with {message}"):
        training.Trainer(config(), scenes_, val_scenes, checkpoint).resume()


def test_a_dataset_of_ones_own_is_known_by_classes_ignored_index_and_length(tmp_path, val_scenes):
    class Own:
        class_names = SceneDataset.class_names
        ignore_index = 255

        def __init__(self, length: int) -> None:
            self.length = length

        def __len__(self) -> int:
            return self.length

    checkpoint = tmp_path / "checkpoint.pt"
    training.Trainer(config(), Own(3), val_scenes, checkpoint).save()
    assert training.Trainer(config(), Own(3), val_scenes, checkpoint).resume()
    with pytest.raises(training.CheckpointError, match="3 training images, not 4"):
        training.Trainer(config(), Own(4), val_scenes, checkpoint).resume()


@pytest.mark.parametrize(
    ("loss", "changes", "matters"),
    [
        ("ce", {"samples": 5, "members": 5, "alpha": 3.0, "exponent": 1.0, "masks": "a"}, None),
        ("ce", {"validate_every": 5, "report_every": 2, "workers": 2}, None),
        ("uce", {"members": 5, "exponent": 1.0, "connectivity": 4}, None),
        ("iu", {"samples": 5, "alpha": 3.0}, None),
        ("uce", {"samples": 5}, "samples = 3, not 5"),
        ("uce", {"alpha": 3.0}, "alpha = 10.0, not 3.0"),
        ("iu", {"connectivity": 4}, "connectivity = 8, not 4"),
        ("iu", {"members": 4}, "members = 3, not 4"),
        ("ce", {"learning_rate": 0.1}, "learning_rate = 0.01, not 0.1"),
        ("ce", {"steps": 5}, "steps = 6, not 5; it can only be extended"),
    ],
)
def test_resume_refuses_what_matters_to_the_loss_alone(
    tmp_path, train_scenes, val_scenes, loss, changes, matters
):
    checkpoint = tmp_path / "checkpoint.pt"
    training.Trainer(config(loss), train_scenes, val_scenes, checkpoint).save()
    other = training.Trainer(config(loss, **changes), train_scenes, val_scenes, checkpoint)
    if matters is None:
        assert other.resume()
    else:
        with pytest.raises(training.CheckpointError, match=f"was trained with {matters}"):
            other.resume()


@pytest.mark.parametrize("countdown", [-1, 11])
def test_more_steps_extend_a_run(tmp_path, monkeypatch, val_scenes, countdown):
    """Its rates decay over the steps that a run was to have when it made the step."""
    scenes_, checkpoint = InterruptingScenes(countdown), tmp_path / "checkpoint.pt"
    short = training.Trainer(config(steps=3), scenes_, val_scenes, checkpoint)
    with nullcontext() if countdown < 0 else pytest.raises(KeyboardInterrupt):
        short.fit(progress=False)
    reached = short.step
    assert reached == 3 if countdown < 0 else 0 < reached < 3

    settings = config(steps=6)
    extended = training.Trainer(settings, scenes_, val_scenes, checkpoint)
    assert extended.resume()
    # Interrupted again, it goes on as if it had not been.
    scenes_.countdown = 9
    with pytest.raises(KeyboardInterrupt):
        extended.fit(progress=False)
    assert reached < extended.step < 6
    extended = training.Trainer(settings, scenes_, val_scenes, checkpoint)
    assert extended.resume()
    extended.fit(progress=False)
    assert extended.history.extended == [(reached, 3)]

    decay = training.polynomial_decay
    monkeypatch.setattr(
        training, "polynomial_decay", lambda step, total: decay(step, 3 if step < reached else 6)
    )
    through = training.Trainer(settings, InterruptingScenes(), val_scenes)
    through.fit(progress=False)
    expected, found = through.model.state_dict(), extended.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert extended.history.loss == through.history.loss
    assert extended.step == 6


# Signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_process_save_like_ctrl_c(tmp_path, val_scenes, signum):
    scenes_, checkpoint = InterruptingScenes(15), tmp_path / "checkpoint.pt"
    scenes_.signum = signum
    trainer = training.Trainer(config(), scenes_, val_scenes, checkpoint)
    handler = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stopped:
        trainer.fit(progress=False)
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) is handler
    assert 0 < trainer.step < 6
    assert training.read_checkpoint(checkpoint)["step"] == trainer.step


def test_what_is_ignored_stays_ignored():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupting_signals(), deferred_interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_interrupts_at_once_but_no_repeated_sigterm():
    with deferred_interrupt() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.signum == signal.SIGTERM


# What fails beside the training


class FailingScenes(SceneDataset):
    """As the validation's; raises when an item is asked for the nth time."""

    def __init__(self, countdown: int, error: type[BaseException]) -> None:
        super().__init__(5, seed=1, size=SIZE, label_noise=False)
        self.countdown, self.error = countdown, error

    def __getitem__(self, index: int) -> Sample:
        self.countdown -= 1
        if self.countdown == 0:
            raise self.error("on purpose")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("countdown", "error", "reached"),
    [(1, DatasetError, 2), (5, MemoryError, 2), (8, KeyboardInterrupt, 4)],
)
def test_a_validation_that_fails_costs_no_step(
    tmp_path, train_scenes, val_scenes, countdown, error, reached
):
    settings, checkpoint = config(steps=4, validate_every=2), tmp_path / "checkpoint.pt"
    failing = FailingScenes(countdown, error)
    trainer = training.Trainer(settings, train_scenes, failing, checkpoint)
    with pytest.raises(error, match="on purpose"):
        trainer.fit(progress=False)
    assert training.read_checkpoint(checkpoint)["step"] == reached

    resumed = training.Trainer(settings, train_scenes, val_scenes, checkpoint)
    assert resumed.resume()
    history = resumed.fit(progress=False)
    through = training.Trainer(settings, train_scenes, val_scenes)
    expected = through.fit(progress=False)
    for name in ("steps", "loss", "train_miou", "validation_steps", "validation_miou"):
        assert getattr(history, name) == getattr(expected, name), name
    assert training.read_checkpoint(checkpoint)["history"]["validation_steps"] == [2, 4]


def test_ctrl_c_is_heard_while_a_validation_is_made_up_for(tmp_path, train_scenes):
    settings, checkpoint = config(steps=2), tmp_path / "checkpoint.pt"
    failing = FailingScenes(1, DatasetError)
    with pytest.raises(DatasetError):
        training.Trainer(settings, train_scenes, failing, checkpoint).fit(progress=False)

    resumed = training.Trainer(settings, train_scenes, failing, checkpoint)
    assert resumed.resume()
    resumed.validation = InterruptingScenes(2)
    with pytest.raises(KeyboardInterrupt):
        resumed.fit(progress=False)
    assert resumed.history.validation_steps == [2]


@pytest.mark.parametrize("what", ["full", "unwritable"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, what):
    path = tmp_path / "checkpoint.pt"
    training.save_atomically({"step": 1}, path)

    def fill(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "full":
        monkeypatch.setattr(output_files.os, "fsync", fill)
    else:
        monkeypatch.setattr(output_files.os, "replace", fill)
    with pytest.raises(OSError, match="No space"):
        training.save_atomically({"step": 2}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(path) == {"step": 1}
