"""PNG panels of predictions and learning curves."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, LogNorm, hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from ..cascade import AGREEMENT_COLOURS, AGREEMENT_NAMES
from ..metrics import SegmentationMetrics
from .losses import Unit, loss_title
from .output_files import whole_file
from .training import History

_STREET_COLOURS = {
    "other": "#e6e3da",
    "sky": "#8fc1e3",
    "building": "#7a5c58",
    "road": "#77597f",
    "pavement": "#d9a0c7",
    "tree": "#5b8c3a",
    "car": "#1f3a93",
    "fence": "#b98b5e",
    "sign": "#f2c200",
    "pole": "#35c2b8",
    "pedestrian": "#e0263c",
    "rider": "#ff7f0e",
    "bicyclist": "#ff7f0e",
}
_IGNORED = "#9b9b9b"
_RIGHT = "#f7f7f5"
_WRONG = "#c0392b"
_CORRECTED = "#2e8b57"
_REPLACED = "#5b6fb0"
_CELL, _BAR = 2.6, 0.62


class Panel(NamedTuple):
    """One row of a panel plot."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""
    label: NDArray[np.integer]
    """(H, W)."""
    prediction: NDArray[np.integer]
    """(H, W)."""
    uncertainty: NDArray[np.floating]
    """(H, W), standard deviation of the predicted class's probability."""
    components: NDArray[np.integer]
    """(H, W), ids of the connected components of the label map, 0 where ignored."""
    instance_uncertainty: NDArray[np.floating]
    """(H, W), mean of the predictive entropy over each component, in nats."""
    weight: NDArray[np.floating] | None = None
    """(H, W), what the training by PAT weights the pixel's loss by; NaN where ignored."""


class LabelPanel(NamedTuple):
    """One row of a plot of labels that a network has replaced."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""
    label: NDArray[np.integer]
    """(H, W), what it is trained on."""
    exact: NDArray[np.integer] | None
    """(H, W), what is right, if that is known."""
    replaced: NDArray[np.integer]
    """(H, W), what it takes the labels for."""
    deviation: NDArray[np.floating]
    """(H, W), standard deviation of the logits, the largest of the classes."""
    prediction: NDArray[np.integer]
    """(H, W)."""


class Limits(NamedTuple):
    """Upper ends of the colour scales, to compare models."""

    uncertainty: float
    instance_uncertainty: float


class Level(NamedTuple):
    """A line at a height, with a mark on it if it has a time."""

    name: str
    mean_iou: float
    milliseconds: float | None = None


class Curve(NamedTuple):
    """mIoU over milliseconds, and what an oracle would reach."""

    name: str
    milliseconds: Sequence[float]
    mean_iou: Sequence[float]
    oracle: float


class AgreementPanel(NamedTuple):
    """One row of a plot of where two networks are right."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""
    agreement: NDArray[np.uint8]
    """(H, W), as :func:`segunc_ops.agreement_map` gives it."""
    uncertainty: NDArray[np.floating]
    """(rows, columns), in bits."""
    best: NDArray[np.integer]
    """(rows, columns), 1 where the accurate network has more pixels of a block right, else 0."""


def scale_limits(panels: Sequence[Panel]) -> Limits:
    """The 99.5th percentiles over all panels."""

    def limit(maps: Sequence[NDArray[np.floating]]) -> float:
        top = float(np.nanpercentile(np.concatenate([each.ravel() for each in maps]), 99.5))
        return max(top, 1e-6)

    return Limits(
        limit([panel.uncertainty for panel in panels]),
        limit([panel.instance_uncertainty for panel in panels]),
    )


