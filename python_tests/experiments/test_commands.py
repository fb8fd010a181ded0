"""Experiments and the command line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.experiments.cases import InterruptingScenes, config, exit_code
from segunc_ops import cli, experiments
from segunc_ops.experiments import scenes
from segunc_ops.experiments.experiment import Experiment, run
from segunc_ops.experiments.training import CheckpointError, Trainer, read_checkpoint

MASKS = ["masks", "--data", "data", "--members", "a.pt", "--output", "masks"]


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
    train = InterruptingScenes(countdown=20)
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
    # The number of steps is the run's unless it is told; more extend it.
    place = arguments.index("--epochs")
    unsaid = [*arguments[:place], *arguments[place + 2 :], "--resume"]
    assert cli.main(unsaid) == 0
    again = capsys.readouterr().out
    assert again.split("| time on")[0] == first.split("| time on")[0]
    assert cli.main([*unsaid, "--steps", "5"]) == 0
    shown = capsys.readouterr().out
    assert "5 steps of 2 crops" in shown
    assert "U-CE: extended from 4 steps at step 4." in shown
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_command_trains_by_dice(folder, capsys):
    command = ["train", "--data", str(folder), "--ignore-index", "11", "--loss", "dice"]
    command += ["--steps", "2", "--batch-size", "2", "--crop", "32", "32", "--samples", "2"]
    command += ["--output", str(folder / "runs"), "--optimizer", "adamw"]
    options = ["--ce-weight", "0.5", "--dice-weight", "2", "--batch-dice"]
    assert exit_code([*command, *options, "--no-include-background"]) == 0
    shown = capsys.readouterr()
    assert "| Dice + CE forward + backward" in shown.out
    assert "3 classes, 4 training and 2 validation images in" in shown.err
    trained = read_checkpoint(folder / "runs" / "train" / "checkpoint-dice.pt")["config"]
    names = ("ce_weight", "dice_weight", "batch_dice", "include_background", "learning_rate")
    assert [trained[name] for name in names] == [0.5, 2.0, True, False, 0.004]
    assert exit_code([*command, *options, "--resume"]) == 2
    assert "trained with include_background = False, not True" in capsys.readouterr().err
    one = ["--map", "0:0", "1:0", "2:0", "rest:11", "--classes", "1"]
    assert exit_code([*command, *one]) == 2
    assert "argument --loss: dice expected at least 2 classes, got 1" in capsys.readouterr().err


def test_demo_compares_losses_for_rare_classes():
    arguments = cli.build_parser().parse_args(["demo"])
    losses = ["ce", "uce", "iu", "pat", "focal", "ldam", "dice", "label-uncertainty"]
    assert arguments.loss == losses
    assert (arguments.optimizer, arguments.dropout_at) == ("adamw", "decoder")


def test_a_checkpoint_is_read_once_to_be_resumed(folder, monkeypatch):
    run = ["train", "--data", str(folder), "--ignore-index", "11", "--loss", "ce", "uce"]
    run += ["--batch-size", "2", "--crop", "32", "32", "--samples", "2"]
    run += ["--output", str(folder / "runs")]
    assert cli.main([*run, "--steps", "1"]) == 0
    reads = []
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda path, **rest: reads.append(path) or load(path, **rest)
    )
    assert cli.main([*run, "--resume"]) == 0
    assert [path.name for path in reads] == ["checkpoint-ce.pt", "checkpoint-uce.pt"]


def test_a_run_keeps_its_steps_where_another_has_more(folder, capsys):
    arguments = ["train", "--data", str(folder), "--ignore-index", "11", "--batch-size", "2"]
    arguments += ["--crop", "32", "48", "--samples", "2", "--output", str(folder / "runs")]
    for loss, steps in (("ce", "1"), ("uce", "2")):
        assert exit_code([*arguments, "--loss", loss, "--steps", steps]) == 0
    assert exit_code([*arguments, "--loss", "ce", "uce", "--resume"]) == 2
    shown = capsys.readouterr().err
    assert "different numbers of steps (checkpoint-ce.pt 1, checkpoint-uce.pt 2)" in shown
    assert exit_code([*arguments, "--loss", "ce", "--resume"]) == 0
    assert "extended" not in capsys.readouterr().out


@pytest.mark.thorough
def test_a_training_that_is_killed_goes_on_as_if_it_had_not_been(folder):
    """By SIGKILL, at any moment: also while a checkpoint is written."""
    command = [sys.executable, "-m", "segunc_ops.cli", "train", "--data", str(folder)]
    command += ["--ignore-index", "11", "--loss", "ce", "--steps", "60", "--batch-size", "2"]
    command += ["--crop", "32", "32", "--samples", "2", "--output", str(folder / "runs")]
    subprocess.run([*command, "--name", "whole"], check=True, capture_output=True)
    checkpoint = folder / "runs" / "killed" / "checkpoint-ce.pt"
    command += ["--name", "killed", "--resume"]
    seen: set[int] = set()
    for kill in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None:
            written = list(checkpoint.parent.glob(".*")) if checkpoint.parent.exists() else []
            fresh = checkpoint.exists() and checkpoint.stat().st_mtime_ns != before
            # In turn while a checkpoint is being written and some time after one was.
            if written if kill % 2 else fresh:
                time.sleep(0.0 if kill % 2 else 0.03 * kill)
                process.kill()
                break
        process.wait()
        if checkpoint.exists():
            seen.add(read_checkpoint(checkpoint)["step"])
    assert len(seen) > 1
    subprocess.run(command, check=True, capture_output=True)
    whole, killed = (
        read_checkpoint(folder / "runs" / name / "checkpoint-ce.pt") for name in ("whole", "killed")
    )
    for name, weights in whole["model"].items():
        assert torch.equal(weights, killed["model"][name]), name
    assert not [path for path in checkpoint.parent.iterdir() if path.name.startswith(".")]


def test_a_command_whose_streams_are_closed_runs(folder):
    command = [sys.executable, "-m", "segunc_ops.cli", "train", "--data", str(folder)]
    command += ["--ignore-index", "11", "--loss", "ce", "--steps", "1", "--batch-size", "2"]
    command += ["--crop", "32", "32", "--samples", "2", "--output", str(folder / "runs")]
    shell = subprocess.run(["sh", "-c", f"{shlex.join(command)} 2>&- >&-"], timeout=300)
    assert shell.returncode == 0
    assert (folder / "runs" / "train" / "table.md").exists()


def test_no_loss_trains_when_the_run_of_another_cannot_go_on(tmp_path, train_scenes, val_scenes):
    experiment = Experiment(
        config=config(samples=3),
        losses=("ce", "uce"),
        train=train_scenes,
        validation=val_scenes,
        folder=tmp_path,
        resume=True,
        progress=False,
    )
    other = config("uce", samples=4)
    Trainer(other, train_scenes, val_scenes, experiment.checkpoint("uce")).save()
    with pytest.raises(CheckpointError, match=r"checkpoint-uce\.pt: was trained with samples = 4"):
        run(experiment)
    assert not experiment.checkpoint("ce").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["demo", "--samples", "1"], "--samples"),
        (["demo", "--steps", "0"], "--steps"),
        (["demo", "--steps", "5", "--epochs", "1"], "--epochs"),
        (["demo", "--loss", "lovasz"], "--loss"),
        (["demo", "--crop", "64"], "--crop"),
        (["demo", "--scale", "2", "1"], "--scale"),
        (["demo", "--device", "toaster"], "--device"),
        (["demo", "--device", "cuda:99"], "--device"),
        (["demo", "--amp", "fp16"], "--amp"),
        (["demo", "--dropout", "1.5"], "--dropout"),
        (["demo", "--dropout-at", "head"], "--dropout-at"),
        (["demo", "--optimizer", "lion"], "--optimizer"),
        (["demo", "--scenes", "0"], "--scenes"),
        (["demo", "--alpha", "nan"], "--alpha"),
        (["demo", "--name", "../elsewhere"], "--name"),
        (["demo", "--seed", str(1 << 70)], "--seed: expected at most"),
        (["demo", "--scale", "1e9", "1e9"], "--scale"),
        (
            ["train", "--data", ".", "--ignore-index", str(1 << 40)],
            "--ignore-index: expected at",
        ),
        (["train", "--data", ".", "--classes", "65536"], "--classes: expected at most 16384"),
        (
            ["train", "--data", ".", "--map", "0:0", "1:70000"],
            "--map: expected classes below",
        ),
        (["train", "--data", ".", "--resume", "--overwrite"], "--overwrite: not with --resume"),
        (["train"], "--data"),
        (["train", "--data", "no/such/folder"], "--data"),
        (["train", "--data", ".", "--classes", "3", "--class-names", "a"], "--class-names"),
        (["predict"], "CHECKPOINT, IMAGES, --output"),
        (["predict", "a.pt", "no/such/file", "--output", "maps"], "IMAGES"),
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
    assert "pip install 'segunc_ops[experiments]'" in message


def test_command_ends_quietly_at_ctrl_c(capsys, monkeypatch):
    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    for room, work, command, advice in (
        (cli.demo, "_demo", ["demo"], "the same command with --resume continues"),
        (cli.stats, "_stats", ["stats", "data"], "the same command starts again"),
        (cli.masks, "_masks", MASKS, "the same command continues"),
    ):
        monkeypatch.setattr(room, work, interrupt)
        assert cli.main(command) == 130
        assert f"interrupted; {advice}" in capsys.readouterr().err


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_command_tells_what_ended_it(capsys, monkeypatch, signum, status):
    closed = []

    def end(arguments: object) -> int:
        try:
            os.kill(os.getpid(), signum)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # which does not disturb the closing
            closed.append(True)
        return 0

    monkeypatch.setattr(cli.demo, "_demo", end)
    before = signal.getsignal(signum)
    assert cli.main(["demo"]) == status
    assert closed
    assert signal.getsignal(signum) == before
    assert "continues" in capsys.readouterr().err


def test_command_info_lists_the_build(capsys):
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    for name in ("version", "torch", "cpu", "cuda"):
        assert f"{name}:" in shown
