"""Without what torch does not promise to keep: each such use of it, as if it were not there."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _python_dispatch

import segunc_ops.functional as sf
from python_tests.comparison import assert_close
from segunc_ops import _torch, sample_statistics
from segunc_ops.sampling import dropout

# By the name of the attribute: who has it, and which variable of whom knows of it.
PRIVATE = {
    "_AutoDispatchBelowAutograd": (torch._C, _torch, "_below_autograd"),
    "_BatchNorm": (nn.modules.batchnorm, dropout, "BATCH_NORM"),
    "_InstanceNorm": (nn.modules.instancenorm, dropout, "INSTANCE_NORM"),
    "_current_graph_task_id": (torch._C, _torch, "_graph_task"),
    "_get_current_dispatch_mode": (_python_dispatch, _torch, "_current_dispatch_mode"),
    "_are_functorch_transforms_active": (torch._C, _torch, "_transforms_active"),
    "_get_current_graph_task_keep_graph": (torch._C._autograd, _torch, "_keep_graph"),
    "_is_exporting_flag": (torch.compiler, _torch, "_has_exporting_flag"),
}
cross_entropy = importlib.import_module("segunc_ops.autograd.cross_entropy")
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.fixture(params=[None, "apply", *PRIVATE])
def absent(request, monkeypatch) -> str | None:
    """The name of what torch seems not to have, if anything."""
    name = request.param
    if name == "apply":  # that of Function's base class: what `super` finds has no attribute
        monkeypatch.setattr(_torch, "super", lambda *_: object(), raising=False)
        apply = _torch.eager_apply(cross_entropy._EagerCrossEntropy)
        assert apply == cross_entropy._EagerCrossEntropy.apply
        monkeypatch.setattr(cross_entropy, "_eager_apply", apply)
    elif name is not None:
        owner, user, variable = PRIVATE[name]
        spec = importlib.util.spec_from_file_location("_torch_without", _torch.__file__)
        without = importlib.util.module_from_spec(spec)
        with monkeypatch.context() as hidden:
            hidden.delattr(owner, name)
            spec.loader.exec_module(without)
        fallback = getattr(without, variable)
        assert fallback is not getattr(user, variable)
        monkeypatch.setattr(user, variable, fallback)
    return name


def batch() -> tuple[Tensor, Tensor, Tensor]:
    target = torch.randint(0, 3, (2, 4, 5))
    return torch.randn(2, 3, 4, 5).requires_grad_(), target, torch.rand(2, 4, 5).requires_grad_()


def loss_of(x: Tensor, target: Tensor, u: Tensor, reduction: str = "mean") -> Tensor:
    return 2 * sf.cross_entropy(x, target, pixel_weight=u, reduction=reduction).sum()


def gradients(x: Tensor, target: Tensor, u: Tensor, reduction: str = "mean") -> tuple[Tensor, ...]:
    """Those of `loss_of`, by torch's loss in float64."""
    x, u = (tensor.detach().double().requires_grad_() for tensor in (x, u))
    loss = 2 * (F.cross_entropy(x, target, reduction="none") * u).sum()
    return torch.autograd.grad(loss / target.numel() if reduction == "mean" else loss, (x, u))


def assert_gradients(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("input", "pixel_weight"), found, wanted, strict=True):
        assert_close(a, b, name=name, roundings=2, bias=False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_and_their_gradients(absent, reduction):
    x, target, u = batch()
    wanted = gradients(x, target, u, reduction)
    loss = loss_of(x, target, u, reduction)
    assert_gradients(torch.autograd.grad(loss, (x, u), retain_graph=True), wanted)
    assert_gradients(torch.autograd.grad(loss, (x, u)), wanted)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(x, target, u, reduction), loss.detach())
    loss = loss_of(x, target, u, reduction)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        gradient.sum().backward()


def test_torch_func(absent):
    x, target, u = batch()
    found = torch.func.grad(lambda x, u: loss_of(x, target, u), (0, 1))(x.detach(), u.detach())
    assert_gradients(found, gradients(x, target, u))


def test_compile(absent):
    if absent == "_is_exporting_flag" and TORCH < (2, 12):
        pytest.skip("this torch has the flag, and takes compiling for exporting without it")
    torch.compiler.reset()
    x, target, u = batch()
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    assert_gradients(torch.autograd.grad(compiled(x, target, u), (x, u)), gradients(x, target, u))
    torch.compiler.reset()


def test_means_over_components(absent):
    x, target, _ = batch()
    values = x[:, 0]
    upstream = torch.rand(values.shape)
    (found,) = torch.autograd.grad(sf.component_mean(values, target), values, upstream)
    torch.testing.assert_close(found, sf.component_mean(upstream, target))


def test_samples_leave_running_statistics_alone(absent):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.Dropout(0.5),
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert (sample_statistics(model, torch.randn(2, 3, 4, 5), 3).std > 0).any()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
