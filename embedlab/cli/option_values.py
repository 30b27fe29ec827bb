"""Interprets each value by the type of its option, so that every unambiguous way to write a value works.

For example, a path may stand for a data source, a mapping for a list with one entry, ``1e3`` for a whole number, and
``~`` for the home folder. Every other value is refused with a message of one line, which names the option, the received
value and the expected value.
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
_SHOWN = 80  # maximum number of characters of a value in a message
_SPEC = {"class_path", "init_args", "dict_kwargs"}


class Parameter(NamedTuple):
    """An option of a class.

    Attributes:
        kind: Type of the values.
        required: Whether the option has no default.
    """

    kind: Any
    required: bool


class Values:
    """A converter from values as the user wrote them to values that jsonargparse accepts.

    Args:
        refused_class: Function that returns sentences to add to a message, for a base class and a name that is not the
            name of a subclass.
        before: Function that is called with the dotted name and the node of each option before the node is converted.
            The function raises ConfigError for a value that the command does not support.
    """

    def __init__(self, refused_class: Callable[[type, str], str], before: Callable[[str, Node], None]) -> None:
        self._refused_class = refused_class
        self._before = before

    def understood(self, node: Node, kind: Any, name: str) -> Any:
        """Return the value of a node, interpreted by the type of its option.

        Args:
            node: Value as the user wrote it.
            kind: Type of the option.
            name: Dotted name of the option, for messages.

        Raises:
            ConfigError: If the value does not fit the type.
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
            raise ConfigError(f"{node.place}{name} is null. Expected {in_words(kinds)}, or leave the option out.")
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
        """Return the options of a class as arguments of its constructor, by name.

        Args:
            node: Mapping of options as the user wrote it.
            cls: Class that has the options.
            name: Dotted name of the option that takes the class, for messages.

        Raises:
            ConfigError: If an option is unknown, a required option is missing, or a value does not fit its option.
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
                raise ConfigError(f"{node.place}{name} needs a value for {' and '.join(missing)}.")
        return values

    def _of_class(self, node: Section, bases: list[type], name: str) -> dict[str, Any]:
        """Return a class specification from a mapping with ``class_path`` or ``init_args``, or from options alone.

        Options without ``class_path`` belong to the class that is chosen elsewhere, for example by the default.
        """
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
        for key in node.keys() - _SPEC:  # options beside class_path can only be options of the class
            options[key] = node[key]
            options.places[key] = node.places.get(key, "")
        spec["init_args"] = self.options(options, chosen, name) if chosen else self._any_options(options, bases, name)
        if "dict_kwargs" in node:
            spec["dict_kwargs"] = _anything(node["dict_kwargs"], name)
        return spec

    def _any_options(self, node: Section, bases: list[type], name: str) -> dict[str, Any]:
        """Return the values of options whose class is chosen elsewhere, so that any subclass may have each option."""
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


# Names from earlier versions of embedlab


def _current(option: str, known: Mapping[str, Parameter] | None, place: str) -> str:
    """Return the current name of an option that was renamed, unless the class has an option with the written name.

    Args:
        option: Name as the user wrote it.
        known: Options of the class, by name; None if unknown.
        place: Position and dotted name of the parent option, for the line that reports the new name.
    """
    current = current_option(option)
    if known is None or option in known or current == option:
        return option
    _say_once(f"{place}.{option} is now called {current}.")
    return current


@cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


# Types of options


def members(kind: Any) -> list[Any]:
    """Return the types that a value may have: the members of a union, or a list with the single type.

    Args:
        kind: Type annotation.
    """
    if hasattr(kind, "__metadata__"):  # Annotated
        return members(kind.__origin__)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is Union:
        return [one for inner in typing.get_args(kind) for one in members(inner)]
    return [types.NoneType if kind is None else kind]


def either(kinds: Iterable[Any]) -> Any:
    """Return the union of types; ``Any`` if there are no types, or if one of the types is ``Any``.

    Args:
        kinds: Types to unite.
    """
    all_kinds = list(kinds)
    if not all_kinds or Any in all_kinds:
        return Any
    return Union[tuple(all_kinds)]  # noqa: UP007  the types are known at run time only


def is_list(kind: Any) -> bool:
    """Return whether the values of a type are lists of any length."""
    origin = typing.get_origin(kind) or kind
    return origin in _LISTS or (origin is tuple and (kind is tuple or typing.get_args(kind)[1:] == (...,)))


def is_options(kind: Any) -> bool:
    """Return whether a type is a dataclass, whose options the user writes as a mapping."""
    return dataclasses.is_dataclass(kind) and isinstance(kind, type)


def is_class(kind: Any) -> bool:
    """Return whether a type is a class whose instances the user describes by a class name with options."""
    simple = (bool, int, float, str, bytes, object, types.NoneType, *_LISTS, *_MAPPINGS, tuple)
    if not inspect.isclass(kind) or typing.get_origin(kind) is not None or kind in simple:
        return False
    return not (dataclasses.is_dataclass(kind) or kind.__module__ in ("datetime", "pathlib", "os", "typing"))


def is_open(kind: Any) -> bool:
    """Return whether this module does not know a type, so that jsonargparse has to interpret the values."""
    known = kind in (bool, int, float, str, types.NoneType, Path) or typing.get_origin(kind) is Literal
    known = known or is_list(kind) or is_class(kind) or typing.get_origin(kind) is tuple
    known = known or kind in _MAPPINGS or typing.get_origin(kind) in _MAPPINGS
    return not (known or (is_options(kind)))


def in_words(kinds: list[Any]) -> str:
    """Return a description of the expected values, for messages.

    Args:
        kinds: Types that the value may have.
    """
    words: list[str] = []
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            words += [str(choice) for choice in typing.get_args(kind)]
        elif kind in _WORDS:
            words.append(_WORDS[kind])
        elif is_list(kind):
            words.append(f"a list, each entry {in_words(members(_item(kind)))}")
        elif is_options(kind):
            words.append(f"a mapping of {', '.join(options_of(kind) or {})}"[:160])
        elif typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)
            words.append(f"a list of {len(inner)} entries, each {in_words(members(inner[0]))}")
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
    """Return the options of a class by name, or None if the signature of its constructor cannot be read."""
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
    """Return whether the constructor of a class accepts any further options (``**kwargs``)."""
    parameters = inspect.signature(cls).parameters.values()
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


def subclasses(base: type) -> list[type]:
    """Return a base class and all its subclasses, without abstract classes; the base class comes first."""
    found: dict[type, None] = {base: None}
    cls: type
    for cls in base.__subclasses__():
        found.update(dict.fromkeys(subclasses(cls)))
    return [cls for cls in found if not inspect.isabstract(cls)]


def class_named(name: str, bases: Iterable[type]) -> type | None:
    """Return the subclass of any of the base classes with the given name or import path; None if there is none.

    For an import path of a function, the class in the function's return annotation is returned.

    Args:
        name: Name of a class, or import path of a class or a function.
        bases: Base classes that the class may belong to.

    Raises:
        ConfigError: If the import fails.
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
    except Exception as error:  # the import of an unknown module can raise any exception
        raise ConfigError(f"'{name}' cannot be imported: {type(error).__name__}: {error}.") from error
    if inspect.isclass(found):
        return found if issubclass(found, bases) else None
    returned = typing.get_type_hints(found).get("return") if inspect.isfunction(found) else type(found)
    return returned if inspect.isclass(returned) and issubclass(returned, bases) else None


