"""Cross-entropy of expected probabilities, by torch's own operations."""

from ..reference import expected_cross_entropy

__all__ = ["expected_cross_entropy"]
