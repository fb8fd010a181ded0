"""What works on a model for as long as it is wanted."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from torch import nn

from segunc_ops._hooks import Hooked, ReplacedMethod


class Half(Hooked):
    def __init__(self, layer: nn.Module) -> None:
        self._handles = [ReplacedMethod(layer, "forward", half)]


def half(layer, x):
    return 0.5 * type(layer).forward(layer, x)


def test_a_method_is_replaced_until_it_is_removed():
    layer, x = nn.Linear(2, 2), torch.randn(1, 2)
    expected = layer(x)
    with Half(layer) as replaced:
        assert torch.equal(layer(x), 0.5 * expected)
        twin = copy.deepcopy(layer)
        with pytest.raises(ValueError, match=r"got one replaced; remove\(\) that first"):
            Half(layer)
    replaced.remove()
    assert torch.equal(layer(x), expected)
    nn.init.zeros_(layer.weight)
    assert torch.equal(twin(x), 0.5 * expected)  # by its own parameters


def test_what_was_put_over_a_method_has_to_go_first():
    layer = nn.Linear(2, 2)
    replaced = Half(layer)
    below, layer.forward = layer.forward, MethodType(half, nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="another that was put over it"):
        replaced.remove()
    layer.forward = MethodType(below.__func__, layer)  # an equal one
    replaced.remove()
    assert "forward" not in vars(layer)
