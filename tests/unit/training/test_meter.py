"""What a run has spent: the share of a budget, and what a checkpoint keeps of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embedlab.flops import FlopProfile, FlopsByLength, WeightsByPass
from embedlab.training.meter import FlopAccount, FlopMeter

WEIGHTS = WeightsByPass(1, 1, 1)
PROFILE = FlopProfile(
    1, 0, 0, 1, WEIGHTS, WEIGHTS, WEIGHTS, WEIGHTS, WEIGHTS, attention=FlopsByLength(per_squared_token=1)
)


def meter(account: FlopAccount) -> FlopMeter:
    made = FlopMeter()
    made.account, made.profile = account, PROFILE
    return made


def test_a_meter_keeps_its_counts_and_takes_its_budget_from_elsewhere() -> None:
    spent = meter(FlopAccount(algorithmic=10**30, executed=5, tokens=6, padded_tokens=9, pairs=7, budget=8.0))
    again = meter(FlopAccount(budget=3e30))
    again.load_state_dict(spent.state_dict())
    assert again.is_complete
    assert again.account == replace(spent.account, budget=3e30)
    assert spent.account.is_spent and not again.account.is_spent and not FlopAccount(algorithmic=1).is_spent


@pytest.mark.parametrize("kept", [None, {"algorithmic": 1, "executed": 1, "tokens": 1, "pairs": 1}])
def test_what_is_not_counted_or_not_known_is_none_in_a_checkpoint_and_not_zero(kept: dict[str, int] | None) -> None:
    assert FlopMeter().state_dict() is None
    resumed = meter(FlopAccount(algorithmic=5))
    resumed.load_state_dict(kept)
    assert resumed.account == FlopAccount() and not resumed.is_complete
    resumed.account.algorithmic = 7
    assert resumed.state_dict() is None, "what was spent before is not known"


def test_the_share_of_a_budget_ends_at_one() -> None:
    account = FlopAccount(algorithmic=60, budget=100.0)
    assert [account.share_after(flops) for flops in (0, 20, 40, 50)] == [0.6, 0.8, 1.0, 1.0]
