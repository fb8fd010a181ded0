"""The losses that `segunc train` knows: an entry here is all that a further one needs.

The command's options, the training's configuration and criterion, tables and plots are made of
these entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn, tensor

from ..functional import class_balanced_weights
from ..losses import (
    BalancedSoftmaxCrossEntropyLoss,
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    FocalCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    LDAMCrossEntropyLoss,
    LogitVariationCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)
from .uncertain_labels import BINARY_THRESHOLD, THRESHOLD, UncertainLabelsLoss

if TYPE_CHECKING:
    from .class_counts import ClassCounts

Unit = Literal["pixels", "images", "instances"]
"""What is counted of each class; an instance is a connected component of a label map."""


@dataclass(frozen=True)
class Parameter:
    """An argument of a loss's constructor, by the name that it has there unless `argument` says so.

    It is a field of the training's configuration and an option of the command, whose type is that
    of the default: a number in [`minimum`, `maximum`), one of `choices`, or a switch. A default of
    None is a number that `unset` describes. Losses that share a parameter share its option.
    """

    name: str
    default: Any
    help: str
    minimum: float = 0.0
    maximum: float = float("inf")
    choices: tuple[Any, ...] | None = None
    argument: str | None = None
    unset: str = ""
    of_criterion: bool = True
    """Whether the constructor takes it; else it is the network or the training that does."""

    @property
    def type(self) -> type:
        """Of its values."""
        return float if self.default is None else type(self.default)


CONNECTIVITY = Parameter("connectivity", 8, "neighbours of a pixel", choices=(4, 8))
COMPONENT_PARAMETERS = (
    Parameter(
        "components",
        "target",
        "those of the label map or of the ensemble's prediction",
        choices=("target", "prediction"),
    ),
    CONNECTIVITY,
)
"""What the components of an ensemble's masks are, too."""
GAMMA = Parameter("gamma", 2.0, "exponent of 1 - p of the labelled class")
BETA = Parameter(
    "beta",
    None,
    "of the effective number of samples (1 - beta^n) / (1 - beta), below 1",
    maximum=1.0,
    unset="(n - 1) / n for the sum n of the counts",
)
BALANCED_BY = Parameter(
    "balanced_by",
    "instances",
    "what is counted of a class; instances are components of the label maps, by --connectivity",
    choices=("pixels", "images", "instances"),
)
COVARIANCE = Parameter(
    "covariance",
    "diagonal",
    "of a pixel's logits, if there are more than two classes; cholesky: any",
    choices=("diagonal", "cholesky"),
    of_criterion=False,
)
MAX_MARGIN = Parameter("max_margin", 0.5, "margin of the rarest class")


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
    needs: Unit | Parameter | None = None
    """What has to be counted of each class of the training images, or the parameter that tells it;
    the criterion is then made of the `counts`, too."""
    min_classes: int = 1
    """How many classes it needs."""
    of_distributions: bool = False
    """Whether it takes mean and spread of logits, and which images' labels may be replaced."""

    def counted(self, parameters: object) -> Unit | None:
        """What is counted, given the parameters; None if nothing is."""
        if isinstance(self.needs, Parameter):
            unit: Unit = getattr(parameters, self.needs.name)
            return unit
        return self.needs


