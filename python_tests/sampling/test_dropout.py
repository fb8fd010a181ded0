"""mc_dropout: which modules are random inside, and that all is as before outside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from python_tests.sampling.cases import Network, modes
from segunc_ops import mc_dropout, sample_logits

pytestmark = pytest.mark.usefixtures("each_backend")


@pytest.mark.parametrize(
    ("dropout", "shape"),
    [
        (nn.Dropout(0.5), (4, 8)),
        (nn.Dropout1d(0.5), (4, 8, 3)),
        (nn.Dropout2d(0.5), (4, 8, 3, 3)),
        (nn.Dropout3d(0.5), (4, 8, 3, 3, 3)),
        (nn.AlphaDropout(0.5), (4, 8)),
        (nn.FeatureAlphaDropout(0.5), (4, 8, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_dropout_is_random_inside_and_as_before_outside(dropout, shape):
    model = nn.Sequential(dropout).eval()
    input = torch.ones(shape)
    with mc_dropout(model) as inside:
        assert inside is model
        assert not model.training
        assert dropout.training
        assert not torch.equal(model(input), model(input))
    assert modes(model) == [False, False]
    assert torch.equal(model(input), input)


@pytest.mark.parametrize("fails", [False, True])
def test_all_other_modes_are_kept_and_all_restored(fails):
    model = nn.ModuleDict(
        {
            "network": Network(),
            "frozen": nn.BatchNorm1d(3).eval(),
            "silent": nn.Dropout(0.0).eval(),
            "off": nn.Dropout(0.3).eval(),
            "on": nn.Dropout(0.3),
        }
    )
    before = modes(model)
    try:
        with mc_dropout(model):
            inside = {name: module.training for name, module in model.items()}
            assert inside == {
                "network": True,
                "frozen": False,
                "silent": False,
                "off": True,
                "on": True,
            }
            with mc_dropout(model):
                pass
            assert model["off"].training
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert modes(model) == before


@pytest.mark.parametrize(
    ("model", "input"),
    [
        (nn.LSTM(4, 6, num_layers=2, dropout=0.5), torch.ones(3, 2, 4)),
        (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), torch.ones(2, 5, 8)),
        (
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), 2
            ),
            torch.ones(2, 5, 8),
        ),
    ],
    ids=["lstm", "encoder-layer", "encoder"],
)
def test_dropout_inside_torch_layers(model, input):
    model.eval()
    before = modes(model)
    pick = (lambda y: y[0]) if isinstance(model, nn.LSTM) else None
    first, second = sample_logits(model, input, 2, output=pick)
    assert not torch.equal(first, second)
    assert modes(model) == before


def test_attention_dropout_alone():
    attention = nn.MultiheadAttention(8, 2, dropout=0.5).eval()
    query = torch.randn(5, 2, 8)
    first, second = sample_logits(attention, (query, query, query), 2, output=lambda y: y[0])
    assert not torch.equal(first, second)
    assert not attention.training


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 1), Network(dropout=nn.Dropout(0.0))])
def test_a_model_without_dropout_is_an_error_at_once(model, images):
    message = f"model: expected at least one dropout layer.*{type(model).__name__}"
    with pytest.raises(ValueError, match=message), mc_dropout(model):
        pass
    with pytest.raises(ValueError, match=message):
        sample_logits(model, images)
