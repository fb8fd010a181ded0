"""Monte-Carlo dropout, the streaming accumulator and their agreement with all samples at once."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import segunc_ops
import segunc_ops.functional as sf
from segunc_ops import (
    PredictiveAccumulator,
    PredictiveStatistics,
    ensemble_statistics,
    mc_dropout,
    sample_logits,
    sample_statistics,
)

MAPS = ("prediction", "confidence", "std", "entropy", "expected_entropy", "mutual_information")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((2, 5, 7, 9), (3, 4), (1, 2, 3, 4, 5), (1, 19, 1, 1), (2, 1, 3), (0, 3, 4, 4))


@pytest.fixture(autouse=True, params=["auto", "reference"])
def _backend(request):
    with segunc_ops.backend(request.param):
        yield


def accumulate(samples) -> PredictiveAccumulator:
    accumulator = PredictiveAccumulator()
    for sample in samples:
        accumulator.update(sample)
    return accumulator


def expected_maps(samples: Tensor) -> dict[str, Tensor]:
    """The definitions, in float64, one sample at a time."""
    p = [torch.exp(z.double() - z.double().logsumexp(1, keepdim=True)) for z in samples]
    mean = sum(p) / len(p)
    prediction = mean.argmax(1)
    at = [q.gather(1, prediction.unsqueeze(1)).squeeze(1) for q in p]
    center = sum(at) / len(at)
    squares = sum((a - center) ** 2 for a in at)
    variance = squares / (len(p) - 1) if len(p) > 1 else squares * torch.nan
    entropy = -(mean * mean.clamp_min(1e-300).log()).sum(1)
    expected = sum(-(q * q.clamp_min(1e-300).log()).sum(1) for q in p) / len(p)
    return {
        "prediction": prediction,
        "confidence": center,
        "std": variance.sqrt(),
        "entropy": entropy,
        "expected_entropy": expected,
        "mutual_information": entropy - expected,
        "mean": mean,
    }


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    # Measured in units of the accumulating type; entropies add C terms of up to 1/e.
    tolerance = 1e-12 if actual.dtype == torch.float64 else 4e-6
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
        msg=lambda m: f"{name}: {m}",
    )


def assert_statistics_close(actual: PredictiveStatistics, expected: PredictiveStatistics) -> None:
    assert torch.equal(actual.prediction, expected.prediction)
    for name in MAPS[1:]:
        assert getattr(actual, name).dtype == getattr(expected, name).dtype
        assert_close(getattr(actual, name), getattr(expected, name), name)


# ---------------------------------------------------------------------------- accumulator


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_samples", [1, 2, 3, 10])
def test_streaming_agrees_with_definitions_and_with_all_at_once(shape, num_samples, dtype):
    torch.manual_seed(0)
    samples = (3 * torch.randn(num_samples, *shape)).to(dtype)
    accumulator = accumulate(samples)
    streamed = accumulator.compute(return_mean=True)

    assert accumulator.count == num_samples
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    expected = expected_maps(samples)
    for name in (*MAPS, "mean"):
        actual = getattr(streamed, name)
        assert actual.dtype == (torch.int64 if name == "prediction" else accumulated)
        assert actual.shape == expected[name].shape
        assert_close(actual, expected[name], name)
    assert_statistics_close(streamed, sf.predictive_statistics(samples))
    assert streamed.std.isnan().all() == (num_samples == 1) or streamed.std.numel() == 0


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "permuted"])
def test_any_strides(layout):
    torch.manual_seed(0)
    if layout == "channels_last":
        samples = [torch.randn(2, 5, 6, 7).to(memory_format=torch.channels_last) for _ in range(4)]
    elif layout == "sliced":
        samples = [torch.randn(4, 9, 8, 15)[::2, 1:6, 1:7, ::2] for _ in range(4)]
    else:
        samples = [torch.randn(7, 2, 5, 6).permute(1, 2, 3, 0) for _ in range(4)]
    contiguous = accumulate([s.contiguous() for s in samples]).compute()
    assert_statistics_close(accumulate(samples).compute(), contiguous)


def test_small_deviations_keep_their_digits():
    # Near p = 0.95 a naive sum of squares would lose a deviation of 1e-4 in float32.
    torch.manual_seed(0)
    base = torch.tensor([4.0, 1.0, 0.0]).view(1, 3, 1)
    samples = base + 2e-3 * torch.randn(10, 1, 3, 256)
    std = accumulate(samples).compute().std
    torch.testing.assert_close(std.double(), expected_maps(samples)["std"], rtol=3e-3, atol=0)


def test_compute_between_updates_changes_nothing():
    torch.manual_seed(0)
    samples = torch.randn(4, 2, 3, 5)
    accumulator = PredictiveAccumulator()
    for i, sample in enumerate(samples):
        statistics = accumulator.update(sample).compute(return_mean=True)
        assert statistics.mean is not None
        statistics.mean.zero_()
        assert_statistics_close(accumulator.compute(), sf.predictive_statistics(samples[: i + 1]))


def test_nan_logits_give_nan_maps_at_their_pixels_alone():
    torch.manual_seed(0)
    samples = torch.randn(3, 1, 4, 6)
    samples[1, 0, 2, 4] = torch.nan
    statistics = accumulate(samples).compute()
    for name in MAPS[1:]:
        assert getattr(statistics, name).isnan().nonzero().tolist() == [[0, 4]]


def test_never_differentiable():
    samples = torch.randn(3, 2, 4, 5, requires_grad=True)
    statistics = accumulate(samples).compute(return_mean=True)
    assert not any(m.requires_grad for m in statistics)


def test_first_update_in_inference_mode_and_later_ones_outside():
    torch.manual_seed(0)
    samples = torch.randn(4, 2, 3, 5)
    accumulator, other = PredictiveAccumulator(), accumulate(samples[2:])
    with torch.inference_mode():
        accumulator.update(samples[0])
        merged = PredictiveAccumulator().merge(other)
    accumulator.update(samples[1])
    merged.merge(accumulator)
    assert_statistics_close(merged.compute(), sf.predictive_statistics(samples))


@settings(max_examples=40, deadline=None)
@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    order=st.permutations(range(4)),
    seed=st.integers(0, 2**16),
)
def test_merge_of_any_partition_in_any_order(owners, order, seed):
    generator = torch.Generator().manual_seed(seed)
    samples = 3 * torch.randn(len(owners), 2, 3, 5, generator=generator, dtype=torch.float64)
    parts = [
        accumulate([s for s, owner in zip(samples, owners, strict=True) if owner == part])
        for part in order
    ]
    merged = PredictiveAccumulator()
    for part in parts:
        assert merged.merge(part) is merged
    assert merged.count == len(owners)
    assert sum(part.count for part in parts) == len(owners)
    assert_statistics_close(merged.compute(), sf.predictive_statistics(samples))


def test_merge_pairwise_in_float32():
    torch.manual_seed(0)
    samples = 3 * torch.randn(8, 2, 5, 6)
    parts = [accumulate(pair) for pair in samples.split(2)]
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    assert_statistics_close(merged.compute(), sf.predictive_statistics(samples))


def test_merge_leaves_the_other_alone_and_independent():
    torch.manual_seed(0)
    samples = torch.randn(5, 2, 3, 4)
    other = accumulate(samples[:2])
    before = pickle.dumps(other)
    mine = PredictiveAccumulator().merge(other)
    mine.update(samples[2])
    accumulate(samples[3:]).merge(other)
    assert pickle.dumps(other) == before
    assert mine.count == 3


def test_merge_of_empty_accumulators():
    assert PredictiveAccumulator().merge(PredictiveAccumulator()).count == 0
    one = accumulate(torch.randn(2, 1, 3, 4))
    before = one.compute()
    assert_statistics_close(one.merge(PredictiveAccumulator()).compute(), before)


def test_merge_with_itself_counts_every_sample_twice():
    torch.manual_seed(0)
    samples = torch.randn(3, 1, 4, 5)
    accumulator = accumulate(samples)
    doubled = accumulator.merge(accumulator)
    assert doubled.count == 6
    assert_statistics_close(
        doubled.compute(), sf.predictive_statistics(torch.cat([samples, samples]))
    )


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_equal_and_independent(copier):
    torch.manual_seed(0)
    samples = torch.randn(4, 2, 3, 5)
    original = accumulate(samples[:3])
    duplicate = copier(original)
    duplicate.update(samples[3])
    assert (original.count, duplicate.count) == (3, 4)
    assert_statistics_close(original.compute(), sf.predictive_statistics(samples[:3]))
    assert_statistics_close(duplicate.compute(), sf.predictive_statistics(samples))
    assert copier(PredictiveAccumulator()).count == 0


def test_reset_forgets_samples_shape_and_type():
    accumulator = accumulate(torch.randn(3, 2, 4, 5))
    assert accumulator.reset() is accumulator
    assert accumulator.count == 0
    samples = torch.randn(2, 1, 3, 7, dtype=torch.float64)
    for sample in samples:
        accumulator.update(sample)
    assert_statistics_close(accumulator.compute(), sf.predictive_statistics(samples))


def test_state_does_not_grow_with_the_samples():
    few, many = accumulate(torch.randn(2, 1, 3, 8, 8)), accumulate(torch.randn(50, 1, 3, 8, 8))
    assert len(pickle.dumps(few)) == len(pickle.dumps(many))


def test_errors_name_what_came_and_leave_the_state_alone():
    accumulator = PredictiveAccumulator()
    assert repr(accumulator) == "PredictiveAccumulator(count=0)"
    with pytest.raises(RuntimeError, match="at least one sample, got none"):
        accumulator.compute()
    with pytest.raises(TypeError, match="logits: expected a tensor, got list"):
        accumulator.update([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"logits: .*int64"):
        accumulator.update(torch.zeros(1, 3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"logits: expected shape \(N, C, \*\)"):
        accumulator.update(torch.zeros(3))
    assert accumulator.count == 0

    samples = torch.randn(2, 1, 3, 4)
    accumulator = accumulate(samples)
    assert repr(accumulator) == (
        "PredictiveAccumulator(count=2, shape=(1, 3, 4), dtype=torch.float32)"
    )
    with pytest.raises(ValueError, match=r"logits: expected shape \(1, 3, 4\).*got \(1, 3, 5\)"):
        accumulator.update(torch.zeros(1, 3, 5))
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match=rf"logits: expected torch.float32.*got {dtype}"):
            accumulator.update(torch.zeros(1, 3, 4, dtype=dtype))
    with pytest.raises(ValueError, match=r"logits: expected device cpu.*got meta"):
        accumulator.update(torch.zeros(1, 3, 4, device="meta"))
    with pytest.raises(ValueError, match=r"other: expected shape \(1, 3, 4\).*got \(2, 3, 4\)"):
        accumulator.merge(accumulate(torch.zeros(1, 2, 3, 4)))
    with pytest.raises(TypeError, match=r"other: expected torch.float32.*got torch.float64"):
        accumulator.merge(accumulate(torch.zeros(1, 1, 3, 4, dtype=torch.float64)))
    with pytest.raises(TypeError, match="other: expected a PredictiveAccumulator, got Tensor"):
        accumulator.merge(samples)  # type: ignore[arg-type]
    assert accumulator.count == 2
    assert_statistics_close(accumulator.compute(), sf.predictive_statistics(samples))


# ---------------------------------------------------------------------------- dropout


class Network(nn.Module):
    """Two convolutions, a norm and a dropout, with what a trainer's model may add."""

    def __init__(
        self, norm: nn.Module | None = None, dropout: nn.Module | None = None, classes: int = 4
    ):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.dropout = nn.Dropout2d(0.5) if dropout is None else dropout
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, input: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.encoder(input))))) * scale


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(2, 3, 6, 6) + 1


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def snapshot(model: nn.Module) -> tuple[list[bool], list[tuple[int, int, Tensor]]]:
    """Modes; and of every buffer and parameter its identity, version and value."""
    tensors = [*model.parameters(), *model.buffers()]
    return modes(model), [(id(t), t._version, t.detach().clone()) for t in tensors]


