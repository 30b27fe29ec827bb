"""Arguments that were stored as data are checked against the signature that they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from embedlab.errors import RecordError
from embedlab.records.stored import arguments_of

PATH = Path("last.ckpt")


class Options:
    def __init__(
        self,
        *,
        rank: int,
        rate: float = 0.5,
        targets: str | list[str] = "all",
        betas: tuple[float, float] = (0.9, 0.99),
        sizes: tuple[int, ...] = (),
        names: Sequence[str] = (),
        mode: Literal["a", "b"] = "a",
        function: Callable[[], None] | None = None,
        path: Path | None = None,
    ) -> None:
        pass


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rate": 1},
        {"targets": ["q", "k"], "betas": [0.1, 0.2]},
        {"betas": (0.1, 0.2), "sizes": [1, 2, 3]},
        {"names": ["x"], "mode": "b"},
    ],
)
def test_arguments_of_the_right_types_are_taken(more: dict[str, Any]) -> None:
    assert arguments_of(Options, {"rank": 4, **more}, PATH) == {"rank": 4, **more}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "lacks rank"),
        ({"rank": "4"}, "rank is '4'. Expected a whole number"),
        ({"rank": True}, "rank is True. Expected a whole number"),
        ({"rank": 4, "betas": [0.1]}, "Expected a list of 2"),
        ({"rank": 4, "sizes": [1, "2"]}, "sizes is"),
        ({"rank": 4, "mode": "c"}, "Expected one of a, b"),
        ({"rank": 4, "targets": {"class_path": "os.system"}}, "targets is"),
        ({"rank": 4, "function": "os.system"}, "options of Options: rank, rate, targets, betas, sizes, names, mode"),
        ({"rank": 4, "path": "/etc/passwd"}, "options of Options"),
        ({"rank": 4, "other": 1}, "options of Options"),
    ],
)
def test_what_is_no_data_of_the_signature_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError) as caught:
        arguments_of(Options, values, PATH)
    assert str(caught.value).startswith("last.ckpt") and said in str(caught.value)
