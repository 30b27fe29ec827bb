"""What users of Lightning's trainer write first, where embedlab has another way, or needs another word."""

from __future__ import annotations

import re

from embedlab.cli.config_file import Scalar, resolved
from embedlab.errors import ConfigError

_LARGEST_SEED = 2**32 - 1  # that numpy takes
_MOST_DEVICES = 4096  # of a machine: Lightning makes a list of them
_PRECISIONS = {
    "bf16-mixed": {"bfloat16", "bf16_mixed", "amp", "mixed", "fp16", "float16", "half", "f16", "16bit", "fp16-mixed"},
    "32-true": {"fp32", "float32", "float", "f32", "single", "full", "32bit", "tf32", "no"},
    "64-true": {"fp64", "float64", "double", "f64", "64bit"},
}


def refuse_trainer_option(name: str, node: Scalar) -> None:
    """Refuse what a trainer takes and embedlab does elsewhere, or what would be refused late and in other words.

    Args:
        name: The option's dotted name in a configuration of ``embedlab fit``.
        node: What was written.

    Raises:
        ConfigError: If it cannot be used; the message says what to write.
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
        refusal = "Expected how many machines, from 1"
    elif name == "trainer.val_check_interval" and value == 0:
        refusal = "Expected every how many steps, or after what share of an epoch. For none set limit_val_batches to 0"
    elif name == "trainer.gradient_clip_val" and value is not None:
        refusal = "Gradients are clipped by model.optimizer.clip, 1.0 by default. Set that"
    elif name == "trainer.gradient_clip_algorithm" and value is not None:
        refusal = "Gradients are clipped by their norm, which model.optimizer.clip bounds. Set that"
    elif name == "trainer.accumulate_grad_batches" and value != 1:
        refusal = "Set data.batch_size to the whole batch: it is cut into chunks that fit in memory"
    if refusal is not None:
        raise ConfigError(f"{node.place}{name} is {node.text or 'null'}. {refusal}.")


def _seed(value: object) -> str | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if whole and 0 <= value <= _LARGEST_SEED:  # type: ignore[operator]  # it is a number
        return None
    return f"Expected a whole number from 0 to {_LARGEST_SEED}"


def _precision(text: str) -> str | None:
    meant = next((name for name, words in _PRECISIONS.items() if text.lower() in words), None)
    return None if meant is None else f"Write {meant}; there are 32-true, bf16-mixed, bf16-true and 64-true"


def _devices(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and (value == -1 or 1 <= value <= _MOST_DEVICES):
        return None
    if isinstance(value, str) and re.fullmatch(r"auto|\d+(, ?\d+)*,?", value):
        return None
    return "Expected how many, from 1, or -1 or auto for all, or a list of their numbers"
