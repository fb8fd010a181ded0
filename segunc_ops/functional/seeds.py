"""Seeds of the numbers that kernels draw."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_device, check_int64


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A call's seed, int64 ``()``: the given one, or one by torch's generator of the device.

    Raises:
        ValueError, TypeError: it is no integer.
    """
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(
                f"seed: expected an integer or an int64 tensor of shape (), got {seed.dtype} of "
                f"shape {tuple(seed.shape)}"
            )
        check_device("seed", seed, device)
        return seed
    return torch.tensor(check_int64("seed", seed), dtype=torch.int64, device=device)
