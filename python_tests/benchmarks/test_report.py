"""What is made of rows: tables, plots and the page of the documentation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import costs, docs, families, report, rows
from benchmarks.families import variations
from benchmarks.families.cross_entropy import CrossEntropy
from benchmarks.families.variations import CROSS_ENTROPY, TORCH_NOISE
from benchmarks.implementations import EAGER, OURS
from python_tests.benchmarks.rows import curve_rows, example_rows, row_of

BOTH = "forward+backward"


class TestReport:
    def test_rows_come_from_pytest_benchmark(self):
        rows = example_rows()
        entries = [{"extra_info": row} for row in rows] + [{"extra_info": {}}]
        assert report.rows_of({"benchmarks": entries}) == rows
        with pytest.raises(ValueError, match="expected measurements"):
            report.rows_of({"benchmarks": [{"extra_info": {}}]})

    def test_markdown_states_ratios_and_device(self):
        text = report.markdown(example_rows())
        assert text.startswith("Measured on Example CPU, 2 threads (x86_64_v3), segunc_ops 0.1.0,")
        lines = [line for line in text.splitlines() if line.startswith("| [1, 19, 768, 768]")]
        assert len(lines) == 4
        assert all("50%" in line and "47.5 MB" in line for line in lines)
        (eager,) = (line for line in lines if "reference, eager" in line)
        assert "| 30 ms | 27 ms - 36 ms | 15x |" in eager
        header = next(line for line in text.splitlines() if line.startswith("| case"))
        assert all(line.count("|") == header.count("|") for line in lines)

    def test_curves_are_told_apart(self):
        text = report.markdown([*example_rows(), *curve_rows()])
        ordinary, curves = text.split("## Against pixels, classes and samples")
        assert "### predictive_statistics against samples" in curves
        assert curves.count("| [") == 6
        assert ordinary.count("| [") == 4

    def test_plots_draw_what_they_are_for(self):
        types = row_of(CrossEntropy((1, 11, 768, 768), "fp32", mode=BOTH, study="types"))
        measured = [*example_rows(), *curve_rows(), types]
        drawn = report.plots_of(measured)
        assert drawn == {
            ".png": example_rows(),
            "-showcase.png": example_rows(),
            "-scaling.png": curve_rows(),
            "-roofline.png": example_rows(),
        }
        older = [{k: v for k, v in row.items() if k != "operations"} for row in example_rows()]
        assert "-roofline.png" not in report.plots_of(older)

    def test_files(self, tmp_path):
        measured = [*example_rows(), *curve_rows()]
        paths = report.write(measured, tmp_path, suffix="-quick")
        stem = "example-cpu-2-threads-quick"
        assert {path.name for path in paths} == {
            f"{stem}.json",
            f"{stem}.md",
            f"{stem}.png",
            f"{stem}-showcase.png",
            f"{stem}-scaling.png",
            f"{stem}-roofline.png",
        }
        text = (tmp_path / f"{stem}.json").read_text()
        assert json.loads(text) == measured
        assert len(text.splitlines()) == 2 + len(measured)
        for path in paths:
            assert path.suffix != ".png" or path.read_bytes().startswith(b"\x89PNG")

    def test_one_device_a_file(self, tmp_path):
        rows = example_rows()
        rows[0]["device"] = "another"
        with pytest.raises(ValueError, match="one device, got"):
            report.write(rows, tmp_path)

    def test_a_results_file_is_reported_again(self, tmp_path):
        source = tmp_path / "rows.json"
        source.write_text(report.compact_json(example_rows()))
        assert report.main([str(source), "--output", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "example-cpu-2-threads.md").exists()

    @pytest.mark.parametrize(
        ("milliseconds", "text"), [(0.0123, "12.3 µs"), (4.5678, "4.57 ms"), (2345.0, "2.35 s")]
    )
    def test_durations(self, milliseconds, text):
        assert rows.duration(milliseconds) == text


def committed_results() -> list[Path]:
    """Not those that somebody has just measured here."""
    command = ["git", "ls-files", "-z", "*.json"]
    listed = subprocess.run(command, cwd=report.RESULTS, capture_output=True, text=True)
    if not listed.stdout:  # no repository, or a copy inside of one that does not know it
        return list(report.RESULTS.glob("*.json"))
    return [report.RESULTS / name for name in listed.stdout.split("\0") if name]


class TestDocs:
    def page(self, folder: Path, *files: tuple[str, list[dict[str, object]]]) -> str:
        for name, measured in files:
            (folder / f"{name}.json").write_text(report.compact_json(measured))
        return docs.page(folder)

    def test_the_page_is_that_of_the_results(self, tmp_path):
        for path in committed_results():
            shutil.copy(path, tmp_path)
        written = docs.PAGE.read_text(encoding="utf-8")
        assert written == docs.page(tmp_path), "`python -m benchmarks.docs` brings it up to date"

    def test_every_operation_has_a_paragraph(self, tmp_path):
        rows = [row_of(op.shown()) for op in families.OPS.values()]
        text = self.page(tmp_path, ("cpu", rows)).split("## What each kernel costs")[1]
        assert re.findall("^### (.*_.*)$", text, re.MULTILINE) == list(families.OPS)

    def test_links_lead_somewhere(self):
        links = re.findall(r"\]\(([^)]*)\)", docs.PAGE.read_text(encoding="utf-8"))
        assert links
        assert [link for link in links if not (docs.PAGE.parent / link).exists()] == []

    def test_figures(self, tmp_path):
        text = self.page(tmp_path, ("cpu", [*example_rows(), *curve_rows()]))
        # Showcase: ours, compiled, eager, no other peer, share of copy, memory.
        assert "| 2 ms | 9 ms (4.5x) | 30 ms (15x) |  | 50% | 47.5 MB (47.5 MB) |" in text
        assert "| fp32 | 2 ms |" in text  # the matrix, without the peers that it compares with
        assert "| ours | S^1.00 | 6 ms | 24 ms | 2 MB | 8 MB |" in text
        assert "| ours, streamed | S^1.00 | 6 ms | 24 ms | 5 MB | 5 MB |" in text
        # Costs: 19 classes in and out in fp32 with 12 bytes of a pixel, at 100 GB/s; operations
        # at 200 GFLOP/s.
        pixels = 768 * 768
        moved = pixels * (2 * 4 * 19 + 12)
        operations = pixels * (19 * (costs.EXP + 4) + costs.LOG + 11)
        cells = (
            *(f"{moved / 1e6:.3g} MB", f"{moved / 1e6:.3g} MB", f"{pixels * 76 / 1e6:.3g} MB"),
            *(rows.duration(moved / 1e8), rows.duration(operations / 2e8), "50", "50%"),
        )
        assert f"forward+backward: ours | 2 ms | {' | '.join(cells)} |" in text
        assert f"ours, kernel alone | 1 ms | {cells[0]} | {cells[1]} |  |" in text
        for ending in ("-showcase.png", "-scaling.png", "-roofline.png"):
            assert f"(../benchmarks/results/cpu{ending})" in text
        assert "Not measured" in text

    def test_variations_are_related_to_cross_entropy(self, tmp_path):
        case = variations.OPS[-1]((1, 19, 768, 768), "fp32", mode=BOTH)
        times = {OURS: 3.0, CROSS_ENTROPY: 2.0, EAGER: 900.0, TORCH_NOISE: 30.0}
        measured = [row_of(case, name, time) for name, time in times.items()]
        text = self.page(tmp_path, ("cpu", measured))
        wanted = (
            f"| {case.op} [1, 19, 768, 768] fp32, {BOTH} | 3 ms | 1.5x |  | 30 ms (10x) | 50% |"
        )
        assert wanted in text
        (tmp_path / "cpu.json").unlink()
        assert "Variations" not in self.page(tmp_path, ("cpu", example_rows()))

    def test_a_gpu(self, tmp_path):
        here = {"device": "Example GPU", "device_type": "cuda", "cuda": "13.0"}
        case = CrossEntropy((1, 19, 768, 768), "fp32", mode=BOTH)
        quick = [row_of(case, **here)]
        everything = [row_of(case, **here), row_of(case, EAGER, 20.0, **here)]
        text = self.page(
            tmp_path,
            ("a-gpu", quick),
            ("cpu", example_rows()),
            ("gpu-quick", everything),
            ("gpu-selection", everything * 2),
        )
        assert "Not measured" not in text
        # After the processor, from the file with the most rows that is not a part of one.
        assert text.index("## Example CPU, 2 threads") < text.index("## Example GPU")
        assert "(../benchmarks/results/gpu-quick-showcase.png)" in text
        assert "| 2 ms |  | 20 ms (10x) |" in text
        # What a CPU kernel moves is not known of a GPU's.
        assert "ours | 2 ms | 96.7 MB |  |  |" in text

    def test_without_results(self, tmp_path):
        (tmp_path / "gpu-check.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match="expected results"):
            docs.page(tmp_path)

    def test_slope(self):
        assert docs.slope([(x, 3 * x**1.5) for x in (2, 4, 8, 64)]) == pytest.approx(1.5)
