"""The options that a recipe may copy from the configuration of a run, so that no recipe can run code of a stranger.

The folder of a run may come from a stranger, and a configuration of ``embedlab fit`` can name code to run, for example
by the import path of a class. This module therefore lists every option that a recipe may contain; all other options
are left out. A class is written by its name without a module, which finds only classes that embedlab or an installed
method has registered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from embedlab.errors import RecordError, plain_text
from embedlab.records.stored import Pattern, Range, fields_of, read_bytes, without_fields, wrong_field

_MOST_BYTES = 2**18  # of a configuration
_MOST_ARGUMENTS = 1_000  # entries of a list
_LONGEST_ARGUMENT = 1_000  # characters

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")  # words with a meaning to the parser, so no names of options
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_WORD = re.compile(r"[A-Za-z0-9_+-]{0,100}")  # cannot be a path, a module or YAML syntax
_Word = Annotated[str, Pattern(_WORD.pattern, "letters, digits, '_', '+' and '-'")]
_Devices = Annotated[str, Pattern(r"auto|-?[0-9]{1,5}(,[0-9]{1,5}){0,100}", "'auto' or numbers with commas")]
_Duration = Annotated[str, Pattern(r"[0-9]{1,5}(:[0-9]{1,5}){3}", "days:hours:minutes:seconds")]
_Path = Annotated[str, Pattern(r"[^\x00]{1,4096}", "1 to 4096 characters")]
_Count = Annotated[int, Range(0)]
_CountFromOne = Annotated[int, Range(1)]
_CountOrAll = Annotated[int, Range(-1)]
_Share = Annotated[float, Range(0)]


@dataclass(frozen=True, kw_only=True)
class _Trainer:
    accelerator: _Word | None = None
    strategy: _Word | None = None
    devices: int | _Devices | list[int] | None = None
    num_nodes: _CountFromOne | None = None
    precision: _Word | int | None = None
    logger: bool | None = None
    fast_dev_run: bool | int | None = None
    max_epochs: _CountOrAll | None = None
    min_epochs: _Count | None = None
    max_steps: _CountOrAll | None = None
    min_steps: _Count | None = None
    max_time: _Duration | None = None
    limit_train_batches: _Share | None = None
    limit_val_batches: _Share | None = None
    limit_test_batches: _Share | None = None
    limit_predict_batches: _Share | None = None
    overfit_batches: _Share | None = None
    val_check_interval: _Share | None = None
    check_val_every_n_epoch: _CountFromOne | None = None
    num_sanity_val_steps: _CountOrAll | None = None
    log_every_n_steps: _Count | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: _CountFromOne | None = None
    gradient_clip_val: _Share | None = None
    gradient_clip_algorithm: _Word | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool | None = None
    use_distributed_sampler: bool | None = None
    detect_anomaly: bool | None = None
    barebones: bool | None = None
    sync_batchnorm: bool | None = None
    reload_dataloaders_every_n_epochs: _Count | None = None
    enable_autolog_hparams: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Backbone:
    path: _Path
    revision: str | None = None
    dtype: _Word | None = None
    attention: _Word | None = None
    attention_direction: _Word | None = None
    gradient_checkpointing: bool | None = None
    random_weights: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Optimizer:
    learning_rate: _Share | None = None
    weight_decay: _Share | None = None
    decay_vectors: bool | None = None
    betas: list[_Share] | None = None
    eps: _Share | None = None
    clip: _Share | None = None
    states: _Word | None = None


@dataclass(frozen=True, kw_only=True)
class _Model:
    backbone: _Backbone
    method: Any
    loss: Any = None
    pooling: _Word | None = None
    optimizer: _Optimizer | None = None
    schedule: Any = None
    recompute: _Word | None = None


@dataclass(frozen=True, kw_only=True)
class _PairSource:
    path: _Path
    query: str | list[str] | None = None
    positive: str | list[str] | None = None
    negatives: str | list[str | list[str]] | None = None
    split_key: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    weight: _Share | None = None
    name: str | None = None
    hub_config: str | None = None
    hub_split: str | None = None
    on_error: _Word | None = None
    max_rows: _CountFromOne | None = None
    quoting: _Word | None = None


@dataclass(frozen=True, kw_only=True)
class _RetrievalFiles:
    corpus: _Path
    queries: _Path
    qrels: _Path
    name: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    corpus_text: str | list[str] | None = None
    corpus_id: str | None = None
    query_text: str | list[str] | None = None
    query_id: str | None = None
    on_error: _Word | None = None
    quoting: _Word | None = None


@dataclass(frozen=True, kw_only=True)
class _StsFile:
    path: _Path
    sentence1: str | None = None
    sentence2: str | None = None
    score: str | None = None
    name: str | None = None
    prompt: str | None = None
    on_error: _Word | None = None
    quoting: _Word | None = None


@dataclass(frozen=True, kw_only=True)
class _TextFile:
    path: _Path
    column: str | list[str] | None = None
    prompt: str | None = None
    on_error: _Word | None = None
    quoting: _Word | None = None


@dataclass(frozen=True, kw_only=True)
class _Data:
    train: list[_PairSource]
    batch_size: _CountFromOne | None = None
    max_length: _CountFromOne | None = None
    validation_fraction: _Share | None = None
    candidates: _CountFromOne | None = None
    test_fraction: _Share | None = None
    retrieval: list[_RetrievalFiles] | None = None
    sts: list[_StsFile] | None = None
    predict: _TextFile | None = None
    tokens_per_chunk: _CountFromOne | None = None
    max_padding: _Share | None = None
    num_workers: _Count | None = None
    cache: _Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    every_n_steps: _CountFromOne | None = None
    every_minutes: _Share | None = None
    monitor: str | None = None
    mode: _Word | None = None
    keep_previous: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Record:
    evaluation_set: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The options of ``embedlab fit`` that a recipe may copy; budget, output and start of the run are its own."""

    model: _Model
    data: _Data
    trainer: _Trainer | None = None
    seed_everything: bool | _Count | None = None
    allow_repeat: bool | None = None
    checkpoint: _Checkpoint | None = None
    record: _Record | None = None


