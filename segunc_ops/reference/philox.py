"""Philox4x32-7 (Salmon et al. 2011), as csrc/math/philox.h draws from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 7


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits, by halves that int64 can hold the products of."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> tuple[Tensor, ...]:
    """Four words of 32 bits for each counter, of four such words; key: 64 bits, ``()``."""
    c0, c1, c2, c3 = counter
    low, high = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        h0, l0 = _product(_MULTIPLIERS[0], c0)
        h1, l1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = h1 ^ c1 ^ low, l1, h0 ^ c3 ^ high, l0
        low, high = (low + _WEYL[0]) & _MASK, (high + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def class_words(shape: tuple[int, ...], num_classes: int, seed: Tensor) -> Tensor:
    """A word for each pixel of ``(N, *)`` and class, ``(N, C, *)``: int64 in [0, 2^32)."""
    pixels = torch.arange(math.prod(shape), device=seed.device).view(shape)
    zero = torch.zeros_like(pixels)
    words = [
        word
        for group in range((num_classes + 3) // 4)
        for word in philox((pixels & _MASK, pixels >> 32, zero + group, zero), seed)
    ]
    return torch.stack(words[:num_classes], 1)
