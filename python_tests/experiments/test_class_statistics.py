"""How often classes occur, the command that shows it, and losses that are made of it."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import measure

from python_tests.experiments.cases import SIZE, config, exit_code, full_disk, write_pair
from segunc_ops import DiceCrossEntropyLoss
from segunc_ops.experiments import class_counts, class_statistics, experiment, training
from segunc_ops.experiments.class_counts import ClassCounts, CountsError, count_classes, read_counts
from segunc_ops.experiments.datasets import FolderDataset, SceneDataset
from segunc_ops.experiments.experiment import Experiment, counts_path, run, with_counts
from segunc_ops.experiments.layouts import find_split
from segunc_ops.experiments.losses import COUNTING_LOSSES, LOSSES, build_loss

LONG_TAIL = ("pat", "focal", "cb", "cbfocal", "bms", "ldam", "blv")
IGNORED = 11


class Maps:
    """A dataset of label maps alone."""

    def __init__(self, *maps: np.ndarray, num_classes: int, ignore_index: int = IGNORED) -> None:
        self.maps = maps
        self.class_names = tuple(f"class {index}" for index in range(num_classes))
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self.maps)

    def label(self, index: int) -> np.ndarray:
        return self.maps[index]


def rings() -> np.ndarray:
    """Class 0 with a ring of class 1, whose hole is of class 0 again and holds a dot of class 2."""
    rows, columns = np.mgrid[:40, :50]
    distance = np.hypot(rows - 20, columns - 22)
    label = np.where((distance < 16) & (distance > 9), 1, 0)
    label[distance < 3] = 2
    label[:, 40] = IGNORED  # cuts off what is right of it
    return label


def diagonals() -> np.ndarray:
    """Squares that meet at corners alone."""
    return np.kron(np.eye(6, dtype=int), np.ones((3, 4), int)) + 2 * (np.arange(24) > 20)


def speckles(seed: int, size: tuple[int, int] = (61, 45)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 4, [-(-n // 2) for n in size]), np.ones((2, 2), int))
    label = label[: size[0], : size[1]]
    label[rng.random(size) < 0.1] = IGNORED
    return label


def drawn() -> list[np.ndarray]:
    return [
        rings(),
        diagonals(),
        *(speckles(seed) for seed in range(3)),
        np.full((5, 7), IGNORED),
        np.array([[3]]),
    ]


def occurrences(maps: list[np.ndarray], num_classes: int) -> dict[str, list[int]]:
    """Pixels and images by NumPy."""
    sizes = np.stack(
        [np.bincount(label[label != IGNORED], minlength=num_classes) for label in maps]
    )
    return {"pixels": sizes.sum(0).tolist(), "images": (sizes > 0).sum(0).tolist()}


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_counts_equal_those_of_numpy_and_scipy(connectivity, dtype):
    maps = [label.astype(dtype) for label in drawn()]
    for label in maps:
        label.setflags(write=False)
    steps: list[int] = []
    counts = count_classes(
        Maps(*maps, num_classes=5), connectivity=connectivity, progress=steps.append
    )
    expected = occurrences(maps, 5)
    assert list(counts.pixels) == expected["pixels"]
    assert list(counts.images) == expected["images"]
    # Each class by itself, which knows of no other class.
    structure = np.ones((3, 3)) if connectivity == 8 else None
    instances = [sum(ndimage.label(m == index, structure)[1] for m in maps) for index in range(5)]
    assert list(counts.instances) == instances
    # All at once, numbered by scikit-image.
    found = np.zeros(5, int)
    for label in maps:
        ids = measure.label(np.where(label == IGNORED, -1, label.astype(int)), background=-1,
                            connectivity=connectivity // 4)  # fmt: skip
        for number in range(1, ids.max() + 1):
            found[label[ids == number][0]] += 1
    assert list(counts.instances) == found.tolist()
    assert sum(counts.pixels) + counts.unlabelled == sum(label.size for label in maps)
    assert counts.unlabelled == sum(int((label == IGNORED).sum()) for label in maps)
    assert sum(steps) == counts.num_images == len(maps)


def test_a_hole_and_what_an_ignored_line_cuts_off_are_instances():
    counts = count_classes(Maps(rings(), num_classes=3))
    assert counts.instances == (3, 1, 1)
    assert count_classes(Maps(diagonals(), num_classes=4)).instances[1] == 1
    assert count_classes(Maps(diagonals(), num_classes=4), connectivity=4).instances[1] == 6


@pytest.mark.parametrize("ignore_index", [-100, 0, 255])
def test_the_ignored_index_may_be_a_class_or_nothing_that_occurs(ignore_index):
    label = np.array([[0, 0, 1], [2, 0, 1]], np.uint8)
    counts = count_classes(Maps(label, num_classes=3, ignore_index=ignore_index))
    ignores_zero = ignore_index == 0
    assert counts.pixels == (0 if ignores_zero else 3, 2, 1)
    assert counts.instances == (0 if ignores_zero else 1, 1, 1)
    assert counts.unlabelled == (3 if ignores_zero else 0)


def test_label_maps_are_held_a_few_at_a_time():
    class Counting(Maps):
        asked = 0

        def label(self, index: int) -> np.ndarray:
            self.asked += 1
            return super().label(index)

    dataset = Counting(*[np.zeros((4, 4), np.uint8)] * 200, num_classes=1)
    ahead: list[int] = []
    count_classes(dataset, progress=lambda _: ahead.append(dataset.asked))
    assert max(asked - done for done, asked in enumerate(ahead, 1)) <= 5


# What follows


def counts_of(
    pixels: tuple[int, ...], images: tuple[int, ...] = (), instances: tuple[int, ...] = ()
) -> ClassCounts:
    return ClassCounts(
        class_names=tuple("abcdefgh"[: len(pixels)]),
        ignore_index=255,
        connectivity=8,
        num_images=90,
        unlabelled=7,
        pixels=pixels,
        images=images or pixels,
        instances=instances or pixels,
    )


@pytest.mark.parametrize("beta", [None, 0.0, 0.99])
def test_what_follows_equals_the_formulas(beta):
    counts = counts_of((4000, 100, 7), (90, 20, 3), (95, 40, 3))
    derived = {
        each.title: each for each in class_statistics.derive(counts, beta=beta, max_margin=0.3)
    }

    def balanced(values: tuple[int, ...]) -> np.ndarray:
        n = np.array(values, float)
        b = (n.sum() - 1) / n.sum() if beta is None else beta
        weights = (1 - b) / (1 - b**n)
        return weights * len(n) / weights.sum()

    pixels = np.array(counts.pixels, float)
    expected = {
        "inverse frequency": 3 / pixels / (1 / pixels).sum(),
        "CB, pixels": balanced(counts.pixels),
        "CB, images": balanced(counts.images),
        "CB, instances": balanced(counts.instances),
        "LDAM margin": 0.3 * (7 / pixels) ** 0.25,
        "BMS log prior": np.log(pixels / pixels.sum()),
    }
    assert {*derived} == {*expected}
    for title, values in expected.items():
        np.testing.assert_allclose(derived[title].values, values, rtol=1e-5, err_msg=title)


@pytest.mark.parametrize(
    ("beta", "level"),
    [
        (None, set()),
        (0.999, {"CB, pixels"}),
        (0.99, {"CB, pixels"}),
        (0.0, {"CB, pixels", "CB, images", "CB, instances"}),
        (1 - 1e-12, set()),
    ],
)
def test_weights_that_change_nothing_are_told(beta, level):
    counts = counts_of((40_000_000, 1_000_000, 30_000), (80, 20, 3), (950, 40, 3))
    derived = class_statistics.derive(counts, beta=beta)
    assert {each.title for each in derived if each.problem} == level
    # Of classes that occur alike, weights are to be 1.
    assert not any(each.problem for each in class_statistics.derive(counts_of((9, 9)), beta=beta))


def test_a_class_without_counts_is_named_and_the_others_are_shown():
    counts = replace(counts_of((40, 0, 3)), class_names=("road", "class 1", "pole"))
    derived = class_statistics.derive(counts)
    for each in derived:
        assert each.values is None
        assert f"class 1 has no {each.unit}, of which {each.losses} needs" in each.problem
    table = class_statistics.statistics_table(counts, derived, beta=None, max_margin=0.5)
    assert "| road " in table
    assert "|     40 |" in table
    with pytest.raises(CountsError, match=r"class 0 \(a\), class 2 \(c\) have no pixels"):
        counts_of((0, 1, 0)).of_every_class("pixels", "bms")


# The file


def test_the_file_is_read_back(tmp_path):
    counts = replace(
        count_classes(Maps(rings(), num_classes=3)),
        class_names=("a|b", "\udcff", "\n"),
        source={"seed": "0"},
    )
    derived = class_statistics.derive(counts)
    class_statistics.write_statistics(counts, derived, tmp_path / "new")
    assert read_counts(tmp_path / "new" / "stats.json") == counts
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *class_statistics.STATISTICS_FILES
    }
    assert np.asarray(Image.open(tmp_path / "new" / "stats.png").convert("L")).std() > 10
    class_statistics.write_counts(counts, tmp_path / "counts.json")
    assert read_counts(tmp_path / "counts.json") == counts


@pytest.mark.parametrize("classes", [1, 3, 400])
def test_the_picture_takes_any_number_of_classes(tmp_path, classes):
    pixels = tuple(range(classes))
    counts = ClassCounts(
        ("$a_{", "_b", "x" * 300, *map(str, range(3, classes)))[:classes],
        255, 8, 9, 0, pixels, pixels, pixels,
    )  # fmt: skip
    class_statistics.write_statistics(counts, class_statistics.derive(counts), tmp_path)
    height, width = np.asarray(Image.open(tmp_path / "stats.png").convert("L")).shape
    assert max(height, width) < 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": None}, "'pixels' is missing"),
        ({"pixels": [1, 2]}, "pixels: expected a number for each of 3 classes"),
        ({"instances": [1, -2, 3]}, "instances: expected a whole number of at least 0 for class 1"),
        ({"images": [1, 2.5, 3]}, "images: expected a whole number of at least 0 for class 1"),
        ({"images": [1, True, 3]}, "images: expected a whole number of at least 0 for class 1"),
        ({"class_names": "abc"}, "class_names are no texts"),
        ({"ignore_index": "255"}, "ignore_index: expected a whole number, got '255'"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    record = asdict(counts_of((1, 2, 3))) | change
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    with pytest.raises(CountsError, match=r"stats\.json") as raised:
        read_counts(path)
    assert message in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"[" * 100_000, None])
def test_other_bytes_are_refused(tmp_path, content):
    path = tmp_path / "stats.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CountsError, match=r"stats\.json: (no such file|not what `segunc stats`)"):
        read_counts(path)


# The command


def counted(root: Path, split: str = "train", **options: Any) -> ClassCounts:
    options = {"num_classes": 3, "ignore_index": IGNORED, **options}
    return count_classes(FolderDataset(*find_split(root, split), **options))


def test_command_shows_and_writes_statistics(folder, capsys):
    command = ["stats", str(folder), "--ignore-index", "11", "--output", str(folder / "out")]
    assert exit_code([*command, "--class-names", "left", "middle", "right"]) == 0
    shown = capsys.readouterr()
    counts = read_counts(folder / "out" / "stats.json")
    expected = counted(folder, class_names=["left", "middle", "right"])
    assert counts == expected
    maps = [np.asarray(Image.open(path)) for path in sorted((folder / "trainannot").iterdir())]
    assert list(counts.pixels) == occurrences(maps, 3)["pixels"]
    table = (folder / "out" / "stats.md").read_text()
    assert table in shown.out
    middle = next(line for line in table.splitlines() if line.startswith("| middle"))
    assert [cell.strip() for cell in middle.split("|")[2:6]] == [
        f"{counts.pixels[1]:,}",
        f"{100 * counts.pixels[1] / sum(counts.pixels):.3f}",
        "4",
        str(counts.instances[1]),
    ]
    assert "count train: 100%" in shown.err
    assert exit_code(command) == 2
    assert "pass --overwrite or another --output" in capsys.readouterr().err
    more = ["--overwrite", "--split", "val", "--connectivity", "4", "--beta", "0.9"]
    assert exit_code([*command, *more]) == 0
    record = json.loads((folder / "out" / "stats.json").read_text())
    assert (record["connectivity"], record["num_images"], record["beta"]) == (4, 2, 0.9)
    assert "CB, pixels: the weights of all classes are 1" in capsys.readouterr().err


def test_command_counts_classes_that_labels_are_mapped_to(tmp_path, capsys):
    label = np.zeros((20, 30), np.uint8)
    label[5:15, 5:25] = 255
    label[8:12, 8:22] = 0  # a hole
    label[0, :] = 9
    write_pair(tmp_path, "train", "a", label, layout="images")
    write_pair(tmp_path, "val", "a", label, layout="images")
    command = ["stats", str(tmp_path), "--output", str(tmp_path / "out")]
    assert exit_code([*command, "--ignore-index", "7", "--map", "0:0", "255:1", "rest:7"]) == 0
    counts = read_counts(tmp_path / "out" / "stats.json")
    assert counts.pixels == (19 * 30 - 200 + 56, 200 - 56)
    assert counts.instances == (2, 1)
    assert counts.unlabelled == 30
    assert counts.source["label mapping"] == "0:0 255:1 rest:7"


def test_command_takes_undivided_data_and_tells_an_absent_class(tmp_path, capsys):
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / folder).mkdir()
        for index in range(5):
            image = Image.new(mode, (16, 8))
            if mode == "L":
                image.putdata([index % 2] * 64 + [3] * 64)
            image.save(tmp_path / folder / f"{index}.png")
    command = ["stats", str(tmp_path), "--output", str(tmp_path / "out"), "--split", "all"]
    assert exit_code(command) == 0
    shown = capsys.readouterr()
    assert read_counts(tmp_path / "out" / "stats.json").pixels == (192, 128, 0, 320)
    assert "warning: class 2 has no pixels, of which bms needs at least one" in shown.err
    assert "warning: class 2 has no instances, of which cb and cbfocal by instances" in shown.err
    assert "| class 2 |      0 |       0.000 |      0 |         0 |" in shown.out
    assert exit_code([*command, "--overwrite", "--held-out", "0.4"]) == 2
    assert exit_code([*command[:-1], "val", "--overwrite", "--held-out", "0.4"]) == 0
    assert read_counts(tmp_path / "out" / "stats.json").num_images == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DIR"),
        (["no/such/folder"], "argument DIR:"),
        ([".", "--beta", "1"], "argument --beta: expected a number in [0, 1)"),
        ([".", "--max-margin", "-1"], "argument --max-margin"),
        ([".", "--classes", "2", "--class-names", "a"], "argument --class-names"),
    ],
)
def test_command_names_a_wrong_argument(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code(["stats", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_statistics_of_before(folder, capsys):
    command = ["stats", str(folder), "--ignore-index", "11", "--output", str(folder / "out")]
    with full_disk():
        assert exit_code(command) == 1
    assert not (folder / "out").exists()
    assert exit_code(command) == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    with full_disk():
        assert exit_code([*command, "--overwrite", "--connectivity", "4"]) == 1
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before
    assert "cannot be written to" in capsys.readouterr().err


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """It interrupts even tests that run in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_statistics_that_are_interrupted_leave_nothing(folder, capsys, monkeypatch, signum, status):
    def interrupted(*arguments: Any, progress: Any, **options: Any) -> ClassCounts:
        return count_classes(*arguments, progress=lambda _: os.kill(os.getpid(), signum), **options)

    monkeypatch.setattr(class_counts, "count_classes", interrupted)
    command = ["stats", str(folder), "--ignore-index", "11", "--output", str(folder / "out")]
    assert exit_code(command) == status
    assert "segunc: interrupted; the same command starts again" in capsys.readouterr().err
    assert not (folder / "out").exists()
    monkeypatch.undo()
    assert exit_code(command) == 0


