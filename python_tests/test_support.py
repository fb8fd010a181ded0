"""The support matrix is what the documentation prints and what the operators do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import segunc_ops.functional as sf
from python_tests import support

PAGE = Path(__file__).parent.parent / "docs" / "support.md"


def test_the_page_is_the_table():
    if not PAGE.parent.exists():
        pytest.skip("the tests run apart from the repository")
    assert PAGE.read_text() == support.markdown(), (
        "run `python -m python_tests.support > docs/support.md`"
    )


@pytest.mark.parametrize("name", support.LAYOUTS)
def test_layouts_are_what_they_say(name):
    for shape in ((2, 3, 4, 5), (2, 3), (2, 3, 5), (2, 3, 4, 5, 6), (0, 3, 2), (2, 3, 0, 4)):
        x = torch.randn(shape)
        made = support.LAYOUTS[name].make(x)
        assert made.shape == x.shape
        if not name.startswith("expanded"):
            assert torch.equal(made, x)
    made = support.LAYOUTS[name].make(torch.randn(2, 3, 4, 5))
    is_planar = made.stride()[2:] == (5, 1)
    is_channels_last = made[0].permute(1, 2, 0).is_contiguous()
    found = "planar" if is_planar else "channels_last" if is_channels_last else "strided"
    assert found == support.LAYOUTS[name].traversal


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_other_types_are_refused(dtype):
    logits = torch.zeros(2, 3, 4, dtype=dtype)
    for call in (
        lambda: sf.cross_entropy(logits, torch.zeros(2, 4, dtype=torch.long)),
        lambda: sf.predictive_statistics([logits]),
    ):
        with pytest.raises(TypeError, match=f"got {dtype}"):
            call()
