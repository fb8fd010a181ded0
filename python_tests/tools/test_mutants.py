"""What tools/mutants changes, and what it leaves alone. Mutants are compiled and tested in
python_tests/native/test_mutants.py."""

from __future__ import annotations

import pytest

from tools.mutants.__main__ import CSRC, drawn, summary
from tools.mutants.equivalent import EQUIVALENT, reason_of
from tools.mutants.sources import Source
from tools.mutants.workshop import all_mutants, kernel_files


def changes(text: str) -> list[tuple[str, str]]:
    """Pairs of what is replaced and what by."""
    return [(mutant.before, mutant.after) for mutant in Source("a.cu", text).mutants()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = a < b;", [("<", "<=")]),
        ("x = a >> b;", [(">>", "<<")]),
        ("x = a * b / c;", [("*", "/"), ("/", "*")]),
        ("x = a + 1;", [("+", "-"), ("+ 1", "")]),
        ("x = -a;", [("-", "")]),
        ("x = !a || -1 == b;", [("!", ""), ("||", "&&"), ("-", ""), ("==", "!=")]),
        ("x = std::min(a, 7);", [("min", "max"), ("7", "8")]),
        ("x = 0x7fu;", [("0x7fu", "0x80u")]),
        ("x = 0x1.8p23f + 0.f;", [("0x1.8p23f", "(2 * 0x1.8p23f)"), ("+", "-"), ("0.f", "1.f")]),
        ("x += true;", [("+=", "-="), ("true", "false")]),
        ("if (a) continue;", [("continue", "")]),
        ("{ barrier(); }", [("barrier()", "")]),
        ("if (a) return;", [("return", "")]),
        ("n++;", [("++", "--")]),
    ],
)
def test_changes(text: str, expected: list[tuple[str, str]]) -> None:
    assert changes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "// a < b",
        "/* a < b\n */",
        'x = "a < 1";',
        "#if A < 1",
        "#define A(x) \\\n  x + 1",
        "template <class T, class U>\nstruct A;",
        "const T* p = static_cast<const T*>(q);",
        "Vector<Vector<T, V>> v;",
        "auto& y = x;\nauto&& z = y;",
        "p->x = a::b;",
        "SEGUNC_DEVICE void barrier() {}",
        "return x;",
        "for (auto i : list) i.next();",
    ],
)
def test_left_alone(text: str) -> None:
    assert changes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "constexpr int kThreads = 128;  // tuning",
        "// tuning\nconstexpr int kThreads =\n    a * 128;",
        "template <int K>\nconstexpr int kBlocks = K < 8 ? 3  // tuning\n    : K < 9 ? 4 : 5;",
        "struct Policy {  // tuning\n  static constexpr int k = 1;\n  int f() { return 3; }\n};",
        "int f(int a) {  // tuning\n  return a + 1;\n}",
        "void __launch_bounds__(128, max(2, f(3))) kernel();",
        "static_assert(sizeof(int) == 4);",
    ],
)
def test_tuning_is_left_out(text: str) -> None:
    assert changes(text) == []
    assert changes(f"{text}\nint x = a < b;") == [("<", "<=")]


def test_tuning_of_a_line_within_a_statement() -> None:
    text = "x = a < b &&\n    c > d &&  // tuning\n    e == f;"
    assert [before for before, _ in changes(text)] == ["<", "&&", "=="]


def test_a_mutant_is_its_line_changed() -> None:
    text = "void f() {\n  if (at >= count) continue;\n}\n"
    mutant = Source("a.cu", text).mutants()[0]
    assert (mutant.line, mutant.source) == (2, "if (at >= count) continue;")
    assert mutant.mutated == "if (at > count) continue;"
    assert mutant.apply(text) == text.replace(">=", ">")


def test_a_sample_changes_with_its_seed_alone() -> None:
    mutants = all_mutants(CSRC)
    sample = drawn(mutants, 0, 20)
    assert sample == drawn(reversed(mutants), 0, 20)
    assert sample != drawn(mutants, 1, 20)
    assert sample[:10] == drawn(mutants, 0, 10)


def test_every_kernel_has_mutants() -> None:
    files = {mutant.file for mutant in all_mutants(CSRC)}
    kernels = {str(file) for file in kernel_files(CSRC) if file.suffix == ".cu"}
    assert len(kernels) > 8
    assert kernels <= files


def test_known_mutants_are_there() -> None:
    """Those of sources that have changed since are judged anew."""
    mutants = all_mutants(CSRC)
    possible = {(mutant.file, mutant.mutated) for mutant in mutants}
    known = {
        (file, line)
        for file, reasons in EQUIVALENT.items()
        for lines in reasons.values()
        for line in lines
    }
    assert not known - possible
    assert known == {(m.file, m.mutated) for m in mutants if reason_of(m) is not None}
    assert all(reason_of(mutant) is None for mutant in drawn(mutants, 0, len(mutants)))


def test_summary() -> None:
    statuses = ("noticed", "noticed", "noticed", "survived", "equivalent", "invalid")
    rows = [{"file": "a.cu", "status": status} for status in statuses]
    assert summary(rows).splitlines()[-1].split() == ["all", "3", "1", "1", "1", "75.0%"]