def class_colours(class_names: Sequence[str]) -> list[str]:
    """A hex colour per class: conventional for street classes, distinct hues for others."""
    colours = []
    for index, name in enumerate(class_names):
        known = _STREET_COLOURS.get(name.lower())
        if known is None:
            # Steps of the golden ratio keep any number of hues apart.
            red, green, blue = colorsys.hsv_to_rgb(
                index * 0.618034 % 1, 0.45 + 0.3 * (index % 2), 0.9 - 0.25 * (index // 2 % 2)
            )
            known = f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"
        colours.append(known)
    return colours


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    FigureCanvasAgg(figure)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _as_written(text: Text, content: str) -> None:
    """Shows what users have named as they did: no formulas, no characters without a shape."""
    text.set_parse_math(False)
    text.set_text(content.encode("utf-8", "backslashreplace").decode())


def _show_classes(
    axes: Axes, labels: NDArray[np.integer], colours: Sequence[str], ignore_index: int
) -> None:
    shown = np.where(labels == ignore_index, len(colours), labels)
    axes.imshow(
        shown,
        cmap=ListedColormap([*colours, _IGNORED]),
        vmin=0,
        vmax=len(colours),
        interpolation="nearest",
    )


def _show_components(axes: Axes, components: NDArray[np.integer]) -> None:
    """Neighbouring ids get distant colours: hues in steps of the golden ratio."""
    hue = components * 0.618034 % 1
    shade = 0.55 + 0.4 * (components * 0.38 % 1)
    colours = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.55), shade], -1))
    colours[components == 0] = to_rgb(_IGNORED)
    axes.imshow(colours, interpolation="nearest")


def _weight_scale(weights: Sequence[NDArray[np.floating]]) -> LogNorm:
    """Of all pixels that have a weight."""
    values = np.concatenate([each[np.isfinite(each)] for each in weights])
    low, high = (values.min(), values.max()) if values.size else (1.0, 1.0)
    return LogNorm(low, max(high, 1.01 * low))


def _show_weights(axes: Axes, weights: NDArray[np.floating], scale: LogNorm) -> AxesImage:
    colours = colormaps["viridis"].with_extremes(bad=_IGNORED)
    return axes.imshow(weights, cmap=colours, norm=scale, interpolation="nearest")


_HEADINGS = (
    "image",
    "label",
    "prediction",
    "error",
    "uncertainty (std)",
    "components of the label",
    "their mean entropy (nats)",
)
_WEIGHT_HEADING = "PAT's weight (log scale)"


def plot_panels(
    panels: Sequence[Panel],
    class_names: Sequence[str],
    path: Path,
    *,
    ignore_index: int,
    title: str = "",
    limits: Limits | None = None,
) -> None:
    """Writes rows of image, label, prediction, error map, uncertainty, components and their means.

    Args:
        panels: one row each; where they have weights, these are drawn too.
        class_names: for the legend.
        path: PNG to write.
        ignore_index: label of the pixels that are drawn grey.
        title: heading.
        limits: of the colour scales, to compare models; None takes those of the panels.
    """
    colours = class_colours(class_names)
    limits = limits or scale_limits(panels)
    weights = [panel.weight for panel in panels if panel.weight is not None]
    headings = (*_HEADINGS, _WEIGHT_HEADING) if weights else _HEADINGS
    # Maps of numbers are followed by the bar of their scale.
    widths = [_CELL, _CELL, _CELL, _CELL, _CELL, _BAR, _CELL, _CELL, _BAR]
    widths += [_CELL, _BAR] if weights else []
    weight_scale = _weight_scale(weights) if weights else None
    figure, grid = _rows_of_maps(len(panels), panels[0].label.shape, widths, len(class_names) + 1)
    for row, panel in zip(grid, panels, strict=True):
        maps = [axes for axes, size in zip(row, widths, strict=True) if size == _CELL]
        image, label, prediction, wrong, uncertainty, components, instance = maps[:7]
        image.imshow(panel.image)
        _show_classes(label, panel.label, colours, ignore_index)
        _show_classes(prediction, panel.prediction, colours, ignore_index)
        ignored = panel.label == ignore_index
        error = np.where(ignored, 2, panel.prediction != panel.label)
        wrong.imshow(
            error,
            cmap=ListedColormap([_RIGHT, _WRONG, _IGNORED]),
            vmin=0,
            vmax=2,
            interpolation="nearest",
        )
        heat = [
            uncertainty.imshow(panel.uncertainty, cmap="magma", vmin=0, vmax=limits.uncertainty),
            instance.imshow(
                panel.instance_uncertainty,
                cmap="magma",
                vmin=0,
                vmax=limits.instance_uncertainty,
                interpolation="nearest",
            ),
        ]
        if panel.weight is not None and weight_scale is not None:
            heat.append(_show_weights(maps[7], panel.weight, weight_scale))
        _show_components(components, panel.components)
        _show_scales(figure, row, widths, heat)
    _name_columns(grid, widths, headings)
    _caption(figure, title, [*class_names, "ignored"], [*colours, _IGNORED])
    save(figure, path)


