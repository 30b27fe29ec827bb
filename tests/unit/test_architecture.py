"""Which package may import which, what plugins may import, and what runs without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from helpers.paths import ROOT

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
ALLOWED["cli"] |= ALLOWED["report"]
DATA = ["rows", "tables", "split", "standard_library", "files", "readers", "usual_columns", "sources", "texts"]
DATA += ["tokenized", "sampler", "collate", "summary", "evaluation", "datamodule"]  # the way of a text to a batch
PLUGIN = {"embedlab.method", "embedlab.flops", "embedlab.errors"}

WITHOUT_TORCH = """
import sys
from importlib import import_module
from pkgutil import walk_packages
for name in ("records", "scaling", "search", "report"):
    package = import_module(f"embedlab.{name}")
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        import_module(module.name)
from embedlab.__main__ import main
try:
    main(["recipe", "--help"])
except SystemExit:
    pass
loaded = {"torch", "lightning", "transformers"} & sys.modules.keys()
sys.exit(f"{loaded} loaded" if loaded else 0)
"""


def modules(folder: str) -> dict[str, Path]:
    """Paths by dotted name."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def imported(path: Path) -> set[str]:
    """Dotted names of what a module imports; an imported name counts as a module, too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_a_package_imports_only_what_stands_above_it() -> None:
    for name, path in modules("embedlab").items():
        package = name.split(".")[1] if name not in ("embedlab", "embedlab.__main__") else "cli"
        others = {other.split(".")[1] for other in imported(path) if other.startswith("embedlab.")}
        assert others <= ALLOWED[package], f"{name} imports {others - ALLOWED[package]}, which stand below {package}"


def test_in_data_a_text_goes_one_way() -> None:
    """From a source by records, columns and stored texts to tokens and batches: nothing asks what stands behind it."""
    for name, path in modules("embedlab/data").items():
        own = name.split(".")[2] if name.count(".") > 1 else None
        if own is not None:
            others = {other.split(".")[2] for other in imported(path) if other.startswith("embedlab.data.")}
            behind = {other for other in others & set(DATA) if DATA.index(other) > DATA.index(own)}
            assert not behind, f"{name} imports {behind}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    found = modules("embedlab")
    TopologicalSorter({name: (imported(path) & found.keys()) - {name} for name, path in found.items()}).prepare()


def test_few_names_stand_at_the_top() -> None:
    assert len([path for path in (ROOT / "embedlab").iterdir() if path.name != "__pycache__"]) <= 20


def test_a_plugin_imports_only_the_plugin_interface() -> None:
    for name, path in modules("plugins").items():
        own = {other for other in imported(path) if other.startswith("embedlab.")}
        assert all(other in PLUGIN or other.rpartition(".")[0] in PLUGIN for other in own), name


def test_embedlab_never_imports_a_plugin() -> None:
    for name, path in modules("embedlab").items():
        assert not any(other.startswith("embedlab_methods") for other in imported(path)), name


def test_a_module_says_why_it_exists() -> None:
    for folder in ("embedlab", "plugins"):
        for name, path in modules(folder).items():
            text = path.read_text()
            assert not text.strip() or ast.get_docstring(ast.parse(text)), name


def test_what_plans_loads_no_torch(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, check=True, capture_output=True)
