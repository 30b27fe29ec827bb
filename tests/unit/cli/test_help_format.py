"""Help texts name types in words and leave out what says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedlab.__main__ import main
from embedlab.cli.parser import ErrorParser
from embedlab.training.callbacks.flop_budget import number_of_flops


def _help_of(**options: object) -> str:
    parser = ErrorParser(prog="embedlab")
    parser.add_argument("--option", help="What ``it`` is for.", **options)
    return " ".join(parser.format_help().partition("--option OPTION")[2].partition("--option OPTION")[2].split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"type": number_of_flops}, "(type: float)"),
        ({"type": float}, "(type: float)"),
        ({"type": Path, "required": True}, "(required, type: Path)"),
        ({"type": float, "default": 2.0}, "(type: float, default: 2.0)"),
    ],
)
def test_types_are_names_and_a_missing_default_is_left_out(options: dict[str, object], expected: str) -> None:
    assert _help_of(**options) == f"What `it` is for. {expected}"


@pytest.mark.parametrize("command", ["export", "flops", "pretrain", "recipe", "report", "search"])
def test_no_help_shows_a_python_object(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert "usage: embedlab" in shown
    assert not [one for one in ("<class", "<function", " object at 0x", "``") if one in shown]
