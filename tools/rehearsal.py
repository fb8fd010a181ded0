"""The check on a GPU, rehearsed where there is none: `make rehearse`.

Makes an environment of the packages that the GPU machine has (gpu_machine.txt) and no others, with
torch's CUDA build, and installs the built wheel there. Then, in a copy of tests and benchmarks:

  import      both native libraries load, and every operator has a kernel for CUDA
  trace       CUDA tensors without memory go through every operator
  collect     every CUDA test file imports
  tests       the CUDA tests, with the CPU in place of the GPU (python_tests/cpu_for_cuda.py)
  sanitizer   the calls that compute-sanitizer watches, on the CPU
  benchmarks  the showcase, on the CPU, as many cases as a minute takes

It goes on where it was stopped: an environment of these packages is used again.

Exit status: 0 all steps passed, 1 one failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .steps import REPOSITORY, Step, cuda_tests, find_wheel, run_step, stage

PACKAGES = Path(__file__).parent / "gpu_machine.txt"

_FOLDER = REPOSITORY / "build" / "rehearsal"
_VERSION = "3.12"  # the oldest that these packages install with
_PYTHON = f"python{_VERSION}"
_COST = "3 GB to download, 7 GB of disk"
_BENCHMARK_SECONDS = 60.0
_LIMIT = 1800.0

_IMPORT = """
import sys, torch, segunc_ops
info = segunc_ops.build_info()
print(info)
if info["cpu"] != "native" or info["cuda"] != "native":
    sys.exit("expected native kernels on cpu and cuda")
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
named = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("segunc_ops::")]
operators = [name for name in named if has_kernel(name, "CPU")]
lacking = [name for name in operators if not has_kernel(name, "CUDA")]
print(f"{len(operators)} operators")
if lacking or not operators:
    sys.exit(f"no CUDA kernel of {', '.join(lacking) or 'anything'}")
"""
_TRACE = """
import torch, segunc_ops.functional as sf
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    x = torch.empty(2, 19, 16, 24, device="cuda", requires_grad=True)
    labels = torch.zeros(2, 16, 24, dtype=torch.long, device="cuda")
    large = torch.zeros(2, 64, 96, dtype=torch.long, device="cuda")
    results = [
        sf.cross_entropy(x, labels),
        sf.cross_entropy(x, large, upsample="bilinear"),
        *sf.predictive_statistics([x, x]),
        sf.block_uncertainty(x, block_size=8),
        *sf.connected_components(labels),
        sf.component_mean(x[:, 0], labels),
    ]
    assert all(r is None or r.device.type == "cuda" for r in results), results
print(len(results), "results")
"""


def find_python(asked: str | None) -> str:
    """The interpreter asked for, else that of the GPU machine's version.

    Raises:
        FileNotFoundError: it does not run.
    """
    name = asked or _PYTHON
    found = shutil.which(name)
    if found:
        # pyenv has a file for every version, which runs the one that it is told, if installed.
        command = [found, "-c", "import sys; print(sys.executable)"]
        env = {**os.environ, "PYENV_VERSION": _VERSION}
        told = subprocess.run(command, env=env, capture_output=True, text=True)
        if told.returncode == 0:
            return told.stdout.strip()
    raise FileNotFoundError(
        f"--python: expected an interpreter of {_VERSION} or later, got {name}, which does not run"
    )


def make_environment(folder: Path, python: str) -> Path:
    """The interpreter of an environment with the packages of the GPU machine alone."""
    interpreter, complete = folder / "bin" / "python", folder / "packages"
    wanted = hashlib.sha256(PACKAGES.read_bytes()).hexdigest()
    if complete.exists() and complete.read_text() == wanted:
        return interpreter
    print(f"rehearsal: installing the GPU machine's packages, {_COST} ...", flush=True)
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(PACKAGES)], check=True)
    complete.write_text(wanted)
    return interpreter


def rehearse(interpreter: Path, wheel: Path, folder: Path) -> list[Step]:
    """Runs the steps in a folder that gets the copy; one that fails does not stop the others."""
    target, copy = folder / "installed", folder / "stage"
    copy.mkdir(parents=True)
    stage(copy)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env |= {"PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}
    python = str(interpreter)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-index", "--no-deps", "--target", str(target), str(wheel)]
    pytest = [python, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    benchmarks = [python, "-m", "benchmarks.measure", "--suite=quick", "--budget=0.1"]
    benchmarks += [f"--time-limit={_BENCHMARK_SECONDS}", f"--output={folder / 'results'}"]
    files = cuda_tests(copy)
    commands = {
        "install": pip,
        "import": [python, "-c", _IMPORT],
        "trace": [python, "-c", _TRACE],
        "collect": [*pytest, "--collect-only", *files],
        "tests": [*pytest, "-p", "python_tests.cpu_for_cuda", *files],
        "sanitizer": [python, "-m", "tools.sanitizer_cases", "--device=cpu"],
        "benchmarks": benchmarks,
    }
    return [
        run_step(name, command, cwd=copy, env=env, limit=_LIMIT)
        for name, command in commands.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearses `make gpu-check` with the packages of the GPU machine, without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m tools.rehearsal", description=main.__doc__)
    parser.add_argument("--wheel", type=Path, help="default: the newest in dist/")
    parser.add_argument("--python", help=f"default: {_PYTHON}")
    options = parser.parse_args(arguments)
    try:
        python, wheel = find_python(options.python), find_wheel(options.wheel)
    except FileNotFoundError as error:
        parser.error(str(error))
    if wheel.suffix != ".whl":
        parser.error("--wheel: expected a wheel in dist/: `make wheel`")
    interpreter = make_environment(_FOLDER / "environment", python)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        steps = rehearse(interpreter, wheel, Path(scratch))
    for step in steps:
        print(f"{step.name:12} {step.status:8} {step.seconds:7.1f} s")
    return 0 if all(step.status == "passed" for step in steps) else 1


if __name__ == "__main__":
    raise SystemExit(main())
