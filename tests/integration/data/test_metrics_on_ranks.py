"""Every rank has the embeddings of all texts, whichever of them it encoded."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from embedlab.data.evaluation.metrics import EmbeddingTable

EMBEDDINGS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
RANK_ROWS = [[[4, 0], [2]], [[1, 3, 5], [4], [0]]]  # a sampler that pads repeats rows 4 and 0


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    table = EmbeddingTable(6)
    for rows in RANK_ROWS[rank]:
        table.update(torch.tensor(rows), EMBEDDINGS[rows])
    torch.save(table.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_same_whole_table(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(run_rank, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), EMBEDDINGS)
