"""The embedded default data: pairs and text from the running interpreter's standard library, with no network.

A pair is the summary of a docstring and the source of what it documents, without any docstring. Only the
standard library proper is read: no installed packages, no tests, nothing generated at build time. Texts that
occur more than once are kept once, so that no query has two answers and no text is on both sides of a split.
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
"""Shorter summaries ("See above.") name nothing that could be looked for."""

_TEST_FOLDERS = {"test", "tests", "idle_test"}
_CHARACTER_TABLES = "encodings"
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def pairs() -> Iterator[tuple[str, str, str]]:
    """Mines the standard library, in the order of its files and lines.

    Yields:
        Query (the first sentence of a docstring), positive (the source of the function, method or class
        without its docstring and those within it, dedented), and the top-level module or package that it is
        from: the key to split by, because modules of one package resemble each other.

    Raises:
        DataError: if the interpreter comes without the sources of its library.
    """
    return iter(_mined())


def pairs_of(source: str) -> Iterator[tuple[str, str]]:
    """Query and positive of each function, method and class with a docstring in the source of one file.

    Left out are those whose summary has fewer than ``MIN_QUERY_WORDS`` words, and those that have nothing but a
    docstring.
    """
    tree = ast.parse(source)
    documented = [node for node in ast.walk(tree) if isinstance(node, _Documented)]
    # Positions in the tree count lines and UTF-8 bytes; a form feed ends a line for str.splitlines, not there.
    lines = _without([node.body[0] for node in documented if ast.get_docstring(node)], source.encode().splitlines())
    for node in sorted(documented, key=lambda node: node.lineno):
        docstring = ast.get_docstring(node)
        if docstring is None or len(node.body) == 1:  # nothing but a docstring has no source to find
            continue
        query = _summary(docstring)
        if len(re.findall(r"\w+", query)) < MIN_QUERY_WORDS:
            continue
        kept = [line for line in lines[node.lineno - 1 : node.end_lineno] if line.strip()]
        yield query, textwrap.dedent(b"\n".join(kept).decode()).strip()


def texts(exclude: Container[str] = ()) -> Iterator[str]:
    """The library's source files, docstrings and all, as text to pre-train a language model on.

    The ``encodings`` package is left out: it is tables of characters.

    Args:
        exclude: top-level modules and packages to leave out.

    Raises:
        DataError: if the interpreter comes without the sources of its library.
    """
    for file in _files():
        if (module := _top_level(file)) not in exclude and module != _CHARACTER_TABLES:
            yield _source(file)


def modules() -> list[str]:
    """The top-level modules and packages that have sources, sorted.

    Raises:
        DataError: if the interpreter comes without the sources of its library.
    """
    return sorted({_top_level(file) for file in _files()})


def fingerprint() -> str:
    """Hexadecimal digits that change with the library's sources.

    Raises:
        DataError: if the interpreter comes without the sources of its library.
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
    # The names are the interpreter's own: site-packages, lib-dynload, the test package, and what the build
    # left there (_sysconfigdata…, config-…) are not among them.
    files = [
        file
        for entry in sorted(root.glob("*"))
        if entry.name.removesuffix(".py") in sys.stdlib_module_names
        for file in ([entry] if entry.suffix == ".py" else sorted(entry.rglob("*.py")))
        if not _TEST_FOLDERS & set(file.relative_to(root).parts)
    ]
    if not files:
        raise DataError(
            f"'python-stdlib' needs the sources of the standard library, and {root} holds none: this interpreter "
            f"({sys.executable}) comes with compiled or zipped modules alone. Use one that has them (python.org, "
            "conda, uv, apt), or name your own data."
        )
    return files


def _source(file: Path) -> str:
    with tokenize.open(file) as stream:  # heeds the file's coding declaration
        return stream.read()


@lru_cache(maxsize=1)  # parsing takes seconds, and several parts of a run ask
def _mined() -> tuple[tuple[str, str, str], ...]:
    mined: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for file in _files():
        for query, positive in pairs_of(_source(file)):
            # Twice with other indentation or case is still twice.
            same_query, same_positive = query.lower(), "".join(positive.split())
            if same_query not in seen and same_positive not in seen:
                seen |= {same_query, same_positive}
                mined.append((query, positive, _top_level(file)))
    if not mined:
        raise DataError(f"No function in {_root()} has a docstring: this copy of the standard library is stripped.")
    return tuple(mined)


def _without(docstrings: list[ast.stmt], lines: list[bytes]) -> list[bytes]:
    """The lines with the docstrings cut out, as many as before."""
    cut = list(lines)
    for docstring in docstrings:
        assert docstring.end_lineno is not None and docstring.end_col_offset is not None
        first, last = docstring.lineno - 1, docstring.end_lineno - 1
        after = cut[last][docstring.end_col_offset :].lstrip(b"; ")
        before = cut[first][: docstring.col_offset]
        cut[first : last + 1] = [before + after, *[b""] * (last - first)]
    return cut


def _summary(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[^.]\w[.!?])\s+(?=[A-Z(`'\"])", paragraph, maxsplit=1)[0]
