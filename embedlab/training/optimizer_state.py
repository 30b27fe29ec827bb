"""The optimizer of a resumed run: its options are the configuration's, and its state is checked as what it is, data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from embedlab.errors import DataError

_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group: learning rate, weight decay, and the rest but for the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def take_options(optimizer: Optimizer, options: list[dict[str, Any]]) -> None:
    """Give each parameter group its options again: restoring a checkpoint replaces them by those of the checkpoint."""
    for group, own in zip(optimizer.param_groups, options, strict=True):
        for name in group.keys() - own.keys() - {"params"}:
            del group[name]
        group.update(own)


def require_sound_state(optimizer: Optimizer) -> None:
    """Check the state that a checkpoint has put into an optimizer.

    Raises:
        DataError: If a parameter's state is not what the optimizer keeps of it.
    """
    parameters = {p for group in optimizer.param_groups for p in group["params"]}
    if optimizer.state and not optimizer.state.keys() >= parameters:
        raise DataError(_refusal("it keeps nothing of some parameters"))
    for parameter, state in optimizer.state.items():
        if not isinstance(state, Mapping) or (type(optimizer) is AdamW and set(state) != _ADAMW):
            raise DataError(_refusal(f"of a parameter it keeps {state!r:.100}"))
        for name, value in state.items():
            if isinstance(value, Tensor):
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise DataError(_refusal(f"its {name} holds NaN or infinity"))
                if type(optimizer) is AdamW:
                    _require_moment(name, value, parameter)
            elif type(optimizer) is AdamW or not isinstance(value, int | float):
                raise DataError(_refusal(f"its {name} is {value!r:.100}"))


def _require_moment(name: str, value: Tensor, parameter: Tensor) -> None:
    expected = torch.Size() if name == "step" else parameter.shape
    if value.shape != expected:
        raise DataError(_refusal(f"its {name} has the shape {tuple(value.shape)} in place of {tuple(expected)}"))
    if name != "exp_avg" and bool((value < 0).any()):
        raise DataError(_refusal(f"its {name} is negative"))


def _refusal(what: str) -> str:
    return (
        f"The checkpoint's optimizer state is not what training writes: {what}. Go on from another checkpoint, or "
        "begin the run anew in another --output."
    )
