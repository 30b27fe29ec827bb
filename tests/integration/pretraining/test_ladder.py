"""Pre-training: gives models that load and have learned, once, the same every time, and says what is wrong."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from embedlab.cli.commands import main
from embedlab.errors import ConfigError, DataError, TrainingError
from embedlab.method import num_nonembedding_parameters, pretraining_peak_learning_rate
from embedlab.pretraining import ladder
from embedlab.pretraining.corpus import TextSource
from embedlab.pretraining.ladder import ensure_rung, pretrain
from embedlab.pretraining.rungs import RUNGS, Rung, model_config
from embedlab.records import FILE, read_record
from helpers.paths import ROOT
from helpers.runs import assert_same_bits, error_of, fit, trained_weights, write_config

CONFIGS = ROOT / "configs" / "ladder"
TINY = Rung(name="tiny", width=32, blocks=1, heads=2)
SETTINGS = {"tokens": 20_000, "vocabulary": 280, "context": 32, "batch_tokens": 512}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of text in which each word says much about the next."""
    generator = random.Random(0)
    words = ["every", "small", "cat", "sat", "upon", "woven", "mats", "and", "watched", "nine", "dogs", "run"]
    (tmp_path / "text").mkdir()
    for number in range(60):
        start = generator.randrange(12)
        (tmp_path / "text" / f"{number}.txt").write_text(" ".join(words[(start + i) % 12] for i in range(80)))
    return tmp_path / "text"


def train(text: Path, output: Path | None, *rungs: str | Rung, **options: object) -> None:
    chosen = list(rungs or [TINY])
    settings = SETTINGS | {"accelerator": "cpu"} | options
    pretrain(text=[TextSource(path=str(text))], rungs=chosen, output=output, **settings)  # type: ignore[arg-type]


def test_the_default_ladder_runs_from_a_few_thousand_to_forty_million_parameters() -> None:
    settings = {"vocabulary": 8192, "context": 128, "learning_rate": 1e-3}
    with torch.device("meta"):
        sizes = [num_nonembedding_parameters(GPTNeoXForCausalLM(model_config(rung, **settings))) for rung in RUNGS]
    assert 24e3 < sizes[0] < 27e3 and 55e3 < sizes[1] < 60e3
    assert sizes[2:6] == [150_080, 793_344, 2_669_568, 6_318_592]
    assert 14e6 < sizes[6] < 18e6 and 38e6 < sizes[7] < 42e6


def test_a_rung_loads_as_any_backbone_and_has_learned(text: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "ladder", tokens=100_000)
    folder = tmp_path / "ladder" / "tiny"
    facts = json.loads((folder / "pretraining.json").read_text())
    # Twelve words go round in one order: ln 12 is what knowing the words alone would leave.
    assert facts["validation_loss"] < math.log(12) / 2
    assert facts["tokens"] == 100_000 // 512 * 512
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert facts["nonembedding_parameters"] == num_nonembedding_parameters(model)
    assert facts["parameters"] == model.num_parameters()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("every small cat sat upon woven mats and watched nine dogs run every small", return_tensors="pt")
    continued = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    assert str(tokenizer.decode(continued[prompt["input_ids"].shape[1] :])).startswith(" cat")


def test_fine_tuning_derives_its_learning_rate_from_the_rung(text: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "a", learning_rate=0.004)
    train(text, tmp_path / "b")
    assert pretraining_peak_learning_rate(AutoModel.from_pretrained(tmp_path / "a" / "tiny")) == 0.004
    default = pretraining_peak_learning_rate(AutoModel.from_pretrained(tmp_path / "b" / "tiny"))
    assert default == TINY.default_learning_rate


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(text: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed)
        train(text, tmp_path / name, seed=seed)
    a, b, c = (load_file(tmp_path / name / "tiny" / "model.safetensors") for name in "abc")
    assert_same_bits(a, b)
    assert not any(torch.equal(a[name], c[name]) for name in a if a[name].ndim == 2)


@pytest.mark.slow  # a minute of compiling, and a C++ compiler
def test_compiling_changes_nothing_but_rounding(text: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "eager", tokens=2048)
    train(text, tmp_path / "compiled", tokens=2048, compile=True)
    eager, compiled = (load_file(tmp_path / name / "tiny" / "model.safetensors") for name in ("eager", "compiled"))
    assert eager.keys() == compiled.keys()
    for name in eager:
        torch.testing.assert_close(eager[name], compiled[name], rtol=0, atol=1e-3)


def test_bfloat16_learns_as_float32_does_and_is_stored_in_float32(text: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        train(text, tmp_path / precision, precision=precision)
        folder = tmp_path / precision / "tiny"
        losses[precision] = json.loads((folder / "pretraining.json").read_text())["validation_loss"]
        assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float32}
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)


def test_rungs_that_are_there_stay_as_they_are(text: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "ladder")
    weights = tmp_path / "ladder" / "tiny" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    train(text, tmp_path / "ladder", TINY, replace(TINY, name="wider", width=48))
    assert weights.stat().st_mtime_ns == before
    assert (tmp_path / "ladder" / "wider" / "model.safetensors").is_file()


