"""Rising budgets: tries all model sizes at a small budget, and only sizes near the best size at larger budgets."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from embedlab.errors import ConfigError
from embedlab.search.policies.policy import History, RoundPolicy
from embedlab.search.space import Candidate, Space, Trial


class RisingBudgets(RoundPolicy):
    """Trains rising budget levels. Each level has, per method, the best size of the previous level and its neighbors.

    The best model size changes slowly with the budget, so it is searched for near the best size of the previous level.
    The runs with smaller and larger models also give an isoFLOP profile around the best size.

    Args:
        width: Number of neighbors on each side of the best size, in order of model size.
        first_share: Maximum share of the budget that the first level may cost. The search starts at the highest budget
            level that all candidates can be trained at for this share, or at the lowest level.

    Raises:
        ConfigError: If ``width`` is below 1, or ``first_share`` is not in (0, 1].
    """

    def __init__(self, *, width: int = 2, first_share: float = 0.25) -> None:
        if width < 1:
            raise ConfigError(f"RisingBudgets' width must be at least 1 neighbor on each side, got {width}.")
        if not 0 < first_share <= 1:
            raise ConfigError(
                f"RisingBudgets' first_share is a share of the budget and must be in (0, 1], got {first_share}."
            )
        self.width = width
        self.first_share = first_share

    def rounds(self, history: History, budget: float) -> Generator[list[Trial], History, None]:
        """Yield one round per budget level, from the first level to the highest; see ``RoundPolicy.rounds``."""
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
        """Return the best candidate at a level and its neighbors in size, for every method.

        Candidates that are closer to the best candidate of their method come first.
        """
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
        """Return the candidate with the lowest loss at the highest budget level with results."""
        return history.best_at_the_highest_level()


def _by_method(space: Space) -> list[Sequence[Candidate]]:
    """Return groups of candidates that differ only in their backbone, each sorted by model size."""
    groups: dict[str, list[Candidate]] = {}
    for one in space.candidates:
        key = f"{one.method} {sorted(one.method_options.items())} {one.learning_rate} {one.seed}"
        groups.setdefault(key, []).append(one)
    return [sorted(group, key=lambda one: (one.parameters, one.backbone)) for group in groups.values()]
