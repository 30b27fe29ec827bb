"""What a run has spent: the share of a budget, and what a checkpoint keeps of it."""

from __future__ import annotations

from embedlab.flop_meter import FlopAccount, FlopMeter


def meter(account: FlopAccount) -> FlopMeter:
    made = FlopMeter()
    made.account = account
    return made


def test_a_meter_keeps_its_counts_and_takes_its_budget_from_elsewhere() -> None:
    spent = meter(FlopAccount(algorithmic=10**30, executed=5, tokens=6, pairs=7, budget=8.0))
    again = meter(FlopAccount(budget=3e30))
    again.load_state_dict(spent.state_dict())
    assert again.account == FlopAccount(algorithmic=10**30, executed=5, tokens=6, pairs=7, budget=3e30)
    assert spent.account.is_spent and not again.account.is_spent and not FlopAccount(algorithmic=1).is_spent


def test_the_share_of_a_budget_ends_at_one() -> None:
    account = FlopAccount(algorithmic=60, budget=100.0)
    assert [account.share_after(flops) for flops in (0, 20, 40, 50)] == [0.6, 0.8, 1.0, 1.0]
