"""Fine-tuning methods on the command line: the command that lists them, and helpful errors for unknown names."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from embedlab.cli.console import console
from embedlab.cli.parser import ErrorParser
from embedlab.errors import suggestion
from embedlab.method import FineTuningMethod, registry


class MethodParser(ErrorParser):
    """A parser whose message about an unknown method lists the registered methods and suggests the nearest name."""

    def refused_class(self, base: type, received: str) -> str:
        """Return sentences to add to the message about a name that is not a subclass of a base class.

        Args:
            base: Base class that the option expects.
            received: Name that the user wrote.

        Raises:
            PluginError: If the name belongs to a registered method that cannot be loaded.
        """
        if base is not FineTuningMethod:
            return super().refused_class(base, received)
        names = list(registry.discover())
        if received in names:
            registry.method_class(received)  # raises an error with the reason
        return f" Registered methods: {', '.join(names)}.{suggestion(received, names)}"


def methods() -> None:
    """List the registered fine-tuning methods, with the package that provides each method and its options."""
    table = Table("method", "package", "options", "description", show_lines=True)
    for row in registry.rows():
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)
