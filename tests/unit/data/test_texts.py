"""Texts are tokenized as the tokenizer does, once each, and found again in another process."""

from __future__ import annotations

import base64
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from embedlab.data.texts import (
    _LONG_CHARACTERS_PER_TOKEN,
    TextWriter,
    TokenizedTexts,
    _tokenize,
    cache_key,
    require_tokens,
    rows_without_tokens,
    tokenizer_fingerprint,
)
from embedlab.errors import DataError
from embedlab.testing.backbones import tiny_tokenizer
from helpers.tokenizers_of_kinds import KINDS, tokenizer_of


class SlowTokenizer(PreTrainedTokenizer):
    """One token a character, without the Rust library."""

    vocab_size = 70_000

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(self.vocab_size) if not 0xD800 <= number < 0xE000}

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        return ()


def word_tokenizer(*, prefix: str = "") -> PreTrainedTokenizerFast:
    """Words of lower-case letters, with a token before and one after each text; drops what is no letter."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<unk>", *"abcdefg"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(".", prefix)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_ends(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def written(
    folder: Path, texts: list[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int = 64
) -> tuple[TokenizedTexts, list[int]]:
    folder.mkdir(parents=True, exist_ok=True)
    with TextWriter(folder, tokenizer, max_length=max_length) as writer:
        rows = [writer.add(text) for text in texts]
    return TokenizedTexts(folder), rows


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), min_size=1, max_size=20))
def test_every_text_has_the_tokens_the_tokenizer_gives_it(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = tiny_tokenizer()
    store, rows = written(tmp_path_factory.mktemp("texts"), texts, tokenizer, max_length=8)
    expected = tokenizer(texts, truncation=True, max_length=8)["input_ids"]
    assert [store.tokens(row).tolist() for row in rows] == expected
    assert [store.string(row) for row in rows] == texts
    assert [int(store.lengths_U[row]) for row in rows] == [len(tokens) for tokens in expected]
    assert len(store) == len(set(texts))
    assert store.num_truncated == sum(len(text) > 8 for text in set(texts))


_PIECES = ["a", "ab", "aab ", " ", "\n", "\t ", "=", "=-", "0", "x.y(", "the ", "lorem ipsum dolor ", "漢", "字か", "ﬃ"]
_PIECES += ["e\u0301", "\u0301", "👩‍👩‍👧", "<|endoftext|>", "</s>", "\u00a0", "\u200b"]
_LENGTHS = st.sampled_from([1, 3, 17, 100, 1500, 4000])
_RUNS = st.tuples(st.sampled_from(_PIECES), _LENGTHS).map(lambda run: run[0] * run[1])
_NOISE = st.binary(min_size=300, max_size=3000).map(lambda noise: base64.b64encode(noise).decode())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(parts=st.lists(_RUNS | _NOISE, min_size=1, max_size=20), max_length=st.sampled_from([4, 8, 16]))
def test_a_long_text_has_the_tokens_that_the_whole_of_it_has(kind: str, parts: list[str], max_length: int) -> None:
    tokenizer = tokenizer_of(kind)
    text = "".join(parts)
    text = (text * (1 + _LONG_CHARACTERS_PER_TOKEN * max_length // len(text)))[:60_000]
    whole = tokenizer(text, verbose=False)["input_ids"]
    short = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    assert _tokenize(tokenizer, ["a", text, "b"], max_length) == (
        [tokenizer("a")["input_ids"], short, tokenizer("b")["input_ids"]],
        int(len(whole) > max_length),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["lorem ipsum dolor " * 200_000, "+/aB3" * 700_000, "\n- " * 1_000_000])
def test_a_text_of_megabytes_costs_what_is_kept_of_it(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    began = time.process_time()
    (tokens,), num_truncated = _tokenize(tokenizer, [text], 32)
    assert time.process_time() - began < 1
    assert (len(tokens), num_truncated) == (32, 1)
    assert tokens[:20] == tokenizer(text[:5000])["input_ids"][:20]


def test_a_text_that_says_little_in_its_beginning_is_read_to_its_end() -> None:
    tokenizer = tokenizer_of("byte-level BPE")
    tokenizer_of_words = word_tokenizer()
    assert _tokenize(tokenizer_of_words, [" " * 50_000 + "a b"], 4) == ([[3, 4]], 0)
    assert _tokenize(tokenizer_of_words, [" " * 50_000 + "a b c d e"], 4) == ([[3, 4, 5, 6]], 1)
    assert _tokenize(tokenizer, [], 4) == ([], 0)


def test_a_tokenizer_that_keeps_the_end_of_a_text_reads_the_whole() -> None:
    tokenizer = word_tokenizer()
    tokenizer.truncation_side = "left"
    assert _tokenize(tokenizer, ["a " * 50_000 + "b c d"], 3) == ([[4, 5, 6]], 1)


def test_a_slow_tokenizer_reads_the_beginning_of_a_long_text() -> None:
    assert _tokenize(SlowTokenizer(), ["ab" * 10_000], 3) == ([[97, 98, 97]], 1)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=3), min_size=1, max_size=20))
def test_rows_and_hashes_are_equal_exactly_for_identical_texts(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, rows = written(tmp_path_factory.mktemp("texts"), texts, tiny_tokenizer())
    same_text = [[left == right for right in texts] for left in texts]
    assert [[left == right for right in rows] for left in rows] == same_text
    hashes = store.hashes_U[rows]
    assert hashes.dtype == np.int64
    assert (hashes[:, None] == hashes[None, :]).tolist() == same_text


def test_hashes_are_the_same_in_another_store(tmp_path: Path) -> None:
    first, (row, _) = written(tmp_path / "a", ["x", "y"], tiny_tokenizer())
    second, (_, other) = written(tmp_path / "b", ["z", "x"], tiny_tokenizer())
    assert first.hashes_U[row] == second.hashes_U[other]


def test_special_tokens_survive_truncation(tmp_path: Path) -> None:
    store, rows = written(tmp_path, ["a b c d", "a b"], with_ends(word_tokenizer()), max_length=4)
    assert [store.tokens(row).tolist() for row in rows] == [[0, 3, 4, 1], [0, 3, 4, 1]]
    assert store.num_truncated == 1


def test_a_slow_tokenizer_and_a_large_vocabulary_work(tmp_path: Path) -> None:
    store, rows = written(tmp_path, ["\U00011111b", "abc", "abcd"], SlowTokenizer(), max_length=3)
    assert [store.tokens(row).tolist() for row in rows] == [[0x11111, 98], [97, 98, 99], [97, 98, 99]]
    assert store.num_truncated == 1


def test_tokens_of_a_small_vocabulary_take_two_bytes(tmp_path: Path) -> None:
    written(tmp_path, ["abc"], tiny_tokenizer())
    assert (tmp_path / "tokens.bin").stat().st_size == 6


def test_many_texts_are_tokenized_in_several_calls(tmp_path: Path) -> None:
    texts = [f"{number} " + "x" * 300_000 for number in range(9)]
    store, rows = written(tmp_path, texts, tiny_tokenizer())
    assert [store.string(row) for row in rows] == texts
    assert [store.tokens(row)[0] for row in rows] == [tiny_tokenizer()(str(n))["input_ids"][0] for n in range(9)]


def test_a_pickled_copy_opens_the_files_again(tmp_path: Path) -> None:
    store, rows = written(tmp_path, ["abc", "de"], tiny_tokenizer())
    assert store.tokens(rows[1]).tolist()
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert copy.tokens(rows[1]).tolist() == store.tokens(rows[1]).tolist()


def test_a_text_without_tokens_is_an_error_that_shows_it(tmp_path: Path) -> None:
    store, _ = written(tmp_path, ["a", " . ", ".."], word_tokenizer())
    assert rows_without_tokens(store).tolist() == [1, 2]
    with pytest.raises(DataError, match=r"pairs\.jsonl: the tokenizer makes no token of the text ' \. ' \(2 such"):
        require_tokens(store, "pairs.jsonl")


def test_the_fingerprint_follows_what_the_tokenizer_does() -> None:
    fingerprint = tokenizer_fingerprint(tiny_tokenizer())
    used = tiny_tokenizer()
    used(["abc"], truncation=True, max_length=2, padding=True)
    assert tokenizer_fingerprint(used) == fingerprint
    left = tiny_tokenizer()
    left.truncation_side = "left"
    assert tokenizer_fingerprint(left) != fingerprint
    assert tokenizer_fingerprint(word_tokenizer()) == tokenizer_fingerprint(word_tokenizer())
    kinds = [word_tokenizer(), word_tokenizer(prefix="a"), with_ends(word_tokenizer()), SlowTokenizer()]
    assert len({tokenizer_fingerprint(kind) for kind in kinds}) == 4
    assert tokenizer_fingerprint(SlowTokenizer()) == tokenizer_fingerprint(SlowTokenizer())


def test_the_cache_key_follows_content_tokenizer_and_length() -> None:
    keys = [
        cache_key("pairs", {"content": "x"}, tiny_tokenizer(), 8),
        cache_key("pairs", {"content": "y"}, tiny_tokenizer(), 8),
        cache_key("pairs", {"content": "x"}, word_tokenizer(), 8),
        cache_key("pairs", {"content": "x"}, tiny_tokenizer(), 9),
        cache_key("texts", {"content": "x"}, tiny_tokenizer(), 8),
    ]
    assert len(set(keys)) == 5
    assert keys[0] == cache_key("pairs", {"content": "x"}, tiny_tokenizer(), 8)
