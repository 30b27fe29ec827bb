"""The import direction of ../shared/design.md: a module imports only from earlier levels."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEVELS = [
    ["errors", "plain_text"],
    ["files", "loop_state", "whole_data"],
    ["checkpoint_file", "optimizer_state"],
    ["flops", "data_sheets", "pooling", "losses", "metrics", "schedule"],
    ["method", "chunking", "config_file", "device_peak"],
    ["option_values", "trainer_options"],
    ["parser"],
    ["encoder", "replay", "registry", "flop_observer", "method_key", "meta_device", "backbone_files"],
    ["backbone", "flop_profile"],
    ["flop_execution", "memory_estimate"],
    ["data"],
    ["flop_meter"],
    ["module", "language_model", "rungs"],
    ["ladder", "run_identity", "export_proof"],
    ["export", "evaluate", "flop_rows"],
    ["flop_table"],
    ["callbacks"],
    ["methods_command"],
    ["training_command", "flops_command"],
    ["worker_command"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# What stands beside the levels: the public names, the contract for plugin authors, and the torch-free search.
SPECIAL = {
    "__init__": set(LEVEL),
    "testing": {"errors", "method", "registry"},
    "search": {"errors", "plain_text", "files", "flops", "data_sheets"},
}
MAY_IMPORT_SEARCH = {"callbacks", "cli", "training_command"}
PLUGIN_MAY_IMPORT = {"embedlab.method", "embedlab.flops", "embedlab.errors"}


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "embedlab":
                yield from (f"embedlab.{alias.name}" for alias in node.names)


def part(dotted: str) -> str:
    return dotted.split(".")[1]


def internal(path: Path) -> set[str]:
    return {part(name) for name in imported(path) if name.startswith("embedlab.")}


@pytest.mark.parametrize("path", modules(ROOT / "embedlab"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_earlier_levels(path: Path) -> None:
    own = path.relative_to(ROOT / "embedlab").parts[0].removesuffix(".py")
    if own in SPECIAL:
        assert internal(path) <= SPECIAL[own] | {own}
        return
    assert own in LEVEL, f"{path} is on no level: add it to LEVELS"
    for other in internal(path) - {own}:
        if other == "search" and own in MAY_IMPORT_SEARCH:
            continue
        assert other in LEVEL, f"{path} imports embedlab.{other}, which no trainer module may import"
        assert LEVEL[other] < LEVEL[own], f"{path} imports embedlab.{other} of level {LEVEL[other]}"


@pytest.mark.parametrize("path", modules(ROOT / "plugins"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_plugin_imports_only_the_plugin_interface(path: Path) -> None:
    names = {name for name in imported(path) if name.startswith("embedlab.")}
    assert names <= PLUGIN_MAY_IMPORT


@pytest.mark.parametrize("path", modules(ROOT / "embedlab"), ids=lambda p: str(p.relative_to(ROOT)))
def test_embedlab_never_imports_a_plugin(path: Path) -> None:
    assert not any(name.startswith("embedlab_methods") for name in imported(path))


@pytest.mark.parametrize(
    "path", modules(ROOT / "embedlab") + modules(ROOT / "plugins"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_module_has_one_subject(path: Path) -> None:
    text = path.read_text()
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "a module begins with one sentence that says why it exists"


PLANS_WITHOUT_TORCH = """
import sys
from embedlab.__main__ import main
try:
    main(["recipe", "--help"])
except SystemExit:
    pass
loaded = {"torch", "lightning", "transformers"} & sys.modules.keys()
sys.exit(f"{loaded} loaded" if loaded else 0)
"""


def test_a_command_that_plans_loads_no_torch(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PLANS_WITHOUT_TORCH], cwd=tmp_path, check=True, capture_output=True)
