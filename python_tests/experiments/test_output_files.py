"""Outputs: tried before the work, written whole or not at all, whatever users call things."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from python_tests.experiments.cases import (
    IGNORED,
    exit_code,
    full_disk,
    train_member,
    write_images,
)
from segunc_ops import cli
from segunc_ops.experiments import experiment, plots, report
from segunc_ops.experiments.mask_files import MaskRecord, write_mask
from segunc_ops.experiments.output_files import (
    OutputError,
    remove_partial_files,
    try_output,
    whole_file,
)
from segunc_ops.experiments.training import (
    Trainer,
    TrainingConfig,
    checkpoint_bytes,
    read_checkpoint,
)
from segunc_ops.functional import predictive_statistics
from segunc_ops.metrics import SegmentationMetrics

NAMES = ("$x_{", "_background_", "дорога|a\nb")


def write_checkpoint(path: Path) -> None:
    with whole_file(path) as file:
        torch.save({"weights": torch.zeros(10_000)}, file)


def write_noise_mask(path: Path) -> None:
    values = np.random.default_rng(0).random((50, 60)).astype(np.float32)
    write_mask(path, values, MaskRecord(("a", "b"), "entropy", 3))


WRITERS = {
    "text": lambda path: report.write_text(path, "new" * 1000),
    "plot": lambda path: plots.save(Figure(), path),
    "mask": write_noise_mask,
    "checkpoint": write_checkpoint,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_named_and_loses_nothing(tmp_path, write):
    path = tmp_path / "result"
    path.write_bytes(b"of the run before")
    with full_disk(), pytest.raises(OutputError) as raised:
        write(path)
    assert str(raised.value) == f"{path}: cannot be written (File too large)"
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {
        "result": b"of the run before"
    }
    write(path)
    assert [each.name for each in tmp_path.iterdir()] == ["result"]
    assert path.read_bytes() != b"of the run before"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RuntimeError])
def test_what_goes_wrong_elsewhere_leaves_no_partial_file(tmp_path, error):
    def fail() -> None:
        with whole_file(tmp_path / "result") as file:
            file.write(b"half")
            raise error("elsewhere")

    with pytest.raises(error, match="elsewhere"):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_removed(tmp_path):
    kept = ("table.md", ".table.md.partial", ".other.0123456789abcdef.partial")
    for name in (*kept, ".table.md.0123456789abcdef.partial"):
        (tmp_path / name).write_text("half")
    remove_partial_files(tmp_path, {"table.md"})
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


# What stands in the way of an output, and what is said of it.
OBSTACLES = {
    "a file": ("{0}/file", "{0}/file: expected a folder for the output, got a file"),
    "below a file": ("{0}/file/run", "{0}/file: expected a folder for the output, got a file"),
    "a link to nothing": ("{0}/link", "{0}/link: expected a folder for the output, got a file"),
    "too long": ("{0}/" + 300 * "n", "cannot be written to (File name too long)"),
    "read-only": ("/proc/segunc", "/proc: cannot be written to ("),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("of the user")
    (tmp_path / "link").symlink_to("nothing")
    return tmp_path


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(("output", "message"), OBSTACLES.values(), ids=OBSTACLES)
@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["train", "--data", "{0}"],
        ["eval", "{0}/no.pt"],
        ["masks", "--data", "{0}", "--members", "no.pt"],
    ],
    ids=lambda command: command[0],
)
def test_the_output_is_tried_before_the_work(place, capsys, command, output, message):
    before = contents(place)
    arguments = [each.format(place) for each in (*command, "--output", output)]
    assert cli.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segunc: error: ")
    assert message.format(place) in line
    assert contents(place) == before


def test_a_folder_in_place_of_a_file_is_found_before_the_work(tmp_path, capsys):
    (tmp_path / "demo" / "table.json").mkdir(parents=True)
    assert cli.main(["demo", "--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/demo/table.json: a file is to be written here" in line


def test_trying_an_output_leaves_nothing(tmp_path):
    try_output(tmp_path / "a" / "b", ["table.md"])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_before_the_work(tmp_path):
    with full_disk(), pytest.raises(OutputError, match="cannot be written to"):
        try_output(tmp_path / "run")


# Names that users give


@pytest.mark.parametrize("loss", ["ce", "iu"])
def test_room_for_a_checkpoint_is_tried_before_the_training(folder, capsys, monkeypatch, loss):
    monkeypatch.setattr(Trainer, "fit", lambda self, **_: pytest.fail("trained"))
    run = folder / "runs" / "train"
    command = ["train", "--data", str(folder), "--ignore-index", "11", "--loss", loss]
    with full_disk(5_000_000):
        assert exit_code([*command, "--output", str(folder / "runs")]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert line.startswith(
        f"segunc: error: {run}/checkpoint-{loss}.pt: will not fit (File too large), as it takes "
    )
    assert not list(run.iterdir())


@pytest.mark.parametrize(
    ("loss", "num_classes", "optimizer"),
    [("ce", 3, "sgd"), ("iu", 3, "sgd"), ("ce", 1500, "sgd"), ("iu", 3, "adamw")],
)
def test_the_size_of_a_checkpoint_is_known_before_it_is_written(
    tmp_path, loss, num_classes, optimizer
):
    root = write_images(tmp_path, 3)
    path = train_member(root, 0, num_classes, loss, optimizer)
    recipe = TrainingConfig(**read_checkpoint(path)["config"])
    size = path.stat().st_size
    assert 0.95 * size < checkpoint_bytes(recipe, num_classes) < 1.05 * size


def test_pictures_show_names_as_they_are(tmp_path, monkeypatch):
    figures: list[Figure] = []
    write = plots.save

    def save(figure: Figure, path: Path) -> None:
        figures.append(figure)
        write(figure, path)

    monkeypatch.setattr(plots, "save", save)
    shape = (8, 9)
    panel = plots.Panel(
        np.zeros((*shape, 3), np.uint8),
        *(np.zeros(shape, int) for _ in range(2)),
        np.zeros(shape),
        np.ones(shape, int),
        np.zeros(shape),
    )
    names = ["$x_{", "$", r"\frac", r"$\alpha$", "_background_", "", "a\nb", "50 % {x}", "\udcff"]
    title = "runs/$a_{/$"
    plots.plot_panels([panel], names, tmp_path / "panels.png", ignore_index=255, title=title)
    plots.plot_curves(random_metrics(), tmp_path / "curves.png", title)
    shown = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert shown == [*names[:-1], r"\udcff", "ignored"]
    assert [figure.get_suptitle() for figure in figures] == [title, title]


def random_metrics() -> SegmentationMetrics:
    metrics = SegmentationMetrics(3, threshold=0.1)
    statistics = predictive_statistics(torch.randn(4, 1, 3, 8, 9), return_mean=True)
    metrics.update(statistics, torch.zeros(1, 8, 9, dtype=torch.int64))
    return metrics


def test_a_name_that_is_no_text_is_written(tmp_path):
    report.write_text(tmp_path / "table.md", "| \udcff |\n")
    assert (tmp_path / "table.md").read_text() == "| \\udcff |\n"


def test_command_takes_any_names_on_any_console(tmp_path, monkeypatch):
    root = write_images(tmp_path / "$data_{", 2, ((33, 50),))
    checkpoint = train_member(root, seed=0)
    arguments = ["eval", str(checkpoint), "--data", str(root), "--ignore-index", str(IGNORED)]
    arguments += ["--threshold", "0.1", "--samples", "2", "--class-names", *NAMES]
    console = io.BytesIO()
    stream = io.TextIOWrapper(console, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(arguments) == 0
    table = console.getvalue().decode("ascii")
    assert r"\u0434\u043e\u0440\u043e\u0433\u0430\|a b" in table
    folder = root / "eval"
    assert contents(folder) == set(experiment.EVALUATION_FILES)
    rows = (folder / "metrics.md").read_text(encoding="utf-8").splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:5]] == [*NAMES[:2], r"дорога\|a b"]
    record = json.loads((folder / "metrics.json").read_text())
    assert tuple(record["evaluation"]["class_names"]) == NAMES


def test_standard_output_that_is_full_is_named(monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["info"]) == 1
    assert capfd.readouterr().err == "segunc: error: standard output: No space left on device\n"
