"""Checkpoint files: written whole or not at all, checked byte for byte before a run resumes, and read as data alone."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from embedlab.errors import DataError
from embedlab.files import whole_file

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
CHECKPOINTS = "checkpoints"
"""Name of the folder in a run's folder that holds the checkpoints."""

_READ_AT_ONCE = 1 << 20  # bytes
_EXPECTED: Mapping[str, type | tuple[type, ...]] = {
    "state_dict": Mapping,
    "run_config": Mapping,
    "evaluation": Mapping,
    "global_step": int,
}


class WholeCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint directly to a file beside its target, and read a checkpoint without running code.

    Lightning's own class goes through the system's temporary folder and holds the bytes twice in memory.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write the whole checkpoint to the disk, or nothing.

        Raises:
            OSError: If the file cannot be written.
        """
        failure: OSError | None = None
        try:
            with whole_file(Path(path)) as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # torch raises it when a write fails
                    failure = _write_error(error)
                    raise failure from error
        except OSError as error:
            raise failure or error from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint as plain tensors and values, whatever ``weights_only`` says."""
        saved: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return saved


def _write_error(error: BaseException) -> OSError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return OSError(str(error).splitlines()[0])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint of ``embedlab fit`` as plain values and memory-mapped tensors.

    Raises:
        DataError: If the file does not exist, or is not a checkpoint of ``embedlab fit``.
    """
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}. Expected a file such as runs/fit/checkpoints/last.ckpt.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch reports a foreign file by several unrelated classes
        raise DataError(
            f"{path} could not be read as a checkpoint: {_first_line(error)} Expected a file that `embedlab fit` wrote."
        ) from error
    if not isinstance(saved, dict):
        raise DataError(f"{path} was not written by `embedlab fit`: it holds a {type(saved).__name__}.")
    for name, kind in _EXPECTED.items():
        if not isinstance(saved.get(name), kind) or isinstance(saved.get(name), bool):
            raise DataError(
                f"{path} was not written by `embedlab fit`: its {name} is "
                f"{'missing' if name not in saved else 'a ' + type(saved[name]).__name__}."
            )
    if not isinstance(saved["run_config"].get("model"), Mapping):
        raise DataError(f"{path} was not written by `embedlab fit`: its run_config does not describe a model.")
    return saved


def damage(path: Path) -> str | None:
    """Return what is wrong with the bytes of a checkpoint file, or None if the file is intact.

    The file contains a checksum of each of its parts, against which the part's bytes are checked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.external_attr:  # torch never sets attributes, and skips a part that looks like a folder
                    return f"its part {part.filename} is not marked as a file"
                with archive.open(part) as stream:
                    while stream.read(_READ_AT_ONCE):
                        pass
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # the two readers report unreadable files by several unrelated classes
        return (isinstance(error, OSError) and error.strerror) or (str(error).splitlines() or [type(error).__name__])[0]
    return None


def require_whole(path: Path) -> None:
    """Check the bytes of a checkpoint before a run resumes from it.

    Raises:
        DataError: If the file does not exist or is damaged. The message names the newest intact checkpoint beside the
            file, if there is one.
    """
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}. Expected a file such as runs/fit/checkpoints/last.ckpt.")
    found = damage(path)
    if found is None:
        return
    others = [other for other in newest_first(path.parent) if other != path and damage(other) is None]
    offer = (
        f"Resume from the intact checkpoint with --ckpt_path {others[0]}."
        if others
        else "Start a new run in another --output."
    )
    raise DataError(f"The checkpoint {path} is damaged or is not a checkpoint: {found.rstrip('.')}. {offer}")


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, from the newest to the oldest by the time of writing."""
    return sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ") + "."
