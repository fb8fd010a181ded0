"""Which classes labels stand for."""

from __future__ import annotations

import numpy as np
import pytest

from segunc_ops.experiments.label_mapping import LabelMapping, cityscapes_mapping, parse_mapping

# Of the data set's published table: training ids by id, where there is one.
CITYSCAPES_TRAIN_IDS = (
    [255] * 7
    + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    + [255, 255, 16, 17, 18]
)


def mapped(words: str, labels: list[int], ignore_index: int = 255) -> list[int]:
    label = np.array(labels, np.int32).reshape(1, -1)
    found = parse_mapping(words.split(), ignore_index).apply(label, ignore_index)
    assert found.shape == label.shape
    assert found.dtype == np.int32
    return found[0].tolist()


@pytest.mark.parametrize(
    ("words", "labels", "classes"),
    [
        ("0:0 255:1", [0, 255, 255], [0, 1, 1]),
        ("7:0 8:1", [8, 7, 255], [1, 0, 255]),
        ("7:0 rest:255", [8, 7, 0, 60000, 255], [255, 0, 255, 255, 255]),
        ("7:0 rest:1", [-3, 7, 1 << 20, 255], [1, 0, 1, 255]),
        ("1:0 2:0 3:1", [3, 2, 1], [1, 0, 0]),
        ("reduce-zero-label", [0, 1, 150, 254, 255], [255, 0, 149, 253, 255]),
        ("none", [0, 7, -1, 255], [0, 7, -1, 255]),
        ("cityscapes", list(range(34)), CITYSCAPES_TRAIN_IDS),
        ("cityscapes", [-1, 255], [255, 255]),
        ("0:0 255:1", [], []),
    ],
)
def test_labels_become_classes(words, labels, classes):
    assert mapped(words, labels) == classes


def test_reduced_labels_never_become_the_ignored_index():
    assert mapped("reduce-zero-label", [0, 1, 10, 12], ignore_index=10) == [10, 0, 10, 11]
    with pytest.raises(ValueError, match="label 11 is not mapped"):
        mapped("reduce-zero-label", [11], ignore_index=10)


@pytest.mark.parametrize("labels", [[7, 9], [7, 1 << 20], [7, -1]])
def test_labels_that_are_not_listed_are_refused(labels):
    with pytest.raises(ValueError, match=rf"label {labels[1]} is not mapped; .*rest:255"):
        mapped("7:0", labels)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("7", "expected LABEL:CLASS"),
        ("7:-1", "expected LABEL:CLASS"),
        ("cityscapes 7:0", "expected LABEL:CLASS"),
        ("7:0 7:1", "label 7 is mapped twice"),
        ("rest:0 rest:1", "label rest is mapped twice"),
        ("7:255 rest:255", "maps every label to 255, which is ignored"),
    ],
)
def test_other_mappings_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_mapping(words.split(), 255)


def test_a_mapping_tells_how_many_classes_there_are():
    assert parse_mapping(["7:0", "8:4", "rest:255"], 255).num_classes == 5
    assert parse_mapping(["reduce-zero-label"], 255).num_classes is None
    assert parse_mapping(["0:0 255:1"], 255) == parse_mapping(["0:0", "255:1"], 255)
    names = cityscapes_mapping(255).class_names
    assert names is not None
    assert (len(names), names[0], names[18]) == (19, "road", "bicycle")


def test_equal_mappings_read_alike():
    assert str(parse_mapping(["8:1", "rest:255", "7:0"], 255)) == "7:0 8:1 rest:255"
    assert str(parse_mapping(["reduce-zero-label"], 255)) == "reduce-zero-label"
    assert not LabelMapping()
