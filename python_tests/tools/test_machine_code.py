"""The report on machine code: parsing, hot paths, the model, and that each gate can fail."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tools.machine_code import __main__, report, resources
from tools.machine_code.control_flow import Graph, NoWayError
from tools.machine_code.disassembly import Function, Instruction, Place, parse
from tools.machine_code.hot_path import HotPath, access_bytes, bytes_in_flight, hot_path
from tools.machine_code.markers import MarkerError, Markers, evaluate, read_markers
from tools.machine_code.model import H100, H200, bound, half_of_the_slots

SOURCE = """\
template <class T, int V>
__global__ void __launch_bounds__(Policy::kThreads, kBlocks<V * 2, sizeof(T)>)
    copy_kernel(const T* in, T* out) {
  // report: hot V * S
  for (int i = 0; i < count; i += step) {
    // report: vector sizeof(T) * V
    v = load(in + i);
    if (option) v = root(v);  // report: rare
    // report: trips S
    for (int s = 0; s < samples; s++) v += v;
    store(out + i, v);
  }
  // report: end
}
"""

# The loop of that source: its header, the option (which takes more), a loop over samples, its end.
CODE = """\
.text.copy:
	//## File "{file}", line 3
        /*0000*/                   MOV R1, R2 ;
.L_x_0:
	//## File "{folder}/nested/../vector.h", line 9 inlined at "{file}", line 7
	//## File "{file}", line 7
        /*0010*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
	//## File "{file}", line 8
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   MUFU.RSQ R4, R4 ;
        /*0040*/                   FMUL R4, R4, R5 ;
        /*0050*/                   FMUL R4, R4, R5 ;
.L_x_1:
	//## File "{file}", line 10
        /*0060*/                   FADD R4, R4, R5 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
	//## File "{file}", line 11
        /*0080*/                   STG.E.64 desc[UR4][R6.64], R4 ;
	//## File "{file}", line 5
        /*0090*/                   ISETP.GE.AND P0, PT, R0, R1, PT ;
        /*00a0*/                   BRA P0, `(.L_x_0) ;
        /*00b0*/                   EXIT ;
.L_x_2:
        /*00c0*/                   BRA `(.L_x_2) ;
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "copy.cu"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def code_of(source: Path, code: str = CODE) -> Function:
    text = code.format(file=source.resolve(), folder=source.resolve().parent)
    (function,) = parse(text.splitlines())
    return function


def path_of(source: Path, code: str = CODE, **values: float) -> HotPath:
    markers, function = read_markers([source]), code_of(source, code)
    hot = markers.hot_of(function.instructions)
    assert hot is not None
    names = {**markers.arguments_of("copy_kernel<float, 2>"), **values}
    return hot_path(function, markers, hot, names)


class TestDisassembly:
    def test_instructions_have_their_lines_and_the_calls_around_them(self, source):
        function = code_of(source)
        load = function.instructions[1]
        assert (load.guard, load.opcode, load.base) == ("", "LDG.E.64", "LDG")
        file = str(source.resolve())
        assert load.places == (Place(f"{source.resolve().parent}/vector.h", 9), Place(file, 7))
        assert function.labels == {".L_x_0": 1, ".L_x_1": 6, ".L_x_2": 12}

    def test_branches(self, source):
        ends = [i for i in code_of(source).instructions if i.base in ("BRA", "EXIT")]
        guarded, _, by_operand, leave, forever = ends
        assert guarded.guard == "!P0"
        assert guarded.is_conditional
        assert (by_operand.is_conditional, by_operand.target) == (True, ".L_x_0")
        assert not leave.is_conditional
        assert not forever.is_conditional

    @pytest.mark.parametrize(
        ("opcode", "size"),
        [
            ("LDG.E", 4),
            ("LDG.E.U8", 1),
            ("LDG.E.U16.CONSTANT", 2),
            ("STG.E.64", 8),
            ("LDG.E.128.CONSTANT", 16),
            ("STG.E.EF.128", 16),
        ],
    )
    def test_widths(self, opcode, size):
        assert access_bytes(Instruction("", opcode, "")) == size