@pytest.mark.usefixtures("ctrl_c")
def test_statistics_are_written_whole_where_ctrl_c_comes_late(folder, monkeypatch):
    def late(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        draw(*arguments)

    draw = class_statistics.plot_class_counts
    monkeypatch.setattr(class_statistics, "plot_class_counts", late)
    command = ["stats", str(folder), "--ignore-index", "11", "--output", str(folder / "out")]
    assert exit_code(command) == 0
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == set(class_statistics.STATISTICS_FILES)


def test_one_image_is_no_images(tmp_path, capsys):
    label = np.zeros((1, 2), int)
    label[0, 1] = IGNORED
    write_pair(tmp_path, "train", "only", np.stack([label[0], [1, 0]]))
    write_pair(tmp_path, "val", "only", np.stack([label[0], [1, 0]]))
    command = ["stats", str(tmp_path), "--ignore-index", "11", "--output", str(tmp_path / "out")]
    assert exit_code(command) == 0
    assert "\n1 image, 3 labelled and 1 other pixel; instances" in capsys.readouterr().out


# Losses


def test_losses_of_the_registry_share_parameters_of_one_name():
    every: dict[str, Any] = {}
    for loss in LOSSES.values():
        for parameter in loss.parameters:
            assert every.setdefault(parameter.name, parameter) is parameter
    fields = set(training.TrainingConfig.__annotations__) - {"counts"}
    assert not fields & {*every}
    assert COUNTING_LOSSES == ("cb", "cbfocal", "bms", "ldam", "blv")


SCENE_COUNTS = ClassCounts(
    SceneDataset.class_names, 255, 8, 12, 0,
    *(tuple(scale * (2 + index) for index in range(len(SceneDataset.class_names)))
      for scale in (1000, 1, 3)),
)  # fmt: skip


@pytest.mark.parametrize("loss", LONG_TAIL)
def test_training_lowers_the_loss(train_scenes, val_scenes, loss):
    # What these are larger by, their gradients are too.
    rate = {"pat": 0.002, "ldam": 0.0005}.get(loss, 0.01)
    settings = config(loss, steps=25, validate_every=25, learning_rate=rate, counts=SCENE_COUNTS)
    history = training.Trainer(settings, train_scenes, val_scenes).fit(progress=False)
    assert np.mean(history.loss[-5:]) < 0.9 * np.mean(history.loss[:3])
    assert history.validation_steps == [25]


def test_criteria_are_made_of_their_parameters_and_counts():
    counts = counts_of((400, 100, 25), (90, 20, 3), (95, 40, 3))
    settings = config(
        gamma=1.5, temperature=3.0, curve="table", size_normalized=False, detach_weight=True,
        beta=0.9, balanced_by="images", max_margin=0.3, logit_scale=4.0, margin_on="all",
        sigma=0.2, distribution="uniform",
    )  # fmt: skip
    made = {loss: build_loss(loss, settings, 255, counts) for loss in LONG_TAIL}
    assert made["focal"].gamma == made["cbfocal"].gamma == 1.5
    assert made["focal"].weight is None
    modulation = made["pat"].modulation
    assert (modulation.temperature, modulation.curve) == (3.0, "table")
    assert not modulation.size_normalized
    assert modulation.detached
    ldam = made["ldam"]
    assert (ldam.max_margin, ldam.scale, ldam.margin_on) == (0.3, 4.0, "all")
    margins = 0.3 * (25 / np.array(counts.pixels)) ** 0.25
    np.testing.assert_allclose(ldam.offset, -4.0 * margins, rtol=1e-6)
    np.testing.assert_allclose(made["bms"].offset, np.log(np.array(counts.pixels) / 400), rtol=1e-6)
    blv, rarity = made["blv"], np.log(525 / np.array(counts.pixels))
    assert (blv.sigma, blv.distribution) == (0.2, "uniform")
    np.testing.assert_allclose(blv.offset, rarity / rarity.max(), rtol=1e-6)
    weights = 0.1 / (1 - 0.9 ** np.array(counts.images))
    for loss in ("cb", "cbfocal"):
        np.testing.assert_allclose(made[loss].weight, 3 * weights / weights.sum(), rtol=1e-5)
    by_default = build_loss("cb", config(), 255, counts).weight
    n = np.array(counts.instances)
    weights = 1 / (1 - (1 - 1 / n.sum()) ** n)
    np.testing.assert_allclose(by_default, 3 * weights / weights.sum(), rtol=1e-5)


def test_dice_is_made_of_its_parameters():
    made = build_loss("dice", config(), 255)
    assert made.overlap == DiceCrossEntropyLoss().overlap
    settings = config(ce_weight=0.5, dice_weight=2.0, batch_dice=True, include_background=False)
    made = build_loss("dice", settings, 255)
    assert made.overlap == made.overlap._replace(
        ce_weight=0.5, dice_weight=2.0, batch=True, include_background=False
    )
    assert (made.ignore_index, made.upsample) == (255, "bilinear")


def test_pat_is_as_many_times_a_pixel_mean_as_images_have_classes():
    """Where all pixels are alike: K exp((1 - p) / T) times cross-entropy."""
    target = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2, 2]).repeat(5, 1).reshape(5, 3, 3)
    logits = torch.zeros(5, 4, 3, 3)
    pat, plain = (float(build_loss(loss, config(), 255)(logits, target)) for loss in ("pat", "ce"))
    assert pat == pytest.approx(3 * math.exp(0.75 / 20) * plain, rel=1e-5)


