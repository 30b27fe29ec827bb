"""A run's folder is one run's, from its first moment on, whatever logs it and however it is written."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from helpers.runs import error_of, fit, scalars, start_fit, write_config


def test_a_second_run_in_a_folder_is_refused_while_one_lives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    run = tmp_path / "run"
    first = start_fit(config, "--trainer.max_epochs", "1000", "--trainer.callbacks+", "helpers.runs.StepFile")
    while not (run / "step").exists():
        assert first.is_alive(), first.printed()
        time.sleep(0.005)
    for again in ([], ["--ckpt_path", "auto"]):
        assert "Another run is in progress" in error_of(capsys, ["fit", "--config", str(config), *again])
    first.kill()
    first.join()
    fit(config, "--trainer.max_steps", "2")


@pytest.mark.parametrize("logger", [["CSVLogger", "--trainer.logger.save_dir", "LOGS"], ["false"]])
def test_a_finished_run_is_not_written_over_whatever_logs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], logger: list[str]
) -> None:
    config = write_config(tmp_path)
    words = ["--trainer.logger", *(str(tmp_path / "logs") if word == "LOGS" else word for word in logger)]
    command = ["--trainer.max_steps", "2", *words]
    fit(config, *command)
    assert (tmp_path / "run" / "config.yaml").exists()
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert "holds a run already" in error_of(capsys, ["fit", "--config", str(config), *command])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_run_killed_before_its_first_checkpoint_is_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    process = start_fit(config, "--trainer.max_epochs", "1000", "--trainer.callbacks+", "helpers.runs.StepFile")
    while not (tmp_path / "run" / "step").exists():
        assert process.is_alive(), process.printed()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert "--ckpt_path auto" in error_of(capsys, ["fit", "--config", str(config), "--ckpt_path", "last"])
    log = ["--trainer.log_every_n_steps", "1"]
    fit(config, "--trainer.max_steps", "3", *log)
    fit(config, "--trainer.max_steps", "3", *log, "--output", str(tmp_path / "undisturbed"))
    assert scalars(tmp_path / "run")["train/loss"] == scalars(tmp_path / "undisturbed")["train/loss"]


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_the_step_and_ends_the_run(tmp_path: Path, sent: signal.Signals) -> None:
    config = write_config(tmp_path)
    before = signal.signal(sent, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and a run keeps to that
    try:
        process = start_fit(config, "--trainer.max_epochs", "1000", "--trainer.callbacks+", "helpers.runs.StepFile")
    finally:
        signal.signal(sent, before)
    while not (tmp_path / "run" / "step").exists():
        assert process.is_alive(), process.printed()
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, sent)
    printed = process.printed()
    assert "Saved at step" in printed and "Traceback" not in printed
    assert process.exitcode == 128 + sent


def test_outputs_that_cannot_be_written_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "deep", Path("/proc/none")):
        printed = error_of(capsys, ["fit", "--config", str(config), "--output", str(output)])
        assert str(output) in printed and "--output" in printed


def small_files() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))


def test_a_disk_that_is_full_before_training_is_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2", "--output", str(tmp_path / "warm"))  # fills the cache
    process = start_fit(config, "--trainer.max_steps", "2", first=partial(small_files))
    printed = process.printed()
    assert process.exitcode == 2 and "Traceback" not in printed and "cannot be written" in printed
