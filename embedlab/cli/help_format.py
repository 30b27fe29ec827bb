"""The help texts of options in plain words: jsonargparse would show Python objects, such as functions, as types."""

from __future__ import annotations

import inspect
import re
from argparse import Action
from typing import get_type_hints

from jsonargparse import DefaultHelpFormatter

_CLASS = re.compile(r"<class '([\w.]+)'>")
_OF_A_SECTION = "Path to a configuration file."  # jsonargparse's words for the file of every section


class PlainHelp(DefaultHelpFormatter):
    """A help formatter that names types as a user would write them, and omits the default of an option without one."""

    def format_help(self) -> str:
        """Return the help text of the command, with the code in descriptions quoted as in messages."""
        return super().format_help().replace("``", "`")

    def _get_type_str(self, action: Action) -> str | None:
        kind = action.type
        if inspect.isfunction(kind):  # the function converts the value, so its result is the type of the option
            return str(get_type_hints(kind)["return"].__name__)
        text = super()._get_type_str(action)
        return None if text is None else _CLASS.sub(lambda found: found[1].rpartition(".")[2], text)

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action).replace("``", "`")  # before lines are broken
        if text == _OF_A_SECTION and action.dest != "config":
            return f"Path to a configuration file with the options of {action.dest}."
        return text.replace(", default: null", "").replace(" (default: null)", "")
