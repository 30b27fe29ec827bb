"""The observed cost is what torch counts, for methods and models that nobody thought of when this was written."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from embedlab.flops.observer import ADDED_FORMULAS, ProductCounter
from embedlab.flops.profile import observe
from embedlab.method import prepare_backbone
from embedlab.method.registry import method_class
from embedlab.testing import FAMILIES, tiny_backbone
from helpers.batches import METHODS
from helpers.flop_counts import LENGTH, algorithmic, checkpoint_activations, counted, prepared, run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_algorithmic_count_is_what_torch_counts(family: str, method: str) -> None:
    model, parameters = prepared(family, method, attn_implementation="eager")
    profile = observe(model, parameters, max_length=32)
    assert algorithmic(profile) == counted(model)
    assert not profile.by_measurement


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_attention_the_meta_device_checkpointing_and_autocast_change_nothing(family: str, method: str) -> None:
    model, parameters = prepared(family, method, attn_implementation="eager")
    profile = observe(model, parameters, max_length=32)

    if family != "gemma2":  # has no fused attention
        fused, parameters = prepared(family, method, attn_implementation="sdpa")
        assert observe(fused, parameters, max_length=32) == profile
        with torch.autocast("cpu", torch.bfloat16):
            assert observe(fused, parameters, max_length=32) == profile
        checkpoint_activations(fused)
        assert observe(fused, parameters, max_length=32) == profile

    with torch.device("meta"):
        config = tiny_backbone(family).config
        backbone = AutoModel.from_config(config, attn_implementation="eager")
        parameters = list(backbone.parameters())
        on_meta = prepare_backbone(method_class(method)(), backbone).train()
    assert observe(on_meta, parameters, max_length=32) == profile


def test_the_quick_counter_counts_what_torchs_does() -> None:
    for attention in ("eager", "sdpa"):
        model, _ = prepared("llama", "LoRA", attn_implementation=attention)
        with FlopCounterMode(display=False, custom_mapping=ADDED_FORMULAS) as theirs:
            run(model, LENGTH, 3).sum().backward()
        with ProductCounter() as ours:
            run(model, LENGTH, 3).sum().backward()
        assert ours.flops == theirs.get_total_flops() > 0


def test_observing_leaves_gradients_and_random_numbers_alone() -> None:
    model, parameters = prepared("gpt2", "FullFineTuning", dropout=0.1)
    before = torch.get_rng_state()
    observe(model, parameters, max_length=32)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in parameters)
    assert not any(module._forward_pre_hooks for module in model.modules())


# The paper's convention


def of_first_block(model: nn.Module, *names: str) -> int:
    """Weights of some layers of the first block of a GPT-NeoX."""
    block = model.layers[0]  # type: ignore[index]
    return sum(p.numel() for name in names for p in block.get_submodule(name).parameters())


NORMS = ("input_layernorm", "post_attention_layernorm")
ENTRIES = ("attention.query_key_value", "mlp.dense_h_to_4h")


def test_full_fine_tuning_is_6_n() -> None:
    model, parameters = prepared("gpt_neox", "FullFineTuning")
    profile = observe(model, parameters, max_length=32)
    assert profile.paper_flops_per_token() == 6 * profile.nonembedding_parameters


def test_freezing_is_2_n_and_4_n_trainable_but_for_the_norms_that_begin_the_first_trained_block() -> None:
    model, parameters = prepared("gpt_neox", "BlockFreezing")
    profile = observe(model, parameters, max_length=32)
    theirs = 2 * profile.nonembedding_parameters + 4 * profile.trainable_parameters
    assert profile.paper_flops_per_token() == theirs - 2 * of_first_block(model, *NORMS)


def test_bias_tuning_is_4_n_and_2_n_trainable_but_for_the_first_norms() -> None:
    model, parameters = prepared("gpt_neox", "BiasTuning")
    profile = observe(model, parameters, max_length=32)
    theirs = 4 * profile.nonembedding_parameters + 2 * profile.trainable_parameters
    assert profile.paper_flops_per_token() == theirs - 2 * of_first_block(model, *NORMS)


def test_lora_is_4_n_and_2_n_trainable_but_for_what_begins_the_first_block() -> None:
    model, parameters = prepared("gpt_neox", "LoRA")
    profile = observe(model, parameters, max_length=32)
    everything = profile.nonembedding_parameters + profile.added_parameters
    theirs = 4 * everything + 2 * profile.trainable_parameters
    backbone = model.base_model.model  # type: ignore[union-attr]
    first = of_first_block(backbone, *NORMS, *(f"{name}.base_layer" for name in ENTRIES))
    first += of_first_block(backbone, *(f"{name}.lora_A" for name in ENTRIES))
    assert profile.paper_flops_per_token() == theirs - 2 * first


def test_through_a_frozen_half_flows_no_gradient() -> None:
    full, parameters = prepared("gpt_neox", "FullFineTuning")
    everything = observe(full, parameters, max_length=32).backbone
    model, parameters = prepared("gpt_neox", "BlockFreezing")
    half = observe(model, parameters, max_length=32).backbone
    assert everything.forward == everything.backward == everything.update == half.forward
    assert half.backward == half.update == everything.forward / 2
