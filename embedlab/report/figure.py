"""Describes figures independent of how they are drawn, so that the page and the image files show the same figures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

_STRETCH = 0.5  # most that bands may add on either side of an axis, as a share of the range of points and curves
_DIGITS = 6  # significant digits of a coordinate, more than a screen can show
# Colors of medium lightness: visible on white and on black, and different for most color-blind readers.
_COLORS = ("#3572b0", "#d2692a", "#2c9c78", "#b0589f", "#a8871f", "#c4475a", "#5c64c9", "#6f8695")


Numbers = Sequence[float] | np.ndarray


class Kind(StrEnum):
    """How a series is drawn.

    Attributes:
        POINTS: Separate points.
        LINE: Solid curve.
        DOTS: Dotted curve.
        BAND: Area between a lower and an upper curve.
        UPRIGHT: Vertical line at one x.
        SPAN: Horizontal bar from a lower to an upper x, with a mark in between.
    """

    POINTS = "points"
    LINE = "line"
    DOTS = "dots"
    BAND = "band"
    UPRIGHT = "upright"
    SPAN = "span"


class Axis(NamedTuple):
    """An axis of a figure.

    Attributes:
        title: Title of the axis, with the unit if there is one.
        is_log: Whether the scale is logarithmic.
    """

    title: str
    is_log: bool = True


@dataclass(frozen=True, kw_only=True)
class Series:
    """A part of a figure that is drawn in one way, for example a curve or a band.

    Attributes:
        label: Text of the legend. Series with the same label share an entry of the legend.
        kind: How the series is drawn.
        x: Horizontal coordinates. Vertical lines and spans have one coordinate, for a span the position of its mark.
        y: Vertical coordinates. A span has one, its height in the figure from 0 (bottom) to 1 (top).
        low: Lower bounds: vertical coordinates of a band, or the left end of a span.
        high: Upper bounds: vertical coordinates of a band, or the right end of a span.
        color: Number of the method, which selects the color; None if the series belongs to no method.
        above: Number of the method whose color the right part of a span has; None for other kinds.
        strength: Opacity from 0 to 1, to distinguish series of one method.
        symbol: Symbol of points: ``circle``, ``square``, ``triangle-up`` or ``x``.
        texts: Text of each point, shown when the reader points at it.
    """

    label: str
    kind: Kind
    x: Numbers
    y: Numbers = ()
    low: Numbers = ()
    high: Numbers = ()
    color: int | None = None
    above: int | None = None
    strength: float = 1.0
    symbol: str = "circle"
    texts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a report.

    Attributes:
        key: Unique name of letters, digits and hyphens, which is also the name of the image file.
        section: Section of the page that shows the figure.
        title: Title of the figure.
        note: Text below the figure that explains how to read it.
        x: Horizontal axis.
        y: Vertical axis.
        series: Series to draw, from back to front.
        empty: Reason why there is nothing to draw; None if the figure has series.
    """

    key: str
    section: str
    title: str
    note: str
    x: Axis
    y: Axis
    series: Sequence[Series] = field(default_factory=tuple)
    empty: str | None = None

    @property
    def y_limits(self) -> tuple[float, float] | None:
        """Limits of the vertical axis where wide bands would otherwise stretch it until curves are flat; else None."""
        drawn = [one for one in self.series if one.kind in (Kind.POINTS, Kind.LINE, Kind.DOTS)]
        bands = [one for one in self.series if one.kind is Kind.BAND]
        inner, outer = (
            np.concatenate([np.zeros(0), *(np.asarray(values, dtype=float) for values in found)])
            for found in ([one.y for one in drawn], [part for one in bands for part in (one.low, one.high)])
        )
        inner, outer = (values[np.isfinite(values) & ((values > 0) | (not self.y.is_log))] for values in (inner, outer))
        if not len(inner) or not len(outer):
            return None
        if self.y.is_log:
            inner, outer = np.log(inner), np.log(outer)
        room = _STRETCH * (inner.max() - inner.min())
        low, high = inner.min() - room, inner.max() + room
        if room == 0 or (outer.min() >= low and outer.max() <= high):
            return None
        limits = max(low, min(outer.min(), inner.min())), min(high, max(outer.max(), inner.max()))
        bottom, top = np.exp(limits) if self.y.is_log else limits
        return float(bottom), float(top)


def colors(count: int) -> list[str]:
    """Return different colors as hexadecimal codes, for example ``#3572b0``.

    The first 8 colors are fixed; further colors differ in hue.

    Args:
        count: Number of colors, one per method.
    """
    found = list(_COLORS[:count])
    for number in range(len(found), count):
        red, green, blue = colorsys.hls_to_rgb((number * 0.618) % 1, 0.45, 0.55)
        found.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return found


def compact(values: Numbers) -> list[float | None]:
    """Return numbers rounded to 6 significant digits, with None for infinity and NaN, which JSON cannot represent.

    Args:
        values: Numbers to round.
    """
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in map(float, values)]


def as_dict(figure: Figure) -> dict[str, Any]:
    """Return the data from which the script of the page draws a figure.

    Args:
        figure: Figure to draw.
    """
    series = [
        {
            "label": one.label,
            "kind": one.kind.value,
            "x": compact(one.x),
            "y": compact(one.y),
            "low": compact(one.low),
            "high": compact(one.high),
            "color": one.color,
            "above": one.above,
            "strength": one.strength,
            "symbol": one.symbol,
            "texts": list(one.texts),
        }
        for one in figure.series
    ]
    axes = {name: {"title": axis.title, "log": axis.is_log} for name, axis in (("x", figure.x), ("y", figure.y))}
    words = {name: getattr(figure, name) for name in ("key", "section", "title", "note", "empty")}
    limits = figure.y_limits
    if limits is not None:
        words["note"] += " Bands go on beyond the edge of the figure."
    return {**words, **axes, "series": series, "yLimits": limits}
