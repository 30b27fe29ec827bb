"""The parser of every command: what is unmistakable is understood, and what is wrong is one line, not a page of usage.

Words and configurations are understood by the type of their option (``embedlab.cli.option_values``) before jsonargparse
sees them, so there is one place where a path, a number or a flag is read, whether it was written in YAML or not.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, get_loader
from yaml import YAMLError

from embedlab.cli.config_file import Items, Node, Scalar, Section, parse_config, parse_value, read_config
from embedlab.cli.option_values import (
    Values,
    class_named,
    either,
    in_words,
    is_class,
    kinds_at,
    members,
    names_below,
    nearest_class,
    place_of,
    shown,
    subclasses,
    unknown_option,
)
from embedlab.errors import ConfigError, EmbedLabError, in_one_line, known_cause, suggestion

_LONGEST = 300  # characters of what a library says


class ErrorParser(ArgumentParser):
    """Turns a parsing error into one line of what was received, what was expected and what to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)
        # argparse takes a negative number with an exponent for an option.
        self._negative_number_matcher = re.compile(r"^-\d*\.?\d+([eE][+-]?\d+)?$")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse words of the command line, each understood by the type of its option.

        Raises:
            EmbedLabError: If a word or a configuration cannot be used.
        """
        words = list(args or ())
        try:
            if self._subparsers is None:  # else the subcommand's parser does
                words = list(_Words(self).prepared(words))
            return super().parse_args(words, namespace, **kwargs)
        except EmbedLabError:
            raise
        except Exception as error:
            raise in_one_line(error) from error

    def instantiate(self, *args: Any, **kwargs: Any) -> Namespace:
        """Make what the options describe.

        Raises:
            EmbedLabError: The error of a constructor as it was written, or what a library says, in one line.
        """
        try:
            made: Namespace = super().instantiate(*args, **kwargs)
            return made
        except Exception as error:
            raise in_one_line(error) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises ConfigError in place of printing a page of usage."""
        cause = known_cause(ex)
        if cause is not None:
            raise cause
        raise ConfigError(_one_line(message, self)) from ex

    def refused_class(self, base: type, received: str) -> str:
        """Return what to add to a message about a name that is no class of this base."""
        return nearest_class(base, received)

    def noticed(self, name: str, node: Node) -> None:
        """See an option before it is understood, to refuse what this command cannot take.

        Args:
            name: The option's dotted name.
            node: What was written.

        Raises:
            ConfigError: If this command cannot take it.
        """


