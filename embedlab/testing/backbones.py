"""Tiny decoders of every supported family, built from configurations, so that tests need no download."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModel,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

VOCABULARY_SIZE = 128
_PAD, _UNKNOWN, _END = "<pad>", "<unk>", "</s>"
_SPECIAL_TOKENS = (_PAD, _UNKNOWN, _END)
_CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \t\n"

_NAMES_OF_TODAY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GATED = {**_NAMES_OF_TODAY, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
# The sliding window, in every second block, is shorter than the texts of most tests, so that it masks some tokens.
_SLIDING = {"sliding_window": 8, "sliding_window_pattern": 2}


@dataclass(frozen=True)
class _Family:
    """A family of decoders.

    Attributes:
        config: Configuration class of the family.
        fields: Values of configuration fields that make the model tiny.
        dropouts: Names of the configuration fields that are dropout rates.
    """

    config: type[PretrainedConfig]
    fields: Mapping[str, Any]
    dropouts: tuple[str, ...] = ("attention_dropout",)


_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "gpt_neox": _Family(
            GPTNeoXConfig, {**_NAMES_OF_TODAY, "intermediate_size": 64}, ("hidden_dropout", "attention_dropout")
        ),
        "gpt2": _Family(
            GPT2Config,
            {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
            ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        ),
        "llama": _Family(LlamaConfig, _GATED),
        "qwen3": _Family(Qwen3Config, _GATED),
        "gemma2": _Family(Gemma2Config, {**_GATED, **_SLIDING}),
        "gemma3": _Family(Gemma3TextConfig, {**_GATED, **_SLIDING}),
        "opt": _Family(
            OPTConfig,
            {**_NAMES_OF_TODAY, "ffn_dim": 64, "word_embed_proj_dim": 32},
            ("dropout", "attention_dropout"),
        ),
    }
)

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)
"""Families of decoders that ``tiny_backbone`` can build.

The families differ in position embeddings (learned or rotary), in biases (with or without), in grouped-query attention
and in sliding windows.
"""


def tiny_backbone(family: str, *, dropout: float = 0.0, **overrides: Any) -> PreTrainedModel:
    """Return a decoder with 4 blocks, width 32, 64 positions and a vocabulary of 128 tokens, in evaluation mode.

    The same call gives the same weights. The weights look trained: no bias is zero and no gain of a norm is one, so
    that a test fails when a bias or a gain is lost.

    Args:
        family: Name of the family, one of ``FAMILIES``.
        dropout: Value of all dropout rates of the family.
        overrides: Values for fields of the family's configuration class.

    >>> tiny_backbone("llama", num_hidden_layers=2).config.num_hidden_layers
    2
    """
    known = _FAMILIES[family]
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "pad_token_id": _SPECIAL_TOKENS.index(_PAD),
        "bos_token_id": None,
        "eos_token_id": _SPECIAL_TOKENS.index(_END),
        **known.fields,
        **dict.fromkeys(known.dropouts, dropout),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModel.from_config(known.config(**{**fields, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    return model


def tiny_tokenizer(*, pad_token: bool = True) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer with a token for each printable ASCII character; other characters are unknown tokens.

    Args:
        pad_token: Whether the tokenizer has a padding token. GPT-2, Pythia and Llama have no padding token.

    >>> tiny_tokenizer()("ab, é").input_ids
    [13, 14, 76, 97, 1]
    """
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL_TOKENS, *_CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=_UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=_UNKNOWN,
        eos_token=_END,
        pad_token=_PAD if pad_token else None,
        model_max_length=64,
    )


def save_tiny_backbone(folder: Path, family: str = "gpt_neox", *, pad_token: bool = True, **overrides: Any) -> Path:
    """Write a tiny decoder and its tokenizer into a folder that ``AutoModel`` and ``AutoTokenizer`` can load.

    Args:
        folder: Folder to write to. The folder is created if it does not exist.
        family: Name of the family, one of ``FAMILIES``.
        pad_token: Whether the tokenizer and the model have a padding token.
        overrides: Values for fields of the family's configuration class.

    Returns:
        The folder.
    """
    if not pad_token:
        overrides = {"pad_token_id": None, **overrides}
    tiny_backbone(family, **overrides).save_pretrained(folder)
    tiny_tokenizer(pad_token=pad_token).save_pretrained(folder)
    return folder
