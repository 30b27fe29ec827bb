"""What a figure shows, whoever draws it: the page, the pictures and TensorBoard have the same figures from here."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

_DIGITS = 6  # significant: a screen shows fewer
# Of middling lightness, so that they stand out on white and on black, and told apart by most color-blind people.
_COLOURS = ("#3572b0", "#d2692a", "#2c9c78", "#b0589f", "#a8871f", "#c4475a", "#5c64c9", "#6f8695")


Numbers = Sequence[float] | np.ndarray


class Kind(StrEnum):
    """How a series is drawn."""

    POINTS = "points"
    LINE = "line"
    DOTS = "dots"
    BAND = "band"
    UPRIGHT = "upright"
    SPAN = "span"


class Axis(NamedTuple):
    """A direction of a figure.

    Attributes:
        title: with its unit.
        is_log: whether decades are as wide as each other.
    """

    title: str
    is_log: bool = True


@dataclass(frozen=True, kw_only=True)
class Series:
    """Some points, a curve, a band, an upright line, or a span across.

    Attributes:
        label: of the legend; series of one label are one entry of it.
        kind: how it is drawn.
        x: where; of an upright line or a span one number.
        y: what; of a span the height at which it is drawn, from 0 at the bottom to 1 at the top.
        low: bounds below: of a band in y, of a span in x.
        high: bounds above.
        color: number of the method; None for what belongs to none.
        above: of a span, the number of the method on its right side.
        strength: from 0 to 1, to tell apart what is of one method.
        symbol: of points: ``circle``, ``square``, ``triangle-up`` or ``x``.
        texts: of each point, for a reader who points at it.
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
    """A plot.

    Attributes:
        key: of letters, digits and hyphens, unlike all others: the name of its file.
        section: of the page that it is in.
        title: what it shows.
        note: how to read it.
        x: across.
        y: up.
        series: that it holds, the hindmost first.
        empty: why there is nothing to draw; None if there is something.
    """

    key: str
    section: str
    title: str
    note: str
    x: Axis
    y: Axis
    series: Sequence[Series] = field(default_factory=tuple)
    empty: str | None = None


def colors(count: int) -> list[str]:
    """As many as there are methods, in hexadecimal; beyond the chosen ones by turning the hue."""
    found = list(_COLOURS[:count])
    for number in range(len(found), count):
        red, green, blue = colorsys.hls_to_rgb((number * 0.618) % 1, 0.45, 0.55)
        found.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return found


def compact(values: Numbers) -> list[float | None]:
    """Rounded to what a screen can show; None for what is no finite number, which JSON cannot hold."""
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in map(float, values)]


def as_dict(figure: Figure) -> dict[str, Any]:
    """What the page's script draws."""
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
    return {**words, **axes, "series": series}
