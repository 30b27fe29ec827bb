"""Counts the FLOPs of a run: the prepared model is observed once, and then arithmetic gives the cost of each step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed, nn

from embedlab.data.collate import PairBatch
from embedlab.errors import PluginError
from embedlab.flops import FlopProfile
from embedlab.flops.execution import ExecutedFlops
from embedlab.flops.profile import observe
from embedlab.gradcache.engine import EncodedBatch, Recompute
from embedlab.model.encoder import Encoder

_COUNTS = ("algorithmic", "executed", "tokens", "padded_tokens", "pairs")


@dataclass
class FlopAccount:
    """The FLOPs, tokens and pairs that a run has spent, and its budget.

    Attributes:
        algorithmic: FLOPs for the texts of all ranks, without padding and recomputation. A budget limits this count.
        executed: FLOPs that the hardware of all ranks executed in training steps. With several ranks, the last step is
            missing until ``FlopMeter.settle`` is called.
        tokens: Number of real tokens of all ranks.
        padded_tokens: Number of tokens of all ranks, including padding. With several ranks, the last step is missing
            until ``FlopMeter.settle`` is called.
        pairs: Number of pairs of all ranks.
        budget: Algorithmic FLOPs after which training stops. None means that something else ends the run.
    """

    algorithmic: int = 0
    executed: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    pairs: int = 0
    budget: float | None = None

    @property
    def is_spent(self) -> bool:
        """Whether the run has a budget and has spent all of it."""
        return self.budget is not None and self.algorithmic >= self.budget

    def share_after(self, flops: int) -> float:
        """Return the share of the budget that is spent after ``flops`` further FLOPs, at most 1."""
        assert self.budget is not None
        return min(1.0, (self.algorithmic + flops) / self.budget)


class FlopMeter:
    """A counter of a run's FLOPs, which first observes what the prepared model costs.

    Attributes:
        account: Counts of the run so far.
        profile: Cost of the model. None before the model is observed, or if its cost cannot be observed; nothing is
            counted then.
        peak: Maximum FLOP/s of all devices together. None before the maximum is known.
        is_complete: Whether the account covers the whole run. False after a resume from a checkpoint without counts.
    """

    def __init__(self) -> None:
        self.account = FlopAccount()
        self.profile: FlopProfile | None = None
        self.peak: float | None = None
        self.is_complete = True
        self._execution: ExecutedFlops | None = None
        self._summed: tuple[distributed.Work, torch.Tensor] | None = None  # a step's executed FLOPs and padded tokens

    def observe(
        self,
        encoder: Encoder,
        backbone_parameters: Collection[nn.Parameter],
        frozen_blocks: Sequence[nn.Module],
        *,
        max_length: int,
        recompute: Recompute,
    ) -> None:
        """Observe what steps cost, in the mode, on the device and in the precision in which the encoder trains.

        Args:
            encoder: Encoder with the backbone that the method has prepared.
            backbone_parameters: Parameters of the backbone before the method prepared it.
            frozen_blocks: Leading blocks through which no gradient flows. The second forward pass of GradCache skips
                them.
            max_length: Number of tokens of the longest text.
            recompute: Policy that decides which chunks are encoded twice: ``never``, ``always`` or ``auto``.

        Raises:
            PluginError: If there is a budget and the cost of a layer cannot be observed.
        """
        self.profile = self._execution = None
        try:
            profile = observe(encoder.backbone, backbone_parameters, max_length=max_length)
            execution = ExecutedFlops(encoder, frozen_blocks, max_length=max_length)
            # Both costs are measured on first use, which must not happen inside a step.
            if recompute != "always":
                _ = execution.kept
            if recompute != "never":
                _ = execution.recomputed
        except PluginError as error:
            if self.account.budget is not None:
                raise
            rank_zero_warn(f"FLOPs are not counted in this run. {error}")
        else:
            self.profile, self._execution = profile, execution
            if not self.is_complete:
                rank_zero_warn(
                    "The checkpoint does not say how many FLOPs its run has spent. FLOPs are counted from 0 here, and "
                    "the run's next checkpoints will not contain the count either. Start a new run to count all FLOPs."
                )

    def algorithmic(self, batch: PairBatch) -> int:
        """Return the FLOPs of a step as a budget counts them, or 0 if nothing is counted."""
        return 0 if self.profile is None else self.profile.algorithmic(batch.lengths_of_all_ranks)

    def executed(self, encoded: EncodedBatch) -> int:
        """Return the FLOPs that this rank executes to encode and back-propagate a batch.

        Call this before the batch is back-propagated, because back-propagation uses up the batch's graphs.
        """
        return 0 if self._execution is None else self._execution.of(encoded)

    def count(self, batch: PairBatch, executed: int, trainer: Trainer) -> None:
        """Add a step to the account.

        Args:
            batch: This rank's batch in the step.
            executed: FLOPs that this rank executed in the step, including the loss. With several ranks, ``settle``
                later adds the sum over all ranks to the account.
            trainer: Trainer that runs the step.
        """
        if self.profile is None:
            return
        self.account.algorithmic += self.algorithmic(batch)
        self.account.tokens += int(batch.lengths_of_all_ranks.sum())
        self.account.pairs += trainer.world_size * len(batch.rows.queries_P)
        if trainer.world_size == 1:
            self.account.executed += executed
            self.account.padded_tokens += batch.num_padded_tokens
            return
        self.settle()
        own = torch.tensor(
            [executed, batch.num_padded_tokens], dtype=torch.float64, device=trainer.strategy.root_device
        )
        work = distributed.all_reduce(own, async_op=True)
        assert work is not None, "only a rank outside the group gets no handle"
        self._summed = work, own

    def settle(self) -> None:
        """Add the FLOPs and padded tokens of the last step to the account, summed over all ranks.

        No rank waits for another rank before this call.
        """
        if self._summed is None:
            return
        work, sums = self._summed
        self._summed = None
        work.wait()
        executed, padded_tokens = sums.tolist()
        self.account.executed += int(executed)
        self.account.padded_tokens += int(padded_tokens)

    def state_dict(self) -> dict[str, int] | None:
        """Return the counts of the whole run, or None if they are unknown. The budget is in the configuration."""
        if self.profile is None or not self.is_complete:
            return None
        self.settle()
        return {name: getattr(self.account, name) for name in _COUNTS}

    def load_state_dict(self, state: Mapping[str, int] | None) -> None:
        """Restore the counts of a checkpoint.

        Args:
            state: Counts by name. None, or a mapping that lacks a count, means that the counts are unknown; counting
                then starts from 0.
        """
        state = state if state is not None and state.keys() >= set(_COUNTS) else None
        self.is_complete = state is not None
        self._summed = None
        for name in _COUNTS:
            setattr(self.account, name, 0 if state is None else int(state[name]))
