"""A backbone loads with every weight as it was saved, or one line says what is wrong with its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    ViTConfig,
)

from embedlab.errors import ConfigError
from embedlab.model.backbone import (
    BackboneConfig,
    absolute_path,
    fingerprint,
    load_backbone,
    load_config,
    load_tokenizer,
    max_positions,
    pads_with_a_word,
)
from embedlab.testing.backbones import save_tiny_backbone, tiny_backbone

Weights = dict[str, torch.Tensor]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def load(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """In the order of a run."""
    backbone = BackboneConfig(path=str(folder))
    load_config(backbone)
    return load_tokenizer(backbone), load_backbone(backbone)


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(file).items()}
    save_file(change(weights), file, metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def save_in_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(weights)
    files = {name: f"model-0000{1 + (place >= 20)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: weights[n] for n in names if files[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def assert_same(left: PreTrainedModel, right: PreTrainedModel) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    assert all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


def test_the_decoder_of_a_language_model_is_loaded_whole(tmp_path: Path, family: str) -> None:
    plain = tiny_backbone(family)
    save_tiny_backbone(tmp_path, family)
    model = AutoModelForCausalLM.from_config(plain.config)
    getattr(model, model.base_model_prefix).load_state_dict(plain.state_dict())
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path)[1], plain)


WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both the other way": lambda name: f"_orig_mod.module.{name}",
    "compiled blocks": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('layers.1.', 'layers.1._checkpoint_wrapped_module.')}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_the_prefix_of_a_wrapper_is_stripped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrapper: str
) -> None:
    plain = tiny_backbone("gpt_neox")
    save_tiny_backbone(tmp_path)
    change_weights(tmp_path, lambda weights: {WRAPPED[wrapper](name): value for name, value in weights.items()})
    _, model = load(tmp_path)
    assert_same(model, plain)
    assert "unexpected prefix" in capsys.readouterr().out
    model.save_pretrained(tmp_path)  # as an export does
    assert_same(load(tmp_path)[1], plain)
    assert not capsys.readouterr().out


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: value for n, value in weights.items() if not any(part in n for part in parts)}


BIAS = "layers.1.attention.dense.bias"
WRONG_WEIGHTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "one is missing": (without(BIAS), rf"{BIAS} is missing \(1 weight"),
    "a block in the middle is missing": (without("layers.2."), r"layers.2.*and 9 more are missing \(12 weights"),
    "the last block is missing": (without("layers.3."), r"4 blocks, but its weights end with block 2: layers.3"),
    "a foreign prefix": (lambda w: {f"net.{name}": value for name, value in w.items()}, "embed_in.weight"),
    "another shape": (lambda w: w | {BIAS: torch.zeros(7)}, rf"{BIAS} has the shape \(7,\).*asks for \(32,\)"),
    "a block too many": (lambda w: w | {"layers.4.attention.dense.bias": torch.zeros(32)}, "layers.4.*left over"),
    "a part that no block has": (lambda w: w | {"layers.1.adapter.weight": torch.zeros(3)}, "adapter.*left over"),
    "NaN": (lambda w: w | {BIAS: torch.full((32,), float("nan"))}, rf"{BIAS} holds values that are not finite"),
    "infinite": (lambda w: w | {BIAS: torch.full((32,), float("inf"))}, rf"{BIAS} holds values that are not finite"),
    "other rows": (lambda w: w | {"embed_in.weight": torch.zeros(99, 32)}, "vocab_size 128, .* has 99 rows"),
}


@pytest.mark.parametrize("fault", WRONG_WEIGHTS)
def test_a_weight_that_is_not_the_saved_one_is_named(tmp_path: Path, fault: str) -> None:
    change, expected = WRONG_WEIGHTS[fault]
    save_tiny_backbone(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_no_family_loads_without_one_of_its_weights(tmp_path: Path, family: str) -> None:
    names = list(load_file(save_tiny_backbone(tmp_path, family) / "model.safetensors"))
    for name in names[:: len(names) // 5]:
        save_tiny_backbone(tmp_path, family)
        change_weights(tmp_path, without(name))
        with pytest.raises(ConfigError, match="missing"):
            load(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 64},
        {"hidden_size": 10**6},
        {"intermediate_size": 10**11},
        {"vocab_size": 10**9},
        {"vocab_size": 60},
        {"vocab_size": "128"},
        {"attention_bias": False},
        {"num_attention_heads": 0},
        {"model_type": "unheard-of"},
        {"model_type": None},
        {"model_type": "llama"},
        {"max_position_embeddings": "many"},
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    save_tiny_backbone(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path)
        max_positions(load_config(BackboneConfig(path=str(tmp_path))))
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_buffers_and_unembeddings_may_be_left_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_backbone(tmp_path)
    old = {"layers.0.attention.masked_bias": torch.ones(1), "layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}
    change_weights(tmp_path, lambda weights: weights | old | {"embed_out.weight": torch.ones(128, 32)})
    assert_same(load(tmp_path)[1], tiny_backbone("gpt_neox"))
    assert not capsys.readouterr().out
    change_weights(tmp_path, lambda weights: weights | {"value_head.weight": torch.ones(1, 32)})
    load(tmp_path)
    assert "value_head.weight is not used" in capsys.readouterr().out


def test_shards_load_and_each_is_needed(tmp_path: Path) -> None:
    save_tiny_backbone(tmp_path)
    save_in_shards(tmp_path)
    assert_same(load(tmp_path)[1], tiny_backbone("gpt_neox"))
    second = tmp_path / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:3000])
    with pytest.raises(ConfigError, match=r"00002.safetensors is cut off"):
        load(tmp_path)
    second.unlink()
    with pytest.raises(ConfigError, match=r"names the file '.*00002.safetensors', which is not there"):
        load(tmp_path)
    second.write_bytes(whole)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match="with the index"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../other.safetensors"}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    save_tiny_backbone(tmp_path)
    save_in_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"index\.json"):
        load(tmp_path)


FILES = ["config.json", "model.safetensors", "tokenizer.json"]
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a git-lfs pointer": (lambda file: file.write_text(LFS), "git-lfs pointer"),
    "empty": (lambda file: file.write_bytes(b""), "is empty"),
    "half a download": (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), "cut off"),
    "a page of HTML": (lambda file: file.write_text("<!DOCTYPE html><html>" + " " * 99), "cut off or damaged"),
    "a link to nothing": (lambda file: (file.unlink(), file.symlink_to("nowhere")), "which is not there"),
    "missing": (lambda file: file.unlink(), "holds no config.json|holds no weights|has no tokenizer"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_its_remedy(tmp_path: Path, file: str, damage: str) -> None:
    save_tiny_backbone(tmp_path)
    do, expected = DAMAGE[damage]
    do(tmp_path / file)
    with pytest.raises(ConfigError, match=expected) as refusal:
        load(tmp_path)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_damaged_files_are_refused_with_the_tokenizer(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty"):
        load_tokenizer(backbone)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "tf_model.h5"])
def test_weights_in_another_format_are_named(tmp_path: Path, name: str) -> None:
    save_tiny_backbone(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(ConfigError, match=name):
        load(tmp_path)


def test_adapters_alone_are_no_backbone(tmp_path: Path) -> None:
    save_tiny_backbone(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ConfigError, match="merge_and_unload"):
        load(tmp_path)


def test_a_tokenizer_of_a_class_without_files_is_no_tokenizer(tmp_path: Path) -> None:
    save_tiny_backbone(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ConfigError):
        load(tmp_path)


def test_tokens_without_a_row_of_the_embedding_are_named(tmp_path: Path) -> None:
    save_tiny_backbone(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([f"<new {number}>" for number in range(128 - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path)
    load(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<one too many>"]})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"ids up to 128.*embeddings for 128 tokens.*'<one too many>'"):
        load_tokenizer(BackboneConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (T5Config(vocab_size=128, d_model=16, d_ff=16, d_kv=4, num_layers=1, num_heads=2), "encoder-decoder"),
        (ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16), "vocab_size"),
    ],
    ids=["encoder-decoder", "vision"],
)
def test_what_is_no_decoder_is_refused(tmp_path: Path, config: Any, expected: str) -> None:
    save_tiny_backbone(tmp_path)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"{expected}.*decoder-only"):
        load_config(BackboneConfig(path=str(tmp_path)))


def test_a_file_is_no_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_backbone(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "m" / "model.safetensors"), "m/model.safetensors"):
        with pytest.raises(ConfigError, match="is a file"):
            load_config(BackboneConfig(path=path))


def test_random_weights_need_no_saved_ones(tmp_path: Path) -> None:
    save_tiny_backbone(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    backbone = BackboneConfig(path=str(tmp_path), random_weights=True)
    load_tokenizer(backbone)
    assert load_backbone(backbone).num_parameters() == tiny_backbone("gpt_neox").num_parameters()


def test_a_word_serves_as_padding_only_where_nothing_special_is_there(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path, pad_token=False)))
    tokenizer = load_tokenizer(backbone)
    assert tokenizer.pad_token == tokenizer.eos_token and not pads_with_a_word(tokenizer)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / file).read_text())
        for name in ("eos_token", "unk_token", "added_tokens"):
            content.pop(name, None)
        (tmp_path / file).write_text(json.dumps(content | ({"added_tokens": []} if file == "tokenizer.json" else {})))
    tokenizer = load_tokenizer(backbone)
    assert tokenizer.pad_token_id == 0 and pads_with_a_word(tokenizer)


def test_a_fingerprint_tells_weights_apart_and_nothing_else(tmp_path: Path) -> None:
    plain = tiny_backbone("gpt_neox")
    save_tiny_backbone(tmp_path)
    assert fingerprint(load(tmp_path)[1]) == fingerprint(plain)
    with torch.no_grad():
        plain.layers[1].attention.dense.bias += 1e-3
    assert fingerprint(load(tmp_path)[1]) != fingerprint(plain)


def test_a_folder_gets_its_whole_path_and_an_id_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_path("m") == absolute_path("~/m") == str(tmp_path / "m")
    assert absolute_path("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
