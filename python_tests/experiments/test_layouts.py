"""Data sets as they are found: folders, names, splits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from python_tests.experiments.cases import exit_code
from segunc_ops.experiments.datasets import DatasetError, FolderDataset
from segunc_ops.experiments.label_mapping import parse_mapping
from segunc_ops.experiments.layouts import Pair, divide, find_split, is_divided, pair_files

TRAINING = ["--loss", "ce", "--steps", "1", "--batch-size", "2", "--crop", "32", "32"]


def write_image(path: Path, size: tuple[int, int] = (32, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)


def write_label(path: Path, *values: int, size: tuple[int, int] = (32, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(path)


def write_cityscapes(root: Path, cities: tuple[str, ...] = ("aachen", "ulm")) -> Path:
    """The files of the two archives, as they are unpacked."""
    for split, places in (("train", cities), ("val", ("munster",))):
        for city in places:
            for number in range(2):
                stem = f"{city}_00000{number}_000019"
                write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
                folder = root / "gtFine" / split / city
                write_label(folder / f"{stem}_gtFine_labelIds.png", *range(34))
                write_label(folder / f"{stem}_gtFine_instanceIds.png", 200)
                write_image(folder / f"{stem}_gtFine_color.png")
                (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


def write_beside(root: Path, count: int = 5, ending: str = "_mask.png") -> Path:
    for index in range(count):
        write_image(root / f"image{index}.jpg")
        write_label(root / f"image{index}{ending}", 0, 0, 255)
    return root


# Which label map belongs to an image


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.jpg", "a.png"),
        ("a.png", "a_mask.png"),
        ("a.jpg", "a_labelIds.tif"),
        ("a.jpg", "a.bmp"),
        ("a_sat.jpg", "a_mask.png"),
        ("a_leftImg8bit.png", "a_gtFine_labelIds.png"),
        ("a_img.png", "a_img_seg.gif"),
        ("city/a.JPG", "city/a_label.PNG"),
        ("2024.05.01.jpg", "2024.05.01_gt.tiff"),
    ],
)
def test_names_tell_the_label_map(tmp_path, image, label):
    write_image(tmp_path / "images" / image)
    write_label(tmp_path / "labels" / label, 1)
    (pair,) = pair_files(tmp_path / "images", tmp_path / "labels")
    assert pair == Pair(
        image.rpartition(".")[0], tmp_path / "images" / image, tmp_path / "labels" / label
    )


def test_endings_can_be_given(tmp_path):
    write_image(tmp_path / "a-rgb.jpg")
    write_label(tmp_path / "a-truth.png", 1)
    (pair,) = pair_files(tmp_path, tmp_path, image_suffix="-rgb", label_suffix="-truth")
    assert (pair.image.name, pair.label.name) == ("a-rgb.jpg", "a-truth.png")


def test_an_ending_that_is_not_known_is_asked_for(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a-truth.png", 1)
    with pytest.raises(DatasetError, match=r"a\.png: no label map for a\.jpg .*--label-suffix"):
        pair_files(tmp_path / "images", tmp_path / "labels")


def test_hidden_files_and_other_labels_are_left_out(tmp_path):
    write_cityscapes(tmp_path)
    write_image(tmp_path / "leftImg8bit" / "train" / ".thumbnails" / "x.png")
    write_image(tmp_path / "leftImg8bit" / "train" / "aachen" / "._y.png")
    pairs = pair_files(*find_split(tmp_path, "train"))
    assert [pair.name for pair in pairs] == [
        f"{city}/{city}_00000{number}_000019_leftImg8bit"
        for city in ("aachen", "ulm")
        for number in range(2)
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a_mask.png"], r"b_mask\.png: no label map for b\.jpg \(1 of 2 images has none\)"),
        ([], r"a\.png: no label map for a\.jpg \(2 of 2"),
        (["a.png", "b.png", "b.tif"], r"b\.tif: same stem as b\.png; which .* of b\.jpg\?"),
        (
            ["a.png", "b.png", "a_mask.png", "b_mask.png"],
            r"a\.png: may be the label map of a\.jpg, but so may a_mask\.png; .*--label-suffix",
        ),
    ],
)
def test_unclear_label_maps_are_refused(tmp_path, labels, message):
    for stem in "ab":
        write_image(tmp_path / "images" / f"{stem}.jpg")
    (tmp_path / "labels").mkdir()
    for name in labels:
        write_label(tmp_path / "labels" / name, 1)
    with pytest.raises(DatasetError, match=message):
        pair_files(tmp_path / "images", tmp_path / "labels")


def test_a_lossy_label_map_is_found_and_refused_with_the_reason(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_image(tmp_path / "labels" / "a.jpg")
    with pytest.raises(DatasetError, match=r"a\.jpg: expected a PNG label map, got a JPEG"):
        FolderDataset(tmp_path / "images", tmp_path / "labels").scan()


# Splits


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train", "trainannot"),
        ("training", "training_masks"),
        ("images/train", "labels/train"),
        ("images/training", "annotations/training"),
        ("img_dir/train", "ann_dir/train"),
        ("train/images", "train/masks"),
        ("leftImg8bit/train", "gtCoarse/train"),
    ],
)
def test_layouts_are_known(tmp_path, images, labels):
    for folder in (images, labels):
        (tmp_path / folder).mkdir(parents=True)
    assert find_split(tmp_path, "train") == (tmp_path / images, tmp_path / labels)
    assert is_divided(tmp_path)
    with pytest.raises(DatasetError, match="expected the folders val/ and valannot/"):
        find_split(tmp_path, "val")


def test_two_layouts_are_refused(tmp_path):
    for folder in ("gtFine/train", "gtCoarse/train", "leftImg8bit/train"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"gtFine/train/, but also .*gtCoarse/train/"):
        find_split(tmp_path, "train")


def test_label_maps_beside_their_images(tmp_path):
    write_beside(tmp_path / "train")
    write_beside(tmp_path / "valid", ending="_truth.png")
    assert find_split(tmp_path, "train") == (tmp_path / "train",) * 2
    assert find_split(tmp_path, "val", "_truth") == (tmp_path / "valid",) * 2
    with pytest.raises(DatasetError, match="expected the folders val/"):
        find_split(tmp_path, "val")


@pytest.mark.parametrize("folders", [("images", "masks"), (".", ".")])
def test_what_is_not_divided_is_found_whole(tmp_path, folders):
    write_beside(tmp_path)
    for folder in folders:
        (tmp_path / folder).mkdir(exist_ok=True)
    if folders[0] == "images":
        write_image(tmp_path / "images" / "a.png")
    wanted = tuple(tmp_path / folder for folder in folders)
    assert find_split(tmp_path, "train") == find_split(tmp_path, "val") == wanted
    assert not is_divided(tmp_path)


@pytest.mark.parametrize("beside", [False, True], ids=["apart", "beside"])
def test_label_maps_that_end_differently_are_told_so(tmp_path, beside):
    images, labels = (tmp_path, tmp_path) if beside else (tmp_path / "images", tmp_path / "labels")
    for stem, ending in (("a", "_seg"), ("b", "_segmentation"), ("c", "_seg")):
        write_image(images / f"{stem}.jpg")
        write_label(labels / f"{stem}{ending}.png", 1)
    with pytest.raises(DatasetError) as caught:
        pair_files(images, labels)
    assert str(caught.value) == (
        f"{labels}: the stems of its label maps end in _seg (a_seg.png, of 2 images) and "
        "_segmentation (b_segmentation.png, of 1 image); rename them so that all end alike, or "
        "keep each kind in a folder of its own"
    )


def test_a_label_map_that_has_no_ending_is_told_from_others(tmp_path):
    for stem, ending in (("a", "_mask"), ("b", "")):
        write_image(tmp_path / "images" / f"{stem}.jpg")
        write_label(tmp_path / "labels" / f"{stem}{ending}.png", 1)
    with pytest.raises(DatasetError, match=r"_mask \(a_mask.png, .* in nothing \(b.png, "):
        pair_files(tmp_path / "images", tmp_path / "labels")


def test_divided_by_name():
    pairs = [Pair(f"{index}", Path(f"{index}.png"), Path("x")) for index in range(50)]
    train, validation = divide(pairs, "train", 0.2), divide(pairs, "val", 0.2)
    assert len(validation) == 10
    assert sorted(train + validation) == sorted(pairs)
    assert divide(pairs[::-1], "val", 0.2) == validation[::-1]
    moved = {*divide([*pairs, Pair("new", Path("new"), Path("x"))], "val", 0.2)} ^ {*validation}
    assert len(moved) <= 2
    for share, count in ((0.001, 1), (0.999, 49)):
        assert len(divide(pairs, "val", share)) == count
    with pytest.raises(DatasetError, match="one image alone"):
        divide(pairs[:1], "val", 0.2)


# Commands


def test_cityscapes_as_downloaded_trains_with_one_command(tmp_path, capsys):
    root = write_cityscapes(tmp_path / "cityscapes")
    run = [*TRAINING, "--samples", "2", "--output", str(tmp_path / "runs")]
    assert exit_code(["train", "--data", str(root), *run]) == 0
    captured = capsys.readouterr()
    assert "19 classes, 4 training and 2 validation images" in captured.err
    assert "Cityscapes' ids are mapped to its 19 classes" in captured.err
    assert "bicycle" in (tmp_path / "runs" / "train" / "table.json").read_text()
    assert exit_code(["train", "--data", str(root), *run, "--resume", "--map", "none"]) == 2
    assert "was trained for 19 classes, not 34" in capsys.readouterr().err


def test_a_folder_of_binary_masks_trains_with_one_command(tmp_path, capsys):
    root = write_beside(tmp_path / "cracks")
    run = [*TRAINING, "--samples", "2", "--output", str(tmp_path / "runs")]
    assert exit_code(["train", "--data", str(root), "--map", "0:0", "255:1", *run]) == 0
    captured = capsys.readouterr()
    assert "2 classes, 4 training and 1 validation image in" in captured.err
    assert "is not divided; 4 of its 5 images are train's (--held-out 0.2" in captured.err
    again = ["train", "--data", str(root), "--map", "0:1", "255:0", *run, "--resume"]
    assert exit_code(again) == 2
    assert "label mapping 0:0 255:1, not 0:1 255:0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["image/a.jpg", "mask/a.png"], "image/, mask/"),
        (["a.jpg"], "images without label maps"),
        ([], "neither folders nor images"),
        ([f"{name}/a.jpg" for name in "abcdefg"], "a/, b/, c/, d/, e/ and 2 more"),
    ],
)
def test_what_is_there_instead_of_a_layout_is_told(tmp_path, files, found):
    for name in files:
        write_image(tmp_path / name)
    with pytest.raises(DatasetError) as caught:
        find_split(tmp_path, "train")
    assert str(caught.value).endswith(f"layout of docs/data.md; found {found}")


def test_swapped_folders_are_told(tmp_path, capsys):
    for split in ("train", "val"):
        write_label(tmp_path / split / "a.png", 0, 1)
        write_image(tmp_path / f"{split}annot" / "a.png")
    run = [*TRAINING, "--output", str(tmp_path / "runs")]
    assert exit_code(["train", "--data", str(tmp_path), *run]) == 1
    assert capsys.readouterr().err.endswith("exchange images and label maps\n")


def test_a_file_of_class_names_is_told_from_a_name(tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("crack")
    run = [*TRAINING, "--output", str(tmp_path / "runs"), "--class-names", str(names)]
    assert exit_code(["train", "--data", str(write_beside(tmp_path / "x")), *run]) == 2
    assert f"expected names, got the file {names}" in capsys.readouterr().err


def test_a_share_of_data_that_is_divided_is_refused(tmp_path, capsys):
    root = write_cityscapes(tmp_path / "cityscapes")
    run = [*TRAINING, "--output", str(tmp_path / "runs"), "--held-out", "0.3"]
    assert exit_code(["train", "--data", str(root), *run]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --held-out: {root} is divided into train and val already" in line


def test_images_of_both_parts_are_told_once(tmp_path, capsys):
    for split, stems in (("train", "abc"), ("val", "bxc")):
        for stem in stems:
            write_image(tmp_path / split / f"{stem}.jpg")
            write_label(tmp_path / f"{split}annot" / f"{stem}.png", 0, 1)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(path.read_bytes() + path.name.encode())
    (tmp_path / "val" / "c.jpg").write_bytes((tmp_path / "train" / "a.jpg").read_bytes())
    train, val = (FolderDataset(*find_split(tmp_path, split)) for split in ("train", "val"))
    shared = [(tmp_path / "val" / "c.jpg", tmp_path / "train" / "a.jpg")]
    assert val.shared_images(train) == shared
    run = [*TRAINING, "--samples", "2", "--output", str(tmp_path / "runs")]
    assert exit_code(["train", "--data", str(tmp_path), *run]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "byte for byte" in line]
    assert told == [
        "segunc: warning: 1 of 3 validation images is a training image too, byte for byte "
        f"({shared[0][0]} is {shared[0][1]}); the validation says little of other images"
    ]


def test_masks_of_nested_folders_lie_in_the_same(tmp_path):
    root = write_cityscapes(tmp_path / "cityscapes", ("aachen",))
    checkpoints = []
    for seed in range(2):
        run = [*TRAINING, "--samples", "2", "--seed", str(seed), "--name", f"{seed}"]
        arguments = ["train", "--data", str(root), *run, "--output", str(tmp_path / "runs")]
        assert exit_code(arguments) == 0
        checkpoints.append(str(tmp_path / "runs" / f"{seed}" / "checkpoint-ce.pt"))
    out = tmp_path / "masks"
    masks = ["masks", "--data", str(root), "--members", *checkpoints, "--output", str(out)]
    assert exit_code(masks) == 0
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == [f"aachen/aachen_00000{n}_000019_leftImg8bit.tif" for n in range(2)]
    iu = ["train", "--data", str(root), *TRAINING, "--samples", "2", "--name", "iu"]
    iu[iu.index("ce")] = "iu"
    assert exit_code([*iu, "--masks", str(out), "--output", str(tmp_path / "runs")]) == 0


@pytest.fixture(scope="module")
def cracks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A binary data set, and networks that were trained with some mappings of it."""
    root = tmp_path_factory.mktemp("cracks")
    write_beside(root / "data")
    for name, options in {
        "a": ["--map", "0:0", "255:1"],
        "b": ["--map", "0:0", "255:1", "--seed", "1"],
        "other": ["--map", "0:1", "255:0"],
        "ignoring": ["--map", "0:0", "255:2", "--ignore-index", "1", "--class-names", *"uvw"],
    }.items():
        run = [*TRAINING, "--samples", "2", "--output", str(root), "--name", name, *options]
        assert exit_code(["train", "--data", str(root / "data"), *run]) == 0
    return root


