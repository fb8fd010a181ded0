"""The check on a GPU and the calls for its sanitizers, without a GPU."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.implementations import MAX_AUTOTUNE
from tools import gpu_check, sanitizer_cases, steps


class TestGpuCheck:
    def run(self, code: str, limit: float = 60.0, **extra: object) -> steps.Step:
        command = [sys.executable, "-c", code]
        return steps.run_step("step", command, cwd=Path.cwd(), env=os.environ, limit=limit, **extra)

    def test_steps(self):
        passed = self.run("print('fine')")
        assert (passed.status, passed.returncode, passed.output_tail) == ("passed", 0, "fine\n")
        failed = self.run("import sys; sys.exit('broken')")
        assert (failed.status, failed.returncode) == ("failed", 1)
        assert "broken" in failed.output_tail

    def test_a_step_over_its_limit_ends_with_its_children(self, tmp_path):
        mark = tmp_path / "mark"
        child = f"import time; time.sleep(6); open({str(mark)!r}, 'w')"
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        begin = time.monotonic()
        step = self.run(code, limit=2.0)
        assert step.status == "timeout"
        assert time.monotonic() - begin < 5.5
        time.sleep(max(0.0, 7.0 - (time.monotonic() - begin)))
        assert not mark.exists()

    def test_folders_are_redacted_longest_first(self):
        redact = steps.Redactor({Path("/a"): "<a>", Path("/a/b"): "<b>"})
        assert redact("in /a/b/c and /a/d") == "in <b>/c and <a>/d"

    def test_the_newest_wheel(self, tmp_path, monkeypatch):
        monkeypatch.setattr(steps, "REPOSITORY", tmp_path)
        assert steps.find_wheel(None) == tmp_path
        (tmp_path / "dist").mkdir()
        for age, version in enumerate(("0.10.0", "0.9.0")):
            wheel = tmp_path / "dist" / f"segunc_ops-{version}-py3-none-any.whl"
            wheel.touch()
            os.utime(wheel, (1000 - age, 1000 - age))
        assert "0.10.0" in steps.find_wheel(None).name
        with pytest.raises(FileNotFoundError, match="--wheel: expected"):
            steps.find_wheel(tmp_path / "none.whl")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu(self, capsys):
        assert gpu_check.main([]) == 3
        assert "nothing to check here" in capsys.readouterr().err

    @pytest.fixture
    def check(self, tmp_path, monkeypatch) -> Callable[..., tuple[int, dict]]:
        """Runs the whole check with every command replaced by a given outcome."""

        def run(limit: float = 400.0, sanitizer: str | None = "tool", **outcomes: str):
            def step(name, command, *, cwd, env, limit, redact):
                assert (cwd / "tools" / "sanitizer_cases.py").exists()
                assert not (cwd / "segunc_ops").exists()
                commands.append(list(command))
                return steps.Step(name, outcomes.get(name, "passed"))

            commands: list[list[str]] = []
            monkeypatch.setattr(gpu_check, "run_step", step)
            monkeypatch.setattr(gpu_check, "_sanitizer", lambda: sanitizer)
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Example GPU")
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
            monkeypatch.setenv("OUT", str(tmp_path))
            code = gpu_check.main([f"--time-limit={limit}"])
            return code, json.loads((tmp_path / "gpu-check.json").read_text()), commands

        return run

    def test_all_steps(self, check):
        code, summary, commands = check()
        assert code == 0
        assert summary["passed"]
        names = [step["name"] for step in summary["steps"]]
        losses = ("cross_entropy", "dice", "expected_cross_entropy", "label_uncertainty")
        maps = ("statistics", "blocks", "components", "counts")
        families = (*losses, "overwriting", *maps, "benchmarks")
        tests = [f"tests of {family}" for family in families]
        sanitizers = ["memcheck", "racecheck", "initcheck", "synccheck"]
        assert names == ["install", "import", *tests, "install peers", "benchmarks", *sanitizers]
        assert summary["steps"][names.index("install peers")]["status"] == "skipped"
        names.remove("install peers")
        ran = dict(zip(names, commands, strict=True))
        assert {"--suite=quick", f"--leave-out={MAX_AUTOTUNE}"} <= set(ran["benchmarks"])
        assert {"--no-index", "--no-deps", "--target"} <= set(ran["install"])
        assert "python_tests/cross_entropy/test_cuda.py" in ran["tests of cross_entropy"]
        assert "--kernel-regex=kns=segunc" in ran["memcheck"]
        assert "--kernel-regex=kns=segunc" not in ran["initcheck"]

    def test_a_failed_step_does_not_stop_the_others(self, check):
        code, summary, _ = check(**{"tests of statistics": "failed", "racecheck": "timeout"})
        assert code == 1
        assert not summary["passed"]
        assert summary["steps"][-1]["name"] == "synccheck"

    def test_nothing_runs_without_an_installation(self, check):
        code, summary, _ = check(install="failed")
        assert code == 1
        assert [step["name"] for step in summary["steps"]] == ["install"]

    def test_peers_are_installed_before_the_benchmarks(self, check, tmp_path, monkeypatch):
        monkeypatch.setattr(gpu_check, "REPOSITORY", tmp_path)
        monkeypatch.setattr(gpu_check, "_PEERS", tmp_path / "peers")
        (tmp_path / "peers").mkdir()
        (tmp_path / "peers" / "peer-1.0-py3-none-any.whl").touch()
        _, summary, commands = check()
        names = [step["name"] for step in summary["steps"]]
        assert names.index("install peers") == names.index("benchmarks") - 1
        assert commands[names.index("install peers")][-1].endswith("peer-1.0-py3-none-any.whl")

    def test_what_is_missing_is_skipped_and_said(self, check):
        code, summary, _ = check(limit=10.0, sanitizer=None)
        assert code == 0
        skipped = {
            s["name"]: s["output_tail"] for s in summary["steps"] if s["status"] == "skipped"
        }
        assert skipped["memcheck"] == "compute-sanitizer was not found"
        assert "time limit" in skipped["benchmarks"]


def test_what_needs_a_gpu_is_in_the_files_that_the_check_runs():
    tests = Path(__file__).parents[1]
    marked = [path for path in tests.rglob("test_*.py") if "mark.cuda" in path.read_text()]
    assert {path.name for path in marked} - {Path(__file__).name} == {"test_cuda.py"}


def test_sanitizer_cases_run():
    assert sanitizer_cases.run("cpu") == 7 * 5 * 4 * 3
