"""Numbers that the operators and their specification share."""

from __future__ import annotations

UNITS = 2.0**24
"""Sums of counts are integers in units of 1 / UNITS: any order of addition gives the same bits."""

UNCERTAINTY_BINS = 4096
"""Bins of the histogram of uncertainties: 128 an octave from 2^-24 to 2^8."""