class TestHotPath:
    def test_loops(self, source):
        graph = Graph(code_of(source))
        inner, outer = graph.loops[:2]
        assert (len(inner.blocks), len(outer.blocks)) == (1, 4)
        assert outer.children == [inner]

    def test_a_rare_side_is_not_counted_and_an_inner_loop_as_often_as_it_runs(self, source):
        path = path_of(source, S=10)
        assert path.elements == 20
        # Two in the header, two times ten, three at the end.
        assert path.counts["issue"] == 25
        assert path.per_element("FMA") == 0.5
        assert path.counts.get("XU") is None

    def test_without_a_marker_the_more_expensive_side_is_taken(self, source):
        source.write_text(SOURCE.replace("  // report: rare", ""), encoding="utf-8")
        path = path_of(source, S=10)
        assert (path.counts["issue"], path.counts["XU"]) == (28, 1)

    def test_what_is_left_of_an_unrolled_loop_is_not_counted(self, source):
        source.write_text(SOURCE.replace("trips S", "trips S * 4 / shared"), encoding="utf-8")
        body = "FADD R4, R4, R5 ;"
        unrolled = body + "".join(f"\n  /*{i:04x}*/  LDS.64 R4, [R8] ;" for i in (0x61, 0x62))
        left = "".join(f"\n  /*{i:04x}*/  FADD R4, R4, R5 ;" for i in (0x72, 0x73, 0x74))
        code = CODE.replace(body, unrolled).replace(
            "@P1 BRA `(.L_x_1) ;",
            f"@P1 BRA `(.L_x_1) ;\n  /*0071*/  @P2 BRA `(.L_x_3) ;{left}\n.L_x_3:",
        )
        # A header of two, three iterations of four, the branch around what is left, three at the
        # end.
        assert path_of(source, code, S=12).counts["issue"] == 2 + 3 * 4 + 1 + 3

    def test_what_only_rare_lines_lead_to(self, source):
        with pytest.raises(NoWayError, match="rare"):
            path_of(source, CODE.replace("@!P0 BRA `(.L_x_1)", "@!P0 BRA `(.L_x_2)"), S=10)

    def test_a_loop_that_is_not_there(self, source):
        with pytest.raises(NoWayError, match="no loop branches back to line 5"):
            path_of(source, CODE.replace("BRA P0, `(.L_x_0)", "NOP"), S=1)

    def test_a_kernel_without_a_loop_runs_from_its_entry_to_its_exit(self, source):
        source.write_text(SOURCE.replace("  for (int i = 0; i", "  (int i = 0; i"), "utf-8")
        code = CODE.replace("BRA P0, `(.L_x_0)", "NOP")
        assert path_of(source, code, S=1).counts["issue"] == 9

    def test_bytes_in_flight(self):
        def load(register: int, width: str = "") -> Instruction:
            return Instruction("", f"LDG.E{width}", f"R{register}, desc[UR4][R2.64]")

        use = Instruction("", "FADD", "R9, R6, R6")
        assert bytes_in_flight([load(4, ".64"), load(6, ".128"), use]) == 24
        assert bytes_in_flight([load(4), Instruction("", "FADD", "R9, R4, R4"), load(6), use]) == 4
        assert bytes_in_flight([use]) == 0


