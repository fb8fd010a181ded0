"""Lets functions of tensors take NumPy and CuPy arrays, and answer in kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def _is_array(value: object) -> bool:
    return not isinstance(value, Tensor | int | torch.SymInt) and hasattr(value, "__dlpack__")


def _to_tensor(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_tensor(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if not _is_array(value):
        return value
    if hasattr(value, "mask"):
        raise TypeError(
            f"{name}: expected an array without a mask, which is not read, got "
            f"{type(value).__name__}; pass {name}.filled(...)"
        )
    if any(stride < 0 for stride in value.strides):  # which no tensor has
        value = value.copy()
    try:
        return torch.from_dlpack(value)
    except BufferError:
        pass
    # Memory that cannot be shared: read-only, of the other byte order, a field of records.
    try:
        return torch.from_dlpack(value.astype(value.dtype.newbyteorder("="), order="C"))
    except BufferError:
        raise TypeError(
            f"{name}: expected an array of numbers that torch has, got dtype {value.dtype}"
        ) from None


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
    names = tuple(signature(function).parameters)

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
        tensors = [_to_tensor(name, value) for name, value in zip(names, args, strict=False)]
        named = {name: _to_tensor(name, value) for name, value in kwargs.items()}
        return _from_tensor(function(*tensors, **named), from_dlpack)

    return cast(F, wrapper)
