"""Bias tuning trains biases, and says so where there are none."""

from __future__ import annotations

import pytest
from embedlab_methods.bias import BiasTuning

from embedlab.errors import ConfigError
from embedlab.testing import tiny_backbone


@pytest.mark.parametrize(("family", "num_biases"), [("gpt_neox", 6 * 4 + 1), ("gpt2", 6 * 4 + 1), ("opt", 8 * 4 + 1)])
def test_bias_tuning_trains_every_bias_and_nothing_else(family: str, num_biases: int) -> None:
    model = BiasTuning().prepare(tiny_backbone(family))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == num_biases
    assert all(name.endswith(".bias") for name in trained)


def test_a_backbone_without_biases_is_refused_with_what_would_work() -> None:
    backbone = tiny_backbone("llama")
    expected = "LlamaModel has none. Use LoRA, BlockFreezing or FullFineTuning"
    with pytest.raises(ConfigError, match=expected):
        BiasTuning().prepare(backbone)
    assert all(parameter.requires_grad for parameter in backbone.parameters()), "left as it was"


def test_biases_that_a_configuration_turns_on_are_trained() -> None:
    model = BiasTuning().prepare(tiny_backbone("llama", attention_bias=True, num_hidden_layers=2))
    trained = {name.split(".", 2)[-1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"self_attn.{name}_proj.bias" for name in "qkvo"}
