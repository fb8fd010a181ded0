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


def uniform(word: Tensor) -> Tensor:
    """In [0, 1), in steps of 2^-24; float64."""
    return (word >> 8).to(torch.float64) * 2.0**-24


def half_normals(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of two normal numbers by two uniform ones: a radius and an angle (Box and Muller).

    The angle is in the first quadrant.
    """
    radius, angle = (-2 * torch.log1p(-u)).sqrt(), torch.pi / 2 * v
    return radius * angle.cos(), radius * angle.sin()


def class_normals(
    shape: tuple[int, ...], num_classes: int, group: int, seed: Tensor
) -> tuple[Tensor, ...]:
    """Normal draws 4 group to 4 group + 3 of each pixel of ``(N, *)`` and class.

    Four tensors ``(N, C, *)``, float64.
    """
    pixels = torch.arange(math.prod(shape), device=seed.device).view(shape).unsqueeze(1)
    classes = torch.arange(num_classes, device=seed.device)
    classes = classes.view(1, -1, *(1,) * (len(shape) - 1))
    zero = torch.zeros_like(pixels)
    words = philox((pixels & _MASK, pixels >> 32, classes, zero + group), seed)
    normals = []
    for pair in (words[:2], words[2:]):
        sizes = half_normals(uniform(pair[0]), uniform(pair[1]))
        # A word's last bit, which its size leaves over, is the sign of a number.
        signs = [1 - 2 * (word & 1) for word in pair]
        normals += [size * sign for size, sign in zip(sizes, signs, strict=True)]
    return tuple(normals)


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
