"""The losses that `segunc train` knows: an entry here is all that a further one needs.

The command's options, the training's configuration and criterion, tables and plots are made of
these entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

from torch import nn

from ..losses import (
    CrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)


@dataclass(frozen=True)
class Parameter:
    """An argument of a loss's constructor, by the name that it has there.

    It is a field of the training's configuration and an option of the command, whose type is that
    of the default: a number of at least `minimum`, or one of `choices`.
    """

    name: str
    default: Any
    help: str
    minimum: float = 0.0
    choices: tuple[Any, ...] | None = None


COMPONENT_PARAMETERS = (
    Parameter(
        "components",
        "target",
        "those of the label map or of the ensemble's prediction",
        choices=("target", "prediction"),
    ),
    Parameter("connectivity", 8, "neighbours of a pixel", choices=(4, 8)),
)
"""What the components of an ensemble's masks are, too."""


@dataclass(frozen=True)
class TrainedLoss:
    """A loss that networks are trained by."""

    title: str
    """In tables and plots."""
    about: str
    """Heading of its options."""
    make: Callable[..., nn.Module]
    """The criterion, of its parameters and of what all losses share, as keyword arguments."""
    parameters: tuple[Parameter, ...] = ()
    weighted_by: Literal["samples", "members"] | None = None
    """Whose statistics go with a call: Monte-Carlo dropout samples of the network, or all members
    of an ensemble that trains together, averaged over components."""


LOSSES = {
    "ce": TrainedLoss("CE", "cross-entropy", CrossEntropyLoss),
    "uce": TrainedLoss(
        "U-CE",
        "uncertainty-aware cross-entropy",
        UncertaintyAwareCrossEntropyLoss,
        parameters=(Parameter("alpha", 10.0, "exponent of the weight 1 + standard deviation"),),
        weighted_by="samples",
    ),
    "iu": TrainedLoss(
        "IU",
        "instance-wise uncertainty",
        InstanceUncertaintyCrossEntropyLoss,
        parameters=(
            Parameter("exponent", 2.0, "of the weight 1 + instance uncertainty"),
            *COMPONENT_PARAMETERS,
        ),
        weighted_by="members",
    ),
}

DEMO = ("ce", "uce", "iu")
"""What the demo compares unless it is told."""
DEFAULT = ("ce", "uce")
"""What a training compares unless it is told."""
ENSEMBLE_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.weighted_by == "members")
"""Those that train members together, or one network by their masks."""

LossParameters: Any = make_dataclass(
    "LossParameters",
    {
        parameter.name: (parameter.name, type(parameter.default), field(default=parameter.default))
        for loss in LOSSES.values()
        for parameter in loss.parameters
    }.values(),
    frozen=True,
    kw_only=True,
)
"""A field for each parameter of each loss, with its default."""


def build_loss(name: str, parameters: object, ignore_index: int) -> nn.Module:
    """The criterion of logits that are interpolated to the label's size.

    Args:
        name: of the loss.
        parameters: has an attribute for each parameter, as :class:`LossParameters` does.
        ignore_index: label of the pixels that are left out.
    """
    loss = LOSSES[name]
    own = {each.name: getattr(parameters, each.name) for each in loss.parameters}
    return loss.make(**own, ignore_index=ignore_index, upsample="bilinear")


def loss_title(name: str) -> str:
    """What a loss is called in tables and plots."""
    return LOSSES[name].title if name in LOSSES else name
