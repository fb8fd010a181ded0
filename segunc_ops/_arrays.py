"""Lets functions of tensors take NumPy and CuPy arrays, and answer in kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def _is_array(value: object) -> bool:
    return not isinstance(value, Tensor | int | torch.SymInt) and hasattr(value, "__dlpack__")


def _to_tensor(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_tensor(item) for item in value]
    if not _is_array(value):
        return value
    if any(stride < 0 for stride in value.strides):  # which no tensor has
        value = value.copy()
    try:
        return torch.from_dlpack(value)
    except BufferError:  # read-only memory cannot be shared
        return torch.from_dlpack(value.copy())


def _from_tensor(value: Any, from_dlpack: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return from_dlpack(value)
    if isinstance(value, tuple):
        parts = [_from_tensor(item, from_dlpack) for item in value]
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    return value


def _first_array(arguments: Any) -> Any:
    for value in arguments:
        if _is_array(value):
            return value
        if isinstance(value, (list, tuple)) and value and _is_array(value[0]):
            return value[0]
    return None


def accepts_arrays(function: F) -> F:
    """Arrays in, arrays out, over the same memory (DLPack); tensors pass untouched."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        array = _first_array((*args, *kwargs.values()))
        if array is None:
            return function(*args, **kwargs)
        module = type(array).__module__.partition(".")[0]
        if module not in ("numpy", "cupy"):
            raise TypeError(
                f"{function.__name__}: expected tensors, NumPy or CuPy arrays, got "
                f"{type(array).__module__}.{type(array).__qualname__}"
            )
        from_dlpack = __import__(module).from_dlpack
        tensors = [_to_tensor(value) for value in args]
        named = {name: _to_tensor(value) for name, value in kwargs.items()}
        return _from_tensor(function(*tensors, **named), from_dlpack)

    return cast(F, wrapper)
