"""Block freezing freezes a prefix of the computation, whatever the family calls its parts."""

from __future__ import annotations

import math

import pytest
import torch
from embedlab_methods.freeze import BlockFreezing
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BloomConfig, PreTrainedModel

from embedlab.errors import ConfigError
from embedlab.method import decoder_blocks, embedding_parameters
from embedlab.testing import FAMILIES, tiny_backbone


def names(model: PreTrainedModel, *, trained: bool) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad == trained}


@pytest.mark.parametrize("blocks", [0, 1, 3, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_and_the_first_blocks_are_frozen_and_the_rest_trains(family: str, blocks: int | float) -> None:
    model = BlockFreezing(blocks=blocks).prepare(tiny_backbone(family))
    num_frozen = 2 if blocks == 0.5 else blocks
    expected = embedding_parameters(model)
    for block in decoder_blocks(model)[:num_frozen]:
        expected.update(block.parameters())
    assert {parameter for parameter in model.parameters() if not parameter.requires_grad} == expected


def test_what_runs_between_the_embeddings_and_the_first_block_is_frozen_and_the_final_norm_trains() -> None:
    bloom = AutoModel.from_config(BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2))
    model = BlockFreezing(blocks=0).prepare(bloom)
    assert names(model, trained=False) == {
        "word_embeddings.weight",
        "word_embeddings_layernorm.weight",
        "word_embeddings_layernorm.bias",
    }
    assert "ln_f.weight" in names(model, trained=True)


def test_the_projections_of_opt_350m_are_told_apart() -> None:
    model = BlockFreezing().prepare(tiny_backbone("opt", word_embed_proj_dim=16))
    assert "decoder.project_in.weight" in names(model, trained=False)
    assert {"decoder.project_out.weight", "decoder.final_layer_norm.weight"} <= names(model, trained=True)


def test_no_gradient_flows_into_the_frozen_part(backbone: PreTrainedModel) -> None:
    model = BlockFreezing(blocks=3).prepare(backbone).train()
    seen = []
    for block in decoder_blocks(model):
        block.register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0].requires_grad))
    ids = torch.arange(3, 11)[None]
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert seen == [False, False, False, False], "the last block alone trains: no gradient leaves it"


def test_preparing_runs_no_block_and_leaves_no_hook(backbone: PreTrainedModel) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a block ran")

    handles = [block.register_forward_hook(fail) for block in decoder_blocks(backbone)]
    BlockFreezing().prepare(backbone)
    for handle in handles:
        handle.remove()
    assert [module for module in backbone.modules() if module._forward_pre_hooks] == []


def test_preparing_says_nothing(
    family: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    BlockFreezing().prepare(tiny_backbone(family))
    assert capfd.readouterr().err == ""
    assert [str(warning.message) for warning in recwarn] == []


def test_a_backbone_on_the_meta_device_can_be_prepared() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(tiny_backbone("gpt_neox").config)
    BlockFreezing().prepare(model)
    assert names(model, trained=False) == names(BlockFreezing().prepare(tiny_backbone("gpt_neox")), trained=False)


@given(fraction=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_a_fraction_freezes_the_nearest_count_of_blocks(fraction: float) -> None:
    backbone = tiny_backbone("gpt_neox", num_hidden_layers=5, hidden_size=8, intermediate_size=8)
    blocks = decoder_blocks(backbone)
    if fraction > 0.9:
        with pytest.raises(ConfigError, match="rounded"):
            BlockFreezing(blocks=fraction).prepare(backbone)
        return
    BlockFreezing(blocks=fraction).prepare(backbone)
    num_frozen = sum(not any(p.requires_grad for p in block.parameters()) for block in blocks)
    assert abs(num_frozen - 5 * fraction) <= 0.5 + 1e-12
    assert [any(p.requires_grad for p in block.parameters()) for block in blocks] == [
        number >= num_frozen for number in range(5)
    ]


@pytest.mark.parametrize("blocks", [-1, -0.5, 0.0, 1.0, 1.5, True, False, math.nan, math.inf, "2", None])
def test_what_is_neither_count_nor_fraction_is_refused(blocks: object) -> None:
    with pytest.raises(ConfigError, match=r"blocks must be a count .* got blocks=.*default of 0.5"):
        BlockFreezing(blocks=blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("blocks", [4, 5, 0.9])
def test_freezing_every_block_is_refused_with_the_largest_count_that_works(blocks: int | float) -> None:
    backbone = tiny_backbone("gpt_neox")
    with pytest.raises(
        ConfigError, match=r"the backbone has 4 blocks and at least one must be trained\. Set blocks to at most 3"
    ):
        BlockFreezing(blocks=blocks).prepare(backbone)
