"""One word, one meaning: words that the glossary replaces are gone, and no two public classes share a name."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from helpers.paths import ROOT

BRITISH = re.compile(
    r"\b\w*(?:(?:token|normal|optim|synchron|initial|general|summar|recogn|quant|organ|minim|maxim|regular|parametr|"
    r"random|serial|special|visual)is(?:e[sdr]?|ing|ation|ations)|colour\w*|behaviour\w*|neighbour\w*|favour\w*|"
    r"honour\w*|centred|centres?|judgements?|labelled|modelling|cancelled|learnt|spelt|towards|afterwards|licence)\b",
    re.IGNORECASE,
)
IDENTIFIERS = {"replay", "replays", "replayed", "outcome", "outcomes", "world", "passes"}
OF_SEARCHES = {"rung", "rungs", "ladder"}  # of the suite of small models, but no budget level of a search
EARLIER = "renamed.py"  # says what earlier versions called things


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if path.name != EARLIER)


def names_in(path: Path) -> set[str]:
    """The words of all identifiers, small: ``TrialResult`` and ``trial_result`` are trial and result."""
    names = {
        token.string for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline) if token.type == 1
    }
    return {word.lower() for name in names for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_identifier_has_a_word_that_the_glossary_replaces() -> None:
    for path in sources("embedlab", "plugins"):
        found = names_in(path) & IDENTIFIERS
        if any(part in ("search", "scaling", "report") for part in path.relative_to(ROOT).parts):
            found |= names_in(path) & OF_SEARCHES
        assert not found - _allowed(path), f"{path.relative_to(ROOT)}: {found}"


def _allowed(path: Path) -> set[str]:
    return {"world"} if "world_size" in path.read_text() else set()  # torch's word for the number of ranks


def test_spelling_is_american() -> None:
    texts = [*sources("embedlab", "plugins", "benchmarks"), *ROOT.glob("*.md"), *ROOT.glob("plugins/*.md")]
    texts += [*ROOT.glob("benchmarks/*.md"), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("embedlab/report/assets/*")]
    for path in texts:
        if path.name != "CHANGELOG.md":  # tells what things were called
            lines = [line for line in path.read_text().splitlines() if "before 0.1.0" not in line]
            found = BRITISH.findall("\n".join(lines))
            assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_no_text_says_replay() -> None:
    for path in [*sources("embedlab", "plugins"), ROOT / "README.md", ROOT / "plugins" / "README.md"]:
        assert not re.search(r"\breplay", path.read_text(), re.IGNORECASE), path


def test_no_two_public_classes_share_a_name() -> None:
    names = Counter(
        node.name
        for path in sources("embedlab", "plugins")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, number in names.items() if number > 1]


def test_a_module_level_docstring_stands_in_every_public_class() -> None:
    for path in sources("embedlab", "plugins"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name}"
