"""Pre-trains a small suite of language models from raw text: backbones for where there is no hub.

The models are GPT-NeoX as in Pythia (Biderman et al. 2023, arXiv:2304.01373): rotary positions on a quarter of
each head, attention and MLP in parallel, separate embedding and unembedding. All rungs of a ladder share one
tokenizer and one stream of tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils import logging as transformers_logging

from embedlab.data.readers import STANDARD_LIBRARY
from embedlab.errors import ConfigError, DataError, TrainingError
from embedlab.files import UNFINISHED, build_once, cache_folder, write_whole
from embedlab.method import num_nonembedding_parameters
from embedlab.pretraining.corpus import ConsecutiveStarts, SequenceStarts, TextSource, pack_text, text_fingerprint
from embedlab.pretraining.language_model import CausalLanguageModel
from embedlab.pretraining.rungs import Rung, model_config, rung_named

LADDER = "ladder:"
"""What the path of a backbone begins with that is a rung of the default ladder."""

_FORMAT = 2  # raised whenever the same settings come to give other models, or the folder's files change
_MAX_VALIDATION_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What all rungs of a ladder have in common, and where and how it runs."""

    text: tuple[TextSource, ...] = (TextSource(path=STANDARD_LIBRARY, validation_fraction=0.15),)
    tokens: int = 3_000_000
    vocabulary: int = 2048
    context: int = 128
    batch_tokens: int = 2048
    learning_rate: float | None = None
    seed: int = 0
    accelerator: str = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    compile: bool | None = None

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"context must be at least 2 tokens, got {self.context}.")
        if self.batch_tokens < self.context:
            raise ConfigError(
                f"batch_tokens is {self.batch_tokens}, less than one sequence of context={self.context}. Raise it to "
                f"{self.context} or more."
            )
        if self.tokens < self.batch_tokens:
            raise ConfigError(
                f"tokens is {self.tokens}, less than one step of batch_tokens={self.batch_tokens}. Raise tokens or "
                "lower batch_tokens."
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}. Leave it out for the default.")

    @property
    def sequences(self) -> int:
        """Sequences a step."""
        return self.batch_tokens // self.context

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // (self.sequences * self.context)

    def identity(self) -> dict[str, Any]:
        """All that the models depend on, as JSON has it: of the text its content, not its name."""
        names = ("tokens", "vocabulary", "context", "batch_tokens", "learning_rate", "seed")
        text = [text_fingerprint(source) for source in self.text]
        return {"format": _FORMAT, "text": text} | {name: getattr(self, name) for name in names}


_DEFAULT = _Settings()


def pretrain(
    *,
    text: list[TextSource] | None = None,
    rungs: list[str | Rung] | None = None,
    tokens: int = _DEFAULT.tokens,
    vocabulary: int = _DEFAULT.vocabulary,
    context: int = _DEFAULT.context,
    batch_tokens: int = _DEFAULT.batch_tokens,
    learning_rate: float | None = None,
    output: Path | None = None,
    accelerator: str = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto",
    compile: bool | None = None,
    seed: int = 0,
) -> None:
    """Pre-trains a ladder of language models on raw text.

    Rungs that stand in the output folder already, with the same settings, are left as they are.

    Args:
        text: what to read; by default the standard library of the running Python.
        rungs: names of the default ladder's rungs, or shapes of your own; by default r0, of 0.15 million
            parameters without its embeddings.
        tokens: that each rung is trained on; the text is repeated if it is shorter.
        vocabulary: tokens of the tokenizer that is trained on the text.
        context: tokens of a sequence.
        batch_tokens: tokens a step.
        learning_rate: at its peak; by default in inverse proportion to the width, 6e-3 for r0.
        output: folder for the ladder; by default one in the user's cache folder.
        accelerator: as in Lightning: auto, cpu, gpu, ….
        precision: auto is bfloat16 on a GPU that has it, else float32.
        compile: the model before training; by default on a GPU.
        seed: of the first weights and the order of the text.

    Raises:
        ConfigError: if the options cannot be, or the output folder holds something else.
        DataError: if the text cannot be read or is too short.
        TrainingError: if a model's loss is no longer finite.
    """
    settings = _Settings(
        text=_DEFAULT.text if text is None else tuple(text),
        tokens=tokens,
        vocabulary=vocabulary,
        context=context,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        seed=seed,
        accelerator=accelerator,
        precision=precision,
        compile=compile,
    )
    chosen = [rung if isinstance(rung, Rung) else rung_named(rung) for rung in rungs or ["r0"]]
    if len({rung.name for rung in chosen}) < len(chosen):
        raise ConfigError(f"rungs has a name twice: {', '.join(rung.name for rung in chosen)}.")
    for folder in _make(settings, chosen, output):
        facts = json.loads((folder / "pretraining.json").read_text())
        print(
            f"{folder}: {facts['nonembedding_parameters']:,} parameters without embeddings, "
            f"{facts['tokens']:,} tokens, validation loss {facts['validation_loss']:.3f} nats per token"
        )


