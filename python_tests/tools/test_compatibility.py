"""What `make compatibility` decides, without an environment or a download."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest

from python_tests import support
from tools import compatibility


def test_constraints_leave_out_what_torch_itself_requires():
    pinned = "Jinja2==3.1.6\nnumpy==2.4.6\ntorch==2.13.0\ntyping_extensions==4.16.0\n"
    required = ["jinja2", "typing-extensions>=4.10.0", 'setuptools; python_version >= "3.12"']
    assert compatibility.constraints(pinned, required) == "numpy==2.4.6\n"
    assert compatibility.constraints(pinned, []) == pinned.replace("torch==2.13.0\n", "")


def test_outcomes_are_counted_by_kind():
    report = """<testsuites><testsuite>
        <testcase classname="a.test_b" name="fine"/>
        <testcase classname="a.test_b" name="skips"><skipped message="needs a GPU"/></testcase>
        <testcase classname="a.test_b" name="wrong"><failure message="1 != 2"/></testcase>
        <testcase classname="a.test_b" name="also_fine"><system-out>text</system-out></testcase>
        <testcase classname="a.test_b" name="breaks"><error message="in a fixture"/></testcase>
    </testsuite></testsuites>"""
    assert compatibility.outcome(report) == (2, 1, ["a.test_b::breaks", "a.test_b::wrong"])


def test_fingerprints_tell_contents_and_not_times(tmp_path):
    def of(code: str, test: str, year: int) -> str:
        wheel, tests = tmp_path / "x.whl", tmp_path / "tests"
        tests.mkdir(exist_ok=True)
        (tests / "test_x.py").write_text(test)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(zipfile.ZipInfo("x.py", (year, 1, 1, 0, 0, 0)), code)
        return compatibility.fingerprint(wheel, tests)

    first = of("a", "b", 2026)
    assert of("a", "b", 2027) == first
    assert len({first, of("c", "b", 2026), of("a", "c", 2026)}) == 3


def test_an_environment_has_the_torch_of_its_version():
    assert compatibility.beside("2.10").torch == "torch==2.10.*"
    assert compatibility.beside(compatibility.NEWEST).torch == "torch"
    names = [compatibility.beside(version).name for version in compatibility.VERSIONS]
    assert len({*names, compatibility.TRAINERS.name}) == len(compatibility.VERSIONS) + 1


@pytest.mark.parametrize("path", compatibility.TRAINERS.tests)
def test_what_runs_in_the_trainers_is_there(path):
    assert (Path(compatibility.__file__).parents[1] / path).exists()


def test_a_package_from_elsewhere_is_refused(monkeypatch, tmp_path):
    found = {"package": str(tmp_path / "checkout" / "segunc_ops" / "__init__.py")}
    monkeypatch.setattr(compatibility, "_output", lambda command, cwd: json.dumps(found))
    with pytest.raises(RuntimeError, match=r"expected the installed wheel, imported .*checkout"):
        compatibility.check(tmp_path / "environment" / "bin" / "python", tmp_path)


def test_what_failed_is_on_the_page():
    row = compatibility.Row("2.99.0+cu130", "13.0", "3.11.7", "native", "native", 2000, 3, ["a::b"])
    assert "| 2.99.0+cu130 | 13.0 | 3.11.7 | native | native | 2000 | 3 | 1: `a::b` |" in (
        support.versions([dataclasses.asdict(row)])
    )


@pytest.mark.skipif(
    not (Path(compatibility.__file__).parent.parent / ".git").exists(),
    reason="the tests run apart from the repository",
)
def test_the_copied_tests_have_no_package(tmp_path):
    compatibility.stage(tmp_path / "tests")
    copied = {str(p.relative_to(tmp_path / "tests")) for p in (tmp_path / "tests").rglob("*.py")}
    assert "python_tests/test_library.py" in copied
    assert not any(name.startswith(("segunc_ops", "python_tests/native")) for name in copied)
