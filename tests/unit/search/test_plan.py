"""A plan that cannot be searched is refused with what came and what was expected, and two plans are told apart."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedlab.errors import ConfigError
from embedlab.search.calibration import Calibration
from embedlab.search.plan import ONLY_AT_THE_END, SearchPlan, changes
from embedlab.search.space import MethodGrid

POLICY = {"class_path": "IsoFlopGrid"}
AT_THE_END = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": None, "val_check_interval": ONLY_AT_THE_END}


def plan(**values: Any) -> SearchPlan:
    common: dict[str, Any] = {"suite": ["a", "b"], "methods": ["LoRA"], "budgets": [1e9, 4e9], "fit": {}}
    return SearchPlan(**common | values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"suite": []}, "suite is []. A search compares model sizes, so it needs at least two backbones"),
        ({"suite": ["a"]}, "suite is ['a']. A search compares model sizes"),
        ({"suite": ["a", "b", "a"]}, "suite is ['a', 'b', 'a']."),
        ({"methods": []}, "methods is []. Expected at least one, each once, for example [FullFineTuning, LoRA]."),
        ({"methods": ["LoRA", "LoRA"]}, "methods is ['LoRA', 'LoRA']. Expected at least one, each once"),
        ({"budgets": []}, "budgets is []. Expected at least one, each once, for example [1e12, 4e12, 1.6e13]."),
        ({"budgets": [1e9, 1e9]}, "budgets is [1000000000.0, 1000000000.0]. Expected at least one, each once"),
        ({"budgets": [1e9, 0.0]}, "budgets contains 0.0. Expected finite numbers of FLOPs above 0."),
        ({"budgets": [-1e9]}, "budgets contains -1000000000.0. Expected finite numbers"),
        ({"budgets": [math.inf]}, "budgets contains inf. Expected finite numbers"),
        ({"budgets": [math.nan]}, "budgets contains nan. Expected finite numbers"),
        ({"total_flops": 0.0}, "total_flops contains 0.0. Expected finite numbers of FLOPs above 0."),
        ({"seeds": []}, "seeds is []. Expected at least one, each once, for example [0, 1]."),
        ({"seeds": [3, 3]}, "seeds is [3, 3]. Expected at least one, each once, for example [0, 1]."),
        ({"min_steps": 0}, "min_steps must be at least 1 step, got 0."),
        (
            {"methods": ["LoRA", MethodGrid(method="LoRA", learning_rates=[1e-3])]},
            "methods contains LoRA with the options {} more than once. Name it once.",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        plan(**values)


def test_methods_may_be_names_or_grids() -> None:
    grid = MethodGrid(method="LoRA", options={"rank": [2, 4]})
    assert plan(methods=["FullFineTuning", grid]).grids == [MethodGrid(method="FullFineTuning"), grid]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"output": "runs/mine"}, "output"),
        ({"budget": 1e9}, "budget"),
        ({"ckpt_path": "last"}, "ckpt_path"),
        ({"seed_everything": 0}, "seed_everything"),
        ({"model": {"backbone": {"path": "a"}}}, "model.backbone.path"),
        ({"model": {"method": "LoRA"}}, "model.method"),
        ({"model": {"optimizer": {"learning_rate": 1e-3}}}, "model.optimizer.learning_rate"),
        ({"trainer": {"max_steps": 10}}, "trainer.max_steps"),
    ],
)
def test_what_the_search_decides_is_refused_inline_and_left_out_of_a_file(
    tmp_path: Path, said: dict[str, Any], name: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"fit sets {re.escape(name)}, but the search sets this for each run\. Leave"
    ):
        plan(fit=said).fit_config()
    file = tmp_path / "fit.yaml"
    merged = {"model": {}, "trainer": {"max_epochs": 3}} | said
    file.write_text(yaml.safe_dump(merged))
    config = plan(fit=str(file)).fit_config()
    first, _, rest = name.partition(".")
    assert first not in config or rest.rpartition(".")[2] not in str(config[first])
    assert "max_steps" in str(said) or config["trainer"] == {"max_epochs": 3} | AT_THE_END, "the rest is as it was"


@pytest.mark.parametrize("rates", [[0.0], [-1.0], [math.nan], [math.inf], [1e-3, 1e-3]])
def test_learning_rates_that_cannot_be_trained_with_are_refused(rates: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"learning_rates of LoRA is \[.*\]\. Expected numbers above 0, each once"):
        MethodGrid(method="LoRA", learning_rates=rates)


def test_all_that_a_file_says_and_the_search_decides_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"fit sets output, model\.method, but"):
        plan(fit={"output": "a", "model": {"method": "LoRA"}}).fit_config()


def test_what_is_null_is_not_said() -> None:
    config = {"output": None, "model": None, "trainer": {"max_steps": None}}
    assert plan(fit=config).fit_config() == config | {"trainer": {"max_steps": None} | AT_THE_END}


@pytest.mark.parametrize("said", [{"check_val_every_n_epoch": 1}, {"val_check_interval": 0.5}])
def test_runs_are_evaluated_at_their_end_unless_the_configuration_says_how_often(said: dict[str, Any]) -> None:
    for trainer in (None, {}, {"max_epochs": 2}):
        assert plan(fit={"trainer": trainer}).fit_config() == {"trainer": (trainer or {}) | AT_THE_END}
    assert plan(fit={"trainer": said}).fit_config() == {"trainer": said | {"num_sanity_val_steps": 0}}
    sanity = {"num_sanity_val_steps": 2}
    assert plan(fit={"trainer": sanity}).fit_config() == {"trainer": AT_THE_END | sanity}
    assert plan(fit={"trainer": "none"}).fit_config() == {"trainer": "none"}, "embedlab fit refuses that"


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit: .*none\.yaml cannot be read as a configuration: .*No such file"):
        plan(fit=str(tmp_path / "none.yaml")).fit_config()
    broken = tmp_path / "broken.yaml"
    broken.write_text("trainer: [")
    with pytest.raises(ConfigError, match=r"fit: .*broken\.yaml cannot be read as a configuration"):
        plan(fit=str(broken)).fit_config()
    broken.write_bytes(b"\xff\xfe\x00\x01 no text")
    with pytest.raises(ConfigError, match=r"fit: .*broken\.yaml cannot be read as a configuration"):
        plan(fit=str(broken)).fit_config()
    broken.write_text("- a\n- list\n")
    with pytest.raises(ConfigError, match=r"fit is \['a', 'list'\]\. Expected a configuration of `embedlab fit`"):
        plan(fit=str(broken)).fit_config()


def test_the_same_plan_has_no_changes_however_it_is_written(tmp_path: Path) -> None:
    config = {"trainer": {"max_epochs": 2}, "data": {"batch_size": 4}}
    file = tmp_path / "fit.yaml"
    file.write_text(yaml.safe_dump(config | {"output": "elsewhere"}))
    inline = plan(fit=config, methods=["LoRA"]).fixed(POLICY)
    written = plan(fit=str(file), methods=[MethodGrid(method="LoRA")]).fixed(POLICY)
    assert changes(inline, written) == []


def test_whether_checkpoints_are_kept_may_change() -> None:
    assert changes(plan().fixed(POLICY), plan(keep_checkpoints=False).fixed(POLICY)) == []


def test_each_change_is_told_by_its_name_before_and_after() -> None:
    before = plan(fit={"data": {"batch_size": 4}, "trainer": {"max_epochs": 2}})
    now = plan(
        fit={"data": {"batch_size": 8, "max_length": 32}},
        budgets=[1e9],
        seeds=[0, 1],
        calibration=Calibration(factor=2.0),
    )
    assert changes(before.fixed(POLICY), now.fixed({"class_path": "RisingBudgets"})) == [
        "budgets: [1000000000.0, 4000000000.0] became [1000000000.0]",
        "calibration.factor: 3.0 became 2.0",
        "fit.data.batch_size: 4 became 8",
        "fit.data.max_length: (not set) became 32",
        "fit.trainer.max_epochs: 2 became (not set)",
        "policy.class_path: IsoFlopGrid became RisingBudgets",
        "seeds: [0] became [0, 1]",
    ]
