"""Whatever a checkpoint holds, a run goes on from it, or it is refused in a line; nothing else happens."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from embedlab.errors import DataError
from helpers.fuzzing import Fuzz
from helpers.runs import fit, write_config

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.just("../../left"),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.builds(lambda size: torch.full((size,), float("nan")), st.integers(0, 3)),
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a checkpoint there is a value, its parts too."""
    found = [path] if path else []
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += places(part, (*path, key))
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_config(tmp_path_factory.mktemp("fuzz"), validation_fraction=0.3)
    fit(config, "--trainer.max_steps", "3", "--output", str(config.parent / "original"))
    return config


def go_on(config: Path, saved: dict[str, Any] | bytes) -> None:
    """Goes on from a checkpoint with this content; what it refuses is a DataError."""
    run = config.parent / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints" / "last.ckpt"
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    else:
        torch.save(saved, path)
    try:
        fit(config, "--output", str(run), "--ckpt_path", "last", "--trainer.max_steps", "5")
    except SystemExit as stop:
        assert stop.code == 2, f"status {stop.code}"
        raise DataError("refused") from stop
    after = torch.load(path, weights_only=True)
    assert after["global_step"] == 5, "a run that ends well has taken its steps"
    assert all(torch.isfinite(weight).all() for weight in after["state_dict"].values())
    assert sorted(one.name for one in config.parent.iterdir() if one.name == "left") == []


def test_changed_values_of_a_checkpoint(fuzz: Fuzz, config: Path) -> None:
    original = torch.load(config.parent / "original" / "checkpoints" / "last.ckpt", weights_only=True)
    edit = st.tuples(st.sampled_from(places(original)), st.sampled_from(["junk", "drop"]), JUNK)
    changes = st.lists(edit, max_size=2)

    def changed(edits: list[tuple[tuple[Any, ...], str, Any]]) -> None:
        saved = copy.deepcopy(original)
        for path, kind, junk in edits:
            part: Any = saved
            try:
                for key in path[:-1]:
                    part = part[key]
                if kind == "drop":
                    del part[path[-1]]
                else:
                    part[path[-1]] = junk
            except (KeyError, IndexError, TypeError):
                continue  # an edit before took the place away
        go_on(config, saved)

    fuzz(changes, changed, examples=12)


def test_changed_bytes_of_a_checkpoint(fuzz: Fuzz, config: Path) -> None:
    original = (config.parent / "original" / "checkpoints" / "last.ckpt").read_bytes()
    place = st.integers(0, len(original) - 1)
    edits = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(1, 255)),
        st.tuples(st.just("cut"), place, st.just(0)),
        st.tuples(st.just("repeat"), place, st.integers(1, 2000)),
    )

    def changed(edit: tuple[str, int, int]) -> None:
        kind, at, value = edit
        content = bytearray(original)
        if kind == "flip":
            content[at] ^= value
        elif kind == "cut":
            del content[at:]
        else:
            content[at:at] = content[at : at + value]
        go_on(config, bytes(content))

    fuzz(edits, changed, examples=12)
