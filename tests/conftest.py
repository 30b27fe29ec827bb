"""What several test modules share."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core runs tests; read when torch is imported

import pytest

from helpers.fuzzing import Fuzz

if TYPE_CHECKING:  # importing them takes ten seconds, and the process that hands out the tests does not need them
    from transformers import PreTrainedModel


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each family of decoders in turn, for a test that asks for a ``family`` or a ``backbone`` and says no more."""
    says = any("family" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "family" in metafunc.fixturenames and not says:
        from embedlab.testing import FAMILIES

        metafunc.parametrize("family", FAMILIES)


@pytest.fixture
def backbone(family: str) -> PreTrainedModel:
    """A tiny decoder of each family in turn."""
    from embedlab.testing import tiny_backbone

    return tiny_backbone(family)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long each fuzzing test runs: in minutes, and in a plain run only seconds."""
    parser.addoption(
        "--fuzz-minutes", type=float, default=0.0, help="Minutes of each fuzzing test; by default a short fixed round."
    )


def pytest_sessionstart() -> None:
    """Collects no garbage while the test modules are imported, whose objects stay."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leaves out from now on what was imported."""
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives fuzzing tests the time that they are asked to take."""
    minutes = config.getoption("--fuzz-minutes")
    for item in items:
        if minutes and "fuzz" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(60 * minutes + 600))


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fuzz:
    """Runs a boundary over generated inputs, in a folder of its own; see ``Fuzz``."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # an input may name a relative path
    return Fuzz(request, request.config.getoption("--fuzz-minutes"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many inputs the fuzzing tests have tried."""
    counts = {
        report.nodeid.rpartition("::")[2]: value
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
        for name, value in report.user_properties
        if name == "fuzzed"
    }
    if not counts:
        return
    total = sum(sum(count) for count in counts.values())
    terminalreporter.write_line(f"{total} fuzzed inputs, accepted + refused: ")
    for name, (accepted, refused) in sorted(counts.items()):
        terminalreporter.write_line(f"  {name}: {accepted} + {refused}")
