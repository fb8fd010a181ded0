"""The ``segunc`` command: ``demo``, ``train``, ``stats``, ``masks``, ``predict``, ``sweep`` ..."""

from .entry_point import main
from .parser import build_parser

__all__ = ["build_parser", "main"]
