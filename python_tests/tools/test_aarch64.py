"""What `make wheel-aarch64` decides, without a compiler, an emulator or a download."""

from __future__ import annotations

import subprocess

import pytest

from tools import aarch64


def test_packages_whose_programs_are_missing_are_named():
    assert aarch64.missing_packages(lambda program: f"bin/{program}") == []
    assert aarch64.missing_packages({"apt-get": "a", "dpkg": "b"}.get) == [
        "g++-aarch64-linux-gnu",
        "qemu-user",
    ]


@pytest.mark.parametrize(
    ("machine", "missing", "message"),
    [
        ("x86_64", ["qemu-user"], "needs Debian's packages qemu-user"),
        ("aarch64", [], "this machine is one"),
    ],
)
def test_a_machine_that_cannot_make_it_says_so(monkeypatch, capsys, machine, missing, message):
    monkeypatch.setattr(aarch64.platform, "machine", lambda: machine)
    monkeypatch.setattr(aarch64, "missing_packages", lambda: missing)
    monkeypatch.setattr(aarch64, "build", lambda: pytest.fail("was built"))
    for arguments, status in (([], 1), (["--if-possible"], 0)):
        assert aarch64.main(arguments) == status
        assert message in capsys.readouterr().err


def test_failures_are_no_missing_machine(monkeypatch, capsys):
    def fail() -> None:
        raise subprocess.CalledProcessError(2, ["cmake"])

    monkeypatch.setattr(aarch64.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(aarch64, "missing_packages", list)
    monkeypatch.setattr(aarch64, "version_of", lambda: "1.2.3")
    monkeypatch.setattr(aarch64, "build", fail)
    assert aarch64.main(["--if-possible"]) == 1
    assert "cmake" in capsys.readouterr().err


def test_apt_keeps_to_its_folder(tmp_path):
    command = aarch64.apt_get(tmp_path)
    assert command[0] == "apt-get"
    assert "--option=APT::Architecture=arm64" in command
    for name in ("Dir::Cache=", "Dir::State=", "Dir::State::status="):
        assert any(part.startswith(f"--option={name}{tmp_path}") for part in command)


def test_the_emulator_passes_arguments_on(tmp_path):
    folder = tmp_path / "with a space"
    bin_ = folder / "bin"
    bin_.mkdir(parents=True)
    for path, text in (
        (bin_ / "qemu-aarch64", '#!/bin/sh\nprintf "%s|" "$@"\n'),
        (bin_ / "python", aarch64.emulator(folder, bin_ / "python3")),
    ):
        path.write_text(text)
        path.chmod(0o755)
    command = [bin_ / "python", "-c", "print('a  b')"]
    result = subprocess.run(
        command, env={"PATH": f"{bin_}:/usr/bin:/bin"}, check=True, capture_output=True, text=True
    )
    assert result.stdout == f"-L|{folder}|{bin_ / 'python3'}|-c|print('a  b')|"
