"""A configuration is read as it was written, and a slip in it is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedlab.cli.config_file import parse_config, parse_value, plain, read_config, resolved
from embedlab.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "run.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_keep_the_text_they_were_written_as() -> None:
    node = parse_config("a: no\nb: 2023\nc: '2023'\nd: 1e-3\n", "run.yaml")
    assert plain(node) == {"a": False, "b": 2023, "c": "2023", "d": 0.001}
    assert [one.text for one in node.values()] == ["no", "2023", "2023", "1e-3"]  # type: ignore[union-attr]
    assert [one.place for one in node.values()][2] == "run.yaml, line 3: "  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("1_000", 1000), ("1__0", "1__0"), ("9" * 5000, "9" * 5000), ("1:30", "1:30"), ("-.5E2", -50.0)],
)
def test_a_number_is_what_a_reader_takes_it_for(text: str, value: object) -> None:
    assert resolved(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "data:\n  batch_size: 1\n  batch_size: 2\n",
            "line 3: 'batch_size' appears twice. The first 'batch_size' is in line 2",
        ),
        ("- 1\n", "holds a list"),
        ("text", "holds a single value"),
        ("a:\n\tb: 1\n", "line 2 is not valid YAML: a tab where"),
        ("a: 1\n---\nb: 2\n", "line 2 is not valid YAML: a second document"),
        ("a: 'b\n", "not valid YAML"),
        ("a: !!python/object:os.system x", "YAML tag"),
        ("a: &a [*a]", "too deeply nested"),
        ("[" * 5000, "too deeply nested"),
        ("a: \x01", "control characters"),
        ("? [a]\n: 1", "the name of an option is a list or a mapping"),
    ],
)
def test_what_is_no_configuration_is_refused_by_its_line(text: str, said: str) -> None:
    assert said in refusal(text)


def test_aliases_that_unfold_without_end_are_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "expands to more than" in refusal("\n".join(lines))


def test_anchors_and_merges_that_end_are_followed() -> None:
    node = parse_value("base: &base {a: 1, b: 2}\nrun: {<<: *base, b: 3}\n")
    assert plain(node) == {"base": {"a": 1, "b": 2}, "run": {"a": 1, "b": 3}}


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", "\ufeffoutput: é\n".encode(), "output: é\n".encode("utf-16")], ids=repr
)
def test_usual_encodings_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    assert plain(read_config(str(tmp_path / "run.yaml"))) in ({}, {"output": "é"})


def test_json_with_tabs_is_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{\n\t"data": {\n\t\t"batch_size": 4\n\t}\n}\n')
    assert plain(read_config(str(tmp_path / "run.json"))) == {"data": {"batch_size": 4}}


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\n# caf\xe9\n")
    (tmp_path / "pairs.jsonl").write_text('{"query": "secret"}\n')
    (tmp_path / "long.yaml").write_text("a: b\n" * 2_000_000)
    for name, said in [
        ("latin.yaml", "not UTF-8: byte 0xe9 in line 2"),
        ("pairs.jsonl", "is a data file"),
        ("long.yaml", "is larger than 4 MiB"),
        ("latn.yaml", "Did you mean"),
        ("", "is a folder"),
        ("a\0b", "null byte"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            read_config(f"{tmp_path}/{name}")
        assert "secret" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config("~no-such-user/run.yaml")
