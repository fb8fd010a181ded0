"""The uncertainty of blocks, which is never differentiated."""

from __future__ import annotations

from ..reference.blocks import block_uncertainty

__all__ = ["block_uncertainty"]
