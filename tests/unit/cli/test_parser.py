"""What a user writes first works where it is unmistakable, and is one line with the remedy where it is not."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from embedlab.cli.parser import ErrorParser
from embedlab.errors import ConfigError, EmbedLabError, Preparation, in_one_line


@dataclass(frozen=True, kw_only=True)
class Source:
    """Texts.

    Args:
        path: A file.
        query: A column.
        max_rows: The most rows.
        query_prompt: A prompt.
    """

    path: str
    query: str | list[str] = "query"
    max_rows: int | None = None
    query_prompt: str = ""


class Shape:
    """A base class."""


class Round(Shape):
    """A shape.

    Args:
        radius: A length.
        filled: Whether it is.
    """

    def __init__(self, *, radius: float = 1.0, filled: bool = False) -> None:
        if radius <= 0:
            raise ConfigError(f"radius must be above 0, got {radius}.")
        self.radius = radius
        self.filled = filled


class Square(Shape):
    """Another shape."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Options of every kind.

    Args:
        train: Sources.
        predict: One.
        shape: A shape.
        batch_size: A whole number.
        rate: A number.
        betas: Two.
        mode: A choice.
        cache: A path.
        fast: A flag.
        limit: A number with a default, or none.
        extra: Anything.
    """

    train: list[Source] | None = None
    predict: Source | None = None
    shape: Shape | None = None
    batch_size: int = 8
    rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    mode: Literal["mean", "no"] = "mean"
    cache: str | None = None
    fast: bool = False
    limit: int | None = 1
    extra: dict[str, Any] = field(default_factory=dict)


def parser() -> ErrorParser:
    made = ErrorParser(prog="embedlab")
    made.add_argument("--config", action="config")
    made.add_class_arguments(Data, "data")
    made.add_argument("--output", type=str, default="runs")
    made.add_argument("--folders", nargs="+")
    made.add_argument("--json", action="store_true")
    return made


def parsed(*words: str) -> dict[str, Any]:
    options: dict[str, Any] = parser().parse_args(list(words)).as_dict()
    return options


def refusal(*words: str) -> str:
    with pytest.raises(EmbedLabError) as caught:
        parser().parse_args(list(words))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def in_yaml(folder: Path, text: str) -> list[str]:
    (folder / "run.yaml").write_text(text)
    return ["--config", str(folder / "run.yaml")]


SAME = ["pairs.jsonl", "{path: pairs.jsonl}", "[pairs.jsonl]", "[{path: pairs.jsonl}]"]


@pytest.mark.parametrize("written", SAME)
def test_one_source_is_a_list_of_one_however_it_is_written(tmp_path: Path, written: str) -> None:
    for words in (["--data.train", written], in_yaml(tmp_path, f"data:\n  train: {written}\n")):
        [source] = parsed(*words)["data"]["train"]
        assert source["path"] == "pairs.jsonl" and source["query"] == "query"


def test_the_path_of_data_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pairs.yaml").write_text("- path: other.jsonl\n")
    (tmp_path / "pairs.jsonl").write_text('{"query": "secret"}\n')
    for name in ("pairs.yaml", "pairs.jsonl"):
        [source] = parsed("--data.train", str(tmp_path / name))["data"]["train"]
        assert source["path"] == str(tmp_path / name)
    assert "secret" not in refusal("--data", str(tmp_path / "pairs.jsonl"))
    assert "secret" not in refusal("--data.extra", str(tmp_path / "pairs.jsonl"))


@pytest.mark.parametrize(("written", "value"), [("1e2", 100), ("100.0", 100), ("10_000", 10000), ("'7'", 7)])
def test_a_whole_number_is_taken_however_it_is_written(tmp_path: Path, written: str, value: int) -> None:
    assert parsed(*in_yaml(tmp_path, f"data: {{batch_size: {written}}}"))["data"]["batch_size"] == value
    assert parsed("--data.batch_size", written)["data"]["batch_size"] == value
    [source] = parsed("--data.train", f"[{{path: p, max_rows: {written}}}]")["data"]["train"]
    assert source["max_rows"] == value


@pytest.mark.parametrize("written", ["1e-3", "0.001", "1.0e-3", "'1e-3'"])
def test_a_number_is_taken_however_it_is_written(tmp_path: Path, written: str) -> None:
    assert parsed(*in_yaml(tmp_path, f"data: {{rate: {written}}}"))["data"]["rate"] == 0.001
    assert parsed("--data.rate", written)["data"]["rate"] == 0.001


@pytest.mark.parametrize("written", ["2023", "2026-11-27", "1e3", "'no'", "1:30"])
def test_a_column_keeps_the_text_it_was_written_as(written: str) -> None:
    [source] = parsed("--data.train", f"[{{path: p, query: {written}}}]")["data"]["train"]
    assert source["query"] == written.strip("'")


@pytest.mark.parametrize("option", ["rate", "batch_size"])
@pytest.mark.parametrize("written", [".nan", "nan", ".inf", "-.inf", "inf", "1e999"])
def test_a_number_without_an_end_is_refused(option: str, written: str) -> None:
    assert refusal(f"--data.{option}={written}").startswith(f"data.{option} is ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--data.train", "[{path: p, query: no}]"],
            "data.train[0].query is no, which is a truth value in YAML. For a text, write query: 'no'.",
        ),
        (["--data.batch_size", "1.5"], "data.batch_size is 1.5. Expected a whole number."),
        (["--data.batch_size", "many"], "data.batch_size is 'many'. Expected a whole number."),
        (["--data.batch_size", "null"], "data.batch_size is null. Expected a whole number, or leave the option out."),
        (["--data.batch_size", "true"], "data.batch_size is true. Expected a whole number."),
        (["--data.batch_size"], "--data.batch_size needs a value. Expected a whole number."),
        (["--data.rate", "0,5"], "Write the number with a decimal point: 0.5."),
        (["--data.betas", "[0.9]"], "Expected a list of 2 entries, each a number."),
        (["--data.mode", "median"], "data.mode is 'median'. Expected mean or no."),
        (["--data.train", "[{path: p, qery: q}]"], "Did you mean 'data.train[0].query'?"),
        (["--data.train", "[{query: q}]"], "needs a value for path"),
        (["--data.bach_size", "3"], "Unknown option 'data.bach_size'. Did you mean 'data.batch_size'?"),
        (["--batch-size", "3"], "Unknown option 'batch_size'. Did you mean 'data.batch_size'?"),
        (["--data.shape", "Rownd"], "Possible classes: Shape, Round, Square. Did you mean 'Round'?"),
        (["--data.shape", "os.system"], "Expected the name of a Shape"),
        (["--data.shape", "no.such.module"], "Expected the name of a Shape"),
        (["--data.shape", "Round", "--data.shape.width", "3"], "Unknown option 'data.shape.width'"),
        (["--data.shape", "Square", "--data.shape.radius", "3"], "not an option of Square, which has no options"),
        (["--data", "7"], "data is '7'. Expected a mapping of options"),
        (["run.yaml"], "Did you mean --config run.yaml?"),
        (["--json=7"], "Expected true or false, or no value, which means true"),
        (["--folders"], "--folders needs a value"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_the_remedy(words: list[str], said: str) -> None:
    assert said in refusal(*words)


def test_a_key_of_a_configuration_is_refused_by_its_line(tmp_path: Path) -> None:
    said = refusal(*in_yaml(tmp_path, "output: x\nbatch_size: 4\n"))
    assert said.endswith("run.yaml, line 2: Unknown option 'batch_size'. Did you mean 'data.batch_size'?")
    assert "line 3: data.rate is 'x'" in refusal(*in_yaml(tmp_path, "output: x\ndata:\n  rate: x\n"))


def test_a_flag_without_a_value_is_true() -> None:
    assert parsed("--data.fast")["data"]["fast"] is True
    assert parsed("--data.fast", "--output", "x")["data"]["fast"] is True
    assert parsed("--data.fast", "false")["data"]["fast"] is False
    assert parsed("--json")["json"] is parsed("--json", "true")["json"] is True
    assert parsed("--json=false")["json"] is False
    shape = parsed("--data.shape", "Round", "--data.shape.filled", "--data.batch_size", "3")["data"]["shape"]
    assert shape["init_args"]["filled"] is True


def test_dashes_stand_for_underscores(tmp_path: Path) -> None:
    assert parsed("--data.batch-size=3")["data"]["batch_size"] == 3
    assert parsed(*in_yaml(tmp_path, "data: {batch-size: 3}"))["data"]["batch_size"] == 3


def test_options_beside_class_path_are_those_of_the_class(tmp_path: Path) -> None:
    shape = parsed(*in_yaml(tmp_path, "data: {shape: {class_path: Round, radius: 1e1}}"))["data"]["shape"]
    assert shape["init_args"]["radius"] == 10.0


def test_null_takes_the_place_of_a_default(tmp_path: Path) -> None:
    assert parsed("--output", "x", *in_yaml(tmp_path, "data: {limit: null}"))["data"]["limit"] is None
    assert parsed("--data.limit=null")["data"]["limit"] is None


def test_an_empty_section_has_no_options(tmp_path: Path) -> None:
    assert parsed(*in_yaml(tmp_path, "data:\noutput: x\n"))["data"]["batch_size"] == 8


def test_the_home_folder_is_meant_by_a_tilde_in_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home = f"{tmp_path}/x"
    text = "output: ~/x\ndata: {cache: ~/x, train: [{path: ~/x, query_prompt: '~/x'}], extra: {deep: [~/x]}}\n"
    words = ["--output=~/x", "--data.cache", "~/x", "--data.train", "{path: ~/x, query_prompt: ~/x}", "--data.extra"]
    for options in (parsed(*in_yaml(tmp_path, text)), parsed(*words, '{"deep": ["~/x"]}', "--folders", "~/x", "b")):
        data = options["data"]
        assert options["output"] == data["cache"] == data["train"][0]["path"] == data["extra"]["deep"][0] == home
        assert data["train"][0]["query_prompt"] == "~/x", "a prompt is no path"
    assert options["folders"] == [home, "b"]


def test_the_error_of_a_constructor_reaches_the_user_as_it_was_written() -> None:
    made = parser()
    options = made.parse_args(["--data.shape", "Round", "--data.shape.radius=-1"])
    with pytest.raises(ConfigError, match=r"^radius must be above 0, got -1\.0\.$"):
        made.instantiate(options)


class Surprise(enum.Enum):
    """What a library may raise with."""

    TEXT = "several\nlines of a library"


def test_the_error_of_a_library_is_one_line_that_names_its_traceback() -> None:
    with pytest.raises(ConfigError) as caught, Preparation():
        json.loads("{" + Surprise.TEXT.value)
    message = str(caught.value)
    assert message.startswith("JSONDecodeError: ") and "\n" not in message
    path = Path(message.partition("The traceback is in ")[2].removesuffix(".)"))
    assert "Traceback" in path.read_text()
    path.unlink()


def test_an_error_after_the_first_step_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), Preparation() as preparation:
        preparation.is_over = True
        print(1 / 0)


def test_what_lightning_refuses_after_the_first_step_is_one_line() -> None:
    """As EarlyStopping does, when it looks for what it is to monitor."""
    said = r"^RuntimeError: Early stopping conditioned on metric `nosuch`"
    with pytest.raises(ConfigError, match=said), Preparation() as preparation:
        preparation.is_over = True
        EarlyStopping("nosuch")._validate_condition_metric({})


@pytest.mark.parametrize("prompt", ["null", "task: search", "[x]", "- a", "# a"])
def test_a_text_that_would_be_read_as_something_else_below_an_option_is_refused(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"^--data\.train\.query_prompt .* would not be read as text"):
        parsed("--data.train", "p", "--data.train.query_prompt", prompt)


@pytest.mark.parametrize("words", [["--data.shape.help", "Round"], ["--data.shape.help=Round"]])
def test_the_help_of_a_class_is_printed_either_way(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 0 and "--data.shape.radius" in capsys.readouterr().out


@pytest.mark.parametrize("prompt", ["", "query: ", "it's", '"quoted"', "5", "true", "1e3", "{x"])
def test_a_text_below_an_option_is_as_it_is_written(prompt: str) -> None:
    made = parsed("--data.train", "p", "--data.train.query_prompt", prompt)
    assert made["data"]["train"][0]["query_prompt"] == prompt


def test_an_interruption_on_the_way_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), Preparation():
        raise KeyboardInterrupt


def test_a_known_error_is_not_wrapped() -> None:
    error = ConfigError("as written")
    assert in_one_line(error) is error
