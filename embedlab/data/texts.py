"""Unique texts as tokens in memory-mapped files, so that neither epochs, ranks nor workers tokenize again.

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

_FORMAT = 1  # raised whenever the files change, so that an older cache is not taken for a new one
_CHARACTERS_PER_CALL = 1 << 20  # enough to keep the tokenizer's threads busy, little enough to forget

# A text of more characters than these for each token that is kept is not tokenized to its end: see _tokenize.
_LONG_CHARACTERS_PER_TOKEN = 512
_TRIED_CHARACTERS_PER_TOKEN = 16
_ENDS_IN_A_ROW = 32  # of beginnings: more than the characters of the longest token of a unigram model, which are 16
_FAR_END = 1009  # characters after them
_NEAR_CHARACTERS = 1 << 20  # what stands further away is taken to make no difference

_Item = TypeVar("_Item")


class TokenizedTexts:
    """The unique texts of one corpus: what ``TextWriter`` wrote.

    Files are opened when first used, and a pickled copy opens them again, so that data workers share the pages.

    Args:
        folder: where they stand.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[type[TokenizedTexts], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return len(self._token_offsets) - 1

    def tokens(self, row: int) -> np.ndarray:
        """The token ids of one text: a view on the file."""
        return self._tokens[self._token_offsets[row] : self._token_offsets[row + 1]]

    def string(self, row: int) -> str:
        """One text as it was read, with its prompt, not truncated."""
        return bytes(self._bytes[self._byte_offsets[row] : self._byte_offsets[row + 1]]).decode()

    @cached_property
    def lengths_U(self) -> np.ndarray:
        """Tokens of each text, int64."""
        lengths_U: np.ndarray = np.diff(self._token_offsets)
        return lengths_U

    @cached_property
    def hashes_U(self) -> np.ndarray:
        """64 bits of each text's BLAKE2b, prompt included, int64: equal where two texts are identical.

        Two of ten million different texts share one with a probability of 3e-6.
        """
        return mapped_array(self.folder / "hashes.npy")

    def fingerprint(self, rows: np.ndarray) -> str:
        """Hexadecimal digits of some texts in their order, whatever tokenizer cut them."""
        return hashlib.sha256(self.hashes_U[rows].tobytes()).hexdigest()[:16]

    @property
    def num_truncated(self) -> int:
        """Texts that were longer than the maximal length and were cut there."""
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
    """Tokenizes texts, each different one once, into a folder; a context manager.

    Args:
        folder: must be there.
        tokenizer: adds its special tokens.
        max_length: tokens of a text, special ones included; the rest is cut off.
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
        """The text's row; an identical text has the same."""
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
    """A saved array, memory-mapped, as a plain array: a slice of that costs a fraction of one of a memmap."""
    loaded: np.ndarray = np.load(file, mmap_mode="r")
    return np.asarray(loaded)


def rows_without_tokens(texts: TokenizedTexts) -> np.ndarray:
    """Rows of texts that the tokenizer makes nothing of (only characters that it drops, say)."""
    return np.flatnonzero(texts.lengths_U == 0)


def require_tokens(texts: TokenizedTexts, place: str) -> None:
    """Checks that every text has at least one token.

    Raises:
        DataError: naming the first that has none.
    """
    empty = rows_without_tokens(texts)
    if len(empty):
        raise DataError(
            f"{place}: the tokenizer makes no token of the text {shown(texts.string(int(empty[0])))} "
            f"({len(empty)} such texts). Expected at least one: correct or remove them."
        )


def cache_key(kind: str, content: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """A name for tokenized texts that says all that they depend on.

    Args:
        kind: what is built of them.
        content: fingerprints and options, as JSON has them.
        tokenizer: whose behavior counts, not its name.
        max_length: tokens of a text.
    """
    parts = {
        "format": _FORMAT,
        "content": content,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_length": max_length,
    }
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]}"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return hexadecimal digits that change whenever the tokens of some text may.

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
        with tempfile.TemporaryDirectory() as folder:  # all that a slow tokenizer is stands in the files it saves
            tokenizer.save_pretrained(folder)
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"The files of the tokenizer, by which its cache is found, could not be written to a temporary folder: "
            f"{error.strerror or error}. Set the environment variable TMPDIR to a folder with some free space."
        ) from error
    return digest.hexdigest()


def num_tokens_of_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Return the number of tokens that each text with this prompt begins with, special tokens included."""
    return len(tokenizer(prompt, verbose=False)["input_ids"])


def shown_progress(items: Iterable[_Item], description: str) -> Iterator[_Item]:
    """Passes the items on, with a moving bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    yield from track(items, description, total=None, console=console, transient=True, disable=not console.is_terminal)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> tuple[list[list[int]], int]:
    """Return the token ids of each text, and how many texts were cut.

    A tokenizer reads a text to its end, whatever is kept of it: ten megabytes cost half a minute and two gigabytes. So
    a long text is tokenized up to many different ends near its beginning. Where they all give more tokens than are
    kept, and the same, what follows makes no difference: a unigram model's best path goes through one of so many ends
    in a row and begins as the path to that end does; the merges of BPE and the words of WordPiece are local. Otherwise
    later ends are tried, up to that of the text. Only tokens that depend on what stands a million characters later can
    differ from those of the whole text.
    """
    # Data workers are forked after this and never tokenize. Without an explicit setting, tokenizers before 0.23
    # warns in each of them that it may not run in parallel there.
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
    """The token ids of each text, and whether it has more of them."""
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
