"""An error of embedlab is found behind whatever a library has made of it."""

from __future__ import annotations

from embedlab.errors import ConfigError, known_cause


def test_a_cause_is_found_behind_other_errors() -> None:
    original = ConfigError("rank")
    wrapped = ValueError("a library's")
    wrapped.__context__ = original
    outer = TypeError("another's")
    outer.__cause__ = wrapped
    assert known_cause(outer) is original


def test_an_error_of_others_has_no_known_cause() -> None:
    error = ValueError("a library's")
    error.__context__ = error  # a circle, as a library may tie one
    assert known_cause(error) is None
    assert known_cause(None) is None
