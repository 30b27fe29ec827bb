"""Text of others is shown as text, wherever it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import text

from embedlab.errors import plain_text


@given(text())
def test_nothing_that_is_shown_is_hidden(received: str) -> None:
    shown = plain_text(received, longest=None)
    assert shown.isprintable()
    assert shown == received or not received.isprintable()
    shown.encode()  # halves of surrogate pairs are escaped, too


@pytest.mark.parametrize(
    ("received", "shown"),
    [
        ("Grüße, 日本, 🙂", "Grüße, 日本, 🙂"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),
        ("a\u200bb\r\nc", r"a\u200bb\r\nc"),
        ("\ud800", r"\ud800"),
    ],
)
def test_letters_stay_and_controls_are_escaped(received: str, shown: str) -> None:
    assert plain_text(received) == shown


def test_a_long_name_is_cut_and_a_message_keeps_its_lines() -> None:
    assert plain_text("x" * 10**6) == "x" * 199 + "…"
    assert plain_text("one\ntwo\x1b", keep_newlines=True) == "one\ntwo\\x1b"
