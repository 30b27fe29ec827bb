"""`embedlab report` shows what anybody's runs say, and in its page answers as `embedlab recipe` does."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedlab.cli.commands import main
from embedlab.errors import ConfigError
from embedlab.report.write import write_report
from embedlab.scaling.bootstrap import Interval
from embedlab.scaling.method_laws import MethodLaw, laws_of
from embedlab.scaling.observations import Observation, by_method
from embedlab.scaling.recipe import Constraints, MeasuredBest, recipe
from embedlab.search.confirmation import Confirmation
from helpers.browser import DESKTOP, PHONE, Browser, chromium, needs_chromium
from helpers.near_chance import CHANCE, runs_near_chance
from helpers.published import COLUMNS
from helpers.run_records import prediction
from helpers.runs import error_of
from helpers.tables import PUBLISHED, needs_shared
from helpers.two_methods import runs

REPLICATES = 40
MARKUP = "</script><img src=x onerror=\"document.title='broken'\"><b>"
OPTIONS = {
    "chinchilla_epoch/svg_extracted_data": "--columns.parameters=Model Size --columns.flops=Training FLOP",
    "gadre/gadre_104_runs": "--columns.parameters=N --columns.tokens=D --columns.loss=loss_c4_val "
    "--columns.method=dataset_name --columns.backbone=model_name",
    **dict.fromkeys(
        ("rectified_ft/flan", "rectified_ft/gigaword", "rectified_ft/wmt19"),
        "--columns.parameters=size --columns.tokens=columns --columns.backbone=config name "
        "--columns.family=config name",
    ),
}


def options_of(table: str) -> list[str]:
    return ["--table", str(PUBLISHED / f"{table}.csv"), *re.split(r" (?=--)", OPTIONS[table])]


def made_runs() -> list[Observation]:
    """Two methods, a name that is markup, and a run that diverged."""
    rows = runs()
    rows[0] = replace(rows[0], name=MARKUP)
    diverged = replace(rows[1], name="gone", loss=float("nan"), left_out="it diverged")
    return [replace(row, backbone=MARKUP) if row.backbone == "medium" else row for row in [*rows, diverged]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder / "made", "made runs", made_runs(), Constraints(), num_replicates=REPLICATES)


@pytest.fixture(scope="module")
def laws() -> list[MethodLaw]:
    return laws_of(by_method(made_runs()), num_replicates=REPLICATES)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def test_the_figures_are_pictures_and_in_tensorboard(page: Path) -> None:
    pictures = sorted((page.parent / "figures").glob("*.png"))
    names = [path.stem for path in pictures]
    assert {"frontier", "best-size", "best-data", "hold-out"} < set(names) and "isoflop-1-full" in names
    for path in pictures:
        grey = Image.open(path).convert("L")
        assert grey.width > 1000 and len(grey.getcolors()) > 20, "something is drawn"
    events = EventAccumulator(str(page.parent / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == names
    (shown,) = events.Images("frontier")
    assert Image.open(io.BytesIO(shown.encoded_image_string)).size == Image.open(pictures[names.index("frontier")]).size


def test_the_page_asks_no_server(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # plotly.js names sites that it links to
    assert not re.findall(r"(?:src|href)=[\"']?https?:", own)
    assert "default-src 'none'" in own and MARKUP not in text


@needs_chromium
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everything_is_drawn_without_a_word_on_the_console(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    browser.open(page, size)
    assert not browser.errors()
    traces = "return [...document.querySelectorAll('figure')].map((one) => one.querySelectorAll('.trace').length)"
    assert len(browser(traces)) == 6 and all(browser(traces))
    assert browser("return document.documentElement.scrollWidth") <= size[0], "no scrolling aside"
    assert browser("return document.title") == "embedlab report: made runs"
    assert browser("return document.images.length") == 0, "a name of a run is no markup"


RECIPE = """
try { return embedlabReport.recipe(embedlabReport.data.recipe, ...arguments); } catch (error) { return error.message; }
"""


def python_s(laws: list[MethodLaw], budget: float, constraints: Constraints) -> Any:
    """The recipe as JSON would have it, or why there is none, in the words of a page."""
    try:
        answer = recipe(laws, budget, constraints)
    except ConfigError as error:
        return str(error).replace("add --extrapolate", "tick the box")
    return json.loads(json.dumps(asdict(answer)))


def assert_same(found: Any, expected: Any) -> None:
    """All words, and all numbers to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9)
    else:
        assert found == expected


