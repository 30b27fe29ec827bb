"""The commands that plan: they read what runs have left behind and train nothing, so none of them needs torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from embedlab.errors import ConfigError
from embedlab.search.foreign_table import Columns, read_table
from embedlab.search.method_laws import MethodLaw, laws_of
from embedlab.search.observations import Observation, by_method, of_records, with_best_learning_rates
from embedlab.search.recipe import Constraints, Recipe, recipe
from embedlab.search.records import Ledger
from embedlab.search.uncertainty import NUM_REPLICATES

_WIDTH = 150  # where there is no terminal that has one
_MOST_ROWS = 10


def recipe_command(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """`embedlab recipe`: what to train with a budget."""
    _add_runs(parser)
    parser.add_argument("--budget", nargs="+", type=float, required=True, help="FLOPs; several give several recipes.")
    parser.add_class_arguments(Constraints)
    parser.add_argument("--extrapolate", action="store_true", help="Answer beyond 10 times the largest run, too.")
    parser.add_argument("--replicates", type=int, default=NUM_REPLICATES, help="Of the bootstrap.")
    parser.add_argument("--json", action="store_true", help="Print JSON in place of a table.")
    options = parser.instantiate(parser.parse_args(list(arguments)))
    constraints = Constraints(**{name: options[name] for name in Constraints.__dataclass_fields__})
    observations = with_best_learning_rates(_observations(options))
    laws, refused = laws_of(by_method(observations), num_replicates=options.replicates)
    answers = [recipe(laws, budget, constraints, extrapolate=options.extrapolate) for budget in options.budget]
    if options.json:
        report = {
            "laws": [_law_as_dict(law) for law in laws],
            "methods_without_a_law": refused,
            "left_out": {row.name: row.left_out for row in observations if row.left_out},
            "recipes": [asdict(answer) for answer in answers],
        }
        print(json.dumps(report, indent=2))
        return
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    _print_laws(console, laws, refused, observations)
    for answer in answers:
        _print_recipe(console, answer)


def _add_runs(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_argument("--runs", nargs="+", metavar="FOLDER", help="Folders of runs that `embedlab fit` wrote.")
    parser.add_argument("--table", metavar="FILE", help="In their place, a CSV or TSV file of somebody else's runs.")
    parser.add_class_arguments(Columns, "columns")


def _observations(options: Any) -> list[Observation]:
    if (options.runs is None) == (options.table is None):
        raise ConfigError(
            "Say where the runs are: --runs with folders that `embedlab fit` wrote, or --table with a file of others."
        )
    if options.table is not None:
        return read_table(Path(options.table), options.columns)
    return of_records(Ledger([Path(folder) for folder in options.runs]).records())


def _law_as_dict(law: MethodLaw) -> dict[str, Any]:
    fit = law.fit
    return {
        "method": law.method,
        "law": type(fit.law).__name__,
        "runs": fit.num_runs,
        "parameters": {
            name: {"estimate": value, "interval_90": law.replicates.parameter(name)}
            for name, value in fit.parameters.items()
        },
        "starts": fit.num_starts,
        "starts_in_the_best_basin": fit.num_in_basin,
        "at_a_bound": fit.at_bound,
        "largest_flops": law.largest_flops,
        "held_out": [asdict(held) for held in law.choices[0].hold_outs],
        "tried": [{"law": type(choice.law).__name__, "held_out_error": choice.error} for choice in law.choices],
    }


def _print_laws(
    console: Console, laws: Sequence[MethodLaw], refused: dict[str, str], observations: Sequence[Observation]
) -> None:
    table = Table("method", "runs", "law", "parameters, with 90 % intervals", "off by, 1/2/3 budgets held out")
    for law in laws:
        values = []
        for name, value in law.fit.parameters.items():
            low, high = law.replicates.parameter(name)
            weak = " at a bound" if name in law.fit.at_bound else ""
            values.append(f"{name} {value:.3g} [{low:.3g}, {high:.3g}]{weak}")
        errors = " / ".join(f"{error:.2%}" for error in law.held_out_error) or "too few budgets"
        table.add_row(
            law.method, str(law.fit.num_runs), type(law.fit.law).__name__, ", ".join(values).replace("[", "\\["), errors
        )
    console.print(table)
    for law in laws:
        if not law.held_out_error:
            console.print(
                f"{law.method}: no budget could be held out, so its intervals hold the noise of the runs only."
            )
    for method, reason in refused.items():
        console.print(f"{method} is left out. {reason}", highlight=False, markup=False)
    reasons: dict[str, list[str]] = {}
    for row in observations:
        if row.left_out:
            reasons.setdefault(row.left_out, []).append(row.name)
    for reason, names in reasons.items():
        console.print(f"Left out: {names[0]}, {reason} ({len(names)} like it).", highlight=False, markup=False)


def _print_recipe(console: Console, answer: Recipe) -> None:
    best = answer.best
    table = Table("method", "backbone", title=f"{answer.budget:g} FLOPs", title_justify="left")
    for name in ("N", "tokens", "loss", "80 %", "95 %", "best with"):
        table.add_column(name, justify="right")
    optional = {"pairs": "pairs", "epochs": "epochs", "learning rate": "learning_rate", "hours": "hours"}
    shown = {title: name for title, name in optional.items() if getattr(best, name) is not None}
    for title in shown:
        table.add_column(title, justify="right")
    alike = [one for one in answer.configurations if one.cannot_be_told_apart]
    for one in alike[:_MOST_ROWS]:
        cells = [f"{one.parameters:.3g}", f"{one.tokens:.3g}", f"{one.loss:.4g}"]
        cells += [f"{low:.4g} to {high:.4g}" for low, high in (one.interval_80, one.interval_95)]
        cells.append(f"{one.probability_best:.0%}")
        for name in shown.values():
            value = getattr(one, name)
            cells.append("–" if value is None else f"{value:.3g}")
        table.add_row(one.method, one.backbone, *cells)
    console.print(table)
    count = len(alike)
    told = "The first is the only one" if count == 1 else f"These {min(count, _MOST_ROWS)} of {count}"
    if count > 1:
        console.print(f"{told} cannot be told apart from the best, which is the first.", highlight=False)
    else:
        console.print(f"{told} that the runs leave: every other is worse with nine chances in ten.", highlight=False)
    methods = sorted(answer.method_probability.items(), key=lambda item: -item[1])
    if len(methods) > 1:
        console.print("Best method: " + ", ".join(f"{name} {share:.0%}" for name, share in methods), highlight=False)
    if answer.extrapolation > 1:
        console.print(f"The budget is {answer.extrapolation:.3g} times that of the largest run.", highlight=False)
    for reason, number in answer.ruled_out.items():
        console.print(f"Ruled out by {reason.rstrip(',')}: {number}.", highlight=False)