def kinds_at(kind: Any, path: list[str]) -> list[Any] | None:
    """Return the types of an option below another option; None if the option does not exist.

    Args:
        kind: Type of the outer option.
        path: Names that lead from the outer option to the inner option.

    Returns:
        Types of the inner option; ``Any`` where its type is unknown.
    """
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
        return list(bases)  # the value is the name of a subclass
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
    """Return the dotted names of the options directly below an option.

    Args:
        kind: Type of the outer option.
        name: Dotted name of the outer option.
    """
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
    """Return a value of a simple type: null, a choice, a truth value, a number or a text.

    Args:
        node: Value as the user wrote it.
        kinds: Types that the value may have.
        name: Dotted name of the option, for messages.

    Returns:
        The value, or ``_UNKNOWN`` if the value has no simple type among ``kinds``.

    Raises:
        ConfigError: If a number is not finite, or a truth value is given where a text is expected.
    """
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
    """Return the text, with a leading ``~`` replaced by the home folder unless the option is a prompt."""
    if not text.startswith("~") or name.endswith("prompt"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:  # the home folder or the user is unknown
        return text


def _anything(node: Node, name: str) -> Any:
    """Return the value of an option of unknown type in Python's own types, for jsonargparse to interpret."""
    if isinstance(node, Section):
        return {key: _anything(one, f"{name}.{key}") for key, one in node.items()}
    if isinstance(node, Items):
        return [_anything(one, name) for one in node]
    if isinstance(node.value, float) and not math.isfinite(node.value):
        raise ConfigError(f"{node.place}{name} is {node.text}. Expected a finite number.")
    return _text(node.value, name) if isinstance(node.value, str) else node.value


# Messages


def truth_value(node: Scalar, name: str) -> ConfigError:
    """Return the error for a truth value where a text is expected.

    Args:
        node: Value as the user wrote it.
        name: Dotted name of the option.
    """
    last = name.rpartition(".")[2]
    return ConfigError(
        f"{node.place}{name} is {node.text}, which is a truth value in YAML. For a text, write {last}: '{node.text}'."
    )


def wrong(node: Node, kinds: list[Any], name: str) -> ConfigError:
    """Return the error for a value that does not have the expected type.

    Args:
        node: Value as the user wrote it.
        kinds: Types that the value may have.
        name: Dotted name of the option.
    """
    value = plain(node)
    added = ""
    if isinstance(node, Scalar) and isinstance(value, str) and any(kind in (int, float) for kind in kinds):
        point = resolved(value.replace(",", "."))
        if value.count(",") == 1 and isinstance(point, float):
            added = f" Write the number with a decimal point: {value.replace(',', '.')}."
    received = node.text if isinstance(node, Scalar) and isinstance(value, int | float) else shown(value)
    return ConfigError(f"{place_of(node)}{name} is {received[:_SHOWN]}. Expected {in_words(kinds)}.{added}")


def unknown_option(name: str, known: Iterable[str], place: str = "") -> ConfigError:
    """Return the error for an unknown option, with the option that the user probably meant.

    Args:
        name: Dotted name as the user wrote it.
        known: Dotted names of the options that exist.
        place: Position in the configuration, for example ``run.yaml, line 3: ``. Empty for the command line.
    """
    names = list(dict.fromkeys(known))
    last = name.rpartition(".")[2].replace("-", "_")
    elsewhere = [other for other in names if other.rpartition(".")[2] == last]
    meant = f" Did you mean '{elsewhere[0]}'?" if elsewhere else suggestion(name, names)
    return ConfigError(f"{place}Unknown option '{name[:_SHOWN]}'.{meant}")


def place_of(node: Node) -> str:
    """Return the position of a node for the beginning of a message, for example ``run.yaml, line 3: ``."""
    return node.place


def shown(value: Any) -> str:
    """Return a value as messages show it: on one line, cut after 80 characters.

    Args:
        value: Value in Python's own types.

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
    """Return sentences for a message about an unknown class: the possible classes, and the most similar name.

    The possible classes are listed only if there are at most 8.

    Args:
        base: Base class that the option expects.
        received: Name that the user wrote.
    """
    names = [cls.__name__ for cls in subclasses(base)]
    if len(names) <= 8:
        return f" Possible classes: {', '.join(names)}.{suggestion(received, names)}"
    return suggestion(received, names)
