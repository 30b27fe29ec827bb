"""A path is a file, a folder, a glob, a dataset or the standard library; anything else is a clear error."""

from __future__ import annotations

import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import datasets
import pytest

from embedlab.data.readers import _DatasetRows, open_rows
from embedlab.data.rows import Row
from embedlab.errors import DataError
from helpers.corpora import write_rows


def queries(path: Path | str, **options: str) -> list[object]:
    rows = [row for _, row in open_rows(str(path), **options).rows(["query"])]
    assert all(isinstance(row, dict) for row in rows)
    return [row["query"] for row in rows if isinstance(row, dict)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    (folder / "deep").mkdir(parents=True)
    write_rows(folder / "b.jsonl", [{"query": "b"}])
    write_rows(folder / "a.jsonl.gz", [{"query": "a"}])
    write_rows(folder / "deep" / "c.jsonl", [{"query": "c"}])
    (folder / "README.md").write_text("not data")
    return folder


def test_a_folder_is_its_readable_files_in_order(folder: Path) -> None:
    assert queries(folder) == ["a", "b"]


def test_a_glob_is_the_files_it_matches_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert queries(folder / "*.jsonl") == ["b"]
    assert queries(folder / "**" / "*.jsonl") == ["b", "c"]
    monkeypatch.chdir(folder)
    assert queries("[ab].jsonl*") == ["a", "b"]


def test_a_glob_finds_files_below_a_folder_with_brackets(folder: Path) -> None:
    (folder / "v[1]").mkdir()
    write_rows(folder / "v[1]" / "part[0].jsonl", [{"query": "bracket"}])
    for pattern in ("v[1]/*.jsonl", "v[1]/part[0].js*", "*/part*.jsonl", "v?1]/*.jsonl", "v[1]/part?0].jsonl"):
        assert queries(folder / pattern) == ["bracket"]


@pytest.mark.parametrize("path", ["x" * 5000, "a/**b/*.jsonl", "~nobody-of-that-name/a.jsonl", "a\0b/*.jsonl"])
def test_a_path_that_cannot_be_looked_up_is_an_error(path: str) -> None:
    with pytest.raises(DataError):
        open_rows(path)


def test_a_path_may_begin_with_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert queries("~/b.jsonl") == ["b"]


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not data")
    with pytest.raises(DataError, match=r"holds no file that can be read.*Expected a \.jsonl"):
        open_rows(str(tmp_path))


def test_a_glob_without_a_match_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"No file matches '.*\*\.csv'"):
        open_rows(str(folder / "*.csv"))


def test_a_missing_file_is_an_error_that_says_what_is_there(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_rows(str(folder / "bb.jsonl"))
    assert f"There is no file or folder '{folder / 'bb.jsonl'}'" in str(caught.value)
    assert f"'{folder}' has no 'bb.jsonl'. Did you mean 'b.jsonl'?" in str(caught.value)
    with pytest.raises(DataError) as caught:
        open_rows(str(folder / "deeep" / "x" / "c.jsonl"))
    assert f"'{folder}' has no 'deeep'. Did you mean 'deep'?" in str(caught.value)


def test_a_link_that_leads_nowhere_is_named(folder: Path) -> None:
    (folder / "link.jsonl").symlink_to(folder / "gone.jsonl")
    with pytest.raises(DataError, match=r"'.*link\.jsonl' is a link to '.*gone\.jsonl', which is not there\."):
        open_rows(str(folder / "link.jsonl"))


@pytest.mark.parametrize(("name", "mark"), [("p.csv", ";"), ("p.csv", "\t"), ("p.tsv", ","), ("p.csv", "|")])
def test_a_table_delimited_otherwise_than_it_is_named_is_told_so(tmp_path: Path, name: str, mark: str) -> None:
    path = tmp_path / name
    path.write_text(f"query{mark}positive\na{mark}b\n")
    with pytest.raises(DataError) as caught:
        next(open_rows(str(path)).rows(["query"]))
    assert f"It seems to be delimited by {mark!r}. Expected ',' in a .csv file" in str(caught.value)


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    rows: list[Row] = [{"query": "a", "number": 1}, {"query": "b", "number": 2}]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "dev": saved.select([1])}).save_to_disk(str(tmp_path / "several"))
    assert queries(tmp_path / "one") == ["a", "b"]
    assert queries(tmp_path / "several") == ["a", "b"]
    assert queries(tmp_path / "several", hub_split="dev") == ["b"]
    one = open_rows(str(tmp_path / "one"))
    assert [place for place, _ in one.rows(["query"])] == [f"{tmp_path / 'one'}: row 0", f"{tmp_path / 'one'}: row 1"]
    with pytest.raises(DataError, match=r"has no column 'qery'\. Its columns: 'query', 'number'"):
        next(one.rows(["qery"]))
    with pytest.raises(DataError, match=r"has no split 'test'\. Set hub_split to one of: 'train', 'dev'"):
        open_rows(str(tmp_path / "several"), hub_split="test")


