"""A cache folder is there whole or not at all, built once however many processes want it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedlab.data.cache import build_once, cache_folder
from embedlab.errors import DataError


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("EMBEDLAB_CACHE")
    assert cache_folder() == tmp_path / "shared" / "embedlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "embedlab"


def test_a_folder_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    builds: list[Path] = []
    for _ in range(2):
        folder = build_once(tmp_path / "deep" / "folder", builds.append)
    assert folder.is_dir()
    assert len(builds) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        build_once(tmp_path / "folder", build)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from embedlab.data.cache import build_once
def build(folder):
    with Path(sys.argv[1], "builds").open("a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    (folder / "content").write_text("whole")
print((build_once(Path(sys.argv[1], "folder"), build) / "content").read_text())
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["whole\n", "whole\n"]
    assert (tmp_path / "builds").read_text() == "built\n"


def test_what_a_killed_build_left_is_replaced(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from embedlab.data.cache import build_once
def build(folder):
    (folder / "half").write_text("half")
    time.sleep(60)
build_once(Path(sys.argv[1], "folder"), build)
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    while not (tmp_path / "folder.partial" / "half").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    folder = build_once(tmp_path / "folder", lambda partial: None)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "folder.partial").exists()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk: both fail in the middle of a write.
    program = """
import resource, sys
from pathlib import Path
from embedlab.data.cache import build_once
from embedlab.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    build_once(Path(sys.argv[1], "folder"), lambda folder: (folder / "big").write_bytes(bytes(10_000)))
except DataError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"'{tmp_path / 'folder'}' could not be written: File too large." in printed
    assert "$EMBEDLAB_CACHE" in printed
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_cache_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=r"could not be written.*data\.cache"):
        build_once(tmp_path / "cache" / "folder", lambda folder: None)
