"""The one place that compares a run with the checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.branch_points import MARK
from embedlab.training.run_identity import SCHEDULE, differences, identity_of

_IDENTITY = "identity"  # what a checkpoint says of its run
_MOST_CHANGES = 50  # that are kept: each --accept_changes adds some


class SameRun(RunCallback):
    """Refuses to go on from a checkpoint by another configuration or with other data.

    Args:
        accept_changes: Go on all the same. The run is then another one of the checkpoint's family: it has an identifier
            of its own, and its record says what was changed.
    """

    def __init__(self, *, accept_changes: bool = False) -> None:
        self.accept_changes = accept_changes
        self.changes: list[str] = []  # accepted so far, in this run and those that it went on from
        self._before: Mapping[str, Any] | None = None
        self._step: int | None = None  # of the checkpoint: the trainer does not know it yet when a fit starts
        self._is_branch = False

    def state_dict(self) -> dict[str, Any]:
        """Return what has been changed since the first run of the family began."""
        return {"changes": self.changes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what has been changed before."""
        changes = state_dict.get("changes")
        self.changes = [str(one) for one in changes][:_MOST_CHANGES] if isinstance(changes, list) else []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint which run it is of."""
        module = self.module(trainer)
        checkpoint[_IDENTITY] = dict(identity_of(trainer, module))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take what the checkpoint says of its run."""
        before = checkpoint.get(_IDENTITY)
        self._before = before if isinstance(before, Mapping) else None
        self._step = checkpoint["global_step"]
        self._is_branch = bool(checkpoint.get(MARK))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare.

        Raises:
            ConfigError: If the run differs from the checkpoint's and changes are not accepted.
        """
        module = self.module(trainer)
        module.accepted_changes = self.changes
        if self._step is None:
            return
        if self._before is None:
            if trainer.is_global_zero:
                print(
                    "The checkpoint is of an older embedlab and does not say how its run was configured: whether this "
                    "run goes on with the same data and options cannot be checked."
                )
            return
        now = identity_of(trainer, module)
        if self._is_branch:
            now = {name: value for name, value in now.items() if name != SCHEDULE}
        found = differences(self._before, now)
        if not found:
            return
        if not self.accept_changes:
            raise ConfigError(
                f"The checkpoint is of another run: {'; '.join(found)}. Use the config.yaml of its folder, or add "
                "--accept_changes to go on as another run of its family."
            )
        self.changes = [*self.changes, *(f"{change} from step {self._step} on" for change in found)]
        self.changes = self.changes[-_MOST_CHANGES:]
        module.accepted_changes, module.is_another_run = self.changes, True
        if trainer.is_global_zero:
            print(f"Goes on as another run of the checkpoint's family: {'; '.join(found)}.")