class TestMarkers:
    def test_template_arguments(self, source):
        markers = read_markers([source])
        assert markers.arguments_of("copy_kernel<float, 2>") == {"T": "float", "V": 2.0}
        assert markers.arguments_of("other_kernel<float, 2>") == {}

    def test_arguments_of_template_arguments(self, tmp_path):
        (tmp_path / "a.cu").write_text(
            "template <int V>\nstruct Pixels {\n};\n"
            "template <class Of, int C, bool Smooths>\nstruct alignas(16) Variant : Base {\n};\n"
            "template <class T, class V>\n__global__ void a_kernel(T* p) {}\n"
        )
        markers = read_markers([tmp_path / "a.cu"])
        found = markers.arguments_of("a_kernel<float, ns::Variant<ns::Pixels<2>, 19, false>>")
        assert found["V"] == "ns::Variant<ns::Pixels<2>, 19, false>"  # the kernel's own
        assert {name: found[name] for name in ("T", "C", "Smooths")} == {
            "T": "float",
            "C": 19.0,
            "Smooths": "false",
        }
        assert markers.arguments_of("Variant<Pixels<2>, 19, false>")["V"] == 2.0

    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("C * V", 38),
            ("min(16, sizeof(T) * 8)", 16),
            ("log2(8) + 1 / 2", 3.5),
            ("64 - 2 * V", 60),
        ],
    )
    def test_expressions(self, expression, value):
        assert evaluate(expression, {"C": 19.0, "V": 2.0, "T": "bfloat16"}) == value

    @pytest.mark.parametrize(
        "expression", ["D", "T", "sizeof(U)", "1 +", "V / 0", "open(1)", "V.x"]
    )
    def test_expressions_without_a_value(self, expression):
        with pytest.raises(MarkerError):
            evaluate(expression, {"V": 2.0, "T": "float"})

    @pytest.mark.parametrize(
        ("marker", "message"),
        [
            ("hat V", "copy.cu:3: unknown marker 'hat V'"),
            ("begin rare", "no end"),
            ("end", "nothing has begun"),
            ("budget copy_kernel<float>", "a pattern and a number"),
        ],
    )
    def test_what_cannot_be_read(self, source, marker, message):
        source.write_text(f"void f() {{\n\n// report: {marker}\n}}\n", encoding="utf-8")
        with pytest.raises(MarkerError, match=message):
            read_markers([source])

    @pytest.mark.parametrize("marked", ["root(v);  // report: rare roots", "BLOCK"])
    def test_an_option_is_rare_but_for_rows_of_it(self, source, marked):
        block = "{  // report: begin rare roots\n v = root(v);\n // report: end\n }"
        text = SOURCE.replace("root(v);  // report: rare", marked.replace("BLOCK", block))
        source.write_text(text, encoding="utf-8")
        markers = read_markers([source])
        assert set(markers.lines["rare"].values()) == {"roots"}
        assert markers.without_rare({"roots"}).lines["rare"] == {}
        assert markers.without_rare().lines["rare"] == {}
        assert markers.without_rare(()).lines == markers.lines
        assert markers.without_rare({"others"}).lines == markers.lines

    def test_limits(self, source):
        lines = [
            "budget copy_kernel<float, *> 14.5",
            "budget copy_kernel<*> 20",
            "dynamic c*<* 2 * 3",
        ]
        source.write_text("\n".join(f"// report: {line}" for line in lines), encoding="utf-8")
        markers = read_markers([source])
        assert markers.budget_of("copy_kernel<float, 2>") == 14.5
        assert markers.budget_of("copy_kernel<double, 2>") == 20
        assert markers.budget_of("scale_kernel<double, 2>") is None
        assert markers.dynamic_of("copy_kernel<double, 2>") == 6


class TestModel:
    def test_each_bound(self):
        def of(**pipes: float) -> tuple[str, float]:
            found = bound(H100, pipes, element_bytes=8, loaded_bytes=4, in_flight=1e5)
            return found.name, found.share

        assert of(issue=1) == ("memory", 1.0)
        name, share = of(issue=160)
        assert name == "issue"
        assert share == pytest.approx(132 * 128 * 1.755e9 * 8 / 160 / 3.0e12)
        assert of(issue=160, XU=30)[0] == "XU"
        assert bound(H200, {}, 8, 4, in_flight=1e4).name == "latency"
        assert bound(H200, {}, 8, 4, in_flight=0).share == 0

    def test_half_of_the_slots(self):
        assert half_of_the_slots(H200, 8) == pytest.approx(27.6, abs=0.05)


