"""Connects data to Lightning: tokenizes sources once, splits them by key, and serves batches and evaluation sets."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from embedlab.data.collate import EpochSteps, PairBatch, TrainingBatches
from embedlab.data.evaluation.metrics import CANDIDATES
from embedlab.data.evaluation.sets import RetrievalFiles, StsFile, TextFile
from embedlab.data.evaluation.tasks import EvaluationTask, HeldOutPairs, TextRows
from embedlab.data.sampler import BatchPlan, require_weights
from embedlab.data.sources import PairSource
from embedlab.data.summary import Summary
from embedlab.data.texts import num_tokens_of_prompt
from embedlab.data.tokenized import TokenizedPairs, tokenize_pairs
from embedlab.errors import ConfigError
from embedlab.files import cache_folder
from embedlab.gradcache.chunking import Chunk
from embedlab.model.backbone import BackboneConfig, check_positions, load_tokenizer
from embedlab.records.renamed import TOKENS

_MANY_WORKERS = 64  # a larger number is probably a typing error, unless the machine has enough cores


class _ResumableLoader(DataLoader[PairBatch]):
    """Data loader that Lightning treats as resumable, because its sampler asks the trainer for the position."""

    def state_dict(self) -> dict[str, int]:
        """Return an empty state, because the position is the trainer's step."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Ignore the state, which is empty."""


