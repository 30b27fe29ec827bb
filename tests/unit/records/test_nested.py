"""Nested mappings and dotted names say the same."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from embedlab.records.nested import flattened, has, remove

NAMES = st.text("abc", min_size=1, max_size=3)
LEAVES = st.integers() | st.lists(st.integers(), max_size=2)
NESTED = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=3),
    lambda inner: st.dictionaries(NAMES, LEAVES | inner, max_size=3),
    max_leaves=8,
)


@given(NESTED)
def test_every_flattened_name_leads_to_its_value(values: dict[str, Any]) -> None:
    for name, value in flattened(values, keep_empty=True).items():
        found: Any = values
        for key in name.split("."):
            found = found[key]
        assert found == value and has(values, name)


@given(NESTED)
def test_what_is_removed_is_gone_and_nothing_else(values: dict[str, Any]) -> None:
    before = flattened(values, keep_empty=True)
    for name in before:
        remove(values, name)
        assert not has(values, name)
    assert flattened(values) == {}


def test_empty_mappings_are_left_out_unless_they_are_kept() -> None:
    assert flattened({"a": {}, "b": {"c": {}}}) == {}
    assert flattened({"a": {}, "b": {"c": {}}}, keep_empty=True) == {"a": {}, "b.c": {}}
    assert flattened({"a": {"b": 1}}, separator="/") == {"a/b": 1}
