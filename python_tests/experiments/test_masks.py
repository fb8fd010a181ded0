"""Uncertainty masks: their files, the command that writes them, and training by them."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from python_tests.components.cases import component_means
from python_tests.experiments.cases import (
    CPU,
    IGNORED,
    InterruptingFolder,
    dataset_of,
    exit_code,
    full_disk,
    train_member,
    write_images,
)
from segunc_ops import cli
from segunc_ops.experiments import datasets, mask_files, masks, output_files, ranks, training
from segunc_ops.experiments.datasets import DatasetError, Sample
from segunc_ops.experiments.layouts import find_split
from segunc_ops.experiments.mask_files import MaskedDataset, MaskRecord, read_mask, write_mask
from segunc_ops.experiments.masks import MaskError, MaskSettings


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module")
def checkpoints(root) -> list[Path]:
    return [train_member(root, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def members(checkpoints) -> dict[str, nn.Module]:
    return masks.load_ensemble(checkpoints)


@pytest.fixture(scope="module")
def written(root, members) -> Path:
    """Masks that nobody may change."""
    folder = root / "masks"
    masks.write_masks(members, dataset_of(root), folder, MaskSettings(), device=CPU)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


RECORD = MaskRecord(("ab" * 32, "cd" * 32), "instance", 3, "target", 8, IGNORED)


# Files


def test_a_mask_file_is_read_as_written_and_by_others(tmp_path):
    values = np.random.default_rng(0).random((7, 9), np.float32)
    path = tmp_path / "a.b.tif"
    write_mask(path, values, RECORD)
    found, record = read_mask(path)
    np.testing.assert_array_equal(found, values)
    assert record == RECORD
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.b.tif"]
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("TIFF", "F")
        np.testing.assert_array_equal(np.asarray(image), values)
    first = path.read_bytes()
    write_mask(path, values, RECORD)
    assert path.read_bytes() == first


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    kept = ["a.tif", ".a.tif", ".b.tif.0123456789abcdef.partial", ".a.tif.partial", "x.partial"]
    for name in [*kept, ".a.tif.0123456789abcdef.partial", ".c.tif.fedcba9876543210.partial"]:
        (tmp_path / name).touch()
    mask_files.remove_partial_masks(tmp_path, {"a", "c"})
    assert {path.name for path in tmp_path.iterdir()} == {*kept}


def spoil(folder: Path, what: str) -> None:
    path = folder / "002.tif"
    values, record = read_mask(path)
    if what == "missing":
        path.unlink()
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif what == "flipped bits":
        data = bytearray(path.read_bytes())
        data[200:210] = bytes(byte ^ 0x55 for byte in data[200:210])
        path.write_bytes(data)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "mode":
        Image.fromarray(values.astype(np.uint8)).save(path)
    elif what in ("nan", "negative"):
        values[3, 4] = np.nan if what == "nan" else -0.5
        write_mask(path, values, record)
    elif what == "size":
        write_mask(path, values[:, 1:], record)
    elif what == "entropy":
        write_mask(path, values, MaskRecord(record.members, "entropy", 3))
    elif what == "members":
        write_mask(path, values, RECORD)
    elif what == "program":
        Image.fromarray(values).save(path)


# What is wrong with one mask, what the dataset says, and what `segunc masks` does about it.
DAMAGES = [
    ("missing", r"002\.tif: no such mask \(1 of 8 images has none\); `segunc masks`", None),
    ("truncated", r"002\.tif: cannot be read as a mask", r"002\.tif: cannot be read"),
    ("flipped bits", r"002\.tif: cannot be read as a mask", r"002\.tif: cannot be read"),
    ("empty", r"002\.tif: cannot be read as a mask", r"002\.tif: cannot be read"),
    ("mode", r"002\.tif: expected a mask of one float32 channel, got mode L", "got mode L; move"),
    ("nan", r"002\.tif: expected finite .* got nan at row 3, column 4", "got nan at"),
    ("negative", r"002\.tif: expected finite .* at least 0, got -0.5 at row 3", "got -0.5 at"),
    (
        "size",
        r"002\.tif: mask is 49 x 33, its image 002\.png 50 x 33",
        r"mask is 49 x 33, its image 50 x 33",
    ),
    ("entropy", r"002\.tif: holds the entropy of each pixel", "made with map entropy, not instan"),
    ("members", r"002\.tif: was not made like 000\.tif \(members abab", "made with members abab"),
    (
        "program",
        r"002\.tif: was not made like 000\.tif \(another program",
        "not written by this pr",
    ),
]


@pytest.mark.parametrize(("what", "message", "refusal"), DAMAGES, ids=[d[0] for d in DAMAGES])
def test_bad_masks_are_named_and_nothing_is_lost(
    root, members, written, tmp_path, capfd, what, message, refusal
):
    folder = tmp_path / "masks"
    shutil.copytree(written, folder)
    spoil(folder, what)
    before = contents(folder)
    dataset = dataset_of(root)
    with pytest.raises(DatasetError, match=message):
        MaskedDataset(dataset, folder).scan()
    arguments = ["train", "--data", str(root), "--ignore-index", "11", "--loss", "iu"]
    arguments += ["--masks", str(folder), "--output", str(tmp_path / "runs")]
    code = exit_code(arguments)
    prefix = {1: "segunc: error: ", 2: "argument --masks: "}[code]
    assert re.search(f"{prefix}.*{message}", capfd.readouterr().err)
    assert code == (2 if what == "missing" else 1)
    assert not (tmp_path / "runs").exists()
    (folder / "004.tif").unlink()
    del before["004.tif"]
    if refusal is not None:
        with pytest.raises(MaskError, match=refusal):
            masks.write_masks(members, dataset, folder, MaskSettings(), device=CPU)
        assert contents(folder) == before
    else:
        count = masks.write_masks(members, dataset, folder, MaskSettings(), device=CPU)
        assert count == (2, 6)
        assert contents(folder) == contents(written)


@pytest.mark.parametrize(
    ("folder", "message"),
    [("train", r"002\.tif: was made with another image"), ("trainannot", r"another label map")],
)
def test_masks_of_other_files_of_the_same_names_are_refused(
    root, members, written, tmp_path, folder, message
):
    other = tmp_path / "other"
    shutil.copytree(root, other)
    path = other / folder / "002.png"
    with Image.open(path) as image:
        changed = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed.save(path)
    dataset = dataset_of(other)
    with pytest.raises(MaskError, match=message):
        masks.write_masks(members, dataset, written, MaskSettings(), device=CPU)
    with pytest.raises(DatasetError, match=message):
        MaskedDataset(dataset, written).scan()


def test_masks_by_the_prediction_know_no_label_map(root, members, tmp_path):
    settings = MaskSettings(components="prediction")
    masks.write_masks(members, dataset_of(root), tmp_path, settings, device=CPU)
    record = read_mask(tmp_path / "002.tif")[1]
    assert record.image is not None
    assert record.labels is None


def test_a_missing_folder_is_named(root, tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        MaskedDataset(dataset_of(root), tmp_path / "nowhere")


# The ensemble


def test_members_are_those_of_all_files_in_any_order(root, checkpoints, members):
    assert len(members) == 3
    assert [*masks.load_ensemble(reversed(checkpoints))] == [*members] == sorted(members)
    assert not any(model.training for model in members.values())
    together = train_member(root, 5, loss="iu")
    assert len(masks.load_ensemble([together, checkpoints[0]])) == 3


def test_members_that_make_no_ensemble_are_refused(root, checkpoints, tmp_path):
    first = checkpoints[0]
    with pytest.raises(
        training.CheckpointError, match=r"ce-3-0\.pt: holds a member that is there already"
    ):
        masks.load_ensemble([first, checkpoints[1], first])
    with pytest.raises(MaskError, match="at least 2 members, got 1"):
        masks.load_ensemble([first])
    with pytest.raises(
        training.CheckpointError, match=r"trained for 4 classes, .*ce-3-0\.pt for 3"
    ):
        masks.load_ensemble([first, train_member(root, 1, num_classes=4)])
    state = torch.load(first, weights_only=True)
    state["config"]["steps"] = 5
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(training.CheckpointError, match=r"half\.pt: .* stopped at step 1 of 5; fin"):
        masks.load_ensemble([first, tmp_path / "half.pt"])
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    for name, why in (("a.pt", "not a checkpoint"), ("b.pt", "no such file"), ("", "be read")):
        with pytest.raises(training.CheckpointError, match=f"{name}: .*{why}") as caught:
            masks.load_ensemble([first, tmp_path / name])
        assert "weights_only" not in str(caught.value)


def test_a_checkpoint_whose_weights_were_changed_is_refused(checkpoints, tmp_path):
    data = bytearray(checkpoints[0].read_bytes())
    data[len(data) // 2] ^= 16
    (tmp_path / "changed.pt").write_bytes(data)
    with pytest.raises(training.CheckpointError, match=r"changed\.pt: .* or damaged"):
        training.read_checkpoint(tmp_path / "changed.pt")


@pytest.mark.parametrize(
    "settings",
    [
        MaskSettings(),
        MaskSettings(connectivity=4),
        MaskSettings(components="prediction"),
        MaskSettings("entropy"),
    ],
    ids=str,
)
def test_masks_hold_what_the_paper_says(root, members, tmp_path, settings):
    dataset = dataset_of(root)
    assert masks.write_masks(members, dataset, tmp_path, settings, device=CPU) == (8, 0)
    for index in range(len(dataset)):
        image, label, *_ = dataset[index]
        input = (torch.tensor(image).permute(2, 0, 1)[None].float() - 115) / 60
        with torch.no_grad():
            logits = [model(input).double() for model in members.values()]
            p = sum(F.interpolate(z, label.shape, mode="bilinear").softmax(1) for z in logits) / 3
        expected = -(p * p.log()).sum(1)
        if settings.kind == "instance":
            labels = torch.tensor(label)[None].long()
            # SciPy's helper leaves out one label, which no prediction has.
            labels[labels == IGNORED] = 255
            if settings.components == "prediction":
                labels = p.argmax(1)
            expected = component_means(expected, labels, settings.connectivity)
        found, record = read_mask(tmp_path / f"{index:03}.tif")
        np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-4, atol=1e-6)
        assert record.members == tuple(members)
        assert record.map == settings.kind


def test_threads_workers_and_ranks_give_the_same_files(root, members, written, tmp_path):
    dataset, before = dataset_of(root), torch.get_num_threads()
    for number, (threads, workers, size) in enumerate([(1, 1, 1), (2, 3, 1), (2, 1, 2), (1, 2, 3)]):
        torch.set_num_threads(threads)
        folder = tmp_path / str(number)
        for rank in range(size):
            count = masks.write_masks(
                members,
                dataset,
                folder,
                MaskSettings(),
                device=CPU,
                workers=workers,
                ranks=ranks.Ranks(rank, size),
            )
            assert count == (len(range(rank, 8, size)), 0)
        assert torch.get_num_threads() == threads
        assert contents(folder) == contents(written)
    torch.set_num_threads(before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_whole_masks_to_go_on_from(root, members, written, tmp_path, signum):
    folder = tmp_path / "masks"
    split = find_split(root, "train")
    dataset = InterruptingFolder(*split, num_classes=3, ignore_index=IGNORED)
    dataset.countdown, dataset.signum = 3, signum
    with pytest.raises(KeyboardInterrupt):
        masks.write_masks(members, dataset, folder, MaskSettings(), device=CPU)
    some = contents(folder)
    assert 0 < len(some) < 8
    assert some.items() <= contents(written).items()
    count = masks.write_masks(members, dataset, folder, MaskSettings(), device=CPU)
    assert count == (8 - len(some), len(some))
    assert contents(folder) == contents(written)


def test_masks_never_mix_with_the_images(root, members):
    before = contents(root / "train")
    with pytest.raises(MaskError, match="train: lies within the images"):
        masks.write_masks(members, dataset_of(root), root / "train", MaskSettings(), device=CPU)
    assert contents(root / "train") == before


def test_members_that_diverged_write_nothing(root, members, tmp_path):
    weights = [torch.full_like(p, torch.nan) for p in next(iter(members.values())).parameters()]
    broken = masks.load_ensemble(sorted(root.glob("ce-3-*.pt")))
    for parameter, nan in zip(next(iter(broken.values())).parameters(), weights, strict=True):
        parameter.data.copy_(nan)
    with pytest.raises(MaskError, match=r"\.png: the members give no finite uncertainty"):
        masks.write_masks(broken, dataset_of(root), tmp_path / "m", MaskSettings(), device=CPU)
    assert not contents(tmp_path / "m")


def arguments_of(root: Path, checkpoints: list[Path], folder: Path) -> list[str]:
    arguments = ["masks", "--data", str(root), "--ignore-index", str(IGNORED)]
    return [*arguments, "--members", *map(str, checkpoints), "--output", str(folder)]


def test_a_disk_that_fills_up_keeps_what_is_complete(
    root, checkpoints, tmp_path, capsys, monkeypatch
):
    arguments = [*arguments_of(root, checkpoints, tmp_path / "masks"), "--values", "entropy"]
    monkeypatch.setattr(output_files, "_TRIAL_BYTES", 1)
    with full_disk(free=20_000):  # the first mask fits, the second does not
        assert cli.main(arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"segunc: error: .*\.tif: cannot be written \(File too large\)", last)
    complete = contents(tmp_path / "masks")
    assert complete
    assert all(name.endswith(".tif") for name in complete)
    assert cli.main(arguments) == 0
    assert complete.items() < contents(tmp_path / "masks").items()


@pytest.mark.thorough
def test_killed_runs_go_on_to_the_same_files(tmp_path, checkpoints):
    root = write_images(tmp_path / "images", 20, ((210, 330), (240, 321)))
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "masks"
    assert cli.main(arguments_of(root, checkpoints, undisturbed)) == 0
    folder.mkdir()
    command = [sys.executable, "-m", "segunc_ops.cli", *arguments_of(root, checkpoints, folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    choose = random.Random(0)
    for _ in range(5):
        done = len(list(folder.glob("*.tif")))
        wanted = done + choose.randrange(2)
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        limit = time.monotonic() + 60
        # A file more is a sign that it is at work, however long the start took.
        while len(list(folder.iterdir())) <= wanted and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.001)
        time.sleep(choose.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
        process.stderr.close()
        # What is there under its own name is whole at any moment.
        for path in folder.glob("*.tif"):
            assert path.read_bytes() == (undisturbed / path.name).read_bytes()
    leftover = folder / ".000.tif.0123456789abcdef.partial"
    leftover.write_bytes(b"half a")
    assert cli.main(arguments_of(root, checkpoints, folder)) == 0
    assert contents(folder) == contents(undisturbed)


def test_command_shares_the_work_and_tells_of_it(
    root, checkpoints, written, tmp_path, capsys, monkeypatch
):
    for rank, count in ((1, 4), (0, 4)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert cli.main(arguments_of(root, checkpoints, tmp_path)) == 0
        shown = capsys.readouterr()
        assert f"{count} masks written" in shown.out
        assert f"share of rank {rank} of 2" in shown.out
        assert ("masks: 100%" in shown.err) == (rank == 0)
    assert contents(tmp_path) == contents(written)
    monkeypatch.undo()
    assert cli.main(arguments_of(root, checkpoints, tmp_path)) == 0
    assert "0 masks written" in capsys.readouterr().out
    assert cli.main(arguments_of(root, checkpoints[:2], tmp_path)) == 1
    assert "000.tif: was made with members" in capsys.readouterr().err
    assert contents(tmp_path) == contents(written)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--members", "nothing.pt"], 2, "segunc masks: error: nothing.pt: no such file"),
        (["--data", "nowhere"], 2, "argument --data: nowhere: no such folder"),
        (["--data", __file__], 2, "test_masks.py: is a file, not a folder"),
        (["--ignore-index", "7"], 1, "segunc: error: "),
        (["--values", "raw"], 2, "argument --values"),
        (["--connectivity", "6"], 2, "argument --connectivity"),
        (["--workers", "0"], 2, "argument --workers"),
    ],
)
def test_command_names_a_wrong_argument(
    root, checkpoints, tmp_path, capsys, changes, code, message
):
    assert exit_code([*arguments_of(root, checkpoints, tmp_path / "masks"), *changes]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "expected 0 <= RANK < WORLD_SIZE"),
        ({"RANK": "1"}, "expected the whole numbers RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "expected the whole numbers RANK and WORLD_SIZE"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "expected the whole numbers RANK and WORLD_SIZE"),
    ],
    ids=str,
)
def test_an_environment_without_ranks_is_an_error(
    root, checkpoints, tmp_path, capsys, monkeypatch, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.main(arguments_of(root, checkpoints, tmp_path / "masks")) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


# The dataset


def test_masks_move_with_their_labels(root, written):
    dataset = dataset_of(root)
    masked = MaskedDataset(dataset, written)
    masked.scan()
    assert (len(masked), masked.class_names) == (8, dataset.class_names)
    image, label, mask, _ = masked[1]
    np.testing.assert_array_equal(mask, read_mask(written / "001.tif")[0])
    np.testing.assert_array_equal(image, dataset[1].image)
    # A mask that tells each pixel's label, and its place in it.
    place = np.arange(label.size, dtype=np.float32).reshape(label.shape) + 1
    for seed in range(20):
        options = {"crop": (64, 80), "ignore_index": IGNORED}
        moved = datasets.augment(
            Sample(image, label, place), np.random.default_rng(seed), **options
        )
        plain = datasets.augment(Sample(image, label), np.random.default_rng(seed), **options)
        np.testing.assert_array_equal(moved.image, plain.image)
        np.testing.assert_array_equal(moved.label, plain.label)
        assert plain.mask is None
        assert moved.mask.dtype == np.float32
        inside = moved.mask > 0
        assert inside.any()
        from_label = label.ravel()[moved.mask[inside].astype(int) - 1]
        np.testing.assert_array_equal(moved.label[inside], from_label)
        assert (moved.label[~inside] == IGNORED).all()


def test_batches_have_masks_where_every_sample_has_one(root, written):
    masked = MaskedDataset(dataset_of(root), written)
    options = {"batch_size": 2, "crop": (32, 32), "seed": 0}
    batches = datasets.TrainingBatches(masked, **options).iterate(0, 4)
    plain = datasets.TrainingBatches(dataset_of(root), **options).iterate(0, 4)
    for with_mask, without in zip(batches, plain, strict=True):
        assert torch.equal(with_mask.images, without.images)
        assert torch.equal(with_mask.target, without.target)
        assert with_mask.mask.dtype == torch.float32
        assert with_mask.mask.shape == with_mask.target.shape
        assert without.mask is None
    sample = dataset_of(root)[0]
    mixed = [sample, sample._replace(mask=np.zeros(sample.label.shape, np.float32))]
    assert datasets.collate(mixed).mask is None
