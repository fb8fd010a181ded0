"""Scenes, folders, augmentation and batches."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.experiments.cases import exit_code, write_pair
from segunc_ops.experiments import datasets, scenes
from segunc_ops.experiments.datasets import FolderDataset, Sample, SceneDataset
from segunc_ops.experiments.label_mapping import parse_mapping
from segunc_ops.experiments.layouts import find_split

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


@pytest.mark.parametrize("layout", ["annot", "nested"])
def test_folder_reads_both_layouts(tmp_path, layout):
    label = np.arange(48 * 64).reshape(48, 64) % 4
    write_pair(tmp_path, "train", "a", label, layout)
    dataset = FolderDataset(*find_split(tmp_path, "train"), ignore_index=3)
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
    dataset = FolderDataset(*find_split(tmp_path, "train"))
    np.testing.assert_array_equal(dataset[0].label, label)
    Image.fromarray((label + 300).astype(np.uint16)).save(path)
    dataset = FolderDataset(*find_split(tmp_path, "train"))
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
    ("what", "code", "message"),
    [
        ("missing label", 2, r"002\.png: no label map for 002\.jpg \(1 of 4"),
        ("size", 1, r"002\.png: label map is 60 x 48, its image 002\.jpg 64 x 48"),
        ("class", 1, r"002\.png: class 77 is outside 0 to 2 and is not the ignored index 11"),
        ("channels", 1, r"002\.png: expected a one-channel label map, got mode RGB"),
        ("unreadable", 1, r"002\.png: cannot be read as an image"),
        ("empty", 2, r"train: holds no images"),
        ("layout", 2, r"expected the folders train/ and trainannot/"),
        ("twice", 2, r"002\.png: same stem as 002\.jpg"),
    ],
)
def test_folder_errors_name_the_file(folder, capsys, what, code, message):
    spoil(folder, what)
    with pytest.raises(datasets.DatasetError, match=message):
        FolderDataset(*find_split(folder, "train"), num_classes=3, ignore_index=11).scan()
    arguments = ["train", "--data", str(folder), "--ignore-index", "11", "--classes", "3"]
    assert exit_code([*arguments, "--output", str(folder / "runs")]) == code
    prefix = "argument --data: " if code == 2 else "segunc: error: "
    assert re.search(f"{prefix}.*{message}", capsys.readouterr().err)
    assert not (folder / "runs").exists()


# What labels tell


def label_maps(root: Path, *maps: list[int], **options: object) -> FolderDataset:
    """Scanned; each map holds its values in stripes."""
    for index, values in enumerate(maps):
        path = root / "trainannot" / f"{index}.png"
        write_pair(root, "train", f"{index}", np.zeros((8, 8), int))
        label = np.resize(np.array(values), (8, 8))
        wide = label.max() > 255 or label.min() < 0
        Image.fromarray(label.astype(np.uint16 if wide else np.uint8)).save(path)
    dataset = FolderDataset(*find_split(root, "train"), **options)
    dataset.scan()
    return dataset


@pytest.mark.parametrize(
    ("maps", "options", "notes"),
    [
        (
            [[0, 255], [0]],
            {"num_classes": 1},
            [
                "255 occurs and is ignored; is this a binary mask? Class 0 alone is left; "
                "`--map 0:0 255:1` makes two classes of them"
            ],
        ),
        (
            [[0, 7]],
            {"ignore_index": 0, "num_classes": 8},
            [
                "0 occurs and is ignored; is this a binary mask? Class 7 alone is left; "
                "`--map 0:0 7:1` makes two classes of them, with another --ignore-index",
                "6 of 8 classes have no pixel: 1, 2, 3, 4, 5 and 1 more",
            ],
        ),
        (
            [[0, 255]],
            {"class_names": ("ground", "crack")},
            [
                "255 occurs and is ignored; is this a binary mask? Class 0 alone is left; "
                "`--map 0:0 255:1` makes two classes of them",
                "1 of 2 classes has no pixel: 1 (crack)",
            ],
        ),
        ([[0, 1], [3, 255]], {}, ["1 of 4 classes has no pixel: 2"]),
        ([[0, 1], [2]], {"num_classes": 4}, ["1 of 4 classes has no pixel: 3"]),
        ([[0, 1, 255]], {}, []),
        ([[0], [0]], {"num_classes": 1}, []),
        ([[0, 1], [1, 255]], {"num_classes": 2}, []),
        ([[3, 7]], {"num_classes": 8}, ["6 of 8 classes have no pixel: 0, 1, 2, 4, 5 and 1 more"]),
        (
            [[0, 1, 2], [300, 255]],
            {},
            [
                "296 of 301 classes have no pixel: 3, 4, 5, 6, 7 and 291 more; "
                "`--map 0:0 1:1 2:2 300:3` numbers the 4 that have some"
            ],
        ),
        (
            [[0, 1, 5]],
            {"mapping": parse_mapping(["0:0", "1:1", "2:1", "5:2", "8:3"], 255)},
            ["no label map holds 2, 8, which --map lists", "1 of 4 classes has no pixel: 3"],
        ),
        ([[0, 65535], [1]], {"ignore_index": 65535}, []),
    ],
)
def test_scan_notes_what_labels_lack(tmp_path, maps, options, notes):
    dataset = label_maps(tmp_path, *maps, **options)
    for _ in range(2):
        assert dataset.notes == tuple(f"{tmp_path / 'trainannot'}: {note}" for note in notes)
        dataset.scan()


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([[0, 1], [2, 65535, 255]], {}, r"1\.png: label 65535 is no .* hold 5 distinct values"),
        ([[24001, 24002], [0, 7]], {}, r"0\.png: label 24002 is no .* hold 4 distinct values"),
        ([[0], [0, 4096]], {}, r"1\.png: label 4096 is no .* hold 2 distinct values.*--classes"),
        ([[0, 1, 65535]], {"num_classes": 2}, r"0\.png: class 65535 is .* holds 3 distinct values"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, maps, options, message):
    with pytest.raises(datasets.DatasetError, match=message):
        label_maps(tmp_path, *maps, **options)


BINARY = r"255 occurs and is ignored; is this a binary mask\? Class 0 alone .*`--map 0:0 255:1`"


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([[0, 255], [0]], {}, rf"{BINARY}.* declare it \(--classes 1\)"),
        (
            [[0, 255], [0]],
            {"mapping": parse_mapping(["0:0", "254:1"], 255)},
            rf"no label map holds 254, which --map lists; {BINARY}",
        ),
        ([[7]], {}, "every pixel is of class 7"),
        ([[0, 255]], {"mapping": parse_mapping(["0:255", "255:1"], 255)}, "`--map 0:0 255:1`"),
        ([[0, 1, 2]], {"mapping": parse_mapping(["1:0", "rest:255"], 255)}, "map two labels to"),
    ],
)
def test_one_class_left_alone_is_refused(tmp_path, maps, options, message):
    with pytest.raises(datasets.DatasetError, match=message):
        label_maps(tmp_path, *maps, **options)


def test_a_label_beside_a_binary_mask_is_refused(tmp_path):
    with pytest.raises(
        datasets.DatasetError,
        match=r"1\.png: label 127 occurs beside 0 and 255, .*`--map 0:0 255:1 rest:255` ignores",
    ):
        label_maps(tmp_path, [0, 255], [0, 127, 255])
    mapping = parse_mapping(["0:0", "255:1", "rest:255"], 255)
    assert (
        label_maps(tmp_path / "mapped", [0, 255], [0, 127, 255], mapping=mapping).num_classes == 2
    )


def test_label_maps_without_a_class_are_told(tmp_path):
    dataset = label_maps(tmp_path, [0, 1], [255], [0, 1, 255], [255])
    assert dataset.notes[-1].endswith("1.png: every pixel is ignored (2 of 4 label maps)")


def test_classes_without_a_pixel_are_of_all_folders(tmp_path):
    for name in ("x/a", "y/b"):
        for folder in ("train", "trainannot"):
            (tmp_path / folder / name).parent.mkdir(parents=True)
        write_pair(tmp_path, "train", name, np.array([[0, 2]] * 8))
    dataset = FolderDataset(*find_split(tmp_path, "train"))
    dataset.scan()
    assert f"{tmp_path / 'trainannot'}: 1 of 3 classes has no pixel" in dataset.notes[-1]


def test_one_class_of_several_may_be_evaluated_but_not_learnt_from(tmp_path):
    dataset = label_maps(tmp_path, [0, 255], num_classes=2)
    with pytest.raises(datasets.DatasetError, match=BINARY):
        dataset.scan(for_training=True)


def test_negative_labels_are_refused(tmp_path, monkeypatch):
    write_pair(tmp_path, "train", "a", np.zeros((8, 8), int))
    dataset = FolderDataset(*find_split(tmp_path, "train"))
    label = np.array([[-1] * 8] + [[3] * 8] * 7, np.int32)
    monkeypatch.setattr(datasets, "read_label", lambda path, data: label)
    with pytest.raises(datasets.DatasetError, match=r"a\.png: label -1 is no .* 2 distinct values"):
        dataset.scan()


def test_command_tells_of_binary_masks(tmp_path, capsys):
    write_pair(tmp_path, "train", "a", np.array([[0, 255]] * 8))
    arguments = ["train", "--data", str(tmp_path), "--output", str(tmp_path / "runs")]
    for declared in ([], ["--classes", "2"], ["--class-names", "ground", "crack"]):
        assert exit_code([*arguments, *declared]) == 1
        assert re.search(f"segunc: error: .*{BINARY}", capsys.readouterr().err)
    assert exit_code([*arguments, "--classes", "1"]) == 2  # there is no validation split
    assert re.search(f"trainannot: {BINARY}", capsys.readouterr().err) is None


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