_OF_THE_RUN = ("budget", "output", "ckpt_path", "branch", "weights_only", "accept_changes")
_SHIPPED = {"loss": ("", "embedlab", "embedlab.losses"), "schedule": ("", "embedlab", "embedlab.training.schedule")}


def options_of_run(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the options that a recipe may copy from a run's configuration, and the names of the options left out.

    Args:
        folder: Folder of the run, with the file ``config.yaml``.

    Raises:
        RecordError: If there is no configuration, or if ``embedlab fit`` did not write the configuration.
    """
    path = folder / "config.yaml"
    values = {name: value for name, value in _read(path).items() if name not in _OF_THE_RUN}
    left_out: list[str] = []
    config = _taken(_Fit, values, path, left_out)
    model = config["model"]
    for name in ("method", "loss", "schedule"):
        if model.get(name) is not None or name == "method":
            model[name] = _by_name(name, model[name], path, left_out)
    if not config["data"]["train"]:
        raise wrong_field(path, "data.train", [], "at least one source of pairs")
    return config, left_out


def _taken(kind: type, values: dict[str, Any], path: Path, left_out: list[str], prefix: str = "") -> dict[str, Any]:
    """Return the options for which a dataclass has fields, and append the names of all other options to ``left_out``.

    Other options whose values are empty, null or false change nothing, so their names are not appended.

    Args:
        kind: Dataclass whose fields are the allowed options.
        values: Options of the run's configuration.
        path: Path of the configuration, for messages.
        left_out: Names of options left out so far.
        prefix: Beginning of the dotted names of the options.

    Raises:
        RecordError: If a required option is missing, or a value does not fit its option.
    """
    known = fields_of(kind)
    if any(field.is_needed and name not in values for name, field in known.items()):
        raise without_fields(kind, values, path, prefix)
    found: dict[str, Any] = {}
    for name, value in values.items():
        place = prefix + plain_text(name)
        field = known.get(name)
        if field is None:
            left_out += [place] if value else []
        elif field.nested is not None and isinstance(value, dict):
            found[name] = _taken(field.nested, value, path, left_out, f"{place}.")
        elif field.nested_in_list is not None and isinstance(value, list) and len(value) <= _MOST_ARGUMENTS:
            found[name] = []
            for number, entry in enumerate(value):
                if not isinstance(entry, dict):
                    raise wrong_field(path, place, value, field.expected)
                found[name].append(_taken(field.nested_in_list, entry, path, left_out, f"{place}.{number}."))
        elif field.check(value):
            found[name] = value
        elif _names_code(value) and not field.is_needed:
            left_out.append(place)
        else:
            raise wrong_field(path, place, value, field.expected)
    return found


def _names_code(value: Any) -> bool:
    """Return whether a value names a class by its import path, for example a logger that the user wrote."""
    return any(
        (isinstance(one, dict) and "class_path" in one)
        or (isinstance(one, str) and _CLASS_PATH.fullmatch(one) is not None)
        for one in (value[:_MOST_ARGUMENTS] if isinstance(value, list) else [value])
    )


def _read(path: Path) -> dict[str, Any]:
    content = read_bytes(path, most=_MOST_BYTES)
    try:
        values = yaml.load(content, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: invalid dates and numbers
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else plain_text(error, longest=300)
        raise RecordError(f"{plain_text(path, longest=None)} cannot be read as a configuration: {reason}.") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RecordError(
            f"{plain_text(path, longest=None)} cannot be read as a configuration. Expected a file that `embedlab fit` "
            "wrote."
        )
    return values


class _PlainLoader(yaml.SafeLoader):
    """A YAML loader that refuses merge keys and aliases of texts.

    Nested merge keys and aliases can fill any amount of memory. No configuration that embedlab wrote has them, because
    the writer makes aliases of lists only.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and raise an error for an alias of a text."""
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "it repeats a text by an alias", node.start_mark)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Raise an error for the merge key ``<<``, because the base class would copy the merged content."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "it has a merge key ('<<')", key.start_mark)
        super().flatten_mapping(node)


def _by_name(kind: str, value: Any, path: Path, left_out: list[str]) -> Any:
    """Return a class by its name without a module, with the arguments that have plain values.

    Args:
        kind: Option of the model that takes the class: "method", "loss" or "schedule".
        value: Value of the option in the run's configuration.
        path: Path of the configuration, for messages.
        left_out: Names of options left out so far; names are appended.

    Returns:
        Value for the recipe, or None if the class is left out.

    Raises:
        RecordError: If the value is not a class with arguments.
    """
    written = {"class_path": value} if isinstance(value, str) else value
    class_path = written.get("class_path") if isinstance(written, dict) else None
    module, _, name = class_path.rpartition(".") if isinstance(class_path, str) else ("", "", "")
    if not _IDENTIFIER.fullmatch(name):
        raise wrong_field(path, f"model.{kind}", value, "a class with its arguments")
    if kind != "method" and module not in _SHIPPED[kind]:
        left_out.append(f"model.{kind}")
        return None
    arguments = written.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise wrong_field(path, f"model.{kind}.init_args", arguments, "an object with arguments")
    left_out += [
        f"model.{kind}.{plain_text(one)}" for one in written if one not in ("class_path", "init_args") and written[one]
    ]
    words = kind == "method" and _is_of_embedlab(name)
    kept = {}
    for option, argument in arguments.items():
        is_name = isinstance(option, str) and _IDENTIFIER.fullmatch(option) and option not in _OF_A_CLASS
        if is_name and _is_plain(argument, any_text=words):
            kept[option] = argument
        else:
            left_out.append(f"model.{kind}.{plain_text(option)}")
    return {"class_path": name, "init_args": kept} if kept else {"class_path": name}


def _is_of_embedlab(method: str) -> bool:
    """Return whether a method is built in; texts among its options then name layers and never code."""
    points = entry_points(group="embedlab.methods", name=method)
    return bool(points) and all(point.value.startswith("embedlab_methods.") for point in points)


def _is_plain(value: Any, *, any_text: bool) -> bool:
    entries = value if isinstance(value, list) else [value]
    return len(entries) <= _MOST_ARGUMENTS and all(
        one is None
        or isinstance(one, bool | int | float)
        or (isinstance(one, str) and (len(one) <= _LONGEST_ARGUMENT if any_text else _WORD.fullmatch(one) is not None))
        for one in entries
    )
