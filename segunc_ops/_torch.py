"""What is used of torch beyond its public interface, each with what does without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _python_dispatch, _pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Without it an operator passes its autograd formula, which is there for tracing alone and slow.
_below_autograd: Any = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
# Without it every call is taken as if torch.func had wrapped its tensors.
_transforms_active: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: True
)

# Without it torch's word is taken, which up to 2.11 is that whatever is compiled is exported.
_has_exporting_flag = hasattr(torch.compiler, "_is_exporting_flag")
# Without it every backward pass may run once more: gradients are scaled out of place, at twice the
# memory.
_keep_graph: Callable[[], bool] = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)

# Without it a mode that is active already sees the operators that samples share once.
_current_dispatch_mode: Callable[[], object] = getattr(
    _python_dispatch, "_get_current_dispatch_mode", lambda: None
)
# Without it a pass that is computed again in a backward pass is taken for a step's own.
_graph_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)

BATCH_NORM: Any = getattr(
    nn.modules.batchnorm,
    "_BatchNorm",
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
)
"""What isinstance takes for any batch normalisation."""
INSTANCE_NORM: Any = getattr(
    nn.modules.instancenorm,
    "_InstanceNorm",
    (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""What isinstance takes for any instance normalisation."""


def is_eager() -> bool:
    """Whether tensors are what they seem, neither traced nor wrapped by torch.func."""
    return not (torch.compiler.is_compiling() or _transforms_active())


def is_exporting() -> bool:
    """Whether torch.export traces."""
    if _has_exporting_flag:
        return torch.compiler._is_exporting_flag
    return torch.compiler.is_exporting()


def keeps_graph() -> bool:
    """Whether the backward pass that runs may run again, and see what it has changed."""
    return _keep_graph()


def call_below_autograd(operator: Any, *args: Any) -> Any:
    """Calls an operator, of which nothing is to be differentiated, past its autograd formula."""
    if _below_autograd is None:
        return operator(*args)
    with _below_autograd():
        return operator(*args)


def eager_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for eager calls with all arguments by position.

    Function.apply inspects signatures, which costs more than a small call itself; that of its base
    class does not.
    """
    apply: Callable[..., Any] = getattr(
        super(torch.autograd.Function, function), "apply", function.apply
    )
    return apply


DispatchMode = TorchDispatchMode
"""What sees the operators that are called inside it."""


def is_dispatched() -> bool:
    """Whether a TorchDispatchMode sees the operators that are called."""
    return _current_dispatch_mode() is not None


def is_dispatching_subclass(tensor: Tensor) -> bool:
    """Whether operators on a tensor are its own, which may hold others and no memory."""
    own = getattr(type(tensor), "__torch_dispatch__", None)
    return own is not None and own is not Tensor.__torch_dispatch__


def has_global_hooks() -> bool:
    """Whether hooks are registered that every module calls."""
    hooks = nn.modules.module
    return any(getattr(hooks, f"_global_forward_{name}", None) for name in ("hooks", "pre_hooks"))


def in_backward() -> bool:
    """Whether a backward pass runs, such as one that computes checkpointed activations again."""
    return _graph_task() != -1


def storage_id(tensor: Tensor) -> int:
    """A number of the memory that a tensor lies in, as long as that lives."""
    return tensor.untyped_storage()._cdata


def flatten(value: Any) -> tuple[list[Any], Any]:
    """The leaves of nested tuples, lists, mappings and what else torch knows, and the nesting."""
    return _pytree.tree_flatten(value)


def unflatten(leaves: list[Any], structure: Any) -> Any:
    """What :func:`flatten` took apart."""
    return _pytree.tree_unflatten(leaves, structure)
