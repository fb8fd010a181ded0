"""Numbers with their nouns and verbs."""

from __future__ import annotations

from segunc_ops.experiments.wording import are, have, number_of, number_of_classes


def test_one_is_singular_and_none_is_plural():
    assert [number_of(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert number_of(1, "batch", "batches") == "1 batch"
    assert number_of(1200, "batch", "batches") == "1,200 batches"
    assert [number_of_classes(n) for n in (1, 3)] == ["1 class", "3 classes"]
    assert [have(n) for n in (0, 1, 2)] == ["have", "has", "have"]
    assert [are(n) for n in (0, 1, 2)] == ["are", "is", "are"]
