"""Logs what a run has cost so far, and how much of the hardware's peak it uses."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.flops.peak import Peak, device_peak
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.step_clock import StepClock


class FlopCounter(RunCallback):
    """Log the FLOPs spent (algorithmic and executed), the tokens, and the share of the peak FLOP/s that both use.

    MFU (model FLOPs utilization: Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is the share that the algorithmic
    FLOPs use, attention included. HFU (hardware FLOPs utilization) is the share that the executed FLOPs use.

    Args:
        peak_flops: Peak of one device in FLOP/s. The default is the peak in the device's data sheet, or a measured peak
            if no data sheet is known.
    """

    def __init__(self, *, peak_flops: float | None = None) -> None:
        if peak_flops is not None and not peak_flops > 0:
            raise ConfigError(
                f"FlopCounter's peak_flops must be a number of FLOP/s above 0, got {peak_flops}. Leave it out to use "
                "the device's data sheet or a measurement."
            )
        self._stated = None if peak_flops is None else Peak(peak_flops, "stated by you")
        self._clock = StepClock()
        self._peak = 0.0
        self._before = (0, 0)  # algorithmic and executed FLOPs at the last log
        self._seconds = 0.0  # duration of the steps since the last log

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what a token costs, and the peak to which the utilization is relative."""
        module = self.module(trainer)
        meter = self.meter(trainer)
        profile, account = meter.profile, meter.account
        if profile is None:
            return
        peak = self._stated or device_peak(module.device, _dtype(trainer, module))
        self._peak = meter.peak = trainer.world_size * peak.flops_per_second
        self._before = (account.algorithmic, account.executed)
        if trainer.is_global_zero:
            print(
                f"A token costs {profile.matrices.flops_per_token:.3g} FLOPs plus its share of attention. "
                f"MFU is relative to {peak.flops_per_second:.3g} FLOP/s per device ({peak.source})."
            )
            if profile.remark is not None:
                print(f"The backbone's FLOPs: {profile.remark}")
        self._clock.start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock after a validation, whose time does not count as training."""
        self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counts so far, and the utilization since the last log."""
        meter = self.meter(trainer)
        if meter.profile is None:
            return
        self._seconds += self._clock.lap()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it by name
        if not every or trainer.global_step % every:
            return  # Lightning would not write the values, and logging costs more than counting
        meter.settle()
        account = meter.account
        after = (account.algorithmic, account.executed)
        algorithmic, executed = (now - before for now, before in zip(after, self._before, strict=True))
        possible = self._peak * self._seconds
        self._before, self._seconds = after, 0.0
        pl_module.log_dict(
            {
                "flops/algorithmic": float(account.algorithmic),
                "flops/executed": float(account.executed),
                "flops/tokens": float(account.tokens),
                "flops/mfu": algorithmic / possible,
                "flops/hfu": executed / possible,
            }
        )


def _dtype(trainer: Trainer, pl_module: LightningModule) -> torch.dtype:
    """Return the data type in which the matrix products of training are computed."""
    with trainer.precision_plugin.forward_context():
        weight = next(parameter for parameter in pl_module.parameters() if parameter.is_floating_point())
        one = torch.ones(1, 1, device=pl_module.device, dtype=weight.dtype)
        return (one @ one).dtype