def _class_balanced(
    make: Callable[..., nn.Module], counts: Tensor, beta: float | None, **others: Any
) -> nn.Module:
    return make(weight=class_balanced_weights(counts, beta=beta), **others)


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
    "pat": TrainedLoss(
        "PAT",
        "pixel-wise adaptive training",
        PixelAdaptiveCrossEntropyLoss,
        parameters=(
            # exp of more than 80 is no float32.
            Parameter("temperature", 20.0, "T of the factor exp((1 - p) / T)", minimum=1 / 80),
            Parameter(
                "curve",
                "equation",
                "the paper's equation, or its table 1, which prints the inverse factor",
                choices=("equation", "table"),
            ),
            Parameter(
                "size_normalized",
                True,
                "do not divide by the number of the image's pixels of the class",
            ),
            Parameter("detach_weight", False, "take the factor for a constant in the gradient"),
        ),
    ),
    "focal": TrainedLoss("focal", "focal loss", FocalCrossEntropyLoss, parameters=(GAMMA,)),
    "cb": TrainedLoss(
        "CB",
        "class-balanced cross-entropy",
        partial(_class_balanced, CrossEntropyLoss),
        parameters=(BETA, BALANCED_BY),
        needs=BALANCED_BY,
    ),
    "cbfocal": TrainedLoss(
        "CB-focal",
        "class-balanced focal loss",
        partial(_class_balanced, FocalCrossEntropyLoss),
        parameters=(GAMMA, BETA, BALANCED_BY),
        needs=BALANCED_BY,
    ),
    "bms": TrainedLoss("BMS", "balanced softmax", BalancedSoftmaxCrossEntropyLoss, needs="pixels"),
    "ldam": TrainedLoss(
        "LDAM",
        "label-distribution-aware margins",
        LDAMCrossEntropyLoss,
        parameters=(
            MAX_MARGIN,
            Parameter(
                "logit_scale",
                20.0,
                "factor of the logits in the loss, and so of their gradients",
                minimum=0.001,
                argument="scale",
            ),
            Parameter(
                "margin_on",
                "target",
                "margins off the labelled class's logit, or off all",
                choices=("target", "all"),
            ),
        ),
        needs="pixels",
    ),
    "blv": TrainedLoss(
        "BLV",
        "balancing logit variation",
        LogitVariationCrossEntropyLoss,
        parameters=(
            Parameter("sigma", 0.5, "of the noise on logits, before it is clamped to 1"),
            Parameter(
                "distribution",
                "normal",
                "of the noise; uniform on [-sigma, sigma]",
                choices=("normal", "uniform"),
            ),
        ),
        needs="pixels",
    ),
    "dice": TrainedLoss(
        "Dice + CE",
        "Dice and cross-entropy",
        DiceCrossEntropyLoss,
        parameters=(
            Parameter("ce_weight", 1.0, "factor of the cross-entropy"),
            Parameter("dice_weight", 1.0, "factor of the Dice loss"),
            Parameter(
                "batch_dice",
                False,
                "take Dice over the batch, not over each image",
                argument="batch",
            ),
            Parameter("include_background", True, "leave class 0 out of Dice"),
        ),
        min_classes=2,
    ),
    "label-uncertainty": TrainedLoss(
        "label uncertainty",
        "label uncertainty",
        UncertainLabelsLoss,
        parameters=(
            Parameter(
                "flip_threshold",
                None,
                "variance of a pixel's logit from which on its label is replaced",
                argument="threshold",
                unset=f"{BINARY_THRESHOLD:g} of two classes, {THRESHOLD:g} of more",
            ),
            Parameter(
                "flip_after",
                0.5,
                "share of the steps from which on labels are replaced: before, a network does not "
                "know what is unsure",
                maximum=1.0,
                of_criterion=False,
            ),
            Parameter(
                "start_variance",
                4.0,
                "of the logits, before training; it falls where labels agree",
                minimum=1e-4,
                of_criterion=False,
            ),
            Parameter("num_draws", 16, "of the logits, of more than two classes", minimum=1),
            COVARIANCE,
        ),
        min_classes=2,
        of_distributions=True,
    ),
}

DEMO = ("ce", "uce", "iu", "pat", "focal", "ldam", "dice", "label-uncertainty")
"""What the demo compares unless it is told."""
DEFAULT = ("ce", "uce")
"""What a training compares unless it is told."""
ENSEMBLE_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.weighted_by == "members")
"""Those that train members together, or one network by their masks."""
UNCERTAIN_LABELS = tuple(name for name, loss in LOSSES.items() if loss.of_distributions)
"""Those that learn which labels are uncertain."""
COUNTING_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.needs is not None)
"""Those that are made of how often classes occur."""

LossParameters: Any = make_dataclass(
    "LossParameters",
    {
        parameter.name: (parameter.name, parameter.type, field(default=parameter.default))
        for loss in LOSSES.values()
        for parameter in loss.parameters
    }.values(),
    frozen=True,
    kw_only=True,
)
"""A field for each parameter of each loss, with its default."""


def build_loss(
    name: str, parameters: object, ignore_index: int, counts: ClassCounts | None = None
) -> nn.Module:
    """The criterion of logits that are interpolated to the label's size.

    Args:
        name: of the loss.
        parameters: has an attribute for each parameter, as :class:`LossParameters` does.
        ignore_index: label of the pixels that are left out.
        counts: of the training images, for losses that need some.

    Raises:
        CountsError: a class has none of what the loss needs.
        ValueError: a loss that needs counts gets none.
    """
    loss = LOSSES[name]
    own = {
        each.argument or each.name: getattr(parameters, each.name)
        for each in loss.parameters
        if each is not loss.needs and each.of_criterion
    }
    unit = loss.counted(parameters)
    if unit is not None:
        if counts is None:
            raise ValueError(f"counts: the loss {name!r} needs the {unit} of each class, got none")
        own["counts"] = tensor(counts.of_every_class(unit, f"--loss {name}"))
    return loss.make(**own, ignore_index=ignore_index, upsample="bilinear")


def loss_title(name: str) -> str:
    """What a loss is called in tables and plots."""
    return LOSSES[name].title if name in LOSSES else name
