"""Understands a value by the type of the option that it is for, so that what is unmistakable works as it is written.

A path stands for a source, a mapping for a list of one, ``1e3`` for a whole number, ``~`` for the home folder. All else
is refused in one line: the option, what came, what was expected.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from embedlab.cli.config_file import Items, Node, Scalar, Section, plain, resolved
from embedlab.errors import ConfigError, suggestion
from embedlab.records.renamed import current_class, current_option

_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, set, frozenset)
_MAPPINGS = (dict, collections.abc.Mapping)
_SHOWN = 80  # characters of a value in a message
_SPEC = {"class_path", "init_args", "dict_kwargs"}


class Parameter(NamedTuple):
    """An option of a class.

    Attributes:
        kind: The type of its values.
        required: Whether it has no default.
    """

    kind: Any
    required: bool


class Values:
    """Turns what was written into what the parser takes.

    Args:
        refused_class: What to add to a message about a name that is no class of this base.
        before: Sees the dotted name of each option with what was written, and refuses what the command cannot take.
    """

    def __init__(self, refused_class: Callable[[type, str], str], before: Callable[[str, Node], None]) -> None:
        self._refused_class = refused_class
        self._before = before

    def understood(self, node: Node, kind: Any, name: str) -> Any:
        """Return the value that a node has for an option of a type.

        Args:
            node: What was written.
            kind: The option's type.
            name: The option's dotted name, for messages.

        Raises:
            ConfigError: If the value cannot be meant.
        """
        self._before(name, node)
        kinds = members(kind)
        if isinstance(node, Section):
            return self._of_section(node, kinds, name)
        if isinstance(node, Items):
            return self._of_items(node, kinds, name)
        return self._of_scalar(node, kinds, name)

    def _of_scalar(self, node: Scalar, kinds: list[Any], name: str) -> Any:
        simple = _simple(node, kinds, name)
        if simple is not _UNKNOWN:
            return simple
        if node.value is None:
            raise ConfigError(f"{node.place}{name} is null. Expected {in_words(kinds)}, or leave it out.")
        if isinstance(node.value, bool) and not any(kind in (int, float) for kind in kinds):
            raise truth_value(node, name)
        for kind in kinds:
            if is_options(kind):
                required = [option for option, one in (options_of(kind) or {}).items() if one.required]
                if len(required) == 1 and (isinstance(node.value, str) or not node.quoted):
                    section = Section(node.place)
                    section[required[0]] = node
                    section.places[required[0]] = node.place
                    return self._of_section(section, [kind], name)
        bases = [kind for kind in kinds if is_class(kind)]
        if bases and isinstance(node.value, str):
            return self._class_name(node, bases, name)
        for kind in kinds:
            if is_list(kind):
                return self._of_items(_items(node), [kind], name)
        raise wrong(node, kinds, name)

    def _of_items(self, node: Items, kinds: list[Any], name: str) -> Any:
        for kind in kinds:
            if is_list(kind):
                return [self.understood(one, _item(kind), f"{name}[{number}]") for number, one in enumerate(node)]
            if typing.get_origin(kind) is tuple:
                inner = typing.get_args(kind)
                if len(inner) != len(node):
                    raise wrong(node, kinds, name)
                return [self.understood(one, inner[i], f"{name}[{i}]") for i, one in enumerate(node)]
        if any(is_open(kind) for kind in kinds):
            return _anything(node, name)
        raise wrong(node, kinds, name)

    def _of_section(self, node: Section, kinds: list[Any], name: str) -> Any:
        classes = [kind for kind in kinds if is_class(kind)]
        if classes and ("class_path" in node or "init_args" in node):
            return self._of_class(node, classes, name)
        for kind in kinds:
            if is_options(kind):
                return self.options(node, kind, name)
        for kind in kinds:
            if kind in _MAPPINGS or typing.get_origin(kind) in _MAPPINGS:
                inner = (typing.get_args(kind) or (Any, Any))[1]
                return {key: self.understood(one, inner, f"{name}.{key}") for key, one in node.items()}
        if classes:
            return self._of_class(node, classes, name)
        for kind in kinds:
            if is_list(kind):
                return self._of_items(_items(node), [kind], name)
        if any(is_open(kind) for kind in kinds):
            return _anything(node, name)
        raise wrong(node, kinds, name)

    def options(self, node: Section, cls: type, name: str) -> dict[str, Any]:
        """Return the options of a class as a mapping of its constructor's arguments.

        Raises:
            ConfigError: If one is unknown or missing, or its value cannot be meant.
        """
        known = options_of(cls)
        values: dict[str, Any] = {}
        for key, one in node.items():
            option = key if known is None or key in known else key.replace("-", "_")
            option = _current(option, known, f"{node.places.get(key, '')}{name}")
            if known is not None and option not in known:
                if takes_more(cls):
                    values[key] = _anything(one, f"{name}.{key}")
                    continue
                raise unknown_option(f"{name}.{key}", [f"{name}.{other}" for other in known], node.places.get(key, ""))
            kind = known[option].kind if known is not None else Any
            values[option] = self.understood(one, kind, f"{name}.{option}")
        if dataclasses.is_dataclass(cls):
            missing = [option for option, one in (known or {}).items() if one.required and option not in values]
            if missing:
                raise ConfigError(f"{node.place}{name} needs {' and '.join(missing)}.")
        return values

    def _of_class(self, node: Section, bases: list[type], name: str) -> dict[str, Any]:
        """A class by its name with its options, or the options of the class that stands there already."""
        path, arguments = node.get("class_path"), node.get("init_args")
        if path is None and arguments is None:
            return self._any_options(node, bases, name)
        spec: dict[str, Any] = {}
        chosen: type | None = None
        if path is not None:
            if not isinstance(path, Scalar) or not isinstance(path.value, str):
                raise ConfigError(
                    f"{node.place}{name}.class_path is {shown(plain(path))}. Expected the name of a class."
                )
            spec["class_path"] = self._class_name(path, bases, f"{name}.class_path")
            chosen = class_named(spec["class_path"], bases)
        options = Section(node.place)
        if isinstance(arguments, Section):
            options.update(arguments)
            options.places.update(arguments.places)
        elif arguments is not None and plain(arguments) is not None:
            raise ConfigError(
                f"{node.place}{name}.init_args is {shown(plain(arguments))}. Expected a mapping of options."
            )
        for key in node.keys() - _SPEC:  # options beside class_path: where they belong is unmistakable
            options[key] = node[key]
            options.places[key] = node.places.get(key, "")
        spec["init_args"] = self.options(options, chosen, name) if chosen else self._any_options(options, bases, name)
        if "dict_kwargs" in node:
            spec["dict_kwargs"] = _anything(node["dict_kwargs"], name)
        return spec

    def _any_options(self, node: Section, bases: list[type], name: str) -> dict[str, Any]:
        """Options of whichever class is chosen elsewhere."""
        values: dict[str, Any] = {}
        for key, one in node.items():
            option = key.replace("-", "_")
            kinds = _kinds_below(bases, [option])
            if kinds is None and current_option(option) != option:
                option = _current(option, {}, f"{node.places.get(key, '')}{name}")
                kinds = _kinds_below(bases, [option])
            if kinds is None:
                known = sorted({other for base in bases for cls in subclasses(base) for other in options_of(cls) or {}})
                raise unknown_option(f"{name}.{key}", [f"{name}.{other}" for other in known], node.places.get(key, ""))
            values[option] = self.understood(one, either(kinds), f"{name}.{option}")
        return values

    def _class_name(self, node: Scalar, bases: list[type], name: str) -> str:
        if class_named(node.text, bases) is not None:
            return node.text
        current = current_class(node.text)
        if current != node.text and class_named(current, bases) is not None:
            _say_once(f"{node.place}{name}: '{node.text}' is now called '{current}'.")
            return current
        added = self._refused_class(bases[0], node.text)
        raise ConfigError(
            f"{node.place}{name} is {shown(node.text)}. Expected the name of a {bases[0].__name__}.{added}"
        )


# Names of earlier versions


def _current(option: str, known: Mapping[str, Parameter] | None, place: str) -> str:
    """What an option is called now, unless the class knows it by the name that was written."""
    current = current_option(option)
    if known is None or option in known or current == option:
        return option
    _say_once(f"{place}.{option} is now called {current}.")
    return current


@cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


# Kinds


def members(kind: Any) -> list[Any]:
    """Return the types that a value may have: those of a union one by one."""
    if hasattr(kind, "__metadata__"):  # Annotated
        return members(kind.__origin__)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is Union:
        return [one for inner in typing.get_args(kind) for one in members(inner)]
    return [types.NoneType if kind is None else kind]


def either(kinds: Iterable[Any]) -> Any:
    """Return the union of types, or what takes anything where one of them does."""
    all_kinds = list(kinds)
    if not all_kinds or Any in all_kinds:
        return Any
    return Union[tuple(all_kinds)]  # noqa: UP007  the types are known at run time only


def is_list(kind: Any) -> bool:
    """Whether values are lists of any length."""
    origin = typing.get_origin(kind) or kind
    return origin in _LISTS or (origin is tuple and (kind is tuple or typing.get_args(kind)[1:] == (...,)))


def is_options(kind: Any) -> bool:
    """Whether values are dataclasses, whose options are written as a mapping."""
    return dataclasses.is_dataclass(kind) and isinstance(kind, type)


def is_class(kind: Any) -> bool:
    """Whether values are instances of a class that are made by its name and options."""
    simple = (bool, int, float, str, bytes, object, types.NoneType, *_LISTS, *_MAPPINGS, tuple)
    if not inspect.isclass(kind) or typing.get_origin(kind) is not None or kind in simple:
        return False
    return not (dataclasses.is_dataclass(kind) or kind.__module__ in ("datetime", "pathlib", "os", "typing"))


def is_open(kind: Any) -> bool:
    """Whether only the parser knows what values mean."""
    known = kind in (bool, int, float, str, types.NoneType, Path) or typing.get_origin(kind) is Literal
    known = known or is_list(kind) or is_class(kind) or typing.get_origin(kind) is tuple
    known = known or kind in _MAPPINGS or typing.get_origin(kind) in _MAPPINGS
    return not (known or (is_options(kind)))


def in_words(kinds: list[Any]) -> str:
    """Return what is expected, for people."""
    words: list[str] = []
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            words += [str(choice) for choice in typing.get_args(kind)]
        elif kind in _WORDS:
            words.append(_WORDS[kind])
        elif is_list(kind):
            words.append(f"a list, each item {in_words(members(_item(kind)))}")
        elif is_options(kind):
            words.append(f"a mapping of {', '.join(options_of(kind) or {})}"[:160])
        elif typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)
            words.append(f"a list of {len(inner)}, each {in_words(members(inner[0]))}")
        elif is_class(kind):
            words.append(f"the name of a {kind.__name__}")
        elif kind in _MAPPINGS or typing.get_origin(kind) in _MAPPINGS:
            words.append("a mapping")
    words = list(dict.fromkeys(words))
    return " or ".join(words[-1:] if len(words) < 2 else [", ".join(words[:-1]), words[-1]]) or "another value"


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    bool: "true or false",
    types.NoneType: "null",
}


@cache
def options_of(cls: type) -> Mapping[str, Parameter] | None:
    """Return the options of a class by name, or None where they cannot be read."""
    try:
        parameters = inspect.signature(cls).parameters
        constructor = cls if dataclasses.is_dataclass(cls) else cls.__init__  # type: ignore[misc]
        hints = typing.get_type_hints(constructor)
    except (TypeError, ValueError, NameError, AttributeError):
        return None
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: Parameter(hints.get(name, Any), one.default is one.empty)
        for name, one in parameters.items()
        if one.kind not in positional
    }


@cache
def takes_more(cls: type) -> bool:
    """Whether a class takes options beyond those that it names."""
    parameters = inspect.signature(cls).parameters.values()
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


def subclasses(base: type) -> list[type]:
    """Return the classes that can stand for a base, itself first, each once."""
    found: dict[type, None] = {base: None}
    cls: type
    for cls in base.__subclasses__():
        found.update(dict.fromkeys(subclasses(cls)))
    return [cls for cls in found if not inspect.isabstract(cls)]


def class_named(name: str, bases: Iterable[type]) -> type | None:
    """Return the class of this name, or of this import path, that can stand for one of the bases.

    Raises:
        ConfigError: If importing the class fails.
    """
    bases = tuple(bases)
    if "." not in name:
        return next((cls for base in bases for cls in subclasses(base) if cls.__name__ == name), None)
    module, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise ConfigError(f"'{name}' cannot be imported: {error}.") from error
    except Exception as error:  # importing a stranger's module can raise anything
        raise ConfigError(f"'{name}' cannot be imported: {type(error).__name__}: {error}.") from error
    if inspect.isclass(found):
        return found if issubclass(found, bases) else None
    returned = typing.get_type_hints(found).get("return") if inspect.isfunction(found) else type(found)
    return returned if inspect.isclass(returned) and issubclass(returned, bases) else None


def kinds_at(kind: Any, path: list[str]) -> list[Any] | None:
    """Return the types of an option below another, None if there is no such option, or an open type if unknown."""
    if not path:
        return members(kind)
    found: list[Any] = []
    for one in members(kind):
        if is_list(one):
            found += kinds_at(_item(one), path) or []
        elif one in _MAPPINGS or typing.get_origin(one) in _MAPPINGS:
            found += kinds_at((typing.get_args(one) or (Any, Any))[1], path[1:]) or []
        elif is_options(one) or is_class(one):
            found += _kinds_below([one], path) or []
        elif is_open(one):
            found.append(Any)
    return found or None


def _kinds_below(bases: Iterable[type], path: list[str]) -> list[Any] | None:
    first, rest = path[0], path[1:]
    if first == "class_path" and not rest:
        return list(bases)  # whose names it may hold
    if first in ("init_args", "dict_kwargs"):
        if not rest or first == "dict_kwargs":
            return [Any]
        first, rest = rest[0], rest[1:]
    found: list[Any] = []
    for base in bases:
        candidates = [base] if dataclasses.is_dataclass(base) else subclasses(base)
        for cls in candidates:
            known = options_of(cls)
            if known is None or (first not in known and takes_more(cls)):
                found.append(Any)
            elif first in known:
                found += kinds_at(known[first].kind, rest) or []
    return found or None


def names_below(kind: Any, name: str) -> list[str]:
    """Return the dotted names of the options below another."""
    found: dict[str, None] = {}
    for one in members(kind):
        inner = members(_item(one)) if is_list(one) else [one]
        for cls in inner:
            if is_class(cls):
                found.update({f"{name}.{option}": None for sub in subclasses(cls) for option in options_of(sub) or {}})
            elif is_options(cls):
                found.update({f"{name}.{option}": None for option in options_of(cls) or {}})
    return list(found)


# Values of the simple types

_UNKNOWN: Any = object()


def _simple(node: Scalar, kinds: list[Any], name: str) -> Any:
    """The value as null, a choice, a truth value, a number or a text; _UNKNOWN if it is none that is asked for."""
    text, value = node.text, node.value
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            for choice in typing.get_args(kind):
                if choice == text or (type(choice) is type(value) and choice == value):
                    return choice
    if str in kinds and node.quoted:
        return _text(text, name)
    meant = resolved(text) if isinstance(value, str) else value
    if isinstance(meant, bool) and bool in kinds:
        return meant
    if meant is None and isinstance(value, str) and types.NoneType in kinds and str not in kinds:
        return None
    if not isinstance(meant, bool):
        number = _number(meant, text, kinds, name, node.place)
        if number is not _UNKNOWN:
            return number
    if str in kinds or Path in kinds:
        if isinstance(value, bool):
            raise truth_value(node, name)
        if value is not None:
            return _text(text, name)
    if any(is_open(kind) for kind in kinds):
        return _anything(node, name)
    return _UNKNOWN


def _number(meant: Any, text: str, kinds: list[Any], name: str, place: str) -> Any:
    if float in kinds or int in kinds:
        if isinstance(meant, str) and str not in kinds and meant.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            meant = math.nan
        if isinstance(meant, float) and not math.isfinite(meant):
            raise ConfigError(f"{place}{name} is {text[:_SHOWN]}. Expected a finite number.")
    if isinstance(meant, int) and int in kinds:
        return meant
    if isinstance(meant, int | float) and float in kinds:
        try:
            return float(meant)
        except OverflowError as error:
            raise ConfigError(f"{place}{name} is {shown(text)}. Expected a finite number.") from error
    if isinstance(meant, float) and int in kinds and meant.is_integer() and str not in kinds:
        return int(meant)
    return _UNKNOWN


def _text(text: str, name: str) -> str:
    """The text, with the home folder for ~ unless it is put before texts."""
    if not text.startswith("~") or name.endswith("prompt"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:  # no home folder, or no such user
        return text


def _anything(node: Node, name: str) -> Any:
    """The value of an option of which only the parser knows what it means."""
    if isinstance(node, Section):
        return {key: _anything(one, f"{name}.{key}") for key, one in node.items()}
    if isinstance(node, Items):
        return [_anything(one, name) for one in node]
    if isinstance(node.value, float) and not math.isfinite(node.value):
        raise ConfigError(f"{node.place}{name} is {node.text}. Expected a finite number.")
    return _text(node.value, name) if isinstance(node.value, str) else node.value


# Messages


def truth_value(node: Scalar, name: str) -> ConfigError:
    """Return the error for a truth value where a text is expected."""
    last = name.rpartition(".")[2]
    return ConfigError(f"{node.place}{name}: {node.text} is a truth value in YAML. Write {last}: '{node.text}'.")


def wrong(node: Node, kinds: list[Any], name: str) -> ConfigError:
    """Return the error for a value of another type."""
    value = plain(node)
    added = ""
    if isinstance(node, Scalar) and isinstance(value, str) and any(kind in (int, float) for kind in kinds):
        point = resolved(value.replace(",", "."))
        if value.count(",") == 1 and isinstance(point, float):
            added = f" Write it with a point: {value.replace(',', '.')}."
    received = node.text if isinstance(node, Scalar) and isinstance(value, int | float) else shown(value)
    return ConfigError(f"{place_of(node)}{name} is {received[:_SHOWN]}. Expected {in_words(kinds)}.{added}")


def unknown_option(name: str, known: Iterable[str], place: str = "") -> ConfigError:
    """Return the error for an option that there is not, with the one that was probably meant."""
    names = list(dict.fromkeys(known))
    last = name.rpartition(".")[2].replace("-", "_")
    elsewhere = [other for other in names if other.rpartition(".")[2] == last]
    meant = f" Did you mean '{elsewhere[0]}'?" if elsewhere else suggestion(name, names)
    return ConfigError(f"{place}Unknown option '{name[:_SHOWN]}'.{meant}")


def place_of(node: Node) -> str:
    """Return where a node stands, for the beginning of a message."""
    return node.place


def shown(value: Any) -> str:
    """Return a value as a message shows it: on one line, and not too long.

    >>> shown("many\\nlines"), shown([1, 2])
    ("'many\\\\nlines'", '[1, 2]')
    """
    text = (
        {True: "true", False: "false", None: "null"}[value] if value is None or value is True or value is False else ""
    )
    text = text or (repr(value) if isinstance(value, str) else " ".join(str(value).split()))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _items(node: Node) -> Items:
    items = Items(place_of(node))
    items.append(node)
    return items


def _item(kind: Any) -> Any:
    return (typing.get_args(kind) or (Any,))[0]


def nearest_class(base: type, received: str) -> str:
    """Return the classes that can stand for a base, where they are few, and the one that was probably meant."""
    names = [cls.__name__ for cls in subclasses(base)]
    if len(names) <= 8:
        return f" There are {', '.join(names)}.{suggestion(received, names)}"
    return suggestion(received, names)
