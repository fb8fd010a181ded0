"""Monte-Carlo dropout: the modes that a model is in while it is sampled."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from torch import nn

from .._checks import check_choice
from .._torch import BATCH_NORM, INSTANCE_NORM
from .masks import quick_masks
from .models import changed, check_initialized, unwrap, without_ddp

__all__ = ["BatchNormMode", "check_modes", "check_sampling", "mc_dropout", "sampling_modes"]

BatchNormMode = Literal["batch", "running"]

_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
# Layers that drop inside their own forward pass, with the probability in `dropout`.
_DROPOUT_INSIDE = (nn.MultiheadAttention, nn.RNNBase)


def _drops(module: nn.Module) -> bool:
    """Whether training mode makes this very module drop something."""
    if isinstance(module, _DROPOUT):
        return module.p > 0
    return isinstance(module, _DROPOUT_INSIDE) and module.dropout > 0


def _drops_paths(module: nn.Module) -> bool:
    """Whether a module skips residual branches at random, by the names that it goes by."""
    if type(module).__name__.endswith(("DropPath", "StochasticDepth")):
        share = getattr(module, "drop_prob", getattr(module, "p", 0.0))
        return isinstance(share, (int, float)) and share > 0
    return False


def _dropout_changes(
    model: nn.Module, stochastic_depth: bool = False
) -> list[tuple[nn.Module, str, object]]:
    changes: list[tuple[nn.Module, str, object]] = [
        (module, "training", True)
        for module in model.modules()
        if _drops(module) or (stochastic_depth and _drops_paths(module))
    ]
    if not changes:
        raise ValueError(
            f"model: expected at least one dropout layer of torch.nn with p > 0, got none in "
            f"{type(unwrap(model)).__name__}; torch.nn.functional.dropout cannot be switched from "
            "outside, use a torch.nn.Dropout module instead: by an argument of the network, or "
            "by insert_dropout(model, p), whose before= names the layers if the last one is not "
            "meant; an ensemble (ensemble_statistics) needs none"
        )
    # In eval mode this layer's fast path skips the dropout modules below it; nothing else there
    # depends on its mode.
    changes += [
        (module, "training", True)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
    ]
    return changes


def _normalization_changes(
    model: nn.Module, batch_norm: BatchNormMode
) -> Iterator[tuple[nn.Module, str, object]]:
    model_training = unwrap(model).training
    for module in model.modules():
        tracking = isinstance(module, (BATCH_NORM, INSTANCE_NORM)) and module.track_running_stats
        if not tracking and not isinstance(module, BATCH_NORM):
            continue
        if batch_norm == "running":
            yield module, "training", False
        elif model_training and not module.training:
            continue  # frozen on purpose: the training pass does not use its batch either
        else:
            yield module, "training", True
            if isinstance(module, BATCH_NORM):
                # Without tracking it passes no running statistics to be updated.
                yield module, "track_running_stats", False
            else:
                # An instance norm always passes them, so they have to be absent.
                yield module, "running_mean", None
                yield module, "running_var", None


@contextmanager
def mc_dropout(model: nn.Module, *, stochastic_depth: bool = False) -> Iterator[nn.Module]:
    """Makes the dropout layers of a model random inside the ``with`` block, and nothing else.

    These are torch.nn's ``Dropout``, ``Dropout1d``, ``Dropout2d``, ``Dropout3d``,
    ``AlphaDropout`` and ``FeatureAlphaDropout`` with p > 0, and the dropout inside
    ``MultiheadAttention`` and recurrent layers. All other modules keep their mode, the model
    itself too. Afterwards every mode is what it was, also after an exception.

    Out of reach is ``torch.nn.functional.dropout`` called in a module's own ``forward``: it
    follows that module's mode.

    Args:
        model: a module in any mode, compiled or wrapped in DistributedDataParallel or not.
        stochastic_depth: whether modules that drop whole residual branches, such as timm's
            ``DropPath`` and torchvision's ``StochasticDepth``, count as dropout.

    Yields:
        The model.

    Raises:
        ValueError: if no layer of the model would drop anything.

    Example:
        >>> model.eval()
        >>> with mc_dropout(model), torch.no_grad():
        ...     sample = model(image)
    """
    with changed(_dropout_changes(model, stochastic_depth)):
        yield model


# Modes are a model's own, whatever thread calls it.
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


@contextmanager
def sampling_modes(
    model: nn.Module, batch_norm: BatchNormMode, stochastic_depth: bool, mask_bits: int | None
) -> Iterator[None]:
    """The model as its samples need it, for this thread alone."""
    lock = _locks.setdefault(unwrap(model), RLock())
    dropout = mc_dropout(model, stochastic_depth=stochastic_depth)
    normalization = changed(_normalization_changes(model, batch_norm))
    with lock, dropout, normalization, quick_masks(model, mask_bits):
        yield


def check_sampling(
    model: nn.Module, num_samples: int, batch_norm: BatchNormMode, stochastic_depth: bool
) -> tuple[nn.Module, int]:
    """The module to call and how often, or an error."""
    num_samples = operator.index(num_samples)
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    check_choice("batch_norm", batch_norm, get_args(BatchNormMode))
    check_initialized("model", model)
    model = without_ddp(model)
    _dropout_changes(model, stochastic_depth)
    return model, num_samples


def check_modes(model: nn.Module, batch_norm: BatchNormMode, stochastic_depth: bool) -> None:
    """Raises unless samples run in the modes that the model is in."""
    changes = [
        *_dropout_changes(model, stochastic_depth),
        *_normalization_changes(model, batch_norm),
    ]
    names = {module: name for name, module in model.named_modules()}
    for module, name, value in changes:
        if name == "training" and module.training is not value:
            raise ValueError(
                f"share_forward: expected all modules in the mode that samples need, got "
                f"{names[module]!r} with training={module.training}"
            )
