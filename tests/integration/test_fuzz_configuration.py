"""A configuration or a command line of any kind makes a run of sane values or is refused in one line."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import strategies as st

from embedlab.cli import training as training_command
from embedlab.cli.config_file import parse_config
from embedlab.cli.flops import flops_parser
from embedlab.cli.methods import methods
from embedlab.cli.parser import ErrorParser
from embedlab.data.datamodule import PairDataModule
from embedlab.errors import EmbedLabError
from embedlab.pretraining.ladder import pretrain
from embedlab.testing.backbones import save_tiny_backbone
from embedlab.training.export import export
from embedlab.training.module import EmbeddingModule
from helpers.fuzzing import Fuzz
from helpers.runs import write_pairs


class _Started(EmbedLabError):
    """Everything is made, and the trainer would start."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Sequence[str]], None]]:
    """Parses a command line of fit, makes all that it describes, checks it, and does not train."""

    def fit(cli: training_command.EmbedLabCLI, **_: Any) -> None:
        assert_sane(cli.model, cli.datamodule)
        raise _Started("yes")

    def make(words: Sequence[str]) -> None:
        try:
            training_command.train(["fit", *words])
        except _Started:
            return
        except SystemExit as stop:  # --help and --print_config
            assert stop.code == 0

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for the files of tracebacks
    monkeypatch.setattr(training_command.EmbedLabCLI, "fit", fit, raising=False)
    deterministic, anomaly = torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()
    yield make
    torch.use_deterministic_algorithms(deterministic)
    torch.autograd.set_detect_anomaly(anomaly)


def assert_sane(module: EmbeddingModule, data: PairDataModule) -> None:
    optimizer = module.optimizer_config
    rate = optimizer.learning_rate
    assert rate is None or 0 < rate < math.inf
    assert optimizer.clip is None or 0 < optimizer.clip < math.inf
    assert all(0 <= beta < 1 for beta in optimizer.betas) and optimizer.eps > 0 and optimizer.weight_decay >= 0
    assert all(0 <= module.schedule.factor(progress) <= 1 for progress in (0.0, 0.1, 0.5, 0.9, 1.0))
    assert 0 < math.exp(-float(module.loss.log_scale)) < math.inf
    assert 0 <= module.seed < 2**32 and module.seed == data.seed
    assert isinstance(data.batch_size, int) and data.batch_size >= 1 and data.max_length >= 1
    assert isinstance(data.sources, list) and all(isinstance(source.path, str) for source in data.sources)
    assert module.pooling in ("mean", "last_token", "weighted_mean")


JUNK: list[Any] = [None, True, False, 0, -1, 1, 1.5, math.nan, math.inf, 1e308, 2**63, 10**30, "", "~", "~nobody/x"]
JUNK += ["no", "nan", "1e-3", "1e2", "0,5", "10_000", "é", "\u2028", "\ud800", "x" * 5000, "os.system", "builtins.eval"]
JUNK += ["LoRA", "Lora", "torch.nn.Linear", "[", "{a: b}", "--x", [], [[]], ["a", 1, None], {}, {"a": 1}, {"": {}}]
JUNK += [{"class_path": "os.system"}, {"class_path": None}, {"class_path": "LoRA", "init_args": {"rank": 0}}]
JUNK += [
    {"init_args": []},
    {"class_path": "LoRA", "rank": 4},
    "nowhere.yaml",
    "2026-11-27",
    "00:12:00:00",
    "!x",
    "&a *a",
]

junk = st.sampled_from(JUNK) | st.integers() | st.floats() | st.text(max_size=8)


def configuration(folder: Path) -> dict[str, Any]:
    """A valid configuration that holds something of every kind."""
    return {
        "output": str(folder / "run"),
        "seed_everything": 1,
        "model": {
            "backbone": {"path": str(save_tiny_backbone(folder / "backbone", "gpt_neox")), "dtype": "float32"},
            "method": {"class_path": "LoRA", "init_args": {"rank": 4, "targets": "all-linear", "rslora": False}},
            "loss": {"class_path": "InfoNCE", "init_args": {"temperature": 0.05, "false_negative_margin": 0.1}},
            "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.99], "eps": 1e-8, "clip": 1.0, "weight_decay": 0.1},
            "schedule": {"class_path": "WarmupStableDecay", "init_args": {"warmup": 0.1, "decay": 0.2, "final": 0.0}},
            "pooling": "mean",
        },
        "data": {
            "train": [{"path": str(write_pairs(folder / "pairs.jsonl")), "query": "query", "max_rows": 50}],
            "batch_size": 5,
            "max_length": 32,
            "max_padding": 0.1,
            "validation_fraction": 0.1,
            "cache": str(folder / "cache"),
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "precision": "32-true", "logger": False},
        "checkpoint": {"every_n_steps": 5},
    }


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def at(config: Any, path: Sequence[Any]) -> Any:
    for key in path:
        config = config[key]
    return config


@st.composite
def mutated(draw: st.DrawFn, base: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(list(paths(config))))
        parent = at(config, parents)
        kind = draw(st.sampled_from(["replace", "replace", "delete", "misspell", "move", "wrap"]))
        if kind == "replace":
            parent[last] = copy.deepcopy(draw(junk))
        elif kind == "wrap":
            parent[last] = [parent[last]] if draw(st.booleans()) else {draw(st.text(max_size=4)): parent[last]}
        elif kind == "delete":
            del parent[last]
        elif isinstance(parent, dict) and kind == "misspell":
            cut = draw(st.integers(0, len(str(last))))
            parent[str(last)[:cut] + draw(st.sampled_from(["", "-", "x", ".", "+", " "])) + str(last)[cut:]] = (
                parent.pop(last)
            )
        elif isinstance(parent, dict):
            value = parent.pop(last)
            places = [config, *(one for path in paths(config) if isinstance(one := at(config, path), dict))]
            draw(st.sampled_from(places))[last] = value
    return config


