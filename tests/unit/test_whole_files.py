"""A cache folder is there whole or not at all, built once however many processes want it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from embedlab.errors import ConfigError, DataError
from embedlab.files import (
    MANIFEST,
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
    assert [entry.name for entry in folder.iterdir()] == [MANIFEST]
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


def build_two_files(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "small").write_bytes(b"0123456789")
    (folder / "large").write_bytes(b"large" * 1000)


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("deep/small", "large")]


def flip(path: Path) -> None:
    """Change a byte, and hide it: size and time of writing stay as they were."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "garbage": lambda path: path.write_bytes(b"[" * 100_000),
    "gone": Path.unlink,
    "a loop": replace_by_a_loop,
    "a folder": replace_by_a_folder,
    "a pipe": replace_by_a_pipe,
}


@pytest.mark.parametrize("file", ["deep/small", "large", MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_built_again_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: Callable[[Path], object]
) -> None:
    folder = build_once(tmp_path / "folder", build_two_files)
    whole = contents(folder)
    damage(folder / file)
    with pytest.raises(DataError, match=r"folder is damaged: .*Delete the folder"):
        build_once(tmp_path / "folder", build_two_files, rebuild=False)
    build_once(tmp_path / "folder", build_two_files)
    printed = capsys.readouterr().err
    assert f"embedlab: {folder} is damaged (" in printed and Path(file).name in printed
    assert contents(folder) == whole
    build_once(tmp_path / "folder", build_two_files, rebuild=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.lock"]
    assert capsys.readouterr().err == ""


def test_a_folder_that_is_another_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_once(tmp_path / "other", build_two_files)
    for place in ("file", "empty", "renamed", "linked to itself"):
        folder = tmp_path / place
        if place == "file":
            folder.write_text("")
        elif place == "empty":
            folder.mkdir()
        elif place == "renamed":
            (tmp_path / "other").rename(folder)
        else:
            folder.symlink_to(folder)
        build_once(folder, build_two_files)
        assert contents(folder) == [b"0123456789", b"large" * 1000]
    assert capsys.readouterr().err.count("is damaged") == 3  # nothing was lost of the empty one


def test_a_large_file_is_read_again_only_if_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlab.files._LARGE", 1000)
    read: list[str] = []
    digest = hashlib.file_digest

    def noted(file: BinaryIO, name: str) -> object:
        read.append(Path(file.name).name)
        return digest(file, name)

    folder = build_once(tmp_path / "folder", build_two_files)
    monkeypatch.setattr("hashlib.file_digest", noted)
    for _ in range(2):
        build_once(folder, build_two_files, rebuild=False)
    assert read == ["small", "large", "small"]
    shutil.copy(folder / "large", tmp_path / "copy")
    (tmp_path / "copy").replace(folder / "large")
    (folder / "deep" / "small").touch()
    build_once(folder, build_two_files, rebuild=False)
    assert read[3:] == ["small", "large"]
    flip(folder / "large")  # the time of writing is as before: that of change is not
    with pytest.raises(DataError, match="large has other bytes"):
        build_once(folder, build_two_files, rebuild=False)
    (folder / "verified.json").write_text("no JSON")
    with pytest.raises(DataError, match="large has other bytes"):
        build_once(folder, build_two_files, rebuild=False)


def test_a_folder_that_may_only_be_read_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlab.files._LARGE", 1000)
    folder = build_once(tmp_path / "folder", build_two_files)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")  # the tests may run as root, whom no permission stops

    monkeypatch.setattr("embedlab.files.write_whole", refused)
    assert build_once(folder, build_two_files) == folder


def test_a_rebuild_leaves_what_another_process_has_open(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "folder", build_two_files)
    mapped = np.memmap(folder / "large", mode="r")
    flip(folder / "deep" / "small")
    build_once(folder, build_two_files)
    assert mapped.tobytes() == b"large" * 1000


def test_of_processes_that_find_a_damaged_folder_one_rebuilds_it(tmp_path: Path) -> None:
    build_once(tmp_path / "folder", build_two_files)
    (tmp_path / "folder" / "large").unlink()
    program = """
import sys, time
from pathlib import Path
from embedlab.files import build_once
sys.path.insert(0, sys.argv[2])
from test_whole_files import build_two_files, contents
def build(folder):
    time.sleep(0.5)
    build_two_files(folder)
print(contents(build_once(Path(sys.argv[1], "folder"), build))[1] == b"large" * 1000)
"""
    command = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    printed = [process.communicate() for process in processes]
    assert [output for output, _ in printed] == ["True\n"] * 3
    assert sum("is damaged (the folder has no large)" in error for _, error in printed) == 1


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
        with pytest.raises(ConfigError, match="Another run is in progress"), locked_folder(tmp_path, owner="run"):
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
