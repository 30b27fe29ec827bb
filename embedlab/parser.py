"""The parser of every command: what is wrong with an option is one line, and not a page of usage."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from embedlab.errors import ConfigError, known_cause


class ErrorParser(ArgumentParser):
    """Turns a parsing error into one line of what was received, what was expected and what to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse takes a negative number with an exponent for an option.
        self._negative_number_matcher = re.compile(r"^-\d*\.?\d+([eE][+-]?\d+)?$")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises ConfigError in place of printing a page of usage."""
        cause = known_cause(ex)
        if cause is not None:
            raise cause
        raise ConfigError(self.readable(message.strip())) from ex

    def readable(self, message: str) -> str:
        """The message of an error as the user reads it."""
        return message
