"""The observed cost is what torch counts, for methods and models that nobody thought of when this was written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoModel, MambaConfig, MixtralConfig, PreTrainedModel

from batches import METHODS
from embedlab.errors import ConfigError, PluginError
from embedlab.flop_observer import ADDED_FORMULAS, ProductCounter
from embedlab.flop_profile import fitted, observe
from embedlab.flops import FlopProfile
from embedlab.method import prepare_backbone
from embedlab.registry import method_class
from embedlab.testing import FAMILIES, tiny_backbone

LENGTH = 13  # at which nothing is observed


def prepared(family: str, method: str, **overrides: Any) -> tuple[nn.Module, list[nn.Parameter]]:
    backbone = tiny_backbone(family, **overrides)
    parameters = list(backbone.parameters())
    try:
        return prepare_backbone(method_class(method)(), backbone).train(), parameters
    except ConfigError:
        pytest.skip("no biases in this family")


def run(model: nn.Module, length: int, num_texts: int = 1) -> Tensor:
    device = next(model.parameters()).device
    tokens_BL = torch.zeros(num_texts, length, dtype=torch.int64, device=device)
    hidden_BLD: Tensor = model(input_ids=tokens_BL, attention_mask=torch.ones_like(tokens_BL)).last_hidden_state
    return hidden_BLD


def counted(model: nn.Module, length: int = LENGTH) -> int:
    """Forward and backward by torch's counter, as it comes: it does not know fused attention on the CPU."""
    with FlopCounterMode(display=False) as counter:
        run(model, length).sum().backward()
    flops = counter.get_flop_counts()["Global"]
    if torch.ops.aten.convolution in flops:
        # Of a convolution with groups, torch counts the backward pass as if it had none.
        flops[torch.ops.aten.convolution_backward] = 2 * flops[torch.ops.aten.convolution]
    return sum(flops.values())


def algorithmic(profile: FlopProfile, length: int = LENGTH) -> int:
    return profile.algorithmic(np.array([length]))


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
        for module in fused.modules():
            if isinstance(module, PreTrainedModel):
                module.gradient_checkpointing_enable({"use_reentrant": False})
                module.disable_input_require_grads()
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


# Methods and models of strangers


class Scaled(nn.Module):
    """A backbone whose hidden states go through something more."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)

    def forward(self, **inputs: Tensor) -> Any:
        output = self.backbone(**inputs)
        output.last_hidden_state = self.after(output.last_hidden_state)
        return output

    def after(self, hidden_BLD: Tensor) -> Tensor:
        raise NotImplementedError


class Einsum(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.down = nn.Parameter(torch.randn(32, 1))
        self.up = nn.Parameter(torch.randn(1, 32))

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return hidden_BLD + torch.einsum("bld,dr,re->ble", hidden_BLD, self.down, self.up)


class FoldsItsWeights(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.weight = nn.Parameter(torch.randn(32, 32), requires_grad=False)
        self.down = nn.Parameter(torch.randn(4, 32))
        self.up = nn.Parameter(torch.randn(32, 4))

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return linear(hidden_BLD, self.weight + self.up @ self.down)


class _HiddenLinear(torch.autograd.Function):
    """As quantised layers do it: no flag of autograd is seen inside, and the backward pass is its own."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        return linear(hidden.contiguous(), packed.to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (packed,) = ctx.saved_tensors
        return gradient @ packed.to(gradient.dtype), None


class Dequantises(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.gain = nn.Parameter(torch.ones(32))
        self.packed = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return _HiddenLinear.apply(hidden_BLD * self.gain, self.packed)  # type: ignore[no-any-return]


class PrependsTokens(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.prompt = nn.Parameter(torch.randn(4, 32))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        texts_BLD = self.backbone.get_input_embeddings()(input_ids)
        prompts = self.prompt.expand(len(input_ids), -1, -1)
        ones = attention_mask.new_ones(len(input_ids), 4)
        output = self.backbone(
            inputs_embeds=torch.cat([prompts, texts_BLD], 1), attention_mask=torch.cat([ones, attention_mask], 1)
        )
        output.last_hidden_state = output.last_hidden_state[:, 4:]
        return output


@pytest.mark.parametrize("kind", [Einsum, FoldsItsWeights, Dequantises, PrependsTokens])
def test_a_strangers_method_is_counted_without_declaring_anything(kind: type[Scaled]) -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    parameters = list(backbone.parameters())
    model = kind(backbone)
    profile = observe(model, parameters, max_length=32)
    assert algorithmic(profile) == counted(model)
    assert profile.added_parameters == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in parameters)


def test_what_folding_costs_is_counted_once_a_call_and_not_for_each_token() -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    profile = observe(FoldsItsWeights(backbone), list(backbone.parameters()), max_length=32)
    assert profile.overhead.per_call == 3 * 2 * 32 * 4 * 32, "one product forward, two backward"


def test_a_prompt_of_virtual_tokens_costs_something_for_each_text() -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    profile = observe(PrependsTokens(backbone), list(backbone.parameters()), max_length=32)
    assert profile.overhead.per_text > 0 and profile.mixing.per_token > 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_layer_counts_as_the_matrix_it_stands_for(bits: int) -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    plain, parameters = prepared("gpt_neox", "BiasTuning", attn_implementation="eager")
    expected = observe(plain, parameters, max_length=32)
    for block in plain.layers:  # type: ignore[union-attr]
        old: nn.Linear = block.mlp.dense_h_to_4h  # type: ignore[union-attr, assignment]
        new: nn.Module
        if bits == 4:
            new = Linear4bit(old.in_features, old.out_features, quant_type="nf4", compute_dtype=torch.float32)
        else:
            new = Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)
        new.load_state_dict(old.state_dict())
        block.mlp.dense_h_to_4h = new.to("cpu").train()  # type: ignore[union-attr]
        new.bias.requires_grad_(True)  # type: ignore[union-attr, operator]
        quantised = new.weight.data  # type: ignore[union-attr]
        if bits == 4:
            assert quantised.dtype == torch.uint8, "it is quantised"
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter.ndim == 1 and parameter.is_floating_point() and parameter.requires_grad)
    received = observe(plain, list(plain.parameters()), max_length=32)
    assert received.matrices == expected.matrices
    assert received.parameters == expected.parameters


