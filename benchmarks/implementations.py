"""Who computes a case: names as rows of results have them, and what else is known of each.

Those here are known to several families; the others stand in the family that they are peers of.
"""

from __future__ import annotations

from typing import Literal

# Shades in plots: ours red, compiled and native peers blue, Python packages green and brown.
RED, PINK = "#d1495b", "#e8a0a8"
NAVY, BLUE, LIGHT_BLUE = "#1d3f5c", "#30638e", "#7fa8c9"
GREEN, LIGHT_GREEN = "#5b8a72", "#93b5a3"
BROWN, LIGHT_BROWN = "#b08a3e", "#d3b878"
DARK_GRAY, GRAY, LIGHT_GRAY = "#5c6670", "#8d99a6", "#c3cad1"


class Implementation(str):
    """The name of an implementation.

    Args:
        name: as rows of results have it.
        color: in plots.
        label: what tables and plots call it if that is not its name.
        device: the only type of device that it runs on; empty if it runs on all.
        is_optional: it needs a working compiler, or a package or a torch that may be missing, and
            is then left out.
        is_partial: it computes a part of the result, or another one, to compare times with; it is
            neither checked nor costed.
    """

    color: str
    label: str
    device: str
    is_optional: bool
    is_partial: bool

    def __new__(
        cls,
        name: str,
        color: str = DARK_GRAY,
        *,
        label: str = "",
        device: Literal["", "cpu", "cuda"] = "",
        is_optional: bool = False,
        is_partial: bool = False,
    ) -> Implementation:
        self = super().__new__(cls, name)
        self.color, self.label, self.device = color, label or name, device
        self.is_optional, self.is_partial = is_optional, is_partial
        return self

    @property
    def is_ours(self) -> bool:
        return self.startswith("ours")


OURS = Implementation("ours", RED)
KERNEL = Implementation("ours, kernel alone", PINK)
COMPILED = Implementation("torch.compile", BLUE, label="reference, torch.compile", is_optional=True)
MAX_AUTOTUNE = Implementation("torch.compile, max-autotune", NAVY, device="cuda", is_optional=True)
EAGER = Implementation("eager", GRAY, label="reference, eager")
TORCH_COMPILED = Implementation("F.cross_entropy, torch.compile", LIGHT_BLUE, is_optional=True)
TORCH = Implementation("F.cross_entropy", LIGHT_GRAY, label="F.cross_entropy, eager")

SHARED = (OURS, KERNEL, COMPILED, MAX_AUTOTUNE, EAGER, TORCH_COMPILED, TORCH)
