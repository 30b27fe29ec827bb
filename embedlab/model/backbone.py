"""Loads the decoder and its tokenizer, from the hub or a folder, in the form that training needs."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from embedlab.errors import ConfigError, EmbedLabError
from embedlab.model.backbone_files import (
    check_configuration,
    check_fit,
    check_tokenizer_files,
    no_tokenizer,
    weight_shapes,
)

HUB_TIMEOUT_SECONDS = 10

# What DDP, torch.compile, FSDP and activation checkpointing put into the names of weights saved from their wrappers.
_WRAPPERS = {
    r"^(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.)+": "",
    r"_orig_mod\.": "",
    r"_fsdp_wrapped_module\.": "",
    r"_checkpoint_wrapped_module\.": "",
}
_UNEMBEDDINGS = re.compile(r"^(lm_head|embed_out|output|unembed\w*|cls|head|generator_lm_head)\.")
_BUFFERS = re.compile(
    r"inv_freq$|(^|\.)position_ids$|(attn|attention)\.(bias|masked_bias)$|causal_mask$|(sin|cos)_cached$"
)
# Gemma 3 has one tokenizer for all sizes. The smallest sees no images, and has no row for the token of one.
_NEVER_IN_TEXT = {"<image_soft_token>"}
_SAMPLED = 256  # values of each weight that a fingerprint reads
_REASON_CHARACTERS = 400  # of a library's message


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which decoder, and how it is loaded.

    Args:
        path: folder with a saved model, or an id on the Hugging Face hub; ``ladder:r0`` is rung r0 of the
            ladder that ``embedlab pretrain`` makes, pre-trained on first use.
        revision: branch, tag or commit on the hub.
        dtype: Type of the weights. ``bfloat16`` trains in half precision; for mixed precision leave float32
            and set ``trainer.precision: bf16-mixed``. ``float16`` encodes, and trains only what a method keeps in
            float32, as LoRA does.
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


def absolute_path(path: str) -> str:
    """Return the whole path of a folder, which holds wherever a later command is started; an id stays as it is."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def load_config(backbone: BackboneConfig) -> PretrainedConfig:
    """The model's configuration, with the attention direction written into it.

    Raises:
        ConfigError: if there is no such model, the hub cannot be reached, or it is no decoder-only language model.
    """
    with _loading(backbone) as where:
        config: PretrainedConfig = AutoConfig.from_pretrained(**where)
        if getattr(config, "is_encoder_decoder", False):
            raise ConfigError(
                f"Backbone '{backbone.path}' is an encoder-decoder ({config.model_type}). Expected a decoder-only "
                "language model, such as 'EleutherAI/pythia-70m'."
            )
        if not _is_size(_vocabulary_size(config)):
            raise ConfigError(
                f"Backbone '{backbone.path}' is no language model that texts can be put into: its config.json "
                f"({config.model_type}) says vocab_size {_vocabulary_size(config)!r}. Expected a decoder-only language "
                "model, such as 'EleutherAI/pythia-70m'."
            )
        if backbone.attention_direction == "bidirectional":
            config.is_causal = False  # transformers builds its masks from it, and saves it with the model
    return config


