"""A finished model as a Sentence-Transformers folder, so that it opens wherever embeddings are used today.

The folder is written in the layout that every Sentence-Transformers release since 2.0 reads.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import yaml

from embedlab.errors import ConfigError, DataError, EmbedLabError, RecordError
from embedlab.files import UNFINISHED, cannot_write, locked_folder, sync_folder
from embedlab.method import FineTuningMethod
from embedlab.method.registry import method_class
from embedlab.model.backbone import BackboneConfig, load_tokenizer
from embedlab.model.pooling import PoolingMode
from embedlab.records.stored import arguments_of
from embedlab.training.checkpoint_file import read_checkpoint
from embedlab.training.export_proof import ExportProof, with_padding_of_its_own
from embedlab.training.module import EmbeddingModule

_POOLING_KEYS: dict[PoolingMode, str] = {
    "mean": "pooling_mode_mean_tokens",
    "last_token": "pooling_mode_lasttoken",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}
_REPLACED = ".replaced"  # ending of the folder that an export takes the place of, while it does


def export(
    checkpoint: Path,
    output: Path,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Writes a trained model as a Sentence-Transformers folder: merged weights, tokenizer, pooling, prompts, card.

    ``SentenceTransformer(output).encode(text, prompt_name="query")`` gives the embeddings of training. That is
    checked: the folder is loaded again and encodes some texts before it takes its place.

    Args:
        checkpoint: a checkpoint of ``embedlab fit``, usually ``runs/…/checkpoints/last.ckpt``.
        output: the folder to write.
        overwrite: replace the folder if it is there and holds an exported model.
        backbone: Folder of the backbone, if it is no longer where the checkpoint says. It must be the same model.
        trust_remote_code: run Python code from the backbone's repository.

    Raises:
        DataError: if the checkpoint is not one of ``embedlab fit``, or the folder does not encode as training does.
        ConfigError: if the folder is there or cannot be written, or the backbone that the checkpoint builds on is
            not there.
    """
    output = Path(os.path.abspath(output.expanduser()))  # noqa: PTH100  resolve() would follow links
    if not output.name:
        raise ConfigError(f"The output {output} is no folder that can be made. Choose another.")
    replaced = output.with_name(output.name + _REPLACED)
    if replaced.exists() and not output.exists():  # an export was killed between its two renames
        replaced.rename(output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"The output {output} is a file. Choose another name for the folder to write.")
    if output.exists() and not overwrite:
        raise ConfigError(f"The output folder {output} exists. Choose another, or replace it with --overwrite.")
    if output.exists() and not (output / "modules.json").is_file():
        raise ConfigError(f"{output} holds no exported model, so --overwrite does not touch it. Choose another folder.")
    read_checkpoint(checkpoint)
    with _unfinished(output) as unfinished:
        module, saved = restore(checkpoint, backbone=backbone, trust_remote_code=trust_remote_code)
        data = _checked_data(checkpoint, saved)
        assert module.encoder is not None
        tokenizer = load_tokenizer(module.backbone_config)
        proof = ExportProof(module.encoder, tokenizer, prompts(data), max_length=data["max_length"])
        dimension = module.encoder.dimension()
        model = module.method.merged(module.encoder.backbone)
        exported = with_padding_of_its_own(load_tokenizer(module.backbone_config), model)
        exported.model_max_length = data["max_length"]
        with _writing(output):
            model.save_pretrained(unfinished)
            for weights in unfinished.glob("*.safetensors"):  # written for nobody else to read
                weights.chmod((unfinished / "config.json").stat().st_mode)
            exported.save_pretrained(unfinished)
            _write_modules(unfinished, module, data, dimension=dimension)
            (unfinished / "README.md").write_text(model_card(saved, output.name), encoding="utf-8")
        proof.check(unfinished, trust_remote_code=trust_remote_code)
        with _writing(output):
            _put(unfinished, output, replaced)
    print(f"Exported to {output}. Open it with SentenceTransformer('{output}').")


@contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """Yields an empty folder beside the output that no other export writes to, and removes what is left of it."""
    folder = output.with_name(output.name + UNFINISHED)
    with locked_folder(folder, owner="export"):
        for path in folder.iterdir():  # of one that was killed
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "export.lock":
                path.unlink(missing_ok=True)
        inner = folder / "model"
        try:
            with _writing(output):
                inner.mkdir()
            yield inner
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turns what four libraries raise where nothing can be written into one error."""
    try:
        yield
    except EmbedLabError:
        raise
    except Exception as error:  # safetensors and tokenizers have their own classes for a full disk
        raise cannot_write(output, error) from error


def _put(unfinished: Path, output: Path, replaced: Path) -> None:
    """Puts the whole folder in its place. A kill leaves the old one, the new one, or the old one as ``replaced``."""
    for path in sorted(unfinished.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(unfinished)
    if output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    try:
        unfinished.rename(output)
    except OSError:
        if replaced.exists():
            replaced.rename(output)
        raise
    sync_folder(output.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def restore(
    checkpoint: Path, *, backbone: str | None = None, trust_remote_code: bool = False
) -> tuple[EmbeddingModule, dict[str, Any]]:
    """Builds the model that a checkpoint of ``embedlab fit`` holds, with its trained weights.

    Nothing in the checkpoint is executed: it is read as plain tensors and values, each of which is checked, its
    method comes from the registry, and code of a model repository runs only if the caller says so.

    Args:
        checkpoint: the file.
        backbone: Folder or id of the backbone, in place of the one that the checkpoint names. It must be the same
            model.
        trust_remote_code: run Python code from the backbone's repository.

    Returns:
        The module in evaluation mode, and the checkpoint's contents.

    Raises:
        DataError: if there is no such file or it is no checkpoint of ``embedlab fit``.
        ConfigError: if its backbone or its method is not there, or the backbone is another model.
    """
    saved = read_checkpoint(checkpoint)
    model = saved["run_config"]["model"]
    with _reading(checkpoint):
        config = BackboneConfig(**_options(BackboneConfig, model.get("backbone"), checkpoint, "backbone"))
        pooling, seed = model.get("pooling"), model.get("seed")
        if pooling not in get_args(PoolingMode):
            raise DataError(f"its pooling is {pooling!r:.100}")
        if type(seed) is not int:
            raise DataError(f"its seed is {seed!r:.100}")
        method = _method(model.get("method"), checkpoint)
    if backbone is not None:
        config = replace(config, path=backbone)
    elif Path(config.path).is_absolute() and not Path(config.path).is_dir():
        raise ConfigError(
            f"{checkpoint} was trained on the backbone in {config.path}, and there is no such folder. Say where it is "
            "now with --backbone PATH."
        )
    module = EmbeddingModule(
        backbone=replace(config, trust_remote_code=trust_remote_code, attention="auto"),
        method=method,
        pooling=pooling,
        seed=seed,
    )
    module.configure_model()
    # The loss and its temperature, which may have been trained too, are no part of the model.
    state = saved["state_dict"]
    saved["state_dict"] = {name: value for name, value in state.items() if str(name).startswith("encoder.")}
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"], strict=False)
    return module.eval(), saved


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """Names the checkpoint in what is wrong with its values, which anyone may have written."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{checkpoint} is no checkpoint as `embedlab fit` writes it: {error}.") from error


def _options(kind: type, values: object, checkpoint: Path, name: str) -> dict[str, Any]:
    """Arguments of a class as a checkpoint holds them, when each has the type that the class asks for."""
    if not isinstance(values, dict):
        raise DataError(f"its {name} is {values!r:.100}")
    try:
        return arguments_of(kind, values, checkpoint, prefix=f"{name}.")
    except RecordError as error:
        raise DataError("its " + str(error).removeprefix(f"{checkpoint}: ").removesuffix(".")) from error


def _method(config: object, checkpoint: Path) -> FineTuningMethod:
    """The registered method of this name with options of its own signature; no module is imported for it."""
    if not isinstance(config, dict) or not isinstance(config.get("class_path"), str):
        raise DataError(f"its method is {config!r:.100}")
    cls = method_class(config["class_path"].rpartition(".")[2])
    options = _options(cls, config.get("init_args") or {}, checkpoint, "method")
    try:
        return cls(**options)
    except EmbedLabError:
        raise
    except Exception as error:  # a stranger's method, with a stranger's options
        raise DataError(f"its method {cls.__name__} takes no {options!r:.100} ({error!s:.200})") from error


