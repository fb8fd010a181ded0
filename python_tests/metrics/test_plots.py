"""Plots of the metrics."""

from __future__ import annotations

import pytest

from python_tests.metrics.cases import SINGLE_METRICS, C, batch, everything, value_of
from python_tests.support import IGNORED
from segunc_ops import metrics as sm


def test_plots():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    arguments = batch()
    for name, kind in SINGLE_METRICS.items():
        metric = kind(C, ignore_index=IGNORED)
        metric.update(*arguments)
        figure, axes = metric.plot()
        assert axes.get_figure() is figure, name
        same, given = metric.plot(metric.compute(), ax=axes)
        assert (same, given) == (figure, axes), name
    diagram = value_of(everything(), *arguments)["reliability"]
    figure, axes = sm.ReliabilityDiagram(C).plot(diagram)
    assert len(axes.patches) == (diagram.pixels > 0).sum()
    metric = everything()
    metric.update(*arguments)
    figure, axes = metric.plot()
    assert len(axes) == 2
    (line,) = axes[1].get_lines()
    assert line.get_xdata()[-1] == 1
    pyplot.close("all")