def _legend_columns(entries: int) -> int:
    return min(entries, 12)


def _rows_of_maps(
    rows: int, shape: Sequence[int], widths: Sequence[float], entries: int
) -> tuple[Figure, NDArray[Any]]:
    """A figure of maps and scales, and its axes, row by row; below, room for a legend."""
    height, width = shape
    legend_rows = -(-entries // _legend_columns(entries))
    top, bottom = 0.62, 0.12 + 0.27 * legend_rows
    total = (sum(widths), top + bottom + rows * _CELL * height / width)
    figure = Figure(figsize=total)
    grid = figure.subplots(
        rows,
        len(widths),
        squeeze=False,
        gridspec_kw={
            "left": 0.004,
            "right": 0.996,
            "top": 1 - top / total[1],
            "bottom": bottom / total[1],
            "wspace": 0.02,
            "hspace": 0.035,
            "width_ratios": widths,
        },
    )
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure, grid


def _show_scales(
    figure: Figure, row: Sequence[Axes], widths: Sequence[float], heat: Sequence[AxesImage]
) -> None:
    """The bars of maps of numbers."""
    bars = [axes for axes, size in zip(row, widths, strict=True) if size == _BAR]
    for axes, shown in zip(bars, heat, strict=True):
        box = axes.inset_axes((0.04, 0.02, 0.22, 0.96))
        figure.colorbar(shown, cax=box).ax.tick_params(labelsize=7)


def _name_columns(grid: NDArray[Any], widths: Sequence[float], headings: Sequence[str]) -> None:
    places = [place for place, size in enumerate(widths) if size == _CELL]
    for place, column in zip(places, headings, strict=True):
        grid[0, place].set_title(column, fontsize=11, pad=4)


def _caption(figure: Figure, title: str, names: Sequence[str], colours: Sequence[str]) -> None:
    """Heading and legend."""
    top = 1 - 0.08 / figure.get_figheight()
    heading = figure.suptitle("", x=0.004, y=top, ha="left", va="top", fontsize=12)
    _as_written(heading, title)
    legend = figure.legend(
        handles=[Patch(facecolor=colour) for colour in colours],
        # Matplotlib would leave out a name that begins with an underscore.
        labels=[str(index) for index in range(len(names))],
        loc="lower left",
        bbox_to_anchor=(0.0, 0.0),
        ncols=_legend_columns(len(names)),
        frameon=False,
        fontsize=9,
        handlelength=1.1,
        columnspacing=1.2,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        _as_written(text, name)


def plot_label_panels(
    panels: Sequence[LabelPanel],
    class_names: Sequence[str],
    path: Path,
    *,
    ignore_index: int,
    title: str = "",
) -> None:
    """Writes rows of image, labels, learned deviation, replaced labels and prediction.

    Replaced labels are green where that made them right and red where it made them wrong; of
    labels that nobody knows better blue.

    Args:
        panels: one row each.
        class_names: for the legend.
        path: PNG to write.
        ignore_index: label of the pixels that are drawn grey.
        title: heading.
    """
    known = any(panel.exact is not None for panel in panels)
    classes = class_colours(class_names)
    headings = ["image", "label"]
    headings += ["exact label"] if known else []
    headings += ["standard deviation (logits)", "replaced labels", "prediction"]
    widths = [_CELL] * (len(headings) - 2) + [_BAR, _CELL, _CELL]
    changes = {"label replaced": _REPLACED}
    if known:
        changes = {"label corrected": _CORRECTED, "label made wrong": _WRONG}
    names = [*class_names, "ignored", *changes]
    colours = [*classes, _IGNORED, *changes.values()]
    figure, grid = _rows_of_maps(len(panels), panels[0].label.shape, widths, len(names))
    top = max(float(np.percentile(panel.deviation, 99.5)) for panel in panels)
    kinds = ListedColormap([_RIGHT, _CORRECTED, _WRONG, _REPLACED, _IGNORED])
    for row, panel in zip(grid, panels, strict=True):
        maps = iter([axes for axes, size in zip(row, widths, strict=True) if size == _CELL])
        next(maps).imshow(panel.image)
        _show_classes(next(maps), panel.label, classes, ignore_index)
        if panel.exact is not None:
            _show_classes(next(maps), panel.exact, classes, ignore_index)
        heat = next(maps).imshow(panel.deviation, cmap="magma", vmin=0, vmax=top)
        change = np.where(panel.replaced != panel.label, 3, 0)
        if panel.exact is not None:
            right = np.where(panel.replaced == panel.exact, 1, 2)
            change = np.where(change > 0, right, 0)
        change = np.where(panel.label == ignore_index, 4, change)
        next(maps).imshow(change, cmap=kinds, vmin=0, vmax=4, interpolation="nearest")
        _show_classes(next(maps), panel.prediction, classes, ignore_index)
        _show_scales(figure, row, widths, [heat])
    _name_columns(grid, widths, headings)
    _caption(figure, title, names, colours)
    save(figure, path)


def plot_curves(metrics: SegmentationMetrics, path: Path, title: str = "") -> None:
    """Writes the reliability diagram and the risk-coverage curve.

    Args:
        metrics: what was counted.
        path: PNG to write.
        title: heading.
    """
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    metrics.plot(ax=figure.subplots(1, 2))
    _as_written(figure.suptitle("", fontsize=11), title)
    save(figure, path)


# More classes than that are a curve without names.
_NAMED_CLASSES = 250
_NAME_LENGTH = 40


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 3]}..."