def _checked_data(checkpoint: Path, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The run's data configuration, when all that is told of the run in an exported folder has its type."""
    with _reading(checkpoint):
        data = saved["run_config"].get("data")
        if not isinstance(data, dict):
            raise DataError(f"its data is {data!r:.100}")
        for name in ("max_length", "batch_size"):
            if type(data.get(name)) is not int or data[name] < 1:
                raise DataError(f"its data.{name} is {data.get(name)!r:.100}")
        sources = data.get("train")
        if not (sources is None or (isinstance(sources, list) and all(isinstance(one, dict) for one in sources))):
            raise DataError(f"its data.train is {sources!r:.100}")
        for source in sources or []:
            texts = (source.get("path"), source.get("query_prompt", ""), source.get("document_prompt", ""))
            if not all(isinstance(text, str) for text in texts) or not isinstance(source.get("name"), str | None):
                raise DataError(f"a source of its data.train is {source!r:.100}")
        evaluation = saved.get("evaluation", {})
        if not isinstance(evaluation, dict) or not all(isinstance(one, int | float) for one in evaluation.values()):
            raise DataError(f"its evaluation is {evaluation!r:.100}")
        for part in ("method", "loss"):
            config = saved["run_config"]["model"].get(part)
            named = isinstance(config, dict) and isinstance(config.get("class_path"), str)
            if config is not None and not (named and isinstance(config.get("init_args"), dict | None)):
                raise DataError(f"its {part} is {config!r:.100}")
        if type(saved.get("global_step")) is not int:
            raise DataError(f"its global_step is {saved.get('global_step')!r:.100}")
    return data


def _write_modules(folder: Path, module: EmbeddingModule, data: Mapping[str, Any], *, dimension: int) -> None:
    def write(name: str, content: object) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    write(
        "modules.json",
        [
            {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for idx, (path, kind) in enumerate(kinds)
        ],
    )
    write("sentence_bert_config.json", {"max_seq_length": data["max_length"], "do_lower_case": False})
    write(
        "1_Pooling/config.json",
        {"word_embedding_dimension": dimension}
        | {key: mode == module.pooling for mode, key in _POOLING_KEYS.items()}
        | {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False, "include_prompt": True},
    )
    (folder / "2_Normalize").mkdir()
    write(
        "config_sentence_transformers.json",
        {
            "__version__": {name: version(name) for name in ("embedlab", "transformers", "torch")},
            "prompts": prompts(data),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def prompts(data: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of training by name: ``query`` and ``document``, of the first source if sources differ.

    Each further pair of prompts adds ``query-NAME`` and ``document-NAME``. Of sources with the same name, the later
    ones are named after their folder too, or numbered.
    """
    found: dict[str, str] = {"query": "", "document": ""}
    pairs: list[tuple[str, str]] = []
    for source in data.get("train") or []:
        pair = (source.get("query_prompt", ""), source.get("document_prompt", ""))
        if pair in pairs:
            continue
        if not pairs:
            found = {"query": pair[0], "document": pair[1]}
        else:
            label = next(label for label in _labels(source) if f"query-{label}" not in found)
            found |= {f"query-{label}": pair[0], f"document-{label}": pair[1]}
        pairs.append(pair)
    return found


def _labels(source: Mapping[str, Any]) -> Iterator[str]:
    """Names for a source, the best first, without end."""
    path = Path(source["path"])
    name = source.get("name") or path.name.split(".")[0] or source["path"]
    yield name
    if path.parent.name:
        yield f"{path.parent.name}-{name}"
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def model_card(saved: Mapping[str, Any], name: str) -> str:
    """The README of an exported folder: what it was trained from, on what, how, and how well it does."""
    model, data = saved["run_config"]["model"], saved["run_config"]["data"]
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "embedlab"],
        "base_model": model["backbone"]["path"],
    }
    sources = [
        f"| {_cell(source['path'])} | {_cell(source.get('query'))} | {_cell(source.get('positive'))} | "
        f"{_cell(source.get('negatives') or '—')} |"
        for source in data.get("train") or []
    ]
    metrics = [f"| {_cell(key)} | {value:.4f} |" for key, value in saved.get("evaluation", {}).items()]
    facts = {
        "Backbone": model["backbone"]["path"],
        "Fine-tuning method": _class_line(model["method"]),
        "Loss": _class_line(model.get("loss")),
        "Pooling": model["pooling"],
        "Longest text": f"{data['max_length']} tokens",
        "Pairs a step": data["batch_size"],
        "Steps": saved["global_step"],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        f"# {name}",
        "",
        f"A text-embedding model trained with embedlab {version('embedlab')}.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{name}")',
        'queries = model.encode(["…"], prompt_name="query")',
        'documents = model.encode(["…"], prompt_name="document")',
        "```",
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        "",
        "| data | query | document | hard negatives |",
        "|---|---|---|---|",
        *sources,
        "",
    ]
    if metrics:
        lines += ["## Evaluation", "", "| metric | value |", "|---|---|", *metrics, ""]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """A value in a cell of a table: on one line, without a bar that would end the cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _class_line(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return "SymmetricInfoNCE"
    options = ", ".join(f"{key}={value}" for key, value in (config.get("init_args") or {}).items())
    return f"{config['class_path'].rsplit('.', 1)[-1]}({options})"
