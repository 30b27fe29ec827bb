"""The parser of every command: it accepts every unambiguous value, and reports an error in one line without usage text.

Words and configurations are interpreted by the type of their option (``embedlab.cli.option_values``) before they reach
jsonargparse. A path, a number or a flag therefore means the same on the command line and in a configuration.
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
from embedlab.cli.help_format import PlainHelp
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

_LONGEST = 300  # maximum number of characters of a library's message


class ErrorParser(ArgumentParser):
    """A parser whose errors are one line that states what was received, what was expected and what to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ours: dict[str, Any] = {"allow_abbrev": False, "formatter_class": PlainHelp}
        super().__init__(*args, **ours | kwargs)
        # The pattern of argparse does not match negative numbers with an exponent, and treats them as options.
        self._negative_number_matcher = re.compile(r"^-\d*\.?\d+([eE][+-]?\d+)?$")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse the words of a command line, each interpreted by the type of its option.

        Args:
            args: Words of the command line; None for no words.
            namespace: Namespace to extend; None for a new namespace.
            kwargs: Further options of jsonargparse.

        Raises:
            EmbedLabError: If a word or a configuration cannot be used.
        """
        words = list(args or ())
        try:
            if self._subparsers is None:  # with subcommands, the parser of the subcommand prepares its words
                words = list(_Words(self).prepared(words))
            return super().parse_args(words, namespace, **kwargs)
        except EmbedLabError:
            raise
        except Exception as error:
            raise in_one_line(error) from error

    def instantiate(self, *args: Any, **kwargs: Any) -> Namespace:
        """Create the objects that the parsed options describe, and return them in place of their options.

        Raises:
            EmbedLabError: If a constructor raises an exception; the message has one line.
        """
        try:
            made: Namespace = super().instantiate(*args, **kwargs)
            return made
        except Exception as error:
            raise in_one_line(error) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an error of one line, instead of printing the usage text.

        Args:
            message: Message of argparse or jsonargparse.
            ex: Exception that caused the error; None if there was none.

        Raises:
            EmbedLabError: Always. The embedlab error that caused the problem, if there is one, else ConfigError.
        """
        cause = known_cause(ex)
        if cause is not None:
            raise cause
        raise ConfigError(_one_line(message, self)) from ex

    def refused_class(self, base: type, received: str) -> str:
        """Return sentences to add to the message about a name that is not a subclass of a base class.

        Args:
            base: Base class that the option expects.
            received: Name that the user wrote.
        """
        return nearest_class(base, received)

    def noticed(self, name: str, node: Node) -> None:
        """Check an option before its value is interpreted. Subclasses refuse values that their commands do not support.

        Args:
            name: Dotted name of the option.
            node: Value as the user wrote it.

        Raises:
            ConfigError: If the command does not support the value.
        """


class _Words:
    """A converter of the words of a command line, and of the configurations that they name, for jsonargparse.

    Args:
        parser: Parser with the options of the command.
    """

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
        """Yield the words with each value interpreted by the type of its option, in a form that jsonargparse reads.

        Args:
            words: Words of the command line.

        Raises:
            ConfigError: If a word or a configuration cannot be used.
        """
        left = list(reversed(words))
        while left:
            word = left.pop()
            if not word.startswith("-") or word == "-" or _is_number(word):
                if not self._positional:
                    hint = f" Did you mean --config {word}?" if word.endswith((".yaml", ".yml", ".json")) else ""
                    raise ConfigError(f"{shown(word)} is on the command line without an option before it.{hint}")
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
            elif _has_value(action):  # nargs is "?": the option also has a meaning without a value
                given = value if equals else self._next(left)
                yield option if given is None else f"{option}={self._word(action.dest, given)}"
            elif isinstance(action, argparse._StoreTrueAction):
                if self._is_true(option, value if equals else self._next_truth(left)):
                    yield option
            else:
                # The help of a class may name the class: --model.method.help LoRA.
                named = self._next(left) if option.endswith(".help") and not equals else None
                yield option + equals + value if named is None else f"{option}={named}"

    def _is_single(self, action: argparse.Action) -> bool:
        """Return whether an option takes exactly one value."""
        return _is_config(action) or action.dest in self._groups or (_has_value(action) and action.nargs is None)

    def _single(self, option: str, value: str | None) -> str:
        action = self._actions.get(option)
        if action is not None and _is_config(action):
            if value is None:
                raise ConfigError(f"{option} needs a value. Expected the path of a configuration.")
            inline = value.lstrip().startswith("{")
            section = parse_config(value, option) if inline else read_config(value)
            return f"{option}={_json(self._section(section, ''))}"
        name = action.dest if action is not None else option[2:].removesuffix("+")
        if value is None:
            kinds = [] if name in self._groups else self._kinds_of(name, "")
            if bool not in kinds:
                raise ConfigError(f"{option} needs a value.{f' Expected {in_words(kinds)}.' if kinds else ''}")
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
        if name not in self._kinds and not _is_text_in_yaml(value):  # jsonargparse parses such nested options as YAML
            raise ConfigError(
                f"--{name} {shown(value)} would not be read as text on the command line. Write the option in a "
                "configuration, with the text in quotes, and name the configuration with --config."
            )
        return value

    def _section(self, section: Section, prefix: str) -> dict[str, Any]:
        """Return the options of a section, with names in standard form and values interpreted by their types.

        Args:
            section: Mapping of options as the user wrote it.
            prefix: Dotted name of the section with a final dot; empty for the whole configuration.

        Raises:
            ConfigError: If an option is unknown, or its value cannot be used.
        """
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
                    raise ConfigError(
                        f"{place}Both '{name}' and the whole of '{parent}' are given. Remove one of them."
                    )
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
        """Remember the class that the user has chosen for an option, because later options of the class need it.

        Args:
            dest: Dotted name of the option.
            kind: Type of the option.
            value: Value of the option: the name of a class, or a mapping with ``class_path``.
        """
        bases = [one for one in members(kind) if is_class(one)]
        path = value.get("class_path") if isinstance(value, dict | Namespace) else value
        if bases and isinstance(path, str):
            chosen = class_named(path, bases)
            if chosen is not None:
                self._chosen[dest] = chosen

    def _group(self, node: Node, name: str) -> dict[str, Any]:
        """Return the options of a group, for example ``data``.

        Args:
            node: Value of the group: a mapping of options, null, or the path of a file with a mapping.
            name: Dotted name of the group.

        Raises:
            ConfigError: If the value is anything else, or an option in the mapping cannot be used.
        """
        if isinstance(node, Scalar) and node.value is None:
            return {}
        if isinstance(node, Scalar) and node.text.endswith((".yaml", ".yml", ".json")):
            node = read_config(node.text)
        if isinstance(node, Section):
            return self._section(node, f"{name}.")
        below = [other.removeprefix(f"{name}.") for other in self._kinds if other.startswith(f"{name}.")]
        raise wrong_group(node, name, below)

    def _kinds_of(self, name: str, place: str) -> list[Any]:
        """Return the types of an option, which may be nested below another option.

        Args:
            name: Dotted name of the option.
            place: Position of the option in the configuration, for messages.

        Raises:
            ConfigError: If the option does not exist or cannot be set.
        """
        if name in self._linked:
            source = self._linked[name]
            raise ConfigError(f"{place}{name} cannot be set, because it always equals {source}. Set {source} instead.")
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
            raise ConfigError(
                f"{place}{name} is an option of a class that is not chosen yet. Set {parent} first, to one of: {names}."
            )
        if chosen is not None and kinds_at(chosen, path) is None:
            own = f"has {', '.join(names_below(chosen, parent))}" if names_below(chosen, parent) else "has no options"
            raise ConfigError(f"{place}{name} is not an option of {chosen.__name__}, which {own}.")
        return kinds

    def _spelled(self, option: str, place: str = "") -> str:
        """Return the name of an option with underscores in place of dashes."""
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
            raise ConfigError(f"{option} is {shown(value)}. Expected true or false, or no value, which means true.")
        return value is None or value.lower() == "true"

    def _home(self, word: str) -> str:
        value: str = self._values.understood(Scalar(word, word), str, "")
        return value