def plot_class_counts(
    counts: Mapping[Unit, Sequence[int]], class_names: Sequence[str], path: Path, title: str = ""
) -> None:
    """Writes a histogram over the classes of each kind of count, on a logarithmic scale.

    Args:
        counts: ``(C,)`` of each kind; classes are drawn in the order of the first, the most
            frequent on top.
        class_names: C.
        path: PNG to write.
        title: heading.
    """
    first_kind = next(iter(counts))
    order = np.argsort(-np.asarray(counts[first_kind], np.float64), kind="stable")
    places = np.arange(len(order))
    named = len(order) <= _NAMED_CLASSES
    unordered = class_colours(class_names)
    colours = [unordered[index] for index in order]
    height = 1.5 + 0.21 * max(len(order), 4) if named else 6.0
    figure = Figure(figsize=(10.5, height), layout="constrained")
    every = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (unit, values) in zip(every, counts.items(), strict=True):
        ordered = np.asarray(values, np.float64)[order]
        # From a half, so that a count of one has a length.
        lengths = np.maximum(ordered, 0.5)
        if named:
            axes.barh(places, lengths - 0.5, left=0.5, color=colours, height=0.8)
            for place in places[ordered == 0]:
                axes.text(0.6, place, "none", va="center", fontsize=7, color=_WRONG)
        else:
            axes.fill_betweenx(places, 0.5, lengths, step="mid")
        axes.set_xscale("log")
        axes.set_xlim(0.5, 2 * max(ordered.max(), 10.0))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{unit} (log scale)", fontsize=10)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if named:
            axes.tick_params(axis="y", length=0, labelleft=False)
    every[0].set_ylim(len(order) - 0.4, -0.6)
    for place, index in zip(places, order, strict=True) if named else ():
        name = every[0].text(
            -0.02,
            place,
            "",
            transform=every[0].get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8,
        )
        _as_written(name, _shortened(class_names[index]))
    if not named:
        every[0].set_ylabel(f"classes, by {first_kind}")
    _as_written(figure.suptitle("", fontsize=11), title)
    save(figure, path)


def plot_learning_curves(histories: Mapping[str, History], path: Path) -> None:
    """Writes training loss and mIoU over the steps, a line per loss.

    Args:
        histories: by the loss's name.
        path: PNG to write.
    """
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    loss_axes, miou_axes = figure.subplots(1, 2)
    for index, (name, history) in enumerate(histories.items()):
        colour = f"C{index}"
        title = loss_title(name)
        values = np.asarray(history.loss)
        loss_axes.plot(history.steps, values, color=colour, alpha=0.25, linewidth=0.8)
        window = max(1, len(values) // 20)
        smooth = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))]
        loss_axes.plot(history.steps, smooth, color=colour, label=title)
        miou_axes.plot(history.steps, history.train_miou, color=colour, alpha=0.3, linewidth=0.9)
        miou_axes.plot(
            history.validation_steps,
            history.validation_miou,
            color=colour,
            marker="o",
            markersize=3.5,
            label=title,
        )
    scales = " (each on a scale of its own)" if len(histories) > 1 else ""
    loss_axes.set_title(f"training loss{scales}", fontsize=10)
    if any(max(history.loss, default=0) > 0 for history in histories.values()):
        loss_axes.set_yscale("log")  # not for one class, whose loss is 0
    loss_axes.yaxis.set_major_formatter("{x:g}")
    loss_axes.yaxis.set_minor_formatter("{x:g}")
    loss_axes.tick_params(which="minor", labelsize=8)
    miou_axes.set_title("mIoU: validation (dots), training batches (pale)", fontsize=10)
    miou_axes.set_ylim(bottom=0)
    for axes in (loss_axes, miou_axes):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save(figure, path)