def test_an_evaluation_is_not_replaced_unasked(cracks, tmp_path, capsys):
    evaluated(cracks, tmp_path, "a")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = ["eval", f"{cracks / 'b'}/checkpoint-ce.pt", "--data", str(cracks / "data")]
    command += ["--samples", "2", "--output", str(tmp_path)]
    assert exit_code(command) == 2
    assert "holds an evaluation already; pass --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert exit_code([*command, "--overwrite"]) == 0


def test_all_images_that_are_not_divided_are_evaluated(cracks, tmp_path, capsys):
    number = len(list((cracks / "data").rglob("*.jpg")))
    found = evaluated(cracks, tmp_path, "a", "--split all")
    assert found["num_pixels"] == number * 32 * 48
    assert "no PAvPU; pass --threshold" in capsys.readouterr().err
    command = ["eval", f"{cracks / 'a'}/checkpoint-ce.pt", "--data", str(cracks / "data")]
    command += ["--output", str(tmp_path / "other"), "--split", "all", "--held-out", "0.3"]
    assert exit_code(command) == 2
    assert "--split: all is for data that is not divided" in capsys.readouterr().err


def evaluated(root: Path, out: Path, *arguments: str) -> dict[str, object]:
    names = [f"{root / name}/checkpoint-ce.pt" for name in arguments if not name.startswith("-")]
    options = arguments[len(names) :]
    command = ["eval", *names, "--data", str(root / "data"), "--samples", "2", "--output", str(out)]
    command.append("--overwrite")
    assert exit_code([*command, *" ".join(options).split()]) == 0
    evaluation: dict[str, object] = json.loads((out / "metrics.json").read_text())["evaluation"]
    return evaluation


