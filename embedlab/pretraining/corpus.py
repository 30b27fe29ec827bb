"""Raw text as one long row of tokens on disk, with the tokenizer trained on it, for language-model pre-training."""

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
"""Stands before each document, and serves as begin, end and padding token."""

SMALLEST_VOCABULARY = 257
"""Every byte and ``END_OF_TEXT``."""

_FORMAT = 1  # raised whenever the files change, so that an older cache is not taken for a new one
_LARGEST_VOCABULARY = 1 << 16  # tokens are stored as uint16
_DOCUMENT_CHARACTERS = 1 << 15  # longer ones are cut, so that one big file, too, has a part to hold out
_FORMATS_OF_CORPORA = (".jsonl", ".ndjson", ".parquet")  # in a folder, where .json and .csv may be a program's
_HELD_OUT_EVERY = 50  # documents: one of them is for the validation loss
_CHARACTERS_PER_CALL = 1 << 22  # enough to keep the tokenizer's threads busy, little enough to forget


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Text to pre-train on.

    Args:
        path: a folder of text files (whatever their endings: all files in UTF-8 are read), one such file, a
            folder with JSONL or Parquet files (those alone are read), a file or glob of JSONL, CSV, TSV, each
            also gzipped, or Parquet, the id of a Hugging Face dataset, or ``python-stdlib``.
        column: of the text, where there are columns; of several the texts are joined by spaces.
        split_key: column or columns that training splits by (``split_key`` of the pairs, or their query); for
            ``python-stdlib`` the module, always.
        validation_fraction: what ``data.validation_fraction`` holds out in training is left out here, so that
            the language model has not read what the embedding model is judged on.
        test_fraction: the same for ``data.test_fraction``.
    """

    path: str
    column: str | list[str] = "text"
    split_key: str | list[str] | None = None
    validation_fraction: float = 0.0
    test_fraction: float = 0.0


class PackedText:
    """What ``pack_text`` wrote.

    Args:
        folder: where it stands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tokens(self, split: Literal["train", "validation"]) -> np.ndarray:
        """All documents of one split, end to end, uint16, memory-mapped."""
        return mapped_array(self.folder / f"{split}.npy")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer trained on the text. It adds no special tokens of its own."""
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder)
        return tokenizer


@dataclass(frozen=True)
class SequenceStarts:
    """Where the sequences of each step begin: every window of the text once an epoch, in random order."""

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
                # Other cuts every epoch, so that each token comes to be predicted from many contexts.
                shift = generator.integers(self.context)
                num_windows = (self.num_tokens - 1 - shift) // self.context
                waiting = np.concatenate([waiting, shift + self.context * generator.permutation(num_windows)])
            yield torch.from_numpy(waiting[: self.sequences])
            waiting = waiting[self.sequences :]


@dataclass(frozen=True)
class ConsecutiveStarts:
    """Where sequences begin that lie one after the other, in order: what is validated on.

    Batches are of one size, because a compiled model is compiled anew for another: what does not fill the last
    is left out, unless it is all there is.
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
    """Trains a byte-level BPE tokenizer on the sources and tokenizes them, or finds that done in the cache.

    Every fiftieth document, whole, is held out for the validation loss.

    Args:
        sources: read one after the other.
        vocabulary: tokens of the tokenizer, ``END_OF_TEXT`` included.
        cache_dir: folder of the cache.

    Raises:
        ConfigError: if the vocabulary cannot be, or a source's options do not fit together.
        DataError: if a source cannot be read, or has too little text for the vocabulary.
    """
    if not SMALLEST_VOCABULARY <= vocabulary <= _LARGEST_VOCABULARY:
        raise ConfigError(
            f"vocabulary must lie between {SMALLEST_VOCABULARY} (every byte and {END_OF_TEXT}) and "
            f"{_LARGEST_VOCABULARY}, got {vocabulary}."
        )
    if not sources:
        raise ConfigError("text names no source. Expected at least one, '[{path: python-stdlib}]' for instance.")
    key = {"format": _FORMAT, "vocabulary": vocabulary, "text": [text_fingerprint(source) for source in sources]}
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return PackedText(build_once(cache_dir / name, lambda folder: _build(folder, sources, vocabulary)))


def text_fingerprint(source: TextSource) -> str:
    """Hexadecimal digits that change with the documents of the source: files' contents and options, not names.

    Raises:
        DataError: if the source cannot be read.
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
    """Streams the documents of a source: a file, a row, or of a long one a part of some thousand words.

    Raises:
        ConfigError: if a part is to be left out and no column says which.
        DataError: if the source cannot be read, or a row has no text.
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
            f"Text '{source.path}' is to leave out what training holds out, and no column says what that is. Set "
            "split_key to the column that training splits by, or leave validation_fraction and test_fraction out."
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
    """Of a path either the files that are documents themselves, or what has rows with a document each."""
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
            f"'{path}' holds no text: {len(files)} files, none of them text in UTF-8. Expected text files (.txt, "
            f".md, .py and the like) or rows ({', '.join(_FORMATS_OF_CORPORA)})."
        )
    return texts, None


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _is_text(file: Path) -> bool:
    """Whether the file's beginning is text: no zero byte, and UTF-8 but for a character cut at its end."""
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
        raise DataError(f"{file} is not UTF-8 text at byte {error.start}. Convert it or take it out.") from error
    except OSError as error:
        raise DataError(f"{file} could not be read: {error.strerror or error}.") from error


def _build(folder: Path, sources: Sequence[TextSource], vocabulary: int) -> None:
    # Without an explicit setting the library warns in every data worker that is forked later.
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
            f"The text is too short for a vocabulary of {vocabulary}: it has pieces for "
            f"{tokenizer.get_vocab_size()}. Give more text or set vocabulary to {tokenizer.get_vocab_size()} or less."
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(folder)
    # A document that spells the token out must not be taken to end there.
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
