"""A cache that was damaged in any way gives what it gave before, or is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from embedlab.data.evaluation.sets import RetrievalFiles, StsFile, TextFile
from embedlab.data.sources import PairSource
from embedlab.data.texts import TokenizedTexts
from embedlab.data.tokenized import tokenize_pairs
from embedlab.errors import DataError
from embedlab.files import build_once
from embedlab.pretraining.corpus import TextSource, pack_text
from embedlab.testing.backbones import tiny_tokenizer
from helpers.fuzzing import Fuzz


class Damage(NamedTuple):
    """What is done to one file of a cache, or to all of it."""

    kind: str
    file: int
    other: int
    place: float
    byte: int


KINDS = ("flip", "cut", "append", "empty", "delete", "swap", "copy", "folder", "loop", "dangling", "pipe", "locked")
KINDS += ("delete a folder", "delete all", "file for all", "rename")
DAMAGES = st.builds(
    Damage,
    kind=st.sampled_from(KINDS),
    file=st.integers(0, 30),
    other=st.integers(0, 30),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(1, 255),
)


def apply(damage: Damage, folder: Path) -> None:
    """Damages a folder that ``build_once`` has built."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if damage.kind == "delete all":
        remove(folder)
        if damage.byte % 2:
            folder.mkdir()
    elif damage.kind == "file for all":
        remove(folder)
        folder.write_bytes(bytes([damage.byte]))
    elif damage.kind == "rename" and folder.parent.is_dir():
        built = sorted(path for path in folder.parent.iterdir() if path.is_dir())
        taken = built[damage.other % len(built)]
        if taken != folder:  # another cache under this one's name
            remove(folder)
            shutil.copytree(taken, folder)
    elif files:
        path, other = files[damage.file % len(files)], files[damage.other % len(files)]
        damage_file(damage, path, other)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damage_file(damage: Damage, path: Path, other: Path) -> None:
    content = path.read_bytes()
    position = int(damage.place * len(content))
    if damage.kind == "flip":
        with path.open("r+b") as file:  # in place, as a disk would
            file.seek(position)
            file.write(bytes(byte ^ damage.byte for byte in content[position : position + 1]))
    elif damage.kind == "cut":
        os.truncate(path, position)
    elif damage.kind == "append":
        path.write_bytes(content + bytes([damage.byte]) * (1 + damage.other))
    elif damage.kind == "empty":
        path.write_bytes(b"")
    elif damage.kind == "swap":
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif damage.kind == "copy":
        path.write_bytes(other.read_bytes())
    elif damage.kind == "locked":
        path.chmod(0)
    elif damage.kind == "delete a folder":
        shutil.rmtree(path.parent)
    else:
        path.unlink()
        if damage.kind == "folder":
            path.mkdir()
        elif damage.kind == "loop":
            path.symlink_to(path)
        elif damage.kind == "dangling":
            path.symlink_to("nowhere")
        elif damage.kind == "pipe":
            os.mkfifo(path)


