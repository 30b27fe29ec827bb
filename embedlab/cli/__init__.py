"""The command line: one module per command, and one parser and one console for all commands."""

from embedlab.cli.commands import main

__all__ = ["main"]
