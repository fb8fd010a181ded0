"""How a build of the kernels is compiled and linked, for copies of them that differ."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_tests.native.harness import native_directory


@dataclass(frozen=True)
class Recipe:
    """Of one build. Its own objects stand in for all that is not compiled anew."""

    flavor: str
    compiler: str
    options: tuple[str, ...]
    link_options: tuple[str, ...]
    include_directory: Path
    csrc: Path
    objects: tuple[str, ...]

    @classmethod
    def load(cls, flavor: str) -> Recipe:
        """That of a build in the folder of test modules."""
        path = native_directory() / f"{flavor}_build.json"
        fields: dict[str, Any] = json.loads(path.read_text())
        return cls(
            flavor,
            fields["compiler"],
            tuple(filter(None, fields["options"])),
            tuple(filter(None, fields["link_options"])),
            Path(fields["include_directory"]),
            Path(fields["csrc"]),
            tuple(fields["objects"]),
        )

    def compile_command(self, csrc: Path, unit: Path, *more: str) -> list[str]:
        """For a unit, relative to csrc, of a copy of it. The object is that of the original where
        the sources are, debug information aside. A change may leave things unused."""
        prefix = f"-ffile-prefix-map={csrc}={self.csrc}"
        includes = [f"-I{csrc}", f"-I{self.include_directory}"]
        return [
            *(self.compiler, *self.options, "-w", prefix, *includes),
            *("-x", "c++", *more, str(csrc / unit)),
        ]

    def original(self, unit: Path) -> str:
        """The build's own object of a unit.

        Raises:
            LookupError: there is none.
        """
        found = [path for path in self.objects if path.endswith(f"/csrc/{unit}.o")]
        if len(found) != 1:
            raise LookupError(f"no single object of the {self.flavor} build is that of {unit}")
        return found[0]

    def link_command(self, replaced: Mapping[Path, Path], directory: Path) -> list[str]:
        """For the build's module in ``directory``, with objects of these units in place of its own.

        They come first: of an inline function that several objects have, the first one's is taken.
        """
        without = {self.original(unit) for unit in replaced}
        objects = [*map(str, replaced.values()), *(o for o in self.objects if o not in without)]
        module = directory / f"segunc_host_{self.flavor}.so"
        return [self.compiler, "-shared", *self.link_options, "-o", str(module), *objects, "-ldl"]


def run_all(commands: Iterable[Sequence[str]]) -> None:
    """One after another.

    Raises:
        RuntimeError: one fails.
    """
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"does not build:\n{result.stderr[-4000:]}")