class _Words:
    """The words of a command line, and the configurations that they name, as jsonargparse takes them."""

    def __init__(self, parser: ErrorParser) -> None:
        self._values = Values(parser.refused_class, parser.noticed)
        self._actions: dict[str, argparse.Action] = {}
        self._positional = False
        for action in parser._actions:
            self._positional = self._positional or not (action.option_strings or action.dest == argparse.SUPPRESS)
            for option in action.option_strings:
                self._actions[option] = action
        flags = {action.dest: bool for action in parser._actions if isinstance(action, argparse._StoreTrueAction)}
        self._kinds = flags | {action.dest: _kind(action) for action in parser._actions if _has_value(action)}
        self._linked = {
            action.dest: str(action.source[0][0]) for action in parser._actions if hasattr(action, "source")
        }
        self._chosen: dict[str, type] = {}
        for dest, kind in self._kinds.items():
            self._choose(dest, kind, parser.get_default(dest))
        self._groups = {".".join(parts[:end]) for parts in map(_parts, self._kinds) for end in range(1, len(parts))}

    def prepared(self, words: list[str]) -> Iterator[str]:
        """The words with each value understood."""
        left = list(reversed(words))
        while left:
            word = left.pop()
            if not word.startswith("-") or word == "-" or _is_number(word):
                if not self._positional:
                    hint = f" Did you mean --config {word}?" if word.endswith((".yaml", ".yml", ".json")) else ""
                    raise ConfigError(f"{shown(word)} stands alone on the command line, without an option.{hint}")
                yield self._home(word)
                continue
            option, equals, value = word.partition("=")
            option = self._spelled(option)
            action = self._actions.get(option)
            if action is None or self._is_single(action):
                yield self._single(option, value if equals else self._next(left))
            elif _takes_several(action):
                several = [value] if equals else []
                while not equals and left and not _is_option(left[-1]):
                    several.append(left.pop())
                if not several:
                    raise ConfigError(f"{option} needs a value.")
                yield option
                yield from (self._word(action.dest, one, several=True) for one in several)
            elif _has_value(action):  # with nargs "?": alone it has a meaning of its own
                given = value if equals else self._next(left)
                yield option if given is None else f"{option}={self._word(action.dest, given)}"
            elif isinstance(action, argparse._StoreTrueAction):
                if self._is_true(option, value if equals else self._next_truth(left)):
                    yield option
            else:
                yield option + equals + value

    def _is_single(self, action: argparse.Action) -> bool:
        """Whether an option takes one value."""
        return _is_config(action) or action.dest in self._groups or (_has_value(action) and action.nargs is None)

    def _single(self, option: str, value: str | None) -> str:
        action = self._actions.get(option)
        if action is not None and _is_config(action):
            if value is None:
                raise ConfigError(f"{option} needs the path of a configuration.")
            inline = value.lstrip().startswith("{")
            section = parse_config(value, option) if inline else read_config(value)
            return f"{option}={_json(self._section(section, ''))}"
        name = action.dest if action is not None else option[2:].removesuffix("+")
        if value is None:
            kinds = [] if name in self._groups else self._kinds_of(name, "")
            if bool not in kinds:
                raise ConfigError(f"{option} needs a value{': ' + in_words(kinds) if kinds else ''}.")
            value = "true"
        return f"{option}={self._word(name, value)}"

    def _word(self, name: str, word: str, *, several: bool = False) -> str:
        if name in self._groups:
            return _json(self._group(_node_of(word, []), name))
        kinds = self._kinds_of(name, "")
        if several and name in self._kinds:
            kinds = members(self._kinds[name])
        value = self._value(_node_of(word, kinds), kinds, name)
        if not isinstance(value, str):
            return _json(value)
        if name not in self._kinds and not _is_text_in_yaml(value):  # jsonargparse reads it as YAML, below an option
            raise ConfigError(
                f"--{name} {shown(value)} would not be read as text on the command line. Write it in a configuration, "
                "in quotes, and give that with --config."
            )
        return value

    def _section(self, section: Section, prefix: str) -> dict[str, Any]:
        """A part of a configuration, its names spelled and its values understood."""
        made: dict[str, Any] = {}
        for key, node in section.items():
            place = section.places.get(key, "")
            plus = "+" if key.endswith("+") else ""
            name = self._spelled(f"{prefix}{key.removesuffix('+')}", place)
            inner = self._inner(name, node, place)
            *parents, last = _parts(name.removeprefix(prefix))
            at = made
            for parent in parents:
                at = at.setdefault(parent, {})
                if not isinstance(at, dict):
                    raise ConfigError(f"{place}'{name}' is given beside the whole of '{parent}'. Give one of them.")
            if isinstance(at.get(last), dict) and isinstance(inner, dict) and name in self._groups:
                at[last].update(inner)
            else:
                at[last + plus] = inner
        return made

    def _inner(self, name: str, node: Node, place: str) -> Any:
        if name in self._groups:
            return self._group(node, name)
        kinds = self._kinds_of(name, place)
        if isinstance(node, Section) and "class_path" not in node and name in self._kinds:
            for key in node if any(is_class(kind) for kind in kinds) else ():
                if key not in ("init_args", "dict_kwargs"):
                    self._kinds_below(name, [self._spelled(key)], node.places.get(key, ""))
        return self._value(node, kinds, name)

    def _value(self, node: Node, kinds: list[Any], name: str) -> Any:
        value = self._values.understood(node, either(kinds), name)
        dest = name.removesuffix(".class_path")
        self._choose(dest, self._kinds.get(dest), value)
        return value

    def _choose(self, dest: str, kind: Any, value: Any) -> None:
        """Takes note of the class that an option has from here on."""
        bases = [one for one in members(kind) if is_class(one)]
        path = value.get("class_path") if isinstance(value, dict | Namespace) else value
        if bases and isinstance(path, str):
            chosen = class_named(path, bases)
            if chosen is not None:
                self._chosen[dest] = chosen

    def _group(self, node: Node, name: str) -> dict[str, Any]:
        """The options below a name: a mapping, nothing, or the path of a file that holds it."""
        if isinstance(node, Scalar) and node.value is None:
            return {}
        if isinstance(node, Scalar) and node.text.endswith((".yaml", ".yml", ".json")):
            node = read_config(node.text)
        if isinstance(node, Section):
            return self._section(node, f"{name}.")
        below = [other.removeprefix(f"{name}.") for other in self._kinds if other.startswith(f"{name}.")]
        raise wrong_group(node, name, below)

    def _kinds_of(self, name: str, place: str) -> list[Any]:
        """The types of an option, which may stand below another.

        Raises:
            ConfigError: If there is no such option.
        """
        if name in self._linked:
            raise ConfigError(f"{place}{name} cannot be set: it follows {self._linked[name]}. Set that.")
        parts = _parts(name)
        for end in range(len(parts), 0, -1):
            parent = ".".join(parts[:end])
            if parent in self._kinds:
                return self._kinds_below(parent, parts[end:], place)
        known = [*self._kinds, *self._groups]
        known += [below for parent, kind in self._kinds.items() for below in names_below(kind, parent)]
        raise unknown_option(name, known, place)

    def _kinds_below(self, parent: str, path: list[str], place: str) -> list[Any]:
        kind = self._kinds[parent]
        kinds = kinds_at(kind, path)
        name = ".".join([parent, *path])
        if kinds is None:
            raise unknown_option(name, names_below(kind, parent), place)
        bases = [one for one in members(kind) if is_class(one)]
        if not path or path[0] == "class_path" or not bases or len(members(kind)) > len(bases) + 1:
            return kinds
        chosen = self._chosen.get(parent)
        if chosen is None and inspect.isabstract(bases[0]):
            names = ", ".join(cls.__name__ for cls in subclasses(bases[0]))
            raise ConfigError(f"{place}{name} is an option of a class. Name the class first, with {parent}: {names}.")
        if chosen is not None and kinds_at(chosen, path) is None:
            own = f"has {', '.join(names_below(chosen, parent))}" if names_below(chosen, parent) else "has no options"
            raise ConfigError(f"{place}{name} is no option of {chosen.__name__}, which {own}.")
        return kinds

    def _spelled(self, option: str, place: str = "") -> str:
        """The option with underscores for dashes."""
        dashes = "--" if option.startswith("--") else ""
        if option.startswith("-") and not dashes:
            return option
        return dashes + option[len(dashes) :].replace("-", "_")

    def _next(self, left: list[str]) -> str | None:
        return None if not left or _is_option(left[-1]) else left.pop()

    def _next_truth(self, left: list[str]) -> str | None:
        return left.pop() if left and left[-1].lower() in ("true", "false") else None

    def _is_true(self, option: str, value: str | None) -> bool:
        if value is not None and value.lower() not in ("true", "false"):
            raise ConfigError(f"{option} is {shown(value)}. Expected true or false, or nothing for true.")
        return value is None or value.lower() == "true"

    def _home(self, word: str) -> str:
        value: str = self._values.understood(Scalar(word, word), str, "")
        return value


