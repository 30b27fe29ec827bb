"""Other processes have the same batches and texts, however they are started."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from embedlab.data.collate import EpochSteps
from embedlab.data.sampler import BatchPlan
from embedlab.data.sources import PairSource
from embedlab.data.tokenized import tokenize_pairs
from embedlab.testing.backbones import tiny_tokenizer
from helpers.corpora import pair_rows, store_of, write_rows
from helpers.training_batches import assert_same, batches_of

NEGATIVES = [(f"q{n}", f"d{n}", [f"n{n}", f"m{n}"][: n % 3]) for n in range(24)]


def batches_of_a_file(folder: Path) -> list[list[int]]:
    source = PairSource(path=str(folder / "a.jsonl"))
    store = tokenize_pairs(source, tiny_tokenizer(), max_length=64, cache_dir=folder / "cache")
    plan = BatchPlan([store], [np.arange(len(store))], batch_size=8, seed=3)
    return [plan.batch(step)[1].tolist() for step in range(30)]


def test_another_process_has_the_same_batches(tmp_path: Path) -> None:
    rows = [*pair_rows(50), *({**row, "query": f"other {row['query']}"} for row in pair_rows(25))]
    write_rows(tmp_path / "a.jsonl", rows)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(batches_of_a_file, (tmp_path,))
    assert there == batches_of_a_file(tmp_path)


def test_forked_workers_read_the_tokens_without_a_warning(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", pair_rows(50))
    program = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader
from embedlab.data.sources import PairSource
from embedlab.data.tokenized import tokenize_pairs
from embedlab.testing.backbones import tiny_tokenizer
folder = Path(sys.argv[1])
store = tokenize_pairs(PairSource(path=str(folder / "a.jsonl")), tiny_tokenizer(), max_length=64, cache_dir=folder)
class Tokens:
    def __len__(self):
        return len(store.texts)
    def __getitem__(self, row):
        return len(store.texts.tokens(row))
loader = DataLoader(Tokens(), batch_size=None, num_workers=2, multiprocessing_context="fork")
print(sum(loader) == store.texts.lengths_U.sum())
"""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == "True\n"
    assert result.stderr == ""


@pytest.mark.parametrize(("num_workers", "context"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_batches_do_not_depend_on_the_workers(tmp_path: Path, num_workers: int, context: str) -> None:
    batches = batches_of(store_of(tmp_path, NEGATIVES))
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=EpochSteps(batches.plan.steps_per_epoch, lambda: 3),
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    received = list(loader)
    assert [batch.step for batch in received] == [3, 4, 5]
    for batch in received:
        assert_same(batch, batches[batch.step])
