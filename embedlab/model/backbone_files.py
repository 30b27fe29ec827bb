"""Looks at the files of a saved model first, because libraries say of broken ones too little, too late or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from embedlab.errors import ConfigError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_JSON = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
_POINTER = b"version https://git-lfs"
_EMBEDDING = re.compile(r"(^|\.)(embed_in|embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$")
_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def check_configuration(folder: Path) -> None:
    """Refuse a folder whose config.json no model can be built from.

    Raises:
        ConfigError: If the file is missing, broken, or does not name the kind of model.
    """
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"'{folder}' holds adapters (adapter_config.json) and not a whole model. Merge them into their backbone "
            "with peft's merge_and_unload(), save the result, and give that folder."
        )
    if not _is_there(folder / "config.json"):
        gguf = next(folder.glob("*.gguf"), None)
        found = f" It holds {gguf.name}, and embedlab reads no GGUF." if gguf else ""
        raise ConfigError(
            f"'{folder}' holds no config.json.{found} Expected a folder that save_pretrained() of transformers wrote: "
            "config.json, model.safetensors, tokenizer.json."
        )
    if not isinstance(_read_json(folder / "config.json").get("model_type"), str):
        raise ConfigError(
            f"{folder / 'config.json'} names no model_type, so no model can be built from it. Fetch it again, or give "
            "a folder that save_pretrained() of transformers wrote."
        )


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer, or with a broken one.

    Raises:
        ConfigError: If that is so.
    """
    for name in _TOKENIZER_JSON:
        if _is_there(folder / name):
            _read_json(folder / name)
    found = [path for pattern in _TOKENIZERS for path in folder.glob(pattern)]
    if not found:
        raise no_tokenizer(str(folder))
    for path in found:
        _begin(path)


def no_tokenizer(backbone: str) -> ConfigError:
    """Return what to say of a backbone without a tokenizer."""
    return ConfigError(
        f"Backbone '{backbone}' has no tokenizer. Expected its files beside config.json (tokenizer.json, vocab.json or "
        "a SentencePiece model): save the tokenizer there that the model was trained with."
    )


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of a folder by their names, read from the files' headers.

    Raises:
        ConfigError: If a file is missing, a git-lfs pointer, empty, cut off, or not in safetensors.
    """
    if _is_there(folder / _WEIGHTS):
        return _shapes(folder / _WEIGHTS)
    if not _is_there(folder / _INDEX):
        raise _no_weights(folder)
    index = folder / _INDEX
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{index} has no weight_map from weights to files. Fetch it again.")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise ConfigError(f"{index} names the file '{name}', which is not a file of the same folder.")
        if not _is_there(folder / name):
            raise ConfigError(f"{index} names the file '{name}', which is not there. Fetch it too.")
        shapes |= _shapes(folder / name)
    return shapes


def check_fit(folder: Path, config: PretrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are plainly of another model than the configuration describes.

    transformers finds more, but later, and would first fill a model of the stated size with random numbers.

    Raises:
        ConfigError: If the vocabulary has another size, or blocks are missing.
    """
    text = config.get_text_config()
    name = next((name for name in shapes if _EMBEDDING.search(name) and len(shapes[name]) == 2), None)
    rows = getattr(text, "vocab_size", None)
    if name is not None and rows is not None and shapes[name][0] != rows:
        raise ConfigError(
            f"{folder / 'config.json'} says vocab_size {rows}, and the weight {name} has {shapes[name][0]} rows: they "
            "do not belong together. Fetch both again, from the same revision of the model."
        )
    numbered = [int(found.group(1)) for found in map(_NUMBER.search, shapes) if found]
    blocks = getattr(text, "num_hidden_layers", None)
    if numbered and isinstance(blocks, int) and max(numbered) + 1 < blocks:
        last = max(numbered) + 1
        of_last = next(name for name in shapes if (found := _NUMBER.search(name)) and int(found.group(1)) == last - 1)
        first_missing = of_last.replace(f"{last - 1}.", f"{last}.", 1)
        raise ConfigError(
            f"{folder / 'config.json'} says that the model has {blocks} blocks, and its weights end with block "
            f"{last - 1}: {first_missing} and others are missing. Fetch the weights again, or the config.json that "
            "belongs to them."
        )


def _no_weights(folder: Path) -> ConfigError:
    parts = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if parts:
        return ConfigError(
            f"'{folder}' holds {parts[0]} and neither {_WEIGHTS} nor {_INDEX}. Fetch the whole model, with the index."
        )
    if pickles:
        return ConfigError(
            f"'{folder}' holds its weights as {pickles[0]}, a format that can carry code. embedlab reads only "
            "safetensors: if you trust the author, convert them, AutoModel.from_pretrained(…).save_pretrained(…)."
        )
    other = next(
        (path.name for pattern in ("*.gguf", "*.h5", "*.msgpack", "*.pt") for path in folder.glob(pattern)), ""
    )
    instead = f" It holds {other}, which embedlab does not read." if other else ""
    return ConfigError(f"'{folder}' holds no weights.{instead} Expected {_WEIGHTS}, or several with {_INDEX}.")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    _begin(file)
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is cut off or damaged ({reason}). Fetch it again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    _begin(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{path} is no valid JSON ({reason}): it is cut off or damaged. Fetch it again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a JSON {type(content).__name__}, and an object was expected. Fetch it again.")
    return content


def _begin(path: Path) -> None:
    """Refuse a file that is no content but a stand-in for it."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    if start == _POINTER:
        raise ConfigError(
            f"{path} is a git-lfs pointer and not the file itself. Fetch that with `git lfs install && git lfs pull` "
            "in its folder, or with `hf download`."
        )
    if not start:
        raise ConfigError(f"{path} is empty. Fetch it again.")


def _is_there(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        ConfigError: If there is a link to a file that is not there, as in a half-copied cache of the hub.
    """
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{path} is a link to {path.readlink()}, which is not there. Fetch it again.")
    return path.is_file()