def ensure_rung(name: str) -> Path:
    """The folder of a rung of the default ladder in the user's cache, pre-trained now if it is not there.

    The ladder is named after all that it depends on, the Python version's standard library among it. The
    process's random state is left as it was.

    Raises:
        ConfigError: if there is no such rung.
        DataError: if the standard library's sources are missing, or the cache cannot be written.
    """
    return _make(_DEFAULT, [rung_named(name)], None)[0]


def default_rung_config(name: str) -> GPTNeoXConfig:
    """The configuration that a rung of the default ladder has once it is trained."""
    rung = rung_named(name)
    learning_rate = _DEFAULT.learning_rate or rung.default_learning_rate
    return model_config(rung, vocabulary=_DEFAULT.vocabulary, context=_DEFAULT.context, learning_rate=learning_rate)


def _make(settings: _Settings, rungs: Sequence[Rung], output: Path | None) -> list[Path]:
    identity = settings.identity()
    if output is None:
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        output = cache_folder() / "ladders" / key  # its name says whose it is
    else:
        _claim(output, identity)
    for rung in rungs:
        build = partial(_pretrain_rung, settings=settings, rung=rung, identity=identity)
        folder = build_once(output / rung.name, build, rebuild=False)  # it may have taken days, or have been edited
        there = json.loads((folder / "pretraining.json").read_text())["rung"]
        if there != asdict(rung):
            raise ConfigError(
                f"{folder} holds a model of another shape: {there}, wanted {asdict(rung)}. Rename the rung."
            )
    return [output / rung.name for rung in rungs]


def _claim(output: Path, identity: dict[str, Any]) -> None:
    """Mark the folder as this ladder's, or find that it is. Another process may do the same at the same time."""
    mark = output / "ladder.json"
    if not mark.is_file():
        if _holds_anything(output) and not mark.is_file():
            raise ConfigError(f"{output} exists and is no ladder. Choose a new or empty folder with output.")
        try:
            write_whole(mark, json.dumps(identity, indent=1) + "\n", replace=False)
        except FileExistsError:
            pass
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{output} could not be written: {reason}. Choose another place.") from error
    try:
        there = json.loads(mark.read_bytes())
        differing = [name for name in identity if there.get(name) != identity[name]]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{mark} says how the ladder in its folder was made, and cannot be read: {error}. Choose another folder "
            "with output."
        ) from error
    if differing:
        listed = ", ".join(f"{name} {there.get(name)} there, {identity[name]} now" for name in differing)
        raise ConfigError(
            f"{output} holds a ladder made with other settings ({listed}). Choose another folder with output."
        )


def _holds_anything(output: Path) -> bool:
    if not output.is_dir():
        return output.exists()
    return any(not entry.name.endswith(UNFINISHED) for entry in output.iterdir())


