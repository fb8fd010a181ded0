"""Evaluation of trained networks, and ``segunc eval``."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.experiments.cases import (
    CPU,
    IGNORED,
    SIZE,
    dataset_of,
    exit_code,
    train_member,
    write_images,
    write_pair,
)
from segunc_ops import PixelAdaptiveCrossEntropyLoss, PredictiveStatistics, cli, metrics
from segunc_ops.experiments import evaluation, experiment, plots
from segunc_ops.experiments.datasets import EvenlySpaced, SceneDataset, collate, normalize
from segunc_ops.experiments.models import EncoderDecoder
from segunc_ops.experiments.training import History, Trainer, TrainingConfig, load_members


@pytest.fixture(scope="module")
def train_scenes() -> SceneDataset:
    return SceneDataset(9, seed=0, size=SIZE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 6)


@pytest.fixture(scope="module")
def checkpoints(root: Path) -> list[Path]:
    """Two networks that were trained alone, and two together."""
    return [train_member(root, 0), train_member(root, 1), train_member(root, 2, loss="iu")]


# evaluate


def predict(images: Tensor) -> PredictiveStatistics:
    """Pixel by pixel, whatever the batch."""
    projection = torch.randn((4, 11, 3), generator=torch.Generator().manual_seed(0))
    samples = torch.einsum("sck,nkhw->snchw", projection, images)
    return sf.predictive_statistics(samples, return_mean=True)


def test_evaluation_holds_every_metric_of_every_pixel(val_scenes, train_scenes):
    done: list[int] = []
    result, counted = evaluation.evaluate(
        predict,
        val_scenes,
        device=CPU,
        num_samples=4,
        reference=train_scenes,
        batch_size=2,
        progress=done.append,
    )
    assert sum(done) == len(val_scenes) + len(train_scenes)

    def statistics_of(dataset: SceneDataset) -> tuple[PredictiveStatistics, Tensor]:
        images, target, *_ = collate([dataset[index] for index in range(len(dataset))])
        return predict(normalize(images, CPU, False)), target

    maps, target = statistics_of(train_scenes)
    threshold = maps.std[target != 255].double().mean()
    assert result.uncertainty_threshold == pytest.approx(float(threshold), abs=1e-6)

    maps, target = statistics_of(val_scenes)
    options = {"ignore_index": 255}
    assert maps.mean is not None
    for name, metric in {
        "mean_iou": metrics.MeanIoU(11, **options),
        "pixel_accuracy": metrics.PixelAccuracy(11, **options),
        "dice_error": metrics.DiceError(11, **options),
        "calibration_error": metrics.ExpectedCalibrationError(11, **options),
        "brier_score": metrics.BrierScore(11, **options),
        "negative_log_likelihood": metrics.NegativeLogLikelihood(11, **options),
        "pavpu": metrics.PAvPU(11, threshold=result.uncertainty_threshold, **options),
        "error_auroc": metrics.ErrorDetectionAUROC(11, **options),
    }.items():
        metric.update(maps, target)
        assert getattr(result, name) == float(metric.compute()), name
    curve = metrics.RiskCoverage(11, **options)
    curve.update(maps, target)
    assert result.aurc == float(curve.compute().area)
    by_class = metrics.ClassUncertainty(11, **options)
    by_class.update(maps, target)
    for mine, expected in zip(result.class_uncertainty, by_class.compute().tolist(), strict=True):
        assert math.isnan(expected) if mine is None else mine == expected
    assert result.num_pixels == int((target != 255).sum()) == int(counted.confusion.sum())
    assert result.num_samples == 4


def test_evaluation_leaves_the_random_state_alone(val_scenes):
    predict = evaluation.predict_by_dropout(EncoderDecoder(11), 2)
    before = torch.get_rng_state()
    results = [
        evaluation.evaluate(predict, val_scenes, device=CPU, num_samples=2, seed=seed)[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1] != results[2]
    assert results[0].pavpu is None


def test_evenly_spaced_images(train_scenes):
    few = EvenlySpaced(train_scenes, 3)
    assert len(few) == 3
    for place, index in enumerate((0, 4, 8)):
        np.testing.assert_array_equal(few[place].label, train_scenes[index].label)
        np.testing.assert_array_equal(few.label(place), train_scenes.label(index))
    assert len(EvenlySpaced(train_scenes, 100)) == len(train_scenes)
    assert few.class_names == train_scenes.class_names
    assert few.ignore_index == train_scenes.ignore_index


@pytest.mark.parametrize("curve", ["equation", "table"])
@pytest.mark.parametrize("size_normalized", [True, False])
def test_weights_are_those_that_pat_multiplies_cross_entropy_by(curve, size_normalized):
    torch.manual_seed(0)
    probabilities = torch.randn(2, 4, 9, 13).mul(2).softmax(1)
    target = torch.randint(0, 3, (2, 9, 13))
    target[0, 0, 0], target[1, :3] = 3, 255
    loss = PixelAdaptiveCrossEntropyLoss(
        0.5, curve=curve, size_normalized=size_normalized, ignore_index=255, reduction="none"
    )
    weights = experiment.adaptive_weights(loss.modulation, probabilities, target, 255)
    logits, labelled = probabilities.log(), target != 255
    plain = torch.nn.functional.cross_entropy(logits, target, ignore_index=255, reduction="none")
    factor = loss(logits, target) / plain
    if size_normalized:
        factor *= labelled.sum((1, 2))[:, None, None]
    torch.testing.assert_close(weights[labelled], factor[labelled], rtol=1e-4, atol=1e-6)
    assert weights[~labelled].isnan().all()
    if size_normalized:  # every class of an image weighs alike, but for the factor by probability
        shares = [weights[0][target[0] == c].sum() for c in range(4)]
        assert max(shares) < 8 * min(shares)


def test_panels_of_pat_show_its_weights(tmp_path, val_scenes):
    modulation = PixelAdaptiveCrossEntropyLoss().modulation
    predict = evaluation.predict_by_dropout(EncoderDecoder(11), 2)
    sizes = []
    for given in (None, modulation):
        panels = experiment.make_panels(predict, val_scenes, device=CPU, modulation=given)
        assert all((panel.weight is None) == (given is None) for panel in panels)
        path = tmp_path / "panels.png"
        plots.plot_panels(panels, val_scenes.class_names, path, ignore_index=255)
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > 1.1 * sizes[0][0]
    assert sizes[1][1] == sizes[0][1]
    blank = [panel._replace(weight=np.full_like(panel.uncertainty, np.nan)) for panel in panels]
    plots.plot_panels(blank, val_scenes.class_names, path, ignore_index=255)


def test_panels_show_the_components_of_the_labels(val_scenes):
    seen: list[PredictiveStatistics] = []

    def recorded(images: Tensor) -> PredictiveStatistics:
        seen.append(predict(images))
        return seen[-1]

    panels = experiment.make_panels(recorded, val_scenes, device=CPU)
    assert len(panels) == experiment.NUM_PANELS
    for panel, maps in zip(panels, seen, strict=True):
        label = torch.from_numpy(panel.label)[None]
        components, _ = sf.connected_components(label, ignore_index=255)
        means = sf.component_mean(maps.entropy, label, ignore_index=255)
        np.testing.assert_array_equal(panel.components, components[0].numpy())
        np.testing.assert_array_equal(panel.instance_uncertainty, means[0].numpy())
        assert len(np.unique(panel.components)) > 3


# segunc eval


def evaluate_command(root: Path, *arguments: object) -> dict[str, object]:
    output = root / "evaluated"
    shutil.rmtree(output, ignore_errors=True)
    data = ["--data", root, "--ignore-index", IGNORED, "--output", output]
    assert cli.main(["eval", *map(str, [*arguments, *data])]) == 0
    names = {path.name for path in output.iterdir()}
    assert names == {"metrics.md", "metrics.json", "curves.png", "panels.png"}
    for picture in output.glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 10
    record = json.loads((output / "metrics.json").read_text())
    return record["evaluation"]


def test_command_evaluates_a_network(root, checkpoints, capsys):
    found = evaluate_command(root, checkpoints[0], "--samples", 3)
    dataset = dataset_of(root, "val")
    expected, _ = evaluation.evaluate(
        evaluation.predict_by_dropout(load_members(checkpoints[0])[0], 3),
        dataset,
        device=CPU,
        num_samples=3,
        reference=dataset_of(root, "train"),
    )
    assert found == json.loads(json.dumps(expected.to_dict()))
    table = (root / "evaluated" / "metrics.md").read_text()
    assert table in capsys.readouterr().out
    for title in ("mIoU", "PAvPU", "ECE", "Brier", "AUROC", "risk-coverage", "class 0"):
        assert title in table
    again = evaluate_command(
        root, checkpoints[0], "--samples", 3, "--threshold", found["uncertainty_threshold"]
    )
    assert again == found


def test_command_evaluates_a_network_of_one_class(tmp_path):
    label = np.zeros((45, 61), int)
    label[:9] = IGNORED
    for split in ("train", "val"):
        write_pair(tmp_path, split, "000", label)
    found = evaluate_command(tmp_path, train_member(tmp_path, 0, num_classes=1), "--samples", 2)
    assert (found["class_names"], found["iou"], found["class_uncertainty"]) == (
        ["class 0"],
        [1.0],
        [0.0],
    )
    assert (found["mean_iou"], found["pixel_accuracy"], found["pavpu"]) == (1, 1, 1)


def test_learning_curves_of_a_loss_of_0(tmp_path):
    """As that of one class is, which has no logarithm."""
    history = History([1, 2], [0.0, 0.0], [1.0, 1.0], [2], [1.0])
    plots.plot_learning_curves({"ce": history}, tmp_path / "curves.png")
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 10


@pytest.mark.parametrize("which", [slice(0, 2), slice(2, 3)], ids=["alone", "together"])
def test_command_evaluates_an_ensemble(root, checkpoints, which):
    found = evaluate_command(root, *checkpoints[which])
    members = [member for path in checkpoints[which] for member in load_members(path)]
    assert found["num_samples"] == len(members)
    dataset = dataset_of(root, "val")
    accurate = labelled = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        with torch.no_grad():
            images = normalize(collate([sample]).images, CPU, False)
            logits = torch.cat([member.eval()(images) for member in members])
            large = F.interpolate(logits, images.shape[2:], mode="bilinear")
            mean = large.softmax(1).mean(0, keepdim=True)
        valid = sample.label != IGNORED
        accurate += int((mean.argmax(1)[0].numpy() == sample.label)[valid].sum())
        labelled += int(valid.sum())
    assert found["num_pixels"] == labelled
    # Two classes whose probabilities agree to the last bits may change places.
    assert found["pixel_accuracy"] == pytest.approx(accurate / labelled, abs=1e-4)


def test_command_without_training_images_has_no_pavpu(root, checkpoints, tmp_path, capsys):
    for name in ("val", "valannot"):
        shutil.copytree(root / name, tmp_path / name)
    found = evaluate_command(tmp_path, checkpoints[0], "--samples", 2)
    assert found["pavpu"] is None
    assert "pass --threshold" in capsys.readouterr().err
    found = evaluate_command(tmp_path, checkpoints[0], "--samples", 2, "--threshold", 0.05)
    assert 0 <= found["pavpu"] <= 1


def test_command_evaluates_on_generated_scenes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.scenes, "TRAINING_SCENES", 4)
    monkeypatch.setattr(cli.scenes, "VALIDATION_SCENES", 4)
    monkeypatch.setattr(cli.scenes, "SIZE", SIZE)
    path = tmp_path / "checkpoint.pt"
    dataset = SceneDataset(4, seed=0, size=SIZE)
    settings = TrainingConfig(loss="ce", steps=1, batch_size=2, crop=(32, 32), validate_every=1)
    Trainer(settings, dataset, dataset, path).fit(progress=False)
    assert cli.main(["eval", str(path), "--samples", "2"]) == 0
    assert "| rider" in capsys.readouterr().out
    assert (tmp_path / "eval" / "panels.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "error: nowhere.pt: no such file"),
        (["{first}", "--data", "nowhere"], "argument --data: .*nowhere"),
        (["{first}"], "argument --data: is missing; .*ce-3-0.pt has other classes"),
        (["{first}", "--data", "{root}", "--ignore-index", "255"], "segunc: error: .*outside 0 to"),
        (["{first}", "--data", "{root}", "--class-names", "a"], "argument --class-names"),
        (
            ["{first}", "{scenes}"],
            "scenes.pt: was trained for 11 classes, .*ce-3-0.pt for 3",
        ),
        (["{first}", "--threshold", "-1"], "argument --threshold"),
        (["{first}", "--samples", "1"], "argument --samples"),
        ([], "CHECKPOINT"),
    ],
)
def test_command_names_a_wrong_argument(root, checkpoints, tmp_path, capsys, arguments, message):
    other = tmp_path / "scenes.pt"
    if "{scenes}" in arguments:
        dataset = SceneDataset(2, seed=0, size=SIZE)
        settings = TrainingConfig(loss="ce", steps=1, batch_size=2, crop=(32, 32), validate_every=1)
        Trainer(settings, dataset, dataset, other).fit(progress=False)
    filled = [each.format(first=checkpoints[0], root=root, scenes=other) for each in arguments]
    code = exit_code(["eval", *filled, "--output", str(tmp_path / "evaluated")])
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search(message, shown)
    assert code == (1 if message.startswith("segunc") else 2)
    assert not (tmp_path / "evaluated").exists()