class OpaqueLayer(nn.Module):
    """Computes where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        with torch.no_grad():
            product = hidden_BLD.numpy(force=True) @ self.weight.detach().numpy(force=True)
        return hidden_BLD + torch.from_numpy(product)


def test_a_layer_that_cannot_be_seen_is_named() -> None:
    class Opaque(Scaled):
        def __init__(self, backbone: PreTrainedModel) -> None:
            super().__init__(backbone.requires_grad_(True))
            self.hidden_away = OpaqueLayer()

        def after(self, hidden_BLD: Tensor) -> Tensor:
            return self.hidden_away(hidden_BLD)  # type: ignore[no-any-return]

    backbone = tiny_backbone("gpt_neox")
    with pytest.raises(PluginError, match=r"layer 'hidden_away' \(OpaqueLayer\) cannot be observed.*\(32, 32\)"):
        observe(Opaque(backbone), list(backbone.parameters()), max_length=32)


def test_attention_of_a_package_is_counted_as_torchs_own() -> None:
    @torch.library.custom_op("embedlab_tests::attend", mutates_args=())
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    def interface(_module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return attend(query, key, value).transpose(1, 2), None

    AttentionInterface.register("embedlab_tests", interface)
    model, parameters = prepared("gpt_neox", "FullFineTuning", attn_implementation="eager")
    expected = observe(model, parameters, max_length=32)
    assert isinstance(model, PreTrainedModel)
    model.set_attn_implementation("embedlab_tests")
    assert observe(model, parameters, max_length=32) == expected
    assert model.config._attn_implementation == "embedlab_tests"


def test_experts_count_as_often_as_a_token_meets_one() -> None:
    config = MixtralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        experts_implementation="eager",
    )
    model = AutoModel.from_config(config, attn_implementation="eager").train()
    profile = observe(model, list(model.parameters()), max_length=32)
    assert algorithmic(profile) == counted(model)
    an_expert = 3 * 32 * 48
    attention = 32 * 32 * 2 + 2 * 32 * 16
    assert profile.matrices.forward == 2 * (attention + 2 * an_expert + 32 * 4)


def test_a_backbone_without_attention_is_counted_by_measurement() -> None:
    config = MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False)
    model = AutoModel.from_config(config).train()
    profile = observe(model, list(model.parameters()), max_length=32)
    assert profile.by_measurement
    assert algorithmic(profile) == counted(model)


def test_a_cost_that_is_no_polynomial_is_measured_between_lengths() -> None:
    class PadsToSixteen(PrependsTokens):
        """As models do that scan in blocks."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            padding = -input_ids.shape[1] % 16
            padded = (nn.functional.pad(tensor, (0, padding)) for tensor in (input_ids, attention_mask))
            return super().forward(*padded)

    backbone = tiny_backbone("gpt_neox", attn_implementation="eager", max_position_embeddings=128)
    model = PadsToSixteen(backbone)
    profile = observe(model, list(backbone.parameters()), max_length=100)
    assert profile.by_measurement
    for length in (2, 8, 16, 64, 100):
        assert algorithmic(profile, length) == counted(model, length)


def test_three_points_give_their_polynomial_in_whole_numbers() -> None:
    found = fitted({length: 5 + 7 * length + 3 * length**2 for length in (3, 5, 8)})
    assert found == (5, 7, 3) and all(isinstance(number, int) for number in found)


def test_a_profile_of_a_frozen_half_has_no_gradient_there() -> None:
    model, parameters = prepared("gpt_neox", "BlockFreezing")
    profile = observe(model, parameters, max_length=32)
    assert profile.backbone.backward == profile.backbone.update == profile.backbone.forward / 2
    assert replace(profile, added=profile.backbone) != profile
