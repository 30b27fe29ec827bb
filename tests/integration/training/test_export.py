"""An exported model opens in Sentence-Transformers and gives the embeddings of training."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedlab_methods.lora import LoRA
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from embedlab.cli.commands import main
from embedlab.errors import ConfigError, DataError, EmbedLabError
from embedlab.gradcache.chunking import Chunk
from embedlab.method.registry import MethodEntry, discover
from embedlab.model.backbone import BackboneConfig, load_tokenizer
from embedlab.testing.backbones import save_tiny_backbone
from embedlab.training.export import prompts, restore
from helpers.runs import OwnProcess, error_of, fit, write_config

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run by LoRA, whose base is not in its checkpoint; tests change copies only."""
    folder = tmp_path_factory.mktemp("run")
    fit(write_config(folder, method="LoRA"), "--trainer.max_steps", "2")
    return folder


def checkpoint_of(run: Path) -> Path:
    return run / "run" / "checkpoints" / "last.ckpt"


def test_sources_of_one_name_lose_no_prompt() -> None:
    sources = [
        {"path": f"data/{folder}/train.jsonl", "name": None, "query_prompt": f"{folder}: ", "document_prompt": ""}
        for folder in ("A", "B", "C", "C", "D")
    ]
    sources[3]["query_prompt"] = "again: "
    sources[4] |= {"query_prompt": "B: ", "name": "train"}  # as B: nothing to add
    found = prompts({"train": sources})
    assert found["query"] == "A: "
    assert [text for name, text in found.items() if name.startswith("query-")] == ["B: ", "C: ", "again: "]
    assert list(found) == [
        f"{kind}{name}" for name in ("", "-train", "-C-train", "-train-2") for kind in ("query", "document")
    ]


def save_backbone_without_special_tokens(folder: Path, **sizes: int) -> None:
    """Its token 0 is a letter that texts are full of."""
    save_tiny_backbone(folder, pad_token=False, **sizes)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("eos_token", "unk_token", "pad_token"):
        config.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = []
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["<pad>"] = vocabulary["<pad>"], vocabulary["e"]
    vocabulary["ex"] = len(vocabulary)
    tokenizer["model"]["merges"] = [["e", "x"]]  # not made where "e" is cut out as special
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("vocab_size", [128, 101], ids=["a row to spare", "none"])
def test_a_word_that_pads_stays_a_word(tmp_path: Path, vocab_size: int) -> None:
    config = write_config(tmp_path)
    save_backbone_without_special_tokens(tmp_path / "backbone", vocab_size=vocab_size)
    fit(config, "--trainer.max_steps", "1")
    folder = export(tmp_path)
    texts = ["express", "eexx", "e"]
    module, _ = restore(checkpoint_of(tmp_path))
    tokenizer = load_tokenizer(BackboneConfig(path=str(tmp_path / "backbone")))
    assert len(tokenizer) == 101
    opened = SentenceTransformer(str(folder), device="cpu")
    for text, embedding in zip(texts, opened.encode(texts), strict=True):  # padded to the longest
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            expected = module.encoder(Chunk(ids, torch.ones_like(ids), torch.zeros(1, dtype=torch.int64)))[0]
        np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-5)