def wrong_group(node: Node, name: str, below: Sequence[str]) -> ConfigError:
    """Return the error for a single value where a mapping of options is expected."""
    if isinstance(node, Items):
        return ConfigError(f"{place_of(node)}{name} is a list. Expected a mapping of {', '.join(below[:4])}, ….")
    assert isinstance(node, Scalar)
    return ConfigError(
        f"{node.place}{name} is {shown(node.text)}. Expected a mapping of options: {', '.join(below[:4])}, …, as in "
        f"{name}: {{{below[0]}: …}}."
    )


def _node_of(word: str, kinds: list[Any]) -> Node:
    """What a word of the command line says: text where the option takes text, else YAML."""
    takes_text = str in kinds
    if takes_text and not (word.lstrip().startswith(("[", "{")) and len(kinds) > 1):
        return Scalar(None if word == "null" and type(None) in kinds else word, word)
    try:
        return parse_value(word)
    except ConfigError:
        if takes_text:
            return Scalar(word, word)
        raise


def _is_text_in_yaml(word: str) -> bool:
    """Whether jsonargparse leaves a word as it is, and takes it for no null, list or mapping."""
    try:
        return not word.strip() or isinstance(get_loader("yaml")(word), str | int | float)
    except YAMLError:
        return True


def _kind(action: argparse.Action) -> Any:
    """The type of an option's values, or what takes any where only a function knows."""
    kind = getattr(action, "_typehint", None)
    if kind is None:
        kind = action.type if action.type in (int, float) else str if action.type is None else Any
    return kind


def _has_value(action: argparse.Action) -> bool:
    """Whether an option of a user has a value, unlike help, flags and groups."""
    typed = hasattr(action, "_typehint") or type(action) is argparse._StoreAction
    return typed and not action.dest.endswith(".help") and not hasattr(action, "source")


def _is_config(action: argparse.Action) -> bool:
    return action.dest == "config"


def _takes_several(action: argparse.Action) -> bool:
    return _has_value(action) and (action.nargs in ("+", "*") or isinstance(action.nargs, int))


def _is_option(word: str) -> bool:
    return (word.startswith("--") or word[1:2].isalpha()) and word.startswith("-") and not _is_number(word)


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-\.?\d\S*|-\.?(inf|nan)\b.*", word, re.IGNORECASE) is not None


def _parts(name: str) -> list[str]:
    return name.split(".")


def _json(value: Any) -> str:
    """A value on one line, with the characters escaped that YAML does not take as they are."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _one_line(message: str, parser: ErrorParser) -> str:
    """What jsonargparse says on several lines, on one: the option, and what it says last of it."""
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown:
        return f"Unknown option '{unknown[1]}'." + suggestion(unknown[1], parser._option_string_actions)
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing:
        names = missing[1].split(", ")
        if parser._subparsers is not None:  # they begin with the subcommand
            names = [name.partition(".")[2] or name for name in names]
        first = names[0].lstrip("-")
        return f"{' and '.join(names)} must be given: --{first} VALUE, or in a configuration with --config."
    options = re.findall(r'Parser key "([^"]+)"', message)
    lines = [line.strip(" -") for line in message.splitlines()]
    dropped = ("Parser key", "Given value", "Subtypes", "Errors:", "Does not validate", "Problem with given class_path")
    said = [line for line in lines if line and not line.startswith(dropped)]
    text = " ".join(dict.fromkeys(said)) or " ".join(message.split())
    name = ".".join(dict.fromkeys(options))
    return f"{name}: {text}"[:_LONGEST] if name else text[:_LONGEST]
