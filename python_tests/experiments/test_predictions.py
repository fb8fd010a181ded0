"""Predictions of images without labels, and ``segunc predict``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.experiments.cases import (
    CPU,
    exit_code,
    full_disk,
    train_member,
    write_images,
)
from segunc_ops import cli
from segunc_ops.experiments import evaluation, output_files, plots, predictions
from segunc_ops.experiments.datasets import normalize
from segunc_ops.experiments.image_files import DatasetError, open_image
from segunc_ops.experiments.map_files import read_map
from segunc_ops.experiments.models import EncoderDecoder
from segunc_ops.experiments.networks import load_networks, trained_class_names
from segunc_ops.experiments.predictions import PredictionError, Predictor, find_images
from segunc_ops.experiments.training import load_members
from segunc_ops.functional import PredictiveStatistics

SAMPLES = 3
KINDS = ("classes", "colors", "std", "entropy")
NAMES = ("rgb", "grey", "alpha", "deep.16", "sub/turned", "sub/deeper/dot")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    """Two networks, and two that trained together."""
    root = write_images(tmp_path_factory.mktemp("training"), 2)
    return [train_member(root, 0), train_member(root, 1), train_member(root, 2, loss="iu")]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of every kind, at sizes that are no multiple of the network's stride."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / ".hidden").mkdir()

    def noise(*shape: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, shape, np.uint8))

    noise(45, 61, 3).save(root / "rgb.png")
    noise(33, 50).save(root / "grey.jpg")
    noise(7, 9, 4).save(root / "alpha.PNG")
    Image.fromarray(rng.integers(0, 1 << 16, (20, 31)).astype(np.uint16)).save(root / "deep.16.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(40, 60, 3).save(root / "sub" / "turned.jpg", exif=exif)
    noise(1, 1, 3).save(root / "sub" / "deeper" / "dot.bmp")
    noise(5, 5).save(root / ".hidden" / "a.png")
    noise(5, 5).save(root / "sub" / ".b.png")
    (root / "notes.txt").write_text("no image")
    return root


def arguments_of(checkpoint: Path, images: Path, folder: Path) -> list[str]:
    arguments = ["predict", str(checkpoint), str(images)]
    return [*arguments, "--output", str(folder), "--samples", str(SAMPLES)]


@pytest.fixture(scope="module")
def written(checkpoints, images, tmp_path_factory) -> Path:
    """Predictions that nobody may change."""
    folder = tmp_path_factory.mktemp("written")
    assert cli.main(arguments_of(checkpoints[0], images, folder)) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_holds(folder: Path, name: str, expected: PredictiveStatistics) -> None:
    for kind, values in (
        ("classes", expected.prediction),
        ("colors", expected.prediction),
        ("std", expected.std),
        ("entropy", expected.entropy.clamp(min=0)),
    ):
        found = read_map(predictions.map_path(folder, kind, name)).values
        np.testing.assert_array_equal(found, values[0].numpy())


def expected_of(predict: evaluation.Predict, path: Path) -> PredictiveStatistics:
    image = np.array(open_image(path))
    seed = predictions.image_seed(0, predictions.image_digest(image))
    with evaluation.seeded(seed, CPU):
        return predict(normalize(torch.from_numpy(image).permute(2, 0, 1)[None], CPU, False))


# Values and files


def test_maps_are_those_of_the_evaluation(checkpoints, images, written):
    predict = evaluation.predict_by_dropout(load_members(checkpoints[0])[0], SAMPLES)
    sources = find_images([images])
    assert {source.name for source in sources} == {*NAMES}
    assert len(contents(written)) == len(KINDS) * len(NAMES)
    for path, name in sources:
        assert_holds(written, name, expected_of(predict, path))


@pytest.mark.parametrize("which", [slice(0, 2), slice(2, 3)], ids=["alone", "together"])
def test_several_networks_are_an_ensemble(checkpoints, images, tmp_path, which):
    first, *others = checkpoints[which]
    path = images / "rgb.png"
    members = ["--members", *map(str, others)] if others else []
    assert cli.main([*arguments_of(first, path, tmp_path / "maps"), *members]) == 0
    networks = load_networks(checkpoints[which])
    expected = expected_of(evaluation.predict_by_ensemble([*networks.values()]), path)
    assert_holds(tmp_path / "maps", "rgb", expected)
    description = read_map(tmp_path / "maps" / "std" / "rgb.tif").description
    record = predictions.PredictionRecord.from_json(description)
    assert (record.members, record.samples, record.seed) == (tuple(networks), None, None)
    # In any order they are one ensemble, and what it has predicted is kept.
    before = contents(tmp_path / "maps")
    if others:
        swapped = [*arguments_of(others[0], path, tmp_path / "maps"), "--members", str(first)]
        assert cli.main(swapped) == 0
        assert contents(tmp_path / "maps") == before


@pytest.mark.parametrize("name", NAMES)
def test_files_are_of_the_images_size_and_open_anywhere(images, written, name):
    (path,) = [path for path, known in find_images([images]) if known == name]
    size = open_image(path).size
    opened = {}
    for kind, suffix, mode in (
        ("classes", "png", "L"),
        ("colors", "png", "P"),
        ("std", "tif", "F"),
        ("entropy", "tif", "F"),
    ):
        with Image.open(written / kind / f"{name}.{suffix}") as image:
            assert (image.size, image.mode) == (size, mode)
            text = image.info["Description"] if suffix == "png" else image.tag_v2[270]
            opened[kind] = image.copy()
        record = json.loads(text)
        assert (record["map"], record["samples"], record["seed"]) == (kind, SAMPLES, 0)
        assert record["class_names"] == ["class 0", "class 1", "class 2"]
    np.testing.assert_array_equal(opened["colors"], opened["classes"])
    colours = [bytes.fromhex(c[1:]) for c in plots.class_colours(record["class_names"])]
    shown = np.asarray(opened["colors"].convert("RGB"))
    np.testing.assert_array_equal(
        shown, np.array([list(c) for c in colours], np.uint8)[np.asarray(opened["classes"])]
    )
    if name == "sub/turned":
        assert size == (40, 60)


def test_more_classes_than_a_palette_has_are_written_with_16_bits(images, tmp_path):
    torch.manual_seed(0)
    predictor = Predictor({"a": EncoderDecoder(300).eval()}, tuple(map(str, range(300))), 2)
    sources = find_images([images / "rgb.png"])
    checked = predictions.check_images(sources)
    for count in ((1, 0), (0, 1)):
        found = predictions.write_predictions(predictor, sources, checked, tmp_path, device=CPU)
        assert found == count
    assert {path.name for path in tmp_path.iterdir()} == {"classes", "std", "entropy"}
    expected = expected_of(predictor.on(CPU), images / "rgb.png").prediction[0].numpy()
    with Image.open(tmp_path / "classes" / "rgb.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert expected.max() > 255


def test_class_names_are_those_that_checkpoints_agree_on(checkpoints, tmp_path):
    state = torch.load(checkpoints[0], weights_only=True)
    state["data"]["training"]["class_names"] = ("road", "sky", "car")
    torch.save(state, tmp_path / "named.pt")
    del state["data"]
    torch.save(state, tmp_path / "old.pt")
    names = [tmp_path / "named.pt", tmp_path / "old.pt"]
    assert trained_class_names(names) == ("road", "sky", "car")
    assert trained_class_names([*names, checkpoints[1]]) is None
    assert trained_class_names(names[1:]) is None


# Going on


def test_an_image_alone_gives_the_same_files(checkpoints, images, written, tmp_path, capsys):
    whole = contents(written)
    for name in ("rgb.png", "sub"):
        assert cli.main(arguments_of(checkpoints[0], images / name, tmp_path / name)) == 0
    assert contents(tmp_path / "rgb.png").items() <= whole.items()
    # The folder that is given is not in the names of its images; what they hold is the same.
    for name, data in contents(tmp_path / "sub").items():
        assert whole[re.sub("/", "/sub/", name, count=1)] == data
    # Others in the same folder disturb nothing.
    assert cli.main(arguments_of(checkpoints[0], images, tmp_path / "rgb.png")) == 0
    assert "5 images predicted by 3 dropout samples, 1 kept" in capsys.readouterr().out
    assert contents(tmp_path / "rgb.png") == whole


def test_what_is_there_is_kept_and_what_is_missing_is_written(
    checkpoints, images, written, tmp_path, capsys
):
    folder = tmp_path / "maps"
    shutil.copytree(written, folder)
    (folder / "std" / "sub" / "turned.tif").unlink()
    kept = folder / "std" / "rgb.tif"
    os.utime(kept, (1, 1))
    leftover = folder / "std" / ".rgb.tif.0123456789abcdef.partial"
    other = folder / "std" / ".other.tif.0123456789abcdef.partial"
    for path in (leftover, other):
        path.touch()
    assert cli.main(arguments_of(checkpoints[0], images, folder)) == 0
    assert "1 image predicted" in capsys.readouterr().out
    assert kept.stat().st_mtime == 1
    other.unlink()  # that of another image stays
    assert contents(folder) == contents(written)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str
)
def test_signals_leave_whole_files_to_go_on_from(
    checkpoints, images, written, tmp_path, capsys, monkeypatch, signum, status
):
    folder, predict = tmp_path / "maps", predictions.predict_maps

    def interrupted(*arguments: object) -> predictions.Maps:
        os.kill(os.getpid(), signum)
        return predict(*arguments)

    monkeypatch.setattr(predictions, "predict_maps", interrupted)
    arguments = arguments_of(checkpoints[0], images, folder)
    for done in (1, 2):
        assert cli.main(arguments) == status
        assert "interrupted; the same command continues" in capsys.readouterr().err
        assert len(contents(folder)) == done * len(KINDS)
        assert contents(folder).items() <= contents(written).items()
    monkeypatch.undo()
    assert cli.main(arguments) == 0
    assert "4 images predicted by 3 dropout samples, 2 kept" in capsys.readouterr().out
    assert contents(folder) == contents(written)


def test_a_disk_that_fills_up_keeps_what_is_complete(
    checkpoints, images, written, tmp_path, capsys, monkeypatch
):
    arguments = arguments_of(checkpoints[0], images, tmp_path / "maps")
    monkeypatch.setattr(output_files, "_TRIAL_BYTES", 1)
    with full_disk(free=6000):
        assert cli.main(arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"segunc: error: .*\.tif: cannot be written \(File too large\)", last)
    complete = contents(tmp_path / "maps")
    assert complete
    assert complete.items() < contents(written).items()
    assert cli.main(arguments) == 0
    assert contents(tmp_path / "maps") == contents(written)


# What is refused


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (None, ["--seed", "1"], r"made with seed 0, not 1; move it away or"),
        (None, ["--samples", "2"], r"made with samples 3, not 2; move it"),
        (None, ["--members", "{other}"], r"made with members \w{8}, not \w{8} \w{8}; move it"),
        ("foreign", [], r"std/grey\.tif: was not written by this program; move it"),
        ("mask", [], r"std/grey\.tif: was not written by this program; move it"),
        ("map", [], r"std/grey\.tif: was made with map entropy, not std; move it"),
        ("image", [], r"std/grey\.tif: was made with another image; move it"),
        ("size", [], r"std/grey\.tif: is 49 x 33, its image 50 x 33; move it"),
        ("truncated", [], r"std/grey\.tif: cannot be read \(.*\); move it"),
        ("folder", [], r"std/grey\.tif: a file is to be written here, but there is a folder"),
        ("file", [], r"maps/entropy: expected a folder for the output, got a file"),
    ],
)
def test_files_of_another_origin_are_left_alone(
    checkpoints, images, written, tmp_path, capsys, spoil, options, message
):
    folder = tmp_path / "maps"
    shutil.copytree(written, folder)
    path = folder / "std" / "grey.tif"
    values, _, description = read_map(path)
    if spoil in ("foreign", "mask"):
        text = {"foreign": "a map", "mask": json.dumps({"format": "segunc mask 1"})}[spoil]
        Image.fromarray(values).save(path, tiffinfo={270: text})
    elif spoil == "size":
        Image.fromarray(values[:, 1:]).save(path, tiffinfo={270: description})
    elif spoil == "map":
        shutil.copy(folder / "entropy" / "grey.tif", path)
    elif spoil == "image":
        shutil.copy(folder / "std" / "rgb.tif", path)
    elif spoil == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif spoil == "folder":
        path.unlink()
        path.mkdir()
    elif spoil == "file":
        shutil.rmtree(folder / "entropy")
        (folder / "entropy").touch()
    (folder / "classes" / "rgb.png").unlink()
    before = contents(folder)
    options = [each.format(other=checkpoints[1]) for each in options]
    assert cli.main([*arguments_of(checkpoints[0], images, folder), *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"segunc: error: .*{message}", last)
    assert contents(folder) == before


def test_images_whose_files_would_be_one_are_named(images, tmp_path):
    for name in ("a/x.png", "a/x.jpg", "b/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 5)).save(tmp_path / name)
    with pytest.raises(DatasetError, match=r"a/x\.png: its files .* called x, as .*a/x\.jpg"):
        find_images([tmp_path / "a"])
    with pytest.raises(DatasetError, match=r"b/x\.png: its files .*a/x\.png"):
        find_images([tmp_path / "a" / "x.png", tmp_path / "b"])
    twice = find_images([images, images / "rgb.png", images])
    assert twice == find_images([images])


def test_linked_folders_are_followed_and_circles_left(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "c" / "x.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "there").symlink_to(tmp_path / "c")
    assert [source.name for source in find_images([tmp_path / "a"])] == ["b/there/x"]


@pytest.mark.parametrize(
    ("given", "output", "code", "message"),
    [
        (["nowhere"], "maps", 2, "argument IMAGES: nowhere: no such file or folder"),
        (["{tmp}/empty"], "maps", 2, "argument IMAGES: .*empty: holds no images"),
        (
            ["{second}"],
            "maps",
            2,
            "argument IMAGES: .*the checkpoint comes first, further ones go to --members",
        ),
        (["{tmp}/bad"], "maps", 1, r"segunc: error: .*bad\.png: cannot be read as an image"),
        (["{tmp}/in"], "in", 1, "segunc: error: .*in: maps in it would be taken for images"),
        (["{tmp}/in"], "in/maps", 1, "segunc: error: .*in/maps: maps in it would be taken"),
        (["{tmp}/old/classes"], "old", 1, "segunc: error: .*old: maps in it would be taken"),
        (["{tmp}/old/classes/x.png"], "old", 1, "segunc: error: .*old: maps in it would be"),
        (["{tmp}/link"], "old", 1, "segunc: error: .*old: maps in it would be taken"),
        (["{tmp}/in"], "file", 1, "segunc: error: .*file: expected a folder for the output"),
        (["{tmp}/in"], "maps --members nothing.pt", 2, "error: nothing.pt: no such file"),
        (["{tmp}/in"], "maps --members {first}", 2, r"error: .*ce-3-0\.pt: .*there already"),
        (["{tmp}/in"], "maps --samples 1", 2, "argument --samples"),
        ([], "maps", 2, "IMAGES"),
    ],
)
def test_command_names_what_is_wrong_and_writes_nothing(
    checkpoints, tmp_path, capsys, given, output, code, message
):
    for folder in ("in", "bad", "old/classes", "empty"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "empty":
            Image.new("RGB", (5, 5)).save(tmp_path / folder / "x.png")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "to").symlink_to(tmp_path / "old" / "classes")
    (tmp_path / "bad" / "bad.png").write_bytes(b"\x89PNG")
    (tmp_path / "file").touch()
    before = contents(tmp_path)
    names = {"tmp": tmp_path, "first": checkpoints[0], "second": checkpoints[1]}
    arguments = [*given, "--output", *f"{{tmp}}/{output}".split()]
    filled = [each.format(**names) for each in (str(checkpoints[0]), *arguments)]
    assert exit_code(["predict", *filled]) == code
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("diverged", "the networks give no finite uncertainty"),
        ("memory", "61 x 45 pixels take more memory than there is on cpu; cut it"),
        ("changed", "has changed since it was checked"),
    ],
)
def test_an_image_that_cannot_be_predicted_is_named(
    checkpoints, images, tmp_path, monkeypatch, what, message
):
    networks = load_networks(checkpoints[:1])
    predictor = Predictor(networks, trained_class_names(checkpoints[:1]), 2)
    sources = find_images([images / "rgb.png"])
    checked = predictions.check_images(sources)
    if what == "diverged":
        for parameter in next(iter(networks.values())).parameters():
            parameter.data.fill_(torch.nan)
    elif what == "memory":

        def fail(*arguments: object) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(predictions, "predict_maps", fail)
    else:
        checked = [checked[0]._replace(digest="0" * 64)]
    with pytest.raises(PredictionError, match=rf"rgb\.png: {message}"):
        predictions.write_predictions(predictor, sources, checked, tmp_path, device=CPU)
    assert not contents(tmp_path)
