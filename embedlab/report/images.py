"""Draws the figures of a report as PNG images with matplotlib, which needs no display."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from embedlab.errors import plain_text
from embedlab.report.figure import Axis, Figure, Kind, Series

_SIZE = (8.0, 5.0)  # inches
_DOTS_PER_INCH = 150
_NEUTRAL = "#777777"
_MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "x": "x"}
_MOST_TICKS = 8
_LONGEST_LABEL, _LONGEST_NOTE = 100, 500  # maximum number of characters that fit into an image


def png(figure: Figure, colors: Sequence[str]) -> bytes:
    """Draw a figure, and return the content of a PNG file.

    Args:
        figure: Figure to draw.
        colors: Color of each method, as hexadecimal codes.
    """
    canvas = Canvas(figsize=_SIZE, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.set_title(plain_text(figure.title, longest=_LONGEST_LABEL), loc="left", fontsize=11, parse_math=False)
    if figure.empty is not None:
        axes.set_axis_off()
        axes.text(
            0.5,
            0.5,
            plain_text(figure.empty, longest=_LONGEST_NOTE),
            ha="center",
            va="center",
            wrap=True,
            parse_math=False,
        )
    else:
        axes.set_xlabel(figure.x.title)
        axes.set_ylabel(figure.y.title)
        _draw(axes, figure.series, colors)
        _scale(axes, figure.x, figure.y)
        if (limits := figure.y_limits) is not None:
            axes.set_ylim(*limits)
        axes.grid(True, which="major", color="#00000018", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    written = io.BytesIO()
    with warnings.catch_warnings():  # a character that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _draw(axes: Axes, series: Sequence[Series], colors: Sequence[str]) -> None:
    entries: dict[str, Artist] = {}
    for one in series:
        color = _NEUTRAL if one.color is None else colors[one.color]
        x = np.asarray(one.x, dtype=float)
        if one.kind is Kind.POINTS:
            marker = _MARKERS[one.symbol]
            drawn: Artist = axes.scatter(x, one.y, s=16, color=color, alpha=one.strength, marker=marker, linewidths=1)
        elif one.kind is Kind.BAND:
            drawn = axes.fill_between(x, one.low, one.high, color=color, alpha=one.strength, linewidth=0)
        elif one.kind is Kind.UPRIGHT:
            drawn = axes.axvline(x[0], color=color, linestyle=":", linewidth=1.2)
        elif one.kind is Kind.SPAN:
            assert one.above is not None
            height, aside = one.y[0], axes.get_xaxis_transform()
            for ends, side in (((one.low[0], x[0]), color), ((x[0], one.high[0]), colors[one.above])):
                axes.plot(ends, (height, height), color=side, linewidth=4, solid_capstyle="butt", transform=aside)
            (drawn,) = axes.plot(x, [height], color="#222222", marker="D", markersize=5, linestyle="", transform=aside)
        else:
            style = ":" if one.kind is Kind.DOTS else "-"
            (drawn,) = axes.plot(x, one.y, color=color, alpha=one.strength, linestyle=style, linewidth=1.6)
        if one.kind is not Kind.BAND and (one.label not in entries or one.kind is Kind.LINE):
            entries[one.label] = drawn
    for one in series:  # in the legend, series without a method come last
        if one.color is None and one.label in entries:
            entries[one.label] = entries.pop(one.label)
    labels = [_plain(label) for label in entries]
    if len(labels) > 1:
        axes.figure.legend(
            list(entries.values()), labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )


def _plain(label: str) -> str:
    """Return a label without special meaning for matplotlib.

    matplotlib reads text between dollar signs as a formula, and hides labels that begin with an underscore.
    """
    shown = plain_text(label, longest=_LONGEST_LABEL)
    return ("\u2009" if shown.startswith("_") else "") + shown.replace("$", r"\$")


def _scale(axes: Axes, x: Axis, y: Axis) -> None:
    for axis, described in ((axes.xaxis, x), (axes.yaxis, y)):
        if not described.is_log:
            continue
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        low, high = sorted(axis.get_view_interval())
        if high / low < 30:  # powers of ten would give at most one tick
            steps = (1.0, 2.0, 5.0) if high / low > 4 else tuple(np.arange(1, 10, 0.5 if high / low > 1.6 else 0.1))
            axis.set_major_locator(LogLocator(subs=steps, numticks=_MOST_TICKS))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.set_minor_formatter(NullFormatter())
