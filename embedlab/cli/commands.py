"""The entry point of the command line: finds the command that the user names, runs it, and shows its errors.

A command is imported only when it is run, so that commands that do not train need not wait for the import of torch.
"""

from __future__ import annotations

import gc
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
    """Return a command that calls a function, whose signature and docstring define the options and the help.

    Args:
        name: Name of the command.
        home: Location of the function, as ``module:function``.
    """

    def run(arguments: Sequence[str]) -> None:
        command = _imported(home)
        parser = ErrorParser(prog=f"embedlab {name}", description=(command.__doc__ or "").partition("\n")[0])
        parser.add_argument("--config", action="config", help="Path to a configuration file.")
        parser.add_function_arguments(command)
        options = parser.parse_args(list(arguments))
        options.pop("config", None)
        command(**parser.instantiate(options).as_dict())

    return run


def _planning(name: str, home: str) -> Callable[[Sequence[str]], None]:
    """Return a command that calls a function with a new parser and the words of the command line.

    Args:
        name: Name of the command.
        home: Location of the function, as ``module:function``.
    """

    def run(arguments: Sequence[str]) -> None:
        _imported(home)(ErrorParser(prog=f"embedlab {name}"), arguments)

    return run


def _itself(name: str, home: str) -> Callable[[Sequence[str]], None]:
    """Return a command that calls a function that makes its own parser and may serve several commands.

    Args:
        name: Name of the command; the function receives it as the first word.
        home: Location of the function, as ``module:function``.
    """
    return lambda arguments: _imported(home)([name, *arguments])


def _imported(home: str) -> Callable[..., Any]:
    module, name = home.split(":")
    gc.disable()  # what an import creates stays: looking for garbage in it takes a sixth of the time
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    finally:
        gc.enable()
    return function


_LONGEST_MESSAGE = 1_900  # characters; nobody reads a longer message
_TRAINER = (_itself, "embedlab.cli.training:train")
COMMANDS: dict[str, tuple[str, Callable[[str, str], Callable[[Sequence[str]], None]], str]] = {
    "fit": ("Train an embedding model.", *_TRAINER),
    "validate": ("Evaluate a checkpoint on the validation sets.", *_TRAINER),
    "test": ("Evaluate a checkpoint on the test split.", *_TRAINER),
    "predict": ("Write the embeddings of the texts in a file.", *_TRAINER),
    "export": ("Write a checkpoint as a Sentence-Transformers folder.", _function, "embedlab.training.export:export"),
    "pretrain": (
        "Pre-train a ladder of small language models on raw text.",
        _function,
        "embedlab.pretraining.ladder:pretrain",
    ),
    "flops": ("Estimate the cost of training without training.", _itself, "embedlab.cli.flops:flops"),
    "runs": ("List, show or export finished runs.", _planning, "embedlab.cli.runs:runs_command"),
    "search": (
        "Train a suite of backbones with several methods at rising budgets.",
        _planning,
        "embedlab.cli.search:search_command",
    ),
    "recipe": (
        "Recommend what to train with a compute budget, based on finished runs.",
        _planning,
        "embedlab.cli.recipe:recipe_command",
    ),
    "report": (
        "Write a web page with the results of finished runs.",
        _planning,
        "embedlab.cli.report:report_command",
    ),
    "worker": ("Train the trials that a search sends to standard input.", _itself, "embedlab.cli.worker:worker"),
    "methods": ("List the registered fine-tuning methods.", _function, "embedlab.cli.methods:methods"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. An error that the user can fix ends with exit status 2 and without a traceback.

    Args:
        arguments: Words of the command line after the program name; ``sys.argv`` by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: embedlab COMMAND [--config FILE] [OPTIONS]\n\ncommands:")
        for name, (summary, *_) in COMMANDS.items():
            print(f"  {name:<10}{summary}")
        print("\n`embedlab COMMAND --help` lists the options of a command.")
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
    except BrokenPipeError:  # the reader of the output, for example `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except EmbedLabError as error:
        message = plain_text(error, longest=_LONGEST_MESSAGE, keep_newlines=True)  # may quote an untrusted file
        print(f"embedlab: {type(error).__name__}: {message}", file=sys.stderr)
        sys.exit(2)


def _quiet() -> None:
    """Hide warnings and log lines of libraries that the user cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")  # main passes args on purpose
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # metrics are computed over all ranks' texts
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # without validation
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")


def _printable() -> None:
    """Make the output escape characters that the terminal cannot encode, instead of raising an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _read_configurations(words: Sequence[str]) -> None:
    """Read every configuration that the words name, so that a bad file is refused before slow imports.

    Raises:
        ConfigError: If a configuration cannot be read.
    """
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        path = value if equals else following
        if option in ("-c", "--config") and path and not path.startswith(("-", "{")) and not Path(path).is_fifo():
            read_config(path)