@needs_chromium
@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(),
        Constraints(max_parameters=2e7, hours=1e5),
        Constraints(max_memory=1.0, serve_tokens=1e6),
        Constraints(serve_tokens=1e12),
        Constraints(unique_pairs=3e6),
    ],
    ids=["free", "size and hours", "memory and serving", "all spent on serving", "unique pairs"],
)
def test_the_page_answers_as_the_command_does(
    browser: Browser, page: Path, laws: list[MethodLaw], constraints: Constraints
) -> None:
    browser.open(page)
    for budget in (3e13, 7.7e15, 1e18, 9e18, 1e30, -1.5):
        assert_same(browser(RECIPE, budget, vars(constraints), False), python_s(laws, budget, constraints))


@needs_chromium
def test_the_page_compares_with_the_runs_in_the_words_of_the_command(
    browser: Browser, page: Path, laws: list[MethodLaw]
) -> None:
    browser.open(page)
    words = (
        "const found = embedlabReport.recipe(embedlabReport.data.recipe, arguments[0], arguments[1], false).measured;"
        "return found && embedlabReport.measuredWords(found)"
    )
    for budget in np.geomspace(1e13, 9e18, 40).tolist():
        measured = recipe(laws, budget).measured
        assert browser(words, budget, vars(Constraints())) == (measured and measured.words)
    run = {"method": "full", "backbone": "tiny", "flops": 1.02e16, "loss": 0.41239, "num_runs": 7, "noise": 0.004}
    for agrees, loss in ((True, 0.41239), (False, None), (False, 0.413), (False, 0.5)):
        made = MeasuredBest(**run, is_recommended=agrees, recommended_loss=loss)
        assert browser("return embedlabReport.measuredWords(arguments[0])", asdict(made)) == made.words


@needs_chromium
def test_a_typed_budget_changes_the_recipe(browser: Browser, page: Path, laws: list[MethodLaw]) -> None:
    browser.open(page)
    shown = []
    sentence = "return document.querySelector('#answer .sentence').innerText"
    for budget in ("3e13", "3e18"):
        browser(
            "const input = document.querySelector('[name=budget]'); input.value = arguments[0];"
            "input.dispatchEvent(new Event('input', {bubbles: true}))",
            budget,
        )
        expected = f"Predicted loss {recipe(laws, float(budget)).best.loss:.4g}"
        browser.until(lambda expected=expected: expected in browser(sentence))  # type: ignore[misc]
        shown.append(browser(sentence))
    assert shown[0] != shown[1] and "with full on" in shown[0] and "with lora on" in shown[1]


