"""The curves of metrics as Matplotlib draws them."""

from __future__ import annotations

from typing import Any

from .values import Reliability, RiskCoverageCurve


def new_axes(ax: Any, count: int = 1) -> tuple[Any, Any]:
    """The figure and the axes to draw into: one, or an array of `count`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ModuleNotFoundError(
            "plot: needs matplotlib; install it with `pip install 'segunc_ops[metrics]'`"
        ) from error
    if ax is None:
        size = None if count == 1 else (4.8 * count, 4.2)
        return pyplot.subplots(1, count, figsize=size, constrained_layout=True)
    return (ax if count == 1 else ax[0]).get_figure(), ax


def draw_reliability(curve: Reliability, axes: Any) -> None:
    """Accuracy over confidence as bars."""
    width = 1 / len(curve.pixels)
    filled = (curve.pixels > 0).nonzero()[:, 0]
    confidence, accuracy = (values[filled].cpu().numpy() for values in curve[:2])
    lefts = (filled.double().cpu() * width).numpy()
    axes.bar(lefts, accuracy, width, align="edge", edgecolor="white", label="accuracy")
    axes.plot(confidence, accuracy, "k.", label="at mean confidence")
    axes.plot([0, 1], [0, 1], "--", color="gray", label="calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title="Reliability")
    axes.legend()


def draw_risk_coverage(curve: RiskCoverageCurve, axes: Any) -> None:
    """Risk over coverage as a line."""
    coverage, risk = (values.cpu().numpy() for values in curve[:2])
    axes.plot(coverage, risk, label=f"area {float(curve.area):.4f}")
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage", ylabel="risk", title="Risk-coverage")
    axes.legend()