def _pretrain_rung(folder: Path, *, settings: _Settings, rung: Rung, identity: dict[str, Any]) -> None:
    text = pack_text(settings.text, vocabulary=settings.vocabulary, cache_dir=cache_folder() / "packed")
    num_train, num_validation = len(text.tokens("train")), len(text.tokens("validation"))
    if num_train <= settings.batch_tokens + settings.context or num_validation <= settings.context:
        raise DataError(
            f"The text has {num_train} tokens to train on and {num_validation} to validate with: too few for a step of "
            f"batch_tokens={settings.batch_tokens} and a sequence of context={settings.context}. Give more text or "
            "lower them."
        )
    on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    bfloat16 = on_gpu and torch.cuda.is_bf16_supported()
    learning_rate = settings.learning_rate or rung.default_learning_rate
    with isolate_rng():
        torch.manual_seed(settings.seed)
        model = GPTNeoXForCausalLM(
            model_config(rung, vocabulary=settings.vocabulary, context=settings.context, learning_rate=learning_rate)
        )
        if on_gpu if settings.compile is None else settings.compile:
            torch.compiler.reset()  # else each rung counts as the same model compiled anew, which has a limit
            model.base_model.compile(dynamic=False)
        module = CausalLanguageModel(
            model, text, context=settings.context, learning_rate=learning_rate, steps=settings.steps
        )
        trainer = Trainer(
            accelerator=settings.accelerator,
            devices=1,
            precision=("bf16-mixed" if bfloat16 else "32-true") if settings.precision == "auto" else settings.precision,
            max_epochs=1,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[_Progress(rung.name, settings.sequences * settings.context)],
            # One process makes a ladder, also where it is a rank of a run that waits for it.
            plugins=[LightningEnvironment()],
        )
        starts = SequenceStarts(num_train, settings.context, settings.sequences, settings.steps, settings.seed)
        held_out = ConsecutiveStarts(min(num_validation, _MAX_VALIDATION_TOKENS), settings.context, settings.sequences)
        started = time.perf_counter()
        trainer.fit(module, starts, held_out)
        seconds = time.perf_counter() - started
    validation_loss = float(trainer.callback_metrics["validation_loss"])
    _require_finite(validation_loss, rung.name)
    transformers_logging.disable_progress_bar()  # that of saving one file
    model.save_pretrained(folder)
    transformers_logging.enable_progress_bar()
    tokenizer = text.tokenizer()
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    facts = {
        "rung": asdict(rung),
        "nonembedding_parameters": num_nonembedding_parameters(model),
        "parameters": model.num_parameters(),
        "tokens": settings.steps * settings.sequences * settings.context,
        "unique_tokens": num_train,
        "peak_learning_rate": learning_rate,
        "validation_loss": validation_loss,
        "validation_loss_unit": "nats per token",
        "seconds": round(seconds, 1),
        "precision": trainer.precision,
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"{trainer.strategy.root_device.type} {platform.machine()}",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning", "tokenizers")},
        "settings": identity,
    }
    (folder / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")


def _require_finite(loss: float, name: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"The loss of rung {name} is {loss}. Lower learning_rate; nothing was saved.")


class _Progress(Callback):
    """Shows loss, throughput and time left: a bar on a terminal, else a line now and then.

    The loss is read once in a while only, because reading it waits for the device.
    """

    def __init__(self, name: str, tokens_per_step: int) -> None:
        self._name = name
        self._tokens_per_step = tokens_per_step
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("pre-training {task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %  loss {task.fields[loss]}  {task.fields[rate]} tokens/s "),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=None, loss="", rate="")
        self._every_seconds = 1.0 if console.is_terminal else 15.0
        self._shown_at = 0.0
        self._shown_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._shown_at = time.perf_counter()
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows where it stands if it is time."""
        step, total, now = batch_idx + 1, int(trainer.num_training_batches), time.perf_counter()
        if now - self._shown_at < self._every_seconds and step < total:
            return
        loss = float(outputs["loss"])
        _require_finite(loss, self._name)
        rate = (step - self._shown_step) * self._tokens_per_step / (now - self._shown_at)
        self._bar.update(self._task, completed=step, total=total, loss=f"{loss:.3f}", rate=f"{rate:,.0f}")
        if self._bar.disable:
            left = timedelta(seconds=round((total - step) * self._tokens_per_step / rate))
            line = f"pre-training {self._name}: step {step}/{total}  loss {loss:.3f}  {rate:,.0f} tokens/s  left {left}"
            print(line, file=sys.stderr, flush=True)
        self._shown_at, self._shown_step = now, step

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the bar away, also after an error."""
        self._bar.stop()
