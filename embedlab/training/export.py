"""Exports a trained model as a Sentence-Transformers folder, so that other programs can use the model.

The folder has the layout that every Sentence-Transformers release since 2.0 reads.
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
_REPLACED = ".replaced"  # suffix of the old folder while an export replaces it


def export(
    checkpoint: Path,
    output: Path,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write a trained model as a Sentence-Transformers folder: merged weights, tokenizer, pooling, prompts, model card.

    ``SentenceTransformer(output).encode(text, prompt_name="query")`` gives the embeddings of training. The export
    verifies this: it loads the new folder and encodes some texts before the folder gets its final name.

    Args:
        checkpoint: Checkpoint of ``embedlab fit``, usually ``runs/…/checkpoints/last.ckpt``.
        output: Folder to write.
        overwrite: Whether to replace the output folder if it exists and holds an exported model.
        backbone: Folder or model id of the backbone, if the backbone has moved since training. Its weights must be
            unchanged. By default, the checkpoint says where the backbone is.
        trust_remote_code: Whether to run Python code from the backbone's repository.

    Raises:
        DataError: If the checkpoint was not written by ``embedlab fit``, or the exported folder does not encode as
            training does.
        ConfigError: If the output folder exists and may not be replaced, if it cannot be written, or if the backbone
            of the checkpoint cannot be found.
    """
    output = Path(os.path.abspath(output.expanduser()))  # noqa: PTH100  resolve() would follow links
    if not output.name:
        raise ConfigError(f"The output {output} is not the path of a folder that can be created. Choose another path.")
    replaced = output.with_name(output.name + _REPLACED)
    if replaced.exists() and not output.exists():  # an export was killed between its two renames
        replaced.rename(output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"The output {output} is a file. Choose another path for the folder to write.")
    if output.exists() and not overwrite:
        raise ConfigError(
            f"The output folder {output} exists already. Choose another folder, or replace it with --overwrite."
        )
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
            for weights in unfinished.glob("*.safetensors"):  # written with permissions for the owner alone
                weights.chmod((unfinished / "config.json").stat().st_mode)
            exported.save_pretrained(unfinished)
            _write_modules(unfinished, module, data, dimension=dimension)
            (unfinished / "README.md").write_text(model_card(saved, output.name), encoding="utf-8")
        proof.check(unfinished, trust_remote_code=trust_remote_code)
        with _writing(output):
            _put(unfinished, output, replaced)
    print(f"Exported the model to {output}. Open it with SentenceTransformer('{output}').")


@contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside the output that no other export writes to, and remove its remains afterward."""
    folder = output.with_name(output.name + UNFINISHED)
    with locked_folder(folder, owner="export"):
        for path in folder.iterdir():  # left by an export that was killed
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
    """Turn the different errors that four libraries raise for an output that cannot be written into one error."""
    try:
        yield
    except EmbedLabError:
        raise
    except Exception as error:  # safetensors and tokenizers have exception classes of their own for a full disk
        raise cannot_write(output, error) from error


def _put(unfinished: Path, output: Path, replaced: Path) -> None:
    """Move a finished folder to its final path.

    If the process is killed meanwhile, either the old folder or the new folder is at ``output``, or the old folder is
    at ``replaced``.
    """
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
    """Build the model of a checkpoint of ``embedlab fit``, with its trained weights.

    Nothing in the checkpoint is executed. The checkpoint is read as plain tensors and values, each of which is checked.
    Its method comes from the registry, and code of a model repository runs only if the caller allows it.

    Args:
        checkpoint: Path of the checkpoint file.
        backbone: Folder or model id of the backbone, if the backbone has moved since training. Its weights must be
            unchanged. By default, the checkpoint says where the backbone is.
        trust_remote_code: Whether to run Python code from the backbone's repository.

    Returns:
        The module in evaluation mode, and the contents of the checkpoint.

    Raises:
        DataError: If the file does not exist or was not written by ``embedlab fit``.
        ConfigError: If the backbone or the method cannot be found, or the backbone's weights are not those that the
            checkpoint was trained on.
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
            f"{checkpoint} was trained on the backbone in {config.path}, but there is no such folder. Give the "
            "backbone's new place with --backbone PATH."
        )
    module = EmbeddingModule(
        backbone=replace(config, trust_remote_code=trust_remote_code, attention="auto"),
        method=method,
        pooling=pooling,
        seed=seed,
    )
    module.configure_model()
    # The loss and its temperature, which may have been trained too, are not part of the model.
    state = saved["state_dict"]
    saved["state_dict"] = {name: value for name, value in state.items() if str(name).startswith("encoder.")}
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"], strict=False)
    return module.eval(), saved


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """Add the checkpoint's path to errors about its values, which anyone may have written."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{checkpoint} is not a checkpoint as `embedlab fit` writes it: {error}.") from error


def _options(kind: type, values: object, checkpoint: Path, name: str) -> dict[str, Any]:
    """Return the arguments of a class from a checkpoint, once each has the type that the class expects."""
    if not isinstance(values, dict):
        raise DataError(f"its {name} is {values!r:.100}")
    try:
        return arguments_of(kind, values, checkpoint, prefix=f"{name}.")
    except RecordError as error:
        raise DataError("its " + str(error).removeprefix(f"{checkpoint}: ").removesuffix(".")) from error


def _method(config: object, checkpoint: Path) -> FineTuningMethod:
    """Return the registered method that a checkpoint names, with the checkpoint's options.

    Only the class name in the checkpoint is looked up in the registry. The module in its class path is not imported.
    """
    if not isinstance(config, dict) or not isinstance(config.get("class_path"), str):
        raise DataError(f"its method is {config!r:.100}")
    cls = method_class(config["class_path"].rpartition(".")[2])
    options = _options(cls, config.get("init_args") or {}, checkpoint, "method")
    try:
        return cls(**options)
    except EmbedLabError:
        raise
    except Exception as error:  # the method and the options may come from third parties, so anything may be raised
        raise DataError(
            f"its method {cls.__name__} does not accept the options {options!r:.100} ({error!s:.200})"
        ) from error


def _checked_data(checkpoint: Path, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's data configuration, once every value that an exported folder shows has the right type."""
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
    """Return the prompts of training by name: ``query`` and ``document`` are the prompts of the first source.

    Each further pair of prompts adds ``query-NAME`` and ``document-NAME``, where NAME is the name of its source. If an
    earlier source has this name already, NAME also contains the source's folder or a number.
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
    """Yield possible names of a source without end, the best name first."""
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
    """Return the README of an exported folder: the model's backbone, training, data and evaluation results."""
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
        "Maximum length of a text": f"{data['max_length']} tokens",
        "Pairs per step": data["batch_size"],
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
    """Return a value as the text of a table cell: on one line, with bars escaped, because a bar would end the cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _class_line(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return "SymmetricInfoNCE"
    options = ", ".join(f"{key}={value}" for key, value in (config.get("init_args") or {}).items())
    return f"{config['class_path'].rsplit('.', 1)[-1]}({options})"
