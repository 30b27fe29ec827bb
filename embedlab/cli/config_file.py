"""A strict reader of configuration files, which keeps the original text and line of each value for error messages.

YAML turns ``no`` into a truth value and ``1:30`` into 90, and the second of two equal keys replaces the first. This
reader keeps the text of each value, so that the type of the option decides what the text means, and refuses equal keys.
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

_MOST_BYTES = 4 << 20  # a larger file is a data file, not a configuration
_LONGEST_NAME = 200  # characters of a path in a message
_MOST_VALUES = 200_000  # after aliases are expanded
_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"  # our tag for a scalar that has neither quotes nor a tag in the file
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
    """A single value of a configuration or of the command line.

    Attributes:
        value: Value that the text has without knowledge of the option's type; see ``resolved``.
        text: Text of the value as the user wrote it, without quotes.
        place: Position of the value for messages, for example ``run.yaml, line 3: ``. Empty for the command line.
        quoted: Whether the user wrote the value in quotes, which marks it as text.
    """

    value: bool | int | float | str | None
    text: str
    place: str = ""
    quoted: bool = False


class Section(dict[str, "Node"]):
    """A mapping of a configuration, with the positions of the mapping and of its keys for messages.

    Args:
        place: Position of the mapping, for example ``run.yaml, line 3: ``. Empty for the command line.

    Attributes:
        place: Position of the mapping.
        places: Position of each key, by key.
    """

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self.place = place
        self.places: dict[str, str] = {}


class Items(list["Node"]):
    """A list of a configuration, with its position for messages.

    Args:
        place: Position of the list, for example ``run.yaml, line 3: ``. Empty for the command line.

    Attributes:
        place: Position of the list.
    """

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self.place = place


Node = Scalar | Section | Items


def resolved(text: str) -> bool | int | float | str | None:
    """Return the value of a text without quotes: null, a truth value, a number, or the text itself.

    Args:
        text: Text as the user wrote it.

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
    except ValueError:  # two adjacent underscores, or thousands of digits
        return text
    return text


def read_config(path: str) -> Section:
    """Read a configuration file in YAML or JSON. The encoding is UTF-8, or UTF-16 with a byte order mark.

    Args:
        path: Path of the file; ``-`` for standard input. A leading ``~`` stands for the home folder.

    Raises:
        ConfigError: If the file cannot be read or is not a configuration. The message states the line where possible.
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
        holds = f" Files in the folder: {', '.join(inside)}." if inside else ""
        raise ConfigError(f"The configuration '{name}' is a folder. Name a file in the folder.{holds}") from error
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a null byte; RuntimeError: no home folder
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The configuration '{name}' cannot be read: {reason}.{_nearest(file)}") from error
    if file.suffix in _DATA_SUFFIXES:
        raise ConfigError(
            f"'{path}' is a data file, not a configuration. To train on the file, use --data.train {path}."
        )
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"'{path}' is larger than {_MOST_BYTES >> 20} MiB, the maximum for a configuration. To train on a data "
            "file, name it in data.train."
        )
    text = _decoded(content, path)
    if file.suffix == ".json":  # JSON allows indentation by tabs, YAML does not
        text = _LEADING_TABS.sub(lambda tabs: "  " * len(tabs[0]), text)
    return parse_config(text, path)


def parse_config(text: str, name: str) -> Section:
    """Parse the text of a configuration. An empty text gives an empty section.

    Args:
        text: Text in YAML or JSON.
        name: Name of the configuration for messages.

    Raises:
        ConfigError: If the text cannot be parsed or is not a mapping.
    """
    node = parse_value(text, name)
    if isinstance(node, Section):
        return node
    if isinstance(node, Scalar) and node.value is None:
        return Section(f"{name}: ")
    holds = "a list" if isinstance(node, Items) else "a single value"
    raise ConfigError(f"{name} holds {holds}. Expected a mapping of options, for example data: {{batch_size: 64}}.")


def parse_value(text: str, name: str = "") -> Node:
    """Parse a text in YAML or JSON. (JSON is a subset of YAML.)

    Args:
        text: Text to parse.
        name: Name of the configuration for messages; empty for the command line.

    Raises:
        ConfigError: If the text is not valid YAML, has the same key twice, or expands to too many values.
    """
    try:
        return _Nodes(name).of(yaml.compose(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{name}, line {mark.line + 1}" if name and mark is not None else name or "The value"
        problem = error.problem or "cannot be parsed"
        if "'\\t'" in problem:
            problem = "a tab where YAML allows only spaces. Indent with spaces"
        elif "expected a single document" in (error.context or ""):
            problem = "a second document begins here. Remove lines of --- so that there is one document"
        raise ConfigError(f"{line} is not valid YAML: {problem}.") from error
    except yaml.YAMLError as error:  # from PyYAML's reader: a character that YAML forbids
        raise ConfigError(f"{name or 'The value'} holds control characters. Expected plain text.") from error
    except (RecursionError, ValueError) as error:  # ValueError: an escape beyond Unicode
        raise ConfigError(f"{name or 'The value'} is not valid YAML, or is too deeply nested.") from error


class _Loader(yaml.SafeLoader):
    """A YAML loader that does not interpret scalars, and marks whether a scalar is in quotes."""

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else f"{_TAG}str"
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag


class _Nodes:
    """A converter from nodes of PyYAML to nodes of this module.

    Args:
        name: Name of the configuration for messages; empty for the command line.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = _MOST_VALUES

    def of(self, node: yaml.Node | None) -> Node:
        if node is None:
            return Scalar(None, "", f"{self._name}: " if self._name else "")
        self._left -= 1
        if self._left < 0:
            raise ConfigError(
                f"{self._name or 'The value'} expands to more than {_MOST_VALUES:,} values. Use fewer YAML aliases."
            )
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
        raise ConfigError(f"{place}the YAML tag {node.tag[:60]} is not supported. Write the value without a tag.")

    def _section(self, node: yaml.MappingNode) -> Section:
        section = Section(self._place(node))
        merged: list[Section] = []
        for key, value in node.value:
            place = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{place}the name of an option is a list or a mapping. Expected a text.")
            if key.tag == _PLAIN and key.value == "<<":
                merged += self._merged(value, place)
                continue
            name: str = key.value
            if name in section:
                before = section.places[name].removesuffix(": ").rpartition(", ")[2]
                first = f" The first '{name[:60]}' is in {before}." if before else ""
                raise ConfigError(f"{place}'{name[:60]}' appears twice.{first} Remove one of the two.")
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
            raise ConfigError(f"{place}the value of << is not a mapping. Expected a mapping or a list of mappings.")
        return [one for one in sections if isinstance(one, Section)]

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}, line {node.start_mark.line + 1}: " if self._name else ""


def plain(node: Node) -> Any:
    """Return the content of a node as dictionaries, lists and single values of Python.

    Args:
        node: Node to convert.
    """
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
