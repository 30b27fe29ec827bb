"""Loads the decoder and its tokenizer, from the hub or a folder, in the form that training needs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from embedlab.errors import ConfigError

HUB_TIMEOUT_SECONDS = 10
_FINGERPRINTED_ELEMENTS = 1024  # of each tensor


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which decoder, and how it is loaded.

    Args:
        path: folder with a saved model, or an id on the Hugging Face hub; ``ladder:r0`` is rung r0 of the
            ladder that ``embedlab pretrain`` makes, pre-trained on first use.
        revision: branch, tag or commit on the hub.
        dtype: of the weights. Half precision here trains in half precision; for mixed precision leave float32
            and set ``trainer.precision: bf16-mixed``.
        attention: implementation of attention; ``auto`` is SDPA where the model has it, ``flash_attention_2`` needs
            the package and a GPU.
        attention_direction: ``bidirectional`` lets every token see the whole text, as in an encoder.
        gradient_checkpointing: recompute activations block by block during the backward pass.
        random_weights: the same architecture from fresh random weights: the control for "does pre-training help?".
        trust_remote_code: run Python code from the model's repository. Off unless you have read that code.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    attention_direction: Literal["causal", "bidirectional"] = "causal"
    gradient_checkpointing: bool = False
    random_weights: bool = False
    trust_remote_code: bool = False


def load_config(backbone: BackboneConfig) -> PretrainedConfig:
    """The model's configuration, with the attention direction written into it.

    Raises:
        ConfigError: if there is no such model, or the hub cannot be reached.
    """
    with _loading(backbone) as where:
        config: PretrainedConfig = AutoConfig.from_pretrained(**where)
    if backbone.attention_direction == "bidirectional":
        config.is_causal = False  # transformers builds its masks from it, and saves it with the model
    return config


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest text, in tokens, that the model has positions for; None if it states none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_positions(backbone: BackboneConfig, max_length: int) -> None:
    """Refuses texts that are longer than the model has positions for.

    Raises:
        ConfigError: if they are, if there is no such model, or the hub cannot be reached.
    """
    positions = max_positions(load_config(backbone))
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"data.max_length is {max_length}, and '{backbone.path}' has positions for {positions} tokens. "
            f"Set data.max_length to {positions} or less; longer texts are cut there, and counted."
        )


def load_tokenizer(backbone: BackboneConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right, with a padding token.

    A tokenizer without one pads with its end-of-text token (else its unknown token, else token 0): padding
    is masked wherever it is read, so that any token serves.

    Raises:
        ConfigError: if there is no such model, or the hub cannot be reached.
    """
    with _loading(backbone) as where:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**where)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_backbone(backbone: BackboneConfig, extra: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The decoder without its unembedding, in evaluation mode.

    Args:
        backbone: which, and how.
        extra: keyword arguments of the fine-tuning method for ``from_pretrained`` (a quantised base, say).

    Raises:
        ConfigError: if there is no such model, the hub cannot be reached, the weights are not in safetensors,
            or the attention implementation is not there.
    """
    config = load_config(backbone)
    dtype = getattr(torch, backbone.dtype)
    attention = None if backbone.attention == "auto" else backbone.attention
    if backbone.random_weights:
        if extra:
            raise ConfigError(
                f"backbone.random_weights does not go with a method that loads weights in its own way, {dict(extra)}."
            )
        # On the CPU whatever the run's device is: the same seed gives the same weights everywhere.
        with _loading(backbone), torch.device("cpu"):
            model: PreTrainedModel = AutoModel.from_config(
                config,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=backbone.trust_remote_code,
            )
    else:
        with _loading(backbone) as where:
            model = AutoModel.from_pretrained(
                **where,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                **(extra or {}),
            )
    config.use_cache = False  # keys and values are never read again
    if backbone.gradient_checkpointing:
        checkpoint_gradients(model)
    model.eval()
    return model


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Return hexadecimal digits that differ where the weights of two models do, from a sample of each tensor.

    Names, shapes and types count, and up to 1,024 evenly spaced elements of every parameter: another pre-trained model,
    or other random weights, has another fingerprint.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        if flat.is_meta:
            continue
        stride = max(1, flat.numel() // _FINGERPRINTED_ELEMENTS)
        sample = flat[::stride].contiguous().cpu()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """From now on, activations are computed again block by block during the backward pass."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # transformers makes the embeddings' output require a gradient with it, for the reentrant kind's sake;
    # gradients would flow through blocks that a method has frozen.
    model.disable_input_require_grads()


def backbone_without_weights(backbone: BackboneConfig) -> PreTrainedModel:
    """The decoder on the meta device: every shape and no memory, from its configuration alone.

    Attention is eager, the one kind that runs there for every family.

    Raises:
        ConfigError: if there is no such model, or the hub cannot be reached.
    """
    config = load_config(backbone)
    with _loading(backbone), torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(
            config,
            dtype=getattr(torch, backbone.dtype),
            attn_implementation="eager",
            trust_remote_code=backbone.trust_remote_code,
        )
    config.use_cache = False
    return model


def attention_keeps_scores(backbone: BackboneConfig, model: PreTrainedModel) -> bool:
    """Whether attention, as configured for this kind of model, keeps its matrices of scores for the backward pass."""
    return backbone.attention == "eager" or (backbone.attention == "auto" and not model._supports_sdpa)


@contextmanager
def _loading(backbone: BackboneConfig) -> Iterator[dict[str, Any]]:
    """Yields where to load from; turns what goes wrong there into a ConfigError, and silences load reports."""
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": backbone.path,
        "revision": backbone.revision,
        "trust_remote_code": backbone.trust_remote_code,
    }
    if not Path(backbone.path).is_dir():
        where["local_files_only"] = not _hub_has(backbone.path, backbone.revision)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # the unembedding is always "unexpected" here
    progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield where
    except (OSError, ValueError, ImportError) as error:
        if where.get("local_files_only"):
            raise ConfigError(
                f"Backbone '{backbone.path}' is no folder here, the Hugging Face hub could not be reached, and the "
                "hub's local cache does not hold it. Give a folder with a saved model, connect to the hub, or use "
                "'ladder:r0', which needs no network."
            ) from error
        raise ConfigError(f"Backbone '{backbone.path}' could not be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()


@cache
def _hub_has(path: str, revision: str | None) -> bool:
    """Whether the hub answers for this model; False where it cannot be reached.

    Asked once and quickly, because the loading functions retry for most of a minute without a network.
    """
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(
            f"Backbone '{path}' is no folder here. Expected a folder with a saved model (config.json, "
            "model.safetensors, tokenizer.json) or an id on the Hugging Face hub such as 'EleutherAI/pythia-70m'."
        )
    try:
        HfApi().model_info(path, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"The Hugging Face hub has no model '{path}' that you may read. Check the id; for a gated model log in "
            "with `hf auth login`; a folder must exist."
        ) from error
    except Exception as error:  # the hub's client changes its network errors' classes with its HTTP library
        logging.getLogger(__name__).warning("The Hugging Face hub did not answer (%s): using its local cache.", error)
        return False
    return True
