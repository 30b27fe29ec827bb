"""Made runs, as the fit of a law sees them."""

from __future__ import annotations

from typing import Any

from embedlab.scaling.observations import Observation


def observation(method: str, parameters: float, flops: float, tokens: float, loss: float, **others: Any) -> Observation:
    """A run whose data are all unique, in a family of its own, on a backbone that is named after its size."""
    backbone = others.pop("backbone", f"{parameters:g}")
    name = f"{method}-{backbone}-{flops:g}"
    given = {"name": name, "family": name, "unique_tokens": tokens} | others
    return Observation(
        method=method, backbone=backbone, parameters=parameters, flops=flops, tokens=tokens, loss=loss, **given
    )
