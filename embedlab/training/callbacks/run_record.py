"""Records what a run did in its folder, where laws and recipes read it: see ``embedlab.records``."""

from __future__ import annotations

import math
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities import rank_zero_warn

from embedlab.data.evaluation.metrics import LOSS_PROTOCOL
from embedlab.data.evaluation.tasks import HeldOutPairs
from embedlab.errors import ConfigError, DataError, DivergenceError, RecordError, suggestion
from embedlab.records import FILE, Ledger, LossDefinition, RunRecord, Status, write_record
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.few_steps import FewSteps
from embedlab.training.callbacks.owed_evaluation import evaluate_last_step
from embedlab.training.callbacks.step_clock import StepClock
from embedlab.training.module import EmbeddingModule
from embedlab.training.schedule import Schedule

CONTINUED = "continued"
"""Name of the folder, in a run's folder, with one subfolder per run that resumed from the finished run."""

_PACKAGES = ("embedlab", "torch", "lightning", "transformers", "peft", "numpy")
_NAMES = ("run_id", "parent_run_id")
_COUNTS = ("branch_step", "branch_flops", "peak_memory_bytes")
_IDENTITY = (*_NAMES, *_COUNTS, "seconds")
_RUN_ID = re.compile(r"[0-9a-zA-Z]{1,64}")
_DATA = "data."  # prefix of the options that define the training data and the held-out data


