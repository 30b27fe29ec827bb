"""Fixtures that several test modules share."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core runs tests; read when torch is imported

import pytest
from transformers import PreTrainedModel

from embedlab.testing import FAMILIES, tiny_backbone


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family of decoders in turn."""
    name: str = request.param
    return name


@pytest.fixture
def backbone(family: str) -> PreTrainedModel:
    """A tiny decoder of each family in turn."""
    return tiny_backbone(family)
