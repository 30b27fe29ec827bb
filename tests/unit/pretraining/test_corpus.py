"""Raw text becomes one stream of tokens: all of it, in order, none that is held out, and read back as it was."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlab.data.split import split_position
from embedlab.errors import ConfigError, DataError
from embedlab.pretraining.corpus import (
    END_OF_TEXT,
    ConsecutiveStarts,
    PackedText,
    SequenceStarts,
    TextSource,
    documents,
    pack_text,
    text_fingerprint,
)

WORDS = ["river", "stone", "Größe", "walk", "under", "λόγος", "the", "of", "blue", "seven", "table", "ask"]


def write_texts(folder: Path, num_texts: int = 60, *, seed: int = 0) -> Path:
    generator = random.Random(seed)
    (folder / "deep").mkdir(parents=True)
    for number in range(num_texts):
        file = folder / ("deep" if number % 2 else "") / f"{number:03}.{('txt', 'md', 'py')[number % 3]}"
        file.write_text(f"{number}\n" + " ".join(generator.choices(WORDS, k=40)), encoding="utf-8")
    return folder


def write_rows(file: Path, num_rows: int = 200) -> Path:
    rows = [{"id": number, "title": f"Title {number}", "body": f"body of {number}"} for number in range(num_rows)]
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def pack(path: Path, cache: Path, *, vocabulary: int = 300) -> PackedText:
    return pack_text([TextSource(path=str(path))], vocabulary=vocabulary, cache_dir=cache)


def test_a_folder_gives_all_its_text_files_and_no_others(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts")
    (folder / "settings.json").write_text("60 {}")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG\x00\xff")
    read = list(documents(TextSource(path=str(folder))))
    assert sorted(int(document.split()[0]) for document in read) == list(range(61))


def test_rows_give_the_text_of_their_columns(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl.gz", 3)
    read = list(documents(TextSource(path=str(file), column=["title", "body"])))
    assert read == [f"Title {number} body of {number}" for number in range(3)]


def test_beside_rows_a_folder_gives_no_other_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl.gz", 3)
    (tmp_path / "README.md").write_text("about the rows")
    assert len(list(documents(TextSource(path=str(tmp_path), column="body")))) == 3


def test_rows_that_training_holds_out_are_left_out(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl.gz")
    source = TextSource(path=str(file), column="body", split_key="title", validation_fraction=0.2, test_fraction=0.1)
    kept = [number for number in range(200) if 0.2 <= split_position(f"Title {number}") < 0.9]
    assert 100 < len(kept) < 180
    assert list(documents(source)) == [f"body of {number}" for number in kept]


def test_modules_that_training_holds_out_are_left_out_of_the_standard_library() -> None:
    whole = len(list(documents(TextSource(path="python-stdlib"))))
    kept = len(list(documents(TextSource(path="python-stdlib", validation_fraction=0.15))))
    assert 0.6 * whole < kept < 0.95 * whole


def test_leaving_out_without_a_key_is_an_error(tmp_path: Path) -> None:
    for path in (write_rows(tmp_path / "rows.jsonl.gz"), write_texts(tmp_path / "texts")):
        with pytest.raises(ConfigError, match="Set split_key"):
            list(documents(TextSource(path=str(path), column="body", validation_fraction=0.1)))


@pytest.mark.parametrize("line", ["x" * 50 + "\n", "x" * 100_000])
def test_a_long_file_is_cut_into_documents_that_are_the_whole_of_it(tmp_path: Path, line: str) -> None:
    text = line * (200_000 // len(line))
    (tmp_path / "long.txt").write_text(text)
    read = list(documents(TextSource(path=str(tmp_path / "long.txt"))))
    assert len(read) > 5 and "".join(read) == text


def test_the_stream_reads_back_as_the_documents(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts")
    packed = pack(folder, tmp_path / "cache")
    tokenizer = packed.tokenizer()
    read = []
    for split in ("train", "validation"):
        decoded = str(tokenizer.decode(packed.tokens(split).astype(np.int64).tolist()))
        assert decoded.startswith(END_OF_TEXT)
        read.append(decoded.split(END_OF_TEXT)[1:])
    expected = list(documents(TextSource(path=str(folder))))
    assert read[1] == expected[::50] and len(read[1]) == 2
    assert read[0] == [document for number, document in enumerate(expected) if number % 50]


def test_a_document_that_spells_out_the_end_of_text_is_not_cut_by_it(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts")
    (folder / "zzz.txt").write_text(f"before {END_OF_TEXT} after")
    packed = pack(folder, tmp_path / "cache")
    num_ends = sum(int((packed.tokens(split) == 0).sum()) for split in ("train", "validation"))
    assert num_ends == 61


def test_the_tokenizer_begins_ends_and_pads_with_one_token_and_adds_none(tmp_path: Path) -> None:
    tokenizer = pack(write_texts(tmp_path / "texts"), tmp_path / "cache").tokenizer()
    assert len(tokenizer) == 300
    assert {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token} == {END_OF_TEXT}
    assert 0 not in tokenizer("blue river")["input_ids"]


def test_the_same_text_gives_the_same_tokens_and_other_text_another_cache(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts")
    first, second = pack(folder, tmp_path / "a"), pack(folder, tmp_path / "b")
    assert np.array_equal(first.tokens("train"), second.tokens("train"))
    assert (first.folder / "tokenizer.json").read_bytes() == (second.folder / "tokenizer.json").read_bytes()
    assert pack(folder, tmp_path / "a").folder == first.folder
    (folder / "000.txt").write_text("changed " * 50)
    assert pack(folder, tmp_path / "a").folder != first.folder


def test_the_fingerprint_is_of_contents_and_options(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl.gz", 3)
    before = text_fingerprint(TextSource(path=str(file), column="body"))
    moved = file.rename(tmp_path / "moved.jsonl.gz")
    assert text_fingerprint(TextSource(path=str(moved), column="body")) == before
    assert text_fingerprint(TextSource(path=str(moved), column="title")) != before


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        (None, "text", "There is no file or folder"),
        (b"\x89PNG\x00\xff", "text", "holds no text in UTF-8 (number of files: 1)"),
        (b'{"text": "a"}\n{"text": ', "text", "rows.jsonl:2 is malformed"),
        (b'{"text": "a"}\n', "body", "rows.jsonl:1 has no column 'body'"),
        (b'{"text": " "}\n', "text", "rows.jsonl:1: the text in column 'text' is empty"),
    ],
)
def test_text_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None, column: str, message: str) -> None:
    file = tmp_path / ("picture.png" if content and b"PNG" in content else "rows.jsonl")
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(documents(TextSource(path=str(file), column=column)))
    assert message in str(error.value)


def test_a_file_that_turns_out_not_to_be_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 5000 + b"\xff")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text at byte 5000"):
        list(documents(TextSource(path=str(tmp_path))))


def test_a_text_too_short_for_the_vocabulary_is_an_error_that_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three")
    with pytest.raises(DataError, match=r"too short for a vocabulary of 1000 tokens: it yields 26\d"):
        pack(tmp_path / "a.txt", tmp_path / "cache", vocabulary=1000)


@pytest.mark.parametrize("vocabulary", [256, 65537])
def test_a_vocabulary_that_cannot_be_is_an_error(tmp_path: Path, vocabulary: int) -> None:
    with pytest.raises(ConfigError, match=f"got {vocabulary}"):
        pack(tmp_path, tmp_path / "cache", vocabulary=vocabulary)


@given(num_tokens=st.integers(40, 400), context=st.integers(2, 16), sequences=st.integers(1, 8), seed=st.integers(0, 9))
def test_every_window_comes_once_an_epoch_and_lies_in_the_stream(
    num_tokens: int, context: int, sequences: int, seed: int
) -> None:
    steps = -(-(num_tokens // context) // sequences)
    starts = np.concatenate([s.numpy() for s in SequenceStarts(num_tokens, context, sequences, steps, seed)])
    assert len(starts) == steps * sequences
    assert starts.min() >= 0 and starts.max() + context < num_tokens
    shift = starts[0] % context
    epoch = starts[: (num_tokens - 1 - shift) // context]
    assert sorted(epoch) == list(range(shift, num_tokens - context, context))


def test_consecutive_starts_are_whole_batches_in_order() -> None:
    starts = ConsecutiveStarts(101, 10, 4)
    assert [batch.tolist() for batch in starts] == [[0, 10, 20, 30], [40, 50, 60, 70]]
    assert len(starts) == 2


def test_of_less_than_a_batch_all_is_validated_on() -> None:
    assert [batch.tolist() for batch in ConsecutiveStarts(31, 10, 4)] == [[0, 10, 20]]