@pytest.mark.parametrize("saved_as", ["numpy", "torch", "pandas", "arrow"])
def test_the_format_of_a_saved_dataset_makes_no_difference(tmp_path: Path, saved_as: str) -> None:
    rows: list[Row] = [{"query": "a", "negatives": ["b", "c"], "id": 1}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.set_format(saved_as, columns=["id"])
    dataset.save_to_disk(str(tmp_path / "saved"))
    read = open_rows(str(tmp_path / "saved")).rows(["query", "negatives", "id"])
    assert [row for _, row in read] == rows


def test_the_fingerprint_of_a_saved_dataset_is_of_its_content(tmp_path: Path) -> None:
    fingerprints = []
    for name, query in (("a", "x"), ("b", "x"), ("c", "y")):
        datasets.Dataset.from_list([{"query": query}]).save_to_disk(str(tmp_path / name))
        fingerprints.append(open_rows(str(tmp_path / name)).fingerprint())
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_broken_saved_dataset_is_an_error(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"query": "a"}]).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="is not a complete saved dataset"):
        open_rows(str(tmp_path / "saved"))


def test_a_dataset_without_rows_is_an_error() -> None:
    rows = _DatasetRows("empty", datasets.Dataset.from_dict({"query": []})).rows(["query"])
    with pytest.raises(DataError, match="Dataset 'empty' has no rows"):
        next(rows)


class NoSuchRepository(BaseHTTPRequestHandler):
    """Answers as the hub does for a repository that is not there, or not for this user."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


def error_of_the_hub(folder: Path, **environment: str) -> str:
    """What a process prints that asks for a hub dataset; in one of its own, because the hub is set at import."""
    program = """
from embedlab.data.readers import open_rows
from embedlab.errors import DataError
try:
    open_rows("somebody/pairs")
except DataError as error:
    print(error)
"""
    begin = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={"HF_HOME": str(folder), "HOME": str(folder), "PATH": "", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - begin < 30
    printed = process.stdout
    assert printed.startswith(f"'somebody/pairs' is no file or folder ('{folder}' has no 'somebody'.)")
    return printed


def test_a_hub_that_cannot_be_reached_is_a_clear_and_quick_error(tmp_path: Path) -> None:
    printed = error_of_the_hub(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")  # where nothing listens
    assert "the Hugging Face hub cannot be reached" in printed
    assert "Give a local path or connect to the network" in printed


def test_a_hub_dataset_that_was_never_downloaded_is_an_error_offline(tmp_path: Path) -> None:
    printed = error_of_the_hub(tmp_path, HF_HUB_OFFLINE="1")
    assert "could not be loaded as a dataset of the Hugging Face hub" in printed
    assert "Unset HF_HUB_OFFLINE to download it." in printed


def test_a_name_that_the_hub_does_not_know_is_an_error(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), NoSuchRepository) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        printed = error_of_the_hub(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "the Hugging Face hub has no dataset of that name that you may read" in printed
    assert "Expected a .jsonl" in printed


@pytest.mark.parametrize("path", ["./pairs", "/nowhere/pairs", "a/b/c", "pairs.jsonl", "data/pairs.csv.gz"])
def test_what_cannot_be_a_hub_id_is_not_looked_for_there(path: str) -> None:
    with pytest.raises(DataError, match="There is no file or folder"):
        open_rows(path)


def test_the_standard_library_has_pairs_with_modules() -> None:
    rows = open_rows("python-stdlib")
    place, row = next(rows.rows(["query"]))
    assert isinstance(row, dict)
    assert place == f"python-stdlib: pair 1 ({row['module']})"
    assert all(isinstance(row[column], str) and row[column] for column in ("query", "positive", "module"))
    assert rows.fingerprint() == open_rows("python-stdlib").fingerprint()
