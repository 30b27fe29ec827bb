"""Methods are found wherever they are installed; one that is broken is named, and breaks nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedlab.errors import ConfigError, PluginError
from embedlab.method import FineTuningMethod, registry

GOOD = """
from embedlab.method import FineTuningMethod

class {name}(FineTuningMethod):
    '''Trains nothing of note.

    And more about it.

    Args:
        rank: of what it
            does not do.
    '''

    def __init__(self, *, rank: int = 3, names: "list[str] | None" = None) -> None:
        self.rank = rank

    def prepare(self, backbone):
        return backbone
"""


class Installer:
    """Puts packages where an installation would, and lets the registry look again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, distribution: str, source: str, **entry_points: str) -> str:
        """Installs one module as a distribution of its own, version 1.2; returns the module's name."""
        module = distribution.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        metadata = self.folder / f"{module}-1.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"{name} = {value.format(module=module)}" for name, value in entry_points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[embedlab.methods]", *lines, ""]))
        importlib.invalidate_caches()
        registry.discover.cache_clear()
        return module


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    yield Installer(tmp_path)
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]
    registry.discover.cache_clear()


def test_the_built_in_methods_come_through_the_entry_points() -> None:
    entries = registry.discover()
    assert {"FullFineTuning", "BlockFreezing", "BiasTuning", "LoRA"} <= entries.keys()
    assert all(entry.cls is not None and entry.cls.__name__ == name for name, entry in entries.items())
    assert entries["LoRA"].origin.startswith("embedlab ")


def test_a_method_of_another_package_is_found_and_named_with_its_origin(install: Installer) -> None:
    install("plugin-good", GOOD.format(name="GoodMethod"), GoodMethod="{module}:GoodMethod")
    entry = registry.discover()["GoodMethod"]
    assert entry.origin == "plugin-good 1.2" and entry.error is None
    assert registry.method_class("GoodMethod") in FineTuningMethod.__subclasses__()


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("import no_such_package", "{module}:Broken", "ModuleNotFoundError.*no_such_package"),
        ("def broken(:", "{module}:Broken", "SyntaxError"),
        ("import sys; sys.exit(3)", "{module}:Broken", "SystemExit: 3"),
        ("x = 1", "{module}:Broken", "AttributeError.*Broken"),
        (
            "class Broken: pass",
            "{module}:Broken",
            "expected a subclass of embedlab.method.FineTuningMethod, got <class",
        ),
        ("Broken = 7", "{module}:Broken", "expected a subclass of embedlab.method.FineTuningMethod, got 7"),
        (GOOD.format(name="Other"), "{module}:Other", "entry point must be the class's name, 'Other'"),
        (
            "from embedlab.method import FineTuningMethod\nclass Broken(FineTuningMethod): pass",
            "{module}:Broken",
            "does not implement prepare",
        ),
    ],
)
def test_a_broken_method_warns_when_found_and_raises_when_chosen(
    install: Installer, source: str, target: str, reason: str
) -> None:
    install("plugin-broken", source, Broken=target)
    expected = f"'Broken' of plugin-broken 1.2 cannot be used: .*{reason}"
    with pytest.warns(UserWarning, match=expected):
        entries = registry.discover()
    assert entries["Broken"].cls is None
    with pytest.raises(PluginError, match=expected):
        registry.method_class("Broken")
    assert registry.method_class("LoRA").__name__ == "LoRA", "the others work"
    assert {row.name: row.summary for row in registry.rows()}["Broken"].startswith("The fine-tuning method 'Broken'")


def test_two_packages_with_one_method_name_are_both_named(install: Installer) -> None:
    install("plugin-one", GOOD.format(name="Twin"), Twin="{module}:Twin")
    install("plugin-two", GOOD.format(name="Twin"), Twin="{module}:Twin")
    with pytest.warns(UserWarning, match="registered more than once"):
        registry.discover()
    with pytest.raises(PluginError, match=r"plugin-one 1\.2, plugin-two 1\.2.*Uninstall all but one"):
        registry.method_class("Twin")


def test_a_package_cannot_take_the_name_of_a_built_in_method_unnoticed(install: Installer) -> None:
    install("plugin-thief", GOOD.format(name="LoRA"), LoRA="{module}:LoRA")
    with pytest.warns(UserWarning, match="registered more than once"):
        registry.discover()
    with pytest.raises(PluginError, match=r"embedlab .*plugin-thief 1\.2|plugin-thief 1\.2.*embedlab "):
        registry.method_class("LoRA")


def test_an_unknown_method_gets_the_list_and_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'lora'. Registered methods: .*BlockFreezing.*Did you mean 'LoRA'\?"):
        registry.method_class("lora")


def test_a_row_is_read_from_the_signature_and_the_docstring(install: Installer) -> None:
    install("plugin-good", GOOD.format(name="GoodMethod"), GoodMethod="{module}:GoodMethod")
    row = {row.name: row for row in registry.rows()}["GoodMethod"]
    assert row == (
        "GoodMethod",
        "plugin-good 1.2",
        "rank: int = 3  of what it does not do.\nnames: list[str] | None = None",
        "Trains nothing of note.",
    )


def test_every_registered_method_says_what_it_does_and_what_its_options_mean() -> None:
    for row in registry.rows():
        assert row.summary.endswith(".")
        assert all("  " in option for option in row.options.splitlines()), row.options