def test_evaluation_reads_labels_as_training_did(cracks, tmp_path, capsys):
    plain = evaluated(cracks, tmp_path, "a")
    assert "labels are read as in training, with --map 0:0 255:1" in capsys.readouterr().err
    assert plain["num_pixels"] == 32 * 48
    assert evaluated(cracks, tmp_path, "a", "--map 0:0 255:1") == plain
    assert "training" not in capsys.readouterr().err
    other = evaluated(cracks, tmp_path, "a", "--map 0:1 255:0")
    assert "--map 0:1 255:0 is not that of the training (0:0 255:1)" in capsys.readouterr().err
    assert other["mean_iou"] != plain["mean_iou"]
    ignoring = evaluated(cracks, tmp_path, "ignoring")
    assert "as in training, with --ignore-index 1" in capsys.readouterr().err
    assert ignoring["class_names"] == ["u", "v", "w"]
    assert ignoring["iou"][1] is None


def test_networks_of_different_labels_are_not_evaluated_together_unasked(cracks, tmp_path, capsys):
    names = [f"{cracks / name}/checkpoint-ce.pt" for name in ("a", "other")]
    command = ["eval", *names, "--data", str(cracks / "data"), "--output", str(tmp_path / "out")]
    assert exit_code(command) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search("a/.* was trained with 0:0 255:1, .*other/.* with 0:1 255:0; pass one", shown)
    assert exit_code([*command, "--map", "0:0", "255:1"]) == 0


