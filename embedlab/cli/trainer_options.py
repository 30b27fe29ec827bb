"""Early checks of trainer options that users of Lightning often write but that embedlab sets in another way."""

from __future__ import annotations

import re

from embedlab.cli.config_file import Scalar, resolved
from embedlab.errors import ConfigError

_LARGEST_SEED = 2**32 - 1  # the largest seed that numpy accepts
_MOST_DEVICES = 4096  # devices of one machine; Lightning makes a list with an entry per device
_PRECISIONS = {
    "bf16-mixed": {"bfloat16", "bf16_mixed", "amp", "mixed", "fp16", "float16", "half", "f16", "16bit", "fp16-mixed"},
    "32-true": {"fp32", "float32", "float", "f32", "single", "full", "32bit", "tf32", "no"},
    "64-true": {"fp64", "float64", "double", "f64", "64bit"},
}


def refuse_trainer_option(name: str, node: Scalar) -> None:
    """Check one option of a configuration of ``embedlab fit`` before the trainer is created.

    Values that embedlab sets by another option are refused, as are values that Lightning would refuse only later and
    with a message that is hard to understand.

    Args:
        name: Dotted name of the option, for example ``trainer.devices``.
        node: Value of the option.

    Raises:
        ConfigError: If the value cannot be used. The message states what to write instead.
    """
    value = resolved(node.text) if isinstance(node.value, str) else node.value
    refusal: str | None = None
    if name == "seed_everything":
        refusal = _seed(value)
    elif name == "trainer.precision":
        refusal = _precision(node.text)
    elif name == "trainer.devices":
        refusal = _devices(value)
    elif name == "trainer.num_nodes" and isinstance(value, int) and value < 1:
        refusal = "Expected the number of machines, at least 1"
    elif name == "trainer.val_check_interval" and value == 0:
        refusal = (
            "Expected a number of steps or a share of an epoch between validations. For no validation, set "
            "trainer.limit_val_batches to 0"
        )
    elif name == "trainer.gradient_clip_val" and value is not None:
        refusal = (
            "embedlab sets the maximum norm of the gradients with model.optimizer.clip, 1.0 by default. Set this option"
        )
    elif name == "trainer.gradient_clip_algorithm" and value is not None:
        refusal = "embedlab always clips gradients by their norm. Set the maximum norm with model.optimizer.clip"
    elif name == "trainer.accumulate_grad_batches" and value != 1:
        refusal = "embedlab cuts each batch into chunks that fit in memory. Set data.batch_size to the whole batch"
    if refusal is not None:
        raise ConfigError(f"{node.place}{name} is {node.text or 'null'}. {refusal}.")


def _seed(value: object) -> str | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if whole and 0 <= value <= _LARGEST_SEED:  # type: ignore[operator]  # it is a number
        return None
    return f"Expected a whole number from 0 to {_LARGEST_SEED}"


def _precision(text: str) -> str | None:
    meant = next((name for name, words in _PRECISIONS.items() if text.lower() in words), None)
    return None if meant is None else f"Write {meant}. Possible values are 32-true, bf16-mixed, bf16-true and 64-true"


def _devices(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and (value == -1 or 1 <= value <= _MOST_DEVICES):
        return None
    if isinstance(value, str) and re.fullmatch(r"auto|\d+(, ?\d+)*,?", value):
        return None
    return "Expected a number of devices from 1, -1 or auto for all devices, or a list of device indices"
