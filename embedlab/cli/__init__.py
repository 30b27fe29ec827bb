"""The command line: one module a command, one parser, one console."""

from embedlab.cli.commands import main

__all__ = ["main"]