@pytest.mark.parametrize("loss", COUNTING_LOSSES)
def test_losses_refuse_counts_they_cannot_be_made_of(train_scenes, val_scenes, loss):
    with pytest.raises(ValueError, match=f"the loss '{loss}' needs the"):
        training.Trainer(config(loss), train_scenes, val_scenes)
    with pytest.raises(CountsError, match="counts of 3 classes, but the images have"):
        training.Trainer(config(loss, counts=counts_of((1, 2, 3))), train_scenes, val_scenes)
    none = tuple([5] * 3 + [0] + [5] * (len(SCENE_COUNTS.class_names) - 4))
    counts = replace(SCENE_COUNTS, pixels=none, instances=none)
    with pytest.raises(CountsError, match=f"class 3 .* no .*--loss {loss} needs"):
        training.Trainer(config(loss, counts=counts), train_scenes, val_scenes)


@pytest.mark.parametrize(
    ("loss", "changes", "matters"),
    [
        ("ce", {"counts": None, "gamma": 5.0, "beta": 0.5, "balanced_by": "images"}, None),
        ("pat", {"counts": None, "gamma": 5.0, "logit_scale": 2.0}, None),
        ("pat", {"temperature": 5.0}, "temperature = 20.0, not 5.0"),
        ("pat", {"curve": "table"}, "curve = equation, not table"),
        ("focal", {"gamma": 5.0}, "gamma = 2.0, not 5.0"),
        ("cbfocal", {"gamma": 5.0}, "gamma = 2.0, not 5.0"),
        ("cb", {"gamma": 5.0, "counts": ("pixels", 3)}, None),
        ("cb", {"beta": 0.5}, "beta = None, not 0.5"),
        ("cb", {"balanced_by": "images"}, "balanced_by = instances, not images"),
        ("cb", {"counts": ("instances", 3)}, r"\d+ instances of class 3 \(\w+\), not 1"),
        ("cb", {"connectivity": 4}, "connectivity = 8, not 4"),
        ("bms", {"connectivity": 4, "counts": ("instances", 3)}, None),
        ("bms", {"counts": ("pixels", 0)}, r"\d+ pixels of class 0 \(\w+\), not 1"),
        ("ldam", {"logit_scale": 2.0}, "logit_scale = 20.0, not 2.0"),
        ("dice", {"counts": None, "gamma": 5.0}, None),
        ("dice", {"ce_weight": 0.5}, "ce_weight = 1.0, not 0.5"),
        ("dice", {"batch_dice": True}, "batch_dice = False, not True"),
    ],
)
def test_resume_refuses_what_matters_to_the_loss_alone(
    tmp_path, train_scenes, val_scenes, loss, changes, matters
):
    checkpoint = tmp_path / "checkpoint.pt"
    before = config(loss, counts=SCENE_COUNTS)
    training.Trainer(before, train_scenes, val_scenes, checkpoint).save()
    if isinstance(changes.get("counts"), tuple):
        unit, index = changes["counts"]
        counts = list(SCENE_COUNTS.of(unit))
        counts[index] = 1
        changes = {**changes, "counts": replace(SCENE_COUNTS, **{unit: tuple(counts)})}
    after = replace(before, **changes)
    other = training.Trainer(after, train_scenes, val_scenes, checkpoint)
    if matters is None:
        assert other.resume()
    else:
        with pytest.raises(training.CheckpointError, match=f"was trained with {matters}"):
            other.resume()