def wrong_group(node: Node, name: str, below: Sequence[str]) -> ConfigError:
    """Return the error for a list or a single value where a mapping of options is expected.

    Args:
        node: Value as the user wrote it.
        name: Dotted name of the group of options.
        below: Names of the options in the group.
    """
    if isinstance(node, Items):
        return ConfigError(f"{place_of(node)}{name} is a list. Expected a mapping of {', '.join(below[:4])}, ….")
    assert isinstance(node, Scalar)
    return ConfigError(
        f"{node.place}{name} is {shown(node.text)}. Expected a mapping of options: {', '.join(below[:4])}, …, as in "
        f"{name}: {{{below[0]}: …}}."
    )


def _node_of(word: str, kinds: list[Any]) -> Node:
    """Return the node of a word of the command line: a text if the option accepts text, else the word parsed as YAML.

    Args:
        word: Word of the command line.
        kinds: Types that the option accepts.
    """
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
    """Return whether jsonargparse reads a word as text, a number or a truth value, not as null, a list or a mapping."""
    try:
        return not word.strip() or isinstance(get_loader("yaml")(word), str | int | float)
    except YAMLError:
        return True


def _kind(action: argparse.Action) -> Any:
    """Return the type of an option's values, or ``Any`` if a function converts the values."""
    kind = getattr(action, "_typehint", None)
    if kind is None:
        kind = action.type if action.type in (int, float) else str if action.type is None else Any
    return kind


def _has_value(action: argparse.Action) -> bool:
    """Return whether the user can give an option a value, which is not so for help, flags and linked options."""
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
    """Return a value as JSON on one line, with all characters escaped that YAML does not allow in a text."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _one_line(message: str, parser: ErrorParser) -> str:
    """Return a message of argparse or jsonargparse in one line, which begins with the name of the option.

    Args:
        message: Message, which may have several lines.
        parser: Parser that reported the message.
    """
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown:
        return f"Unknown option '{unknown[1]}'." + suggestion(unknown[1], parser._option_string_actions)
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing:
        names = missing[1].split(", ")
        if parser._subparsers is not None:  # the names begin with the name of the subcommand
            names = [name.partition(".")[2] or name for name in names]
        first = names[0].lstrip("-")
        return f"{' and '.join(names)} must be given. Add --{first} VALUE, or set the option in a configuration."
    options = re.findall(r'Parser key "([^"]+)"', message)
    lines = [line.strip(" -") for line in message.splitlines()]
    dropped = ("Parser key", "Given value", "Subtypes", "Errors:", "Does not validate", "Problem with given class_path")
    said = [line for line in lines if line and not line.startswith(dropped)]
    text = " ".join(dict.fromkeys(said)) or " ".join(message.split())
    name = ".".join(dict.fromkeys(options))
    return f"{name}: {text}"[:_LONGEST] if name else text[:_LONGEST]