class RunRecorder(RunCallback):
    """Write a run's record into its folder when the run ends, diverges or fails.

    A run that was interrupted or killed has no record until it has been resumed and has ended. A record is final: a run
    that resumes from a checkpoint of a recorded run (with a larger budget, for example), or from a checkpoint in
    another folder, is another run of the same family, with its own identifier and its own record. No record is written
    for a run whose FLOPs are not counted, or that was not evaluated at its end; a printed line gives the reason.

    Args:
        evaluation_set: Name of the held-out pairs whose loss is recorded. The default is the held-out pairs of the
            first source.
    """

    def __init__(self, *, evaluation_set: str | None = None) -> None:
        self.evaluation_set = evaluation_set
        self.run_id: str | None = None
        self.parent_run_id: str | None = None
        self.branch_step: int | None = None
        self.branch_flops: int | None = None
        self.seconds = 0.0  # duration of training, without evaluation
        self.peak_memory_bytes: int | None = None
        self._clock = StepClock()
        self._device: torch.device | None = None  # None until training begins
        self._git_revision: str | None = None
        self._steps_taken = 0  # number of steps taken by this process
        self._lacks_its_record = False
        self._is_written = False

    def state_dict(self) -> dict[str, Any]:
        """Return the identifiers of the run, its training time in seconds and its peak memory in bytes."""
        self._measure_memory()
        return {name: getattr(self, name) for name in _IDENTITY}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the identifiers, training time and peak memory of the run.

        Raises:
            DataError: If a value is not a value that this callback writes.
        """
        for name in _IDENTITY:
            value = state_dict.get(name)  # an older checkpoint may lack a name
            if not _is_sound(name, value):
                raise DataError(
                    f"The checkpoint says that its run's {name} is {value!r}, which `embedlab fit` does not write. "
                    "Resume from another checkpoint, or start a new run in another --output."
                )
            setattr(self, name, value)
        self.seconds = self.seconds or 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module a function that tells whether its run lacks a record, once the checkpoint has been read."""
        module = self.module(trainer)
        module.record_is_owed = lambda: self.is_owed(trainer, module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print which loss is recorded if there are several sets of held-out pairs.

        Raises:
            ConfigError: If no held-out pairs have the name ``evaluation_set``.
        """
        module = self.module(trainer)
        names = [task.name for task in _held_out(module)]
        if self.evaluation_set is not None and self.evaluation_set not in names:
            raise ConfigError(
                f"record.evaluation_set is '{self.evaluation_set}', but no held-out pairs have this name. There are: "
                f"{', '.join(names) or 'none; data.validation_fraction holds some out'}."
                + suggestion(self.evaluation_set, names)
            )
        if self.evaluation_set is None and len(names) > 1 and trainer.is_global_zero:
            print(
                f"The run record will hold the loss on '{names[0]}'. Set record.evaluation_set to record the loss on "
                f"another of {', '.join(names)}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this is the checkpoint's run or another run of its family, and start the clock.

        Raises:
            RecordError: If a record in the run's folder cannot be read.
        """
        module = self.module(trainer)
        self._device = module.device
        self._lacks_its_record = self.is_owed(trainer, module)
        if trainer.is_global_zero:
            self._git_revision = _git_revision()
            if self.run_id is None:
                self.run_id = _new_id()
            elif module.is_another_run or self._goes_on_from_another(trainer):
                self.parent_run_id = self.parent_run_id or self.run_id
                self.run_id, self.branch_step = _new_id(), trainer.global_step
                self.branch_flops = module.flop_meter.account.algorithmic
        self._clock.start()

    def _goes_on_from_another(self, trainer: Trainer) -> bool:
        folder = Path(trainer.default_root_dir)
        checkpoint = Path(str(trainer.ckpt_path)).resolve()
        if folder.resolve() not in checkpoint.parents:
            return True
        return self.run_id in {record.run_id for record in Ledger([folder]).records()}

    def is_owed(self, trainer: Trainer, module: EmbeddingModule) -> bool:
        """Return whether the checkpoint's run has no record yet, although it would have a record if it ended here.

        Raises:
            RecordError: If a record in the run's folder cannot be read.
        """
        if self.run_id is None or trainer.ckpt_path is None or self._why_not(module, is_evaluated=True) is not None:
            return False
        return not self._goes_on_from_another(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock after a validation, whose time does not count as training."""
        self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the duration of the step to the training time."""
        self.seconds += self._clock.lap()
        self._steps_taken += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the finished run, after its last validation."""
        module = self.module(trainer)
        self._finish(trainer, module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a run that had nothing left to train, but whose record was missing."""
        module = self.module(trainer)
        if self._device is None and self.is_owed(trainer, module):
            self._device, self._lacks_its_record = module.device, True
            self._git_revision = _git_revision() if trainer.is_global_zero else None
            self._finish(trainer, module)

    def _finish(self, trainer: Trainer, module: EmbeddingModule) -> None:
        """Record the run.

        If the run was killed in its last validation, the validation is repeated first, because Lightning skips it.
        """
        is_evaluated = module.evaluated_step == trainer.global_step
        if self._lacks_its_record and self._steps_taken == 0 and not is_evaluated:
            evaluate_last_step(trainer)
        self._write(trainer, module, "finished" if module.is_done() else "stopped")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record a run that diverged or failed. An interrupted run (Ctrl-C, SIGTERM) can resume and gets no record."""
        module = self.module(trainer)
        if not isinstance(exception, Exception):
            return
        try:
            self._write(trainer, module, "diverged" if isinstance(exception, DivergenceError) else "failed")
        except RecordError as error:  # must not hide why the run failed
            rank_zero_warn(str(error))

    def _write(self, trainer: Trainer, module: EmbeddingModule, status: Status) -> None:
        has_begun = self._device is not None and trainer.global_step > (self.branch_step or 0)
        if not has_begun or self._is_written or not trainer.is_global_zero:
            return
        self._is_written = True
        is_evaluated = module.evaluated_step == trainer.global_step
        reason = self._why_not(module, is_evaluated=is_evaluated or status in ("diverged", "failed"))
        if reason is not None:
            print(f"No run record is written: {reason}")
            return
        folder = Path(trainer.default_root_dir)
        assert self.run_id is not None
        if (folder / FILE).exists():
            folder = folder / CONTINUED / self.run_id
        print(f"Run record: {write_record(self._record(trainer, module, status), folder)}")

    def _why_not(self, module: EmbeddingModule, *, is_evaluated: bool) -> str | None:
        if module.is_past_plan():
            return "the checkpoint comes from a longer run than the planned run."
        if any(change.startswith(_DATA) for change in module.accepted_changes):
            return "its data were changed during the run, so pairs that are held out may have been trained on."
        if module.flop_meter.profile is None or not module.flop_meter.is_complete:
            return "the FLOPs of the whole run are not known."
        if not _held_out(module):
            return "there are no held-out pairs to compute a loss on. Set data.validation_fraction to hold out pairs."
        if not is_evaluated:
            return "the run was not evaluated at its end. Set trainer.check_val_every_n_epoch to 1."
        return None

    def _record(self, trainer: Trainer, module: EmbeddingModule, status: Status) -> RunRecord:
        self._measure_memory()
        data = self.data(trainer)
        if status != "failed":  # a rank that has died can no longer answer
            module.flop_meter.settle()
        account, profile = module.flop_meter.account, module.flop_meter.profile
        assert profile is not None and self.run_id is not None and self._device is not None
        held_out = _held_out(module)
        task = next((one for one in held_out if one.name == self.evaluation_set), held_out[0])
        metrics = dict(module.evaluation) if module.evaluated_step == trainer.global_step else {}
        budget = account.budget
        loss = metrics.get(f"validation/{task.name}/loss", math.nan)
        return RunRecord(
            run_id=self.run_id,
            status=status,
            backbone=module.backbone_name,
            backbone_options={
                "attention_direction": module.backbone_config.attention_direction,
                "dtype": module.backbone_config.dtype,
                "pooling": module.pooling,
            },
            random_weights=module.backbone_config.random_weights,
            method=type(module.method).__name__,
            method_options=_options_of_method(module),
            parameters=profile.parameters,
            nonembedding_parameters=profile.nonembedding_parameters,
            forward_weights=profile.matrices.forward,
            backward_weights=profile.matrices.backward,
            update_weights=profile.matrices.update,
            tokens=account.tokens,
            padded_tokens=account.padded_tokens,
            pairs=account.pairs,
            unique_pairs=data.num_unique_pairs(trainer.global_step),
            batch_size=data.batch_size,
            max_length=data.max_length,
            training_loss=f"{type(module.loss).__name__}({module.loss.extra_repr()})",
            learning_rate=module.learning_rate,
            schedule=_written(module.schedule),
            seed=module.seed,
            data_hash=data.training_fingerprint(),
            loss_definition=LossDefinition(
                loss=str(LOSS_PROTOCOL["loss"]),
                temperature=float(LOSS_PROTOCOL["temperature"]),
                candidates=task.num_candidates,
                evaluation_set=f"{task.name} {task.fingerprint}",
            ),
            loss=loss if status in ("finished", "stopped") else math.nan,
            loss_standard_error=metrics.get(f"validation/{task.name}/loss_standard_error"),
            metrics=metrics,
            flops_algorithmic=account.algorithmic,
            flops_executed=account.executed,
            seconds=self.seconds,
            peak_memory_bytes=self.peak_memory_bytes,
            device=f"{_device_name(self._device)} x {trainer.world_size}",
            peak_flops_per_second=module.flop_meter.peak,
            versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            git_revision=self._git_revision,
            parent_run_id=self.parent_run_id,
            branch_step=self.branch_step,
            branch_flops=self.branch_flops,
            stop_reason=_stop_reason(trainer) if status == "stopped" else None,
            steps=trainer.global_step,
            planned_steps=None if budget is not None else int(trainer.estimated_stepping_batches),
            planned_flops=budget,
            changes=tuple(module.accepted_changes),
        )

    def _measure_memory(self) -> None:
        now = None if self._device is None else _peak_memory(self._device)
        if now is not None:
            self.peak_memory_bytes = max(now, self.peak_memory_bytes or 0)


def _new_id() -> str:
    return uuid4().hex[:12]  # two of 100,000 runs share an identifier with a probability of 2e-5


def _is_sound(name: str, value: Any) -> bool:
    if value is None:
        return True
    if name in _NAMES:
        return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None
    kinds = int if name in _COUNTS else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value < math.inf


def _stop_reason(trainer: Trainer) -> str:
    """Return what ended a run before its plan was done, as far as the callbacks tell."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return f"EarlyStopping: {callback.stopping_reason_message}"
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            return "the time limit was reached (trainer.max_time)"
        if isinstance(callback, FewSteps):
            return f"FewSteps ends a run after {callback.steps} steps"
    return "a callback asked for its end"


def _held_out(module: EmbeddingModule) -> Sequence[HeldOutPairs]:
    return [task for task in module.tasks if isinstance(task, HeldOutPairs)]


def _options_of_method(module: EmbeddingModule) -> dict[str, Any]:
    """Return the method's options from the configuration, including defaults; none if Python code made the module."""
    options: dict[str, Any] = module.run_config.get("model", {}).get("method", {}).get("init_args", {})
    return options


def _written(schedule: Schedule) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in vars(schedule).items())
    return f"{type(schedule).__name__}({arguments})"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu":
        status = Path("/proc/self/status")
        if status.exists():  # getrusage may report a larger peak of the parent process instead
            (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
            return 1024 * int(line.split()[1])
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _git_revision() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
