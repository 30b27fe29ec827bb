"""Every family can be counted without weights, or a row says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    GPTNeoConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from embedlab.errors import ConfigError
from embedlab.flops.estimate import FlopRow, StepShape, flop_rows
from embedlab.flops.profile import observe
from embedlab.method import FineTuningMethod, prepare_backbone
from embedlab.method.registry import method_class
from embedlab.model.backbone import BackboneConfig, load_backbone
from embedlab.testing.backbones import save_tiny_backbone

TINY = {"vocab_size": 128, "hidden_size": 32, "eos_token_id": 2, "bos_token_id": None, "pad_token_id": 0}
CONFIGS: dict[str, PretrainedConfig] = {
    "mamba": MambaConfig(**TINY, num_hidden_layers=2, state_size=4),
    "mixtral": MixtralConfig(
        **TINY,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=4,
        max_position_embeddings=64,
    ),
    "gpt_neo": GPTNeoConfig(
        **TINY,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=4,
        max_position_embeddings=64,
        window_size=8,
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "embedlab-cache"))


def save(folder: Path, config: PretrainedConfig) -> BackboneConfig:
    AutoModel.from_config(config).save_pretrained(folder)
    return BackboneConfig(path=str(folder))


def row_of(backbone: BackboneConfig, method: FineTuningMethod, **shape: Any) -> FlopRow:
    (row,) = flop_rows(backbone, [method], StepShape(**{"max_length": 64, **shape}))
    return row


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("method", ["FullFineTuning", "BlockFreezing"])
def test_a_count_without_weights_is_that_with_them(tmp_path: Path, family: str, method: str) -> None:
    backbone = save(tmp_path / "backbone", CONFIGS[family])  # texts as long as there are learned positions
    row = row_of(backbone, method_class(method)())
    model = load_backbone(backbone)
    parameters = list(model.parameters())
    prepared = prepare_backbone(method_class(method)(), model).train()
    assert row.profile == observe(prepared, parameters, max_length=64)
    assert row.memory_bytes is not None and row.memory_bytes > 12 * row.profile.trainable_parameters


def test_experts_count_as_often_as_tokens_go_through_them(tmp_path: Path) -> None:
    profile = row_of(save(tmp_path / "backbone", CONFIGS["mixtral"]), method_class("FullFineTuning")()).profile
    assert profile is not None
    attention, router, expert = 2 * 32 * 32 + 2 * 32 * 16, 32 * 4, 3 * 32 * 48
    assert profile.backbone.forward == 2 * (attention + router + 2 * expert), "two experts of four, two blocks"


def test_a_method_that_the_backbone_does_not_allow_is_a_row_that_says_why(tmp_path: Path) -> None:
    row = row_of(save(tmp_path / "backbone", CONFIGS["mamba"]), method_class("LoRA")())
    assert row.profile is None and "'out_proj' is incompatible" in row.refusal


def test_a_backbone_that_cannot_run_without_weights_is_a_row_that_says_so(tmp_path: Path) -> None:
    config = Mamba2Config(**TINY, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=16, n_groups=1)
    row = row_of(save(tmp_path / "backbone", config), method_class("FullFineTuning")())
    assert row.profile is None and "cannot run without weights" in row.refusal


class OwnLoading(FineTuningMethod):
    """Trains everything, and loads the weights in a form of its own."""

    def backbone_kwargs(self) -> dict[str, Any]:
        return {"quantization_config": {"load_in_4bit": True}}

    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        return backbone.requires_grad_(True)


def test_weights_in_a_form_of_their_own_have_a_count_and_no_memory(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone")))
    row = row_of(backbone, OwnLoading())
    assert row.profile == row_of(backbone, method_class("FullFineTuning")()).profile
    assert row.memory_bytes is None


def test_the_precision_and_checkpointing_of_a_run_are_in_its_memory(tmp_path: Path) -> None:
    path = str(save_tiny_backbone(tmp_path / "backbone"))

    def memory(*, precision: str = "32-true", **options: Any) -> int:
        row = row_of(BackboneConfig(path=path, **options), method_class("FullFineTuning")(), precision=precision)
        assert row.memory_bytes is not None
        return row.memory_bytes

    usual = memory()
    assert memory(precision="bf16-true") == pytest.approx(usual / 2, rel=0.05)
    assert memory(dtype="bfloat16") == memory(precision="bf16-true")
    assert memory(gradient_checkpointing=True) < usual / 2
    assert memory(precision="bf16-mixed") < 0.7 * usual
    assert memory(attention="eager") > 1.2 * usual


@pytest.mark.parametrize("tokens", [{"query_tokens": 0}, {"document_tokens": -1}, {"document_tokens": 129}])
def test_a_mean_that_no_texts_can_have_is_refused(tokens: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"mean length between 1 and 128 tokens \(data.max_length\), got"):
        StepShape(**tokens)


def test_a_row_is_kept_under_its_key_and_not_where_there_is_none(tmp_path: Path) -> None:
    path = str(save_tiny_backbone(tmp_path / "backbone"))
    kept = tmp_path / "embedlab-cache" / "flops"
    method = method_class("FullFineTuning")()
    row_of(BackboneConfig(path=path, trust_remote_code=True), method)
    assert not kept.exists(), "the model's own code is in no key"
    unwritable = method_class("FullFineTuning")()
    unwritable.option = torch.zeros(1)  # type: ignore[attr-defined]
    row_of(BackboneConfig(path=path), unwritable)
    assert not kept.exists()
    assert row_of(BackboneConfig(path=path), method) == row_of(BackboneConfig(path=path), method)
    assert len(list(kept.glob("*/row.json"))) == 1
    row_of(BackboneConfig(path=path), method, precision="bf16-true")
    assert len(list(kept.glob("*/row.json"))) == 2
