"""Counts the FLOPs that a run spends: the prepared model is observed once, and a step is arithmetic from then on."""

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
    """What a run has spent, and how far that brings it toward its budget.

    Attributes:
        algorithmic: FLOPs of the texts of all ranks, without padding and recomputation: what a budget limits.
        executed: FLOPs that the hardware of all ranks did in training steps, as of ``FlopMeter.settle``.
        tokens: real tokens of all ranks.
        padded_tokens: tokens of all ranks with padding, likewise.
        pairs: Number of pairs seen, over all ranks.
        budget: algorithmic FLOPs after which training stops; None if something else stops it.
    """

    algorithmic: int = 0
    executed: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    pairs: int = 0
    budget: float | None = None

    @property
    def is_spent(self) -> bool:
        """Whether there is a budget and nothing is left of it."""
        return self.budget is not None and self.algorithmic >= self.budget

    def share_after(self, flops: int) -> float:
        """The share of the budget that is spent after so many FLOPs more, 1 at most."""
        assert self.budget is not None
        return min(1.0, (self.algorithmic + flops) / self.budget)


class FlopMeter:
    """Counts the steps of a run, once it has observed what the prepared model costs.

    Attributes:
        account: what is spent.
        profile: what the model costs; None before it is observed, and if it cannot be: then nothing is counted.
        peak: FLOP/s of all devices together, at most; None before it is known.
        is_complete: whether the account holds the whole run: not after a resume from a checkpoint without counts.
    """

    def __init__(self) -> None:
        self.account = FlopAccount()
        self.profile: FlopProfile | None = None
        self.peak: float | None = None
        self.is_complete = True
        self._execution: ExecutedFlops | None = None
        self._summed: tuple[distributed.Work, torch.Tensor] | None = None  # executed FLOPs and padded tokens of a step

    def observe(
        self,
        encoder: Encoder,
        backbone_parameters: Collection[nn.Parameter],
        frozen_blocks: Sequence[nn.Module],
        *,
        max_length: int,
        recompute: Recompute,
    ) -> None:
        """Observes what steps cost, in the mode, on the device and in the precision in which the encoder trains.

        Args:
            encoder: Encoder whose backbone the method has prepared.
            backbone_parameters: Parameters of the backbone before the method prepared it.
            frozen_blocks: Leading blocks that the second forward pass of a chunk skips.
            max_length: tokens of the longest text.
            recompute: Policy that says for which chunks the forward pass runs a second time.

        Raises:
            PluginError: if there is a budget and a layer computes in a way that cannot be seen.
        """
        self.profile = self._execution = None
        try:
            profile = observe(encoder.backbone, backbone_parameters, max_length=max_length)
            execution = ExecutedFlops(encoder, frozen_blocks, max_length=max_length)
            # Both are measured when they are first asked for, which must not be inside a step.
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
                    "The checkpoint does not say how many FLOPs its run has spent. They are counted from 0 here, and "
                    "the run's next checkpoints will not say it either. To count a whole run, begin it anew."
                )

    def algorithmic(self, batch: PairBatch) -> int:
        """FLOPs of a step, as a budget counts them; 0 if nothing is counted."""
        return 0 if self.profile is None else self.profile.algorithmic(batch.lengths_of_all_ranks)

    def executed(self, encoded: EncodedBatch) -> int:
        """FLOPs that this rank executes to encode and back-propagate a batch; ask before its graphs are used up."""
        return 0 if self._execution is None else self._execution.of(encoded)

    def count(self, batch: PairBatch, executed: int, trainer: Trainer) -> None:
        """Adds a step to the account.

        Args:
            batch: Batch of the step.
            executed: FLOPs of this rank in it, the loss included; ``settle`` has them summed over all ranks.
            trainer: knows the ranks.
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
        assert work is not None, "only a rank outside of the group has none"
        self._summed = work, own

    def settle(self) -> None:
        """Takes what the ranks executed in the last step into the account: until then no rank waits for another."""
        if self._summed is None:
            return
        work, sums = self._summed
        self._summed = None
        work.wait()
        executed, padded_tokens = sums.tolist()
        self.account.executed += int(executed)
        self.account.padded_tokens += int(padded_tokens)

    def state_dict(self) -> dict[str, int] | None:
        """The counts of the whole run, None if they are not known; the budget is the configuration's."""
        if self.profile is None or not self.is_complete:
            return None
        self.settle()
        return {name: getattr(self.account, name) for name in _COUNTS}

    def load_state_dict(self, state: Mapping[str, int] | None) -> None:
        """Takes the counts of a checkpoint; None if it has none, and as good as none if it lacks one."""
        state = state if state is not None and state.keys() >= set(_COUNTS) else None
        self.is_complete = state is not None
        self._summed = None
        for name in _COUNTS:
            setattr(self.account, name, 0 if state is None else int(state[name]))
