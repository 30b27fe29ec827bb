"""Helpers for files, so that a crash leaves no half-written file and two processes never write to the same folder.

The module writes files and folders atomically, locks folders, locates the cache folder, and checks output paths.
"""

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
"""Suffix of the name of a file or folder that is being written."""


@contextmanager
def whole_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file for writing that appears at ``path`` only when the block has ended and all bytes are on disk.

    The bytes go to a temporary file in the same folder, which is synchronized with the disk and then renamed. A kill, a
    full disk or a loss of power therefore leaves either the old file or the new file. If the block raises an exception,
    the old file stays.

    Args:
        path: Path of the file to write. Missing parent folders are created.
        replace: Whether an existing file is replaced.

    Raises:
        FileExistsError: If ``replace`` is false and the file exists when the block has ended.
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
            os.link(unfinished, path)  # unlike a rename, a link never replaces an existing file
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_whole(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a text file in UTF-8 completely or not at all, as described at ``whole_file``."""
    with whole_file(path, replace=replace) as file:
        file.write(text.encode())


def link_whole(path: Path, name: Path) -> None:
    """Give a file a second name, which keeps the current content when the file at ``path`` is replaced later.

    Args:
        path: Path of the file.
        name: Second path of the file, in an existing folder. An existing file there is replaced.
    """
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
    """Write the list of a folder's files to the disk, if the file system supports this."""
    with suppress(OSError):  # some file systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files that a killed process left in a folder. The caller must hold the folder's lock."""
    for path in folder.glob(f"*{UNFINISHED}"):
        _remove(path)


@contextmanager
def locked_folder(folder: Path, *, owner: str, seconds: float = 0.0) -> Iterator[None]:
    """Lock a folder against other processes that call this function, until the block or the process ends.

    The operating system holds the lock, on the file ``<owner>.lock``, and releases the lock of a killed process.

    Args:
        folder: Folder to lock. A missing folder is created.
        owner: Kind of work that the lock protects: "run" or "search".
        seconds: Maximum time to wait for another process to release the lock, in seconds.

    Raises:
        ConfigError: If another process holds the lock, or the folder cannot be created or written to.
    """
    lock = FileLock(folder / f"{owner}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ConfigError(
            f"Another {owner} is in progress in {folder}. Wait until it ends, stop it, or choose another folder with "
            "--output."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def cannot_write(path: Path, error: BaseException) -> ConfigError:
    """Return the error for an output file or folder that cannot be created or written.

    Args:
        path: Path of the output.
        error: Exception that the attempt to write raised.
    """
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return ConfigError(f"{path} cannot be written: {reason}. Free some space, or choose another place with --output.")


def cache_folder() -> Path:
    """Return the cache folder: ``$EMBEDLAB_CACHE``, else ``$XDG_CACHE_HOME/embedlab``, else ``~/.cache/embedlab``.

    Raises:
        ConfigError: If the home folder is needed and unknown.
    """
    own = os.environ.get("EMBEDLAB_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        return (Path(shared) if shared else Path.home() / ".cache") / "embedlab"
    except RuntimeError as error:
        raise ConfigError(
            "There is no home folder for the cache. Set the environment variable EMBEDLAB_CACHE to a folder."
        ) from error


MANIFEST = "manifest.json"
"""Name of the file in a built folder that lists the size and the checksum of each file, and a checksum of the list."""

_VERIFIED = "verified.json"  # file in a built folder: states of the large files when their checksums were last correct
_LARGE = 1 << 24  # bytes; smaller files are read at every use of the folder, which takes some hundredths of a second


def build_once(folder: Path, build: Callable[[Path], None], *, rebuild: bool = True) -> Path:
    """Return a complete and undamaged folder, which is built if it is missing.

    The folder is built under another name and renamed when all files are on the disk, so that a reader never sees an
    incomplete folder. If several processes call this function (for example the ranks of a run), one process builds and
    the others wait. The unfinished folder of a killed process is removed.

    A manifest in the folder holds the size and the SHA-256 of each file. Each call checks the sizes of all files, and
    the checksums of files below 16 MiB. A larger file is read again only if the file was replaced or changed since its
    checksum was last verified, so that starting a run does not read gigabytes. A damaged folder is built again and
    replaced, with a line on standard error. Processes that have files of the damaged folder open keep these files.

    Args:
        folder: Path of the folder. The name must identify everything that the content depends on.
        build: Function that writes the files into the empty folder that it receives.
        rebuild: Whether a damaged folder is built again. Use False for folders that take long to build or that a user
            may have edited.

    Raises:
        DataError: If the folder cannot be written (disk full, no permission), or is damaged and ``rebuild`` is false.
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
                    raise DataError(f"{folder} is damaged: {fault}. Delete the folder, and it will be built again.")
                print(f"embedlab: {folder} is damaged ({fault}) and is built again.", file=sys.stderr, flush=True)
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
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(
            f"The cache folder '{folder}' could not be written: {reason}. No part of the folder was kept. Free some "
            "space, or choose another place with data.cache or $EMBEDLAB_CACHE."
        ) from error
    return folder


def write_manifest(folder: Path, *, name: str) -> None:
    """Synchronize all files of a folder with the disk, and write the manifest that ``build_once`` checks.

    Args:
        folder: Folder that contains all files already.
        name: Name that the folder will have after it is renamed.

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
    """Return a description of the damage to a folder that ``build_once`` made, or None if the folder is undamaged."""
    try:
        manifest = json.loads(_regular(folder / MANIFEST).read_bytes())
        checksum = manifest.pop("sha256")
        if checksum != _checksum(manifest):
            return f"{MANIFEST} is not as it was written"
        if manifest["name"] != folder.name:
            return f"the folder was built with the name '{manifest['name']}'"
        return _fault_of_files(folder, manifest["files"])
    except FileNotFoundError as error:
        return f"the folder has no {Path(error.filename).relative_to(folder)}"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not as it was written"


def _fault_of_files(folder: Path, files: Mapping[str, tuple[int, str]]) -> str | None:
    states: dict[str, list[int]] = {}
    for name, (size, _) in files.items():
        found = _regular(folder / name).stat()
        if found.st_size != size:
            return f"{name} has {found.st_size} bytes instead of {size}"
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
        with suppress(OSError):  # the large files of a read-only folder are read at every use
            write_whole(folder / _VERIFIED, json.dumps(states))
    return None


def _states_verified(folder: Path) -> dict[str, list[int]]:
    """Return the state of each large file when its checksum was last correct: inode, mtime and ctime in nanoseconds."""
    try:
        states = json.loads(_regular(folder / _VERIFIED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return states if isinstance(states, dict) else {}


def _regular(path: Path) -> Path:
    """Return the path of a regular file, and raise OSError for anything else: opening a pipe could wait forever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all its content. Content that cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_new(path: Path) -> None:
    """Check, before slow work begins, that an output file does not exist yet and can be created.

    Args:
        path: Path of the output file.

    Raises:
        ConfigError: If the path exists, or if ``require_folder`` refuses its parent folder.
    """
    if os.path.lexists(path):
        raise ConfigError(
            f"{plain_text(path, longest=None)} exists already. Choose another place with --output, or move it away."
        )
    require_folder(path.parent)


def require_folder(folder: Path) -> None:
    """Check, before slow work begins, that files can be written into a folder. The folder may be missing.

    Args:
        folder: Path of the folder.

    Raises:
        ConfigError: If the path is a file or lies below a file, cannot be a folder, or is not writable.
    """
    there = folder.absolute()
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()  # raises an error for a name that is too long
        while not os.path.lexists(there) and there != there.parent:
            there = there.parent
        is_folder = there.is_dir()
    except OSError as error:
        raise ConfigError(
            f"{plain_text(folder)} cannot be a folder: {error.strerror}. Choose another place."
        ) from error
    if not is_folder:
        raise ConfigError(
            f"{plain_text(there, longest=None)} is not a folder, so nothing can be written below it. Choose another "
            "place with --output."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"You have no permission to write to {plain_text(there, longest=None)}. Choose another place with --output."
        )
