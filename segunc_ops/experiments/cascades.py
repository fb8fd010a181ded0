"""Networks of a cascade, from checkpoints or a user's own, each at a resolution of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..sampling.models import pick_logits
from .factories import make_network
from .networks import check_classes_agree, weights_digest
from .training import CheckpointError, load_members


class Scaled(nn.Module):
    """A network that sees images resized by a factor.

    Args:
        network: from images to logits of any resolution.
        scale: the factor.
    """

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network = network
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits."""
        if self.scale != 1:
            height, width = (max(1, round(self.scale * n)) for n in images.shape[2:])
            images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        return pick_logits(self.network(images))


class CascadeNetwork(NamedTuple):
    """One of a cascade's networks."""

    name: str
    """For tables: a checkpoint or a factory, and the scale."""
    network: Scaled
    """From normalised images to logits of any resolution."""
    digest: str
    """The SHA-256 of its weights."""
    num_classes: int | None
    """C, where it is known."""


def cascade_networks(
    checkpoints: Sequence[Path], factories: Sequence[str] = (), scales: Sequence[float] = ()
) -> list[CascadeNetwork]:
    """The networks of some checkpoints and factories, in this order.

    Args:
        checkpoints: what `segunc train` has written; each holds one network.
        factories: names as :func:`make_network` takes them.
        scales: factor by which each resizes its images; none: 1 for all.

    Raises:
        CheckpointError: a file cannot be read or holds several networks, or they know different
            numbers of classes.
        FactoryError: a network cannot be made.
    """
    networks: list[tuple[str, nn.Module]] = []
    first: tuple[Path, int] | None = None
    for path in checkpoints:
        members = load_members(path)
        if len(members) > 1:
            raise CheckpointError(
                f"{path}: holds {len(members)} networks that trained together; a cascade takes "
                "checkpoints of one"
            )
        first = first or (path, members[0].num_classes)
        check_classes_agree(path, members[0].num_classes, *first)
        networks.append((str(path), members[0]))
    networks += [(name, make_network(name)) for name in factories]
    return [
        CascadeNetwork(
            name if scale == 1 else f"{name} at {scale:g}",
            Scaled(network, scale).eval(),
            weights_digest(network),
            getattr(network, "num_classes", None),
        )
        for (name, network), scale in zip(networks, scales or [1.0] * len(networks), strict=True)
    ]
