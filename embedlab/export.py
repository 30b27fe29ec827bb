"""A finished model as a Sentence-Transformers folder, so that it opens wherever embeddings are used today.

The folder is written in the layout that every Sentence-Transformers release since 2.0 reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from embedlab.backbone import BackboneConfig, load_tokenizer
from embedlab.checkpoint_file import read_checkpoint
from embedlab.errors import ConfigError, DataError
from embedlab.module import EmbeddingModule
from embedlab.pooling import PoolingMode
from embedlab.registry import method_class

_POOLING_KEYS: dict[PoolingMode, str] = {
    "mean": "pooling_mode_mean_tokens",
    "last_token": "pooling_mode_lasttoken",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}


def export(checkpoint: Path, output: Path, *, overwrite: bool = False, trust_remote_code: bool = False) -> None:
    """Writes a trained model as a Sentence-Transformers folder: merged weights, tokenizer, pooling, prompts, card.

    ``SentenceTransformer(output).encode(text, prompt_name="query")`` gives the embeddings of training.

    Args:
        checkpoint: a checkpoint of ``embedlab fit``, usually ``runs/…/checkpoints/last.ckpt``.
        output: the folder to write.
        overwrite: replace the folder if it is there and holds an exported model.
        trust_remote_code: run Python code from the backbone's repository.

    Raises:
        DataError: if the checkpoint is not one of ``embedlab fit``.
        ConfigError: if the folder is there, or the backbone that the checkpoint builds on is not.
    """
    if output.exists() and not overwrite:
        raise ConfigError(f"The output folder {output} exists. Choose another, or replace it with --overwrite.")
    if output.exists() and not (output / "modules.json").is_file():
        raise ConfigError(f"{output} holds no exported model, so --overwrite does not touch it. Choose another folder.")
    module, saved = restore(checkpoint, trust_remote_code=trust_remote_code)
    assert module.encoder is not None
    data = saved["run_config"]["data"]
    tokenizer = load_tokenizer(module.backbone_config)
    tokenizer.model_max_length = data["max_length"]
    dimension = module.encoder.dimension()
    model = module.method.merged(module.encoder.backbone)
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        model.save_pretrained(unfinished)
        for weights in unfinished.glob("*.safetensors"):  # written for nobody else to read
            weights.chmod((unfinished / "config.json").stat().st_mode)
        tokenizer.save_pretrained(unfinished)
        _write_modules(unfinished, module, data, dimension=dimension)
        (unfinished / "README.md").write_text(model_card(saved, output.name), encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        unfinished.rename(output)
    except OSError as error:
        raise DataError(f"{output} could not be written: {error}. Nothing of it was kept.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"Exported to {output}. Open it with SentenceTransformer('{output}').")


def restore(checkpoint: Path, *, trust_remote_code: bool = False) -> tuple[EmbeddingModule, dict[str, Any]]:
    """Builds the model that a checkpoint of ``embedlab fit`` holds, with its trained weights.

    Nothing in the checkpoint is executed: it is read as plain tensors and values, its method comes from the
    registry, and code of a model repository runs only if the caller says so.

    Args:
        checkpoint: the file.
        trust_remote_code: run Python code from the backbone's repository.

    Returns:
        The module in evaluation mode, and the checkpoint's contents.

    Raises:
        DataError: if there is no such file or it is no checkpoint of ``embedlab fit``.
        ConfigError: if its backbone or its method is not there.
    """
    saved = read_checkpoint(checkpoint)
    model = saved["run_config"]["model"]
    backbone = BackboneConfig(**model["backbone"])
    method = method_class(model["method"]["class_path"].rsplit(".", 1)[-1])
    module = EmbeddingModule(
        backbone=replace(backbone, trust_remote_code=trust_remote_code, attention="auto"),
        method=method(**(model["method"].get("init_args") or {})),
        pooling=model["pooling"],
        seed=model["seed"],
    )
    module.configure_model()
    # The loss and its temperature, which may have been trained too, are no part of the model.
    saved["state_dict"] = {name: value for name, value in saved["state_dict"].items() if name.startswith("encoder.")}
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"], strict=False)
    return module.eval(), saved


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

    Each further source with prompts of its own adds ``query-NAME`` and ``document-NAME``.
    """
    found: dict[str, str] = {"query": "", "document": ""}
    for number, source in enumerate(data["train"] or []):
        pair = {"query": source["query_prompt"], "document": source["document_prompt"]}
        if number == 0:
            found |= pair
        elif pair != {name: found[name] for name in pair}:
            label = source["name"] or Path(source["path"]).name.split(".")[0]
            found |= {f"{name}-{label}": text for name, text in pair.items()}
    return found


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
        f"| {source['path']} | {source['query']} | {source['positive']} | {source['negatives'] or '—'} |"
        for source in data["train"] or []
    ]
    metrics = [f"| {key} | {value:.4f} |" for key, value in saved["evaluation"].items()]
    facts = {
        "Backbone": model["backbone"]["path"],
        "Fine-tuning method": _class_line(model["method"]),
        "Loss": _class_line(model["loss"]),
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
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        "| data | query | document | hard negatives |",
        "|---|---|---|---|",
        *sources,
        "",
    ]
    if metrics:
        lines += ["## Evaluation", "", "| metric | value |", "|---|---|", *metrics, ""]
    return "\n".join(lines)


def _class_line(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return "SymmetricInfoNCE"
    options = ", ".join(f"{key}={value}" for key, value in (config.get("init_args") or {}).items())
    return f"{config['class_path'].rsplit('.', 1)[-1]}({options})"
