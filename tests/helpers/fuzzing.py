"""Many mutated inputs through one boundary: each is accepted or refused in one clear line, and nothing else happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from embedlab.errors import EmbedLabError

CPU_SECONDS = 60.0
"""Processor time after which one input counts as a hang."""

_EXAMPLES_OF_A_ROUND = 250  # of a long run, each with a seed of its own
_LONGEST_MESSAGE = 2_000  # characters: more is no message but a dump


class Fuzz:
    """Run a check over generated inputs and count them.

    Args:
        request: The test's.
        minutes: How long to go on with new seeds; 0 runs one short round with a fixed seed.
    """

    def __init__(self, request: pytest.FixtureRequest, minutes: float) -> None:
        self._request = request
        self._minutes = minutes
        self.accepted = 0
        self.refused = 0

    def __call__(self, inputs: SearchStrategy[Any], boundary: Callable[[Any], object], *, examples: int = 50) -> None:
        """Pass every input through the boundary.

        Args:
            inputs: What is passed.
            boundary: Accepts an input by returning, refuses it by an EmbedLabError. It asserts itself that what it
                accepts makes sense.
            examples: Number of inputs of a short run.
        """

        def check(value: Any) -> None:
            began = time.process_time()
            try:
                boundary(value)
                self.accepted += 1
            except EmbedLabError as error:
                self.refused += 1
                message = str(error)
                assert message.strip(), "an error without a message"
                assert len(message) <= _LONGEST_MESSAGE, f"no message but a dump: {message[:300]}…"
            assert time.process_time() - began < CPU_SECONDS, "hangs"

        end = time.monotonic() + 60 * self._minutes
        round_number = 0
        while round_number == 0 or time.monotonic() < end:
            run = settings(
                max_examples=_EXAMPLES_OF_A_ROUND if self._minutes else examples,
                deadline=None,
                database=None,
                phases=(Phase.explicit, Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )(seed(round_number)(given(inputs)(check)))
            run()
            round_number += 1
        self._request.node.user_properties.append(("fuzzed", (self.accepted, self.refused)))