def test_masks_are_of_the_labels_of_the_training_that_uses_them(cracks, tmp_path, capsys):
    members = [f"{cracks / name}/checkpoint-ce.pt" for name in "ab"]
    masks = tmp_path / "masks"
    data = ["--data", str(cracks / "data")]
    assert exit_code(["masks", *data, "--members", *members, "--output", str(masks)]) == 0
    assert "labels are read as in training, with --map 0:0 255:1" in capsys.readouterr().err
    run = [*data, *TRAINING, "--samples", "2", "--output", str(tmp_path), "--masks", str(masks)]
    run[run.index("ce")] = "iu"
    assert exit_code(["train", *run, "--map", "0:0", "255:1"]) == 0
    capsys.readouterr()
    assert exit_code(["train", *run, "--map", "0:1", "255:0", "--name", "other"]) == 1
    message = "was made of label maps with another label mapping, 0:0 255:1, not 0:1 255:0"
    assert message in capsys.readouterr().err


def test_labels_that_are_not_mapped_are_named(tmp_path, capsys):
    root = write_beside(tmp_path / "cracks")
    write_label(root / "image3_mask.png", 0, 254)
    arguments = ["train", "--data", str(root), "--map", "0:0", "255:1"]
    assert exit_code([*arguments, "--output", str(tmp_path / "runs")]) == 1
    assert "image3_mask.png: label 254 is not mapped; add 254:CLASS" in capsys.readouterr().err
    assert exit_code([*arguments, "7"]) == 2
    assert "argument --map: expected LABEL:CLASS" in capsys.readouterr().err


def test_mapping_enters_samples(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_label(tmp_path / "a_mask.png", 0, 255)
    dataset = FolderDataset(tmp_path, tmp_path, mapping=parse_mapping(["0:0", "255:1"], 255))
    dataset.scan()
    assert dataset.class_names == ("class 0", "class 1")
    assert dataset.notes == ()
    np.testing.assert_array_equal(dataset[0].label, np.resize([0, 1], (32, 48)))
