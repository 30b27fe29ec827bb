"""Pairs and text from the standard library: whole, without docstrings, without leaks, the same every time."""

from __future__ import annotations

import ast
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedlab.data import standard_library
from embedlab.data.split import split_position
from embedlab.errors import DataError


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str, str]]:
    return list(standard_library.pairs())


@pytest.fixture
def other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of the library."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    standard_library._mined.cache_clear()
    yield tmp_path
    standard_library._mined.cache_clear()


def mined(source: str) -> list[tuple[str, str]]:
    return list(standard_library.pairs_of(textwrap.dedent(source)))


def test_there_are_thousands_of_pairs(pairs: list[tuple[str, str, str]]) -> None:
    assert len(pairs) > 5000


def test_a_well_known_function_is_found_by_its_summary(pairs: list[tuple[str, str, str]]) -> None:
    found = [positive for query, positive, module in pairs if query.startswith("Remove any common leading whitespace")]
    assert len(found) == 1 and found[0].startswith("def dedent(text):")


def test_no_positive_holds_a_docstring(pairs: list[tuple[str, str, str]]) -> None:
    num_parsed = 0
    for _, positive, _ in pairs:
        try:
            tree = ast.parse(positive)
        except SyntaxError:  # a method that was nothing but its docstring is left without a body
            continue
        num_parsed += 1
        documented = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert not any(ast.get_docstring(node) for node in documented)
    assert num_parsed > 0.97 * len(pairs)


def test_no_query_and_no_positive_occurs_twice(pairs: list[tuple[str, str, str]]) -> None:
    assert len({query for query, _, _ in pairs}) == len(pairs)
    assert len({"".join(positive.split()) for _, positive, _ in pairs}) == len(pairs)


def test_only_the_standard_library_proper_is_read() -> None:
    modules = standard_library.modules()
    assert set(modules) <= sys.stdlib_module_names and "test" not in modules
    folders = {part for file in standard_library._files() for part in file.parent.parts}
    assert not folders & {"site-packages", "dist-packages", "tests", "idle_test"}


def test_modules_held_out_of_the_text_leave_none_of_their_sources_there() -> None:
    held_out = {module for module in standard_library.modules() if split_position(module) < 0.15}
    assert 0.05 < len(held_out) / len(standard_library.modules()) < 0.3
    whole, kept = list(standard_library.texts()), set(standard_library.texts(held_out))
    left_out = [text for text in whole if text not in kept]
    assert kept < set(whole) and len(left_out) >= len(held_out - {"encodings"})
    import difflib

    assert "difflib" in held_out, "choose another module of the held-out ones"
    assert Path(difflib.__file__).read_text() in left_out


def test_pairs_and_fingerprint_are_the_same_every_time(pairs: list[tuple[str, str, str]]) -> None:
    standard_library._mined.cache_clear()
    assert list(standard_library.pairs()) == pairs
    assert standard_library.fingerprint() == standard_library.fingerprint()


def test_the_fingerprint_changes_with_any_source(other_library: Path) -> None:
    (other_library / "abc.py").write_text("a = 1\n")
    before = standard_library.fingerprint()
    (other_library / "abc.py").write_text("a = 2\n")
    assert standard_library.fingerprint() != before


def test_a_library_without_sources_is_an_error_that_says_what_to_do(other_library: Path) -> None:
    (other_library / "site-packages").mkdir()
    (other_library / "site-packages" / "abc.py").write_text("def f():\n    'Not of the library.'\n    return 1\n")
    for use in (standard_library.pairs, lambda: list(standard_library.texts()), standard_library.fingerprint):
        with pytest.raises(DataError, match=r"holds none.*Use an interpreter that has them"):
            use()


def test_a_library_without_docstrings_is_an_error(other_library: Path) -> None:
    (other_library / "abc.py").write_text("def f():\n    return 1\n")
    with pytest.raises(DataError, match="stripped"):
        standard_library.pairs()


def test_functions_methods_and_classes_are_pairs_without_any_docstring_in_them() -> None:
    assert mined(
        '''
        class Stack:
            """A last-in, first-out container. Not thread-safe."""

            @property
            def top(self):
                """Return the item that was
                pushed last.

                Raises nothing.
                """
                return self.items[-1]

        async def read(stream):
            "Read all there is.";  return await stream.read()
        '''
    ) == [
        (
            "A last-in, first-out container.",
            "class Stack:\n    @property\n    def top(self):\n        return self.items[-1]",
        ),
        ("Return the item that was pushed last.", "def top(self):\n    return self.items[-1]"),
        ("Read all there is.", "async def read(stream):\n    return await stream.read()"),
    ]


def test_a_function_without_a_body_or_a_telling_summary_is_no_pair() -> None:
    assert mined('def a():\n    """Does nothing at all."""\n') == []
    assert mined('def a():\n    """See above."""\n    return 1\n') == []


def test_form_feeds_and_letters_of_several_bytes_do_not_shift_lines() -> None:
    first = '\x0c\ndef größe():\n    """Die Größe in Bytes."""; return "ä"\n\x0c\n'
    source = first + 'def b():\n    """One two three."""\n    return 2\n'
    assert mined(source) == [
        ("Die Größe in Bytes.", 'def größe():\n    return "ä"'),
        ("One two three.", "def b():\n    return 2"),
    ]


def test_an_abbreviation_does_not_end_a_summary() -> None:
    assert (
        mined('def a():\n    """Return, e.g. The answer. Or not."""\n    return 1\n')[0][0]
        == "Return, e.g. The answer."
    )
