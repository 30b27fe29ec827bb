"""The gradients of a loss on two ranks are those of one process on both batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from embedlab.losses import ContrastiveLoss, LossGradient, PairRows
from helpers.losses import LOSSES, each_loss, make_batch, relative_error

CASES: dict[str, tuple[tuple[int, list[int]], dict[str, Any]]] = {
    "pairs only": ((5, [0, 0]), {}),
    "one pair a rank": ((1, [0, 0]), {}),
    "hard negatives": ((5, [3, 7]), {"rows_per_chunk": 2}),
    "hard negatives on one rank": ((4, [0, 2]), {}),
    "masks": ((6, [4, 1]), {"false_negative_margin": 0.1}),
    "learnable temperature": ((5, [2, 3]), {"learnable_temperature": True, "temperature": 0.1}),
}


def case_batch(name: str, rank: int) -> tuple[Tensor, PairRows]:
    """One rank's batch; under ``masks`` texts repeat within and across ranks."""
    (num_pairs, num_negatives), _ = CASES[name]
    embeddings, rows = make_batch(num_pairs, num_negatives[rank], seed=rank)
    hashes = rows.text_hashes_U % 7 if name == "masks" else rows.text_hashes_U + 1000 * rank
    return embeddings, PairRows(rows.queries_P, rows.positives_P, rows.negatives_N, hashes)


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for cls in LOSSES:
        for name, (_, options) in CASES.items():
            result = cls(**options).gradient(*case_batch(name, rank), group=dist.group.WORLD)
            results[cls.__name__, name] = vars(result)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], LossGradient]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(run_rank, args=(str(folder),), nprocs=2, start_method="forkserver")
    loaded = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return [{key: LossGradient(**fields) for key, fields in results.items()} for results in loaded]


@each_loss
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_what_one_process_gives_on_both_batches(
    cls: type[ContrastiveLoss], case: str, on_two_ranks: list[dict[tuple[str, str], LossGradient]]
) -> None:
    (first, first_rows), (second, second_rows) = (case_batch(case, rank) for rank in range(2))
    joined = {
        name: torch.cat([values, getattr(second_rows, name) + (len(first) if name != "text_hashes_U" else 0)])
        for name, values in vars(first_rows).items()
    }
    expected = cls(**CASES[case][1]).gradient(torch.cat([first, second]), PairRows(**joined))
    parts = expected.embeddings_UD.split([len(first), len(second)])
    for results, part in zip(on_two_ranks, parts, strict=True):
        received = results[cls.__name__, case]
        assert relative_error(received.embeddings_UD, part) <= 1e-12
        torch.testing.assert_close(received.loss, expected.loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(received.log_scale, expected.log_scale, rtol=1e-12, atol=1e-14)
        assert received.num_candidates == pytest.approx(expected.num_candidates)
    assert torch.equal(*(results[cls.__name__, case].loss for results in on_two_ranks))
