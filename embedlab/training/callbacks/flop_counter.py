"""What a run has cost so far and how much of the hardware it uses, beside its loss."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from embedlab.errors import ConfigError
from embedlab.flops.peak import Peak, device_peak
from embedlab.training.callbacks.base import RunCallback
from embedlab.training.callbacks.step_clock import StepClock


class FlopCounter(RunCallback):
    """Logs FLOPs spent (algorithmic and executed), tokens, and the share of the peak that both use.

    MFU (model FLOPs utilization: Chowdhery et al. 2022, arXiv:2204.02311, appendix B) takes the algorithmic count,
    attention included; HFU (hardware FLOPs utilization) takes the executed one.

    Args:
        peak_flops: FLOP/s of one device; by default its data sheet's, or measured where there is none.
    """

    def __init__(self, *, peak_flops: float | None = None) -> None:
        if peak_flops is not None and not peak_flops > 0:
            raise ConfigError(
                f"FlopCounter peak_flops must be above 0, got {peak_flops}. Leave it out to have it found."
            )
        self._stated = None if peak_flops is None else Peak(peak_flops, "stated by you")
        self._clock = StepClock()
        self._peak = 0.0
        self._before = (0, 0)  # what was spent when this was last logged
        self._seconds = 0.0  # of the steps since then

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what a token costs, and what the utilization is measured against."""
        module = self.module(trainer)
        profile, account = module.flop_meter.profile, module.flop_meter.account
        if profile is None:
            return
        peak = self._stated or device_peak(module.device, _dtype(trainer, module))
        self._peak = module.flop_meter.peak = trainer.world_size * peak.flops_per_second
        self._before = (account.algorithmic, account.executed)
        if trainer.is_global_zero:
            print(
                f"A token costs {profile.matrices.flops_per_token:.3g} FLOPs and its share of attention. "
                f"MFU is against {peak.flops_per_second:.3g} FLOP/s a device ({peak.source})."
            )
            if profile.remark is not None:
                print(f"The backbone's FLOPs: {profile.remark}")
        self._clock.start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again: validation is no training."""
        self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the steps since it last did."""
        module = self.module(trainer)
        if module.flop_meter.profile is None:
            return
        self._seconds += self._clock.lap()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it by name
        if not every or trainer.global_step % every:
            return  # Lightning would not write it, and to log costs more than to count
        module.flop_meter.settle()
        account = module.flop_meter.account
        after = (account.algorithmic, account.executed)
        algorithmic, executed = (now - before for now, before in zip(after, self._before, strict=True))
        possible = self._peak * self._seconds
        self._before, self._seconds = after, 0.0
        module.log_dict(
            {
                "flops/algorithmic": float(account.algorithmic),
                "flops/executed": float(account.executed),
                "flops/tokens": float(account.tokens),
                "flops/mfu": algorithmic / possible,
                "flops/hfu": executed / possible,
            }
        )


def _dtype(trainer: Trainer, pl_module: LightningModule) -> torch.dtype:
    """Return the type in which the matrix products are computed."""
    with trainer.precision_plugin.forward_context():
        weight = next(parameter for parameter in pl_module.parameters() if parameter.is_floating_point())
        one = torch.ones(1, 1, device=pl_module.device, dtype=weight.dtype)
        return (one @ one).dtype
