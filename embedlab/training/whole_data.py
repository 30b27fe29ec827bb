"""Refuses options of Lightning's Trainer that would use a part of the data where embedlab means all of the data."""

from __future__ import annotations

from lightning.pytorch import Trainer

from embedlab.errors import ConfigError

_PARTS = {
    "limit_train_batches": (
        "an epoch always covers all of the data. Set trainer.max_steps for a shorter run, or a source's max_rows for "
        "less data"
    ),
    "limit_val_batches": (
        "an evaluation always covers whole sets. Lower data.validation_fraction for a shorter evaluation, raise "
        "trainer.check_val_every_n_epoch for fewer evaluations, or set trainer.limit_val_batches to 0 for none"
    ),
    "limit_test_batches": ("an evaluation always covers whole sets. Lower data.test_fraction for a shorter evaluation"),
    "limit_predict_batches": "all texts are always encoded. Give a file with fewer texts in data.predict",
}


def refuse_parts_of_data(trainer: Trainer) -> None:
    """Refuse options by which training or an evaluation would use only a part of the data.

    Raises:
        ConfigError: If an option limits the data. The message names the option and what to use instead.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it by name; it also sets the limits
        return
    overfit = trainer.overfit_batches  # type: ignore[attr-defined]
    if overfit:
        raise ConfigError(
            f"trainer.overfit_batches is {overfit}, but an epoch always covers all of the data. Set a source's "
            "max_rows to overfit a few pairs."
        )
    for name, remedy in _PARTS.items():
        limit = getattr(trainer, name)
        is_all = isinstance(limit, float) and limit == 1.0
        is_none = name == "limit_val_batches" and limit == 0
        if not (is_all or is_none):
            raise ConfigError(f"trainer.{name} is {limit}, but {remedy}.")


def refuse_rare_evaluation(trainer: Trainer) -> None:
    """Refuse an interval between evaluations that is longer than an epoch, once the number of steps is known.

    Raises:
        ConfigError: If the interval is too long. The message names the maximum interval.
    """
    interval, steps = trainer.val_check_interval, trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
    by_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
    if isinstance(interval, int) and interval > steps and by_epoch:
        raise ConfigError(
            f"trainer.val_check_interval is {interval} steps, but an epoch has {steps}. Set it to {steps} or less, or "
            "set trainer.check_val_every_n_epoch to null to count steps over all epochs."
        )


def sees_a_part(trainer: Trainer) -> bool:
    """Return whether the current evaluation leaves out texts, because it only checks that everything runs."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return True
    return bool(trainer.sanity_checking and trainer.num_sanity_val_steps != float("inf"))
