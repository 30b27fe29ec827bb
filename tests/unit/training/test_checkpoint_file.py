"""A checkpoint's file is whole or not there, damage is seen, and reading one runs nothing."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from embedlab.errors import DataError
from embedlab.training.checkpoint_file import LAST, PREVIOUS, WholeCheckpointIO, damage, read_checkpoint, require_whole
from helpers.runs import error_of, fit, write_config

SAVED = {
    "state_dict": {"weight": torch.arange(64.0)},
    "run_config": {"model": {}},
    "evaluation": {},
    "global_step": 3,
}


def written(path: Path, **changes: Any) -> Path:
    WholeCheckpointIO().save_checkpoint(SAVED | changes, path)
    return path


def test_a_checkpoint_needs_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", None)
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [LAST]


@pytest.mark.parametrize("bit", [1, 0x10, 0x80])
def test_a_flipped_bit_is_seen_or_changes_no_value(tmp_path: Path, bit: int) -> None:
    path = written(tmp_path / "last.ckpt")
    content = path.read_bytes()
    assert damage(path) is None
    seen = 0
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= bit
        path.write_bytes(changed)
        if damage(path) is not None:
            seen += 1
            continue
        values = read_checkpoint(path)  # the bit is in what fills the file up
        assert torch.equal(values["state_dict"]["weight"], SAVED["state_dict"]["weight"])
        assert values["global_step"] == 3
    assert seen > len(content) // 6


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off_is_seen(tmp_path: Path, share: float) -> None:
    path = written(tmp_path / "last.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert damage(path)


def test_a_damaged_checkpoint_is_refused_and_a_whole_one_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    fit(config, "--output", str(tmp_path / "undisturbed"))
    fit(config, "--checkpoint.every_n_steps", "5")
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / PREVIOUS)["global_step"] == 20
    last = tmp_path / "run" / "checkpoints" / LAST
    content = bytearray(last.read_bytes())
    place = random.Random(0).randrange(len(content) // 4, len(content) // 2)
    content[place] ^= 1
    last.write_bytes(content)
    printed = error_of(capsys, ["fit", "--config", str(config), "--ckpt_path", "last"])
    assert "is damaged" in printed and str(last.with_name(PREVIOUS)) in printed
    fit(config, "--ckpt_path", "auto")
    assert "is damaged" in capsys.readouterr().err
    assert_same(last, tmp_path / "undisturbed" / "checkpoints" / LAST)


def assert_same(left: Path, right: Path) -> None:
    one, other = (read_checkpoint(path)["state_dict"] for path in (left, right))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_where_no_checkpoint_is_whole_the_run_is_to_begin_anew(tmp_path: Path) -> None:
    for name in (LAST, PREVIOUS):
        path = written(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"damaged.*new run in another --output"):
        require_whole(tmp_path / LAST)


class Planted:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._mark),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_reading_a_checkpoint_runs_no_code(tmp_path: Path, form: str) -> None:
    path = tmp_path / "last.ckpt"
    content = SAVED | {"evaluation": Planted(tmp_path / "ran")}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for read in (read_checkpoint, require_whole, WholeCheckpointIO().load_checkpoint):
        with pytest.raises((DataError, pickle.UnpicklingError)):
            read(path)  # type: ignore[operator]  # each takes a path
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change", [{"state_dict": 3}, {"run_config": {}}, {"global_step": True}, {"evaluation": None}], ids=str
)
def test_a_checkpoint_with_something_else_in_it_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="was not written by `embedlab fit`"):
        read_checkpoint(written(tmp_path / "last.ckpt", **change))
