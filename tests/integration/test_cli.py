"""What a user can do wrong on the command line gets one clear error: what came, what was expected, what to do."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from embedlab.cli.commands import COMMANDS, main
from embedlab.method.registry import discover
from embedlab.testing.backbones import save_tiny_backbone
from helpers.runs import error_of, fit, start_fit, trained_weights, write_config, write_pairs


def test_a_worker_has_help_and_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    main(["worker", "--help"])
    assert "`embedlab search` starts workers by itself" in capsys.readouterr().out
    assert "takes no options, got '--output'" in error_of(capsys, ["worker", "--output", "x"])


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in COMMANDS)


def test_an_unknown_command_is_named_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Unknown command 'ift'" in error_of(capsys, ["ift"])
    assert "Did you mean 'fit'?" in error_of(capsys, ["ift"])


def test_methods_lists_every_registered_method_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in discover())
    assert "rank" in printed and "embedlab" in printed


def test_print_config_shows_the_whole_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(write_config(tmp_path), "--print_config")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "tokens_per_chunk: 64" in printed and "class_path: embedlab_methods.full.FullFineTuning" in printed


def test_later_configurations_and_options_override_earlier_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data:\n  batch_size: 6\n  max_length: 20\n")
    with pytest.raises(SystemExit):
        fit(write_config(tmp_path), "--config", str(overlay), "--data.max_length", "24", "--print_config")
    printed = capsys.readouterr().out
    assert "batch_size: 6" in printed and "max_length: 24" in printed


@pytest.mark.parametrize("selection", ["--model.method=lora", "--model.method.class_path=Lora"])
def test_an_unknown_method_gets_the_list_and_a_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], selection: str
) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), selection])
    assert f"Registered methods: {', '.join(sorted(discover()))}." in printed
    assert "Did you mean 'LoRA'?" in printed


def test_an_unknown_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(tmp_path))
    assert "batch_sise" in error_of(capsys, ["fit", "--config", config, "--data.batch_sise", "4"])
    printed = error_of(capsys, ["fit", "--config", config, "--model.method=LoRA", "--model.method.rang=4"])
    assert "rang" in printed


def test_a_bad_option_of_a_method_says_what_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.method=LoRA", "--model.method.rank=0"]
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), *options])
    assert "LoRA rank must be at least 1, got rank=0" in printed


def test_a_value_of_the_wrong_type_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), "--data.batch_size", "many"])
    assert "data.batch_size is 'many'. Expected a whole number." in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.loss", "InfoNCE", "--model.loss.temperature", "0"], "temperature must be a number above 0"),
        (["--model.optimizer.clip", "0"], "null for no clipping"),
        (["--model.schedule", "WarmupCosine", "--model.schedule.final", "-2"], "schedule.final"),
        (["--seed_everything", "-1"], "from 0 to 4294967295"),
        (["--trainer.strategy", "fsdp"], "trainer.strategy: "),
        (["--trainer.accelerator", "abacus"], "trainer.accelerator: "),
        (["--trainer.max_time", "soon"], "trainer.max_time: "),
        (["--trainer.gradient_clip_val", "1"], "model.optimizer.clip"),
        (["--model.method.rank", "4"], "not an option of FullFineTuning"),
    ],
)
def test_what_is_refused_on_the_way_to_the_first_step_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for the files of tracebacks
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), *words])
    assert said in printed and printed.count("\n") == 1


def test_a_path_that_the_terminal_cannot_show_is_shown_escaped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "embedlab", "fit", "--config", str(tmp_path / "é.yaml")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert result.returncode == 2 and "\\xe9.yaml' cannot be read" in result.stderr


def test_a_missing_configuration_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in error_of(capsys, ["fit", "--config", "nowhere.yaml"])


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    (tmp_path / "pairs.jsonl").unlink()
    assert "pairs.jsonl" in error_of(capsys, ["fit", "--config", str(config)])


def test_fit_without_data_says_how_to_name_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), "--data.train", "[]"])
    assert "data.train" in printed


def test_texts_longer_than_the_model_are_refused_by_max_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, max_length=65, tokens_per_chunk=65)
    printed = error_of(capsys, ["fit", "--config", str(config)])
    assert "data.max_length is 65" in printed and "64" in printed


def test_a_batch_of_one_pair_has_no_negatives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path, batch_size=1))])
    assert "contrast" in printed and "batch_size" in printed


def test_a_batch_smaller_than_a_chunk_is_one_chunk(tmp_path: Path) -> None:
    fit(write_config(tmp_path, batch_size=2, tokens_per_chunk=4096), "--trainer.max_steps", "2")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path, batch_size=61))])
    assert "61" in printed and "batch_size" in printed


def test_a_method_that_leaves_nothing_trainable_names_those_that_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, family="llama", method="BiasTuning")
    printed = error_of(capsys, ["fit", "--config", str(config)])
    assert "LoRA" in printed and "FullFineTuning" in printed


def test_an_existing_run_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "1")
    before = trained_weights(tmp_path / "run")
    printed = error_of(capsys, ["fit", "--config", str(config)])
    assert "holds a run already" in printed and "--ckpt_path auto" in printed
    assert all(torch.equal(before[name], value) for name, value in trained_weights(tmp_path / "run").items())


def test_resuming_where_there_is_no_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), "--ckpt_path", "last"])
    assert "last.ckpt" in printed and "--output" in printed


def test_more_processes_than_a_machine_can_hold_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fit", "--config", str(write_config(tmp_path)), "--trainer.devices", "4000"]
    assert "cores. Lower trainer.devices" in error_of(capsys, command)


def test_resuming_with_another_method_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "1")
    printed = error_of(capsys, ["fit", "--config", str(config), "--model.method=LoRA", "--ckpt_path", "last"])
    assert "trained tensors" in printed and "config.yaml" in printed


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    options = ["--model.optimizer.learning_rate", "1e30", "--model.optimizer.clip", "null"]
    printed = error_of(capsys, ["fit", "--config", str(config), "--checkpoint.every_n_steps", "1", *options])
    assert "step" in printed and "source 'pairs'" in printed and "pairs [" in printed
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] >= 1
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_a_run_without_an_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), "--trainer.max_epochs", "-1"])
    assert "trainer.max_epochs or trainer.max_steps" in printed


def test_a_strategy_that_shards_the_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "embedlab.training.module._SHARDED", (SingleDeviceStrategy,)
    )  # the real ones refuse to run on a CPU
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path))])
    assert "SingleDeviceStrategy shards the model" in printed and "Use 'ddp'" in printed


def limit_files(size: int) -> None:
    """From here on no file may grow past a size: the kernel refuses the write as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_hub_id_without_a_network_is_one_clear_error(tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "embedlab", "fit", "--config", str(write_config(tmp_path))]
    command += ["--model.backbone.path", "EleutherAI/pythia-14m"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert result.returncode == 2
    said = result.stderr
    assert "'EleutherAI/pythia-14m' is not a folder and not in the local cache" in said and "ladder:r0" in said
    assert "Traceback" not in result.stderr


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()

    options = ["--ckpt_path", "last", "--trainer.logger", "false"]
    process = start_fit(config, *options, first=partial(limit_files, len(before) // 2))
    printed = process.printed()
    assert process.exitcode == 2
    assert "could not be written" in printed and "last.ckpt, is intact" in printed
    assert checkpoint.read_bytes() == before
    assert {path.name for path in checkpoint.parent.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_predict_writes_embeddings_in_the_order_of_the_texts(tmp_path: Path) -> None:
    import numpy as np

    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    texts = tmp_path / "texts.jsonl"
    lines = ["a longer text than the others", "short", "short", "of middle length"]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    options = ["--ckpt_path", "last", "--data.predict.path", str(texts)]
    main(["predict", "--config", str(config), *options])
    embeddings = np.load(tmp_path / "run" / "embeddings.npy")
    assert embeddings.shape == (4, 32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embeddings[1], embeddings[2], atol=1e-6)
    assert np.abs(embeddings[0] - embeddings[3]).max() > 1e-3


def test_a_tokenizer_without_a_pad_token_trains(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    save_tiny_backbone(tmp_path / "backbone", pad_token=False)
    fit(config, "--trainer.max_steps", "1")
    assert write_pairs(tmp_path / "again.jsonl").exists()


def test_validate_and_test_measure_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, validation_fraction=0.3, test_fraction=0.2)
    fit(config, "--trainer.max_steps", "3")
    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["evaluation"]
    capsys.readouterr()
    main(["validate", "--config", str(config), "--ckpt_path", "last"])
    printed = capsys.readouterr().out
    assert "validation/pairs/mrr@10" in printed
    assert str(trained["validation/pairs/loss"])[:6] in printed
    main(["test", "--config", str(config), "--ckpt_path", "last"])
    assert "test/pairs/mrr@10" in capsys.readouterr().out


def test_measuring_without_anything_to_measure_on_says_what_to_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "1")
    printed = error_of(capsys, ["test", "--config", str(config), "--ckpt_path", "last"])
    assert "data.test_fraction" in printed and "data.retrieval" in printed
    printed = error_of(capsys, ["validate", "--config", str(config), "--ckpt_path", "last"])
    assert "data.validation_fraction" in printed


def test_predict_without_texts_says_what_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "1")
    assert "data.predict.path" in error_of(capsys, ["predict", "--config", str(config), "--ckpt_path", "last"])


@pytest.mark.parametrize("content", [None, b"no checkpoint"])
def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "some.ckpt"
    if content is not None:
        path.write_bytes(content)
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), "--ckpt_path", str(path)])
    assert "some.ckpt" in printed


def test_predict_does_not_need_the_training_data(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "1")
    (tmp_path / "pairs.jsonl").unlink()
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    options = ["--ckpt_path", "last", "--data.predict.path", str(tmp_path / "texts.jsonl")]
    main(["predict", "--config", str(config), *options])
    assert (tmp_path / "run" / "embeddings.npy").is_file()


def test_part_of_an_epoch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.limit_train_batches", "3"]
    assert "trainer.max_steps" in error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), *options])


def test_evaluation_sets_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    paths = [write_pairs(tmp_path / "pairs.jsonl"), write_pairs(tmp_path / "other" / "pairs.jsonl", seed=1)]
    config = write_config(tmp_path, train=[{"path": str(path)} for path in paths], validation_fraction=0.3)
    assert "same name" in error_of(capsys, ["fit", "--config", str(config)])
