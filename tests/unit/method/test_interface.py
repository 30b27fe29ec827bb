"""The plugin interface and what it rests on: finding blocks, counting parameters, choosing a learning rate."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from embedlab_methods.lora import LoRA
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    PreTrainedModel,
)

from embedlab.errors import ConfigError, PluginError
from embedlab.method import (
    FineTuningMethod,
    decoder_blocks,
    embedding_parameters,
    num_nonembedding_parameters,
    prepare_backbone,
    pretraining_peak_learning_rate,
)
from embedlab.testing import tiny_backbone

# Width, blocks and heads of the models, their non-embedding parameters (Biderman et al. 2023, arXiv:2304.01373,
# table 1, and the EleutherAI/pythia repository for 14M and 31M), and the peak learning rate of their pre-training.
PYTHIA = {
    "14m": (128, 6, 4, 1_189_888, 1e-3),
    "31m": (256, 6, 8, 4_739_072, 1e-3),
    "70m": (512, 6, 8, 18_915_328, 1e-3),
    "160m": (768, 12, 12, 85_056_000, 6e-4),
    "410m": (1024, 24, 16, 302_311_424, 3e-4),
    "1b": (2048, 16, 8, 805_736_448, 3e-4),
    "1.4b": (2048, 24, 16, 1_208_602_624, 2e-4),
    "2.8b": (2560, 32, 32, 2_517_652_480, 1.6e-4),
    "6.9b": (4096, 32, 32, 6_444_163_072, 1.2e-4),
    "12b": (5120, 36, 40, 11_327_027_200, 1.2e-4),
}


def pythia(width: int, num_blocks: int, num_heads: int) -> PreTrainedModel:
    """A Pythia without its weights' memory."""
    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=width,
        num_hidden_layers=num_blocks,
        num_attention_heads=num_heads,
        intermediate_size=4 * width,
    )
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config)
    return model


class Returns(FineTuningMethod):
    """Prepares whatever it is told to."""

    def __init__(self, *, prepared: object = None) -> None:
        self.prepared = prepared

    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        """Returns what the constructor was given."""
        return self.prepared  # type: ignore[return-value]


def test_blocks_are_found_in_every_family(backbone: PreTrainedModel) -> None:
    blocks = decoder_blocks(backbone)
    assert len(blocks) == 4
    inside = {id(parameter) for parameter in blocks.parameters()}
    outside = [name for name, parameter in backbone.named_parameters() if id(parameter) not in inside]
    assert all(
        "embed" in name or "wte" in name or "wpe" in name or "norm" in name or "ln_f" in name for name in outside
    )


def test_blocks_are_found_inside_peft(family: str) -> None:
    plain = tiny_backbone(family)
    blocks = list(decoder_blocks(plain))
    assert list(decoder_blocks(LoRA().prepare(plain))) == blocks


def test_experts_are_not_taken_for_blocks() -> None:
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=6,
        pad_token_id=0,
    )
    assert len(decoder_blocks(AutoModel.from_config(config))) == 2


def test_a_model_without_blocks_is_an_error() -> None:
    with pytest.raises(PluginError, match="Linear has no list of decoder blocks"):
        decoder_blocks(nn.Linear(2, 2))


def test_token_and_position_tables_are_embeddings_and_nothing_else_is(backbone: PreTrainedModel) -> None:
    found = {id(parameter) for parameter in embedding_parameters(backbone)}
    names = {name.rsplit(".", 2)[-2] for name, parameter in backbone.named_parameters() if id(parameter) in found}
    learned_positions = {"gpt2": {"wte", "wpe"}, "opt": {"embed_tokens", "embed_positions"}}
    rotary = {"embed_in"} if backbone.config.model_type == "gpt_neox" else {"embed_tokens"}
    assert names == learned_positions.get(backbone.config.model_type, rotary)


def test_an_unembedding_is_left_out_of_the_size() -> None:
    backbone = tiny_backbone("gpt_neox")
    assert num_nonembedding_parameters(GPTNeoXForCausalLM(backbone.config)) == num_nonembedding_parameters(backbone)


@pytest.mark.parametrize("name", PYTHIA)
def test_the_size_and_the_peak_learning_rate_of_each_pythia(name: str) -> None:
    width, num_blocks, num_heads, size, rate = PYTHIA[name]
    model = pythia(width, num_blocks, num_heads)
    assert num_nonembedding_parameters(model) == size
    assert pretraining_peak_learning_rate(model) == pytest.approx(rate, rel=1e-12)
    assert Returns().default_learning_rate(model) == pytest.approx(rate / 10, rel=1e-12)


def test_between_two_pythias_the_rate_lies_between_theirs_and_falls_with_size() -> None:
    rates = [pretraining_peak_learning_rate(pythia(1024, num_blocks, 16)) for num_blocks in range(8, 25, 4)]
    assert all(small > large for small, large in itertools.pairwise(rates))
    assert rates[0] < 6e-4 and rates[-1] == pytest.approx(3e-4)


def test_beyond_the_table_the_rate_is_constant() -> None:
    assert pretraining_peak_learning_rate(pythia(8, 1, 1)) == 1e-3
    assert pretraining_peak_learning_rate(pythia(6144, 48, 48)) == 1.2e-4


def test_a_stated_rate_is_taken_and_survives_saving(tmp_path: Path) -> None:
    model = tiny_backbone("gpt_neox", pretraining_peak_learning_rate=5e-3)
    model.save_pretrained(tmp_path)
    assert pretraining_peak_learning_rate(AutoModel.from_pretrained(tmp_path)) == 5e-3
    assert AutoConfig.from_pretrained(tmp_path).pretraining_peak_learning_rate == 5e-3


def test_matrices_decay_and_vectors_do_not() -> None:
    model = tiny_backbone("gpt_neox")
    model.embed_in.requires_grad_(False)
    matrices, vectors = Returns().parameter_groups(model)
    assert "weight_decay" not in matrices and {p.ndim for p in matrices["params"]} == {2}
    assert vectors["weight_decay"] == 0 and {p.ndim for p in vectors["params"]} == {1}
    num_tensors = len(matrices["params"]) + len(vectors["params"])
    assert num_tensors == len(list(model.parameters())) - 1


def test_only_a_transformers_model_can_be_exported_as_it_is() -> None:
    backbone = tiny_backbone("gpt_neox")
    assert Returns().merged(backbone) is backbone
    with pytest.raises(PluginError, match=r"returned a Linear, which is not a transformers.*Override merged"):
        Returns().merged(nn.Linear(2, 2))


def test_a_method_that_leaves_nothing_trainable_is_an_error() -> None:
    frozen = tiny_backbone("gpt_neox").requires_grad_(False)
    with pytest.raises(ConfigError, match="Returns leaves nothing trainable in GPTNeoXModel"):
        prepare_backbone(Returns(prepared=frozen), frozen)


def test_a_method_that_returns_no_module_is_an_error() -> None:
    with pytest.raises(PluginError, match="prepare returned None"):
        prepare_backbone(Returns(), tiny_backbone("gpt_neox"))
