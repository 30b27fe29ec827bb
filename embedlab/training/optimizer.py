"""Options of the optimizer, which always come from the configuration, and the check of a state from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from embedlab.errors import ConfigError, DataError

_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Options of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Args:
        learning_rate: Peak learning rate. The default is the method's own learning rate for the backbone.
        weight_decay: Weight decay of matrices. By default, vectors (norms, biases) have no weight decay.
        decay_vectors: Whether vectors have the weight decay, too.
        betas: Decay rates of the first and the second moment of the gradient.
        eps: Number added to the denominator of the update.
        clip: Maximum norm of the whole gradient, to which larger gradients are scaled down. None turns clipping off.
        states: Precision of the moments. ``8bit`` keeps them in 8 bits with bitsandbytes (Dettmers et al. 2022,
            arXiv:2110.02861).

    Raises:
        ConfigError: If a value would train in the wrong direction, not at all, or to infinite numbers or NaN.
    """

    learning_rate: float | None = None
    weight_decay: float = 0.1
    decay_vectors: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = 1.0
    states: Literal["32bit", "8bit"] = "32bit"

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"optimizer.learning_rate must be a number above 0, got {self.learning_rate}. Leave it out for the "
                "method's own learning rate."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"optimizer.weight_decay must be at least 0, got {self.weight_decay}. Leave it out for 0.1; 0 turns "
                "it off."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"optimizer.betas must be two numbers from 0 to below 1, got {list(self.betas)}. Leave them out for "
                "[0.9, 0.999]."
            )
        if not 0 < self.eps < math.inf:
            raise ConfigError(f"optimizer.eps must be a number above 0, got {self.eps}. Leave it out for 1e-8.")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(
                f"optimizer.clip is the maximum norm of the gradient and must be a number above 0, got {self.clip}. "
                "Write null for no clipping, or leave it out for 1.0."
            )
        if self.states not in ("32bit", "8bit"):
            raise ConfigError(f"optimizer.states must be 32bit or 8bit, got {self.states!r}. Leave it out for 32bit.")


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group (learning rate, weight decay and others) without the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def take_options(optimizer: Optimizer, options: list[dict[str, Any]]) -> None:
    """Set the options of each parameter group again, because restoring a checkpoint has replaced them.

    Args:
        optimizer: Optimizer whose state was restored.
        options: Options of each parameter group as ``options_of`` returned them before the restore.
    """
    for group, own in zip(optimizer.param_groups, options, strict=True):
        for name in group.keys() - own.keys() - {"params"}:
            del group[name]
        group.update(own)


def require_sound_state(optimizer: Optimizer) -> None:
    """Check the state that a checkpoint has put into an optimizer.

    Raises:
        DataError: If the state of a parameter is not a state that this optimizer writes.
    """
    parameters = {p for group in optimizer.param_groups for p in group["params"]}
    if optimizer.state and not optimizer.state.keys() >= parameters:
        raise DataError(_refusal("it has no entry for some parameters"))
    for parameter, state in optimizer.state.items():
        if not isinstance(state, Mapping) or (type(optimizer) is AdamW and set(state) != _ADAMW):
            raise DataError(_refusal(f"its entry for a parameter is {state!r:.100}"))
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
        raise DataError(_refusal(f"its {name} has the shape {tuple(value.shape)} instead of {tuple(expected)}"))
    if name != "exp_avg" and bool((value < 0).any()):
        raise DataError(_refusal(f"its {name} is negative"))


def _refusal(what: str) -> str:
    return (
        f"The checkpoint's optimizer state is not a state that training writes: {what}. Resume from another "
        "checkpoint, or start a new run in another --output."
    )
