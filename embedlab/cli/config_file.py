"""Reads a configuration strictly: what was written stays known, with its line, and a slip is named by it.

YAML turns ``no`` into a truth value, ``1:30`` into 90 and lets the second of two equal keys win. Here each value keeps
the text that it was written as, so that the option that it is for decides what it means.
"""

from __future__ import annotations

import codecs
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from embedlab.errors import ConfigError, suggestion

_MOST_BYTES = 4 << 20  # more is no configuration but a file of data
_LONGEST_NAME = 200  # characters of a path in a message
_MOST_VALUES = 200_000  # that aliases may unfold to
_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"  # the tag of a scalar without quotes or a tag of its own
_DATA_SUFFIXES = {".jsonl", ".csv", ".tsv", ".parquet", ".gz"}

_NULLS = {"", "~", "null", "Null", "NULL"}
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WHOLE = re.compile(r"[-+]?[0-9][0-9_]*")
_NUMBER = re.compile(
    r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)


@dataclass(frozen=True)
class Scalar:
    """A single value.

    Attributes:
        value: The value that YAML takes it for.
        text: The value as it was written, without quotes.
        place: Where it stands, ``run.yaml, line 3: ``, or nothing for the command line.
        quoted: Whether it was written in quotes, and so meant as text.
    """

    value: bool | int | float | str | None
    text: str
    place: str = ""
    quoted: bool = False


class Section(dict[str, "Node"]):
    """A mapping that knows where it and its keys stand."""

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self.place = place
        self.places: dict[str, str] = {}


class Items(list["Node"]):
    """A list that knows where it stands."""

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self.place = place


Node = Scalar | Section | Items


def resolved(text: str) -> bool | int | float | str | None:
    """Return the value of a text without quotes: null, a truth value, a number, or the text.

    >>> [resolved(text) for text in ("1e-3", "10_000", "no", "2026-11-27", "1:30", "~")]
    [0.001, 10000, False, '2026-11-27', '1:30', None]
    """
    if text in _NULLS:
        return None
    if text in (text.lower(), text.capitalize(), text.upper()) and text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    try:
        if _WHOLE.fullmatch(text):
            return int(text)
        if _NUMBER.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # two underscores side by side, or thousands of digits
        return text
    return text


def read_config(path: str) -> Section:
    """Read a configuration file: YAML or JSON, in UTF-8 or with the mark of UTF-16.

    Args:
        path: The file, ``-`` for standard input; ``~`` is the home folder.

    Raises:
        ConfigError: If there is no such file, or it holds no configuration; the message says where.
    """
    name = path if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]}…"
    file = Path(path)
    try:
        file = file.expanduser()
        if path == "-":
            content = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as stream:
                content = stream.read(_MOST_BYTES + 1)
    except IsADirectoryError as error:
        inside = sorted(entry.name for entry in file.glob("*.yaml"))[:3]
        holds = f" It holds {', '.join(inside)}." if inside else ""
        raise ConfigError(f"The configuration '{name}' is a folder. Name a file in it.{holds}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a null byte; the home folder of a user who has none
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The configuration '{name}' cannot be read: {reason}.{_nearest(file)}") from error
    if file.suffix in _DATA_SUFFIXES:
        raise ConfigError(
            f"'{path}' is a file of data, not a configuration. Name it in data.train, as in --data.train {path}."
        )
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"'{path}' is too long for a configuration: more than {_MOST_BYTES >> 20} MiB. Files of data are named in "
            "data.train."
        )
    text = _decoded(content, path)
    if file.suffix == ".json":  # which may be indented by tabs, as YAML may not
        text = _LEADING_TABS.sub(lambda tabs: "  " * len(tabs[0]), text)
    return parse_config(text, path)


def parse_config(text: str, name: str) -> Section:
    """Parse the text of a configuration; an empty one has no options.

    Args:
        text: YAML or JSON.
        name: What messages call it.

    Raises:
        ConfigError: If it is not a mapping.
    """
    node = parse_value(text, name)
    if isinstance(node, Section):
        return node
    if isinstance(node, Scalar) and node.value is None:
        return Section(f"{name}: ")
    holds = "a list" if isinstance(node, Items) else "a single value"
    raise ConfigError(f"{name} holds {holds}. A configuration names options, for example data: {{batch_size: 64}}.")


