"""``segunc sweep``: cascades over thresholds and blocks, each point measured."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.experiments.cases import (
    CPU,
    IGNORED,
    dataset_of,
    exit_code,
    full_disk,
    train_member,
    write_images,
)
from segunc_ops import Cascade, block_oracle, cli, pixel_oracle
from segunc_ops.experiments import sweep as sweeping
from segunc_ops.experiments.cascades import cascade_networks
from segunc_ops.experiments.datasets import collate, normalize
from segunc_ops.experiments.evaluation import deterministic_miou
from segunc_ops.experiments.factories import FactoryError, make_network
from segunc_ops.experiments.sweep import (
    Blocks,
    BlockSweep,
    Point,
    Sweep,
    best_between,
    best_within,
    fastest_reaching,
    no_worse,
    share_thresholds,
    sweep_finding,
)
from segunc_ops.functional import predictive_statistics
from segunc_ops.metrics import MeanIoU

INF = math.inf
BLOCKS = ("24", "20x32")
THRESHOLDS = ("0.9",)

FACTORIES = """
import time
from torch import nn

class Slow(nn.Conv2d):
    def forward(self, images):
        time.sleep(0.01)
        return super().forward(images)

def slow():
    return Slow(3, 3, 1)

def fast():
    return nn.Conv2d(3, 3, 4, 4)

def wrong():
    return nn.Conv2d(3, 5, 1)

def broken():
    raise RuntimeError("no weights")

def nothing():
    return None
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), 2)


@pytest.fixture(scope="module")
def checkpoints(data) -> list[Path]:
    """Two networks, and two that trained together."""
    return [train_member(data, 0), train_member(data, 1), train_member(data, 2, loss="iu")]


