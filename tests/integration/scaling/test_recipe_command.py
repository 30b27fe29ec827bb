"""`embedlab recipe` answers from anybody's runs, as one types it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedlab.cli.commands import main
from embedlab.records import FILE, write_record
from helpers.run_records import DEFINITION, record
from helpers.runs import error_of
from helpers.tables import PUBLISHED, TRUTHS, made, needs_shared
from helpers.two_methods import PRICES, true_loss

CHINCHILLA = ["--table", str(PUBLISHED / "chinchilla_epoch" / "svg_extracted_data.csv")]
CHINCHILLA += ["--columns.parameters", "Model Size", "--columns.flops", "Training FLOP"]
GADRE = ["--table", str(PUBLISHED / "gadre" / "gadre_104_runs.csv"), "--columns.parameters", "N"]
GADRE += ["--columns.tokens", "D", "--columns.loss", "loss_c4_val", "--columns.method", "dataset_name"]
GADRE += ["--columns.backbone", "model_name"]
FINE_TUNING = ["--columns.parameters", "size", "--columns.tokens", "columns"]
FINE_TUNING += ["--columns.backbone", "config name", "--columns.family", "config name"]


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main(["recipe", *arguments, "--replicates", "30", "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    runs = made(*TRUTHS[0], noise=0.003)
    rows = zip(runs.parameters_P, runs.tokens_P, runs.loss_P, strict=True)
    lines = ["N,D,loss", *(f"{n},{d},{loss}" for n, d, loss in rows)]
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    return ["--table", str(tmp_path / "runs.csv"), "--columns.parameters", "N", "--columns.tokens", "D"]


def test_a_recipe_is_printed_and_given_as_json(capsys: pytest.CaptureFixture[str], table: list[str]) -> None:
    report = answered(capsys, *table, "--budget", "1e16", "1e18")
    assert [one["budget"] for one in report["recipes"]] == [1e16, 1e18]
    (law,) = report["laws"]
    assert law["law"] in ("Chinchilla", "Rectified"), "the second is the first where pre-training is worth nothing"
    assert law["parameters"]["alpha"]["estimate"] == pytest.approx(0.35, abs=0.1)
    main(["recipe", *table, "--budget", "1e18", "--replicates", "30", "--max-parameters", "5e7"])
    printed = capsys.readouterr().out
    assert "1e+18 FLOPs" in printed and "Configurations ruled out by max_parameters: 1." in printed


@needs_shared
def test_somebody_elses_single_sweep_gives_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    report = answered(capsys, *CHINCHILLA, "--budget", "1e22")
    (law,) = report["laws"]
    assert law["law"] == "Chinchilla" and [held["num_budgets"] for held in law["held_out"]] == [1, 2, 3, 4, 5, 6]
    assert sum(one["weight"] for one in law["tried"]) == pytest.approx(1) and law["error_growth"]["is_measured"]
    assert 1e9 < report["recipes"][0]["configurations"][0]["parameters"] < 2e10


@needs_shared
def test_somebody_elses_datasets_are_compared_like_methods(capsys: pytest.CaptureFixture[str]) -> None:
    report = answered(capsys, *GADRE, "--budget", "1e21")
    assert {law["method"] for law in report["laws"]} == {"c4_original", "rpj", "rw_original"}
    assert sum(report["recipes"][0]["method_probability"].values()) == pytest.approx(1)
    for pair in report["crossovers"]:
        for change in pair["measured"]:
            assert {change["below"], change["above"]} == {pair["below"], pair["above"]}
            assert change["bracket"][0] < change["bracket"][1]


@needs_shared
@pytest.mark.parametrize("name", ["flan", "gigaword", "wmt19"])
def test_somebody_elses_fine_tuning_gives_a_recipe(capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = ["--table", str(PUBLISHED / "rectified_ft" / f"{name}.csv")]
    report = answered(capsys, *table, *FINE_TUNING, "--budget", "1e15")
    assert report["recipes"][0]["configurations"] and report["laws"][0]["runs"] > 400
    assert all(reason == "the run saw no data" for reason in report["left_out"].values())


def test_ten_thousand_records_are_answered_in_a_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = asdict(record())
    budgets, sizes, noise = np.geomspace(1e13, 1e18, 10), np.geomspace(1e6, 1e9, 10), np.random.default_rng(0)
    for number, (method, size, budget, _) in enumerate(product(PRICES, sizes, budgets, range(50))):
        tokens = int(budget / (PRICES[method] * size)) + 1000
        loss = true_loss(method, size, tokens) * np.exp(0.003 * noise.standard_normal())
        counts = {
            "tokens": tokens,
            "pairs": tokens // 80,
            "unique_pairs": tokens // 80,
            "flops_algorithmic": int(budget),
        }
        named = {"run_id": str(number), "backbone": f"{size:.2g}", "nonembedding_parameters": int(size), "loss": loss}
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE).write_text(json.dumps(values | counts | named | {"method": method}))
    start = time.process_time()
    main(["recipe", "--runs", str(tmp_path), "--budget", "1e18", "--replicates", "200"])
    assert time.process_time() - start < 40
    printed = " ".join(capsys.readouterr().out.split())
    assert number == 9_999 and "In the runs, full is better up to" in printed
    by_the_laws = r"By the laws, full is better up to \S+ FLOPs \(80 % interval: \S+ to \S+\), and lora above"
    assert re.search(by_the_laws, printed)


def test_the_device_is_named_or_its_peak_is_stated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, (size, tokens) in enumerate(product(np.geomspace(1e6, 1e8, 4), np.geomspace(1e7, 1e9, 4))):
        loss = float(true_loss("full", size, tokens))
        counts = {"tokens": int(tokens), "pairs": int(tokens) // 80, "unique_pairs": int(tokens) // 80, "loss": loss}
        flops = {"flops_algorithmic": int(6 * size * tokens), "seconds": 6 * size * tokens / 1e12}
        sizes = {"nonembedding_parameters": int(size), "backbone": f"{size:.2g}", "run_id": str(number)}
        write_record(record(peak_flops_per_second=5e12, **counts, **flops, **sizes), tmp_path / str(number))

    def hours(*options: str) -> float:
        report = answered(capsys, "--runs", str(tmp_path), "--budget", "1e17", *options)
        found: float = report["recipes"][0]["configurations"][0]["hours"]
        return found

    assert hours() == pytest.approx(1e17 / 1e12 / 3600)
    assert hours("--device", "50e12") == pytest.approx(hours() / 10)
    assert hours("--device", "NVIDIA L4") == pytest.approx(hours() * 5 / 121)
    options = ["recipe", "--runs", str(tmp_path), "--budget", "1e17", "--device"]
    assert "Did you mean 'NVIDIA L4'?" in error_of(capsys, [*options, "NVIDIA L5"])
    assert "--device is '-1'. Expected FLOP/s" in error_of(capsys, [*options, "-1"])


def test_runs_without_a_loss_are_left_out_and_named(capsys: pytest.CaptureFixture[str], table: list[str]) -> None:
    with Path(table[1]).open("a") as file:
        file.write("\n1e6,2e8,nan\n1e6,4e8,nan\n1e6,,2.5\n")
    main(["recipe", *table, "--budget", "1e16", "--replicates", "10"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Left out: runs.csv:42. Reason: its loss is 'nan' (number of such runs: 2)." in printed
    assert "Left out: runs.csv:44. Reason: its number of tokens is '' (number of such runs: 1)." in printed


def test_a_recipe_from_runs_of_one_size_says_that_it_knows_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [f"1e6,{tokens},{0.5 + 20 / tokens**0.3}" for tokens in np.geomspace(1e7, 1e10, 12)]
    (tmp_path / "runs.csv").write_text("\n".join(["N,D,loss", *rows]))
    options = ["--table", str(tmp_path / "runs.csv"), "--columns.parameters", "N", "--columns.tokens", "D"]
    main(["recipe", *options, "--budget", "1e16", "--replicates", "10"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "the same number of parameters, 1e+06, so the law predicts nothing for other sizes" in printed
    assert (
        "This is the only possible configuration." in printed
        and "if backbones of every size were available" not in printed
    )


def test_runs_that_have_hardly_learned_are_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, (size, tokens) in enumerate(product((10_000, 30_000, 90_000), (100_000, 400_000, 1_600_000))):
        values = {"nonembedding_parameters": size, "tokens": tokens, "flops_algorithmic": 6 * size * tokens}
        loss = 4.3 + 20 / size**0.4 + 70 / tokens**0.4  # of 256 candidates: a guess has 5.545
        write_record(record(number, loss=loss, learning_rate=1e-3, **values), tmp_path / str(number))
    report = answered(capsys, "--runs", str(tmp_path), "--budget", "1e11")
    (law,) = report["laws"]
    assert law["caution"].startswith(
        "2 of 9 runs, of up to 1.8e+10 FLOPs, have losses near the loss of random guessing (5.55)."
    )
    main(["recipe", "--runs", str(tmp_path), "--budget", "1e11", "--replicates", "10"])
    assert "LoRA: 2 of 9 runs" in " ".join(capsys.readouterr().out.split())


def test_a_recipe_is_chosen_by_a_metric(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    metric = "validation/a/ndcg@10"
    for number, (size, tokens) in enumerate(product((10_000, 30_000, 90_000), (100_000, 400_000, 1_600_000))):
        values = {"nonembedding_parameters": size, "tokens": tokens, "flops_algorithmic": 6 * size * tokens}
        values["backbone"] = f"ladder:{size}"
        error = 0.1 + 5 / size**0.4 + 20 / tokens**0.4
        metrics = {metric: 1 - error, "validation/a/loss": 2.0 + number}  # by the loss, the first run is the best
        write_record(record(number, metrics=metrics, learning_rate=1e-3, **values), tmp_path / "runs" / str(number))
    options = ["--runs", str(tmp_path / "runs"), "--budget", "9e11", "--replicates", "10", "--metric", metric]
    report = answered(capsys, *options)
    (best, *_) = report["recipes"][0]["configurations"]
    expected = 0.1 + 5 / 9e4**0.4 + 20 / (9e11 / 6 / 9e4) ** 0.4
    assert report["loss"] == f"1 - {metric}" and best["loss"] == pytest.approx(expected, rel=0.02)
    main(["recipe", *options])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"All losses are 1 - {metric}.")
    assert "--metric is for --runs" in error_of(capsys, ["recipe", "--table", "a", "--metric", "b", "--budget", "1e9"])


def test_records_whose_losses_cannot_be_compared_give_no_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_record(record(0), tmp_path / "0")
    write_record(record(1, loss_definition=replace(DEFINITION, temperature=0.02)), tmp_path / "1")
    printed = error_of(capsys, ["recipe", "--runs", str(tmp_path), "--budget", "1e11"])
    assert "temperature 0.05 and 0.02" in printed and "Fit each group of runs separately" in printed


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ("few", "has 4 parameters (E, B, D_0, beta), so a fit needs at least 5 runs, got 3"),
        ("budget", "All 5 runs have about the same budget"),
        ("data", "All 5 runs have the same amount of data"),
    ],
)
def test_runs_that_give_no_law_are_told_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kept: str, named: str
) -> None:
    sizes = np.geomspace(1e6, 1e8, 5)
    tokens = {"few": np.geomspace(1e8, 1e10, 5), "budget": 1e16 / sizes, "data": np.full(5, 1e9)}[kept]
    sizes = np.full(5, 1e6) if kept == "few" else sizes
    losses = 1.8 + 480 / sizes**0.35 + 2100 / tokens**0.37
    rows = list(zip(sizes, tokens, losses, strict=True))[: 3 if kept == "few" else 5]
    (tmp_path / "runs.csv").write_text("\n".join(["N,D,loss", *(f"{n},{d},{loss}" for n, d, loss in rows)]))
    options = ["--table", str(tmp_path / "runs.csv"), "--columns.parameters", "N", "--columns.tokens", "D"]
    assert named in error_of(capsys, ["recipe", *options, "--budget", "1e16"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budget", "1e17"], "Expected either --runs or --table"),
        (["--runs", "./nowhere", "--budget", "1e17"], "no folder nowhere"),
        (["--runs", ".", "--table", "x.csv", "--budget", "1"], "Expected either --runs or --table"),
        (["--table", "nowhere.csv", "--columns.tokens", "D", "--budget", "1"], "cannot be read as a table"),
        (["--runs", "."], "budget"),
        (["--runs", ".", "--budget", "much"], "much"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert named in error_of(capsys, ["recipe", *arguments])