def all_of(texts: TokenizedTexts) -> list[object]:
    rows = range(len(texts))
    return [
        [(texts.tokens(row).tolist(), texts.string(row)) for row in rows],
        texts.hashes_U.tolist(),
        texts.num_truncated,
    ]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Cache:
    """Caches of every kind over small sources, and what opening each gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cache"
        self._sources = folder
        rows = [{"query": f"q{n}", "positive": f"d{n} " + "x" * n, "hard": [f"n{n}"]} for n in range(9)]
        write_rows(folder / "pairs.jsonl", [*rows, {"query": ""}])
        write_rows(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "t", "text": f"text {n}"} for n in range(9)])
        write_rows(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(4)])
        qrels = [{"query-id": f"q{n}", "corpus-id": f"d{2 * n}", "score": n} for n in range(4)]
        write_rows(folder / "qrels.jsonl", qrels)
        sentences = [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": n / 2} for n in range(5)]
        write_rows(folder / "sts.jsonl", sentences)
        (folder / "text.txt").write_text("".join(f"{n} little text of {n % 7} words\n" for n in range(4000)))
        self.kinds: dict[str, Callable[[], object]] = {
            "pairs": self._pairs,
            "retrieval": self._retrieval,
            "sts": self._sts,
            "texts": self._texts,
            "packed": self._packed,
            "rung": self._rung,
        }
        self.whole = {kind: opened() for kind, opened in self.kinds.items()}
        assert len({str(content) for content in self.whole.values()}) == len(self.kinds)
        self.folders = {}
        for kind, opened in self.kinds.items():
            shutil.rmtree(self.folder)
            opened()
            self.folders[kind] = next(path.name for path in self.folder.iterdir() if path.is_dir())
        for opened in self.kinds.values():
            opened()
        self._copy = folder / "copy"
        shutil.copytree(self.folder, self._copy)

    def restore(self, kind: str) -> None:
        """Put one cache back as it was built."""
        remove(self.folder / self.folders[kind])
        shutil.copytree(self._copy / self.folders[kind], self.folder / self.folders[kind])

    def _pairs(self) -> object:
        source = PairSource(path=str(self._sources / "pairs.jsonl"), negatives="hard", on_error="skip")
        store = tokenize_pairs(source, tiny_tokenizer(), max_length=8, cache_dir=self.folder)
        arrays = (store.queries_N, store.positives_N, store.negatives_K, store.negative_offsets)
        return [array.tolist() for array in (*arrays, store.split_positions_N)], store.skipped, all_of(store.texts)

    def _retrieval(self) -> object:
        paths = {name: str(self._sources / f"{name}.jsonl") for name in ("corpus", "queries", "qrels")}
        task = RetrievalFiles(**paths).task(tiny_tokenizer(), max_length=8, cache_dir=self.folder)
        assert task.retrieval is not None
        judged = [part.tolist() for part in task.retrieval.relevance]
        return judged, task.retrieval.query_strings(), task.retrieval.document_strings(), all_of(task.texts)

    def _sts(self) -> object:
        files = StsFile(path=str(self._sources / "sts.jsonl"))
        task = files.task(tiny_tokenizer(), max_length=8, cache_dir=self.folder)
        return task._left_N.tolist(), task._right_N.tolist(), task._scores_N.tolist(), all_of(task.texts)

    def _texts(self) -> object:
        files = TextFile(path=str(self._sources / "queries.jsonl"))
        rows = files.task(tiny_tokenizer(), max_length=8, cache_dir=self.folder)
        return rows.rows_U.tolist(), all_of(rows.texts)

    def _packed(self) -> object:
        source = TextSource(path=str(self._sources / "text.txt"))
        text = pack_text([source], vocabulary=270, cache_dir=self.folder)
        parts = [text.tokens(split).tolist() for split in ("train", "validation")]
        return parts, text.tokenizer().backend_tokenizer.to_str()

    def _rung(self) -> object:
        def build(folder: Path) -> None:
            np.save(folder / "weights.npy", np.arange(1000))
            (folder / "config.json").write_text("{}")

        folder = build_once(self.folder / "rung", build, rebuild=False)
        return np.load(folder / "weights.npy").tolist(), (folder / "config.json").read_text()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("fuzzed"))


INPUTS = st.tuples(
    st.sampled_from(["pairs", "retrieval", "sts", "texts", "packed", "rung"]),
    st.lists(DAMAGES, min_size=1, max_size=3),
    st.booleans(),
)


def test_a_damaged_cache_gives_what_it_gave_or_is_refused(
    fuzz: Fuzz, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_damaged(value: tuple[str, list[Damage], bool]) -> None:
        kind, damages, is_large = value
        monkeypatch.setattr("embedlab.files._LARGE", 64 if is_large else 1 << 24)
        cache.restore(kind)
        if is_large:
            cache.kinds[kind]()  # so that it is known which files are whole
            time.sleep(0.01)  # the clock of a file system ticks every few milliseconds
        for damage in damages:
            apply(damage, cache.folder / cache.folders[kind])
        for _ in range(2):
            try:
                assert cache.kinds[kind]() == cache.whole[kind]
            except DataError as error:
                assert kind == "rung" and str(cache.folder / "rung") in str(error)
                raise

    fuzz(INPUTS, open_damaged, examples=60)