def test_a_folder_that_holds_something_else_is_an_error_and_left_alone(text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="does not hold a ladder"):
        train(text, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_folder_with_a_ladder_of_other_settings_is_an_error_that_names_them(text: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "ladder")
    with pytest.raises(ConfigError, match="tokens: 20000 there, 10000 now"):
        train(text, tmp_path / "ladder", tokens=10_000)
    with pytest.raises(ConfigError, match="another shape"):
        train(text, tmp_path / "ladder", replace(TINY, blocks=2))


def test_a_damaged_rung_is_named_and_kept(text: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "ladder")
    weights = tmp_path / "ladder" / "tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match=r"ladder/tiny is damaged: model\.safetensors .* Delete the folder"):
        train(text, tmp_path / "ladder")
    assert weights.read_bytes() == content


@pytest.mark.parametrize("mark", ["[", "[]", "\xff"])
def test_a_damaged_mark_of_a_ladder_is_named(text: Path, tmp_path: Path, mark: str) -> None:
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "ladder.json").write_text(mark, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"ladder\.json.*cannot be read"):
        train(text, tmp_path / "ladder")


def test_a_loss_that_is_not_finite_stops_and_leaves_no_rung(text: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Lower learning_rate"):
        train(text, tmp_path / "ladder", learning_rate=1e30)
    assert not (tmp_path / "ladder" / "tiny").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 100}, "tokens is 100, less than one step of batch_tokens=512"),
        ({"batch_tokens": 16}, "batch_tokens is 16, less than one sequence of context=32"),
        ({"context": 1, "batch_tokens": 1}, "context must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_errors(
    text: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(text, tmp_path / "ladder", **options)


def test_a_text_too_short_for_one_step_is_an_error(text: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few for a step of batch_tokens=100000"):
        train(text, tmp_path / "ladder", tokens=100_000, batch_tokens=100_000)


def test_shapes_and_names_that_cannot_be_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 8 \* heads"):
        replace(TINY, width=36)
    with pytest.raises(ConfigError, match="name of a rung is the name of its folder"):
        replace(TINY, name="../up")
    with pytest.raises(ConfigError, match=r"no rung 'r9'\. Rungs: s0, s1, r0, r1"):
        ensure_rung("r9")
    with pytest.raises(ConfigError, match="a name twice"):
        pretrain(rungs=["r0", "r0"])


def test_a_default_rung_is_trained_once_into_the_cache_and_leaves_the_random_state_alone(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = ladder._Settings(text=(TextSource(path=str(text)),), accelerator="cpu", **SETTINGS)  # type: ignore[arg-type]
    monkeypatch.setattr(ladder, "_DEFAULT", default)
    state = torch.get_rng_state()
    folder = ensure_rung("r0")
    assert torch.equal(torch.get_rng_state(), state)
    assert folder.is_relative_to(cache) and folder.name == "r0"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_rung("r0") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (text / "0.txt").write_text("another text")
    assert ensure_rung("r0") != folder


@pytest.fixture
def small_default(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default ladder that is pre-trained in seconds."""
    default = ladder._Settings(text=(TextSource(path=str(text)),), accelerator="cpu", **SETTINGS)  # type: ignore[arg-type]
    monkeypatch.setattr(ladder, "_DEFAULT", default)


def path_in(config: Path) -> str:
    path: str = yaml.safe_load(config.read_text())["model"]["backbone"]["path"]
    return path


@pytest.mark.parametrize("by", ["its name", "the folder of the cache"])
def test_a_run_on_a_rung_is_recorded_by_the_rungs_name(tmp_path: Path, small_default: None, by: str) -> None:
    folder, run = str(ensure_rung("s0")), tmp_path / "run"
    config = write_config(tmp_path, validation_fraction=0.2, max_length=30)
    fit(config, "--model.backbone.path", "ladder:s0" if by == "its name" else folder)
    assert read_record(run / FILE).backbone == path_in(run / "config.yaml") == "ladder:s0"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["run_config"]["model"]["backbone"]["path"] == folder, "the very weights that it was trained on"


def test_a_recipe_names_a_rung_and_trains_as_it_stands(
    tmp_path: Path, small_default: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, validation_fraction=0.3, max_length=30)
    for rung, steps in product(("s0", "s1", "r0"), ("1", "4", "8")):
        options = ["--model.backbone.path", f"ladder:{rung}", "--trainer.max_steps", steps]
        fit(config, *options, "--output", str(tmp_path / "runs" / f"{rung}-{steps}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "of another user"))
    capsys.readouterr()
    main(["recipe", "--runs", "runs", "--budget", "2e8", "--replicates", "5", "--output", "recipes"])
    (recipe,) = (tmp_path / "recipes").glob("*.yaml")
    assert path_in(recipe) in capsys.readouterr().out
    assert path_in(recipe) in ("ladder:s0", "ladder:s1", "ladder:r0") and "/ladders/" not in recipe.read_text()
    fit(recipe, "--output", "trained")
    assert read_record(Path("trained", FILE)).backbone == path_in(recipe)


def test_the_same_weights_come_of_a_rungs_name_and_of_its_folder(tmp_path: Path, small_default: None) -> None:
    config = write_config(tmp_path, validation_fraction=0.2, max_length=30)
    copied = shutil.copytree(ensure_rung("s0"), tmp_path / "copied")
    for name, path in (("named", "ladder:s0"), ("copied", str(copied))):
        fit(config, "--model.backbone.path", path, "--output", str(tmp_path / name))
    assert_same_bits(*(trained_weights(tmp_path / name) for name in ("named", "copied")))
    named, other = (read_record(tmp_path / name / FILE) for name in ("named", "copied"))
    assert (named.backbone, other.backbone) == ("ladder:s0", str(copied))
    assert named.loss == other.loss and named.data_hash == other.data_hash


@pytest.mark.parametrize("changed", ["nothing", "the standard library", "the configuration, which is an earlier one"])
def test_a_run_on_a_rung_goes_on_with_the_weights_that_it_began_with(
    tmp_path: Path, text: Path, small_default: None, changed: str
) -> None:
    config = write_config(tmp_path, validation_fraction=0.2, max_length=30)
    options = ["--model.backbone.path", "ladder:s0", "--model.schedule", "Constant"]
    for name, epochs in (("undisturbed", "2"), ("resumed", "1")):
        fit(config, *options, "--trainer.max_epochs", epochs, "--output", str(tmp_path / name))
    run, folder = tmp_path / "resumed", ensure_rung("s0")
    if changed == "the standard library":
        (text / "0.txt").write_text("another text")  # as another Python has
    elif changed != "nothing":
        earlier = (run / "config.yaml").read_text().replace("ladder:s0", str(folder))
        (run / "config.yaml").write_text(earlier)
    (run / FILE).unlink()
    fit(run / "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert_same_bits(trained_weights(run), trained_weights(tmp_path / "undisturbed"))
    assert read_record(run / FILE).backbone == path_in(run / "config.yaml") == "ladder:s0"


def test_a_rung_of_a_ladder_of_ones_own_keeps_its_path(tmp_path: Path, text: Path, small_default: None) -> None:
    pretrain(text=[TextSource(path=str(text))], rungs=["s0"], accelerator="cpu", **(SETTINGS | {"tokens": 10_000}))  # type: ignore[arg-type]
    (folder,) = (tmp_path / "cache" / "ladders").glob("*/s0")
    config = write_config(tmp_path, validation_fraction=0.2, max_length=30)
    fit(config, "--model.backbone.path", str(folder), "--output", str(tmp_path / "run"))
    assert read_record(tmp_path / "run" / FILE).backbone == path_in(tmp_path / "run" / "config.yaml") == str(folder)


def test_ranks_that_want_the_same_rung_train_it_once(text: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "embedlab", "pretrain", "--output", str(tmp_path / "ladder")),
        *("--text", json.dumps([{"path": str(text)}]), "--rungs", json.dumps(["r0"])),
        *(part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))),
    ]
    # As torchrun would start them: the trainer must not take itself for a rank.
    ranks = [os.environ | {"WORLD_SIZE": "2", "RANK": str(r), "LOCAL_RANK": str(r), "GROUP_RANK": "0"} for r in (0, 1)]
    torchrun = {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    processes = [
        subprocess.Popen(command, env=rank | torchrun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in ranks
    ]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert sum("pre-training r0" in error for _, error in printed) == 1
    assert all("validation loss" in output for output, _ in printed)


def test_the_command_reads_a_configuration_with_names_and_shapes(text: Path, tmp_path: Path) -> None:
    config = {
        "text": [{"path": str(text)}],
        "rungs": ["r0", {"name": "own", "width": 48, "blocks": 1, "heads": 3}],
        "output": str(tmp_path / "ladder"),
        **SETTINGS,
    }
    (tmp_path / "ladder.yaml").write_text(yaml.safe_dump(config))
    main(["pretrain", "--config", str(tmp_path / "ladder.yaml"), "--tokens", "2048"])
    sizes = {name: AutoModel.from_pretrained(tmp_path / "ladder" / name).config.hidden_size for name in ("r0", "own")}
    assert sizes == {"r0": 64, "own": 48}


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_are_ones_that_pretrain_takes(config: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(pretrain)
    options = parser.instantiate(parser.parse_args(["--config", str(config)]))
    assert config.read_text().startswith(f"# embedlab pretrain --config configs/ladder/{config.name}\n")
    assert all(isinstance(source, TextSource) for source in options.text)
    assert set(options.rungs) <= {rung.name for rung in RUNGS}


def test_the_standard_library_configuration_is_that_of_the_default_rungs() -> None:
    config = yaml.safe_load((CONFIGS / "standard_library.yaml").read_text())
    text = tuple(TextSource(**source) for source in config.pop("text"))
    settings = {name: value for name, value in config.items() if name not in ("output", "rungs")}
    assert ladder._Settings(text=text, **settings) == ladder._DEFAULT


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = error_of(capsys, ["pretrain", "--text", '[{"path": "./nowhere"}]', "--output", str(tmp_path / "ladder")])
    assert "There is no file or folder './nowhere'" in missing
