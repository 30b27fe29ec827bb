"""Loads the decoder and its tokenizer, from the Hugging Face hub or a folder, in the form that training needs."""

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

# Name parts that DDP, torch.compile, FSDP and activation checkpointing add to weights that are saved while wrapped.
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
# All sizes of Gemma 3 share a tokenizer, but the smallest model takes no images and has no row for the image token.
_NEVER_IN_TEXT = {"<image_soft_token>"}
_SAMPLED = 256  # approximate number of values of each weight that a fingerprint reads
_REASON_CHARACTERS = 400  # maximum length of a library's message within an error message


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The decoder to use as the backbone, and how to load it.

    Args:
        path: Folder with a saved model, or an id on the Hugging Face hub, for example ``EleutherAI/pythia-70m``.
            ``ladder:r0`` is rung r0 of the ladder that ``embedlab pretrain`` makes, pre-trained on first use.
        revision: Branch, tag or commit on the hub; by default the main branch.
        dtype: Data type of the weights. ``bfloat16`` trains in half precision. For mixed precision, keep ``float32``
            and set ``trainer.precision: bf16-mixed``. ``float16`` can encode, but can train only methods that keep
            their trained weights in float32, for example LoRA.
        attention: Implementation of attention. ``auto`` is SDPA if the model supports it, or else eager.
            ``flash_attention_2`` needs the package flash-attn and a GPU.
        attention_direction: Tokens that a token attends to. ``causal`` is the token and all tokens before it;
            ``bidirectional`` is the whole text, as in an encoder.
        gradient_checkpointing: Whether activations are recomputed block by block during the backward pass. This saves
            memory and costs FLOPs.
        random_weights: Whether the model starts from random weights instead of its pre-trained weights. Use it to
            measure how much pre-training helps.
        trust_remote_code: Whether Python code from the repository of the model may run. Read the code before you set
            this.
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
    """Return the absolute path of a folder, which is valid from any working directory; return a hub id unchanged.

    Args:
        path: Path of a folder, or id on the Hugging Face hub.
    """
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def load_config(backbone: BackboneConfig) -> PretrainedConfig:
    """Load the configuration of a model, and set its attention direction.

    Args:
        backbone: Model to load, with its options.

    Raises:
        ConfigError: If the model does not exist, is not a decoder-only language model, or is not in the local cache
            while the hub cannot be reached.
    """
    with _loading(backbone) as where:
        config: PretrainedConfig = AutoConfig.from_pretrained(**where)
        if getattr(config, "is_encoder_decoder", False):
            raise ConfigError(
                f"Backbone '{backbone.path}' is an encoder-decoder ({config.model_type}). Expected a decoder-only "
                "language model, for example 'EleutherAI/pythia-70m'."
            )
        if not _is_size(_vocabulary_size(config)):
            raise ConfigError(
                f"Backbone '{backbone.path}' is not a language model for texts: its config.json ({config.model_type}) "
                f"says vocab_size {_vocabulary_size(config)!r}. Expected a decoder-only language model, for example "
                "'EleutherAI/pythia-70m'."
            )
        if backbone.attention_direction == "bidirectional":
            config.is_causal = False  # transformers builds its masks from this field, and saves it with the model
    return config


def _vocabulary_size(config: PretrainedConfig) -> Any:
    return getattr(config.get_text_config(), "vocab_size", None)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the maximum length of a text, in tokens, that the model has positions for; None if no limit is stated.

    Args:
        config: Configuration of the model.

    Raises:
        ConfigError: If the stated limit is not an integer of at least 1.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and not _is_size(positions):
        raise ConfigError(
            f"The config.json of the model says max_position_embeddings {positions!r}. Expected an integer of at "
            "least 1. Download config.json again."
        )
    return positions


def check_positions(backbone: BackboneConfig, max_length: int) -> None:
    """Refuse a maximum length of texts that exceeds the number of positions of the model.

    Args:
        backbone: Model to load, with its options.
        max_length: Maximum length of a text in tokens.

    Raises:
        ConfigError: If the model has fewer positions, does not exist, or is not in the local cache while the hub cannot
            be reached.
    """
    positions = max_positions(load_config(backbone))
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"data.max_length is {max_length}, but '{backbone.path}' has positions for {positions} tokens only. "
            f"Set data.max_length to {positions} or less. Longer texts are then cut to this length, and counted."
        )


