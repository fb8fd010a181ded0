"""What works on a model by hooks, or by methods of its own, for as long as it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Hooked", "ReplacedMethod"]


class _Removable(Protocol):
    def remove(self) -> None: ...


class ReplacedMethod:
    """A method that one module has in place of its class's, until :meth:`remove`.

    It is a function of the module, so that a copy of the module has it for itself.
    """

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        if name in vars(module):
            raise ValueError(
                f"model: expected {type(module).__name__} with its class's {name}(), got one "
                "replaced; remove() that first"
            )
        self._module, self._name = module, name
        self._method = MethodType(function, module)
        setattr(module, name, self._method)

    def remove(self) -> None:
        if vars(self._module).get(self._name) != self._method:
            raise RuntimeError(
                f"model: expected the {self._name}() of {type(self._module).__name__} that was put "
                "in place, got another that was put over it; take that away first"
            )
        delattr(self._module, self._name)


class Hooked:
    """Works until :meth:`remove`, or to the end of a ``with`` block."""

    _handles: list[_Removable]

    def remove(self) -> None:
        """Gives the model back what it had; may be called again."""
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()
