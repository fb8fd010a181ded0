"""Scenes, folders, training, evaluation and the command line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segunc_ops import cli, experiments
from segunc_ops.experiments import datasets, scenes, training
from segunc_ops.experiments.datasets import FolderDataset, Sample, SceneDataset
from segunc_ops.experiments.evaluation import evaluate, predict_by_dropout, predict_by_ensemble
from segunc_ops.experiments.experiment import Experiment, make_panels, run
from segunc_ops.experiments.models import EncoderDecoder

SIZE = (64, 96)


@pytest.fixture(scope="module")
def train_scenes() -> SceneDataset:
    return SceneDataset(12, seed=0, size=SIZE)


@pytest.fixture(scope="module")
def val_scenes() -> SceneDataset:
    return SceneDataset(5, seed=1, size=SIZE, label_noise=False)


def config(loss: str = "ce", **changes: object) -> training.TrainingConfig:
    options = {
        "loss": loss,
        "steps": 6,
        "batch_size": 4,
        "crop": (64, 64),
        "samples": 3,
        "validate_every": 3,
        "report_every": 1,
        **changes,
    }
    return training.TrainingConfig(**options)


# Scenes


def test_scenes_are_deterministic():
    first, again, other = (scenes.generate_scene(3, index) for index in (5, 5, 6))
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after)
    assert (first[0] != other[0]).any()
    assert (first[0] != scenes.generate_scene(4, 5)[0]).any()


def test_label_noise_moves_only_borders_of_the_labels():
    noisy_image, noisy = scenes.generate_scene(0, 1)
    image, exact = scenes.generate_scene(0, 1, label_noise=False)
    np.testing.assert_array_equal(noisy_image, image)
    assert 0.001 < (noisy != exact).mean() < 0.1


@pytest.mark.parametrize("size", [(160, 240), (61, 97), (32, 32)])
def test_scenes_have_the_asked_shape(size):
    image, label = scenes.generate_scene(0, 0, size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(11), scenes.IGNORE_INDEX}


def test_scenes_have_a_long_tail():
    shares = datasets.class_shares(SceneDataset(40, seed=0))
    assert len(shares) == 11
    assert min(shares) > 0
    assert max(shares) / min(shares) > 100


@pytest.mark.parametrize(
    ("arguments", "message"), [((-1, 0), "seed"), ((0, -1), "index"), ((0, 0, (31, 96)), "size")]
)
def test_scenes_check_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        scenes.generate_scene(*arguments)


# Folders


def write_pair(root: Path, split: str, stem: str, label: np.ndarray, layout: str = "annot") -> None:
    images, labels = (
        (root / split, root / f"{split}annot")
        if layout == "annot"
        else (root / "images" / split, root / "labels" / split)
    )
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(stem))
    image = rng.integers(0, 256, (*label.shape, 3), np.uint8)
    Image.fromarray(image).save(images / f"{stem}.jpg")
    Image.fromarray(label.astype(np.uint8)).save(labels / f"{stem}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            label = np.full((48, 64), 11)
            label[:40] = (np.arange(64) // 16 + index) % 3
            write_pair(tmp_path, split, f"{index:03}", label)
    return tmp_path


@pytest.mark.parametrize("layout", ["annot", "nested"])
def test_folder_reads_both_layouts(tmp_path, layout):
    label = np.arange(48 * 64).reshape(48, 64) % 4
    write_pair(tmp_path, "train", "a", label, layout)
    dataset = FolderDataset(*datasets.find_split(tmp_path, "train"), ignore_index=3)
    dataset.scan()
    assert len(dataset) == 1
    assert dataset.class_names == ("class 0", "class 1", "class 2")
    sample = dataset[0]
    assert sample.image.shape == (48, 64, 3)
    np.testing.assert_array_equal(sample.label, label)
    assert sample.label.dtype == np.uint8


def test_folder_takes_palette_maps_and_wide_indices(tmp_path):
    label = np.arange(48 * 64).reshape(48, 64) % 4
    write_pair(tmp_path, "train", "a", label)
    path = tmp_path / "trainannot" / "a.png"
    palette = Image.fromarray(label.astype(np.uint8), mode="P")
    palette.putpalette([7] * 768)
    palette.save(path)
    dataset = FolderDataset(*datasets.find_split(tmp_path, "train"))
    np.testing.assert_array_equal(dataset[0].label, label)
    Image.fromarray((label + 300).astype(np.uint16)).save(path)
    dataset = FolderDataset(*datasets.find_split(tmp_path, "train"))
    np.testing.assert_array_equal(dataset[0].label, label + 300)
    assert dataset[0].label.dtype == np.int32


def spoil(root: Path, what: str) -> None:
    target = root / "trainannot" / "002.png"
    if what == "missing label":
        target.unlink()
    elif what == "size":
        Image.fromarray(np.zeros((48, 60), np.uint8)).save(target)
    elif what == "class":
        Image.fromarray(np.full((48, 64), 77, np.uint8)).save(target)
    elif what == "channels":
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(target)
    elif what == "unreadable":
        target.write_bytes(b"no image")
    elif what == "empty":
        for path in (root / "train").iterdir():
            path.unlink()
    elif what == "layout":
        (root / "trainannot").rename(root / "elsewhere")
    elif what == "twice":
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "train" / "002.png")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing label", r"002\.png: no label map for 002\.jpg \(1 of 4"),
        ("size", r"002\.png: label map is 60 x 48, its image 002\.jpg 64 x 48"),
        ("class", r"002\.png: class 77 is outside 0 to 2 and is not the ignored index 11"),
        ("channels", r"002\.png: expected a one-channel label map, got mode RGB"),
        ("unreadable", r"002\.png: cannot be read as an image"),
        ("empty", r"train: holds no images"),
        ("layout", r"expected the folders train/ and trainannot/"),
        ("twice", r"002\.png: same stem as 002\.jpg"),
    ],
)
def test_folder_errors_name_the_file(folder, capsys, what, message):
    spoil(folder, what)
    with pytest.raises(datasets.DatasetError, match=message):
        FolderDataset(*datasets.find_split(folder, "train"), num_classes=3, ignore_index=11).scan()
    arguments = ["train", "--data", str(folder), "--ignore-index", "11", "--classes", "3"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--output", str(folder / "runs")])
    assert stopped.value.code == 2
    assert "argument --data" in capsys.readouterr().err
    assert not (folder / "runs").exists()


# Augmentation and batches


@pytest.mark.parametrize("crop", [(32, 48), (64, 96), (96, 64), (200, 200)])
def test_augmentation_moves_image_and_label_together(crop):
    label = (np.arange(64)[:, None] // 8 * 12 + np.arange(96)[None, :] // 8).astype(np.uint8)
    image = np.repeat(label[..., None], 3, 2)
    for seed in range(20):
        augmented = datasets.augment(
            Sample(image, label), np.random.default_rng(seed), crop=crop, ignore_index=255
        )
        assert augmented.image.shape == (*crop, 3)
        assert augmented.label.shape == crop
        valid = augmented.label != 255
        assert valid.any()
        assert (augmented.image[~valid] == 128).all()
        # Blocks of eight pixels: away from their borders the image holds the label itself.
        same = augmented.image[..., 0] == augmented.label
        assert same[valid].mean() > 0.3


def test_batches_depend_on_the_step_alone(train_scenes):
    batches = datasets.TrainingBatches(train_scenes, batch_size=5, crop=(32, 32), seed=1, workers=3)
    assert batches.steps_per_epoch == 2
    through = list(batches.iterate(0, 7))
    resumed = list(batches.iterate(4, 7))
    assert len(through) == 7
    for before, after in zip(through[4:], resumed, strict=True):
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.target, after.target)


def test_evaluation_batches_hold_every_image_once():
    samples = [SceneDataset(1, seed=s, size=(32 + s % 2, 40))[0] for s in (0, 2, 4, 1, 3)]

    class Listed:
        class_names = scenes.CLASS_NAMES
        ignore_index = 255

        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> Sample:
            return samples[index]

        def label(self, index: int) -> np.ndarray:
            return samples[index].label

    sizes = [tuple(batch.target.shape) for batch in datasets.evaluation_batches(Listed(), 2)]
    assert sizes == [(2, 32, 40), (1, 32, 40), (2, 33, 40)]


# Training


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


@pytest.mark.parametrize("loss", ["ce", "uce", "iu"])
def test_training_lowers_the_loss(train_scenes, val_scenes, loss):
    trainer = training.Trainer(config(loss, steps=25, validate_every=25), train_scenes, val_scenes)
    decoder = trainer.optimizer.param_groups[1]["lr"]
    assert decoder == pytest.approx(10 * trainer.optimizer.param_groups[0]["lr"])
    history = trainer.fit(progress=False)
    assert np.mean(history.loss[-5:]) < 0.8 * np.mean(history.loss[:3])
    assert history.validation_steps == [25]
    assert trainer.model.training


def test_losses_start_alike(train_scenes, val_scenes):
    trainers = [training.Trainer(config(loss), train_scenes, val_scenes) for loss in ("ce", "uce")]
    first, second = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Interrupting(SceneDataset):
    """Presses Ctrl-C when a scene is asked for the nth time."""

    countdown = -1

    def __getitem__(self, index: int) -> Sample:
        self.countdown -= 1
        if self.countdown == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(index)


@pytest.mark.parametrize("loss", ["ce", "uce"])
def test_resumed_training_equals_uninterrupted_training(tmp_path, val_scenes, loss):
    scenes_ = Interrupting(12, seed=0, size=SIZE)
    settings = config(loss, steps=7, validate_every=2)
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
    checkpoint.write_bytes(b"half a file")
    with pytest.raises(training.CheckpointError, match="not a checkpoint"):
        other.resume()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "focal"}, "loss"),
        ({"amp": "fp8"}, "amp"),
        ({"amp": "fp16"}, "amp"),
        ({"loss": "uce", "samples": 1}, "samples"),
    ],
)
def test_config_checks_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_divergence_is_an_error(train_scenes, val_scenes):
    trainer = training.Trainer(config(learning_rate=1e30), train_scenes, val_scenes)
    with pytest.raises(training.DivergedError, match="lower the learning rate"):
        trainer.fit(progress=False)


# Experiments and the command line


def test_experiment_writes_table_and_pictures(tmp_path, train_scenes, val_scenes):
    experiment = Experiment(
        config=config(amp="bf16", channels_last=True),
        losses=("ce", "uce"),
        train=train_scenes,
        validation=val_scenes,
        folder=tmp_path / "run",
        eval_samples=2,
        progress=False,
    )
    table = run(experiment)
    assert {path.name for path in experiment.folder.iterdir()} == {
        "checkpoint-ce.pt",
        "checkpoint-uce.pt",
        "learning-curves.png",
        "panels-ce.png",
        "panels-uce.png",
        "table.json",
        "table.md",
    }
    assert (experiment.folder / "table.md").read_text() == table
    for name in (*scenes.CLASS_NAMES, "mIoU", "ECE", "PAvPU", "U-CE statistics of 3 samples"):
        assert name in table
    record = json.loads((experiment.folder / "table.json").read_text())
    assert record["results"]["uce"]["time"]["reference_step"] > 0
    for picture in experiment.folder.glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 10


def test_interrupted_experiment_leaves_no_older_results(tmp_path, val_scenes):
    for name in ("table.md", "panels-ce.png", "checkpoint-ce.pt", "checkpoint-uce.pt"):
        (tmp_path / name).write_text("of an older run")
    train = Interrupting(12, seed=0, size=SIZE)
    train.countdown = 20
    experiment = Experiment(
        config=config(),
        losses=("ce",),
        train=train,
        validation=val_scenes,
        folder=tmp_path,
        eval_samples=2,
        progress=False,
    )
    with pytest.raises(KeyboardInterrupt):
        run(experiment)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-ce.pt", "checkpoint-uce.pt"}
    assert torch.load(tmp_path / "checkpoint-ce.pt", weights_only=True)["step"] > 0


def test_command_trains_on_a_folder_and_resumes(folder, capsys):
    arguments = ["train", "--data", str(folder), "--ignore-index", "11", "--loss", "uce"]
    arguments += ["--epochs", "2", "--batch-size", "2", "--crop", "32", "48", "--samples", "2"]
    arguments += ["--class-names", "left", "middle", "right"]
    arguments += ["--output", str(folder / "runs"), "--name", "short"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr().out
    assert "| middle " in first
    assert "4 steps of 2 crops of 32 x 48" in first
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "pass --resume" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--resume", "--seed", "1"])
    assert stopped.value.code == 2
    assert "argument --resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0
    again = capsys.readouterr().out
    assert again.split("| time on")[0] == first.split("| time on")[0]
    assert cli.main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["demo", "--samples", "1"], "--samples"),
        (["demo", "--steps", "0"], "--steps"),
        (["demo", "--steps", "5", "--epochs", "1"], "--epochs"),
        (["demo", "--loss", "dice"], "--loss"),
        (["demo", "--crop", "64"], "--crop"),
        (["demo", "--scale", "2", "1"], "--scale"),
        (["demo", "--device", "toaster"], "--device"),
        (["demo", "--device", "cuda:99"], "--device"),
        (["demo", "--amp", "fp16"], "--amp"),
        (["demo", "--dropout", "1.5"], "--dropout"),
        (["demo", "--alpha", "nan"], "--alpha"),
        (["demo", "--name", "../elsewhere"], "--name"),
        (["train"], "--data"),
        (["train", "--data", "no/such/folder"], "--data"),
        (["train", "--data", ".", "--classes", "3", "--class-names", "a"], "--class-names"),
        (["undo"], "command"),
    ],
)
def test_command_names_a_wrong_argument(arguments, name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert name in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_names_missing_extras(capsys, monkeypatch):
    monkeypatch.setattr(
        experiments, "find_spec", lambda name: None if name == "matplotlib" else object()
    )
    assert cli.main(["demo"]) == 1
    message = capsys.readouterr().err
    assert "matplotlib" in message
    assert "pip install segunc_ops[experiments]" in message


def test_command_ends_quietly_at_ctrl_c(capsys, monkeypatch):
    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert cli.main(["demo"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_command_info_lists_the_build(capsys):
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    for name in ("version", "torch", "cpu", "cuda"):
        assert f"{name}:" in shown