def test_an_export_that_differs_from_training_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method whose merge forgets what was learned."""
    lora = type(restore(checkpoint_of(run))[0].method)
    monkeypatch.setattr(lora, "merged", lambda self, model: model.unload())
    folder = tmp_path / "model"
    with pytest.raises(DataError, match="does not encode as training does"):
        main_export(checkpoint_of(run), folder)
    assert list(tmp_path.iterdir()) == []


def main_export(checkpoint: Path, folder: Path, **options: Any) -> None:
    from embedlab.training.export import export as write

    write(checkpoint, folder, **options)


def test_a_full_disk_leaves_the_exported_folder_as_it_was(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    main_export(checkpoint_of(run), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = ["export", "--checkpoint", str(checkpoint_of(run)), "--output", str(folder), "--overwrite", "true"]
    process = OwnProcess([command], tmp_path / "printed", first=allow_little)
    process.start()
    printed = process.printed()
    assert process.exitcode == 2 and "Traceback" not in printed
    assert "cannot be written" in printed.splitlines()[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "printed"]


def allow_little() -> None:
    """No file above 20 kB, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_an_export_killed_between_its_renames_is_mended_by_the_next(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    main_export(checkpoint_of(run), folder)
    folder.rename(tmp_path / "model.replaced")
    (tmp_path / "model.unfinished" / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="exists"):
        main_export(checkpoint_of(run), folder)
    assert (folder / "modules.json").is_file()
    main_export(checkpoint_of(run), folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_output_that_cannot_be_a_folder_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output, expected in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "model", "cannot be written")):
        with pytest.raises(ConfigError, match=expected):
            main_export(checkpoint_of(run), output, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_backbone_that_has_moved_can_be_named(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    checkpoint = checkpoint_of(moved)
    saved = torch.load(checkpoint, weights_only=True)
    saved["run_config"]["model"]["backbone"]["path"] = str(tmp_path / "gone")
    torch.save(saved, checkpoint)
    with pytest.raises(ConfigError, match="--backbone PATH"):
        restore(checkpoint)
    assert restore(checkpoint, backbone=str(moved / "backbone"))[0].encoder is not None
    save_tiny_backbone(tmp_path / "other", "gpt_neox", num_hidden_layers=2, initializer_range=0.03)
    with pytest.raises(ConfigError, match="another backbone"):
        restore(checkpoint, backbone=str(tmp_path / "other"))


def test_a_run_does_not_depend_on_the_folder_it_was_started_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    fit(config, "--model.backbone.path", "backbone", "--trainer.max_steps", "1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = tmp_path / "run" / "config.yaml"
    fit(again, "--ckpt_path", "last", "--trainer.max_steps", "2")
    assert (export(tmp_path) / "model.safetensors").is_file()


def replaced(saved: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The contents of a checkpoint with one value replaced."""
    *folders, last = path.split("/")
    place = saved
    for name in folders:
        place = place[name]
    place[last] = value
    return saved


WEIGHT = "state_dict/encoder.backbone.base_model.model.layers.0.attention.dense.lora_A.default.weight"
HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    f"{path} = {value!r:.20}": lambda saved, path=path, value=value: replaced(saved, path, value)
    for path, values in {
        "run_config/model/backbone": [None, [], {}, {"path": 3}, {"path": "x", "other": 1}],
        "run_config/model/backbone/path": [7, None, "", "\0", "../" * 9],
        "run_config/model/backbone/dtype": ["int8", 3],
        "run_config/model/backbone/revision": [[1]],
        "run_config/model/backbone/random_weights": ["perhaps"],
        "run_config/model/method": [None, 3, "os.system", {"class_path": "os.system"}, {"class_path": 3}],
        "run_config/model/method/init_args": [3, {"rank": "many"}, {"rank": -1}, {"other": 1}],
        "run_config/model/method/init_args/targets": [{"class_path": "os.system"}, 3],
        "run_config/model/pooling": [None, "max", [1]],
        "run_config/model/seed": [None, "0", 1.5],
        "state_dict": [[], {"encoder.x": 3}, {3: 4}],
        WEIGHT: [None, "text", torch.zeros(3), torch.zeros(32, 32, dtype=torch.int64), torch.full((32, 32), torch.inf)],
        "flops": [3, {"algorithmic": "many"}],
    }.items()
    for value in values
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE)
def test_a_checkpoint_with_other_values_is_refused_in_one_line(run: Path, tmp_path: Path, change: str) -> None:
    saved = torch.load(checkpoint_of(run), weights_only=True)
    HOSTILE[change](saved)
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(EmbedLabError) as refusal:
        restore(tmp_path / "other.ckpt")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run_config/data", None),
        ("run_config/data/max_length", "32"),
        ("run_config/data/train", "pairs.jsonl"),
        ("run_config/data/train", [3]),
        ("run_config/data/train", [{"path": None}]),
        ("run_config/data/train", [{"path": "a", "query_prompt": 3}]),
        ("run_config/model/loss", 3),
        ("evaluation", {"a": "b"}),
        ("evaluation", [1]),
        ("global_step", "1"),
    ],
)
def test_what_an_export_tells_of_its_run_is_checked(run: Path, tmp_path: Path, path: str, value: object) -> None:
    torch.save(replaced(torch.load(checkpoint_of(run), weights_only=True), path, value), tmp_path / "other.ckpt")
    with pytest.raises(DataError, match=r"`embedlab fit`|evaluation is"):
        main_export(tmp_path / "other.ckpt", tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["other.ckpt"]


def test_no_option_of_a_method_imports_what_a_checkpoint_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithFunction(LoRA):
        def __init__(self, *, rank: int = 4, function: Callable[[], None] | None = None) -> None:
            super().__init__(rank=rank)

    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef function(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = MethodEntry("WithFunction", WithFunction, "test", None)
    monkeypatch.setattr("embedlab.method.registry.discover", lambda: {"WithFunction": entry})
    saved = torch.load(checkpoint_of(run), weights_only=True)
    for value in ("planted.function", {"class_path": "planted.function"}):
        method = {"class_path": "WithFunction", "init_args": {"rank": 4, "function": value}}
        torch.save(replaced(saved, "run_config/model/method", method), tmp_path / "other.ckpt")
        with pytest.raises(DataError, match="function"):
            restore(tmp_path / "other.ckpt")
    assert not (tmp_path / "ran").exists()
