"""sample_logits and sample_statistics: passes as in training or evaluation, no trace of them."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict

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
from segunc_ops import sample_logits, sample_statistics

pytestmark = pytest.mark.usefixtures("each_backend")


def test_batch_mode_is_the_training_pass_of_algorithm_1(images):
    model = Network()
    twin = copy.deepcopy(model).train()
    for training in (True, False):
        model.train(training)
        before = snapshot(model)
        torch.manual_seed(7)
        drawn = list(sample_logits(model, images, 3))
        torch.manual_seed(7)
        for logits in drawn:
            assert torch.equal(logits, twin(images))
            assert not logits.requires_grad
        assert not torch.equal(drawn[0], drawn[1])
        assert_untouched(model, before)


@pytest.mark.parametrize("training", [True, False])
def test_running_mode_is_eval_with_random_dropout(images, training):
    model = Network()
    for _ in range(3):
        model(images)
    twin = copy.deepcopy(model).eval()
    twin.dropout.train()
    model.train(training)
    before = snapshot(model)
    torch.manual_seed(7)
    drawn = list(sample_logits(model, images, 3, batch_norm="running"))
    torch.manual_seed(7)
    assert all(torch.equal(logits, twin(images)) for logits in drawn)
    assert_untouched(model, before)


NORMS = {
    "batch": lambda: nn.BatchNorm2d(8),
    "cumulative": lambda: nn.BatchNorm2d(8, momentum=None),
    "untracked": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "sync": lambda: nn.SyncBatchNorm(8),
    "instance": lambda: nn.InstanceNorm2d(8),
    "tracked-instance": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, 8),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize("norm", NORMS)
def test_norms_normalise_as_asked_and_keep_their_statistics(images, norm, batch_norm, training):
    model = Network(NORMS[norm]())
    model(images)
    twin = copy.deepcopy(model).train()
    if batch_norm == "running":
        twin.norm.eval()
    model.train(training)
    before = snapshot(model)
    torch.manual_seed(7)
    drawn = list(sample_logits(model, images, 2, batch_norm=batch_norm))
    torch.manual_seed(7)
    twin_before = snapshot(twin)
    # The training pass may compute an instance norm with statistics in another order.
    for logits in drawn:
        torch.testing.assert_close(logits, twin(images), rtol=1e-5, atol=1e-6)
    if batch_norm == "running":
        # Beside torch 2.10 an instance norm counts reading its statistics as writing them.
        reads = [a[1] - b[1] for a, b in zip(snapshot(twin)[1], twin_before[1], strict=True)]
        entries = zip(before[1], reads, strict=True)
        before = before[0], [(tensor, v + n, value) for (tensor, v, value), n in entries]
    assert_untouched(model, before)


def test_a_norm_frozen_in_training_stays_frozen(images):
    model = Network()
    model(images)
    model.norm.eval()
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    (logits,) = sample_logits(model, images, 1)
    torch.manual_seed(7)
    assert torch.equal(logits, twin(images))


def test_training_between_samples_sees_an_ordinary_model(images):
    model = Network(dropout=nn.Dropout(0.5))
    twin = copy.deepcopy(model)
    before = modes(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    samples = sample_logits(model, images, 3)
    for step in range(3):
        next(samples)
        assert modes(model) == before
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            m(images).square().mean().backward()
            optimizer.step()
    for key, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert model.norm.num_batches_tracked == 3


@pytest.mark.parametrize("how", ["close", "delete", "raise"])
def test_an_abandoned_generator_leaves_nothing_behind(images, how):
    model = Network().eval()
    before = snapshot(model)
    samples = sample_logits(model, images, 5)
    next(samples)
    assert torch.is_grad_enabled()
    if how == "close":
        samples.close()
    elif how == "delete":
        del samples
    else:
        with pytest.raises(KeyError):
            samples.throw(KeyError())
    assert_untouched(model, before)
    assert torch.is_grad_enabled()
    assert torch.is_autocast_cache_enabled()


def test_an_exception_in_the_model_restores_everything(images):
    class Failing(Network):
        def forward(self, input: Tensor, *, scale: float = 1.0) -> Tensor:
            super().forward(input)
            raise ArithmeticError

    norm = nn.InstanceNorm2d(8, track_running_stats=True)
    model = Failing(norm).eval()
    before = snapshot(model)
    with pytest.raises(ArithmeticError):
        next(sample_logits(model, images))
    assert_untouched(model, before)
    assert torch.is_grad_enabled()
    assert torch.is_autocast_cache_enabled()


def test_arguments_as_tuple_and_mapping(images):
    model = Network()
    drawn = []
    for arguments in (images, (images,), {"input": images, "scale": 1.0}, {"input": images}):
        torch.manual_seed(7)
        drawn += sample_logits(model, arguments, 1)
    assert all(torch.equal(logits, drawn[0]) for logits in drawn)


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = Network(), wrap

    def forward(self, input: Tensor):
        return self.wrap(self.network(input))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda z: OrderedDict(out=z, aux=z + 1), None),
        (lambda z: {"loss": z.sum(), "logits": z}, None),
        (lambda z: (z + 1, z), lambda result: result[1]),
        (lambda z: {"masks": z}, lambda result: result["masks"]),
    ],
)
def test_logits_are_picked_from_what_models_return(images, wrap, output):
    model = Wrapped(wrap)
    torch.manual_seed(7)
    (expected,) = sample_logits(model.network, images, 1)
    torch.manual_seed(7)
    (logits,) = sample_logits(model, images, 1, output=output)
    assert torch.equal(logits, expected)
    statistics = sample_statistics(model, images, 2, output=output)
    assert statistics.std.shape == (2, 6, 6)


def test_outputs_without_logits_are_errors(images):
    with pytest.raises(TypeError, match=r"output: .* got a mapping with \['masks'\]; pass output="):
        next(sample_logits(Wrapped(lambda z: {"masks": z}), images))
    with pytest.raises(TypeError, match=r"output: .* got tuple; pass output="):
        next(sample_logits(Wrapped(lambda z: (z, z)), images))
    with pytest.raises(TypeError, match="output: expected the logits as a tensor, got tuple"):
        next(sample_logits(Wrapped(lambda z: (z, z)), images, output=lambda result: result))


def test_bad_arguments_are_errors_at_once(images):
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        sample_logits(Network(), images, 0)
    with pytest.raises(TypeError):
        sample_logits(Network(), images, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batch_norm: expected one of .*'batch'.*got 'train'"):
        sample_logits(Network(), images, batch_norm="train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model: expected initialised parameters.*Network"):
        sample_logits(Network(nn.LazyBatchNorm2d()), images)


@pytest.mark.parametrize("num_samples", [1, 2, 10])
def test_sample_statistics_are_those_of_the_samples(images, num_samples):
    model = Network()
    before = snapshot(model)
    torch.manual_seed(7)
    samples = torch.stack(list(sample_logits(model, images, num_samples)))
    torch.manual_seed(7)
    statistics = sample_statistics(model, images, num_samples, return_mean=True)
    assert_statistics_close(statistics, sf.predictive_statistics(samples))
    assert_close(statistics.mean, samples.softmax(2).mean(0), "mean")
    assert sample_statistics(model, images, 1).mean is None
    assert_untouched(model, before)


def test_no_sample_outlives_the_next_pass(images):
    model = Network()
    drawn: list[weakref.ref] = []
    alive: list[int] = []
    model.register_forward_pre_hook(lambda *_: alive.append(sum(r() is not None for r in drawn)))
    model.register_forward_hook(lambda _, __, output: drawn.append(weakref.ref(output)))
    sample_statistics(model, images, 8)
    assert alive == [0] * 8
    assert all(r() is None for r in drawn)


def test_autocast_region_shared_with_training(images):
    model = Network()
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = sample_logits(model, images, 1)
        assert logits.dtype == torch.bfloat16
        assert sample_statistics(model, images, 2).std.dtype == torch.float32
        # Weights that sampling had left in autocast's cache would hide this change, or, in older
        # versions of torch, have no gradient.
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        trained = model(images)
    assert trained.eq(0).all()
    trained.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
