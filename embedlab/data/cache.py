"""Where built data is kept, and how a folder of it comes to be there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from embedlab.errors import DataError


def cache_folder() -> Path:
    """``$EMBEDLAB_CACHE``, else ``embedlab`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    own = os.environ.get("EMBEDLAB_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "embedlab"


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
