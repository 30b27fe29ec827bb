"""The import direction: which package may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = [  # a package imports itself and what stands in the rows above it
    ["errors"],
    ["files"],
    ["records", "method"],
    ["gradcache", "losses"],
    ["model"],
    ["flops"],
    ["data"],
    ["training"],
    ["pretraining"],
    ["cli"],
]
ALLOWED = {name: {name}.union(*LAYERS[:row]) for row, names in enumerate(LAYERS) for name in names}
ALLOWED["scaling"] = {"scaling", "errors", "files", "records", "flops"}
ALLOWED["search"] = {"search", *ALLOWED["scaling"]}
ALLOWED["report"] = {"report", *ALLOWED["search"]}
ALLOWED["testing"] = {"testing", "errors", "method"}
ALLOWED["cli"] |= {*ALLOWED["report"], "testing"}
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


def test_a_package_imports_only_what_stands_above_it() -> None:
    for path in modules(ROOT / "embedlab"):
        own = path.relative_to(ROOT / "embedlab").parts[0].removesuffix(".py")
        wrong = internal(path) - ALLOWED.get(own, internal(path))
        assert not wrong or MOVING, f"{path} imports {wrong}, which stand below {own}"


MOVING = True  # until all modules are in their packages


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