@needs_chromium
def test_records_can_be_found_sorted_and_are_all_there(browser: Browser, page: Path) -> None:
    browser.open(page)
    count = "return document.getElementById('records-count').innerText"
    assert browser(count).startswith("71 of 71 runs, 1 of them left out")
    search = (
        "const input = document.querySelector('[name=text]'); input.value = arguments[0];"
        "input.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    browser(search, "diverged")
    assert browser(count).startswith("1 of 71 runs")
    assert "it diverged" in browser("return document.querySelector('#records-table tbody').innerText")
    browser(search, "")
    losses = "return [...document.querySelectorAll('#records-table tbody tr')].map((row) => row.innerText.split('\\t'))"
    browser("document.querySelector('#records-table th[data-key=loss] button').click()")
    place = browser(
        "return [...document.querySelectorAll('#records-table th')].findIndex((one) => one.dataset.key === 'loss')"
    )
    column = [float(row[place]) for row in browser(losses)]
    assert column == sorted(column) and len(column) > 20


@needs_chromium
@needs_shared
@pytest.mark.parametrize("table", [table for table in COLUMNS if "gigaword" not in table and "wmt19" not in table])
def test_somebody_elses_runs_have_a_report(browser: Browser, tmp_path: Path, table: str) -> None:
    main(["report", *options_of(table), "--output", str(tmp_path / "report"), "--replicates", "10"])
    browser.open(tmp_path / "report" / "report.html")
    assert not browser.errors()
    assert browser("return document.querySelectorAll('figure .main-svg').length") > 4
    assert browser("return document.querySelector('#answer .sentence').innerText").startswith("Train ")


@pytest.mark.parametrize("kept", ["tiny", "budget", "none"])
def test_what_cannot_be_drawn_is_said(tmp_path: Path, kept: str) -> None:
    rows = runs()
    chosen = {
        "tiny": [row for row in rows if row.backbone == "tiny"],
        "budget": [row for row in rows if row.flops < 2e13],
        "none": [replace(row, left_out="it diverged") for row in rows],
    }[kept]
    written = write_report(tmp_path / "report", kept, chosen, Constraints(), num_replicates=10)
    text = written.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    by_key = {figure["key"]: figure for figure in data["figures"]}
    said = {"tiny": "one size", "budget": "about the same budget", "none": "No method has a law"}[kept]
    assert said in json.dumps([data["refused"], [by_key["best-size"]["empty"]]])
    assert len(data["records"]["name"]) == len(chosen)


def test_a_report_is_not_written_over_another(page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("N,D,loss\n1e6,1e9,2.5\n")
    options = ["--table", str(table), "--columns.parameters", "N", "--columns.tokens", "D"]
    assert "report.html exists already" in error_of(capsys, ["report", *options, "--output", str(page.parent)])
    assert "runs.csv is not a folder, so nothing can be written below it" in error_of(
        capsys, ["report", *options, "--output", str(table)]
    )


@needs_chromium
def test_the_page_shows_what_came_of_predictions(browser: Browser, tmp_path: Path) -> None:
    said = prediction(
        budget=4e18, backbone=MARKUP, loss=2.5, interval_80=Interval(2.4, 2.6), interval_95=Interval(2.3, 2.7)
    )
    made = [Confirmation(said, loss, tmp_path) for loss in (2.45, 2.65, 3.0, None)]
    made.append(Confirmation(said, 3.0, tmp_path, 4.0))
    path = write_report(
        tmp_path / "report", "runs", made_runs(), Constraints(), num_replicates=REPLICATES, confirmations=made
    )
    browser.open(path)
    assert not browser.errors()
    rows = browser(
        "return [...document.querySelectorAll('#confirmations tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert [row[1] for row in rows] == 5 * [MARKUP]
    assert [row[7] for row in rows] == ["2.45", "2.65", "3", "–", "3"]
    assert [row[-1] for row in rows] == [
        "within the 80 % interval",
        "within the 95 % interval",
        "outside of both intervals",
        "",
        f"outside of both intervals.{made[-1].caution}",
    ]
    assert "The run saw its pairs 4 times" in made[-1].caution
    assert browser("return document.getElementById('confirmation').hidden") is False


@needs_chromium
def test_runs_that_have_hardly_learned_are_warned_of(browser: Browser, page: Path, tmp_path: Path) -> None:
    guessing = runs_near_chance()
    path = write_report(tmp_path / "report", "runs", guessing, Constraints(), num_replicates=REPLICATES)
    read = "return [...document.querySelectorAll('#banner, #laws-list')].map((one) => one.innerText)"
    browser.open(path)
    assert all("have losses near the loss of random guessing" in text for text in browser(read))
    assert not browser.errors()
    assert f"L = E + ({CHANCE:.4g} − E) h / (1 + h), where h = A / Nα + B / Dβ" in browser(
        "return document.querySelector('.formula').innerText"
    )
    laws, _ = laws_of(by_method(guessing), num_replicates=REPLICATES)
    for budget in (1e13, 3e14, 2.5e15):
        assert_same(browser(RECIPE, budget, vars(Constraints()), False), python_s(laws, budget, Constraints()))
    browser.open(page)
    assert not any("guess" in text for text in browser(read))
    assert browser("return document.getElementById('banner').hidden") is True


@needs_chromium
def test_an_interval_that_the_runs_do_not_limit_is_said_in_words(browser: Browser, tmp_path: Path) -> None:
    few = [row for row in runs() if row.method == runs()[0].method and row.flops < 1e15]
    path = write_report(tmp_path / "report", "runs", few, Constraints(), num_replicates=REPLICATES)
    browser.open(path)
    assert not re.search("∞|null|NaN", browser("return document.getElementById('laws-list').innerText"))


@needs_chromium
def test_without_a_prediction_the_page_has_no_place_for_one(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser("return document.getElementById('confirmation').hidden") is True