RESOURCES = """\
Fatbin elf code:
================
arch = sm_75
Resource usage:
 Common:
  GLOBAL:0
 Function _Z11copy_kernelIfLi2EEvPKf:
  REG:64 STACK:0 SHARED:1360 LOCAL:0 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90
Resource usage:
 Function _Z11copy_kernelIfLi2EEvPKf:
  REG:65 STACK:16 SHARED:1360 LOCAL:8 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


class TestResources:
    def test_kernels_of_every_target(self):
        old, new = resources.parse(RESOURCES)
        assert (old.target, old.registers, old.local, old.shared) == ("sm_75", 64, 0, 1360)
        # What the system takes of every block is part of the number.
        assert (new.target, new.registers, new.local, new.shared) == ("sm_90", 65, 24, 336)

    def test_resident_warps(self):
        kernel = resources.Kernel("copy_kernel<float, 2>", "sm_90", 65, 0, 336)
        assert kernel.stem == "copy_kernel"
        # 72 registers a thread, in units of 8.
        assert kernel.warps(128) == 28
        assert kernel.occupancy(128) == 28 / 64
        assert kernel.warps(128, dynamic=60 << 10) == 12
        assert resources.Kernel("k", "sm_90", 16, 0, 0).warps(32) == 32

    def test_block_sizes(self, source):
        source.with_name("policy.h").write_text("constexpr int kThreads = 96;\n", encoding="utf-8")
        assert resources.block_sizes([source]) == {"copy_kernel": 96}

    def test_names(self):
        signature = "void ns::(anonymous namespace)::kernel<ns::T, 4>(ns::P)"
        assert resources.shorten(signature) == "kernel<T, 4>"

    def test_table(self):
        text = resources.table(resources.parse(RESOURCES), {})
        widths = {len(line) for line in text.splitlines()}
        assert len(widths) == 1
        assert len(text.splitlines()) == 4


def build_of(source: Path, code: str = CODE, shared: int = 0, local: int = 0) -> report.Build:
    kernel = resources.Kernel("copy_kernel<float, 2>", "sm_90", 32, local, shared)
    codes = [report.Code(kernel, code_of(source, code))]
    return report.Build([kernel], codes, read_markers([source]), {"copy_kernel": 128})


ROW = report.Row("copy", "copy_kernel<float, *>", "sizeof(T)", "sizeof(T)", {"S": 10})


class TestReport:
    def test_a_row_of_an_option_counts_it(self, source):
        source.write_text(SOURCE.replace("report: rare", "report: rare roots"), encoding="utf-8")
        build = build_of(source)
        plain = report.fill(ROW, build)
        of_option = report.fill(replace(ROW, options=("roots",)), build)
        assert (plain.path.counts["issue"], of_option.path.counts["issue"]) == (25, 28)

    def test_a_row(self, source):
        line = report.fill(ROW, build_of(source))
        assert line.path.per_element("issue") == 1.25
        assert line.widths == "8"
        assert line.in_flight == 8 * 2048
        assert [bound.name for bound in line.bounds] == ["memory", "memory"]
        header, _, row = report.table([line]).splitlines()
        assert len(header) == len(row)
        assert "copy_kernel<float, 2>" in row

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (report.Row("copy", "scale_kernel<*>", "1", "1"), "scale_kernel<.*> is the name of 0"),
            (report.Row("copy", "copy_kernel<*>", "1", "1"), "'S' in 'V . S' has no value"),
        ],
    )
    def test_rows_that_cannot_be_filled(self, source, row, message):
        with pytest.raises((LookupError, MarkerError), match=message):
            report.fill(row, build_of(source))

    def test_a_kernel_without_markers(self, source):
        build = build_of(source)
        bare = report.Build(build.kernels, build.codes, Markers(), build.threads)
        with pytest.raises(LookupError, match="no marker 'hot'"):
            report.fill(ROW, bare)

    def test_gates_let_a_sound_kernel_pass(self, source):
        for gate in report.GATES:
            assert list(gate(build_of(source))) == []
        assert list(report.over_budget([report.fill(ROW, build_of(source))])) == []

    def test_every_row_is_of_a_kernel_in_the_sources(self):
        folder = Path(__main__.__file__).parents[2] / "csrc"
        sources = [p for p in folder.rglob("*") if p.suffix in (".cu", ".h")]
        markers, sizes = read_markers(sources), resources.block_sizes(sources)
        assert markers.hot
        for row in report.ROWS:
            stem = row.kernel.partition("<")[0]
            assert stem in sizes
            assert markers.parameters[stem]


class TestGatesOnText:
    def test_narrow_access(self, source):
        build = build_of(source, CODE.replace("LDG.E.64", "LDG.E"))
        (broken,) = report.narrow_accesses(build)
        assert (
            broken == "copy_kernel<float, 2>, copy.cu:7: LDG.E where a vector has 8 bytes, 1 times"
        )

    def test_markers_that_nothing_comes_from(self, source):
        build = build_of(source, CODE.replace("LDG.E.64 R4, desc[UR4][R2.64]", "MOV R4, R5"))
        (broken,) = report.idle_markers(build)
        assert broken == "copy.cu:7: no access to global memory where a vector is declared"
        more = "// report: hot V\nfor (;;) {\n}\n// report: end\n"
        source.write_text(SOURCE + more, encoding="utf-8")
        (broken,) = report.idle_markers(build_of(source))
        assert broken == "copy.cu:16: no code where a main loop is marked"

    @pytest.mark.parametrize(
        ("instruction", "what"),
        [
            ("LDL R4, [R1]", "local memory"),
            ("CALL.REL.NOINC `($halved)", "a call"),
            ("LD.E R4, desc[UR4][R2.64]", "a generic load"),
        ],
    )
    def test_forbidden_in_a_main_loop(self, source, instruction, what):
        build = build_of(source, CODE.replace("FADD R4, R4, R5", instruction))
        assert list(report.forbidden_in_main_loops(build)) == [
            f"copy_kernel<float, 2>: {what} in the main loop"
        ]

    def test_what_is_allowed_there(self, source):
        slow = "CALL.REL.NOINC `($__internal_1_$__cuda_sm3x_div_rn_noftz_f32_slowpath)"
        assert not list(
            report.forbidden_in_main_loops(build_of(source, CODE.replace("MUFU.RSQ R4, R4", slow)))
        )
        source.write_text(SOURCE.replace("v += v;", "v += v;  // report: generic"), "utf-8")
        code = CODE.replace("FADD R4, R4, R5", "LD.E R4, desc[UR4][R2.64]")
        assert not list(report.forbidden_in_main_loops(build_of(source, code)))

    def test_local_memory_and_shared_memory(self, source):
        (broken,) = report.local_memory(build_of(source, local=16))
        assert "16 bytes of local memory" in broken
        source.write_text(SOURCE + "// report: dynamic copy_kernel<* 49152 - 256\n", "utf-8")
        assert not list(report.refused_launches(build_of(source, shared=256)))
        (broken,) = report.refused_launches(build_of(source, shared=272))
        assert "48896 bytes of dynamic shared memory beside 272 static ones" in broken

    def test_budget(self, source):
        source.write_text(SOURCE + "// report: budget copy_kernel<float, 2> 1.2\n", "utf-8")
        (broken,) = report.over_budget([report.fill(ROW, build_of(source))])
        assert "issues 1.25 instructions a logit, its budget is 1.2" in broken


BROKEN_KERNELS = Path(__file__).with_name("broken_kernels.cu")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    path = tmp_path_factory.mktemp("kernels") / "broken_kernels.o"
    command = [nvcc, "-c", "-arch=sm_90", "-lineinfo", "-o", path, BROKEN_KERNELS]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def build(compiled: Path) -> report.Build:
    return report.read_build(compiled, compiled, [BROKEN_KERNELS], "sm_90")


@pytest.mark.thorough
class TestGatesOnCompiledKernels:
    """Each gate names the kernel that is broken for it, and no other."""

    @pytest.mark.parametrize(
        ("gate", "kernel", "what"),
        [
            (report.narrow_accesses, "narrow", "LDG.E where a vector has 16 bytes"),
            (report.local_memory, "local", "bytes of local memory"),
            (report.refused_launches, "shared", "beside 512 static ones"),
        ],
    )
    def test_one_kernel(
        self,
        build: report.Build,
        gate: Callable[[report.Build], Iterator[str]],
        kernel: str,
        what: str,
    ):
        (broken,) = gate(build)
        assert broken.startswith(f"{kernel}_kernel<float, 4>")
        assert what in broken

    def test_main_loops(self, build: report.Build):
        assert sorted(report.forbidden_in_main_loops(build)) == [
            "call_kernel<float, 4>: a call in the main loop",
            "generic_kernel<float, 4>: a generic load in the main loop",
            "local_kernel<float, 4>: local memory in the main loop",
        ]

    def test_budget(self, build: report.Build):
        rows = [
            report.Row(kernel, f"{kernel}_kernel<float, 4>", "4", "4")
            for kernel in ("sound", "costly")
        ]
        sound, costly = lines = [report.fill(row, build) for row in rows]
        (broken,) = report.over_budget(lines)
        assert broken.startswith("costly: costly_kernel<float, 4> issues")
        assert sound.widths == "16"
        assert sound.path.per_element("issue") < 6
        assert sound.path.counts.get("XU", 0) == 0
        assert costly.path.per_element("FMA") > 12

    def test_the_command_fails(
        self, compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        table = tmp_path / "table.md"
        options = ["--sources", str(BROKEN_KERNELS.parent), "--resources", str(table)]
        assert __main__.main([str(compiled), str(compiled), *options]) == 1
        assert "narrow_kernel" in capsys.readouterr().err
        assert "sound_kernel" in table.read_text(encoding="utf-8")
