"""Methods on the command line: their list, and an error that knows them."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedlab import registry
from embedlab.errors import suggestion
from embedlab.parser import ErrorParser


class MethodParser(ErrorParser):
    """Adds to a message about a method what it leaves out: those that are registered, and the nearest."""

    def readable(self, message: str) -> str:
        """The message of an error as the user reads it."""
        if "FineTuningMethod" not in message and "model.method" not in message:
            return message
        names = list(registry.discover())
        words = re.findall(r"\w+", message)
        received = max(words, key=lambda word: max(_similarity(word, name) for name in names))
        if received in names:
            registry.method_class(received)  # says why a broken one cannot be used
        return f"{message}\nRegistered methods: {', '.join(names)}.{suggestion(received, names)}"


def _similarity(left: str, right: str) -> float:
    return SequenceMatcher(None, left.lower(), right.lower()).ratio()


def methods() -> None:
    """Lists the registered fine-tuning methods, where they come from and their options."""
    table = Table("method", "from", "options", "what it does", show_lines=True)
    for row in registry.rows():
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
