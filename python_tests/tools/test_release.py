"""What `make release` refuses, without building anything."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import release
from tools.release import ReleaseError

NAME = "segunc_ops-0.1.0-py3-none-manylinux_2_34_x86_64.whl"


@pytest.mark.skipif(
    not (Path(release.__file__).parents[1] / "segunc_ops").exists(),
    reason="the tests run apart from the repository",
)
def test_the_repository_agrees_on_its_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", release.version_of())


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CITATION.cff"])
def test_versions_that_differ_are_refused(tmp_path, name):
    (tmp_path / "segunc_ops").mkdir()
    (tmp_path / "segunc_ops" / "_version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (unreleased)\n\n## 1.2.2\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    assert release.version_of(tmp_path) == "1.2.3"
    path = tmp_path / name
    path.write_text(path.read_text().replace("1.2.3", "1.2.1"))
    with pytest.raises(ReleaseError, match=rf"{name}: expected version 1\.2\.3, got 1\.2\.1"):
        release.version_of(tmp_path)
    path.write_text("")
    with pytest.raises(ReleaseError, match=rf"{name}: expected version 1\.2\.3, got none"):
        release.version_of(tmp_path)


def wheel(folder: Path, name: str, *libraries: str) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("segunc_ops/__init__.py", "")
        for library in libraries:
            archive.writestr(f"segunc_ops/{library}", b"")
    return path


def test_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "check_symbols", lambda name, library: None)
    libraries = ("segunc_ops_cpu.so", "segunc_ops_cuda.so")
    release.check_wheel(wheel(tmp_path, NAME, *libraries), "0.1.0", libraries)
    for name in (NAME.replace("manylinux_2_34", "linux"), NAME.replace("py3-none", "cp311-cp311")):
        with pytest.raises(ReleaseError, match=r"expected segunc_ops-0\.1\.0-py3-none-manylinux_"):
            release.check_wheel(wheel(tmp_path, name, *libraries), "0.1.0", libraries)
    with pytest.raises(ReleaseError, match=r"expected segunc_ops-0\.2\.0-"):
        release.check_wheel(tmp_path / NAME, "0.2.0", libraries)
    for wrong in (libraries[:1], (*libraries, "libtorch_cpu-1234.so")):
        with pytest.raises(ReleaseError, match=r"expected \['segunc_ops_cpu.so', 'segunc_ops_cuda"):
            release.check_wheel(wheel(tmp_path, NAME, *wrong), "0.1.0", libraries)
    monkeypatch.setattr(release, "_MAX_BYTES", 100)
    with pytest.raises(ReleaseError, match="expected at most 100 bytes"):
        release.check_wheel(wheel(tmp_path, NAME, *libraries), "0.1.0", libraries)


def test_symbols_beside_torchs_stable_ones_are_refused(tmp_path):
    pytest.importorskip("elftools", reason="needs pyelftools")
    source = tmp_path / "library.c"

    def compiled(symbol: str) -> Path:
        source.write_text(f"int {symbol}(void); int f(void) {{ return {symbol}(); }}\n")
        path = tmp_path / f"{symbol}.so"
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", path], check=True)
        return path

    for symbol in ("aoti_torch_get_dim", "torch_call_dispatcher", "getpid"):
        with compiled(symbol).open("rb") as library:
            release.check_symbols("library.so", library)
    with (
        compiled("_ZN2at4add_E").open("rb") as library,
        pytest.raises(ReleaseError, match=r"library.so: expected torch's stable .*_ZN2at4add_E"),
    ):
        release.check_symbols("library.so", library)


def test_sources_that_lack_a_file_are_refused(tmp_path):
    path = tmp_path / "segunc_ops-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("setup.py", "csrc/a.cu", "PKG-INFO"):
            archive.addfile(tarfile.TarInfo(f"segunc_ops-0.1.0/{name}"), io.BytesIO())
    release.check_source(path, ["setup.py", "csrc/a.cu", ".ci/run", ".gitignore"])
    with pytest.raises(ReleaseError, match=r"1 files are missing, such as \['csrc/b.cu'\]"):
        release.check_source(path, ["setup.py", "csrc/b.cu"])
