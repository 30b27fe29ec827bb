"""Checks the files of a saved model before loading, because libraries report broken files late, vaguely or never."""

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
    """Refuse a folder if no model can be built from its config.json.

    Args:
        folder: Folder with a saved model.

    Raises:
        ConfigError: If config.json is missing or broken or names no model_type, or if the folder holds only adapters.
    """
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"'{folder}' holds adapters (adapter_config.json), not a whole model. Merge the adapters into their "
            "backbone with merge_and_unload() of peft, save the result, and give the folder of the result."
        )
    if not _is_there(folder / "config.json"):
        gguf = next(folder.glob("*.gguf"), None)
        found = f" It holds {gguf.name}, but embedlab cannot read GGUF files." if gguf else ""
        raise ConfigError(
            f"'{folder}' holds no config.json.{found} Expected a folder written by save_pretrained() of transformers, "
            "with config.json, model.safetensors and tokenizer.json."
        )
    if not isinstance(_read_json(folder / "config.json").get("model_type"), str):
        raise ConfigError(
            f"{folder / 'config.json'} names no model_type, so no model can be built from it. Download the file again, "
            "or give a folder written by save_pretrained() of transformers."
        )


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer or with broken tokenizer files.

    Args:
        folder: Folder with a saved model.

    Raises:
        ConfigError: If the folder has no tokenizer, or if a file of the tokenizer is empty, unreadable, a git-lfs
            pointer or not valid JSON.
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
    """Return the error for a backbone without a tokenizer.

    Args:
        backbone: Path or id of the backbone.
    """
    return ConfigError(
        f"Backbone '{backbone}' has no tokenizer. Expected the files of a tokenizer beside config.json "
        "(tokenizer.json, vocab.json or a SentencePiece model). Save the tokenizer of the model there."
    )


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights in a folder by their names, read from the headers of the files.

    Args:
        folder: Folder with a saved model.

    Raises:
        ConfigError: If a file of weights is missing, empty, truncated, a git-lfs pointer, or not in safetensors.
    """
    if _is_there(folder / _WEIGHTS):
        return _shapes(folder / _WEIGHTS)
    if not _is_there(folder / _INDEX):
        raise _no_weights(folder)
    index = folder / _INDEX
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{index} has no weight_map from weights to files. Download it again.")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise ConfigError(
                f"{index} names the file '{name}'. Expected a file in the same folder. Download the index again."
            )
        if not _is_there(folder / name):
            raise ConfigError(f"{index} names the file '{name}', which is not there. Download this file, too.")
        shapes |= _shapes(folder / name)
    return shapes


def check_fit(folder: Path, config: PretrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that obviously do not match the configuration.

    transformers finds more differences, but only after it has filled a model of the stated size with random numbers.

    Args:
        folder: Folder with a saved model, for messages.
        config: Configuration of the model.
        shapes: Shapes of all weights by their names.

    Raises:
        ConfigError: If the size of the vocabulary differs, or if blocks are missing.
    """
    text = config.get_text_config()
    name = next((name for name in shapes if _EMBEDDING.search(name) and len(shapes[name]) == 2), None)
    rows = getattr(text, "vocab_size", None)
    if name is not None and rows is not None and shapes[name][0] != rows:
        raise ConfigError(
            f"{folder / 'config.json'} says vocab_size {rows}, but the weight {name} has {shapes[name][0]} rows. "
            "Download config.json and the weights again, from the same revision of the model."
        )
    numbered = [int(found.group(1)) for found in map(_NUMBER.search, shapes) if found]
    blocks = getattr(text, "num_hidden_layers", None)
    if numbered and isinstance(blocks, int) and max(numbered) + 1 < blocks:
        last = max(numbered) + 1
        of_last = next(name for name in shapes if (found := _NUMBER.search(name)) and int(found.group(1)) == last - 1)
        first_missing = of_last.replace(f"{last - 1}.", f"{last}.", 1)
        raise ConfigError(
            f"{folder / 'config.json'} says that the model has {blocks} blocks, but its weights end with block "
            f"{last - 1}: {first_missing} and others are missing. Download config.json and the weights again, from the "
            "same revision of the model."
        )


def _no_weights(folder: Path) -> ConfigError:
    parts = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if parts:
        return ConfigError(
            f"'{folder}' holds {parts[0]}, but neither {_WEIGHTS} nor {_INDEX}. Download the whole model, "
            "with the index."
        )
    if pickles:
        return ConfigError(
            f"'{folder}' holds its weights as {pickles[0]}, a format that can run code when it is loaded. embedlab "
            "reads only safetensors. If you trust the author, convert the weights with "
            "AutoModel.from_pretrained(…).save_pretrained(…)."
        )
    other = next(
        (path.name for pattern in ("*.gguf", "*.h5", "*.msgpack", "*.pt") for path in folder.glob(pattern)), ""
    )
    instead = f" It holds {other}, which embedlab cannot read." if other else ""
    return ConfigError(f"'{folder}' holds no weights.{instead} Expected {_WEIGHTS}, or several files with {_INDEX}.")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    _begin(file)
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is cut off or damaged ({reason}). Download it again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    _begin(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(
            f"{path} is not valid JSON ({reason}): it is cut off or damaged. Download it again."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds a JSON {type(content).__name__}. Expected a JSON object. Download the file again."
        )
    return content


def _begin(path: Path) -> None:
    """Refuse a file that is empty, unreadable or a git-lfs pointer.

    Raises:
        ConfigError: If the file is empty, cannot be read, or only points to its content in git-lfs.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}. Check its permissions, or download it again."
        ) from error
    if start == _POINTER:
        raise ConfigError(
            f"{path} is a git-lfs pointer, not the file itself. Download the file with `git lfs install && git lfs "
            "pull` in its folder, or with `hf download`."
        )
    if not start:
        raise ConfigError(f"{path} is empty. Download it again.")


def _is_there(path: Path) -> bool:
    """Return whether a path is an existing file.

    Raises:
        ConfigError: If the path is a link to a missing file, as in an incomplete copy of the cache of the hub.
    """
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{path} is a link to {path.readlink()}, which is not there. Download the model again.")
    return path.is_file()
