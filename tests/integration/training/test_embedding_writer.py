"""Embeddings are those of a trained model, and their file is whole or not there."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest

from helpers.runs import OwnProcess, error_of, fit, write_config


def predicting(folder: Path, config: Path, num_texts: int) -> list[str]:
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(num_texts)))
    return ["predict", "--config", str(config), "--data.predict.path", str(texts)]


def test_predicting_needs_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = predicting(tmp_path, write_config(tmp_path), 1)
    assert "--ckpt_path" in error_of(capsys, command)
    assert not (tmp_path / "run" / "embeddings.npy").exists()


def allow_little() -> None:
    """No file above 30 kB, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def test_a_full_disk_is_one_line_and_leaves_no_embeddings(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "1")
    command = [*predicting(tmp_path, config, 400), "--ckpt_path", "last"]  # 51 kB of embeddings
    process = OwnProcess([command], tmp_path / "printed", first=allow_little)
    process.start()
    printed = process.printed()
    assert process.exitcode == 2 and "Traceback" not in printed
    assert "embeddings.npy cannot be written" in printed
    assert not list((tmp_path / "run").glob("embeddings*"))