def assert_untouched(model: nn.Module, before: tuple) -> None:
    after = snapshot(model)
    assert after[0] == before[0]
    assert [entry[:2] for entry in after[1]] == [entry[:2] for entry in before[1]]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(after[1], before[1], strict=True))


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


# ---------------------------------------------------------------------------- sampling


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
    # The training pass may compute an instance norm with statistics in another order.
    for logits in drawn:
        torch.testing.assert_close(logits, twin(images), rtol=1e-5, atol=1e-6)
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


# ---------------------------------------------------------------------------- ensembles


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


# ---------------------------------------------------------------------------- wrappers


def test_compiled_model_samples_and_trains(images):
    model = Network()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for step in range(3):
        before = snapshot(model)
        statistics = sample_statistics(compiled, images, 2)
        assert statistics.std.max() > 0
        assert_untouched(model, before)
        compiled(images).sum().backward()
        assert model.norm.num_batches_tracked == step + 1
    compiled.eval()
    assert torch.equal(compiled(images), compiled(images))
    assert sample_statistics(compiled, images, 2, batch_norm="running").std.max() > 0
    assert torch.equal(compiled(images), compiled(images))
    with pytest.raises(ValueError, match="got none in Conv2d"):
        sample_logits(torch.compile(nn.Conv2d(3, 4, 1)), images)


@pytest.fixture
def process_group(tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("needs gloo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", ["ddp", "ddp-of-compiled", "compiled-ddp"])
def test_ddp_model_samples_without_communication(images, process_group, monkeypatch, wrap):
    model = Network()
    inner = torch.compile(model, backend="eager") if wrap == "ddp-of-compiled" else model
    ddp = nn.parallel.DistributedDataParallel(inner)
    outer = torch.compile(ddp, backend="eager") if wrap == "compiled-ddp" else ddp
    synchronised = []
    monkeypatch.setattr(ddp, "_sync_buffers", lambda: synchronised.append(1))
    synchronises = ddp.require_forward_param_sync
    before = snapshot(model)

    torch.manual_seed(7)
    expected = list(sample_logits(model, images, 3))
    torch.manual_seed(7)
    drawn = list(sample_logits(outer, images, 3))

    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))
    assert not synchronised
    assert ddp.require_forward_param_sync == synchronises
    assert_untouched(model, before)
    with mc_dropout(outer):
        assert model.dropout.training
    outer(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
