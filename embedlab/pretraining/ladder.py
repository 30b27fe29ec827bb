"""Pre-trains a suite of small language models on raw text, so that there are backbones without the Hugging Face hub.

The models are GPT-NeoX as in Pythia (Biderman et al. 2023, arXiv:2304.01373): rotary positions on a quarter of
each head, attention and MLP in parallel, separate embedding and unembedding. All rungs of a ladder share one
tokenizer and one stream of tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
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
from embedlab.files import UNFINISHED, build_once, cache_folder, fault_of, write_whole
from embedlab.method import num_nonembedding_parameters
from embedlab.pretraining.corpus import ConsecutiveStarts, SequenceStarts, TextSource, pack_text, text_fingerprint
from embedlab.pretraining.language_model import CausalLanguageModel
from embedlab.pretraining.rungs import RUNGS, Rung, model_config, rung_named

LADDER = "ladder:"
"""Beginning of the path of a backbone that is a rung of the default ladder, for example ``ladder:r0``."""

_FORMAT = 2  # to raise whenever the same settings give different models, or the format of the files changes
_MAX_VALIDATION_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings that all rungs of a ladder share; ``pretrain`` describes each setting."""

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
                f"batch_tokens is {self.batch_tokens}, less than one sequence of context={self.context}. Set "
                f"batch_tokens to {self.context} or more."
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
        """Number of sequences per optimizer step."""
        return self.batch_tokens // self.context

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.tokens // (self.sequences * self.context)

    def identity(self) -> dict[str, Any]:
        """Return everything that the models depend on, as JSON data; the content of the text counts, not its path."""
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
    """Pre-train a ladder of small language models on raw text.

    Rungs that the output folder already holds, made with the same settings, are left unchanged.

    Args:
        text: Sources of text; by default the standard library of the running Python.
        rungs: Names of rungs of the default ladder, or shapes of other models; by default r0, which has 0.15 million
            parameters without embeddings.
        tokens: Number of tokens to train each rung on. A shorter text is repeated.
        vocabulary: Number of tokens in the vocabulary of the tokenizer, which is trained on the text.
        context: Number of tokens per sequence.
        batch_tokens: Number of tokens per optimizer step.
        learning_rate: Peak learning rate; by default inversely proportional to the width, and 6e-3 for r0.
        output: Folder for the ladder, which is the suite of pre-trained models; by default a folder in the user's
            cache.
        accelerator: Accelerator as in Lightning, for example ``auto``, ``cpu`` or ``gpu``.
        precision: Precision as in Lightning. ``auto`` is ``bf16-mixed`` on a GPU that supports bfloat16, and
            ``32-true`` elsewhere.
        compile: Whether to compile each model before training; by default only on a GPU.
        seed: Seed of the initial weights and of the order of the text.

    Raises:
        ConfigError: If an option is invalid, or if the output folder holds anything else.
        DataError: If the text cannot be read or is too short.
        TrainingError: If the loss of a model is not finite.
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
        names = ", ".join(rung.name for rung in chosen)
        raise ConfigError(f"rungs has a name twice: {names}. Give each rung its own name.")
    for folder in _make(settings, chosen, output):
        facts = json.loads((folder / "pretraining.json").read_text())
        print(
            f"{folder}: {facts['nonembedding_parameters']:,} parameters without embeddings, "
            f"{facts['tokens']:,} tokens, validation loss {facts['validation_loss']:.3f} nats per token"
        )


def ensure_rung(name: str, *, before: str | None = None) -> Path:
    """Return the folder of a rung of the default ladder in the user's cache, and pre-train the rung if it is missing.

    The name of the ladder's folder depends on everything that the models depend on, including the standard library of
    the running Python. The random state of the process does not change.

    Args:
        name: Name of the rung, for example ``r0``.
        before: Folder of the backbone of an earlier run. If it is this rung in another ladder of the cache, for example
            because Python was updated since, the rung of that ladder is returned.

    Raises:
        ConfigError: If no rung has this name.
        DataError: If the sources of the standard library are missing, or if the cache cannot be written.
    """
    rung = rung_named(name)
    if before is not None and Path(before).name == name and re.fullmatch("[0-9a-f]{16}", Path(before).parent.name):
        folder = _cached_ladders() / Path(before).parent.name / name
        if folder.is_dir() and fault_of(folder) is None:
            return folder
    return _make(_DEFAULT, [rung], None)[0]


def name_of_rung(path: str) -> str | None:
    """Return the name of the rung of the default ladder that is in a folder; None if the folder is not such a rung.

    >>> name_of_rung("runs/fit")
    """
    folder = Path(path).absolute()
    if folder.parent.parent != _cached_ladders().absolute() or folder.name not in {rung.name for rung in RUNGS}:
        return None
    try:
        default = _default_folder(_DEFAULT.identity())
    except DataError:  # without the sources of the standard library there is no default ladder
        return None
    return folder.name if folder.parent == default.absolute() else None


def default_rung_config(name: str) -> GPTNeoXConfig:
    """Return the configuration of a rung of the default ladder, without pre-training the rung.

    Args:
        name: Name of the rung, for example ``r0``.

    Raises:
        ConfigError: If no rung has this name.
    """
    rung = rung_named(name)
    learning_rate = _DEFAULT.learning_rate or rung.default_learning_rate
    return model_config(rung, vocabulary=_DEFAULT.vocabulary, context=_DEFAULT.context, learning_rate=learning_rate)


def _make(settings: _Settings, rungs: Sequence[Rung], output: Path | None) -> list[Path]:
    identity = settings.identity()
    if output is None:
        output = _default_folder(identity)  # its name stands for the settings, so no mark is needed
    else:
        _claim(output, identity)
    for rung in rungs:
        build = partial(_pretrain_rung, settings=settings, rung=rung, identity=identity)
        # A damaged rung is not built again, because it may have taken days or have been edited.
        folder = build_once(output / rung.name, build, rebuild=False)
        there = json.loads((folder / "pretraining.json").read_text())["rung"]
        if there != asdict(rung):
            raise ConfigError(
                f"{folder} holds a model of another shape: {there}, expected {asdict(rung)}. Give the rung a new name."
            )
    return [output / rung.name for rung in rungs]


def _cached_ladders() -> Path:
    return cache_folder() / "ladders"


def _default_folder(identity: dict[str, Any]) -> Path:
    return _cached_ladders() / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _claim(output: Path, identity: dict[str, Any]) -> None:
    """Write the settings of the ladder into its folder, or check that the folder was made with the same settings.

    Several processes may call this function at the same time.

    Args:
        output: Folder for the ladder.
        identity: Settings of the ladder, from ``_Settings.identity``.

    Raises:
        ConfigError: If the folder holds something else, or a ladder with other settings.
        DataError: If the folder cannot be written.
    """
    mark = output / "ladder.json"
    if not mark.is_file():
        if _holds_anything(output) and not mark.is_file():
            raise ConfigError(f"{output} exists, but does not hold a ladder. Set output to a new or empty folder.")
        try:
            write_whole(mark, json.dumps(identity, indent=1) + "\n", replace=False)
        except FileExistsError:
            pass
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{output} could not be written: {reason}. Set output to another folder.") from error
    try:
        there = json.loads(mark.read_bytes())
        differing = [name for name in identity if there.get(name) != identity[name]]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{mark} cannot be read: {error}. The file holds the settings of the ladder in its folder. Set output to "
            "another folder."
        ) from error
    if differing:
        listed = ", ".join(f"{name}: {there.get(name)} there, {identity[name]} now" for name in differing)
        raise ConfigError(f"{output} holds a ladder with other settings ({listed}). Set output to another folder.")


def _holds_anything(output: Path) -> bool:
    if not output.is_dir():
        return output.exists()
    return any(not entry.name.endswith(UNFINISHED) for entry in output.iterdir())


def _pretrain_rung(folder: Path, *, settings: _Settings, rung: Rung, identity: dict[str, Any]) -> None:
    text = pack_text(settings.text, vocabulary=settings.vocabulary, cache_dir=cache_folder() / "packed")
    num_train, num_validation = len(text.tokens("train")), len(text.tokens("validation"))
    if num_train <= settings.batch_tokens + settings.context or num_validation <= settings.context:
        raise DataError(
            f"The text has {num_train} tokens for training and {num_validation} for validation, too few for a step of "
            f"batch_tokens={settings.batch_tokens} and a sequence of context={settings.context}. Give more text, or "
            "lower batch_tokens or context."
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
            torch.compiler.reset()  # torch limits how often one model is recompiled, and would count all rungs together
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
            # One process makes the ladder, even if the process is a rank of a distributed run that needs the ladder.
            plugins=[LightningEnvironment()],
        )
        starts = SequenceStarts(num_train, settings.context, settings.sequences, settings.steps, settings.seed)
        held_out = ConsecutiveStarts(min(num_validation, _MAX_VALIDATION_TOKENS), settings.context, settings.sequences)
        started = time.perf_counter()
        trainer.fit(module, starts, held_out)
        seconds = time.perf_counter() - started
    validation_loss = float(trainer.callback_metrics["validation_loss"])
    _require_finite(validation_loss, rung.name)
    transformers_logging.disable_progress_bar()  # saving a single file needs no progress bar
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
        raise TrainingError(f"The loss of rung {name} is {loss}, so the rung was not saved. Lower learning_rate.")


class _Progress(Callback):
    """Shows the loss, the throughput and the remaining time: a progress bar on a terminal, or else a line every 15 s.

    The loss is read at most once per second, because reading it waits for the device.

    Args:
        name: Name of the rung.
        tokens_per_step: Number of tokens per optimizer step.
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
        """Start the clock and the progress bar."""
        self._shown_at = time.perf_counter()
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the progress if the last update is long enough ago, or at the last step.

        Raises:
            TrainingError: If the loss is not finite.
        """
        step, total, now = batch_idx + 1, int(trainer.num_training_batches), time.perf_counter()
        if now - self._shown_at < self._every_seconds and step < total:
            return
        loss = float(outputs["loss"])
        _require_finite(loss, self._name)
        rate = (step - self._shown_step) * self._tokens_per_step / (now - self._shown_at)
        self._bar.update(self._task, completed=step, total=total, loss=f"{loss:.3f}", rate=f"{rate:,.0f}")
        if self._bar.disable:
            left = timedelta(seconds=round((total - step) * self._tokens_per_step / rate))
            line = f"pre-training {self._name}: step {step}/{total}  loss {loss:.3f}  {rate:,.0f} tokens/s  {left} left"
            print(line, file=sys.stderr, flush=True)
        self._shown_at, self._shown_step = now, step

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the progress bar, also after an error."""
        self._bar.stop()
