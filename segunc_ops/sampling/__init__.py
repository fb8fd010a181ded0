"""Samples of logits by Monte-Carlo dropout or from an ensemble, and their statistics from a stream.

The samples never exist together: each is folded into a running state whose size does not depend
on their number.
"""

from .accumulator import PredictiveAccumulator
from .dropout import BatchNormMode, mc_dropout
from .ensembles import ensemble_statistics
from .insertion import insert_dropout
from .observer import Observer
from .samples import sample_logits, sample_statistics
from .sharing import RecordedForward, record_forward

__all__ = [
    "BatchNormMode",
    "Observer",
    "PredictiveAccumulator",
    "RecordedForward",
    "ensemble_statistics",
    "insert_dropout",
    "mc_dropout",
    "record_forward",
    "sample_logits",
    "sample_statistics",
]
