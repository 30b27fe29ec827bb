"""Provides default data without a network: pairs and text from the running interpreter's standard library.

A pair is the summary of a docstring and the source code of the documented function, method or class, without any
docstring. Only the standard library itself is read: no installed packages, no tests, no files generated when Python was
built. A text that occurs more than once is kept once, so that no query has two answers and no text is on both sides of
a split.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import textwrap
import tokenize
from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path

from embedlab.errors import DataError

MIN_QUERY_WORDS = 3
"""Minimum number of words in a summary. A shorter summary, such as "See above.", is no useful query."""

_TEST_FOLDERS = {"test", "tests", "idle_test"}
_CHARACTER_TABLES = "encodings"
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def pairs() -> Iterator[tuple[str, str, str]]:
    """Return an iterator over the pairs of the standard library, in the order of files and lines.

    Yields:
        Three strings: the query (the first sentence of a docstring), the positive (the dedented source code of the
        function, method or class without docstrings), and the key to split by (the top-level module or package,
        because modules of one package resemble each other).

    Raises:
        DataError: If the interpreter comes without the source files of its standard library.
    """
    return iter(_mined())


def pairs_of(source: str) -> Iterator[tuple[str, str]]:
    """Yield query and positive of each function, method and class with a docstring in the source of one file.

    A definition is left out if its summary has fewer than ``MIN_QUERY_WORDS`` words, or if its body is only a
    docstring.
    """
    tree = ast.parse(source)
    documented = [node for node in ast.walk(tree) if isinstance(node, _Documented)]
    # Positions in the syntax tree count UTF-8 bytes, and lines as bytes.splitlines does. str.splitlines would also end
    # a line at a form feed.
    lines = _without([node.body[0] for node in documented if ast.get_docstring(node)], source.encode().splitlines())
    for node in sorted(documented, key=lambda node: node.lineno):
        docstring = ast.get_docstring(node)
        if docstring is None or len(node.body) == 1:  # a body that is only a docstring has no source code
            continue
        query = _summary(docstring)
        if len(re.findall(r"\w+", query)) < MIN_QUERY_WORDS:
            continue
        kept = [line for line in lines[node.lineno - 1 : node.end_lineno] if line.strip()]
        yield query, textwrap.dedent(b"\n".join(kept).decode()).strip()


def texts(exclude: Container[str] = ()) -> Iterator[str]:
    """Yield the standard library's source files, docstrings included, as text to pre-train a language model on.

    The ``encodings`` package is left out because it consists of character tables.

    Args:
        exclude: Names of top-level modules and packages to leave out.

    Raises:
        DataError: If the interpreter comes without the source files of its standard library.
    """
    for file in _files():
        if (module := _top_level(file)) not in exclude and module != _CHARACTER_TABLES:
            yield _source(file)


def modules() -> list[str]:
    """Return the sorted names of the top-level modules and packages that have source files.

    Raises:
        DataError: If the interpreter comes without the source files of its standard library.
    """
    return sorted({_top_level(file) for file in _files()})


def fingerprint() -> str:
    """Return hexadecimal digits that change with the standard library's source files.

    Raises:
        DataError: If the interpreter comes without the source files of its standard library.
    """
    digest = hashlib.sha256()
    for file in _files():
        content = file.read_bytes()
        digest.update(f"{file.relative_to(_root()).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _top_level(file: Path) -> str:
    return file.relative_to(_root()).parts[0].removesuffix(".py")


def _files() -> list[Path]:
    root = _root()
    # The names that the interpreter lists do not include site-packages, lib-dynload, the test package, or files that
    # the build of Python left there (_sysconfigdata…, config-…).
    files = [
        file
        for entry in sorted(root.glob("*"))
        if entry.name.removesuffix(".py") in sys.stdlib_module_names
        for file in ([entry] if entry.suffix == ".py" else sorted(entry.rglob("*.py")))
        if not _TEST_FOLDERS & set(file.relative_to(root).parts)
    ]
    if not files:
        raise DataError(
            f"'python-stdlib' needs the source files of the standard library, but {root} holds none: this interpreter "
            f"({sys.executable}) comes with compiled or zipped modules alone. Use an interpreter that has them "
            "(python.org, conda, uv, apt), or name your own data."
        )
    return files


def _source(file: Path) -> str:
    with tokenize.open(file) as stream:  # unlike open, decodes by the file's coding declaration
        return stream.read()


@lru_cache(maxsize=1)  # because parsing takes seconds, and several parts of a run need it
def _mined() -> tuple[tuple[str, str, str], ...]:
    mined: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for file in _files():
        for query, positive in pairs_of(_source(file)):
            # Texts that differ only in case or indentation count as the same text.
            same_query, same_positive = query.lower(), "".join(positive.split())
            if same_query not in seen and same_positive not in seen:
                seen |= {same_query, same_positive}
                mined.append((query, positive, _top_level(file)))
    if not mined:
        raise DataError(
            f"No function in {_root()} has a docstring: its docstrings were stripped. Use another interpreter."
        )
    return tuple(mined)


def _without(docstrings: list[ast.stmt], lines: list[bytes]) -> list[bytes]:
    """Return the lines with the docstrings cut out. The number of lines stays the same."""
    cut = list(lines)
    for docstring in docstrings:
        assert docstring.end_lineno is not None and docstring.end_col_offset is not None
        first, last = docstring.lineno - 1, docstring.end_lineno - 1
        after = cut[last][docstring.end_col_offset :].lstrip(b"; ")
        before = cut[first][: docstring.col_offset]
        cut[first : last + 1] = [before + after, *[b""] * (last - first)]
    return cut


def _summary(docstring: str) -> str:
    """Return the first sentence of the docstring's first paragraph, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[^.]\w[.!?])\s+(?=[A-Z(`'\"])", paragraph, maxsplit=1)[0]
