"""Backbones and checkpoints with anything wrong in them load whole or are refused in one line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from embedlab.model.backbone import BackboneConfig, check_positions, load_backbone, load_config, load_tokenizer
from embedlab.testing.backbones import save_tiny_backbone, tiny_backbone
from embedlab.training.export import restore
from helpers.fuzzing import Fuzz
from helpers.runs import fit, write_config

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.sampled_from([0, 1, -1, 2, 64, 127, 128, 129]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "llama", "gpt2", "float16", "</s>", "..", "{}"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
PLACES = st.floats(0, 1, exclude_max=True)
BYTES = st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=4)
DAMAGES = st.one_of(
    st.tuples(st.just("remove"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("cut"), st.sampled_from(FILES), PLACES),
    st.tuples(st.just("extend"), st.sampled_from(FILES), st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("bytes"), st.sampled_from(FILES), BYTES),
    st.tuples(st.just("header"), st.just("model.safetensors"), BYTES),
    st.tuples(st.just("value"), st.sampled_from(FILES[:3]), st.tuples(PLACES, st.one_of(VALUES, st.just("DELETE")))),
)


def damage(folder: Path, kind: str, name: str, how: Any) -> None:
    """Do one kind of damage to a file."""
    file = folder / name
    if not file.exists():
        return
    content = bytearray(file.read_bytes())
    if kind == "remove":
        file.unlink()
        return
    if kind == "cut":
        content = content[: int(how * len(content))]
    elif kind == "extend":
        content += how
    elif kind in ("bytes", "header"):
        end = 8 + int.from_bytes(content[:8], "little") if kind == "header" else len(content)
        for place, value in how:
            if content:
                content[int(place * min(end, len(content)))] = value
    else:
        try:
            parsed = json.loads(content)
        except ValueError:  # damaged before
            return
        content = bytearray(json.dumps(with_another_value(parsed, *how)).encode())
    file.write_bytes(content)


def with_another_value(content: Any, place: float, value: Any) -> Any:
    """A copy of nested mappings and lists in which the value at a place, counted through, is another or gone."""
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(content)
    if not places:
        return content
    parent, key = places[int(place * len(places))]
    if isinstance(value, str) and value == "DELETE":
        del parent[key]
    else:
        parent[key] = value
    return content


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_no_backbone_loads_with_other_weights(fuzz: Fuzz, tmp_path: Path, family: str) -> None:
    whole = save_tiny_backbone(tmp_path / "whole", family)
    names = tiny_backbone(family).state_dict().keys()

    def load(damages: list[tuple[str, str, Any]]) -> None:
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        for one in damages:
            damage(folder, *one)
        backbone = BackboneConfig(path=str(folder))
        tokenizer = load_tokenizer(backbone)
        check_positions(backbone, 16)
        model = load_backbone(backbone)
        rows = model.get_input_embeddings().num_embeddings
        assert max(tokenizer.get_vocab().values()) < rows and 0 <= tokenizer.pad_token_id < rows
        assert {name.rpartition(".")[2] for name in model.state_dict()} <= {name.rpartition(".")[2] for name in names}
        assert all(torch.isfinite(weight).all() for weight in model.parameters())
        load_config(backbone)

    fuzz(st.lists(DAMAGES, min_size=1, max_size=2), load, examples=40)


def test_no_checkpoint_restores_what_it_should_not(fuzz: Fuzz, tmp_path: Path) -> None:
    fit(write_config(tmp_path, method="LoRA"), "--trainer.max_steps", "1")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {name: saved[name] for name in ("run_config", "state_dict", "evaluation", "global_step", "flops")}
    whole, _ = restore(tmp_path / "run" / "checkpoints" / "last.ckpt")
    expected = {name: value.shape for name, value in whole.state_dict().items()}
    tensors = st.sampled_from(
        [
            torch.zeros(()),
            torch.zeros(32, 32),
            torch.zeros(32, 32, dtype=torch.complex64),
            torch.zeros(32, 32).to_sparse(),
            torch.zeros(0),
            torch.full((32, 32), torch.nan),
        ]
    )

    def load(changes: list[tuple[str, float, Any]]) -> None:
        contents = dict(parts)
        for part, place, value in changes:
            contents[part] = with_another_value({part: contents[part]}, place, value).get(part)
        file = tmp_path / "changed.ckpt"
        torch.save(contents, file)
        module, _ = restore(file)
        assert {name: value.shape for name, value in module.state_dict().items()} == expected
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())

    change = st.tuples(
        st.sampled_from(["run_config", "run_config", "state_dict", "flops"]),
        PLACES,
        st.one_of(VALUES, tensors, st.just("DELETE")),
    )
    fuzz(st.lists(change, min_size=1, max_size=2), load, examples=30)
