"""What is left out is said once, however many processes train."""

from __future__ import annotations

from pathlib import Path

from helpers.faulty_data import with_faults
from helpers.runs import start_ranks


def test_two_ranks_say_it_once(tmp_path: Path) -> None:
    config = with_faults(tmp_path)
    command = ["fit", "--config", str(config), "--trainer.devices", "2", "--trainer.max_steps", "2"]
    processes = start_ranks([[*command, "--data.batch_size", "6"]], tmp_path)
    printed = [process.printed() for process in processes]
    assert [process.exitcode for process in processes] == [0, 0], printed
    assert [text.count("2 rows skipped (1 malformed line, 1 not a text), ") for text in printed] == [2, 0]
