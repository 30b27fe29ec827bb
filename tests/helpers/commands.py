"""Commands of `embedlab` in this process, for tests that pass many inputs through them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from embedlab.cli.commands import main
from embedlab.errors import EmbedLabError


def printed_by(arguments: Sequence[str]) -> str:
    """What a command prints, when nothing in it is a command to the terminal.

    Raises:
        EmbedLabError: If it is refused.
    """
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as stop:
            status = stop.code
    for line in (out.getvalue() + err.getvalue()).split("\n"):
        assert line.isprintable(), f"controls the terminal: {line!r}"
    if status == 2:
        message = err.getvalue().rpartition("embedlab: ")[2]
        assert "Traceback" not in err.getvalue()
        raise EmbedLabError(message)
    assert status in (0, None), status
    return out.getvalue()
