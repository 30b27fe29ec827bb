"""The tiny backbones are what the contract needs: real models of every family, the same at every call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from embedlab.testing import FAMILIES, save_tiny_backbone, tiny_backbone, tiny_tokenizer


def test_the_same_call_gives_the_same_weights_and_leaves_the_random_numbers_alone(family: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = tiny_backbone(family).state_dict()
    assert torch.equal(torch.rand(2), expected)
    second = tiny_backbone(family).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_look_trained(backbone: PreTrainedModel) -> None:
    constant = [name for name, parameter in backbone.named_parameters() if parameter.std() < 0.01]
    assert constant == []


@pytest.mark.parametrize("pad_token", [True, False])
def test_a_saved_backbone_loads_through_the_auto_classes(tmp_path: Path, family: str, pad_token: bool) -> None:
    folder = save_tiny_backbone(tmp_path / "backbone", family, pad_token=pad_token)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModel.from_pretrained(folder).state_dict()
    text = "Any printable text: 1 + 1 = 2, café?"
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert tokenizer.decode(tokenizer("Any text.").input_ids) == "Any text."
    assert (tokenizer.pad_token is not None) == pad_token
    saved = tiny_backbone(family, pad_token_id=0 if pad_token else None).state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_dropout_is_off_by_default_and_can_be_turned_on(family: str) -> None:
    def twice(dropout: float) -> bool:
        model = tiny_backbone(family, dropout=dropout).train()
        ids = torch.arange(3, 23)[None]
        mask = torch.ones_like(ids)
        outputs = [model(input_ids=ids, attention_mask=mask).last_hidden_state for _ in range(2)]
        return torch.equal(*outputs)

    assert twice(0.0)
    assert not twice(0.5)


def test_the_families_cover_what_differs_between_decoders() -> None:
    models = [tiny_backbone(family) for family in FAMILIES]
    names = [" ".join(name for name, _ in model.named_parameters()) for model in models]
    configs = [model.config for model in models]
    assert any("bias" in joined for joined in names) and any("bias" not in joined for joined in names)
    assert any("wpe" in joined for joined in names), "learned positions"
    assert any(getattr(config, "num_key_value_heads", 4) < config.num_attention_heads for config in configs)
    assert any("sliding_attention" in (getattr(config, "layer_types", None) or []) for config in configs)