def parse_value(text: str, name: str = "") -> Node:
    """Parse YAML, of which JSON is a part.

    Args:
        text: What to parse.
        name: What messages call it; empty for the command line.

    Raises:
        ConfigError: If it is no valid YAML, has a key twice, or unfolds to more than a configuration can hold.
    """
    try:
        return _Nodes(name).of(yaml.compose(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{name}, line {mark.line + 1}" if name and mark is not None else name or "The value"
        problem = error.problem or "cannot be parsed"
        if "'\\t'" in problem:
            problem = "a tab stands where YAML allows spaces only. Indent with spaces"
        elif "expected a single document" in (error.context or ""):
            problem = "a second document begins here. A configuration is a single one, without lines of ---"
        raise ConfigError(f"{line} is no valid YAML: {problem}.") from error
    except yaml.YAMLError as error:  # of the reader: a character that no text file holds
        raise ConfigError(f"{name or 'The value'} is no text: it holds control characters.") from error
    except (RecursionError, ValueError) as error:  # ValueError: an escape beyond Unicode
        raise ConfigError(f"{name or 'The value'} is no valid YAML, or too deeply nested.") from error


class _Loader(yaml.SafeLoader):
    """Leaves to the option what a scalar means, and tells those in quotes from those without."""

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else f"{_TAG}str"
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag


class _Nodes:
    """Makes our nodes of YAML's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = _MOST_VALUES

    def of(self, node: yaml.Node | None) -> Node:
        if node is None:
            return Scalar(None, "", f"{self._name}: " if self._name else "")
        self._left -= 1
        if self._left < 0:
            raise ConfigError(f"{self._name or 'The value'} unfolds to more than {_MOST_VALUES:,} values.")
        place = self._place(node)
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._section(node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            items = Items(place)
            items.extend(self.of(one) for one in node.value)
            return items
        if isinstance(node, yaml.ScalarNode):
            text: str = node.value
            if kind == _PLAIN or kind in ("int", "float", "bool", "null"):
                return Scalar(resolved(text), text, place)
            if kind in ("str", "timestamp"):
                return Scalar(text, text, place, quoted=True)
        raise ConfigError(f"{place}the YAML tag {node.tag[:60]} is not understood. Write the value without a tag.")

    def _section(self, node: yaml.MappingNode) -> Section:
        section = Section(self._place(node))
        merged: list[Section] = []
        for key, value in node.value:
            place = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{place}a name of an option is a text, not a list or a mapping.")
            if key.tag == _PLAIN and key.value == "<<":
                merged += self._merged(value, place)
                continue
            name: str = key.value
            if name in section:
                before = section.places[name].removesuffix(": ").rpartition(", ")[2]
                first = f" It stood in {before} already." if before else ""
                raise ConfigError(f"{place}'{name[:60]}' is there twice.{first} Remove one.")
            section[name] = self.of(value)
            section.places[name] = place
        for other in merged:
            for name, one in other.items():
                if name not in section:
                    section[name] = one
                    section.places[name] = other.places[name]
        return section

    def _merged(self, value: yaml.Node, place: str) -> list[Section]:
        made = self.of(value)
        sections = list(made) if isinstance(made, Items) else [made]
        if not all(isinstance(one, Section) for one in sections):
            raise ConfigError(f"{place}<< merges mappings only.")
        return [one for one in sections if isinstance(one, Section)]

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}, line {node.start_mark.line + 1}: " if self._name else ""


def plain(node: Node) -> Any:
    """Return what a node holds as Python's own values."""
    if isinstance(node, Section):
        return {name: plain(one) for name, one in node.items()}
    if isinstance(node, Items):
        return [plain(one) for one in node]
    return node.value


def _decoded(content: bytes, path: str) -> str:
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse_encoding(content, path, error)


def _refuse_encoding(content: bytes, path: str, error: UnicodeDecodeError) -> NoReturn:
    line = content[: error.start].count(b"\n") + 1
    raise ConfigError(
        f"The configuration '{path}' is not UTF-8: byte 0x{content[error.start]:02x} in line {line}. Save it as UTF-8."
    ) from error


def _nearest(file: Path) -> str:
    try:
        names = [
            str(file.with_name(entry.name)) for entry in file.parent.iterdir() if entry.suffix in (".yaml", ".yml")
        ]
    except (OSError, ValueError):
        return ""
    return suggestion(str(file), names)