class PairDataModule(LightningDataModule):
    """Training pairs and evaluation sets.

    Args:
        backbone: Backbone whose tokenizer and maximum length apply. The command line takes the backbone of the model.
        train: Sources of training pairs.
        batch_size: Number of pairs per step, over all ranks. Each query gets the documents of the batch's other pairs
            as in-batch negatives.
        max_length: Maximum number of tokens per text. Longer texts are cut at this length and counted.
        validation_fraction: Share of the pairs that is held out for validation. Pairs with an equal value in the
            ``split_key`` of their source stay together.
        test_fraction: Share of the pairs that is held out for ``embedlab test``, chosen as for validation.
        candidates: Number of held-out pairs that the loss of held-out pairs contrasts with each other at a time. The
            loss grows with this number, so runs that are compared must have the same.
        retrieval: Retrieval sets to evaluate on, each with the paths of its files ``corpus``, ``queries`` and ``qrels``
            (relevance judgments).
        sts: Files of sentence pairs with human similarity scores to evaluate on, each with its ``path``.
        predict: File with the texts that ``embedlab predict`` encodes: its path, or its path and options.
        tokens_per_chunk: Maximum number of tokens per forward pass, padding included. Lower it if memory is too small
            for a single chunk.
        max_padding: Maximum number of padding tokens per real token, over all chunks of a batch. A chunk is what one
            forward pass encodes; a batch is cut into more chunks of more equal lengths to stay below the maximum.
        num_workers: Number of processes that prepare batches. With 0 the main process prepares them.
        cache: Folder for the cache of tokenized data. By default it is inside the user's cache folder.
        seed: Random seed for the order of the batches. On the command line the default is ``seed_everything``.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        train: list[PairSource] | None = None,
        batch_size: int = 256,
        max_length: int = 128,
        validation_fraction: float = 0.0,
        test_fraction: float = 0.0,
        candidates: int = CANDIDATES,
        retrieval: list[RetrievalFiles] | None = None,
        sts: list[StsFile] | None = None,
        predict: TextFile | None = None,
        tokens_per_chunk: int = 16384,
        max_padding: float = 0.05,
        num_workers: int = 1,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sources = train or []
        self.batch_size = batch_size
        self.max_length = max_length
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.candidates = candidates
        self.retrieval = retrieval or []
        self.sts = sts or []
        self.predict = predict
        self.tokens_per_chunk = tokens_per_chunk
        self.max_padding = max_padding
        self.num_workers = num_workers
        self.cache = Path(cache) if cache else cache_folder() / TOKENS
        self.seed = seed
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._tokenized: list[TokenizedPairs] | None = None
        self._tasks: dict[str, list[EvaluationTask]] = {}
        self._predicted: TextRows | None = None
        self._plan: BatchPlan | None = None
        self._check()

    def _check(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("max_length", self.max_length)):
            if value < 1:
                raise ConfigError(f"data.{name} must be at least 1, got {value}.")
        if self.candidates < 2:
            raise ConfigError(
                f"data.candidates must be at least 2, because the loss contrasts pairs, got {self.candidates}."
            )
        most_workers = max(_MANY_WORKERS, 4 * (os.cpu_count() or 1))
        if not 0 <= self.num_workers <= most_workers:
            raise ConfigError(
                f"data.num_workers must lie between 0 and {most_workers} on this machine, got {self.num_workers}. Set "
                "the number of processes that prepare batches; 1 is nearly always enough."
            )
        if not 0 <= self.max_padding < math.inf:
            raise ConfigError(f"data.max_padding must be a number of 0 or more, got {self.max_padding}.")
        if self.seed < 0:
            raise ConfigError(f"data.seed (by default seed_everything) must be 0 or more, got {self.seed}.")
        if self.tokens_per_chunk < self.max_length:
            raise ConfigError(
                f"data.tokens_per_chunk is {self.tokens_per_chunk}, less than one text of data.max_length "
                f"{self.max_length}. Raise it to {self.max_length} or more."
            )
        for name, share in (("validation_fraction", self.validation_fraction), ("test_fraction", self.test_fraction)):
            if not 0 <= share < 1:
                raise ConfigError(f"data.{name} is a share of the pairs and must lie in [0, 1), got {share}.")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"data.validation_fraction {self.validation_fraction} and data.test_fraction {self.test_fraction} "
                "leave no pairs to train on. Lower them until their sum is below 1."
            )
        require_weights(self.sources)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the backbone, loaded and checked on first use."""
        if self._tokenizer is None:
            tokenizer = load_tokenizer(self.backbone)
            check_positions(self.backbone, self.max_length)
            self._check_prompts(tokenizer)
            self._tokenizer = tokenizer
        return self._tokenizer

    def _check_prompts(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a prompt that fills the maximum length, before texts are tokenized with the prompt."""
        if (num_special := num_tokens_of_prompt(tokenizer, "")) >= self.max_length:
            raise ConfigError(
                f"data.max_length is {self.max_length}, and the tokenizer adds {num_special} special tokens to each "
                "text: nothing of a text would remain. Raise data.max_length."
            )
        for whose, prompt in self._prompts():
            num_tokens = num_tokens_of_prompt(tokenizer, prompt)
            takes = (
                f"The {whose} has {num_tokens} tokens (special tokens included), and data.max_length is "
                f"{self.max_length}"
            )
            if num_tokens >= self.max_length:
                raise ConfigError(
                    f"{takes}: nothing of a text would remain. Shorten the prompt or raise data.max_length."
                )
            if 2 * num_tokens > self.max_length:
                rank_zero_warn(f"{takes}: more than half of the input for a long text is the prompt.")

    def _prompts(self) -> Iterator[tuple[str, str]]:
        """Yield each prompt that is not empty, preceded by its name for messages."""
        owners: list[tuple[str, PairSource | RetrievalFiles | StsFile | TextFile]] = [
            *((f"source '{source.label}'", source) for source in self.sources),
            *((f"retrieval set '{files.name or files.corpus}'", files) for files in self.retrieval),
            *((f"similarity set '{files.name or files.path}'", files) for files in self.sts),
            *([("data.predict", self.predict)] if self.predict else []),
        ]
        for owner, options in owners:
            for name in ("query_prompt", "document_prompt", "prompt"):
                if prompt := getattr(options, name, ""):
                    yield f"{name} of {owner}", prompt

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Read and tokenize the data that the command needs, once, in one process per machine."""
        assert self.trainer is not None
        command = self.trainer.state.fn
        if command == "predict":
            self._texts_to_predict()
        else:
            self.evaluation_tasks("test" if command == "test" else "validation")
        if command == "fit":
            self._stores()

    def setup(self, stage: str) -> None:
        """Open the tokenized data, plan the training batches, and print which data are used and left out."""
        assert self.trainer is not None
        if stage == "fit":
            self._plan_training()
        if self.trainer.is_global_zero:
            for summary in self._summaries(stage):
                summary.show()

    def train_dataloader(self) -> DataLoader[PairBatch]:
        """Return a loader of this rank's batches, starting at the trainer's current step."""
        assert self._plan is not None and self.trainer is not None
        if self.trainer.limit_train_batches not in (1.0, self.trainer.max_steps):  # fast_dev_run sets the two to 1
            raise ConfigError(
                f"trainer.limit_train_batches is {self.trainer.limit_train_batches}, but an epoch always covers all of "
                "the data. Set trainer.max_steps for a shorter run, or max_rows of a source for less data."
            )
        steps = EpochSteps(self._plan.steps_per_epoch, lambda: self.trainer.global_step)  # type: ignore[union-attr]
        return _ResumableLoader(
            self._batches(),
            batch_size=None,
            sampler=steps,
            num_workers=self.num_workers,
            prefetch_factor=4 if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> list[DataLoader[Chunk]]:
        """Return a loader of chunks for each evaluation task of the validation split."""
        return self._evaluation_loaders("validation")

    def test_dataloader(self) -> list[DataLoader[Chunk]]:
        """Return a loader of chunks for each evaluation task of the test split."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> DataLoader[Chunk]:
        """Return a loader of chunks of the texts to encode.

        Raises:
            ConfigError: If ``predict`` names no file of texts.
        """
        return self._loader(self._texts_to_predict())

    @property
    def num_predicted_texts(self) -> int:
        """Number of texts that ``embedlab predict`` encodes."""
        return self._texts_to_predict().num_rows

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps per epoch.

        Without source weights, an epoch uses every training pair once, except pairs that fill no batch.
        """
        assert self._plan is not None
        return self._plan.steps_per_epoch

    def batch_lengths(self, step: int) -> np.ndarray:
        """Return the number of tokens of each unique text of a training step, over all ranks, int64."""
        return self._batches().lengths(step)

    def num_unique_pairs(self, steps: int) -> int:
        """Return an upper bound on the number of different training pairs in the first ``steps`` steps."""
        assert self._plan is not None
        return self._plan.num_unique_pairs(steps)

    def training_fingerprint(self) -> str:
        """Return hexadecimal digits that identify the tokenized pairs, source weights and held-out fractions."""
        stores = [(store.folder.name, store.source.weight) for store in self._stores()]
        words = json.dumps([stores, self.validation_fraction, self.test_fraction])
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def sources_fingerprint(self) -> str:
        """Return hexadecimal digits that identify the pairs, prompts and weights of all sources, in their order."""
        words = json.dumps([(store.fingerprint, store.source.weight) for store in self._stores()])
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    # Parts

    def _batches(self) -> TrainingBatches:
        assert self._plan is not None and self.trainer is not None
        return TrainingBatches(
            self._plan,
            self._stores(),
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            max_tokens_per_chunk=self.tokens_per_chunk,
            max_padding=self.max_padding,
            pad_token_id=self._pad_token_id,
        )

    def evaluation_tasks(self, split: Literal["validation", "test"]) -> list[EvaluationTask]:
        """Return the evaluation tasks: held-out pairs of the split, retrieval sets, and similarity sets.

        Raises:
            ConfigError: If two evaluation sets have the same name.
        """
        if split not in self._tasks:
            tasks: list[EvaluationTask] = []
            fraction = self.validation_fraction if split == "validation" else self.test_fraction
            if fraction:
                tasks += [HeldOutPairs(store, self._split(store, split), self.candidates) for store in self._stores()]
            sets: list[RetrievalFiles | StsFile] = [*self.retrieval, *self.sts]
            for files in sets:
                tasks.append(files.task(self.tokenizer, max_length=self.max_length, cache_dir=self.cache))
            names = [task.name for task in tasks]
            if len(set(names)) < len(names):
                raise ConfigError(
                    f"Two evaluation sets have the same name in {names}, so their metrics could not be told apart. "
                    "Give sources and sets different names with `name`."
                )
            self._tasks[split] = tasks
        return self._tasks[split]

    def _texts_to_predict(self) -> TextRows:
        if self.predict is None:
            raise ConfigError("data.predict names no texts to encode. Set data.predict.path to a file of texts.")
        if self._predicted is None:
            self._predicted = self.predict.task(self.tokenizer, max_length=self.max_length, cache_dir=self.cache)
        return self._predicted

    def _stores(self) -> list[TokenizedPairs]:
        if self._tokenized is None:
            self._tokenized = [
                tokenize_pairs(source, self.tokenizer, max_length=self.max_length, cache_dir=self.cache)
                for source in self.sources
            ]
        return self._tokenized

    def _plan_training(self) -> None:
        if not self.sources:
            raise ConfigError("data.train names no source of pairs. Add one, for example [{path: pairs.jsonl}].")
        stores = self._stores()
        train = [self._split(store, "train") for store in stores]
        self._plan = BatchPlan(stores, train, batch_size=self.batch_size, seed=self.seed)

    def _summaries(self, stage: str) -> Iterator[Summary]:
        """Yield a summary for each source and evaluation set, with counts of the data used and left out."""
        if stage == "predict":
            texts = self._texts_to_predict()
            yield self._summary_of_texts("data.predict", texts)
            return
        split: Literal["validation", "test"] = "test" if stage == "test" else "validation"
        tasks = self.evaluation_tasks(split)
        has_held_out = any(isinstance(task, HeldOutPairs) for task in tasks)
        for number, store in enumerate(self._stores() if stage == "fit" or has_held_out else []):
            summary = Summary(store.name, max_length=self.max_length)
            if stage == "fit":
                assert self._plan is not None
                num_train = len(self._split(store, "train"))
                if num_train < len(store):
                    summary.add(len(store), "pairs")
                    summary.add(num_train, "to train on")
                    summary.add(len(store) - num_train, "held out")
                else:
                    summary.add(num_train, "pairs to train on")
                summary.add_left_out(self._plan.num_left_out()[number], num_train)
            else:
                summary.add(len(self._split(store, split)), f"pairs of the {split} split")
            summary.add_skipped(store)
            summary.add_cut(store.texts)
            summary.add_notes(*store.notes)
            yield summary
        for task in tasks:
            if not isinstance(task, HeldOutPairs):
                yield self._summary_of_texts(task.name, task)

    def _summary_of_texts(self, name: str, rows: TextRows) -> Summary:
        summary = Summary(name, max_length=self.max_length)
        summary.add(rows.num_rows, "texts to encode")
        summary.add_cut(rows.texts)
        summary.add_notes(rows.left_out)
        return summary

    def _evaluation_loaders(self, split: Literal["validation", "test"]) -> list[DataLoader[Chunk]]:
        return [self._loader(task) for task in self.evaluation_tasks(split)]

    def _loader(self, texts: TextRows) -> DataLoader[Chunk]:
        assert self.trainer is not None
        chunks = texts.chunks(
            max_tokens=self.tokens_per_chunk,
            max_padding=self.max_padding,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            pad_token_id=self._pad_token_id,
        )
        return DataLoader(chunks, batch_size=None, num_workers=0, pin_memory=torch.cuda.is_available())

    @property
    def _pad_token_id(self) -> int:
        pad_token_id = self.tokenizer.pad_token_id
        assert isinstance(pad_token_id, int)
        return pad_token_id

    def _split(self, store: TokenizedPairs, split: Literal["train", "validation", "test"]) -> np.ndarray:
        return store.subset(split, validation_fraction=self.validation_fraction, test_fraction=self.test_fraction)