# Counts on the way


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a data set has been counted."""
    calls: list[int] = []
    count = experiment.count_classes

    def counted_too(*arguments: Any, **options: Any) -> ClassCounts:
        calls.append(1)
        return count(*arguments, **options)

    monkeypatch.setattr(experiment, "count_classes", counted_too)
    return calls


def experiment_of(folder: Path, train: Any, val: Any, *losses: str, **changes: Any) -> Experiment:
    settings = {name: changes.pop(name) for name in ("connectivity", "counts") if name in changes}
    return Experiment(
        config=config(steps=1, crop=(32, 32), validate_every=1, **settings),
        losses=losses,
        train=train,
        validation=val,
        folder=folder,
        eval_samples=2,
        progress=False,
        **changes,
    )


def test_counts_are_made_once_and_kept(tmp_path, train_scenes, val_scenes, counting):
    def make(*losses: str, **changes: Any) -> Experiment:
        return experiment_of(tmp_path / "run", train_scenes, val_scenes, *losses, **changes)

    assert with_counts(make("ce", "pat")).config.counts is None
    assert not list(tmp_path.iterdir())
    table = run(make("cb", "bms"))
    assert "CB: by the instances of each class. BMS: by the pixels of each class." in table
    assert len(counting) == 1
    counts = count_classes(train_scenes)
    assert read_counts(counts_path(tmp_path / "run")) == counts
    state = training.read_checkpoint(tmp_path / "run" / "checkpoint-cb.pt")
    assert class_counts.counts_from_dict(state["config"]["counts"]) == counts
    # For another loss too, and for a run that goes on, even without the file.
    assert with_counts(make("ldam")).config.counts == counts
    counts_path(tmp_path / "run").unlink()
    run(make("cb", "bms", "ldam", resume=True))
    assert len(counting) == 1
    # Those of others do not pass for these.
    class_statistics.write_counts(counts, counts_path(tmp_path / "run"))
    fewer = SceneDataset(5, seed=0, size=SIZE)
    for other in (
        make("ldam", connectivity=4),
        experiment_of(tmp_path / "run", fewer, val_scenes, "bms"),
    ):
        assert with_counts(other).config.counts != counts
    assert len(counting) == 3
    counts_path(tmp_path / "run").write_text("damaged")
    assert with_counts(make("ldam")).config.counts == counts


def test_no_loss_trains_where_a_class_that_another_needs_has_no_pixel(tmp_path, folder):
    dataset, val = (
        FolderDataset(*find_split(folder, split), num_classes=4, ignore_index=IGNORED)
        for split in ("train", "val")
    )
    with pytest.raises(CountsError, match="class 3 has no pixels, of which --loss bms needs"):
        run(experiment_of(tmp_path / "run", dataset, val, "ce", "bms"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["class-counts.json"]


def test_command_trains_by_counts_and_resumes_by_no_others(folder, capsys):
    shared = ["--ignore-index", "11"]
    statistics = ["stats", str(folder), *shared, "--output", str(folder / "stats")]
    assert exit_code(statistics) == 0
    file = folder / "stats" / "stats.json"
    command = ["train", "--data", str(folder), *shared, "--loss", "bms", "cb", "--steps", "1"]
    command += ["--batch-size", "2", "--crop", "32", "32", "--samples", "2"]
    command += ["--output", str(folder / "runs")]
    given = [*command, "--counts", str(file)]
    capsys.readouterr()
    assert exit_code([*given, "--balanced-by", "pixels", "--beta", "0.5"]) == 0
    shown = capsys.readouterr()
    assert "BMS: by the pixels of each class. CB: by the pixels of each class." in shown.out
    assert "warning: cb: the weights of all classes are 1 for" in shown.err
    assert "other label maps" not in shown.err
    assert not counts_path(folder / "runs" / "train").exists()
    # Without the file, by those it has.
    assert exit_code([*command, "--balanced-by", "pixels", "--beta", "0.5", "--resume"]) == 0
    capsys.readouterr()
    assert exit_code([*command, "--resume", "--class-names", *"abc"]) == 2
    shown = capsys.readouterr().err
    assert "argument --resume" in shown
    assert "was trained with other counts (class 0 is called 'class 0'" in shown
    record = json.loads(file.read_text())
    record["pixels"][1] = 17
    record["source"] = {}
    file.write_text(json.dumps(record))
    capsys.readouterr()
    assert exit_code([*given, "--resume"]) == 2
    shown = capsys.readouterr().err
    assert "pixels of class 1, not 17" in shown
    assert "stats.json was counted in other label maps" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "ce"], "argument --counts: expected --loss cb or cbfocal or bms or ldam"),
        (["--loss", "bms", "--classes", "4"], "counts of 3 classes, but the images have 4"),
        (["--loss", "bms", "--class-names", *"abc"], "class 0 is called 'class 0', that of the"),
    ],
)
def test_command_refuses_counts_of_other_classes(folder, capsys, arguments, message):
    class_statistics.write_counts(counted(folder), folder / "stats.json")
    command = ["train", "--data", str(folder), "--ignore-index", "11", *arguments]
    command += ["--counts", str(folder / "stats.json"), "--output", str(folder / "runs")]
    assert exit_code(command) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_demo_with_an_absent_class_tells_what_to_do(tmp_path, capsys):
    command = ["demo", "--scenes", "1", "--loss", "ce", "ldam", "--output", str(tmp_path)]
    assert exit_code(command) == 1
    shown = capsys.readouterr().err
    assert "no pixels, of which --loss ldam needs at least one of every class; generate" in shown
    assert "generate more scenes (--scenes)" in shown
    assert "--map" not in shown
    assert not list(tmp_path.rglob("*.pt"))


def test_command_names_an_absent_class_before_it_trains(folder, capsys):
    command = ["train", "--data", str(folder), "--ignore-index", "11", "--classes", "4"]
    command += ["--loss", "ce", "ldam", "--output", str(folder / "runs")]
    assert exit_code(command) == 1
    assert "class 3 has no pixels, of which --loss ldam needs" in capsys.readouterr().err
    assert not list((folder / "runs").rglob("*.pt"))
