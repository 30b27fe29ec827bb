"""What a figure shows is what its points and curves need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedlab.report.figure import Axis, Figure, Kind, Series, as_dict


def figure(low: list[float], high: list[float], **axis: Any) -> Figure:
    """A curve from 1 to 4 with a band around it."""
    x = [1.0, 2.0, 3.0]
    curve = Series(label="one", kind=Kind.LINE, x=x, y=[1.0, 2.0, 4.0])
    band = Series(label="one", kind=Kind.BAND, x=x, low=low, high=high)
    axes = {"x": Axis("FLOPs"), "y": Axis("loss", **axis)}
    return Figure(key="one", section="one", title="one", note="A note.", series=(band, curve), **axes)


def test_a_wide_band_does_not_stretch_the_axis() -> None:
    stretched = figure([1e-9, 1.9, 3.9], [1.1, 2.1, np.inf])
    assert stretched.y_limits == pytest.approx((0.5, 4.0)), "half of the decades of the curve more, and no more"
    assert as_dict(stretched)["note"] == "A note. Bands go on beyond the edge of the figure."
    assert figure([-50.0, 1.9, 3.9], [1.1, 2.1, 60.0], is_log=False).y_limits == pytest.approx((-0.5, 5.5))


def test_a_band_near_its_curve_leaves_the_axis_as_it_is() -> None:
    near = figure([0.9, 1.9, 3.9], [1.1, 2.1, 4.4])
    assert near.y_limits is None and as_dict(near)["note"] == "A note."
    assert figure([], []).y_limits is None
