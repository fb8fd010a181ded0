"""Makes what is published, and tries it: `make release`, which builds the wheel first.

In dist/release: a source distribution, and the wheel under the platform tag that its libraries
allow, which auditwheel finds. Checked are the versions, the tag, the size, that the libraries need
nothing but torch's stable C symbols and the system's own, and that the source distribution holds
every file that is tracked. Each is then installed into an empty environment beside torch, the
source distribution by compiling it, and has to agree with the reference there. The tests of the
wheel beside the oldest and the newest torch are `make compatibility`'s.

Exit status: 0 everything may be published, 1 something may not.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .steps import REPOSITORY, run

_DIST = REPOSITORY / "dist"
RELEASE = _DIST / "release"
_ENVIRONMENTS = REPOSITORY / "build" / "release"
_MAX_BYTES = 25_000_000
CPU_LIBRARY = "segunc_ops_cpu.so"
_LIBRARIES = (CPU_LIBRARY, "segunc_ops_cuda.so")
# Torch's own libraries are beside the wheel, not in it.
_EXCLUDED = ("libtorch*.so", "libc10*.so")
# Of torch: its stable C interface, which every version from 2.10 on exports.
_STABLE = re.compile(r"(aoti_)?torch_\w+")
# Tracked for those who work on the project, not for those who build it.
_NOT_RELEASED = (".ci/", ".gitignore")


class ReleaseError(Exception):
    """Why something may not be published."""


def version_of(repository: Path = REPOSITORY) -> str:
    """The version that the package, the changelog and the citation agree on.

    Raises:
        ReleaseError: they do not.
    """
    package = (repository / "segunc_ops" / "_version.py").read_text(encoding="utf-8")
    version = package.split('"')[1]
    newest = re.search(r"^## (\S+)", (repository / "CHANGELOG.md").read_text("utf-8"), re.M)
    cited = re.search(r"^version: (\S+)$", (repository / "CITATION.cff").read_text("utf-8"), re.M)
    for name, found in (("CHANGELOG.md", newest), ("CITATION.cff", cited)):
        if found is None or found[1] != version:
            got = found[1] if found else "none"
            raise ReleaseError(f"{name}: expected version {version}, got {got}")
    return version


def check_wheel(wheel: Path, version: str, libraries: Iterable[str]) -> None:
    """Checks the name, the size and the libraries of a wheel.

    Raises:
        ReleaseError: it may not be published.
    """
    match = re.fullmatch(r"segunc_ops-([^-]+)-py3-none-manylinux_\d+_\d+_\w+\.whl", wheel.name)
    if match is None or match[1] != version:
        raise ReleaseError(
            f"expected segunc_ops-{version}-py3-none-manylinux_*.whl, got {wheel.name}"
        )
    if (size := wheel.stat().st_size) > _MAX_BYTES:
        raise ReleaseError(f"{wheel.name}: expected at most {_MAX_BYTES:,} bytes, got {size:,}")
    with zipfile.ZipFile(wheel) as archive:
        found = {PurePosixPath(name).name: name for name in archive.namelist() if ".so" in name}
        if set(found) != set(libraries):
            raise ReleaseError(f"{wheel.name}: expected {sorted(libraries)}, got {sorted(found)}")
        for name in found.values():
            with archive.open(name) as library:
                check_symbols(name, library)


def check_symbols(name: str, library: Any) -> None:
    """Checks that a library needs nothing unversioned but torch's stable C symbols.

    Raises:
        ReleaseError: it needs others, so it would load beside one version of torch alone.
    """
    from elftools.elf.elffile import ELFFile

    elf: Any = ELFFile(library)
    symbols, versions = elf.get_section_by_name(".dynsym"), elf.get_section_by_name(".gnu.version")
    unversioned = ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")
    unstable = [
        symbol.name
        for number, symbol in enumerate(symbols.iter_symbols())
        if symbol["st_shndx"] == "SHN_UNDEF"
        and symbol.name
        and (versions is None or versions.get_symbol(number)["ndx"] in unversioned)
        and symbol["st_info"]["bind"] != "STB_WEAK"
        and not _STABLE.fullmatch(symbol.name)
    ]
    if unstable:
        raise ReleaseError(f"{name}: expected torch's stable C symbols alone, got {unstable[:5]}")


def check_source(archive: Path, tracked: Iterable[str]) -> None:
    """Checks that a source distribution has every tracked file.

    Raises:
        ReleaseError: some are missing.
    """
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    wanted = {name for name in tracked if not name.startswith(_NOT_RELEASED)}
    if missing := sorted(wanted - inside):
        raise ReleaseError(
            f"{archive.name}: {len(missing)} files are missing, such as {missing[:5]}"
        )


def _tracked() -> list[str]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name]


def only(folder: Path, pattern: str) -> Path:
    """The file of this pattern.

    Raises:
        ReleaseError: there are several, or none.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ReleaseError(f"{folder.name}: expected one {pattern}, got {len(found)}")
    return found[0]


def tag_wheel(built: Path) -> None:
    """Writes a wheel into dist/release, under the platform tag that its libraries allow."""
    exclude = [part for name in _EXCLUDED for part in ("--exclude", name)]
    repair = (sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", *exclude)
    run([*repair, "--wheel-dir", RELEASE, built])


def build() -> tuple[Path, Path]:
    """The source distribution and the tagged wheel, made anew in dist/release."""
    shutil.rmtree(RELEASE, ignore_errors=True)
    sdist = (sys.executable, "-m", "build", "--sdist", "--no-isolation")
    run([*sdist, "--outdir", RELEASE, "."], SEGUNC_OPS_CPU="0")
    tag_wheel(only(_DIST, "*.whl"))
    return only(RELEASE, "*.tar.gz"), only(RELEASE, "*.whl")


def try_in_empty_environment(archive: Path) -> None:
    """Installs what is published beside torch and nothing else, and runs it."""
    folder = _ENVIRONMENTS / ("wheel" if archive.suffix == ".whl" else "source")
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", folder])
    python = folder / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    pip = (python, "-m", "pip", "install", "--quiet")
    run([*pip, "-c", constraints, "torch", "numpy"])
    native = {} if archive.suffix == ".whl" else {"SEGUNC_OPS_CPU_ISAS": "native"}
    run([*pip, archive], REPOSITORY, **native)
    # Away from the sources, so that what is installed is imported.
    run([python, REPOSITORY / "cmake" / "smoke_test.py"], folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds and tries what is published."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=main.__doc__)
    parser.parse_args(arguments)
    try:
        version = version_of()
        source, wheel = build()
        steps: dict[str, Callable[[], None]] = {
            "the wheel's name, size and symbols": lambda: check_wheel(wheel, version, _LIBRARIES),
            "the source distribution's files": lambda: check_source(source, _tracked()),
            "the wheel in an empty environment": lambda: try_in_empty_environment(wheel),
            "the source in an empty environment": lambda: try_in_empty_environment(source),
        }
        for name, step in steps.items():
            print(f"release: {name} ...", flush=True)
            step()
    except (ReleaseError, subprocess.CalledProcessError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for path in (source, wheel):
        print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
