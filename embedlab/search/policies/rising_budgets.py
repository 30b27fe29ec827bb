"""A search that climbs along the ridge: all sizes at a small budget, then only those near the best at larger ones."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from embedlab.errors import ConfigError
from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Space, Trial


class RisingBudgets(RoundPolicy):
    """Rising budgets, each with the best size of the one before and its neighbors, for every method.

    The best size grows steadily with the budget, so it is looked for near where it last was. The runs on both sides of
    it are what an isoFLOP profile needs.

    Args:
        width: neighbors on each side, in the order of sizes.
        first_share: of the budget, which the first level may cost; it is the highest that keeps within.
    """

    def __init__(self, *, width: int = 2, first_share: float = 0.25) -> None:
        if width < 1:
            raise ConfigError(f"Ladder's width must be at least 1 neighbor on each side, got {width}.")
        if not 0 < first_share <= 1:
            raise ConfigError(f"Ladder's first_share is a share of the budget in (0, 1], got {first_share}.")
        self.width = width
        self.first_share = first_share

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """A round for each level."""
        space = history.space
        first = max(
            (
                level
                for level in range(space.num_levels)
                if history.is_affordable(space.at(level), self.first_share * budget)
            ),
            default=0,
        )
        wanted = space.at(first)
        for level in range(first, space.num_levels):
            history = yield history.affordable(wanted, budget - history.spent)
            wanted = [] if level + 1 == space.num_levels else space.at(level + 1, self._ridge(history, level))

    def _ridge(self, history: History, level: int) -> list[Candidate]:
        """The best of a level and its neighbors, of every method, the nearest first."""
        found: list[tuple[int, Candidate]] = []
        for candidates in _by_method(history.space):
            tried = [trial for trial in history.space.at(level, candidates) if trial in history]
            if not tried:
                continue
            best = candidates.index(min(tried, key=lambda trial: history[trial].loss).candidate)
            for number, candidate in enumerate(candidates):
                if abs(number - best) <= self.width:
                    found.append((abs(number - best), candidate))
        return [candidate for _, candidate in sorted(found, key=lambda one: one[0])]

    def choose(self, history: History) -> Candidate:
        """The least loss on the highest level."""
        return history.best_at_the_highest_level()


def _by_method(space: Space) -> list[Sequence[Candidate]]:
    """The candidates that differ in their backbone alone, by size."""
    groups: dict[str, list[Candidate]] = {}
    for one in space.candidates:
        key = f"{one.method} {sorted(one.method_options.items())} {one.learning_rate} {one.seed}"
        groups.setdefault(key, []).append(one)
    return [sorted(group, key=lambda one: (one.parameters, one.backbone)) for group in groups.values()]
