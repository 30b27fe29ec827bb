"""Turns raw text into one long stream of tokens on disk, with a tokenizer trained on the text, for pre-training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from embedlab.data import standard_library
from embedlab.data.files import FORMATS, FileRows, format_of
from embedlab.data.readers import STANDARD_LIBRARY, open_rows
from embedlab.data.rows import Row, RowSource, column_names, key_of, text_of, usable_rows
from embedlab.data.split import split_position
from embedlab.data.texts import mapped_array, shown_progress
from embedlab.errors import ConfigError, DataError
from embedlab.files import build_once

END_OF_TEXT = "<|endoftext|>"
"""Token in front of each document, which is also the begin, end and padding token."""

SMALLEST_VOCABULARY = 257
"""Minimum number of tokens in a vocabulary: one for each of the 256 byte values, and ``END_OF_TEXT``."""

_FORMAT = 1  # to raise whenever the format of the files changes, so that files in an older format are not read
_LARGEST_VOCABULARY = 1 << 16  # tokens are stored as uint16
_DOCUMENT_CHARACTERS = 1 << 15  # longer documents are cut, so that a part of a single big file can be held out
_FORMATS_OF_CORPORA = (".jsonl", ".ndjson", ".parquet")  # in folders, where other formats may belong to a program
_HELD_OUT_EVERY = 50  # one in so many documents is held out for the validation loss
_CHARACTERS_PER_CALL = 1 << 22  # enough to keep all threads of the tokenizer busy, with little memory


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """A source of text to pre-train on.

    Args:
        path: Text file or folder of text files in UTF-8, with any file extension; file or glob of JSONL, CSV or TSV
            (each may be gzipped) or Parquet; id of a Hugging Face dataset; or ``python-stdlib``. If a folder holds
            JSONL or Parquet files, only these are read.
        column: Name of the column that holds the text, if the source has columns. The texts of several columns are
            joined by spaces.
        split_key: Column or columns by which training splits the data: ``split_key`` of the pairs, or else the column
            of the query. ``python-stdlib`` is always split by module.
        validation_fraction: Value of ``data.validation_fraction`` in training, from 0 to 1. Text that training holds
            out for validation is left out here, so that the language model has not seen it.
        test_fraction: Value of ``data.test_fraction`` in training, from 0 to 1. Text that training holds out for the
            test is left out here, too.
    """

    path: str
    column: str | list[str] = "text"
    split_key: str | list[str] | None = None
    validation_fraction: float = 0.0
    test_fraction: float = 0.0


class PackedText:
    """The tokens and the tokenizer in a folder that ``pack_text`` wrote.

    Args:
        folder: Folder with the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tokens(self, split: Literal["train", "validation"]) -> np.ndarray:
        """Return the token ids of all documents of one split, one after the other: uint16, memory-mapped.

        Args:
            split: Name of the split: ``train`` or ``validation``.
        """
        return mapped_array(self.folder / f"{split}.npy")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer that was trained on the text. It adds no special tokens when it encodes a text."""
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder)
        return tokenizer


@dataclass(frozen=True)
class SequenceStarts:
    """The positions at which the training sequences of each step begin: each window once per epoch, in random order.

    Attributes:
        num_tokens: Number of tokens in the stream.
        context: Number of predicted tokens per sequence.
        sequences: Number of sequences per step.
        steps: Number of optimizer steps.
        seed: Seed of the random order.
    """

    num_tokens: int
    context: int
    sequences: int
    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        generator = np.random.default_rng(self.seed)
        waiting = np.zeros(0, np.int64)
        for _ in range(self.steps):
            while len(waiting) < self.sequences:
                # The cuts are shifted in every epoch, so that a token is predicted from many different contexts.
                shift = generator.integers(self.context)
                num_windows = (self.num_tokens - 1 - shift) // self.context
                waiting = np.concatenate([waiting, shift + self.context * generator.permutation(num_windows)])
            yield torch.from_numpy(waiting[: self.sequences])
            waiting = waiting[self.sequences :]


@dataclass(frozen=True)
class ConsecutiveStarts:
    """The positions at which the validation sequences begin: one sequence after the other, in order.

    All batches have the same size, because a compiled model is compiled again for each new size. Sequences that do not
    fill the last batch are left out, unless there is no other batch.

    Attributes:
        num_tokens: Number of tokens in the stream.
        context: Number of predicted tokens per sequence.
        sequences: Number of sequences per batch.
    """

    num_tokens: int
    context: int
    sequences: int

    def __len__(self) -> int:
        return max(1, self._num_windows // self.sequences)

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.context * torch.arange(self._num_windows)).split(self.sequences)[: len(self)]

    @property
    def _num_windows(self) -> int:
        return (self.num_tokens - 1) // self.context


def pack_text(sources: Sequence[TextSource], *, vocabulary: int, cache_dir: Path) -> PackedText:
    """Train a byte-level BPE tokenizer on some sources and tokenize their documents, or find the result in the cache.

    One in 50 documents is held out for the validation loss.

    Args:
        sources: Sources of text, read one after the other.
        vocabulary: Number of tokens in the vocabulary, ``END_OF_TEXT`` included.
        cache_dir: Folder of the cache.

    Returns:
        The tokens and the tokenizer.

    Raises:
        ConfigError: If the size of the vocabulary is impossible, there is no source, or the options of a source
            contradict each other.
        DataError: If a source cannot be read, or if there is too little text for the vocabulary.
    """
    if not SMALLEST_VOCABULARY <= vocabulary <= _LARGEST_VOCABULARY:
        raise ConfigError(
            f"vocabulary must be from {SMALLEST_VOCABULARY} (every byte and {END_OF_TEXT}) to "
            f"{_LARGEST_VOCABULARY} tokens, got {vocabulary}."
        )
    if not sources:
        raise ConfigError("text is empty. Expected at least one source, for example '[{path: python-stdlib}]'.")
    key = {"format": _FORMAT, "vocabulary": vocabulary, "text": [text_fingerprint(source) for source in sources]}
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return PackedText(build_once(cache_dir / name, lambda folder: _build(folder, sources, vocabulary)))


def text_fingerprint(source: TextSource) -> str:
    """Return hexadecimal digits that identify the documents of a source.

    The digits depend on the contents of the files and on the options of the source, but not on the names of the files.

    Args:
        source: Source of text.

    Raises:
        DataError: If the source cannot be read.
    """
    options = {name: value for name, value in asdict(source).items() if name != "path"}
    digest = hashlib.sha256(json.dumps(options).encode())
    if source.path == STANDARD_LIBRARY:
        digest.update(standard_library.fingerprint().encode())
        return digest.hexdigest()
    texts, rows = _text_files_and_rows(source.path)
    for file in texts:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    if rows is not None:
        digest.update(rows.fingerprint().encode())
    return digest.hexdigest()


def documents(source: TextSource) -> Iterator[str]:
    """Yield the documents of a source: the text of a file or of a row, cut into parts of at most 32,768 characters.

    Args:
        source: Source of text.

    Raises:
        ConfigError: If documents are to be left out, but no column says which.
        DataError: If the source cannot be read, or if a row has no text.
    """
    for document in _whole_documents(source):
        start = 0
        while len(document) - start > _DOCUMENT_CHARACTERS:
            line_end = document.rfind("\n", start, start + _DOCUMENT_CHARACTERS) + 1
            stop = line_end if line_end > start else start + _DOCUMENT_CHARACTERS
            yield document[start:stop]
            start = stop
        yield document[start:]


def _whole_documents(source: TextSource) -> Iterator[str]:
    if source.path == STANDARD_LIBRARY:
        held_out = {module for module in standard_library.modules() if _is_held_out(source, module)}
        yield from standard_library.texts(held_out)
        return
    texts, rows = _text_files_and_rows(source.path)
    leaves_out = source.validation_fraction or source.test_fraction
    if leaves_out and (source.split_key is None or texts):
        raise ConfigError(
            f"The text '{source.path}' cannot leave out what training holds out, because no column says which rows "
            "these are. Set split_key to the column that training splits by (sources with columns only), or leave "
            "validation_fraction and test_fraction out."
        )
    if rows is None:
        yield from filter(None, map(_read, texts))
        return
    columns = column_names(source.column, "column", source.path)
    keys = column_names(source.split_key, "split_key", source.path) if source.split_key and leaves_out else []

    def take(row: Row, place: str) -> str | None:
        is_held_out = bool(keys) and _is_held_out(source, _key_of(row, keys, place))
        return None if is_held_out else text_of(row, columns, place)

    taken = usable_rows(rows.rows([*columns, *keys]), take, path=source.path)
    yield from (text for text in taken if text is not None)


def _key_of(row: Row, columns: list[str], place: str) -> str:
    if len(columns) == 1:
        return key_of(row, columns[0], place, reason="no split key")
    return text_of(row, columns, place)


def _is_held_out(source: TextSource, key: str) -> bool:
    position = split_position(key)
    return position < source.validation_fraction or position >= 1 - source.test_fraction


def _text_files_and_rows(path: str) -> tuple[list[Path], RowSource | None]:
    """Return either files that are one document each, or a source of rows that hold one document each.

    Args:
        path: Path of a ``TextSource``.

    Returns:
        The text files and None, or an empty list and the source of rows.

    Raises:
        DataError: If the path does not exist or holds no text.
    """
    local = Path(path).expanduser()
    is_saved_dataset = any((local / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if local.is_dir() and not is_saved_dataset:
        files = sorted(file for file in local.rglob("*") if file.is_file() and not _is_hidden(file, local))
        if row_files := [file for file in files if format_of(file) in _FORMATS_OF_CORPORA]:
            return [], FileRows(row_files)
    elif local.is_file() and format_of(local) not in FORMATS:
        files = [local]
    else:
        return [], open_rows(path)
    texts = [file for file in files if _is_text(file)]
    if not texts:
        raise DataError(
            f"'{path}' holds no text in UTF-8 (number of files: {len(files)}). Expected text files (for example .txt, "
            f".md or .py) or files with rows ({', '.join(_FORMATS_OF_CORPORA)})."
        )
    return texts, None


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _is_text(file: Path) -> bool:
    """Return whether the first 4 KiB of a file are text in UTF-8 without zero bytes (the last character may be cut)."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= 4096 - 4 and b"\0" not in head
    except OSError as error:
        raise DataError(f"{file} could not be read: {error.strerror or error}.") from error
    return b"\0" not in head


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text at byte {error.start}. Convert the file to UTF-8, or remove it."
        ) from error
    except OSError as error:
        raise DataError(f"{file} could not be read: {error.strerror or error}.") from error


def _build(folder: Path, sources: Sequence[TextSource], vocabulary: int) -> None:
    # Without an explicit setting, the library prints a warning in every data worker that is forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(shown_progress(_all_documents(sources), "training the tokenizer"), trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise DataError(
            f"The text is too short for a vocabulary of {vocabulary} tokens: it yields {tokenizer.get_vocab_size()}. "
            f"Give more text, or set vocabulary to {tokenizer.get_vocab_size()} or less."
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(folder)
    # A document that contains the text of the end-of-text token does not end there.
    tokenizer.encode_special_tokens = True
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    number = 0
    for batch in shown_progress(_batches(_all_documents(sources)), "tokenizing"):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            tokens = parts["train" if number % _HELD_OUT_EVERY else "validation"]
            tokens.append(np.array([0, *encoding.ids], dtype=np.uint16))
            number += 1
    for split, tokens in parts.items():
        np.save(folder / f"{split}.npy", np.concatenate(tokens) if tokens else np.zeros(0, np.uint16))


def _all_documents(sources: Sequence[TextSource]) -> Iterator[str]:
    for source in sources:
        yield from documents(source)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= _CHARACTERS_PER_CALL:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
