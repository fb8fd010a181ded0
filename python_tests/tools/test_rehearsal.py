"""The rehearsal of the check on a GPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from python_tests import cpu_for_cuda
from python_tests.cpu_for_cuda import CpuForCuda
from tools import rehearsal, steps

TESTS = Path(__file__).parents[1]


def test_what_asks_for_a_gpu_gets_memory_of_its_own_on_the_cpu():
    device = torch.device("cuda", 0)
    with CpuForCuda():
        made = torch.zeros(3, device="cuda"), torch.full((3,), 1.0, device=device)
        x = torch.ones(3, 2)[:, :1].requires_grad_()
        moved = x.cuda(), x.to("cuda"), x.to(device), x.to(device=device), x.to(device, torch.int)
        stays = x.to("cpu")
    assert {tensor.device.type for tensor in (*made, *moved)} == {"cpu"}
    assert stays is x
    for tensor in moved:
        assert tensor.data_ptr() != x.data_ptr()
        assert torch.equal(tensor, x)
    (grad,) = torch.autograd.grad(moved[0].sum(), x)
    assert torch.equal(grad, torch.ones_like(x))


def test_what_only_a_gpu_does_is_tested():
    defined = {
        name
        for path in TESTS.glob("*/test_cuda.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert set(cpu_for_cuda.ONLY_A_GPU) <= defined


def run_collect(tmp_path, monkeypatch, text: str) -> steps.Step:
    """The step that collects, of a copy with one test file."""

    def stage(folder: Path) -> None:
        (folder / "python_tests" / "family").mkdir(parents=True)
        (folder / "python_tests" / "family" / "test_cuda.py").write_text(text)

    def run_step(name, command, **options):
        ran = name == "collect"
        return steps.run_step(name, command, **options) if ran else steps.Step(name, "passed")

    monkeypatch.setattr(rehearsal, "stage", stage)
    monkeypatch.setattr(rehearsal, "run_step", run_step)
    done = rehearsal.rehearse(Path(sys.executable), tmp_path / "a.whl", tmp_path)
    return next(step for step in done if step.name == "collect")


MARKED = "import pytest\n{imports}\npytestmark = pytest.mark." + "cuda\ndef test_it(): ...\n"


def test_a_test_that_imports_what_the_gpu_machine_lacks_fails_the_rehearsal(tmp_path, monkeypatch):
    lacking = run_collect(tmp_path / "a", monkeypatch, MARKED.format(imports="import no_such"))
    assert lacking.status == "failed"
    assert "No module named 'no_such'" in lacking.output_tail
    there = run_collect(tmp_path / "b", monkeypatch, MARKED.format(imports="import torch"))
    assert there.status == "passed"


@pytest.mark.parametrize("asked", [None, "python3.12"])
def test_an_interpreter_that_does_not_run_is_not_taken(asked, tmp_path, monkeypatch):
    shim = tmp_path / "python3.12"
    monkeypatch.setenv("PATH", str(tmp_path))
    for text in (None, "exit 127", f'test "$PYENV_VERSION" = 3.12 && exec {sys.executable} "$@"'):
        if text:
            shim.write_text(f"#!/bin/sh\n{text}\n")
            shim.chmod(0o755)
        if text and "exec" in text:
            assert rehearsal.find_python(asked) == sys.executable
        else:
            with pytest.raises(FileNotFoundError, match="--python: expected an interpreter"):
                rehearsal.find_python(asked)