def load_tokenizer(backbone: BackboneConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, set to pad on the right, with a padding token.

    If the tokenizer has no padding token, its end-of-text token is used, or else another special token, or else
    token 0. Any token works, because padding is masked wherever it is read. After the last choice ``pads_with_a_word``
    returns True, and the tokenizer needs its own padding token before it is saved.

    The tokenizer is loaded before any text is read. Faults that would appear later are therefore looked for here: in
    the files of the weights, and in tokens for which the model has no embedding.

    Args:
        backbone: Model to load, with its options.

    Raises:
        ConfigError: If the model does not exist or is not in the local cache while the hub cannot be reached, if it has
            no tokenizer, if the tokenizer has tokens that the model has no embeddings for, or if the files of the
            weights cannot be loaded.
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
            raise no_tokenizer(backbone.path)  # transformers makes an empty tokenizer if it finds none
        if tokenizer.pad_token is None:
            special = [tokenizer.eos_token, tokenizer.unk_token, *tokenizer.all_special_tokens]
            tokenizer.pad_token = next(filter(None, special), None) or tokenizer.convert_ids_to_tokens(0)
        _check_vocabulary(backbone, tokenizer, config)
    return tokenizer


def pads_with_a_word(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the padding token is an ordinary token, which occurs in texts.

    An ordinary token is harmless in this process, because padding is masked. After the tokenizer is saved and loaded
    again, the token would be a special token, and tokenization would split texts at it.

    Args:
        tokenizer: Tokenizer with a padding token.
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
            f"The tokenizer of '{backbone.path}' has token ids up to {max(too_large.values())}, but the model has "
            f"embeddings for {rows} tokens (vocab_size), and none for {', '.join(map(repr, unusable[:3]))}"
            f"{' and others' if len(unusable) > 3 else ''}. Use the original tokenizer of the model, or enlarge the "
            "model with resize_token_embeddings() of transformers and save both."
        )


def _check_weights(folder: Path, config: PretrainedConfig) -> None:
    shapes = weight_shapes(folder)
    if getattr(config, "quantization_config", None) is None:  # the shapes of packed weights are different
        check_fit(folder, config, shapes)


def _check_size(backbone: BackboneConfig, config: PretrainedConfig) -> None:
    """Refuse weights that hold less than half of the parameters in the configuration.

    transformers would first allocate the missing parameters and fill them with random numbers.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    stated = sum(weight.numel() for weight in backbone_without_weights(backbone).parameters())
    held = sum(math.prod(shape) for shape in weight_shapes(Path(backbone.path)).values())
    if stated > 2 * held:
        raise ConfigError(
            f"The files of '{backbone.path}' do not match: config.json describes a decoder of {stated:,} parameters, "
            f"but the weights have {held:,} parameters. Download both again, from the same revision of the model."
        )


def load_backbone(backbone: BackboneConfig, extra: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """Load the decoder without its unembedding, in evaluation mode, with every weight as it was saved.

    Args:
        backbone: Model to load, with its options.
        extra: Keyword arguments of the fine-tuning method for ``from_pretrained``, for example to quantize the weights.

    Raises:
        ConfigError: If the model does not exist or is not in the local cache while the hub cannot be reached, if the
            weights are not in safetensors, if a weight is missing, left over, not finite or of the wrong shape, or if
            the implementation of attention is not available.
    """
    config = load_config(backbone)
    dtype = getattr(torch, backbone.dtype)
    attention = None if backbone.attention == "auto" else backbone.attention
    if backbone.random_weights:
        if extra:
            raise ConfigError(
                f"backbone.random_weights cannot be combined with a method that changes how weights are loaded: "
                f"{dict(extra)}. Choose another method, or leave random_weights out."
            )
        # Made on the CPU, whatever the device of the run is, so that a seed gives the same weights on every device.
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
                ignore_mismatched_sizes=True,  # _require_weights refuses and names them
                key_mapping=_WRAPPERS,
                **(extra or {}),
            )
            _require_weights(backbone, model, found)
    config.use_cache = False  # cached keys and values are never read
    if backbone.gradient_checkpointing:
        checkpoint_gradients(model)
    model.eval()
    return model


def _require_weights(backbone: BackboneConfig, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Refuse a model if not every weight was loaded as it was saved.

    Args:
        backbone: Model that was loaded, with its options.
        model: Loaded model.
        found: Loading report of ``from_pretrained`` (``output_loading_info=True``).

    Raises:
        ConfigError: If a weight is missing, left over, not finite or of the wrong shape.
    """
    start = f"Backbone '{backbone.path}' could not be loaded as it was saved: "
    end = "Download the weights and config.json again, from the same revision of the model."
    if found["mismatched_keys"]:
        name, saved, expected = min(found["mismatched_keys"])
        raise ConfigError(
            f"{start}{name} has the shape {tuple(saved)}, but config.json asks for {tuple(expected)} "
            f"({_count(found['mismatched_keys'])} with a wrong shape). {end}"
        )
    # embedlab does not use the output of a pooler, and masked language models are saved without a pooler.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ConfigError(f"{start}{_names(missing)} missing ({_count(missing)} in total). {end}")
    if found["error_msgs"]:
        raise ConfigError(f"{start}{_one_line(found['error_msgs'][0])}. {end}")
    prefix = f"{model.base_model_prefix}."
    parts = {name for name, _ in model.named_children()}
    unread = sorted(name for name in found["unexpected_keys"] if not _BUFFERS.search(name))
    left_over = [name for name in unread if name.startswith(prefix) or name.partition(".")[0] in parts]
    if left_over:
        raise ConfigError(f"{start}{_names(left_over)} left over: config.json describes no such part. {end}")
    heads = [name for name in unread if not _UNEMBEDDINGS.match(name)]
    if heads:
        _say(f"Backbone '{backbone.path}': {_names(heads)} not used, because the decoder has no such part.")
    # Without this, the model would be saved with the names that the wrappers gave to the weights.
    conversions: list[Any] = getattr(model, "_weight_conversions", None) or []
    own = [conversion for conversion in conversions if conversion.target_patterns == [""]]
    if own:
        model._weight_conversions = [conversion for conversion in conversions if conversion not in own]  # type: ignore[assignment]
        _say(
            f"The weights of '{backbone.path}' have an unexpected prefix (for example module. of DDP or _orig_mod. of "
            "torch.compile), which is removed from their names."
        )
    broken = next((name for name, weight in model.named_parameters() if not is_finite(weight)), None)
    if broken is not None:
        raise ConfigError(f"{start}{broken} holds values that are not finite (NaN or infinite). {end}")
    rows, size = getattr(model.get_input_embeddings(), "num_embeddings", None), _vocabulary_size(model.config)
    if rows is not None and rows < size:
        raise ConfigError(f"{start}it has embeddings for {rows} tokens, but config.json says vocab_size {size}. {end}")


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a tensor are finite.

    Always True for integers, for types of less than 2 bytes, and for tensors on the meta device.

    Args:
        tensor: Tensor of any shape.
    """
    if not tensor.is_floating_point() or tensor.itemsize < 2 or tensor.is_meta:
        return True
    return bool(torch.isfinite(tensor).all())


def fingerprint(model: PreTrainedModel) -> str:
    """Return hexadecimal digits that identify the weights of a backbone, computed from a sample of each weight.

    Args:
        model: Loaded model.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        values = weight.detach().flatten()
        values = values[:: max(1, len(values) // _SAMPLED)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(values.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _names(names: list[str]) -> str:
    """Return the first three names with a verb, for example "a and b are" or "a, b, c and 9 more are"."""
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
    """Turn on gradient checkpointing: the backward pass recomputes activations block by block.

    Args:
        model: Model to change.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # transformers also makes the output of the embeddings require a gradient, which only reentrant checkpointing needs.
    # Gradients would then flow through blocks that a method has frozen.
    model.disable_input_require_grads()


def backbone_without_weights(backbone: BackboneConfig) -> PreTrainedModel:
    """Build the decoder on the meta device, from its configuration alone: weights have shapes but no memory.

    Attention is eager, because only eager attention runs on the meta device for every family of models.

    Args:
        backbone: Model to build, with its options.

    Raises:
        ConfigError: If the model does not exist, or is not in the local cache while the hub cannot be reached.
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
    """Return whether attention keeps its matrices of scores for the backward pass.

    Args:
        backbone: Options of the model, with the implementation of attention.
        model: Model of the architecture in question; its weights are not read.
    """
    return backbone.attention == "eager" or (backbone.attention == "auto" and not model._supports_sdpa)


@contextmanager
def _loading(backbone: BackboneConfig) -> Iterator[dict[str, Any]]:
    """Yield the arguments of ``from_pretrained`` that say where to load from, and silence loading reports meanwhile.

    Args:
        backbone: Model to load, with its options.

    Raises:
        ConfigError: If anything goes wrong while the model is loaded.
    """
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
    except Exception as error:  # libraries raise errors of any class for a broken model
        if where.get("local_files_only") and isinstance(error, OSError | ValueError):
            raise ConfigError(
                f"Backbone '{backbone.path}' is not a folder and not in the local cache of the Hugging Face hub, and "
                "the hub could not be reached. Give a folder with a saved model, connect to the hub, or use "
                "'ladder:r0', which needs no network."
            ) from error
        reason = _one_line(error)
        if not (isinstance(error, OSError | ValueError | ImportError | RuntimeError) and reason):
            reason = f"{type(error).__name__} {reason}".strip()  # a message such as "'added_tokens'" explains nothing
        raise ConfigError(f"Backbone '{backbone.path}' could not be loaded: {reason}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()


@cache
def _hub_has(path: str, revision: str | None) -> bool:
    """Return whether the hub can be reached and has the model; False if the hub cannot be reached.

    The hub is asked once with a short timeout, because without a network the loading functions retry for most of a
    minute.

    Args:
        path: Id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub; None for the main branch.

    Raises:
        ConfigError: If the path is a file or a folder that does not exist, or if the hub has no such model.
    """
    if Path(path).is_file():
        raise ConfigError(f"Backbone '{path}' is a file. Give the folder that holds this file and config.json.")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(
            f"Backbone '{path}' is not a folder. Expected a folder with a saved model (config.json, "
            "model.safetensors, tokenizer.json), or an id on the Hugging Face hub, for example 'EleutherAI/pythia-70m'."
        )
    try:
        HfApi().model_info(path, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"The Hugging Face hub has no model '{path}' that you may read, and there is no such folder. Check the id "
            "or the path. For a gated model, log in with `hf auth login`."
        ) from error
    except Exception as error:  # the classes of network errors depend on the HTTP library of the hub's client
        logging.getLogger(__name__).warning("The Hugging Face hub did not answer (%s): using its local cache.", error)
        return False
    return True
