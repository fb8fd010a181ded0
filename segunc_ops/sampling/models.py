"""Running a model for its logits, whatever it is wrapped in and in whatever mode it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_sampling: ContextVar[bool] = ContextVar("sampling", default=False)


def in_sample() -> bool:
    """Whether a sample is drawn, of whatever model."""
    return _sampling.get()


@contextmanager
def changed(changes: Iterable[tuple[nn.Module, str, object]]) -> Iterator[None]:
    """Sets attributes of modules and puts the old values back, whatever happens."""
    before: list[tuple[nn.Module, str, object]] = []
    try:
        for module, name, value in changes:
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    # Under no_grad torch 2.10 caches weights cast without their gradient, which the caller's next
    # training pass in the same autocast region would then use.
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has to do with any part of the model."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )


def without_ddp(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel, still compiled where it was below that.

    A forward pass through the wrapper broadcasts rank 0's buffers and, under no_grad, cancels the
    broadcast that the next training pass would do.
    """
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        return without_ddp(inner)
    return model


def pick_logits(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, or under a name that is customary."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in ("out", "logits"):
            if key in output:
                logits: Tensor = output[key]
                return logits
        got = f"a mapping with {sorted(map(str, output))}"
    else:
        got = type(output).__name__
    raise TypeError(
        "output: expected the model to return a tensor or a mapping with 'out' or 'logits', got "
        f"{got}; pass output= to pick the logits"
    )


def check_initialized(name: str, model: nn.Module) -> None:
    """Raises where a model would get its parameters by the first sample."""
    if any(is_lazy(p) for p in model.parameters()) or any(is_lazy(b) for b in model.buffers()):
        raise ValueError(
            f"{name}: expected initialised parameters, got lazy ones in "
            f"{type(unwrap(model)).__name__}; run it once before sampling"
        )


def _call(model: nn.Module, input: Any) -> Any:
    if isinstance(input, Mapping):
        return model(**input)
    if isinstance(input, tuple):
        return model(*input)
    return model(input)


def forward(model: nn.Module, input: Any, pick: Callable[[Any], Tensor]) -> Tensor:
    """A model's logits, without gradient."""
    token = _sampling.set(True)
    try:
        with torch.no_grad(), _without_autocast_cache():
            logits = pick(_call(model, input))
    finally:
        _sampling.reset(token)
    if not isinstance(logits, Tensor):
        raise TypeError(f"output: expected the logits as a tensor, got {type(logits).__name__}")
    return logits
