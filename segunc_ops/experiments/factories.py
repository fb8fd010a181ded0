"""Networks of a user's own, by the name of a function that makes them."""

from __future__ import annotations

import importlib
import os
import sys

from torch import nn


class FactoryError(ValueError):
    """A network that cannot be made."""


def make_network(name: str) -> nn.Module:
    """The network that a function makes, in evaluation mode.

    Args:
        name: of the function, such as ``"package.module:factory"``. It is called without arguments
            and loads the network's weights itself. Modules of the working directory are found.

    Raises:
        FactoryError: there is no such function, it fails, or returns something else.
    """
    module, separator, function = name.partition(":")
    if not (separator and module and function):
        raise FactoryError(f"{name}: expected package.module:factory")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        network = getattr(importlib.import_module(module), function)()
    except Exception as problem:  # whatever a user's module does
        raise FactoryError(f"{name}: {type(problem).__name__}: {problem}") from problem
    if not isinstance(network, nn.Module):
        raise FactoryError(f"{name}: expected a torch.nn.Module, got {type(network).__name__}")
    return network.eval()
