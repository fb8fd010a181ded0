"""Statistics of an ensemble's members."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

import segunc_ops.functional as sf
from python_tests.sampling.cases import (
    Network,
    assert_close,
    assert_statistics_close,
    assert_untouched,
    modes,
    snapshot,
)
from segunc_ops import ensemble_statistics

pytestmark = pytest.mark.usefixtures("each_backend")


def members(count: int) -> list[Network]:
    torch.manual_seed(3)
    ensemble = [Network() for _ in range(count)]
    for number, model in enumerate(ensemble):
        model(torch.randn(2, 3, 6, 6))  # running statistics that differ from the batch's
        model.train(number % 2 == 0)
    if count > 1:
        ensemble[0].norm.eval()  # frozen
    return ensemble


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("form", [list, nn.ModuleList, iter])
def test_ensemble_statistics_are_those_of_the_members_in_eval_mode(images, count, form):
    ensemble = members(count)
    logits = torch.stack([copy.deepcopy(model).eval()(images).detach() for model in ensemble])
    before = [snapshot(model) for model in ensemble]
    statistics = ensemble_statistics(form(ensemble), images, return_mean=True)
    assert_statistics_close(statistics, sf.predictive_statistics(logits))
    assert_close(statistics.mean, logits.softmax(2).mean(0), "mean")
    assert not any(each.requires_grad for each in statistics)
    assert ensemble_statistics(ensemble, images).mean is None
    for model, old in zip(ensemble, before, strict=True):
        assert_untouched(model, old)


def test_members_run_one_after_another_in_memory_of_one(images):
    made: list[weakref.ref] = []
    drawn: list[weakref.ref] = []

    def lazily():
        for model in members(6):
            assert not any(r() is not None for r in drawn)
            model.register_forward_hook(lambda _, __, output: drawn.append(weakref.ref(output)))
            made.append(weakref.ref(model))
            yield model

    ensemble_statistics(lazily(), images)
    assert len(made) == len(drawn) == 6


def test_a_failing_member_is_restored(images):
    class Failing(Network):
        def forward(self, input: Tensor, *, scale: float = 1.0) -> Tensor:
            assert not any(modes(self))
            raise ArithmeticError

    model = Failing()
    model.norm.eval()
    before = snapshot(model)
    with pytest.raises(ArithmeticError):
        ensemble_statistics([model], images)
    assert_untouched(model, before)
    assert torch.is_grad_enabled()
    assert torch.is_autocast_cache_enabled()


def test_errors_name_the_member(images):
    with pytest.raises(ValueError, match="models: expected at least one member, got none"):
        ensemble_statistics([], images)
    with pytest.raises(TypeError, match="models: expected several modules, got one Network"):
        ensemble_statistics(Network(), images)
    with pytest.raises(TypeError, match=r"models\[1\]: expected a module, got str"):
        ensemble_statistics([Network(), "Network"], images)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"models\[0\]: expected initialised parameters.*Network"):
        ensemble_statistics([Network(nn.LazyBatchNorm2d())], images)
    with pytest.raises(ValueError, match=r"logits: expected shape \(2, 4, 6, 6\).*\(2, 5, 6, 6\)"):
        ensemble_statistics([Network(), Network(classes=5)], images)