@st.composite
def texts(draw: st.DrawFn, base: dict[str, Any]) -> bytes:
    """The bytes of a configuration, some of them cut, doubled or exchanged."""
    dump = yaml.safe_dump(
        draw(mutated(base)), allow_unicode=True, default_flow_style=draw(st.sampled_from([False, None]))
    )
    content = bytearray(dump.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 30)))
        new = draw(
            st.sampled_from([b"", b"\t", b"\x00", b"\xff\xfe", b"- ", b": ", b"---\n", b"&a *a", b"!!x ", b"\n", b'"'])
        )
        content[start:end] = new + bytes(content[start:end]) * draw(st.integers(0, 2))
    return bytes(content)


def test_any_configuration_is_sane_or_refused(
    fuzz: Fuzz, tmp_path: Path, made: Callable[[Sequence[str]], None]
) -> None:
    base = configuration(tmp_path)
    path = tmp_path / "config.yaml"
    made(write(path, yaml.safe_dump(base).encode()))

    fuzz(texts(base), lambda content: made(write(path, content)), examples=60)


def write(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return ["--config", str(path)]


def option_words(names: Sequence[str]) -> st.SearchStrategy[list[str]]:
    """Options with values that are junk, joined, apart or missing."""
    some = st.sampled_from(["[{path: p}]", "{path: p, query: no}", "LoRA", "InfoNCE", "true", "0.5", "3"])
    values = (some | junk).map(as_word)
    known = st.sampled_from(names)
    strange = known.map(lambda one: f"{one}x") | st.text(max_size=5)
    joined = st.tuples(known, values).map(lambda pair: [f"--{pair[0]}={pair[1]}"])
    apart = st.tuples(known.map(lambda one: one.replace("_", "-")), values).map(lambda pair: [f"--{pair[0]}", pair[1]])
    alone = st.one_of(
        known.map(lambda one: [f"--{one}"]), strange.map(lambda one: [f"--{one}", "1"]), values.map(lambda one: [one])
    )
    word = st.integers(0, 9).flatmap(lambda number: alone if number == 0 else joined if number % 2 else apart)
    return st.lists(word, min_size=1, max_size=3).map(lambda words: [one for some in words for one in some])


def as_word(value: Any) -> str:
    text = (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    )
    return (
        text.replace("\x00", "")
        .encode("utf-8", "surrogateescape" if text.isascii() else "replace")
        .decode("utf-8", "surrogateescape")
    )


FIT = ["data.train", "data.train.path", "data.batch_size", "data.max_padding", "data.cache", "data.predict", "data.sts"]
FIT += ["data", "model", "trainer", "model.method", "model.method.rank", "model.method.class_path", "model.loss"]
FIT += ["model.loss.temperature", "model.loss.init_args.temperature", "model.optimizer", "model.optimizer.betas"]
FIT += [
    "model.optimizer.clip",
    "model.schedule",
    "model.schedule.final",
    "model.pooling",
    "model.seed",
    "seed_everything",
]
FIT += ["trainer.precision", "trainer.devices", "trainer.strategy", "trainer.accelerator", "trainer.callbacks"]
FIT += ["trainer.max_time", "trainer.val_check_interval", "trainer.plugins", "trainer.profiler", "trainer.max_steps"]
FIT += [
    "budget",
    "allow_repeat",
    "output",
    "ckpt_path",
    "branch.budgets",
    "checkpoint.every_n_steps",
    "config",
    "data.train+",
]


def test_any_command_line_is_sane_or_refused(fuzz: Fuzz, tmp_path: Path, made: Callable[[Sequence[str]], None]) -> None:
    base = write(tmp_path / "config.yaml", yaml.safe_dump(configuration(tmp_path)).encode())
    fuzz(option_words(FIT), lambda words: made([*base, *words]), examples=60)


def parsers() -> dict[str, Callable[[], ErrorParser]]:
    def of(function: Callable[..., Any]) -> Callable[[], ErrorParser]:
        def make() -> ErrorParser:
            parser = ErrorParser(prog="embedlab")
            parser.add_argument("--config", action="config")
            parser.add_function_arguments(function)
            return parser

        return make

    return {
        "export": of(export),
        "pretrain": of(pretrain),
        "methods": of(methods),
        "flops": lambda: flops_parser(["flops"]),
    }


@pytest.mark.parametrize("command", list(parsers()))
def test_any_words_of_other_commands_are_parsed_or_refused(fuzz: Fuzz, command: str) -> None:
    make = parsers()[command]
    options = [option[2:] for option in make()._option_string_actions if option.startswith("--")]

    def parse(words: list[str]) -> None:
        try:
            make().parse_args(words)
        except SystemExit as stop:
            assert stop.code == 0

    fuzz(option_words(options), parse, examples=60)


def test_any_text_is_a_configuration_or_refused(fuzz: Fuzz) -> None:
    pieces = st.sampled_from(
        ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", "&a ", "*a", "!!str ", "'", '"', "#", "|", "<<: "]
    )
    fuzz(
        st.lists(pieces | st.text(max_size=3), max_size=30).map("".join),
        lambda text: parse_config(text, "run.yaml"),
        examples=300,
    )
