"""What works on a model by hooks for as long as it is wanted."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Hooked"]


class Hooked:
    """Works until :meth:`remove`, or to the end of a ``with`` block."""

    _handles: list[RemovableHandle]

    def remove(self) -> None:
        """Removes the hooks; may be called again."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()
