"""The command line: every command, and how its errors end.

A command is imported when it is run, so that those which only plan do not wait for torch.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Any

from embedlab.cli.config_file import read_config
from embedlab.cli.parser import ErrorParser
from embedlab.errors import ConfigError, EmbedLabError, plain_text, suggestion


def _function(name: str, home: str) -> Callable[[Sequence[str]], None]:
    """A command from a function: its signature and docstring are the schema and the help."""

    def run(arguments: Sequence[str]) -> None:
        command = _imported(home)
        parser = ErrorParser(prog=f"embedlab {name}")
        parser.add_argument("--config", action="config", help="Path to a configuration file.")
        parser.add_function_arguments(command)
        options = parser.parse_args(list(arguments))
        options.pop("config", None)
        command(**parser.instantiate(options).as_dict())

    return run


def _planning(name: str, home: str) -> Callable[[Sequence[str]], None]:
    """A command of ``embedlab.search``, with this parser's errors."""

    def run(arguments: Sequence[str]) -> None:
        _imported(home)(ErrorParser(prog=f"embedlab {name}"), arguments)

    return run


def _itself(name: str, home: str) -> Callable[[Sequence[str]], None]:
    """A command that makes its own parser, and is told its name, since it may have several."""
    return lambda arguments: _imported(home)([name, *arguments])


def _imported(home: str) -> Callable[..., Any]:
    module, name = home.split(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


_LONGEST_MESSAGE = 1_900  # characters: more is no message but a dump
_TRAINER = (_itself, "embedlab.cli.training:train")
COMMANDS: dict[str, tuple[str, Callable[[str, str], Callable[[Sequence[str]], None]], str]] = {
    "fit": ("train an embedding model", *_TRAINER),
    "validate": ("evaluate a checkpoint on the validation sets", *_TRAINER),
    "test": ("evaluate a checkpoint on the test split", *_TRAINER),
    "predict": ("write the embeddings of a file of texts", *_TRAINER),
    "export": ("write a checkpoint as a Sentence-Transformers folder", _function, "embedlab.training.export:export"),
    "pretrain": (
        "pre-train a ladder of small language models from raw text",
        _function,
        "embedlab.pretraining.ladder:pretrain",
    ),
    "flops": ("show what training costs, without training", _itself, "embedlab.cli.flops:flops"),
    "runs": ("list, show or export what has been run", _planning, "embedlab.cli.runs:runs_command"),
    "search": (
        "train a suite by several methods at rising budgets",
        _planning,
        "embedlab.cli.search:search_command",
    ),
    "recipe": (
        "say what to train with a budget, from finished runs",
        _planning,
        "embedlab.cli.recipe:recipe_command",
    ),
    "report": (
        "show what finished runs say, as a page to look at",
        _planning,
        "embedlab.cli.report:report_command",
    ),
    "worker": ("train what a search writes to its input", _itself, "embedlab.cli.worker:worker"),
    "methods": ("list the registered fine-tuning methods", _function, "embedlab.cli.methods:methods"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; errors that the user can mend end with exit status 2 and no traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: embedlab COMMAND [--config FILE] [OPTIONS]\n\ncommands:")
        for name, (summary, *_) in COMMANDS.items():
            print(f"  {name:<10}{summary}")
        print("\n`embedlab COMMAND --help` lists a command's options.")
        return
    _quiet()
    _printable()
    try:
        if arguments[0] not in COMMANDS:
            raise ConfigError(
                f"Unknown command '{arguments[0]}'. Commands: {', '.join(COMMANDS)}."
                + suggestion(arguments[0], COMMANDS)
            )
        _read_configurations(arguments[1:])
        _, kind, home = COMMANDS[arguments[0]]
        kind(arguments[0], home)(arguments[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except EmbedLabError as error:
        message = plain_text(error, longest=_LONGEST_MESSAGE, keep_newlines=True)  # it may quote a file of somebody's
        print(f"embedlab: {type(error).__name__}: {message}", file=sys.stderr)
        sys.exit(2)


def _quiet() -> None:
    """Keeps what users cannot act on off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")  # main has split off the command
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # metrics are computed over all ranks' texts
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # without validation
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")


def _printable() -> None:
    """Lets a terminal of ASCII alone show a path of other characters, in place of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _read_configurations(words: Sequence[str]) -> None:
    """Refuses a configuration that cannot be read before anything slow is imported."""
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        path = value if equals else following
        if option in ("-c", "--config") and path and not path.startswith(("-", "{")) and not Path(path).is_fifo():
            read_config(path)
