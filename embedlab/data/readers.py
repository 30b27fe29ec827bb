"""Opens what a path in the configuration refers to: files, a saved dataset, a hub dataset, or the standard library."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import RepositoryNotFoundError

from embedlab.data import standard_library
from embedlab.data.files import FORMATS, FileRows, fields_of, format_of, require_columns
from embedlab.data.rows import RejectedRow, Row, RowSource, column_holding, shown
from embedlab.data.tables import Quoting
from embedlab.errors import DataError, suggestion

STANDARD_LIBRARY = "python-stdlib"
"""Path that stands for the pairs extracted from the running interpreter's standard library."""

_EXPECTED = (
    "Expected a .jsonl (.ndjson, or .json with one object per line), .csv or .tsv file, each also with .gz, or "
    "a .parquet file; a folder of such files; a glob such as 'data/*.jsonl'; a folder that "
    "datasets.Dataset.save_to_disk wrote; or the id of a dataset on the Hugging Face hub."
)
_HUB_TIMEOUT_SECONDS = 10


def open_rows(
    path: str, *, hub_config: str | None = None, hub_split: str = "train", quoting: Quoting | None = None
) -> RowSource:
    """Open the rows that a path refers to.

    Args:
        path: Path of a file, a folder of files, a glob, a folder with a saved dataset, the id of a dataset on the
            Hugging Face hub, or ``python-stdlib``.
        hub_config: Configuration of a hub dataset. None means the default configuration.
        hub_split: Split of a hub dataset, or of a saved dataset that has splits.
        quoting: How CSV and TSV files are quoted. None, for data without such an option, means ``auto``.

    Raises:
        DataError: If the path refers to nothing that can be read.
    """
    if path == STANDARD_LIBRARY:
        return _StandardLibraryRows()
    try:
        local = Path(path).expanduser()
        if local.is_dir():
            if any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
                return _saved_dataset(local, hub_split)
            files = sorted(file for file in local.iterdir() if file.is_file() and format_of(file) in FORMATS)
            if not files:
                raise DataError(f"Folder '{path}' holds no file that can be read. {_EXPECTED}")
            return FileRows(files, quoting)
        if local.is_file():
            return FileRows([local], quoting)
        if any(character in path for character in "*?["):
            files = _matching(local)
            if not files:
                raise DataError(f"No file matches '{path}' (looked from {Path.cwd()}). {_EXPECTED}")
            return FileRows(files, quoting)
    except (OSError, ValueError, NotImplementedError, RuntimeError) as error:  # a name too long, `**x`, ~nobody
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"The path {shown(path)} cannot be looked up: {reason}. {_EXPECTED}") from error
    if _can_be_a_hub_id(path):
        return _hub_dataset(path, hub_config, hub_split)
    raise DataError(f"There is no file or folder '{path}': {_nearest(local)} {_EXPECTED}")


def _matching(pattern: Path) -> list[Path]:
    """Return the files that a glob matches. Brackets in the names of existing folders are taken literally."""
    folder = Path(pattern.anchor)
    parts = list(pattern.relative_to(folder).parts)
    while len(parts) > 1 and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    for name in ("/".join(parts), "/".join(part.replace("[", glob.escape("[")) for part in parts)):
        if files := sorted(file for file in folder.glob(name) if file.is_file()):
            return files
    return []


@dataclass(frozen=True)
class _StandardLibraryRows(RowSource):
    """Rows of the standard library's pairs, with columns ``query``, ``positive`` and ``module``."""

    def columns(self) -> list[str]:
        return ["query", "positive", "module"]

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, Row | RejectedRow]]:
        require_columns(STANDARD_LIBRARY, columns, self.columns())
        for number, (query, positive, module) in enumerate(standard_library.pairs(), start=1):
            place = f"{STANDARD_LIBRARY}: pair {number} ({module})"
            yield place, {"query": query, "positive": positive, "module": module}

    def fingerprint(self) -> str:
        return standard_library.fingerprint()


@dataclass(frozen=True)
class _DatasetRows(RowSource):
    """Rows of a memory-mapped ``datasets.Dataset``."""

    name: str
    dataset: Any

    def columns(self) -> list[str]:
        return fields_of(self.dataset.features.arrow_schema)

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, Row | RejectedRow]]:
        there: list[str] = self.dataset.column_names
        require_columns(f"Dataset '{self.name}'", columns, there)
        if len(self.dataset) == 0:
            raise DataError(f"Dataset '{self.name}' has no rows. Expected at least one row: try another split.")
        holders = (column_holding(column, there) for column in [*columns, *optional])
        plain = self.dataset.with_format(None)  # a saved format could return tensors in place of texts
        named = [column for column in dict.fromkeys(holders) if column is not None]
        for number, row in enumerate(plain.select_columns(named)):
            yield f"{self.name}: row {number}", row

    def fingerprint(self) -> str:
        files = FileRows([Path(file["filename"]) for file in self.dataset.cache_files])
        return hashlib.sha256(f"{files.fingerprint()} {len(self.dataset)}".encode()).hexdigest()


def _nearest(path: Path) -> str:
    """Return a sentence that names the missing part of a path and a similar name, or the target of a broken link."""
    path = path.absolute()
    while not path.parent.is_dir():
        path = path.parent
    if path.is_symlink():
        return f"'{path}' is a link to '{path.readlink()}', which is not there."
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        names = []
    return f"'{path.parent}' has no '{path.name}'.{suggestion(path.name, names)}"


def _can_be_a_hub_id(path: str) -> bool:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    return not looks_local and format_of(Path(path)) not in FORMATS


def _saved_dataset(folder: Path, split: str) -> _DatasetRows:
    import datasets  # half a second that most runs need not wait for

    try:
        loaded = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # Arrow, JSON and file errors all mean that save_to_disk did not write it
        raise DataError(f"'{folder}' is not a complete saved dataset: {error}. Write it again.") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            there = ", ".join(map(repr, loaded))
            raise DataError(f"Saved dataset '{folder}' has no split '{split}'. Set hub_split to one of: {there}.")
        loaded = loaded[split]
    return _DatasetRows(str(folder), loaded)


def _hub_dataset(name: str, config: str | None, split: str) -> _DatasetRows:
    not_local = f"'{name}' is no file or folder ({_nearest(Path(name))})"
    offline = is_offline_mode()
    if not offline:
        # One quick request first, because without a network load_dataset retries for most of a minute.
        try:
            HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_SECONDS)
        except RepositoryNotFoundError as error:
            raise DataError(
                f"{not_local}, and the Hugging Face hub has no dataset of that name that you may read. For a "
                f"gated dataset log in with `hf auth login`. {_EXPECTED}"
            ) from error
        except Exception as error:  # the classes of network errors vary between versions of the hub's client
            raise DataError(
                f"{not_local}, and the Hugging Face hub cannot be reached ({error}). Give a local path or connect "
                "to the network; if the dataset was downloaded before, set HF_HUB_OFFLINE=1 to use that copy."
            ) from error
    import datasets  # half a second that most runs need not wait for

    try:
        return _DatasetRows(name, datasets.load_dataset(name, config, split=split, keep_in_memory=False))
    except Exception as error:  # the message names the existing configurations and splits
        remedy = "Unset HF_HUB_OFFLINE to download it" if offline else "Check the id, hub_config and hub_split"
        raise DataError(
            f"{not_local}, and could not be loaded as a dataset of the Hugging Face hub: {error} {remedy}."
        ) from error
