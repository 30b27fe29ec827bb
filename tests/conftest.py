"""What several test modules share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core runs tests; read when torch is imported

import pytest

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
