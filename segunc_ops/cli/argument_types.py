"""Types of arguments, for argparse: an error says what was expected and what came."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

MAX_WHOLE = (1 << 31) - 1
"""Of whole numbers whose option names no bound."""
MAX_SCALE = 100.0
"""Of the factors that images are resized by."""


def whole(minimum: int, maximum: int = MAX_WHOLE) -> type[int]:
    """An argparse type: integers of at least `minimum` and at most `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {value}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"expected at most {maximum}, got {value}")
        return value

    return parse  # type: ignore[return-value]


def real(minimum: float, maximum: float = float("inf")) -> type[float]:
    """An argparse type: numbers in [minimum, maximum)."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not minimum <= value < maximum:
            raise argparse.ArgumentTypeError(
                f"expected a number in [{minimum:g}, {maximum:g}), got {text}"
            )
        return value

    return parse  # type: ignore[return-value]


def share(text: str) -> float:
    """An argparse type: numbers in [0, 1]."""
    value = real(-math.inf)(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return value


def device_name(text: str) -> str:
    """An argparse type: devices that torch finds."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError(f"{text!r} asked for, but torch finds no CUDA device")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise argparse.ArgumentTypeError(
                f"{text!r} asked for, but there are {torch.cuda.device_count()} CUDA devices"
            )
    return text


def run_name(text: str) -> str:
    """An argparse type: names of folders, without a path."""
    if not text or Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"expected a plain folder name, got {text!r}")
    return text


def height_and_width(text: str) -> tuple[int, int]:
    """An argparse type: HEIGHTxWIDTH in pixels, or one number for both."""
    number = whole(1)
    height, separator, width = text.partition("x")
    return (number(height), number(width if separator else height))


def bits(text: str) -> float:
    """An argparse type: thresholds of entropy, in bits."""
    if text in ("inf", "-inf"):
        return float(text)
    return real(0)(text)
