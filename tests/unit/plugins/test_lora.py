"""LoRA trains adapters beside frozen weights, silently and reproducibly, on every family."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from embedlab_methods.lora import LoRA
from peft import PeftModel
from torch import nn
from transformers import AutoModel, Llama4TextConfig, MambaConfig, MambaModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from embedlab.errors import ConfigError
from embedlab.testing import CHECKS, FAMILIES, Check, tiny_backbone

PAPER_TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "embed_in"]


def adapted(model: nn.Module) -> list[str]:
    """The names, in the backbone, of the layers that have an adapter."""
    prefix = "base_model.model."
    return [n.removeprefix(prefix) for n, module in model.named_modules() if hasattr(module, "lora_A")]


def scales(model: nn.Module) -> set[float]:
    return {round(m.scaling["default"], 9) for m in model.modules() if hasattr(m, "lora_A")}


def test_all_linear_adapts_every_linear_layer_and_no_embedding(family: str) -> None:
    backbone = tiny_backbone(family)
    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    assert len(linear) >= 4 * 4
    assert adapted(LoRA().prepare(backbone)) == linear


def test_lora_updates_only_adapters(family: str) -> None:
    model = LoRA(rank=3).prepare(tiny_backbone(family))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_A" in name or "lora_B" in name)
        if parameter.requires_grad:
            assert 3 in parameter.shape


def test_the_targets_of_the_paper_can_be_named() -> None:
    model = LoRA(targets=PAPER_TARGETS).prepare(tiny_backbone("gpt_neox"))
    assert len(adapted(model)) == 4 * 4 + 1
    assert "embed_in" in adapted(model)


def test_a_single_target_may_be_a_string_or_a_full_name() -> None:
    assert len(adapted(LoRA(targets="query_key_value").prepare(tiny_backbone("gpt_neox")))) == 4
    one = LoRA(targets=["layers.1.attention.dense"]).prepare(tiny_backbone("gpt_neox"))
    assert adapted(one) == ["layers.1.attention.dense"]


def test_a_target_that_names_nothing_is_refused_with_the_names_there_are() -> None:
    backbone = tiny_backbone("llama")
    expected = r"\['query_key_value'\].*LlamaModel.*embed_tokens, q_proj, k_proj, v_proj, o_proj, gate_proj"
    with pytest.raises(ConfigError, match=expected):
        LoRA(targets=["q_proj", "query_key_value"]).prepare(backbone)
    assert not any(hasattr(module, "lora_A") for module in backbone.modules()), "left as it was"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got rank=0. Leave it out for the default of 32"),
        ({"rank": -4}, "got rank=-4"),
        ({"alpha": 0.0}, "alpha must be positive, got alpha=0.0"),
        ({"alpha": math.nan}, "got alpha=nan"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got dropout=1.0"),
        ({"dropout": -0.1}, "got dropout=-0.1"),
        ({"dropout": math.nan}, "got dropout=nan"),
        ({"targets": []}, r"targets must name at least one layer, got targets=\[\]"),
        ({"targets": ""}, "got targets=''"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRA(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "scale"),
    [
        (LoRA(), 2.0),
        (LoRA(rank=4), 2.0),
        (LoRA(rank=4, alpha=2), 0.5),
        (LoRA(rank=4, alpha=2, rslora=True), 1.0),
        (LoRA(rslora=True), 2.0),
        (LoRA(rank=8, rslora=True), 4.0),
    ],
)
def test_the_scale_is_alpha_over_the_rank_or_its_root(method: LoRA, scale: float) -> None:
    assert scales(method.prepare(tiny_backbone("gpt_neox"))) == {scale}


def test_a_fresh_adapter_changes_nothing(family: str) -> None:
    ids = torch.arange(3, 23)[None]
    mask = torch.ones_like(ids)
    backbone = tiny_backbone(family)
    before = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    after = LoRA().prepare(backbone)(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(before, after)


def test_adapters_follow_the_seed() -> None:
    def first_adapter(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = LoRA().prepare(tiny_backbone("gpt_neox"))
        return next(parameter for parameter in model.parameters() if parameter.requires_grad)

    assert torch.equal(first_adapter(0), first_adapter(0))
    assert not torch.equal(first_adapter(0), first_adapter(1))


def test_preparing_and_merging_say_nothing(
    family: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    method = LoRA(targets=["wte" if family == "gpt2" else "embed_in" if family == "gpt_neox" else "embed_tokens"])
    method.merged(method.prepare(tiny_backbone(family)))
    LoRA().prepare(tiny_backbone(family))
    assert capfd.readouterr().err == ""
    assert [str(warning.message) for warning in recwarn] == []


def test_dropout_acts_in_training_alone() -> None:
    model = LoRA(dropout=0.5).prepare(tiny_backbone("gpt_neox"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ids = torch.arange(3, 23)[None]

    def same_twice() -> bool:
        return torch.equal(*[model(input_ids=ids).last_hidden_state for _ in range(2)])

    assert same_twice()
    model.train()
    assert not same_twice()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_sends_no_gradient_into_blocks_that_need_none() -> None:
    backbone = tiny_backbone("gpt_neox")
    backbone.gradient_checkpointing_enable({"use_reentrant": False})
    backbone.disable_input_require_grads()  # transformers asks for them too
    LoRA(targets=["layers.3.attention.dense"]).prepare(backbone)
    assert not backbone.embed_in(torch.tensor([[3]])).requires_grad


def test_half_precision_backbones_get_float32_adapters_and_keep_their_output() -> None:
    model = LoRA().prepare(tiny_backbone("gpt_neox").to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ids = torch.arange(3, 23)[None]
    assert model(input_ids=ids).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_keeps_the_contract_with_every_option_set(check: Check, family: str) -> None:
    def make_backbone() -> PreTrainedModel:
        return tiny_backbone(family)

    names = {name.rsplit(".", 1)[-1]: module for name, module in make_backbone().named_modules()}
    linear = [name for name, module in names.items() if isinstance(module, nn.Linear | Conv1D)]
    tokens = {"gpt_neox": "embed_in", "gpt2": "wte"}.get(family, "embed_tokens")
    check(LoRA(rank=5, alpha=7.0, targets=[*linear, tokens], dropout=0.2, rslora=True), make_backbone)


def test_a_prepared_model_is_peft_s_and_shows_the_backbone_s_configuration() -> None:
    model = LoRA().prepare(tiny_backbone("gpt_neox"))
    assert isinstance(model, PeftModel)
    assert model.config.model_type == "gpt_neox"


def test_layers_that_peft_cannot_adapt_are_refused_with_the_names_to_choose_from() -> None:
    def mamba() -> MambaModel:
        return MambaModel(MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4))

    with pytest.raises(
        ConfigError, match=r"layers of MambaModel.*'out_proj' is incompatible.*in_proj, x_proj, dt_proj"
    ):
        LoRA().prepare(mamba())
    prepared = LoRA(targets=["in_proj", "x_proj"]).prepare(mamba())
    assert isinstance(prepared, PeftModel)


def llama4() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=128,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_local_experts=4,
        max_position_embeddings=64,
        attention_chunk_size=16,
    )
    model: PreTrainedModel = AutoModel.from_config(config).eval()
    for parameter in model.parameters():  # the experts' weights start as zeros or as they were in memory
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_lora_keeps_the_contract_on_a_backbone_whose_router_returns_a_tuple(check: Check) -> None:
    check(LoRA(), llama4)


class ReturnsATuple(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> Any:
        scores = super().forward(hidden)
        return scores.softmax(-1), scores


class ChoosesOne(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden).argmax(-1)


class TakesGroups(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        groups, size = self.out_features // 4, self.in_features
        weight = self.weight.view(groups, 4, size)
        return torch.einsum("...gi,goi->...go", hidden.view(*hidden.shape[:-2], groups, size), weight)


class Casts(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.to(self.weight.dtype))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("kind", "is_adapted"), [(ReturnsATuple, False), (ChoosesOne, False), (TakesGroups, False), (Casts, True)]
)
def test_a_layer_is_adapted_if_it_returns_what_a_linear_layer_does(
    kind: type[nn.Linear], is_adapted: bool, device: str
) -> None:
    def backbone() -> PreTrainedModel:
        model = tiny_backbone("llama")
        model.layers[0].mlp.router = kind(32, 8)
        return model.to(device)

    assert ("layers.0.mlp.router" in adapted(LoRA().prepare(backbone()))) == is_adapted
    if not is_adapted:
        with pytest.raises(ConfigError, match=r"LoRA targets \['router'\] name neither a linear layer nor"):
            LoRA(targets=["router"]).prepare(backbone())