def _vocabulary_size(config: PretrainedConfig) -> Any:
    return getattr(config.get_text_config(), "vocab_size", None)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest text, in tokens, that the model has positions for; None if it states none.

    Raises:
        ConfigError: if what it states is no number of tokens.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and not _is_size(positions):
        raise ConfigError(f"The model's config.json says max_position_embeddings {positions!r}. Expected a number.")
    return positions


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

    A tokenizer without one pads with its end-of-text token (else another special token, else token 0): padding
    is masked wherever it is read, so that any token serves. ``pads_with_a_word`` tells the last case, in which
    the tokenizer must be given a token of its own before it is saved.

    What would fail later is looked at here, since this comes before any text is read: the files of the weights,
    and whether the model has a row for every token.

    Raises:
        ConfigError: if there is no such model, the hub cannot be reached, it has no tokenizer, the tokenizer has
            tokens that the model does not know, or the files of the weights cannot be loaded.
    """
    config = load_config(backbone)
    folder = Path(backbone.path)
    with _loading(backbone) as where:
        if folder.is_dir():
            check_tokenizer_files(folder)
            if not backbone.random_weights:
                _check_weights(folder, config)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**where)
        tokenizer.padding_side = "right"
        tokenizer.truncation_side = "right"
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            raise no_tokenizer(backbone.path)  # transformers makes an empty one where it finds none
        if tokenizer.pad_token is None:
            special = [tokenizer.eos_token, tokenizer.unk_token, *tokenizer.all_special_tokens]
            tokenizer.pad_token = next(filter(None, special), None) or tokenizer.convert_ids_to_tokens(0)
        _check_vocabulary(backbone, tokenizer, config)
    return tokenizer


def pads_with_a_word(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the padding token is one that texts consist of.

    In this process it does no harm, since padding is masked. Saved and loaded again it would be a special token,
    which is cut out of texts before anything else is.
    """
    others = {*tokenizer.special_tokens_map.items()} - {("pad_token", tokenizer.pad_token)}
    special = {str(token) for _, token in others} | {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return str(tokenizer.pad_token) not in special


def _check_vocabulary(backbone: BackboneConfig, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    vocabulary, rows = tokenizer.get_vocab(), _vocabulary_size(config)
    too_large = {token: number for token, number in vocabulary.items() if number >= rows}
    unusable = sorted(too_large.keys() - _NEVER_IN_TEXT)
    if unusable:
        raise ConfigError(
            f"The tokenizer of '{backbone.path}' has token ids up to {max(too_large.values())}, and the model has "
            f"embeddings for {rows} tokens (vocab_size): none for {', '.join(map(repr, unusable[:3]))}"
            f"{' and others' if len(unusable) > 3 else ''}. Use the model's own tokenizer, or enlarge the model with "
            "resize_token_embeddings() of transformers and save both."
        )


def _check_weights(folder: Path, config: PretrainedConfig) -> None:
    shapes = weight_shapes(folder)
    if getattr(config, "quantization_config", None) is None:  # packed weights have shapes of their own
        check_fit(folder, config, shapes)


def _check_size(backbone: BackboneConfig, config: PretrainedConfig) -> None:
    """Refuse a configuration of a far larger model before random numbers fill what the weights do not."""
    if getattr(config, "quantization_config", None) is not None:
        return
    stated = sum(weight.numel() for weight in backbone_without_weights(backbone).parameters())
    held = sum(math.prod(shape) for shape in weight_shapes(Path(backbone.path)).values())
    if stated > 2 * held:
        raise ConfigError(
            f"'{backbone.path}' does not belong together: its config.json describes a decoder of {stated:,} parameters "
            f"and its weights are {held:,}. Fetch both again, from the same revision of the model."
        )


def load_backbone(backbone: BackboneConfig, extra: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The decoder without its unembedding, in evaluation mode, with every weight as it was saved.

    Args:
        backbone: which, and how.
        extra: keyword arguments of the fine-tuning method for ``from_pretrained`` (a quantized base, say).

    Raises:
        ConfigError: if there is no such model, the hub cannot be reached, the weights are not in safetensors,
            one is missing, has another shape, is not finite or left over, or the attention implementation is not
            there.
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
            if Path(backbone.path).is_dir():
                _check_weights(Path(backbone.path), config)
                _check_size(backbone, config)
            model, found = AutoModel.from_pretrained(
                **where,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with their names
                key_mapping=_WRAPPERS,
                **(extra or {}),
            )
            _require_weights(backbone, model, found)
    config.use_cache = False  # keys and values are never read again
    if backbone.gradient_checkpointing:
        checkpoint_gradients(model)
    model.eval()
    return model


def _require_weights(backbone: BackboneConfig, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Refuse a model of which a weight is not the saved one.

    Raises:
        ConfigError: if one is missing, has another shape, is left over or not finite.
    """
    start = f"Backbone '{backbone.path}' could not be loaded as it was saved: "
    end = "Fetch the model again: its weights and config.json must be of one revision."
    if found["mismatched_keys"]:
        name, saved, expected = min(found["mismatched_keys"])
        raise ConfigError(
            f"{start}{name} has the shape {tuple(saved)}, and config.json asks for {tuple(expected)} "
            f"({_count(found['mismatched_keys'])} of another shape). {end}"
        )
    # No embedding is read from a pooler's output, and masked language models are saved without one.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ConfigError(f"{start}{_names(missing)} missing ({_count(missing)} of the model). {end}")
    if found["error_msgs"]:
        raise ConfigError(f"{start}{_one_line(found['error_msgs'][0])}. {end}")
    prefix = f"{model.base_model_prefix}."
    parts = {name for name, _ in model.named_children()}
    unread = sorted(name for name in found["unexpected_keys"] if not _BUFFERS.search(name))
    left_over = [name for name in unread if name.startswith(prefix) or name.partition(".")[0] in parts]
    if left_over:
        raise ConfigError(f"{start}{_names(left_over)} left over: by its config.json the model has no such part. {end}")
    heads = [name for name in unread if not _UNEMBEDDINGS.match(name)]
    if heads:
        _say(f"Of '{backbone.path}', {_names(heads)} not used: no part of the decoder.")
    # Its weights would be saved under the wrappers' names again.
    conversions: list[Any] = getattr(model, "_weight_conversions", None) or []
    own = [conversion for conversion in conversions if conversion.target_patterns == [""]]
    if own:
        model._weight_conversions = [conversion for conversion in conversions if conversion not in own]  # type: ignore[assignment]
        _say(
            f"The weights of '{backbone.path}' have an unexpected prefix (module. of DDP, _orig_mod. of torch.compile)"
            ": their names are read without it."
        )
    broken = next((name for name, weight in model.named_parameters() if not is_finite(weight)), None)
    if broken is not None:
        raise ConfigError(f"{start}{broken} holds values that are not finite (NaN or infinite). {end}")
    rows, size = getattr(model.get_input_embeddings(), "num_embeddings", None), _vocabulary_size(model.config)
    if rows is not None and rows < size:
        raise ConfigError(f"{start}it has embeddings for {rows} tokens, and config.json says vocab_size {size}. {end}")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite; those of a type without NaN always are."""
    if not tensor.is_floating_point() or tensor.itemsize < 2 or tensor.is_meta:
        return True
    return bool(torch.isfinite(tensor).all())


def fingerprint(model: PreTrainedModel) -> str:
    """Hexadecimal digits that tell whether a backbone is the same: from a sample of each of its weights."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        values = weight.detach().flatten()
        values = values[:: max(1, len(values) // _SAMPLED)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(values.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _names(names: list[str]) -> str:
    """The first names, with the verb: "a and b are", "a, b, c and 9 more are"."""
    shown = names[:3]
    if len(names) > len(shown):
        return f"{', '.join(shown)} and {len(names) - len(shown)} more are"
    return " and ".join(shown) + (" is" if len(shown) == 1 else " are")


def _count(names: Iterable[object]) -> str:
    number = len(list(names))
    return f"{number} weight{'s' * (number != 1)}"


def _one_line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _REASON_CHARACTERS else f"{line[:_REASON_CHARACTERS]}…"


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)


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
    if Path(backbone.path).is_dir():
        check_configuration(Path(backbone.path))
    else:
        where["local_files_only"] = not _hub_has(backbone.path, backbone.revision)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # the unembedding is always "unexpected" here
    progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield where
    except EmbedLabError:
        raise
    except Exception as error:  # of a broken model libraries raise whatever they come upon
        if where.get("local_files_only") and isinstance(error, OSError | ValueError):
            raise ConfigError(
                f"Backbone '{backbone.path}' is no folder here, the Hugging Face hub could not be reached, and the "
                "hub's local cache does not hold it. Give a folder with a saved model, connect to the hub, or use "
                "'ladder:r0', which needs no network."
            ) from error
        reason = _one_line(error)
        if not (isinstance(error, OSError | ValueError | ImportError | RuntimeError) and reason):
            reason = f"{type(error).__name__} {reason}".strip()  # "'added_tokens'" alone says nothing
        raise ConfigError(f"Backbone '{backbone.path}' could not be loaded: {reason}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()


@cache
def _hub_has(path: str, revision: str | None) -> bool:
    """Whether the hub answers for this model; False where it cannot be reached.

    Asked once and quickly, because the loading functions retry for most of a minute without a network.
    """
    if Path(path).is_file():
        raise ConfigError(f"Backbone '{path}' is a file. Give the folder that holds it beside config.json.")
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
