"""Methods on the command line: their list, and an error that knows them."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from embedlab.cli.console import console
from embedlab.cli.parser import ErrorParser
from embedlab.errors import suggestion
from embedlab.method import FineTuningMethod, registry


class MethodParser(ErrorParser):
    """Adds to a message about a method what it leaves out: those that are registered, and the nearest."""

    def refused_class(self, base: type, received: str) -> str:
        """Return what to add to a message about a name that is no class of this base.

        Raises:
            PluginError: If it is a registered method that cannot be used.
        """
        if base is not FineTuningMethod:
            return super().refused_class(base, received)
        names = list(registry.discover())
        if received in names:
            registry.method_class(received)  # says why a broken one cannot be used
        return f" Registered methods: {', '.join(names)}.{suggestion(received, names)}"


def methods() -> None:
    """Lists the registered fine-tuning methods, where they come from and their options."""
    table = Table("method", "from", "options", "what it does", show_lines=True)
    for row in registry.rows():
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)
