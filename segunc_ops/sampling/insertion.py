"""Dropout for networks that have none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from .models import unwrap

__all__ = ["insert_dropout"]

_CLASSIFIERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NAME = "inserted_dropout"


def _drop_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *others = args
    return (getattr(module, _NAME)(first), *others)


def _last_layer(model: nn.Module) -> str:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _CLASSIFIERS)
        and not any(part.startswith("aux") for part in name.split("."))
    ]
    if not names:
        raise ValueError(
            "model: expected one with a convolution or a linear layer, got "
            f"{type(model).__name__}; name the modules by before="
        )
    return names[-1]


def insert_dropout(
    model: nn.Module, p: float = 0.1, *, before: str | Iterable[str] | None = None
) -> list[str]:
    """Makes a network drop what goes into some of its layers, so that it can be sampled.

    Each layer gets an :class:`torch.nn.Dropout` as a child, which its first positional argument
    passes through: parameters keep their names, so that checkpoints load as before, and the dropout
    follows train() and eval(). A copy of the network has it, too. Insert before the network is
    compiled, wrapped or trained: training with dropout is what makes its samples mean something.

    Args:
        model: the network, which is changed.
        p: the probability of a value to be dropped, above 0 and below 1.
        before: names of modules as in ``model.named_modules()``. None: the last convolution or
            linear layer that the network has, auxiliary heads aside (names that begin with
            ``aux``).

    Returns:
        The names of the layers that now drop what goes into them.

    Raises:
        ValueError: p out of range; a name that the network does not have, or a layer that has such
            a dropout already; no such layer. Nothing is changed then.

    Example:
        >>> insert_dropout(model, 0.1)
        ['segmentation_head.0']
    """
    if not 0 < p < 1:
        raise ValueError(f"p: expected a probability above 0 and below 1, got {p}")
    network = unwrap(model)
    if network is not model:
        raise ValueError(
            f"model: expected the network itself, got it within {type(model).__name__}; insert "
            "before it is compiled or wrapped"
        )
    if before is None:
        names = [_last_layer(model)]
    else:
        names = list(dict.fromkeys([before] if isinstance(before, str) else before))
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"before: expected names of modules of the model, got {name!r}")
        if hasattr(modules[name], _NAME):
            raise ValueError(f"before: expected layers without inserted dropout, got {name!r}")
    for name in names:
        layer = modules[name]
        layer.add_module(_NAME, nn.Dropout(p).train(layer.training))
        layer.register_forward_pre_hook(_drop_input)
    return names
