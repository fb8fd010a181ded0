"""Metadata is in pyproject.toml and sources are in CMakeLists.txt: this file lets CMake build.

Environment variables: SEGUNC_OPS_CUDA (1 builds the CUDA library, 0 does not; by default it is
built if the installed torch has CUDA and nvcc is found), SEGUNC_OPS_CUDA_TARGETS (compute
capabilities, such as "80;90"), SEGUNC_OPS_TORCH_INCLUDE (torch's headers, if not the installed
ones), SEGUNC_OPS_CPU (0: no native library at all), SEGUNC_OPS_CPU_ISAS ("native": CPU code for the
best instruction set of this machine alone, in a third of the time; by default code for all).
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def torch_include() -> Path | None:
    """The folder of torch's headers, found without importing torch.

    pip builds in an isolated environment, but sysconfig still names the outer one's folders.
    """
    candidates = [
        Path(sysconfig.get_path(key)) / "torch" / "include" for key in ("purelib", "platlib")
    ]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        candidates.insert(0, Path(spec.origin).parent / "include")
    if chosen := os.environ.get("SEGUNC_OPS_TORCH_INCLUDE"):
        candidates = [Path(chosen)]
    return next((c for c in candidates if (c / "torch/csrc/stable/library.h").is_file()), None)


def wants_cuda(include: Path) -> bool:
    """What SEGUNC_OPS_CUDA says, else whether torch has CUDA and there is a compiler for it."""
    if choice := os.environ.get("SEGUNC_OPS_CUDA"):
        return choice != "0"
    version = include.parent / "version.py"
    found = version.is_file() and re.search(r"^cuda\b.*=\s*['\"]", version.read_text(), re.M)
    return bool(found) and shutil.which("nvcc") is not None


class CMakeExtension(Extension):
    """Stands for the native libraries, which CMake names and installs."""

    def __init__(self) -> None:
        super().__init__("segunc_ops._native", sources=[], py_limited_api=True)


class CMakeBuild(build_ext):
    """Configures, builds and installs the native libraries into the package."""

    def get_ext_filename(self, name: str) -> str:
        # Asked for with the dotted name and with its last part alone.
        return str(Path(*name.split(".")[:-1]) / "segunc_ops_cpu.so")

    def build_extension(self, extension: Extension) -> None:
        include = torch_include()
        if include is None:
            raise RuntimeError(
                "no torch headers: install torch>=2.10 first, or set SEGUNC_OPS_TORCH_INCLUDE"
            )
        package = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sysconfig.get_platform()}"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "SEGUNC_TORCH_INCLUDE": include,
            "SEGUNC_CUDA": "ON" if wants_cuda(include) else "OFF",
            "SEGUNC_CPU_ISAS": os.environ.get("SEGUNC_OPS_CPU_ISAS", "all"),
        }
        if targets := os.environ.get("SEGUNC_OPS_CUDA_TARGETS"):
            options["SEGUNC_CUDA_TARGETS"] = targets
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *definitions]
        subprocess.run(configure, check=True)
        compile_ = subprocess.run(
            ["cmake", "--build", build], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if compile_.returncode:
            raise RuntimeError(f"the native build failed:\n{compile_.stdout}")
        staged = build / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        subprocess.run(["cmake", "--install", build, "--prefix", staged], check=True)
        package.mkdir(parents=True, exist_ok=True)
        for library in staged.glob("*.so"):
            # By rename, because overwriting a library that a process has loaded crashes it.
            fresh = shutil.copy(library, package / f".{library.name}")
            os.replace(fresh, package / library.name)


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries are loaded by torch, not imported."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


native = os.environ.get("SEGUNC_OPS_CPU") != "0"
setup(
    ext_modules=[CMakeExtension()] if native else [],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
