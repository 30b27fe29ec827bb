"""A folder belongs to one search at a time, and to one plan unless another is accepted."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from embedlab.errors import ConfigError, RecordError
from embedlab.search.folder import SearchFolder

FIXED = {"budgets": [1e9], "fit.data.batch_size": 4}
FIT = {"data": {"batch_size": 4}}


def begun(path: Path) -> SearchFolder:
    """A search that has trained something."""
    folder = SearchFolder(path)
    with folder.locked():
        assert folder.take(FIXED, FIT, accept_changes=False) == []
        folder.bind()
    (folder.trials / "one").mkdir(parents=True)
    return folder


def test_a_second_search_is_kept_out_until_the_first_is_over(tmp_path: Path) -> None:
    with SearchFolder(tmp_path / "search").locked():
        with (
            pytest.raises(
                ConfigError, match=r"Another search is in progress in .*search\. Wait until it ends, stop it"
            ),
            SearchFolder(tmp_path / "search").locked(),
        ):
            pass
        with SearchFolder(tmp_path / "other").locked():
            pass
    with SearchFolder(tmp_path / "search").locked():
        pass


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), SearchFolder(tmp_path).locked():
        raise KeyboardInterrupt
    with SearchFolder(tmp_path).locked():
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "search").write_text("")
    with pytest.raises(ConfigError, match=r"search is a file, but a search needs a folder\. Choose a folder"):
        SearchFolder(tmp_path / "search")


def test_the_same_plan_is_taken_again_and_changes_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert folder.take(dict(FIXED), FIT, accept_changes=False) == []
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert yaml.safe_load(folder.fit.read_text()) == FIT


def test_another_plan_is_refused_with_what_changed(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    other = FIXED | {"budgets": [1e9, 4e9]}
    with pytest.raises(ConfigError, match=r"started with another plan: budgets: \[1000000000\.0\] became .*--accept"):
        folder.take(other, {}, accept_changes=False)
    assert yaml.safe_load(folder.fit.read_text()) == FIT, "nothing is written of a plan that is refused"
    assert folder.take(FIXED, FIT, accept_changes=False) == []


def test_an_accepted_plan_is_the_one_from_then_on(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    other, fit = FIXED | {"fit.data.batch_size": 8}, {"data": {"batch_size": 8}}
    assert folder.take(other, fit, accept_changes=True) == ["fit.data.batch_size: 4 became 8"]
    assert yaml.safe_load(folder.fit.read_text()) == fit
    folder.bind()
    assert folder.take(other, fit, accept_changes=False) == []
    assert (folder.trials / "one").exists(), "what has been trained stays"
    with pytest.raises(ConfigError, match=r"fit\.data\.batch_size: 8 became 4"):
        folder.take(FIXED, FIT, accept_changes=False)


def test_a_plan_that_is_refused_after_it_was_accepted_leaves_the_one_before(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    other, fit = FIXED | {"fit.data.batch_size": 8}, {"data": {"batch_size": 8}}
    folder.take(other, fit, accept_changes=True)  # and then its probes fail
    (folder.probes / "one").mkdir(parents=True)
    assert folder.take(FIXED, FIT, accept_changes=False) == []
    assert yaml.safe_load(folder.fit.read_text()) == FIT and not folder.probes.exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(ConfigError, match=r"contains files that do not belong to a search"),
        SearchFolder(tmp_path).locked(),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"/proc/none/search cannot be written: .*choose another place with --output"),
        SearchFolder(Path("/proc/none/search")).locked(),
    ):
        pass


def test_what_was_measured_under_another_configuration_is_measured_anew(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (folder.probes / "one").mkdir(parents=True)
    folder.take(FIXED | {"budgets": [4e9]}, FIT, accept_changes=True)
    assert (folder.probes / "one").exists(), "a probe does not depend on what else is searched"
    folder.take(FIXED | {"fit.data.batch_size": 8}, {"data": {"batch_size": 8}}, accept_changes=True)
    assert not folder.probes.exists()


def test_before_anything_is_trained_another_plan_needs_no_permission(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    with folder.locked():
        folder.take(FIXED, FIT, accept_changes=False)
        other = FIXED | {"budgets": [2e9]}
        folder.bind()
        assert folder.take(other, FIT, accept_changes=False) == ["budgets: [1000000000.0] became [2000000000.0]"]
        folder.bind()
        assert folder.take(other, FIT, accept_changes=False) == []


@pytest.mark.parametrize("text", ["{", "", "[1]", "3"])
def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    folder = begun(tmp_path)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RecordError, match=r"plan\.json cannot be read as the plan of a search: "):
        folder.take(FIXED, FIT, accept_changes=True)


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    folder = SearchFolder(tmp_path)
    folder.require_room(2**30)
    with pytest.raises(
        ConfigError, match=r"would need 4 GiB, but only 1 GiB are free on the disk of .*\. Free disk space"
    ):
        folder.require_room(2**32)
