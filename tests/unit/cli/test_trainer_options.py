"""What users of Lightning write first is refused with what to write for embedlab."""

from __future__ import annotations

import pytest

from embedlab.cli.config_file import Scalar, resolved
from embedlab.cli.trainer_options import refuse_trainer_option
from embedlab.errors import ConfigError


def scalar(text: str) -> Scalar:
    return Scalar(resolved(text), text)


@pytest.mark.parametrize(
    ("name", "texts", "said"),
    [
        ("seed_everything", ["-1", "4294967296", "true", "false", "null", "x", "1.5", ".nan"], "from 0 to 4294967295"),
        ("trainer.precision", ["fp16", "float16", "bfloat16", "half"], "Write bf16-mixed"),
        ("trainer.precision", ["fp32", "float32", "FP32"], "Write 32-true"),
        ("trainer.devices", ["0", "-5", "many", "true", "1e30"], "from 1, -1 or auto for all devices"),
        ("trainer.num_nodes", ["0", "-1"], "at least 1"),
        ("trainer.val_check_interval", ["0", "0.0"], "limit_val_batches"),
        ("trainer.gradient_clip_val", ["1", "0.5"], "model.optimizer.clip"),
        ("trainer.gradient_clip_algorithm", ["value"], "model.optimizer.clip"),
        ("trainer.accumulate_grad_batches", ["4"], "data.batch_size"),
    ],
)
def test_another_word_is_refused_with_the_one_to_write(name: str, texts: list[str], said: str) -> None:
    for text in texts:
        with pytest.raises(ConfigError, match=said) as caught:
            refuse_trainer_option(name, scalar(text))
        assert str(caught.value).startswith(f"{name} is {text}. ")


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("seed_everything", ["0", "4294967295", "1e3"]),
        ("trainer.precision", ["bf16-mixed", "32-true", "64", "bf16", "null"]),
        ("trainer.devices", ["1", "-1", "auto", "0,1", "2"]),
        ("trainer.gradient_clip_val", ["null"]),
        ("trainer.accumulate_grad_batches", ["1"]),
        ("trainer.max_epochs", ["-5"]),
    ],
)
def test_what_embedlab_takes_or_lightning_refuses_itself_passes(name: str, texts: list[str]) -> None:
    for text in texts:
        refuse_trainer_option(name, scalar(text))
