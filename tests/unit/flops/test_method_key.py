"""What is kept of a method is found again as long as nothing that it depends on has changed."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import embedlab
from embedlab.flops.method_key import method_key
from embedlab.method import FineTuningMethod

SOURCE = """
from embedlab.method import FineTuningMethod

class Mine(FineTuningMethod):
    def __init__(self, option=1):
        self.option = option

    def prepare(self, backbone):
        return backbone
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stranger's package with a method in a module of it, and a helper beside that."""
    folder = tmp_path / "packages" / "stranger"
    folder.mkdir(parents=True)
    for name, text in (("__init__", ""), ("methods", SOURCE), ("helper", "")):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


def mine(**options: Any) -> FineTuningMethod:
    method: FineTuningMethod = importlib.import_module("stranger.methods").Mine(**options)
    return method


def test_options_and_parts_are_in_the_key(package: Path) -> None:
    assert method_key(mine(), part=1) == method_key(mine(), part=1) is not None
    assert len({method_key(mine(), part=1), method_key(mine(), part=2), method_key(mine(option=2), part=1)}) == 3


def test_every_file_of_the_methods_package_is_in_the_key(package: Path) -> None:
    before = method_key(mine())
    (package / "helper.py").write_text("CHANGED = True\n")
    assert method_key(mine()) != before


def test_every_file_of_embedlab_is_in_the_key(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = method_key(mine())
    monkeypatch.setattr(embedlab, "__path__", [*embedlab.__path__, str(tmp_path / "more")])
    assert method_key(mine()) == before
    (tmp_path / "more" / "data").mkdir(parents=True)
    (tmp_path / "more" / "data" / "helper.py").write_text("CHANGED = True\n")
    assert method_key(mine()) != before is not None


def test_the_package_of_a_method_that_it_derives_from_is_in_the_key(package: Path) -> None:
    class Derived(type(mine())):  # type: ignore[misc]
        pass

    before = method_key(Derived())
    (package / "helper.py").write_text("CHANGED = True\n")
    assert method_key(Derived()) != before is not None


@pytest.mark.parametrize("option", [object(), {1, 2}, [lambda: None]], ids=["an object", "a set", "a function"])
def test_options_that_cannot_be_written_have_no_key(package: Path, option: object) -> None:
    assert method_key(mine(option=option)) is None


def test_a_class_without_a_file_has_no_key() -> None:
    typed: dict[str, Any] = {"__name__": "typed_in"}
    exec(SOURCE, typed)
    assert method_key(typed["Mine"]()) is None


def test_a_class_in_a_zip_file_has_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as file:
        file.writestr("zipped_method.py", SOURCE)
        file.writestr("zipped_package/__init__.py", SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "zipped.zip"))
    for name in ("zipped_method", "zipped_package"):
        assert method_key(importlib.import_module(name).Mine()) is None
