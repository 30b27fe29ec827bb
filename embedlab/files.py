"""Writes files whole or not at all, keeps a second process out of a folder, and knows the cache: one way each."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from embedlab.errors import ConfigError, DataError, plain_text

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
        _remove(path)


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


MANIFEST = "manifest.json"
"""File in a built folder that says which files were built, with size and checksum of each, and its own checksum."""

_VERIFIED = "verified.json"  # in a built folder: the states of its large files in which their checksums were right
_LARGE = 1 << 24  # bytes; smaller files are read whenever the folder is used, which takes some hundredths of a second


def build_once(folder: Path, build: Callable[[Path], None], *, rebuild: bool = True) -> Path:
    """Return a folder that is whole, built first if it is not there.

    It is built under another name and renamed when whole and on the disk, so that a reader never sees half of it. Of
    several processes (for example the ranks of a run) one builds and the others wait. What a killed one left is
    removed.

    A manifest in the folder holds the size and the SHA-256 of each file. Each call checks the sizes of all files and
    the checksums of those below 16 MiB; a larger file is read again only if it is another file, or was changed, since
    its checksum was last found right, so that no start reads gigabytes. A folder that is not as it was built is built
    again, with a line that says so, and replaced: processes that have its files open keep them.

    Args:
        folder: Where to build. Its name says all that its content depends on.
        build: Fills the empty folder that it is given.
        rebuild: Whether a damaged folder is built again. False is for what takes long or may have been edited.

    Raises:
        DataError: If the folder cannot be written (disk full, no permission), or is damaged and may not be rebuilt.
    """
    if fault_of(folder) is None:
        return folder
    partial, damaged = (folder.with_name(f"{folder.name}.{ending}") for ending in ("partial", "damaged"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if (fault := fault_of(folder)) is None:
                return folder
            is_there = os.path.lexists(folder)
            if is_there and not _is_empty(folder):
                if not rebuild:
                    raise DataError(f"{folder} is damaged: {fault}. Delete the folder to have it made again.")
                print(f"embedlab: {folder} is damaged ({fault}): it is made again.", file=sys.stderr, flush=True)
            _remove(partial)
            _remove(damaged)
            partial.mkdir()
            try:
                build(partial)
                write_manifest(partial, name=folder.name)
                if is_there:
                    folder.rename(damaged)
                partial.rename(folder)
                sync_folder(folder.parent)
            finally:
                _remove(partial)
                _remove(damaged)
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(
            f"The cache folder '{folder}' could not be written: {reason}. Nothing of it was kept. Free some space or "
            "choose another place with data.cache or $EMBEDLAB_CACHE."
        ) from error
    return folder


def write_manifest(folder: Path, *, name: str) -> None:
    """Bring all files of a folder to the disk, and write there what they are: see ``build_once``.

    Args:
        folder: The folder, with all its files.
        name: The name that the folder will have.

    Raises:
        OSError: If a file cannot be read or written.
    """
    files: dict[str, tuple[int, str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = (path.stat().st_size, digest)
    content = {"name": name, "files": files}
    write_whole(folder / MANIFEST, json.dumps(content | {"sha256": _checksum(content)}, indent=1) + "\n")


def fault_of(folder: Path) -> str | None:
    """Say what is wrong with a folder that ``build_once`` made, or return None if it is whole."""
    try:
        manifest = json.loads(_regular(folder / MANIFEST).read_bytes())
        checksum = manifest.pop("sha256")
        if checksum != _checksum(manifest):
            return f"{MANIFEST} is not as it was written"
        if manifest["name"] != folder.name:
            return f"it was made as '{manifest['name']}'"
        return _fault_of_files(folder, manifest["files"])
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).relative_to(folder)}"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not as it was written"


def _fault_of_files(folder: Path, files: Mapping[str, tuple[int, str]]) -> str | None:
    states: dict[str, list[int]] = {}
    for name, (size, _) in files.items():
        found = _regular(folder / name).stat()
        if found.st_size != size:
            return f"{name} has {found.st_size} bytes in place of {size}"
        if size >= _LARGE:
            states[name] = [found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
    verified = _states_verified(folder)
    for name, (_, digest) in files.items():
        if name in states and states[name] == verified.get(name):
            continue
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} has other bytes than were written"
    if states != verified:
        with suppress(OSError):  # a folder that may only be read is read again each time
            write_whole(folder / _VERIFIED, json.dumps(states))
    return None


def _states_verified(folder: Path) -> dict[str, list[int]]:
    """The inode, the time of writing and the time of change of each large file when its checksum was found right."""
    try:
        states = json.loads(_regular(folder / _VERIFIED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return states if isinstance(states, dict) else {}


def _regular(path: Path) -> Path:
    """The path, if a file is there: to open a pipe would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_new(path: Path) -> None:
    """Refuse an output that is there already or cannot be made, before anything is read.

    Raises:
        ConfigError: If it is there, or the folder that it is to be in is none, or may not be written to.
    """
    if os.path.lexists(path):
        raise ConfigError(
            f"{plain_text(path, longest=None)} is there already. Choose another place with --output, or move it away."
        )
    require_folder(path.parent)


def require_folder(folder: Path) -> None:
    """Refuse a folder that is a file, cannot be made, or may not be written to.

    Raises:
        ConfigError: If it is one of these.
    """
    there = folder.absolute()
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()  # refuses a name that is too long
        while not os.path.lexists(there) and there != there.parent:
            there = there.parent
        is_folder = there.is_dir()
    except OSError as error:
        raise ConfigError(
            f"{plain_text(folder)} cannot be a folder: {error.strerror}. Choose another place."
        ) from error
    if not is_folder:
        raise ConfigError(
            f"{plain_text(there, longest=None)} is no folder, so nothing can be written below it. Choose another place "
            "with --output."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{plain_text(there, longest=None)} may not be written to. Choose another place with --output."
        )
