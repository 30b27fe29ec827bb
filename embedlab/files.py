"""Writes files whole or not at all, keeps a second process out of a folder, and knows the cache: one way each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from embedlab.errors import ConfigError, DataError

UNFINISHED = ".unfinished"
"""Ending of the name of a file or folder that is being written."""


@contextmanager
def whole_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that stands at ``path`` only when the block has ended, whole and on the disk.

    The bytes go to a file beside ``path``, which is synchronized with the disk and then renamed, so that a kill, a full
    disk or a loss of power leaves either the old file or the new one. A block that raises leaves the old file.

    Args:
        path: The file to write. Missing parent folders are made.
        replace: Whether a file that is there already is replaced.

    Raises:
        FileExistsError: If ``replace`` is false and the file is there when the block has ended.
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid4().hex[:12]}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            unfinished.replace(path)
        else:
            os.link(unfinished, path)  # unlike a rename, never over another file
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_whole(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all: see ``whole_file``."""
    with whole_file(path, replace=replace) as file:
        file.write(text.encode())


def link_whole(path: Path, name: Path) -> None:
    """Give a file a second name, which is replaced if it is there: one that stays when the file itself is replaced."""
    unfinished = name.with_name(f"{name.name}.{uuid4().hex[:12]}{UNFINISHED}")
    try:
        try:
            os.link(path, unfinished)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, unfinished)
        unfinished.replace(name)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk, where the system can."""
    with suppress(OSError):  # not every file system opens a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove from a folder what a killed process had begun to write there. Call it only while holding its lock."""
    for path in folder.glob(f"*{UNFINISHED}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path, *, owner: str, seconds: float = 0.0) -> Iterator[None]:
    """Keep every other process that asks for the same out of a folder, until the block or the process ends.

    The lock is the operating system's, on the file ``<owner>.lock``: a process that is killed holds it no more.

    Args:
        folder: The folder, which is made if it is not there.
        owner: What the lock is for: "run" or "search".
        seconds: How long to wait for another process to end.

    Raises:
        ConfigError: If another process has it, or the folder cannot be made or written to.
    """
    lock = FileLock(folder / f"{owner}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ConfigError(
            f"Another {owner} is under way in {folder}. Wait for it, stop it, or choose another folder with --output."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def cannot_write(path: Path, error: BaseException) -> ConfigError:
    """What to say of an output that cannot be made or written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return ConfigError(f"{path} cannot be written: {reason}. Make room there, or choose another place with --output.")


def cache_folder() -> Path:
    """``$EMBEDLAB_CACHE``, else ``embedlab`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``.

    Raises:
        ConfigError: If there is no home folder.
    """
    own = os.environ.get("EMBEDLAB_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        return (Path(shared) if shared else Path.home() / ".cache") / "embedlab"
    except RuntimeError as error:
        raise ConfigError(
            "There is no home folder to keep the cache in. Set the environment variable EMBEDLAB_CACHE to a folder."
        ) from error


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Returns ``folder``, built first if it is not there.

    It is built under another name and renamed when whole, so a reader never sees half of it. Of several
    processes (the ranks of a run, say) one builds, the others wait for it; what a killed one left is removed.

    Args:
        folder: whose name says all that its content depends on.
        build: fills the empty folder it is given.

    Raises:
        DataError: if the folder cannot be written: disk full, no permission.
    """
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if folder.is_dir():
                return folder
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                build(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"The cache folder '{folder}' could not be written: {error.strerror or error}. Nothing of it was "
            "kept. Free some space or choose another place with data.cache or $EMBEDLAB_CACHE."
        ) from error
    return folder
