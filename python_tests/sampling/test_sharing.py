"""What comes before the first dropout runs once, and the samples are those of whole passes."""

from __future__ import annotations

import inspect
import random
import time
from collections import UserList
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from python_tests.sampling.cases import Network, assert_untouched, snapshot
from segunc_ops import PredictiveStatistics, record_forward, sample_statistics
from segunc_ops.sampling import sharing

S = 4


def assert_same(actual: PredictiveStatistics, expected: PredictiveStatistics) -> None:
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        if other is not None:
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), name


class Counted(nn.Conv2d):
    """A convolution that counts its passes where no attribute shows it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.passes: UserList[int] = UserList()

    def forward(self, input: Tensor) -> Tensor:
        self.passes.append(1)
        return super().forward(input)


def conv(inputs: int = 4, outputs: int = 4) -> Counted:
    return Counted(inputs, outputs, 3, padding=1)


def counts(model: nn.Module) -> dict[str, int]:
    return {n: len(m.passes) for n, m in model.named_modules() if isinstance(m, Counted)}


def compared(model: nn.Module, input, passes: dict[str, int] | None = None, **options) -> None:
    """With and without sharing the same, as is the model; and how often each convolution ran."""
    runs = []
    for share in (False, None):
        for module in model.modules():
            if isinstance(module, Counted):
                module.passes.clear()
        before = snapshot(model)
        torch.manual_seed(7)
        runs.append(sample_statistics(model, input, S, return_mean=True, share=share, **options))
        drawn = torch.get_rng_state()
        assert_untouched(model, before)
        assert not any("forward" in module.__dict__ for module in model.modules())
        if share is False:
            after = drawn
    assert torch.equal(after, drawn)
    assert_same(runs[1], runs[0])
    assert runs[0].std.max() > 0
    if passes is not None:
        assert counts(model) == passes


class Functional(nn.Module):
    """`run` in place of a forward of its own."""

    def __init__(self, run, **modules: nn.Module):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def stem() -> nn.Sequential:
    return nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv())


def several(m, x):
    one, (two, three) = m.encoder(x)
    assert one.data_ptr() == three.data_ptr()
    three = F.relu(three, inplace=True)
    return m.head(m.dropout(one + two))


def twice(m, x):
    return m.head(m.dropout(m.block(m.block(m.first(x)))) + 1)


def before_and_after(m, x):
    x = m.block(m.first(x))
    return m.head(m.block(m.dropout(x)))


def in_place_between(m, x):
    x = m.first(x)
    x += 1
    F.relu_(x)
    y = m.block(x)
    y += 1
    y += m.dropout(y)
    return m.head(y)


def checkpointed(m, x):
    x = checkpoint(m.first, x, use_reentrant=False)
    return m.head(m.dropout(checkpoint(m.block, x, use_reentrant=False)))


def drops_in_place(m, x):
    return m.head(m.dropout(m.first(x)))


def functional_dropout(m, x):
    return m.head(m.dropout(m.block(F.dropout(m.first(x), 0.5))))


def views(m, x):
    x = m.flat(m.same(m.first(x)))
    x[0] += 1
    return m.head(m.dropout(x.view(2, 4, 6, 6)))


def seeded_inside(m, x):
    with torch.random.fork_rng():
        x = m.first(x) + torch.rand(1)
    return m.head(m.dropout(m.block(x)))


def by_generator(m, x):
    x = m.first(x)
    noise = torch.rand(1, generator=m.generator)
    return m.head(m.dropout(m.block(x + noise)))


def head(**modules):
    return dict(head=conv(4, 5), dropout=nn.Dropout(0.5), **modules)


CASES = {
    "sequential": (
        lambda: nn.Sequential(stem(), nn.Dropout2d(0.5), conv(4, 5)),
        {"0.0": 1, "0.3": 1, "2": S},
    ),
    "dropout-inside": (
        lambda: nn.Sequential(conv(3), nn.Sequential(conv(), nn.Dropout(0.5), conv())),
        {"0": 1, "1.0": 1, "1.2": S},
    ),
    "several-outputs": (
        lambda: Functional(
            several,
            encoder=Functional(lambda m, x: (y := m.conv(x), [y + 1, y]), conv=conv(3)),
            **head(),
        ),
        {"encoder.conv": 1, "head": S},
    ),
    "twice": (
        lambda: Functional(twice, first=conv(3), block=conv(), **head()),
        {"first": 1, "block": 2, "head": S},
    ),
    "before-and-after": (
        lambda: Functional(before_and_after, first=conv(3), block=conv(), **head()),
        {"first": 1, "block": 1 + S, "head": S},
    ),
    "in-place-between": (
        lambda: Functional(in_place_between, first=conv(3), block=conv(), **head()),
        {"first": 1, "block": 1, "head": S},
    ),
    "checkpointed": (
        lambda: Functional(checkpointed, first=stem(), block=conv(), **head()),
        {"first.0": 1, "first.3": 1, "block": 1, "head": S},
    ),
    "in-place-dropout": (
        lambda: Functional(
            drops_in_place, first=conv(3), head=conv(4, 5), dropout=nn.Dropout(0.5, inplace=True)
        ),
        {"first": 1, "head": S},
    ),
    "functional-dropout": (
        lambda: Functional(functional_dropout, first=conv(3), block=conv(), **head()),
        {"first": 1, "block": S, "head": S},
    ),
    "views": (
        lambda: Functional(views, first=conv(3), same=nn.Identity(), flat=nn.Flatten(), **head()),
        {"first": 1, "head": S},
    ),
    "fork-rng": (
        lambda: Functional(seeded_inside, first=conv(3), block=conv(), **head()),
        {"first": 1, "block": S, "head": S},
    ),
}


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize("case", CASES)
def test_samples_are_those_of_whole_passes(images, case, batch_norm):
    make, passes = CASES[case]
    model = make()
    for training in (True, False):
        compared(model.train(training), images, passes, batch_norm=batch_norm)
    compared(model, images.to(memory_format=torch.channels_last), passes)


def test_autocast_inference_mode_and_float64(images):
    make, passes = CASES["in-place-between"]
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        compared(model, images, passes)
    with torch.inference_mode():
        compared(model, images, passes)
    compared(model.double(), images.double(), passes)


def test_code_before_the_dropout_runs_once_where_it_only_computes(images, monkeypatch):
    def run(m, x):
        small = F.avg_pool2d(m.first(x), 2)
        large = F.interpolate(small, size=(6, 6), mode="bilinear")
        both = torch.cat(
            [large * -0.0, large * 0.0, m.scale * large, small.new_ones(2, 1, 6, 6)], 1
        )
        changed = small.sigmoid()
        changed *= 2
        large = large + F.interpolate(changed, size=(6, 6))
        return m.head(m.dropout(m.fuse(both) + large))

    model = Functional(run, first=conv(3), fuse=conv(13), **head())
    model.scale = nn.Parameter(torch.rand(4, 1, 1))
    given = []
    give = sharing._Results.give
    monkeypatch.setattr(sharing._Results, "give", lambda self: given.append(self) or give(self))
    compared(model, images, {"first": 1, "fuse": 1, "head": S})
    # Pooling, interpolation, three products.
    assert len(given) == 5 * (S - 1)
    with record_forward(model) as forward:
        model(images)
    sample_statistics(model, images, S, share_forward=forward)
    assert len(given) == 5 * (S - 1) + 5 * S


def test_writes_that_no_operator_shows(images):
    def run(m, x):
        x = m.first(x)
        torch.autograd.graph.increment_version(x)  # as after a kernel of an extension
        return m.head(m.dropout(x))

    with pytest.raises(ValueError, match="code writes into tensors that torch does not see"):
        sample_statistics(Functional(run, first=conv(3), **head()), images, S, share=True)


def test_a_generator_of_the_models_own_counts_as_dropout(images):
    model = Functional(by_generator, first=conv(3), block=conv(), **head())
    drawn = []
    for share in (False, True):
        model.generator = torch.Generator().manual_seed(3)
        torch.manual_seed(7)
        drawn.append(sample_statistics(model, images, S, share=share))
    assert_same(*drawn)
    assert counts(model) == {"first": S + 1, "block": 2 * S, "head": 2 * S}


def counter(m, x):
    m.calls = getattr(m, "calls", 0) + 1
    return m.head(m.dropout(m.first(x) * (m.calls % S)))


def list_counter(m, x):
    m.kept["passes"].append(1)
    return m.head(m.dropout(m.first(x) * (len(m.kept["passes"]) % S)))


def features_in_a_dict(m, x):
    m.kept["first"] = m.first(x)
    y = m.dropout(m.kept["first"])
    m.kept["first"].add_(1)
    return m.head(y + m.kept["first"])


def buffer_counter(m, x):
    m.seen += 1
    return m.head(m.dropout(m.first(x) * (m.seen % S)))


def running_statistics(m, x):
    x = F.batch_norm(m.first(x), m.mean, m.spread, training=True)
    return m.head(m.dropout(x) * m.mean.view(-1, 1, 1))


def python_random(m, x):
    return m.head(m.dropout(m.first(x) * random.random()))


def test_a_model_that_sets_itself_up_is_recorded_in_its_second_pass(images):
    def run(m, x):
        if not hasattr(m, "ready"):
            m.ready = True
        return m.head(m.dropout(m.first(x)))

    model = Functional(run, first=conv(3), **head())
    sample_statistics(model, images, S, share=True)
    assert counts(model) == {"first": 2, "head": S}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (counter, "Functional keeps something in itself"),
        (list_counter, "Functional keeps something in itself"),
        (features_in_a_dict, "Functional keeps something in itself"),
        (running_statistics, "writes to memory that was there before"),
        (buffer_counter, "writes to memory that was there before"),
        (python_random, "Python's or NumPy's random numbers"),
    ],
)
def test_whole_passes_where_they_might_differ(images, run, reason):
    model = Functional(run, first=conv(3), **head())
    model.register_buffer("seen", torch.zeros(()))
    model.register_buffer("mean", torch.zeros(4))
    model.register_buffer("spread", torch.ones(4))
    drawn = []
    for share in (False, None):
        model.calls, model.kept = 0, {"passes": []}
        model.seen.zero_()
        model.mean.zero_()
        random.seed(0)
        torch.manual_seed(7)
        drawn.append(sample_statistics(model, images, S, share=share))
    assert_same(*drawn)
    with pytest.raises(ValueError, match=f"share: expected False or None.*{reason}"):
        sample_statistics(model, images, S, share=True)


def test_compiled_models_run_whole_passes(images):
    inner = Network()
    compiled = torch.compile(inner, backend="eager")
    compared(inner, images)
    torch.manual_seed(7)
    expected = sample_statistics(inner, images, S)
    torch.manual_seed(7)
    assert_same(sample_statistics(compiled, images, S), expected)
    with pytest.raises(ValueError, match="nothing can be shared: it is compiled"):
        sample_statistics(compiled, images, S, share=True)
    with (
        pytest.raises(ValueError, match="nothing can be shared: it is compiled"),
        record_forward(compiled),
    ):
        pass


def test_hooks_run_in_every_pass(images):
    model = nn.Sequential(stem(), nn.Dropout2d(0.5), conv(4, 5))
    seen = []
    model[0][0].register_forward_hook(lambda *_: seen.append("inside"))
    compared(model, images, {"0.0": 1, "0.3": 1, "2": S})
    assert len(seen) == 2 * S


def test_what_a_later_pass_writes_into_is_recorded_anew(images):
    passes = []

    def run(m, x):
        x = m.first(x)
        y = m.dropout(x)
        passes.append(1)
        if len(passes) % S == 2:
            x.mul_(2)
        return m.head(x + y)

    model = Functional(run, first=conv(3), **head())
    compared(model, images, {"first": 2, "head": S})


class Filtered(nn.Module):
    """Passes on what its forward takes, as the backbones of transformers do."""

    def __init__(self):
        super().__init__()
        self.conv = conv(3)

    def filtered(self, input: Tensor, **options) -> Tensor:
        known = inspect.signature(self.forward).parameters
        return self(input, **{name: value for name, value in options.items() if name in known})

    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
        return self.conv(input) * scale


def test_modules_are_asked_for_the_arguments_of_their_forward(images):
    def run(m, x):
        return m.head(m.dropout(m.first.filtered(x, scale=3.0, other=1)))

    model = Functional(run, first=Filtered(), **head())
    compared(model, images, {"first.conv": 1, "head": S})
    torch.manual_seed(3)
    plain = model(images)
    torch.manual_seed(3)
    with record_forward(model):
        assert torch.equal(model(images), plain)


def test_gradients_within_a_pass(images):
    def run(m, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = m.second(m.first(x))
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
        return m.head(m.dropout(y.detach() + gradient.mean()))

    first = nn.Sequential(conv(3))
    compared(Functional(run, first=first, second=conv(), **head()), images)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_held_for_the_backward_pass_runs_there(images, reentrant):
    def run(m, x):
        return m.head(m.dropout(checkpoint(m.first.forward, x, use_reentrant=reentrant)))

    model = Functional(run, first=nn.Sequential(conv(3), nn.ReLU()), **head())
    images = images.clone().requires_grad_()
    gradients = []
    for context in (nullcontext(), record_forward(model)):
        model.zero_grad()
        torch.manual_seed(3)
        with context:
            logits = model(images)
        if not isinstance(context, nullcontext):
            sample_statistics(model, images, 2)
        logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_threads_that_sample_one_model_wait_for_each_other(images):
    inside, overlaps = [], []

    def run(m, x):
        inside.append(1)
        overlaps.append(len(inside))
        time.sleep(0.005)
        x = m.head(m.dropout(m.first(x)))
        inside.pop()
        return x

    model = Functional(run, first=conv(3), **head()).eval()
    before = snapshot(model)
    with ThreadPoolExecutor(3) as pool:
        drawn = list(pool.map(lambda _: sample_statistics(model, images, S), range(3)))
    assert max(overlaps) == 1
    assert all(statistics.std.max() > 0 for statistics in drawn)
    assert_untouched(model, before)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_an_exception_leaves_the_model_as_it_was(images):
    def run(m, x):
        m.first(x)
        raise ArithmeticError

    model = Functional(run, first=conv(3), **head())
    before = snapshot(model)
    with pytest.raises(ArithmeticError):
        sample_statistics(model, images, S)
    assert_untouched(model, before)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.relu(images).sum() > 0


@pytest.mark.parametrize("case", [name for name in CASES if name != "fork-rng"])
def test_the_steps_own_pass_serves_the_samples(images, case):
    make, passes = CASES[case]
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    plain = twin(images)
    plain.square().sum().backward()
    torch.manual_seed(3)
    with record_forward(model) as forward:
        logits = model(images)
    torch.manual_seed(7)
    statistics = sample_statistics(model, images, S, share_forward=forward)
    # The step adds one pass of what follows the dropout; the samples none of what comes before.
    assert counts(model) == {name: n + n // S for name, n in passes.items()}
    logits.square().sum().backward()
    torch.manual_seed(7)
    expected = sample_statistics(model, images, S, share=False)
    torch.testing.assert_close(statistics.std, expected.std, rtol=1e-4, atol=1e-6)
    assert torch.equal(logits, plain)
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_what_is_written_into_after_the_recorded_pass_is_computed_anew(images):
    def run(m, x):
        x = m.first(x)
        return {"out": m.head(m.dropout(x)), "features": x}

    model = Functional(run, first=conv(3), **head())
    with record_forward(model) as forward:
        features = model(images)["features"]
    with torch.no_grad():
        features.mul_(3)
    drawn = []
    for options in ({"share_forward": forward}, {"share": False}):
        torch.manual_seed(7)
        drawn.append(sample_statistics(model, images, S, **options))
    assert_same(*drawn)


@pytest.mark.parametrize("replaced", ["layer", "data"])
def test_a_model_changed_after_the_recorded_pass_is_an_error(images, replaced):
    model = nn.Sequential(stem(), nn.Dropout(0.5), conv(4, 5))
    with record_forward(model) as forward:
        model(images)
    if replaced == "layer":
        model[0][0] = conv(3)
    else:
        model[0][0].weight.data = model[0][0].weight.data + 1
    with pytest.raises(ValueError, match="share_forward: expected modules, parameters"):
        sample_statistics(model, images, 2, share_forward=forward)


def test_what_does_not_fit_the_recorded_pass_is_an_error(images):
    model = Network()
    with record_forward(model) as forward:
        model(images).sum().backward()
    sample_statistics(model, (images,), 2, share_forward=forward)
    sample_statistics(model, {"input": images}, 2, share_forward=forward)
    with pytest.raises(ValueError, match="share_forward: expected the recorded pass of this input"):
        sample_statistics(model, images.clone(), 2, share_forward=forward)
    with pytest.raises(ValueError, match="recorded pass of this Network, got another Network"):
        sample_statistics(Network(), images, 2, share_forward=forward)
    with pytest.raises(ValueError, match="mode that samples need, got 'norm' with training=True"):
        sample_statistics(model, images, 2, share_forward=forward, batch_norm="running")
    with pytest.raises(ValueError, match="share_forward: expected none with share=False"):
        sample_statistics(model, images, 2, share_forward=forward, share=False)
    with pytest.raises(ValueError, match="within the same autocast"), torch.autocast("cpu"):
        sample_statistics(model, images, 2, share_forward=forward)
    with torch.no_grad():
        model.head.weight.zero_()
    with pytest.raises(ValueError, match="sample before the optimizer's step"):
        sample_statistics(model, images, 2, share_forward=forward)
    with record_forward(model) as empty:
        pass
    with pytest.raises(ValueError, match="got no forward pass"):
        sample_statistics(model, images, 2, share_forward=empty)
    with record_forward(model):
        model(images)
        with pytest.raises(ValueError, match="expected one call of the model, got another"):
            model(images)
