"""An exported model opens in Sentence-Transformers and gives the embeddings of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from embedlab.backbone import BackboneConfig, load_tokenizer
from embedlab.chunking import Chunk
from embedlab.cli import main
from embedlab.export import restore
from embedlab.registry import discover
from runs import error_of, fit, write_config

TEXTS = ["a", "two words", "the same text with many more words in it than the others", "one, two; three"]


def embeddings_of_training(checkpoint: Path) -> np.ndarray:
    """Each text alone: nothing is padded."""
    module, saved = restore(checkpoint)
    assert module.encoder is not None
    tokenizer = load_tokenizer(BackboneConfig(path=saved["run_config"]["model"]["backbone"]["path"]))
    rows = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=32).input_ids])
        with torch.no_grad():
            rows.append(module.encoder(Chunk(ids, torch.ones_like(ids), torch.zeros(1, dtype=torch.int64))))
    return torch.cat(rows).numpy()


def export(tmp_path: Path) -> Path:
    checkpoint, output = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "model"
    main(["export", "--checkpoint", str(checkpoint), "--output", str(output)])
    return output


@pytest.mark.parametrize("pooling", ["mean", "last_token", "weighted_mean"])
@pytest.mark.parametrize("method", sorted(discover()))
def test_sentence_transformers_gives_the_embeddings_of_training(tmp_path: Path, method: str, pooling: str) -> None:
    fit(write_config(tmp_path, method=method), "--model.pooling", pooling, "--trainer.max_steps", "4")
    opened = SentenceTransformer(str(export(tmp_path)), device="cpu")
    expected = embeddings_of_training(tmp_path / "run" / "checkpoints" / "last.ckpt")
    np.testing.assert_allclose(opened.encode(TEXTS), expected, atol=1e-5)
    assert opened.max_seq_length == 32


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_bidirectional_attention_is_exported(tmp_path: Path, family: str) -> None:
    config = write_config(tmp_path, family=family)
    fit(config, "--model.backbone.attention_direction", "bidirectional", "--trainer.max_steps", "2")
    opened = SentenceTransformer(str(export(tmp_path)), device="cpu")
    expected = embeddings_of_training(tmp_path / "run" / "checkpoints" / "last.ckpt")
    np.testing.assert_allclose(opened.encode(TEXTS), expected, atol=1e-5)
    one = opened.encode(TEXTS[2])  # unpadded: attention falls back on the model's own direction
    np.testing.assert_allclose(one, expected[2], atol=1e-5)


def test_prompts_and_the_card_are_exported(tmp_path: Path) -> None:
    source = {"path": str(tmp_path / "pairs.jsonl"), "query_prompt": "query: ", "document_prompt": "passage: "}
    config = write_config(tmp_path, train=[source], validation_fraction=0.3)
    fit(config, "--model.method", "LoRA", "--trainer.max_steps", "2")
    folder = export(tmp_path)
    opened = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(
        opened.encode(TEXTS, prompt_name="query"), opened.encode([f"query: {text}" for text in TEXTS]), atol=1e-6
    )
    assert opened.prompts["document"] == "passage: "
    card = (folder / "README.md").read_text()
    for part in ("sentence-transformers", "LoRA(rank=32", "pairs.jsonl", "validation/pairs/mrr@10", "SymmetricInfoNCE"):
        assert part in card
    assert load_file(folder / "model.safetensors").keys()
    assert not any("lora" in name for name in load_file(folder / "model.safetensors"))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt_neox"


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(write_config(tmp_path), "--trainer.max_steps", "1")
    folder = export(tmp_path)
    (folder / "mine.txt").write_text("precious")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    command = ["export", "--checkpoint", str(checkpoint), "--output", str(folder)]
    assert "exists" in error_of(capsys, command) and (folder / "mine.txt").exists()
    main([*command, "--overwrite", "true"])
    assert not (folder / "mine.txt").exists() and (folder / "model.safetensors").exists()
    (folder / "modules.json").unlink()
    assert "holds no exported model" in error_of(capsys, [*command, "--overwrite", "true"])


def test_adapters_on_random_weights_are_exported_on_the_same_weights(tmp_path: Path) -> None:
    config = write_config(tmp_path, method="LoRA", validation_fraction=0.3)
    fit(config, "--model.backbone.random_weights", "true", "--trainer.max_steps", "2", "--seed_everything", "7")
    module, saved = restore(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert module.seed == 7
    again = tmp_path / "again"
    export(tmp_path)
    fit(config, "--model.backbone.random_weights", "true", "--trainer.max_steps", "2", "--seed_everything", "7",
        "--output", str(again))  # fmt: skip
    evaluation = torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)["evaluation"]
    assert evaluation == saved["evaluation"]
    opened = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(
        opened.encode(TEXTS), embeddings_of_training(again / "checkpoints" / "last.ckpt"), atol=1e-5
    )


def test_a_checkpoint_cannot_turn_remote_code_on(tmp_path: Path) -> None:
    fit(write_config(tmp_path), "--model.backbone.trust_remote_code", "true", "--trainer.max_steps", "1")
    module, _ = restore(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert module.backbone_config.trust_remote_code is False


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "model")]
    assert "There is no checkpoint" in error_of(capsys, ["export", "--checkpoint", str(tmp_path / "x.ckpt"), *output])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert "could not be read" in error_of(capsys, ["export", "--checkpoint", str(tmp_path / "text.ckpt"), *output])
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    printed = error_of(capsys, ["export", "--checkpoint", str(tmp_path / "other.ckpt"), *output])
    assert "was not written by `embedlab fit`" in printed


def test_no_code_from_a_checkpoint_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",)

    torch.save({"run_config": Attack()}, tmp_path / "attack.ckpt")
    command = ["export", "--checkpoint", str(tmp_path / "attack.ckpt"), "--output", str(tmp_path / "model")]
    assert "could not be read" in error_of(capsys, command)
    assert not (tmp_path / "ran").exists()
