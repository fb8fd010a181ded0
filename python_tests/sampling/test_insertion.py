"""Dropout inserted into networks that have none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segunc_ops import insert_dropout, sample_statistics


def test_inserted_dropout(images):
    model = nn.ModuleDict(
        {
            "head": nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
            "aux_head": nn.Conv2d(8, 4, 1),
        }
    )
    keys = list(model.state_dict())
    assert insert_dropout(model, 0.5) == ["head.2"]
    assert list(model.state_dict()) == keys
    assert insert_dropout(model, 0.5, before="aux_head") == ["aux_head"]
    for network in (model["head"], copy.deepcopy(model["head"])):
        assert sample_statistics(network, images, 4).std.max() > 0
        network.eval()
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))
    with pytest.raises(ValueError, match=r"without inserted dropout, got 'head\.2'"):
        insert_dropout(model)
    with pytest.raises(ValueError, match="names of modules of the model, got 'tail'"):
        insert_dropout(model, before=["head.0", "tail"])
    assert len(list(model["head"][0].children())) == 0
    with pytest.raises(ValueError, match="p: expected a probability"):
        insert_dropout(model, 1.0)
    with pytest.raises(ValueError, match="convolution or a linear layer, got ReLU"):
        insert_dropout(nn.ReLU())
    with pytest.raises(ValueError, match="got it within OptimizedModule"):
        insert_dropout(torch.compile(nn.Linear(2, 2)))
