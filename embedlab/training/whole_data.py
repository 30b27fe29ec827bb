"""Options of Lightning's Trainer by which a part of the data would be seen where all of it is meant."""

from __future__ import annotations

from lightning.pytorch import Trainer

from embedlab.errors import ConfigError

_PARTS = {
    "limit_train_batches": (
        "an epoch is always all of the data. Set trainer.max_steps for a shorter run, or max_rows of a source for less "
        "data"
    ),
    "limit_val_batches": (
        "an evaluation is always over whole sets. Lower data.validation_fraction for a shorter one, raise "
        "trainer.check_val_every_n_epoch for fewer, or set it to 0 for none"
    ),
    "limit_test_batches": ("an evaluation is always over whole sets. Lower data.test_fraction for a shorter one"),
    "limit_predict_batches": "all texts are encoded. Give a file of fewer texts in data.predict",
}


def refuse_parts_of_data(trainer: Trainer) -> None:
    """Refuse options by which training or an evaluation would see a part of the data.

    Raises:
        ConfigError: Naming the option and what to use in its place.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it by name, and the limits with it
        return
    overfit = trainer.overfit_batches  # type: ignore[attr-defined]
    if overfit:
        raise ConfigError(
            f"trainer.overfit_batches is {overfit}, but an epoch is always all of the data. Set max_rows of a source "
            "to overfit a few pairs."
        )
    for name, remedy in _PARTS.items():
        limit = getattr(trainer, name)
        is_all = isinstance(limit, float) and limit == 1.0
        is_none = name == "limit_val_batches" and limit == 0
        if not (is_all or is_none):
            raise ConfigError(f"trainer.{name} is {limit}, but {remedy}.")


def refuse_rare_evaluation(trainer: Trainer) -> None:
    """Refuse an interval between evaluations that is longer than an epoch, when the plan of batches is known.

    Raises:
        ConfigError: With the interval's largest value.
    """
    interval, steps = trainer.val_check_interval, trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
    by_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
    if isinstance(interval, int) and interval > steps and by_epoch:
        raise ConfigError(
            f"trainer.val_check_interval is {interval} steps, and an epoch has {steps}. Set it to {steps} or less, or "
            "set trainer.check_val_every_n_epoch to null to count steps over all epochs."
        )


def sees_a_part(trainer: Trainer) -> bool:
    """Whether the evaluation that is under way leaves texts out: a quick check that everything runs."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return True
    return bool(trainer.sanity_checking and trainer.num_sanity_val_steps != float("inf"))
