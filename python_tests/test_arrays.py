"""NumPy arrays of any memory are read as their numbers; what has none is refused by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import segunc_ops.functional as sf

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, (2, 6, 7))
VALUES = RNG.random((2, 6, 7))
SAMPLES = RNG.normal(size=(3, 2, 4, 5, 6))
RECORDS = np.zeros(LABELS.shape, [("flag", "u1"), ("values", "<f8"), ("labels", ">i4")])
RECORDS["values"], RECORDS["labels"] = VALUES, LABELS

LABELS_IN_MEMORY: dict[str, Any] = {
    "big-endian int16": LABELS.astype(">i2"),
    "big-endian int64": LABELS.astype(">i8"),
    "big-endian uint16": LABELS.astype(">u2"),
    "big-endian and read-only": np.frombuffer(LABELS.astype(">i4"), ">i4").reshape(LABELS.shape),
    "big-endian and mirrored": LABELS[:, ::-1].astype(">i4")[:, ::-1],
    "big-endian in Fortran's order": np.asfortranarray(LABELS.astype(">i4")),
    "a field of records": RECORDS["labels"],
}


@pytest.mark.parametrize("memory", LABELS_IN_MEMORY)
def test_labels_of_any_memory(memory):
    given = LABELS_IN_MEMORY[memory]
    before = given.copy()
    for found, wanted in zip(
        sf.connected_components(given), sf.connected_components(LABELS), strict=True
    ):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        sf.component_mean(VALUES, labels=given), sf.component_mean(VALUES, LABELS)
    )
    np.testing.assert_array_equal(given, before)


def test_values_of_any_memory():
    wanted = sf.component_mean(VALUES, LABELS)
    for given in (VALUES.astype(">f8"), RECORDS["values"]):
        np.testing.assert_array_equal(sf.component_mean(given, LABELS), wanted)
    statistics = sf.predictive_statistics(SAMPLES)
    for samples in (SAMPLES.astype(">f8"), [*SAMPLES.astype(">f8")]):
        np.testing.assert_array_equal(sf.predictive_statistics(samples).std, statistics.std)


NO_NUMBERS: dict[str, tuple[Any, str]] = {
    "objects": (lambda: sf.connected_components(LABELS.astype(object)), "labels: .*dtype object"),
    "text": (lambda: sf.connected_components(LABELS.astype("U1")), "labels: .*dtype <U1"),
    "records": (lambda: sf.connected_components(RECORDS), "labels: .*dtype .*flag"),
    "times": (lambda: sf.connected_components(LABELS.astype("M8[s]")), r"labels: .*datetime64\[s"),
    "by name": (
        lambda: sf.component_mean(VALUES, labels=LABELS.astype(object)),
        "labels: .*dtype object",
    ),
    "the second sample": (
        lambda: sf.predictive_statistics([SAMPLES[0], SAMPLES[1].astype(object)]),
        r"samples\[1\]: expected an array of numbers that torch has, got dtype object",
    ),
    "a mask": (
        lambda: sf.connected_components(np.ma.array(LABELS, mask=LABELS == 1)),
        r"labels: expected an array without a mask, .*; pass labels.filled\(...\)",
    ),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_number_is_refused(name):
    call, message = NO_NUMBERS[name]
    with pytest.raises(TypeError, match=message):
        call()
