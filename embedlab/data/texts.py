"""Stores unique texts as tokens in memory-mapped files, so that no epoch, rank or data worker tokenizes them again.

Axes in names: U unique texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from embedlab.data.rows import shown
from embedlab.errors import ConfigError, DataError

_FORMAT = 1  # raised whenever the format of the files changes, so that an older cache is not read as a new one
_CHARACTERS_PER_CALL = 1 << 20  # enough to keep the tokenizer's threads busy, but little memory

# Constants of _tokenize, which does not tokenize a very long text to its end.
_LONG_CHARACTERS_PER_TOKEN = 512  # a text with more characters per kept token is very long
_TRIED_CHARACTERS_PER_TOKEN = 16  # characters per kept token in the first beginning that is tried
_ENDS_IN_A_ROW = 32  # consecutive ends tried: more than the 16 characters of a unigram model's longest token
_FAR_END = 1009  # characters between the last of the consecutive ends and one further end
_NEAR_CHARACTERS = 1 << 20  # characters further away are assumed to make no difference

_Item = TypeVar("_Item")


class TokenizedTexts:
    """Unique texts of one corpus, read from the files that ``TextWriter`` wrote.

    Files are opened on first use, and a pickled copy opens the files again, so that data workers share memory pages.

    Args:
        folder: Folder that ``TextWriter`` wrote the files to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[type[TokenizedTexts], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return len(self._token_offsets) - 1

    def tokens(self, row: int) -> np.ndarray:
        """Return the token ids of one text, as a view of the memory-mapped file."""
        return self._tokens[self._token_offsets[row] : self._token_offsets[row + 1]]

    def string(self, row: int) -> str:
        """Return one text as it was read, with its prompt and not truncated."""
        return bytes(self._bytes[self._byte_offsets[row] : self._byte_offsets[row + 1]]).decode()

    @cached_property
    def lengths_U(self) -> np.ndarray:
        """Number of tokens of each text, shape (U,), int64."""
        lengths_U: np.ndarray = np.diff(self._token_offsets)
        return lengths_U

    @cached_property
    def hashes_U(self) -> np.ndarray:
        """64-bit BLAKE2b hash of each text with its prompt, shape (U,), int64. Identical texts have equal hashes.

        Among ten million different texts, two texts have equal hashes with a probability of 3e-6.
        """
        return mapped_array(self.folder / "hashes.npy")

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return hexadecimal digits that identify the texts in ``rows`` and their order, whatever the tokenizer."""
        return hashlib.sha256(self.hashes_U[rows].tobytes()).hexdigest()[:16]

    @property
    def num_truncated(self) -> int:
        """Number of texts that were cut because they were longer than the maximum length."""
        return int(self._info["num_truncated"])

    @cached_property
    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((self.folder / "texts.json").read_text())
        return info

    @cached_property
    def _tokens(self) -> np.ndarray:
        return np.asarray(np.memmap(self.folder / "tokens.bin", dtype=self._info["dtype"], mode="r"))

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.asarray(np.memmap(self.folder / "strings.bin", dtype=np.uint8, mode="r"))

    @cached_property
    def _token_offsets(self) -> np.ndarray:
        return mapped_array(self.folder / "token_offsets.npy")

    @cached_property
    def _byte_offsets(self) -> np.ndarray:
        return mapped_array(self.folder / "string_offsets.npy")


class TextWriter:
    """Context manager that tokenizes texts into a folder. Identical texts are tokenized and stored once.

    Args:
        folder: Existing folder to write the files to.
        tokenizer: Tokenizer, which adds its special tokens.
        max_length: Maximum number of tokens per text, special tokens included. Longer texts are cut at this length.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 1 << 16 else np.uint32
        self._row_of_hash: dict[int, int] = {}
        self._waiting: list[str] = []
        self._waiting_characters = 0
        self._token_offsets = array("q", [0])
        self._byte_offsets = array("q", [0])
        self._num_truncated = 0
        self._tokens: BinaryIO
        self._strings: BinaryIO

    def __enter__(self) -> TextWriter:
        self._tokens = (self._folder / "tokens.bin").open("wb")
        self._strings = (self._folder / "strings.bin").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._tokens, self._strings:
            if kind is None:
                self._flush()
        if kind is None:
            hashes_U = np.fromiter(self._row_of_hash, dtype=np.int64, count=len(self._row_of_hash))
            np.save(self._folder / "hashes.npy", hashes_U)
            np.save(self._folder / "token_offsets.npy", np.array(self._token_offsets))
            np.save(self._folder / "string_offsets.npy", np.array(self._byte_offsets))
            info = {"dtype": np.dtype(self._dtype).name, "num_truncated": self._num_truncated}
            (self._folder / "texts.json").write_text(json.dumps(info))

    def add(self, text: str) -> int:
        """Add a text and return its row. Identical texts have the same row."""
        encoded = text.encode()
        digest = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little", signed=True)
        row = self._row_of_hash.setdefault(digest, len(self._row_of_hash))
        if row == len(self._byte_offsets) - 1:
            self._strings.write(encoded)
            self._byte_offsets.append(self._byte_offsets[-1] + len(encoded))
            self._waiting.append(text)
            self._waiting_characters += len(text)
            if self._waiting_characters >= _CHARACTERS_PER_CALL:
                self._flush()
        return row

    def _flush(self) -> None:
        if not self._waiting:
            return
        texts, num_truncated = _tokenize(self._tokenizer, self._waiting, self._max_length)
        for tokens in texts:
            self._tokens.write(np.array(tokens, dtype=self._dtype).tobytes())
            self._token_offsets.append(self._token_offsets[-1] + len(tokens))
        self._num_truncated += num_truncated
        self._waiting = []
        self._waiting_characters = 0


def mapped_array(file: Path) -> np.ndarray:
    """Return a saved array, memory-mapped, as a plain array, because slicing ``np.memmap`` objects is much slower."""
    loaded: np.ndarray = np.load(file, mmap_mode="r")
    return np.asarray(loaded)


def rows_without_tokens(texts: TokenizedTexts) -> np.ndarray:
    """Return the rows of texts without tokens, for example texts of characters that the tokenizer drops."""
    return np.flatnonzero(texts.lengths_U == 0)


def require_tokens(texts: TokenizedTexts, place: str) -> None:
    """Check that every text has at least one token.

    Args:
        texts: Texts to check.
        place: Name of the file that the texts come from, for the message.

    Raises:
        DataError: If a text has no tokens. The message shows the first text without tokens.
    """
    empty = rows_without_tokens(texts)
    if len(empty):
        raise DataError(
            f"{place}: the tokenizer makes no token of the text {shown(texts.string(int(empty[0])))} "
            f"({len(empty)} such texts). Expected at least one token per text: correct or remove them."
        )


def cache_key(kind: str, content: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Return a name for tokenized texts in the cache that changes with everything the texts depend on.

    Args:
        kind: Kind of data that is built from the texts, which begins the name.
        content: Fingerprints and options that the texts depend on, in types that JSON can represent.
        tokenizer: Tokenizer. Its behavior enters the name, not what it is called.
        max_length: Maximum number of tokens per text.
    """
    parts = {
        "format": _FORMAT,
        "content": content,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_length": max_length,
    }
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]}"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return hexadecimal digits that identify a tokenizer's behavior, and change whenever a text's tokens could change.

    Raises:
        ConfigError: If a slow tokenizer's files cannot be written to a temporary folder.
    """
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for set_by_the_last_call in ("truncation", "padding"):
            state.pop(set_by_the_last_call)
        state["truncation_side"] = tokenizer.truncation_side
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    try:
        with tempfile.TemporaryDirectory() as folder:  # the files that a slow tokenizer saves define its behavior
            tokenizer.save_pretrained(folder)
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"The files of the tokenizer, which identify its cache, could not be written to a temporary folder: "
            f"{error.strerror or error}. Set the environment variable TMPDIR to a folder with some free space."
        ) from error
    return digest.hexdigest()


def num_tokens_of_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Return the number of tokens of a prompt, special tokens included."""
    return len(tokenizer(prompt, verbose=False)["input_ids"])


def shown_progress(items: Iterable[_Item], description: str) -> Iterator[_Item]:
    """Yield the items, and show a progress bar on standard error if standard error is a terminal."""
    console = Console(stderr=True)
    yield from track(items, description, total=None, console=console, transient=True, disable=not console.is_terminal)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> tuple[list[list[int]], int]:
    """Return the token ids of each text, and how many texts were cut.

    A tokenizer reads a text to its end, even if few tokens are kept: ten megabytes take half a minute and two gigabytes
    of memory. A very long text is therefore tokenized only up to several ends near its beginning. If all of these
    beginnings give more tokens than are kept, and the same kept tokens, then the rest of the text makes no difference.
    The reason is that the best path of a unigram model passes through one of the consecutive ends, and starts like the
    path to that end, while the merges of BPE and the words of WordPiece are local. If the beginnings differ, later ends
    are tried, up to the end of the text. Only tokens that depend on characters more than a million positions later can
    differ from the tokens of the whole text.
    """
    # Data workers are forked later and never tokenize. Without an explicit setting, the tokenizers library before 0.23
    # warns in each data worker that parallel tokenization is disabled.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    ids: dict[int, list[int]] = {}
    num_truncated = 0
    waiting = []
    if tokenizer.truncation_side == "right":
        waiting = [row for row, text in enumerate(texts) if len(text) > _LONG_CHARACTERS_PER_TOKEN * max_length]
    size = _TRIED_CHARACTERS_PER_TOKEN * max_length
    while waiting := [row for row in waiting if len(texts[row]) > size + _FAR_END and row not in ids]:
        in_a_row = max(1, min(_ENDS_IN_A_ROW, _CHARACTERS_PER_CALL // size, size))
        ends = [*range(size - in_a_row, size), size + _FAR_END]
        for row in waiting:
            tokens, is_cut = _encoded(tokenizer, [texts[row][:end] for end in ends], max_length)
            is_same = all(other == tokens[-1] for other in tokens)
            if all(is_cut) and (is_same or size > _NEAR_CHARACTERS):
                ids[row] = tokens[-1]
                num_truncated += 1
        size *= 4
    others = [row for row in range(len(texts)) if row not in ids]
    tokens, is_cut = _encoded(tokenizer, [texts[row] for row in others], max_length)
    ids.update(zip(others, tokens, strict=True))
    return [ids[row] for row in range(len(texts))], num_truncated + sum(is_cut)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int
) -> tuple[list[list[int]], list[bool]]:
    """Return the token ids of each text, and whether the text was cut because it has more tokens."""
    if not texts:
        return [], []
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    is_cut = [len(tokens) == max_length for tokens in ids]
    for row, is_full in enumerate(is_cut):
        if is_full:
            is_cut[row] = (
                bool(encoded.encodings[row].overflowing)
                if tokenizer.is_fast
                else len(tokenizer(texts[row], verbose=False)["input_ids"]) > max_length
            )
    return ids, is_cut


_tokenise = _tokenize  # its name before 0.1.0
