"""The examples run, and learn."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from python_tests.importable_trainers import import_mmseg
from segunc_ops import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
LOSSES = {
    "CE": CrossEntropyLoss,
    "IU": InstanceUncertaintyCrossEntropyLoss,
    "PAT": PixelAdaptiveCrossEntropyLoss,
    "Dice + CE": DiceCrossEntropyLoss.monai,
}


def test_the_plain_pytorch_example_learns(capsys):
    losses = runpy.run_path(str(EXAMPLES / "plain_pytorch.py"))["train"](steps=20)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert "step" in capsys.readouterr().out


def test_the_cascade_of_the_example_gains_by_few_blocks(capsys):
    rows = runpy.run_path(str(EXAMPLES / "model_selection.py"))["compare"](steps=40)
    (_, fast, none), *between, (_, _, all_blocks) = rows
    assert (none, all_blocks) == (0, 9)
    assert any(right > fast + 0.03 and blocks < 5 for _, right, blocks in between)
    assert "blocks" in capsys.readouterr().out


def test_the_example_of_box_labels_learns(capsys):
    losses = runpy.run_path(str(EXAMPLES / "box_labels.py"))["train"](epochs=2)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert "IoU of other discs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "loss",
    [None, *(pytest.param(name, marks=pytest.mark.thorough) for name in LOSSES)],
)
def test_the_example_of_transformers_trains_by_any_loss(loss, capsys):
    pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    train = runpy.run_path(str(EXAMPLES / "huggingface_trainer.py"))["train"]
    options = {"ignore_index": 255, "upsample": "bilinear"}
    criterion = None if loss is None else LOSSES[loss](**options)
    result = train(criterion, steps=6, size=(32, 48), scenes=8)
    first, *_, last = map(float, result["losses"])
    assert last < first
    assert 0 < result["eval_mean_iou"] < 1
    assert "train_loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    "loss", [None, *(pytest.param(name, marks=pytest.mark.thorough) for name in LOSSES)]
)
def test_the_example_of_smp_trains_by_any_loss(loss):
    pytest.importorskip("segmentation_models_pytorch", reason="needs segmentation_models_pytorch")
    train = runpy.run_path(str(EXAMPLES / "smp_trainer.py"))["train"]
    options = {"ignore_index": 255, "upsample": "bilinear", "align_corners": True}
    criterion = None if loss is None else LOSSES[loss](**options)
    losses, mean_iou = train(criterion, steps=6, size=(32, 64), length=8)
    assert losses[-1] < losses[0]
    assert 0 < mean_iou < 1


@pytest.mark.parametrize(
    "loss", [None, *(pytest.param(name, marks=pytest.mark.thorough) for name in LOSSES)]
)
def test_the_example_of_torchvision_trains_by_any_loss(loss, capsys):
    pytest.importorskip("torchvision", reason="needs torchvision")
    train = runpy.run_path(str(EXAMPLES / "torchvision_trainer.py"))["train"]
    options = {"ignore_index": 255, "upsample": "bilinear"}
    criterion = None if loss is None else LOSSES[loss](**options)
    losses, mean_iou = train(criterion, epochs=3, size=(32, 64), length=8)
    assert min(losses[-2:]) < losses[0]
    assert 0 < mean_iou < 1
    assert "epoch 2" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*instance named of:UserWarning")  # within a second
@pytest.mark.parametrize(
    "criterion",
    [
        "UncertaintyAwareCrossEntropyLoss",
        *(
            pytest.param(name, marks=pytest.mark.thorough)
            for name in ("CrossEntropyLoss", "DiceCrossEntropyLoss.monai")
        ),
    ],
)
def test_the_example_of_mmsegmentation_trains_by_any_loss(criterion):
    import_mmseg()
    train = runpy.run_path(str(EXAMPLES / "mmseg_trainer.py"))["train"]
    losses, mean_iou = train(criterion, steps=6, size=(32, 64), length=8)
    assert losses[-1] < losses[0]
    assert 0 < mean_iou < 100


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_torch_uncertainty_trains():
    pytest.importorskip("torch_uncertainty", reason="needs torch_uncertainty")
    train = runpy.run_path(str(EXAMPLES / "torch_uncertainty_trainer.py"))["train"]
    result = train(epochs=1, size=(32, 48), scenes=8)
    assert 0 < result["test/seg/mIoU"] < 1
    assert 0 <= result["test/cal/ECE"] <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["nnUNetTrainerUCE", "nnUNetTrainerFused"])
def test_the_example_of_nnunet_trains(name, monkeypatch):
    pytest.importorskip("nnunetv2", reason="needs nnunetv2")
    for variable in ("raw", "preprocessed", "results", "n_proc_DA"):
        monkeypatch.setenv(f"nnUNet_{variable}", "0")  # the example sets them for good
    train = runpy.run_path(str(EXAMPLES / "nnunet_trainer.py"))["train"]
    result = train(name, epochs=2, steps=3, size=(32, 48), scenes=8)
    assert result["losses"][1] < result["losses"][0]
    assert all(0 < dice < 1 for dice in result["dice"])


@pytest.mark.parametrize(
    "loss", [None, *(pytest.param(name, marks=pytest.mark.thorough) for name in LOSSES)]
)
def test_the_example_of_monai_trains_by_any_loss(loss, capsys):
    pytest.importorskip("monai", reason="needs MONAI")
    pytest.importorskip("ignite", reason="needs pytorch-ignite")
    train = runpy.run_path(str(EXAMPLES / "monai_trainer.py"))["train"]
    criterion = None if loss is None else LOSSES[loss](ignore_index=255)
    losses, mean_iou = train(criterion, epochs=3, size=(32, 64), length=8)
    assert min(losses[-2:]) < losses[0]
    assert 0 < mean_iou < 1
    assert "epoch 3" in capsys.readouterr().out
