"""The optimizer's options say themselves which values train."""

from __future__ import annotations

import math
from typing import Any

import pytest

from embedlab.errors import ConfigError
from embedlab.training.optimizer import OptimizerConfig


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("learning_rate", [-1e-4, 0.0, math.nan, math.inf]),
        ("weight_decay", [-0.1, math.nan, math.inf]),
        ("betas", [(1.0, 0.9), (0.9, -0.1), (0.9, math.nan), (0.9,)]),
        ("eps", [-1.0, 0.0, math.nan, math.inf]),
        ("clip", [-1.0, 0.0, math.nan, math.inf]),
        ("states", ["16bit"]),
    ],
)
def test_a_value_that_does_not_train_is_refused_by_its_name(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"optimizer\.{option} .*got"):
            OptimizerConfig(**{option: value})


def test_no_clipping_is_written_as_null() -> None:
    assert OptimizerConfig(clip=None).clip is None
    with pytest.raises(ConfigError, match="null for no clipping"):
        OptimizerConfig(clip=0)