def plot_trade_off(
    curves: Sequence[Curve], levels: Sequence[Level], path: Path, title: str = ""
) -> None:
    """Writes accuracy against time.

    Args:
        curves: a cascade's, with its oracle by blocks as a dashed line.
        levels: networks and oracles, as lines across.
        path: PNG to write.
        title: heading.
    """
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    axes = figure.subplots()
    handles: list[Artist] = []
    names = []
    for index, level in enumerate(levels):
        shade = str(0.15 + 0.5 * index / max(1, len(levels) - 1))
        line = axes.axhline(100 * level.mean_iou, color=shade, linestyle=":", linewidth=1.2)
        if level.milliseconds is not None:
            (line,) = axes.plot(
                level.milliseconds, 100 * level.mean_iou, "D", color=shade, linestyle=":"
            )
        handles.append(line)
        names.append(level.name)
    for index, curve in enumerate(curves):
        colour = f"C{index}"
        heights = 100 * np.asarray(curve.mean_iou)
        (line,) = axes.plot(curve.milliseconds, heights, "o-", color=colour, markersize=4)
        oracle = axes.axhline(100 * curve.oracle, color=colour, linestyle="--", linewidth=1)
        handles += [line, oracle]
        names += [curve.name, "their oracle"]
    axes.set_xlim(left=0)
    axes.set_xlabel("ms an image")
    axes.set_ylabel("mIoU, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(
        handles,
        [str(i) for i in range(len(names))],
        loc="outside right upper",
        frameon=False,
        fontsize=8,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        # Of a path the end tells most.
        _as_written(text, name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}")
    _as_written(figure.suptitle("", fontsize=11), title)
    save(figure, path)


def plot_agreement(panels: Sequence[AgreementPanel], path: Path, title: str = "") -> None:
    """Writes rows of image, agreement, uncertainty of blocks and which blocks gain.

    Args:
        panels: one row each.
        path: PNG to write.
        title: heading.
    """
    height, width = panels[0].agreement.shape
    cell = 3.4
    row_height = cell * height / width
    size = (4 * cell + 0.7, len(panels) * row_height + 0.95)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), 4, squeeze=False)
    top = max(float(np.nanmax(panel.uncertainty)) for panel in panels)
    colours = ListedColormap([*AGREEMENT_COLOURS, _IGNORED])
    for row, panel in zip(grid, panels, strict=True):
        image, agreement, uncertainty, best = row
        image.imshow(panel.image)
        shown = np.minimum(panel.agreement, len(AGREEMENT_COLOURS))
        agreement.imshow(
            shown, cmap=colours, vmin=0, vmax=len(AGREEMENT_COLOURS), interpolation="nearest"
        )
        edges = (0, panel.image.shape[1], panel.image.shape[0], 0)
        heat = uncertainty.imshow(
            panel.uncertainty, cmap="magma", vmin=0, vmax=max(top, 1e-6), extent=edges
        )
        best.imshow(
            panel.best,
            cmap=ListedColormap([_RIGHT, AGREEMENT_COLOURS[2]]),
            vmin=0,
            vmax=1,
            extent=edges,
            interpolation="nearest",
        )
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, heading in zip(
        grid[0],
        ("image", "agreement", "uncertainty of blocks (bits)", "blocks that gain"),
        strict=True,
    ):
        axes.set_title(heading, fontsize=10)
    figure.colorbar(heat, ax=grid[:, 2], shrink=0.8).ax.tick_params(labelsize=7)
    figure.legend(
        handles=[Patch(facecolor=colour) for colour in (*AGREEMENT_COLOURS, _IGNORED)],
        labels=[*AGREEMENT_NAMES, "ignored"],
        loc="outside lower left",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
    _as_written(figure.suptitle("", fontsize=11), title)
    save(figure, path)
