"""A cache folder is there whole or not at all, built once however many processes want it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedlab.errors import ConfigError, DataError
from embedlab.files import (
    UNFINISHED,
    build_once,
    cache_folder,
    locked_folder,
    remove_unfinished,
    whole_file,
    write_whole,
)


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
from embedlab.files import build_once
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
from embedlab.files import build_once
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
from embedlab.files import build_once
from embedlab.errors import ConfigError, DataError
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


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, "old")
    with pytest.raises(ValueError, match="in the middle"), whole_file(path) as file:
        file.write(b"half")
        raise ValueError("in the middle")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_file_that_is_there_is_kept_on_request(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "first", replace=False)
    with pytest.raises(FileExistsError):
        write_whole(path, "second", replace=False)
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from embedlab.files import write_whole
path = Path(sys.argv[1], "file")
write_whole(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write_whole(path, "x" * 10_000)
except OSError:
    print([entry.name for entry in path.parent.iterdir()], path.read_text())
"""
    printed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert printed.stdout == "['file'] old\n"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"a.123{UNFINISHED}").write_text("half")
    (tmp_path / f"b{UNFINISHED}").mkdir()
    (tmp_path / "c").write_text("whole")
    remove_unfinished(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_a_folder_is_locked_while_a_process_lives(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from embedlab.files import locked_folder
with locked_folder(Path(sys.argv[1]), owner="run"):
    if os.fork() == 0:  # as a data loader's process
        time.sleep(60)
    print("locked", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="Another run is under way"), locked_folder(tmp_path, owner="run"):
            pass
        with locked_folder(tmp_path, owner="search"):
            pass
        process.kill()
        process.wait()
        with locked_folder(tmp_path, owner="run", seconds=5):  # the forked process lives on, and holds nothing
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep", Path("/proc/none")):
        with pytest.raises(ConfigError, match=r"cannot be written.*--output"), locked_folder(folder, owner="run"):
            pass


def test_without_a_home_folder_the_cache_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMBEDLAB_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_: int) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(ConfigError, match="EMBEDLAB_CACHE"):
        cache_folder()