@pytest.fixture(scope="module", autouse=True)
def _one_order() -> Iterator[None]:
    """Networks as small as these take about as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping._Measurement, "fastest_first", lambda self: [1, 0])
        yield


fastest_first = sweeping._Measurement.fastest_first


def command(checkpoints: list[Path], data: Path, folder: Path, *options: str) -> list[str]:
    arguments = ["sweep", *map(str, checkpoints[:2]), "--data", str(data)]
    arguments += ["--ignore-index", str(IGNORED), "--output", str(folder), "--repeats", "1"]
    return [*arguments, "--scale", "1", "0.5", *options]


@pytest.fixture(scope="module")
def swept(checkpoints, data, tmp_path_factory) -> Path:
    """A sweep that nobody may change."""
    folder = tmp_path_factory.mktemp("sweep")
    options = ["--block-size", *BLOCKS, "--threshold", *THRESHOLDS, "--context", "0", "5"]
    assert cli.main(command(checkpoints, data, folder, *options)) == 0
    return folder


def record_of(folder: Path) -> Sweep:
    return Sweep.from_dict(json.loads((folder / "sweep.json").read_text()))


def without_times(folder: Path) -> str:
    record = json.loads((folder / "sweep.json").read_text())
    record.pop("timing")
    return re.sub(r'"milliseconds": [0-9.e-]+', "", json.dumps(record))


# Values


def test_the_curve_ends_in_the_networks_own_figures(checkpoints, data, swept):
    found, dataset = record_of(swept), dataset_of(data, "val")
    networks = [each.network for each in cascade_networks(checkpoints[:2], scales=[1, 0.5])]
    own = [deterministic_miou(network, dataset, device=CPU) for network in networks]
    assert [point.mean_iou for point in found.alone] == pytest.approx(own, abs=1e-12)
    fast, accurate = found.order
    assert len(found.sweeps) == 4
    for each in found.sweeps.values():
        blocks = each.blocks
        assert sorted(each.points) == [-INF, 0.9, INF]
        assert each.points[INF].mean_iou == found.alone[fast].mean_iou
        assert each.points[INF].blocks == (0,)
        assert each.points[-INF].blocks == (each.number,)
        cascade = Cascade(
            [networks[fast], networks[accurate]],
            blocks.block_size,
            -INF,
            blocks.stride,
            context=blocks.context,
        )
        scores = [MeanIoU(3, ignore_index=IGNORED) for _ in range(3)]
        for index in range(len(dataset)):
            batch = collate([dataset[index]])
            images = normalize(batch.images, CPU, channels_last=False)
            with torch.no_grad():
                logits = [networks[index](images) for index in found.order]
            size = images.shape[2:]
            whole = [predictive_statistics([z], size=size).prediction for z in logits]
            by_blocks = cascade(images).prediction
            oracle = block_oracle(
                [whole[0], by_blocks],
                batch.target,
                blocks.block_size,
                blocks.stride,
                ignore_index=IGNORED,
            )
            best = pixel_oracle(whole, batch.target, ignore_index=IGNORED)
            for score, prediction in zip(
                scores, (by_blocks, oracle.prediction, best.prediction), strict=True
            ):
                one_hot = torch.nn.functional.one_hot(prediction, 3).movedim(-1, 1).float()
                score.update(one_hot, batch.target)
        expected = [float(score.compute()) for score in scores]
        values = [each.points[-INF].mean_iou, each.oracle.mean_iou, found.pixel_oracle]
        assert values == pytest.approx(expected, abs=1e-6)


def test_times_are_of_all_points_in_turn(swept):
    found = record_of(swept)
    points = [point for each in found.sweeps.values() for point in each.points.values()]
    runs = len(points) + len(found.alone)
    assert len(found.timing.of["points"]) == len(points) == 12
    assert found.timing.of["images"] == [0, 1]
    assert [len(row) for row in found.timing.milliseconds] == [runs] * 2
    means = np.mean(found.timing.milliseconds, 0)
    times = [point.milliseconds for point in (*found.alone, *points)]
    assert sorted(times) == pytest.approx(sorted(means))
    assert min(times) > 0


def test_files_tell_all(checkpoints, swept):
    assert {path.name for path in swept.iterdir()} == {*sweeping.SWEEP_FILES}
    table = (swept / "sweep.md").read_text()
    for text in (
        f"{checkpoints[1]} at 0.5",
        "oracle by pixels",
        "| 20x32, context 5 |",
        "-inf |",
        "more accurate than",
        "mIoU over 2 images",
        "the median of 1 repetition.",
    ):
        assert text in table
    assert np.asarray(Image.open(swept / "sweep.png").convert("L")).std() > 10


def test_thresholds_let_shares_through():
    uncertainty = torch.rand(200, generator=torch.Generator().manual_seed(0))
    thresholds = share_thresholds(uncertainty, (0.1, 0.5))
    shares = [float((uncertainty > threshold).float().mean()) for threshold in thresholds]
    assert shares == pytest.approx([0.1, 0.5], abs=0.005)
    assert share_thresholds(torch.zeros(3), (0.1, 1)) == [0.0]


def test_blocks_and_thresholds_are_chosen_where_none_are_given(
    checkpoints, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(sweeping, "_SHARES", (0.1, 0.5))
    assert exit_code(command(checkpoints, data, tmp_path, "--timed-images", "1")) == 0
    found = record_of(tmp_path)
    assert [each.blocks.block_size for each in found.sweeps.values()] == [(11, 11), (22, 22)]
    for each in found.sweeps.values():
        assert {INF, -INF} < each.points.keys()
        assert len(each.points) == 2 + len(each.thresholds) == 4
    assert len(found.timing.milliseconds) == 1


# Going on


def test_an_interrupted_sweep_goes_on(checkpoints, data, swept, tmp_path, capsys, monkeypatch):
    options = ["--block-size", *BLOCKS, "--threshold", *THRESHOLDS, "--context", "0", "5"]
    arguments = command(checkpoints, data, tmp_path, *options)
    measured: list[float] = []
    point, take_turns = sweeping._Measurement.point, sweeping._Measurement.take_turns

    def counted(self, order, blocks, threshold) -> Point:
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(threshold)
        return point(self, order, blocks, threshold)

    monkeypatch.setattr(sweeping._Measurement, "point", counted)
    assert cli.main(arguments) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
    found = record_of(tmp_path)
    assert sum(len(each.points) for each in found.sweeps.values()) == 5
    measured.clear()
    measured.append(0)
    monkeypatch.setattr(
        sweeping._Measurement,
        "point",
        lambda self, *rest: measured.append(rest[2]) or point(self, *rest),
    )
    timed: list[int] = []

    def stopping(self, runs, image, repeats) -> list[float]:
        timed.append(image)
        if timed == [0, 0, 1]:  # the first to warm up
            raise KeyboardInterrupt
        return take_turns(self, runs, image, repeats)

    monkeypatch.setattr(sweeping._Measurement, "take_turns", stopping)
    assert cli.main(arguments) == 130
    assert len(measured) == 1 + 12 - 5
    assert len(record_of(tmp_path).timing.milliseconds) == 1
    assert cli.main(arguments) == 0
    assert len(measured) == 1 + 12 - 5
    assert timed == [0, 0, 1, 1, 1]
    assert without_times(tmp_path) == without_times(swept)


def test_a_sweep_is_extended(checkpoints, data, swept, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    shutil.copytree(swept, folder)
    measured = []
    point = sweeping._Measurement.point
    monkeypatch.setattr(
        sweeping._Measurement,
        "point",
        lambda self, *rest: measured.append(rest[1:]) or point(self, *rest),
    )
    more = ["--block-size", "24", "40", "--stride", "24", "--threshold", "0.7"]
    assert cli.main(command(checkpoints, data, folder, *more)) == 0
    same, overlapping = Blocks((24, 24), (24, 24)), Blocks((40, 40), (24, 24))
    assert measured == [(same, 0.7), *((overlapping, t) for t in (INF, 0.7, -INF))]
    before, after = record_of(swept), record_of(folder)
    assert [point.mean_iou for point in after.alone] == [p.mean_iou for p in before.alone]
    assert len(after.timing.of["points"]) == len(before.timing.of["points"]) + 4
    assert "| 40, stride 24 " in (folder / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("network", r"sweep\.json: is a sweep of other networks; pass --overwrite or another"),
        ("data", r"sweep\.json: is a sweep of other data; pass --overwrite or"),
        ("text", r"sweep\.json: is no record of a sweep, or damaged; pass --overwrite"),
        ("other", r"sweep\.json: is no record of a sweep, or damaged; pass --overwrite"),
        ("disk", r"cannot be written to \(File too large\)"),
    ],
)
def test_another_sweep_is_left_alone(checkpoints, data, swept, tmp_path, capsys, spoil, message):
    folder = tmp_path / "sweep"
    shutil.copytree(swept, folder)
    path = folder / "sweep.json"
    arguments = command(checkpoints, data, folder, "--block-size", "40")
    if spoil == "network":
        arguments[arguments.index("0.5")] = "0.25"
    elif spoil == "data":
        arguments += ["--map", "0:0", "1:1", "2:2", f"rest:{IGNORED}"]
    elif spoil in ("text", "other"):
        path.write_text({"text": "a sweep", "other": "[]"}[spoil])
    before = path.read_bytes()
    with full_disk(free=500) if spoil == "disk" else nullcontext():
        assert cli.main(arguments) == 1
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert path.read_bytes() == before


def test_blocks_that_do_not_fit_leave_nothing(checkpoints, data, swept, tmp_path, capsys):
    folder = tmp_path / "sweep"
    shutil.copytree(swept, folder)
    assert cli.main(command(checkpoints, data, folder, "--block-size", "24", "46")) == 1
    assert "image 0 of the data: block_size: expected at most" in capsys.readouterr().err
    assert record_of(folder).to_dict() == record_of(swept).to_dict()


def test_a_sweep_is_replaced_where_that_is_asked_for(checkpoints, data, swept, tmp_path):
    shutil.copytree(swept, tmp_path / "sweep")
    options = ["--block-size", "40", "--threshold", "0.5", "--overwrite", "--timed-images", "1"]
    assert cli.main(command(checkpoints, data, tmp_path / "sweep", *options)) == 0
    assert [*record_of(tmp_path / "sweep").sweeps] == [Blocks((40, 40), (40, 40))]


def test_what_is_replaced_does_not_pass_for_an_interrupted_sweep(
    checkpoints, data, swept, tmp_path, monkeypatch
):
    shutil.copytree(swept, tmp_path / "sweep")

    def interrupt(self, index) -> Point:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping._Measurement, "alone", interrupt)
    assert cli.main(command(checkpoints, data, tmp_path / "sweep", "--overwrite")) == 130
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["sweep.json"]


# Answers


def test_thresholds_for_a_time_or_an_accuracy(checkpoints, data, swept, tmp_path, capsys):
    options = ["--block-size", *BLOCKS, "--threshold", *THRESHOLDS, "--context", "0", "5"]
    arguments = command(checkpoints, data, swept, *options)
    found = record_of(swept)
    points = [point for each in found.sweeps.values() for point in each.points.values()]
    best = max(point.mean_iou for point in points)
    limit = sorted(point.milliseconds for point in points)[6]
    asked = ["--time-ms", str(limit), "--miou", str(100 * best - 1e-6)]
    assert cli.main([*arguments, *asked, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    within = [point for point in points if point.milliseconds <= limit]
    answers = printed["answers"]
    assert answers["time_ms"]["mean_iou"] == max(point.mean_iou for point in within)
    assert answers["time_ms"]["milliseconds"] <= limit
    reaching = [point for point in points if point.mean_iou == best]
    assert answers["miou"]["milliseconds"] == min(point.milliseconds for point in reaching)
    assert cli.main([*arguments, "--time-ms", "0", "--miou", "100"]) == 0
    shown = capsys.readouterr().out
    assert "within 0 ms: no point of the sweep." in shown
    assert cli.main([*arguments, *asked]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"within [0-9.]+ ms: threshold \S+ with blocks of", shown)
    # What it advises does what it measured.
    advised = [line for line in shown.splitlines() if line.startswith("  segunc predict")][-1]
    words = shlex.split(advised.replace("IMAGES", str(data / "val")))[1:]
    words[words.index("maps")] = str(tmp_path / "maps")
    assert cli.main(words) == 0
    assert "predicted by a cascade of 2" in capsys.readouterr().out
    score = MeanIoU(3, ignore_index=IGNORED)
    dataset = dataset_of(data, "val")
    for index in range(len(dataset)):
        classes = np.array(Image.open(tmp_path / "maps" / "classes" / f"{index:03}.png"))
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(classes).long(), 3)
        target = torch.from_numpy(dataset[index].label)[None]
        score.update(one_hot.movedim(-1, 0)[None].float(), target)
    assert float(score.compute()) == pytest.approx(best)


def test_answers_are_chosen_among_points_beside_networks_alone():
    blocks = Blocks((8, 8), (8, 8))
    points = [
        Point(t, iou, (), ms) for t, iou, ms in ((INF, 0.4, 3), (0.5, 0.6, 5), (-INF, 0.5, 9))
    ]
    found = Sweep({}, [0, 1], [Point(math.nan, 0.4, (), 2), Point(math.nan, 0.6, (), 8)])
    found.sweeps[blocks] = BlockSweep(blocks, points={point.threshold: point for point in points})
    assert best_within(found, 9) == best_within(found, 5) == (blocks, points[1])
    assert best_within(found, 4) == (blocks, points[0])
    assert best_within(found, 2) is None
    assert fastest_reaching(found, 0.5) == fastest_reaching(found, 0.6) == (blocks, points[1])
    assert fastest_reaching(found, 0.4) == (blocks, points[0])
    assert fastest_reaching(found, 0.61) is None
    assert [no_worse(found, point) for point in points] == [[0], [], [1]]
    assert best_between(found) == (blocks, points[1])
    assert sweep_finding(found, ["a", "b\nc"]) == (
        "Blocks of 8 with a threshold of 0.5 bits are more accurate than a (60.00 against 40.00 % "
        "mIoU) and faster than b c (5.00 against 8.00 ms; 60.00 % mIoU)."
    )
    found.alone[1] = Point(math.nan, 0.6, (), 5)
    assert best_between(found) is None
    told = sweep_finding(found, ["a", "b"])
    assert told == "No cascade is more accurate than a and faster than b."


# Networks


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A working directory with a module of factories."""
    (tmp_path / "own_networks.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_networks_of_ones_own_take_part_the_fastest_first(
    own, data, checkpoints, capsys, monkeypatch
):
    monkeypatch.setattr(sweeping._Measurement, "fastest_first", fastest_first)
    arguments = ["sweep", "--model", "own_networks:slow", "own_networks:fast", "--data", str(data)]
    arguments += ["--ignore-index", str(IGNORED), "--block-size", "16", "--threshold", "0.5"]
    assert cli.main([*arguments, "--repeats", "1", "--time-ms", "1e6"]) == 0
    found = record_of(own / "runs" / "sweep")
    assert found.order == [1, 0]
    assert found.alone[0].milliseconds > 10
    shown = capsys.readouterr().out
    assert "segunc predict" not in shown
    assert shown.index("own_networks:fast") < shown.index("own_networks:slow")
    # Three: the checkpoint is one of them.
    arguments.insert(1, str(checkpoints[0]))
    assert cli.main([*arguments, "--repeats", "1", "--output", "three"]) == 0
    three = record_of(own / "three")
    (each,) = three.sweeps.values()
    assert each.points[-INF].blocks == (each.number, each.number)
    assert f"{each.number:.2f} / {each.number:.2f} of" in (own / "three" / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks", "own_networks: expected package.module:factory"),
        ("own_networks:", "own_networks:: expected package.module:factory"),
        ("no_such_module:build", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("own_networks:absent", "AttributeError"),
        ("own_networks:broken", "own_networks:broken: RuntimeError: no weights"),
        ("own_networks:nothing", "expected a torch.nn.Module, got NoneType"),
    ],
)
def test_factories_that_make_no_network(own, name, message):
    with pytest.raises(FactoryError, match=re.escape(message)):
        make_network(name)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["{0}"], 2, "argument CHECKPOINT: expected two networks or more, with --model, got 1"),
        (["{0}", "{2}"], 2, "holds 2 networks that trained together; a cascade takes checkpoints"),
        (["{0}", "no.pt"], 2, "no.pt: no such file"),
        (["{0}", "{1}", "--scale", "1"], 2, "argument --scale: expected 2 factors, got 1"),
        (["{0}", "{1}", "--block-size", "0"], 2, "argument --block-size: expected at least 1"),
        (["{0}", "{1}", "--block-size", "4y4"], 2, "argument --block-size: expected a whole"),
        (
            ["{0}", "{1}", "--block-size", "8", "8", "--stride", "8", "8", "8"],
            2,
            "argument --stride: expected one, or 2 for as many of --block-size, got 3",
        ),
        (
            ["{0}", "{1}", "--block-size", "8", "--stride", "9"],
            2,
            "argument --stride: expected at most the block size 8x8, got 9x9",
        ),
        (["{0}", "{1}", "--threshold", "-0.5"], 2, "argument --threshold"),
        (["{0}", "{1}", "--miou", "101"], 2, "argument --miou"),
        (["{0}", "{1}", "--block-size", "46"], 1, "image 0 of the data: block_size: expected at"),
        (["{0}", "--model", "own_networks:broken"], 2, "argument --model: own_networks:broken"),
        (["{0}", "--model", "own_networks:wrong"], 1, "own_networks:wrong: gives an output of"),
    ],
)
def test_command_names_what_cannot_be(own, checkpoints, data, capsys, options, code, message):
    options = [each.format(*checkpoints) for each in options]
    arguments = ["sweep", *options, "--data", str(data), "--ignore-index", str(IGNORED)]
    assert exit_code(arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_scenes_are_for_networks_of_the_demo(checkpoints, capsys):
    assert exit_code(["sweep", *map(str, checkpoints[:2])]) == 2
    assert "argument --data: is missing; only networks of `segunc demo`" in capsys.readouterr().err


# The demo


@pytest.mark.thorough
def test_demo_measures_a_cascade_of_a_network_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.scenes, "SIZE", (48, 72))
    monkeypatch.setattr(cli.scenes, "VALIDATION_SCENES", 3)
    monkeypatch.setattr(cli.scenes, "REFERENCE_SCENES", 2)
    monkeypatch.setattr(cli.demo, "_CASCADE_SHARES", (0.2,))
    demo = ["demo", "--scenes", "4", "--loss", "ce", "--samples", "2", "--batch-size", "2"]
    demo += ["--crop", "32", "32", "--steps", "1", "--output", str(tmp_path)]
    assert exit_code(demo) == 0
    shown, folder = capsys.readouterr().out, tmp_path / "demo" / "cascade"
    assert {path.name for path in folder.iterdir()} == {*sweeping.SWEEP_FILES}
    assert (folder / "sweep.md").read_text() in shown
    assert f"Written to {folder}: sweep.md" in shown
    found = record_of(folder)
    assert [*found.sweeps] == [Blocks((16, 24), (16, 24), 4)]
    checkpoint = tmp_path / "demo" / "checkpoint-ce.pt"
    quarter, whole = (each.network for each in cascade_networks([checkpoint] * 2, (), (0.25, 1)))
    validation = cli.scenes.validation_scenes(0)
    own = [deterministic_miou(network, validation, device=CPU) for network in (quarter, whole)]
    assert [point.mean_iou for point in found.alone] == pytest.approx(own, abs=1e-12)
    # An extended run has other networks.
    assert exit_code([*demo[:-3], "2", *demo[-2:], "--resume"]) == 0
    assert record_of(folder).identity["networks"] != found.identity["networks"]


def test_demo_of_members_alone_has_no_cascade():
    arguments = cli.build_parser().parse_args(["demo", "--loss", "iu", "label-uncertainty"])
    assert cli.demo._cascade_loss(arguments) is None
    arguments.loss = ["iu", "dice", "ce"]
    assert cli.demo._cascade_loss(arguments) == "dice"
