"""Training on boxes: data, networks, the loss, what becomes of labels, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import segunc_ops.functional as sf
from python_tests.experiments.cases import (
    SIZE,
    InterruptingScenes,
    config,
    dataset_of,
    exit_code,
    write_images,
)
from segunc_ops import GaussianLogits, cli
from segunc_ops.experiments import label_correction, training
from segunc_ops.experiments.boxed import BoxedDataset
from segunc_ops.experiments.datasets import SceneDataset, augment, collate, evaluation_batches
from segunc_ops.experiments.identity import identify
from segunc_ops.experiments.label_mapping import LabelMapping, one_class_mapping, parse_mapping
from segunc_ops.experiments.models import EncoderDecoder, class_logits
from segunc_ops.experiments.training import CheckpointError, Trainer, load_members
from segunc_ops.experiments.uncertain_labels import UncertainLabelsLoss

LOSS = "label-uncertainty"
CAR = SceneDataset.class_names.index("car")


@pytest.fixture(scope="module")
def cars() -> SceneDataset:
    return SceneDataset(12, seed=0, size=SIZE).of_class("car")


@pytest.fixture(scope="module")
def boxed(cars) -> BoxedDataset:
    return BoxedDataset(cars, 0.25, seed=1, background=[0])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 6, ((48, 64),))


# Data


def test_scenes_of_one_class(cars, train_scenes):
    every, own = train_scenes.label(3), cars.label(3)
    assert cars.class_names == ("other", "car")
    assert own.dtype == every.dtype
    assert np.array_equal(own == 1, every == CAR)
    assert np.array_equal(own == 255, every == 255)
    assert np.array_equal(cars[3].image, train_scenes[3].image)
    assert identify(cars) != identify(train_scenes.of_class("tree"))


def test_boxes_of_all_but_a_share_of_the_images(cars, boxed):
    assert boxed.num_exact == 3
    assert len(boxed) == len(cars)
    for index, bootstrap in enumerate(boxed.bootstrap):
        sample, exact = boxed[index], cars.label(index)
        assert sample.bootstrap is bool(bootstrap)
        expected = exact
        if bootstrap:
            expected = sf.boxes_from_masks(exact[None], background=0, ignore_index=255)[0]
        assert np.array_equal(sample.label, expected)
        assert np.array_equal(boxed.label(index), expected)
        assert sample.label.dtype == exact.dtype
    batch = collate([boxed[index] for index in range(len(boxed))])
    assert torch.equal(batch.bootstrap, torch.from_numpy(boxed.bootstrap))
    assert collate([cars[0], boxed[0]]).bootstrap is None
    crop = augment(boxed[5], np.random.default_rng(0), crop=(32, 32), ignore_index=255)
    assert crop.bootstrap is boxed[5].bootstrap


def test_a_dataset_tells_which_labels_are_boxes(cars, boxed):
    told = identify(boxed)
    assert told["contents"]["boxes"] == "but for 0.25 of the images, seed 1, none of classes (0,)"
    assert identify(BoxedDataset(cars, 0.25, seed=1, background=[0])) == told
    for share, seed, background in ((0.5, 1, [0]), (0.25, 2, [0]), (0.25, 1, None)):
        assert identify(BoxedDataset(cars, share, seed=seed, background=background)) != told
    with pytest.raises(ValueError, match=r"exact_share: expected a number in \[0, 1\], got 1.5"):
        BoxedDataset(cars, 1.5)


@pytest.mark.parametrize(
    ("words", "expected", "labels", "classes"),
    [
        (["none"], "2:1 rest:0", [0, 2, 3, 255, 9], [0, 1, 0, 255, 0]),
        (["5:0", "6:1", "7:2", "8:255"], "5:0 6:0 7:1 8:255", [5, 6, 7, 8], [0, 0, 1, 255]),
        (["7:2", "9:2", "rest:0"], "7:1 9:1 rest:0", [7, 9, 3, 255], [1, 1, 0, 255]),
        (["7:0", "rest:2"], "7:0 rest:1", [7, 9, 255], [0, 1, 255]),
        (["7:2", "8:0", "rest:255"], "7:1 8:0 rest:255", [7, 8, 9], [1, 0, 255]),
        (["reduce-zero-label"], "0:255 3:1 rest:0", [0, 3, 2, 255], [255, 1, 0, 255]),
    ],
)
def test_a_mapping_to_one_class(words, expected, labels, classes):
    mapping = one_class_mapping(parse_mapping(words, 255), 2, 255)
    assert str(mapping) == expected
    assert mapping.num_classes == 2
    found = mapping.apply(np.array([labels]), 255)
    assert found.tolist() == [classes]
    again = parse_mapping(str(mapping).split(), 255)
    assert again.apply(np.array([labels]), 255).tolist() == [classes]


def test_no_mapping_to_a_class_that_is_none():
    with pytest.raises(ValueError, match="no label stands for class 3, by --map 5:0"):
        one_class_mapping(parse_mapping(["5:0"], 255), 3, 255)
    with pytest.raises(ValueError, match="makes classes 0 and 1, of which 1 is ignored"):
        one_class_mapping(LabelMapping(), 3, 1)


# Networks and the loss


@pytest.mark.parametrize(
    ("num_classes", "covariance"), [(2, "diagonal"), (3, "diagonal"), (3, "cholesky")]
)
def test_a_network_with_a_spread_starts_as_one_without(num_classes, covariance):
    images = torch.randn(2, 3, 33, 40)
    torch.manual_seed(0)
    plain = EncoderDecoder(num_classes).eval()
    torch.manual_seed(0)
    model = EncoderDecoder(num_classes, covariance=covariance).eval()
    logits = model(images)
    torch.testing.assert_close(logits.softmax(1), plain(images).softmax(1), rtol=1e-4, atol=1e-5)
    mean, spread = gaussian = model.distribution(images)
    assert torch.equal(class_logits(mean), logits)
    assert mean.shape[1] == (1 if num_classes == 2 else num_classes)
    assert spread.shape[1] == {2: 1, 3: 3 if covariance == "diagonal" else 6}[num_classes]
    first = gaussian.variance.flatten()[0]
    torch.testing.assert_close(gaussian.variance, first.expand_as(gaussian.variance))


def gaussian(num_classes: int) -> GaussianLogits:
    mean = 2 * torch.randn(2, num_classes, 4, 5)
    spread = torch.randn(mean.shape)
    return GaussianLogits(mean, spread if num_classes == 1 else spread.exp())


def test_the_loss_of_two_classes():
    torch.manual_seed(0)
    logits = gaussian(1)
    target = torch.randint(0, 2, (2, 16, 20), dtype=torch.uint8)
    target[:, :2] = 255
    bootstrap = torch.tensor([True, False])
    loss = UncertainLabelsLoss(1.0, 4, 255, "bilinear")
    mean, log_variance = (
        F.interpolate(each, size=(16, 20), mode="bilinear")[:, 0].double() for each in logits
    )
    valid = target != 255
    y = torch.where(valid, target, 0).double()

    def bce(z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(z, label, reduction="none")

    variance = log_variance.exp()
    kept = torch.sigmoid((1.0 - variance) / 0.2)
    kept[1] = 1
    each = bce(mean / (1 + torch.pi * variance / 8).sqrt(), y)
    each = each + kept * bce(mean, y) + (1 - kept) * bce(mean, 1 - y)
    expected = each[valid].mean().float()
    torch.testing.assert_close(loss(logits, target, bootstrap), expected, rtol=1e-5, atol=1e-5)
    replaced = loss.replaced_labels(logits, target, bootstrap)
    enlarged = F.interpolate(logits.variance, size=(16, 20), mode="bilinear")[:, 0]
    flips = (enlarged > 1) & valid & bootstrap[:, None, None]
    assert flips.any()
    assert torch.equal(replaced, torch.where(flips, 1 - target, target))


@pytest.mark.parametrize("num_draws", [3, 4])
def test_the_loss_of_more_classes(num_draws):
    torch.manual_seed(0)
    logits = gaussian(3)
    target = torch.randint(0, 3, (2, 16, 20), dtype=torch.uint8)
    target[:, :2] = 255
    bootstrap = torch.tensor([False, True])
    loss = UncertainLabelsLoss(1.0, num_draws, 255, "bilinear")
    torch.manual_seed(5)
    found = loss(logits, target, bootstrap)
    mean, spread, variance = (
        F.interpolate(each, size=(16, 20), mode="bilinear") for each in (*logits, logits.variance)
    )
    replaced = torch.where(variance.amax(1) > 1, mean.argmax(1).byte(), target)
    replaced = torch.where((target != 255) & bootstrap[:, None, None], replaced, target)
    assert torch.equal(loss.replaced_labels(logits, target, bootstrap), replaced)
    assert (replaced != target).any()
    torch.manual_seed(5)
    expected = sf.expected_cross_entropy(
        mean, spread, target, num_draws=num_draws, antithetic=num_draws == 4, ignore_index=255
    )
    expected = expected + F.cross_entropy(mean, replaced.long(), ignore_index=255)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_threshold_is_larger_for_two_classes():
    unsaid = UncertainLabelsLoss(None, 4, 255, "bilinear")
    for num_classes, threshold in ((1, 1.5), (3, 0.35)):
        logits = gaussian(num_classes)
        target = torch.ones(2, 16, 20, dtype=torch.uint8)
        expected = UncertainLabelsLoss(threshold, 4, 255, "bilinear")
        replaced = unsaid.replaced_labels(logits, target)
        assert torch.equal(replaced, expected.replaced_labels(logits, target))
        assert (replaced != target).any()
    assert unsaid.binary.threshold == 1.5


# Training


def settings(**changes: object) -> training.TrainingConfig:
    return config(LOSS, **{"optimizer": "adamw", "num_draws": 2, **changes})


def test_training_lowers_the_loss(boxed):
    without = settings(steps=16, validate_every=16, flip_after=0.999, start_variance=0.1)
    trainer = Trainer(without, boxed, boxed.exact)
    history = trainer.fit(progress=False)
    assert np.mean(history.loss[-4:]) < 0.9 * np.mean(history.loss[:3])


def test_labels_are_replaced_in_images_with_boxes_once_part_of_the_training_is_over(
    boxed, monkeypatch
):
    trainer = Trainer(settings(batch_size=12, steps=3, flip_after=0.5), boxed, boxed.exact)
    batch = next(trainer.batches.iterate(0, 1))
    seen = []
    loss = UncertainLabelsLoss.forward
    monkeypatch.setattr(
        UncertainLabelsLoss, "forward", lambda *each: seen.append(each[1:]) or loss(*each)
    )
    for _ in range(3):
        trainer.train_step(batch)
    (logits, target, _), _, _ = seen
    assert logits.mean.shape == (12, 1, 16, 16)
    assert torch.equal(target, batch.target)
    assert [int(each[-1].sum()) for each in seen] == [0, 0, 9]
    assert torch.equal(seen[-1][-1], batch.bootstrap)


def test_a_resumed_training_equals_one_that_was_not_stopped(tmp_path, val_scenes):
    through = Trainer(settings(), BoxedDataset(InterruptingScenes(), 0.5), val_scenes)
    through.fit(progress=False)
    path = tmp_path / "checkpoint.pt"
    interrupted = Trainer(
        settings(), BoxedDataset(InterruptingScenes(countdown=15), 0.5), val_scenes, path
    )
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(progress=False)
    assert 0 < interrupted.step < 6
    torch.manual_seed(99)
    dataset = BoxedDataset(InterruptingScenes(), 0.5)
    resumed = Trainer(settings(), dataset, val_scenes, path)
    assert resumed.resume()
    resumed.fit(progress=False)
    assert resumed.history.loss == through.history.loss
    (loaded,) = load_members(path)
    expected = through.model.state_dict()
    assert all(torch.equal(each, expected[name]) for name, each in loaded.state_dict().items())
    assert loaded.state_dict().keys() == expected.keys()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), through.model.eval()(images))
    for other in (BoxedDataset(InterruptingScenes(), 0.25), InterruptingScenes()):
        with pytest.raises(CheckpointError, match="trained with other training data: boxes"):
            Trainer(settings(), other, val_scenes, path).resume()
    with pytest.raises(CheckpointError, match=r"trained with flip_threshold = .*, not 9\.0"):
        Trainer(settings(flip_threshold=9.0), dataset, val_scenes, path).resume()


def test_what_became_of_labels(boxed):
    trainer = Trainer(settings(flip_threshold=0.9), boxed, boxed.exact)
    with torch.no_grad():
        trainer.model.decoder.head.spread.weight.normal_(std=0.3)
    found = label_correction.measure_correction(trainer, boxed)
    trainer.model.eval()
    given, exact, replaced = [], [], []
    for index in np.flatnonzero(boxed.bootstrap):
        (batch,) = evaluation_batches([boxed[index]], 1)
        logits = trainer.model.distribution((batch.images - 115.0) / 60)
        labels = trainer.criterion.replaced_labels(logits, batch.target)
        counts = boxed.exact.label(index) != 255
        exact.append(boxed.exact.label(index)[counts])
        given.append(boxed.label(index)[counts])
        replaced.append(labels[0].numpy()[counts])
    given, exact, replaced = (np.concatenate(each) for each in (given, exact, replaced))
    wrong = given != exact
    assert found.num_images == 9
    assert found.wrong == pytest.approx(wrong.mean())
    assert found.corrected == pytest.approx((replaced == exact)[wrong].mean())
    assert found.made_wrong == pytest.approx((replaced != exact)[~wrong].mean())

    def miou(labels: np.ndarray) -> float:
        shares = [
            ((labels == c) & (exact == c)).sum() / ((labels == c) | (exact == c)).sum()
            for c in range(2)
        ]
        return float(np.mean(shares))

    assert found.label_miou == pytest.approx(miou(given))
    assert found.replaced_miou == pytest.approx(miou(replaced))
    assert 0 < found.corrected < 1
    exact_ones = BoxedDataset(boxed.exact, 1.0)
    none = label_correction.measure_correction(trainer, exact_ones)
    assert none.num_images == 0
    assert none.wrong is none.label_miou is None
    assert label_correction.most_wrong_images(exact_ones, 4) == []


# The command


def command(root: Path, *options: object) -> list[str]:
    every = ["train", "--data", root, "--ignore-index", 11, "--steps", 2, "--batch-size", 2]
    every += ["--crop", 32, 32, "--samples", 2, "--output", root / "runs", "--loss"]
    return [*map(str, [*every, *options])]


def test_command_trains_one_class_on_boxes(root, capsys):
    run = command(root, "ce", LOSS, "--exact", 0.2, "--class", "b", "--class-names", *"abc")
    assert exit_code(run) == 0
    shown = capsys.readouterr()
    assert "2 classes, 6 training and 2 validation images" in shown.err
    for text in (
        "| other ",
        "| b  ",
        "| IoU CE | IoU label uncertainty",
        "but on exact labels of 20 %",
    ):
        assert text in shown.out
    assert "| labels of 5 training images with boxes | boxes | replaced by label" in shown.out
    folder = root / "runs" / "train"
    assert (folder / f"labels-{LOSS}.png").exists()
    record = json.loads((folder / "table.json").read_text())["results"]
    assert record["ce"]["config"]["exact"] == 0.2
    assert "labels" not in record["ce"]
    assert record[LOSS]["labels"]["num_images"] == 5
    assert 0 < record[LOSS]["labels"]["wrong"] < 1

    assert exit_code([*run, "--resume"]) == 0
    capsys.readouterr()
    assert exit_code([*run, "--resume", "--exact", "0.6"]) == 2
    assert "trained with other training data: boxes but for 0.2" in capsys.readouterr().err
    assert exit_code([*run, "--resume", "--class", "c"]) == 2
    assert "with class 1 called 'b', not 'c'" in capsys.readouterr().err

    # The networks know two classes, and how to find them in the label maps.
    checkpoint = str(folder / f"checkpoint-{LOSS}.pt")
    evaluate = ["eval", checkpoint, "--data", str(root), "--samples", "2"]
    assert exit_code([*evaluate, "--output", str(root / "evaluated")]) == 0
    shown = capsys.readouterr()
    assert "labels are read as in training, with --map 1:1 rest:0" in shown.err
    assert "| b  " in shown.out
    images = ["predict", checkpoint, str(root / "val"), "--output", str(root / "maps")]
    assert exit_code([*images, "--samples", "2"]) == 0


def test_command_trains_several_classes_on_boxes(root, capsys):
    run = command(root, LOSS, "--exact", 0, "--name", "several", "--covariance", "cholesky")
    run += ["--num-draws", "2", "--background", "0", "--seed", "3"]
    assert exit_code(run) == 0
    assert "| labels of 6 training images" in capsys.readouterr().out
    checkpoint = root / "runs" / "several" / f"checkpoint-{LOSS}.pt"
    state = training.read_checkpoint(checkpoint)
    contents = state["data"]["training"]["contents"]
    assert contents["boxes"] == "but for 0 of the images, seed 3, none of classes (0,)"
    assert state["model"]["decoder.head.spread.weight"].shape[0] == 6


def test_command_learns_which_labels_are_uncertain_without_boxes(root, capsys):
    assert exit_code(command(root, LOSS, "--num-draws", 1, "--name", "labels")) == 0
    shown = capsys.readouterr()
    assert "labels of" not in shown.out
    assert (root / "runs" / "labels" / f"labels-{LOSS}.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exact", 1.5], "argument --exact: expected a number in [0, 1], got 1.5"),
        (["--exact", "nan"], "argument --exact: expected a number in"),
        (["--exact", "half"], "argument --exact: expected a number, got 'half'"),
        (["--class", "b"], "argument --class: 'b' is no class (pass --class-names, or its number)"),
        (["--class", "d", "--class-names", *"abc"], "--class: 'd' is no class (a, b, c)"),
        (["--class", 3, "--class-names", *"abc"], "--class: '3' is no class (a, b, c)"),
        (["--class", 5, "--map", "0:0", "1:1", "2:2"], "argument --class: '5' is no class"),
        (["--background", 0], "argument --background: expected --exact"),
        (["--exact", 0.5, "--background", "sky"], "argument --background: 'sky' is no class"),
        (["--exact", 0.5, "--background", 0, 1, 2], "leaves no class that has boxes"),
        (["--class", 1, "--covariance", "cholesky"], "--covariance: expected more than two"),
        (["--num-draws", 0], "argument --num-draws: expected at least 1, got 0"),
        (["--classes", 1, "--map", "0:0", "rest:11"], "expected at least 2 classes, got 1"),
    ],
)
def test_command_names_a_wrong_argument(root, capsys, options, message):
    assert exit_code(command(root, LOSS, *options, "--name", "wrong")) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (root / "runs" / "wrong").exists()


@pytest.mark.thorough
def test_demo_has_boxes_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.scenes, "SIZE", SIZE)
    monkeypatch.setattr(cli.scenes, "VALIDATION_SCENES", 4)
    monkeypatch.setattr(cli.scenes, "REFERENCE_SCENES", 2)
    demo = ["demo", "--scenes", "10", "--loss", LOSS, "--samples", "2", "--batch-size", "2"]
    demo += ["--crop", "32", "32", "--output", str(tmp_path)]
    assert exit_code([*demo, "--steps", "4"]) == 0
    shown = capsys.readouterr().out
    assert "| IoU CE | IoU label uncertainty" in shown
    assert "\n2 steps of 2 crops" in shown
    folder = tmp_path / "demo" / "boxes"
    assert f"Written to {folder}: table.md" in shown
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["boxes"]
    assert exit_code([*demo, "--resume"]) == 0
    assert "extended" not in capsys.readouterr().out
    checkpoint = str(folder / f"checkpoint-{LOSS}.pt")
    assert exit_code(["eval", checkpoint, "--samples", "2"]) == 0
    assert "| tree " in capsys.readouterr().out


def test_masks_are_of_exact_labels(root, capsys):
    run = command(root, "iu", "--exact", 0.5, "--masks", root / "masks", "--name", "masked")
    assert exit_code(run) == 2
    assert "argument --masks: not with --exact" in capsys.readouterr().err


def test_folders_of_boxes(root):
    dataset = dataset_of(root)
    boxed = BoxedDataset(dataset, 0.0)
    label = dataset.label(2)
    expected = sf.boxes_from_masks(label[None], background=None, ignore_index=11)[0]
    assert np.array_equal(boxed.label(2), expected)
    assert np.array_equal(boxed[2].label, expected)
