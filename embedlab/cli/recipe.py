"""The command `embedlab recipe`, which recommends what to train with a compute budget, based on finished runs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from embedlab.cli.console import add_row, console, line, say, track
from embedlab.cli.run_arguments import (
    MOST_FLOPS,
    add_fitting,
    add_runs,
    loss_of,
    observations_of,
    require_budgets,
    require_replicates,
    require_source,
)
from embedlab.errors import ConfigError, plain_text, suggestion
from embedlab.files import cannot_write, require_new, write_whole
from embedlab.flops.data_sheets import DATA_SHEETS
from embedlab.scaling.bootstrap import Interval
from embedlab.scaling.crossover import crossovers
from embedlab.scaling.method_laws import MethodLaw, laws_of
from embedlab.scaling.observations import Observation, by_method, with_best_learning_rates
from embedlab.scaling.optimum import Optimum, optimum, optimum_growth
from embedlab.scaling.recipe import Constraints, Recipe, recipe
from embedlab.scaling.recipe_config import recipe_config
from embedlab.scaling.shared_constant import share_irreducible_loss

_MOST_ROWS = 10
_MOST_REASONS = 20  # reasons for leaving out runs or methods that are printed
_DEVICE = (
    "Device to train on, for the estimate of the hours: its name as the driver reports it, or its peak in FLOP/s. For "
    "a name, the bfloat16 peak of the data sheet is used. Training is assumed to use the same share of the peak as the "
    "runs did on their device. By default, the hours are for the device of the runs."
)


def recipe_command(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Run `embedlab recipe`: fit a law for each method and print a recipe for each budget.

    Args:
        parser: Empty parser, to which the options are added.
        arguments: Words of the command line after the name of the command.

    Raises:
        ConfigError: If an option is invalid, no law can be fitted, or no configuration meets the constraints.
        RecordError: If no run can be used.
    """
    add_runs(parser)
    parser.add_argument(
        "--budget", nargs="+", type=float, required=True, help="Compute budgets in FLOPs; each budget gives a recipe."
    )
    parser.add_class_arguments(Constraints)
    parser.add_argument(
        "--extrapolate", action="store_true", help="Allow budgets above 10 times the FLOPs of the largest run."
    )
    parser.add_argument("--device", metavar="NAME", help=_DEVICE)
    parser.add_argument(
        "--output", metavar="FOLDER", help="Folder to write each recipe to, as a file for `embedlab fit --config`."
    )
    add_fitting(parser)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = parser.instantiate(parser.parse_args(list(arguments)))
    constraints = Constraints(**{name: options[name] for name in Constraints.__dataclass_fields__})
    peak = _require_answerable(options)
    observations = with_best_learning_rates(observations_of(options))
    if options.device is not None and not any(row.utilization for row in observations):
        raise ConfigError(
            f"--device is {plain_text(options.device)}, but no run states which share of its device's peak it used, so "
            "the hours on another device are unknown. Leave --device out."
        )
    laws, refused = laws_of(by_method(observations), num_replicates=options.replicates, track=track)
    if options.share_irreducible_loss:
        laws = share_irreducible_loss(laws, num_replicates=options.replicates)
    answers = [
        recipe(laws, budget, constraints, extrapolate=options.extrapolate, peak=peak) for budget in options.budget
    ]
    optima_of_answers = [[found for law in laws if (found := optimum(law, budget))] for budget in options.budget]
    pairs = crossovers(laws)
    loss = loss_of(options)
    written, notes = _written(Path(options.output), answers, laws, loss) if options.output else ([], [])
    if options.json:
        report = {
            "loss": loss,
            "laws": [_law_as_dict(law) for law in laws],
            "methods_without_a_law": refused,
            "left_out": {row.name: row.left_out for row in observations if row.left_out},
            "crossovers": [asdict(one) for one in pairs],
            "recipes": [
                asdict(answer) | {"optima": [asdict(found) for found in optima]}
                for answer, optima in zip(answers, optima_of_answers, strict=True)
            ],
        }
        print(json.dumps(_with_null_for_infinity(report), indent=2, allow_nan=False))
        for note in notes:
            print(plain_text(note, longest=None), file=sys.stderr)
        return
    screen = console()
    if loss != "loss":
        line(screen, f"All losses are {plain_text(loss)}.")
    _print_laws(screen, laws, refused, observations)
    _print_some(screen, [one.words for one in pairs if one.is_told(len(laws))])
    for answer, optima in zip(answers, optima_of_answers, strict=True):
        _print_recipe(screen, answer, optima)
    for note in notes:
        line(screen, note)
    for path in written:
        say(f"embedlab fit --config {path}")


def _with_null_for_infinity(value: Any) -> Any:
    """Return a value with all infinite and undefined numbers replaced by None, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _with_null_for_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null_for_infinity(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _require_answerable(options: Any) -> float | None:
    """Check the options before any run is read, and return the peak FLOP/s of the named device.

    Args:
        options: Parsed options of the command.

    Returns:
        Peak FLOP/s of the device; None if no device is named.

    Raises:
        ConfigError: If an option is invalid, or an output file exists already.
    """
    require_source(options)
    require_budgets("--budget", options.budget)
    require_replicates(options.replicates)
    if options.output is not None:
        if options.table is not None:
            raise ConfigError(
                "A recipe from a table of runs cannot be written as a configuration, because only runs of `embedlab "
                "fit` save their options. Leave out --output."
            )
        for budget in options.budget:
            require_new(_path(Path(options.output), budget))
    return None if options.device is None else _peak_of(options.device)


def _peak_of(device: str) -> float:
    """Return the peak FLOP/s of a device.

    Args:
        device: Name of a device with a known data sheet, or a number of FLOP/s as text.

    Raises:
        ConfigError: If the text is neither a known name nor a possible number.
    """
    if device in DATA_SHEETS:
        return DATA_SHEETS[device][0]
    try:
        peak = float(device)
    except ValueError:
        peak = math.nan
    if not (math.isfinite(peak) and 1 <= peak <= MOST_FLOPS):
        raise ConfigError(
            f"--device is '{plain_text(device)}'. Expected FLOP/s from 1 to {MOST_FLOPS:g}, or one of "
            f"{', '.join(DATA_SHEETS)}." + suggestion(device, DATA_SHEETS)
        )
    return peak


def _written(
    folder: Path, answers: Sequence[Recipe], laws: Sequence[MethodLaw], loss: str
) -> tuple[list[Path], list[str]]:
    """Write a configuration for each recipe.

    Args:
        folder: Folder for the files.
        answers: Recipes, one per budget.
        laws: Laws that the recipes were computed from.
        loss: What the predicted losses are, in words.

    Returns:
        Paths of the files, and notes for the user about options that are left out.

    Raises:
        ConfigError: If a recipe has no configuration, or a file cannot be written.
        RecordError: If the configuration of a run cannot be read.
    """
    configs = {_path(folder, answer.budget): recipe_config(answer, laws, loss) for answer in answers}
    for path, config in configs.items():
        try:
            write_whole(path, config.text, replace=False)
        except OSError as error:
            raise cannot_write(path, error) from error
    return list(configs), list(dict.fromkeys(one.left_out for one in configs.values() if one.left_out))


def _path(folder: Path, budget: float) -> Path:
    return folder / f"recipe-{budget:g}.yaml"


def _law_as_dict(law: MethodLaw) -> dict[str, Any]:
    fit = law.fit
    return {
        "method": law.method,
        "law": fit.law.name,
        "runs": fit.num_runs,
        "parameters": {
            name: {"estimate": value, "interval_90": law.replicates.parameter(name)}
            for name, value in fit.parameters.items()
        },
        "starts": fit.num_starts,
        "starts_in_the_best_basin": fit.num_in_basin,
        "at_a_bound": fit.at_bound,
        "weakly_identified": law.weakly_identified,
        "objective": fit.objective,
        "huber_delta": fit.huber_delta,
        "r_squared": law.r_squared,
        "optimum_growth": None if (growth := optimum_growth(law)) is None else asdict(growth),
        "largest_flops": law.largest_flops,
        "caution": law.caution,
        "held_out": [
            asdict(held) | {"num_runs": held.num_runs, "root_mean_square": held.root_mean_square, "bias": held.bias}
            for held in law.hold_outs
        ],
        "error_growth": asdict(law.growth),
        "tried": [
            {
                "law": choice.member.law.name,
                "near_best": choice.member.is_near_best,
                "backbone_worths": choice.member.has_worths,
                "weight": choice.weight,
                "shares_irreducible_loss": choice.shares_irreducible_loss,
                "held_out_error": choice.error,
            }
            for choice in law.choices
        ],
    }


def _print_laws(
    screen: Console, laws: Sequence[MethodLaw], refused: dict[str, str], observations: Sequence[Observation]
) -> None:
    table = Table(
        "method",
        "runs",
        "laws and weights",
        "parameters [90 % interval]",
        "R² of log loss",
        "error with 1 / 2 / 3 budgets held out",
    )
    for law in laws:
        values = []
        for name, value in law.fit.parameters.items():
            low, high = law.replicates.parameter(name)
            weak = " at a bound" if name in law.fit.at_bound else ""
            values.append(f"{name} {value:.3g} [{low:.3g}, {high:.3g}]{weak}")
        errors = " / ".join(f"{error:.2%}" for error in law.held_out_error) or "unknown: too few budgets"
        weights = ", ".join(f"{name} {weight:.0%}" for name, weight in law.weights.items())
        first = f"{law.fit.law.name}: " if len(law.weights) > 1 else ""
        of_fit = f"{law.r_squared:.4f}"
        add_row(table, law.method, law.fit.num_runs, weights, first + ", ".join(values), of_fit, errors)
    screen.print(table)
    for law in laws:
        fit = law.fit
        name = plain_text(law.method)
        line(
            screen,
            f"{name}: {fit.num_in_basin} of {fit.num_starts} starting points led to the best fit"
            + "".join(f"; {_weak(parameter, profile)}" for parameter, profile in law.weakly_identified.items())
            + ".",
        )
        shared = law.choices[0]
        if shared.shares_irreducible_loss and np.isfinite(shared.error):
            line(
                screen,
                f"{name}: the mean error on held-out budgets is {shared.error:.2%} with one E for all methods, and "
                f"{law.choices[1].error:.2%} with an E of its own.",
            )
        sizes = {row.parameters for row in law.observations}
        if len(sizes) == 1:
            line(
                screen,
                f"{name}: all runs have the same number of parameters, {min(sizes):.3g}, so the law predicts nothing "
                "for other sizes.",
            )
        if not law.held_out_error:
            line(
                screen,
                f"{name}: no budget could be held out, so the error of the law is not known from these runs. The "
                "intervals assume twice the usual error.",
            )
        if (growth := optimum_growth(law)) is not None:
            line(screen, growth.words)
        if law.caution:
            line(screen, f"{name}: {law.caution}")
    _print_some(screen, [f"{plain_text(method)} is left out. {reason}" for method, reason in refused.items()])
    reasons: dict[str, list[str]] = {}
    for row in observations:
        if row.left_out:
            reasons.setdefault(row.left_out, []).append(row.name)
    _print_some(
        screen,
        [
            f"Left out: {plain_text(names[0])}. Reason: {plain_text(reason)} (number of such runs: {len(names)})."
            for reason, names in reasons.items()
        ],
    )


def _print_some(screen: Console, lines: Sequence[str]) -> None:
    for one in lines[:_MOST_REASONS]:
        line(screen, one)
    if len(lines) > _MOST_REASONS:
        line(screen, f"There are {len(lines) - _MOST_REASONS} more reasons. Add --json to list all of them.")


def _weak(name: str, profile: Interval) -> str:
    """Return a description of a parameter that the runs hardly determine.

    Args:
        name: Name of the parameter.
        profile: 90 % profile likelihood interval of the parameter.
    """
    low = f"above {profile.low:.3g}" if np.isfinite(profile.low) and profile.low > 0 else ""
    high = f"below {profile.high:.3g}" if np.isfinite(profile.high) else ""
    where = " and ".join(part for part in (low, high) if part)
    bounds = f"it is {where} (90 % profile likelihood interval)" if where else "the runs give no bound"
    return f"{name} is weakly identified: {bounds}"


def _print_recipe(screen: Console, answer: Recipe, optima: Sequence[Optimum]) -> None:
    best = answer.best
    table = Table("method", "backbone", title=f"{answer.budget:g} FLOPs", title_justify="left")
    for name in ("N", "tokens", "loss", "80 % interval", "95 % interval", "P(best)"):
        table.add_column(name, justify="right")
    optional = {"pairs": "pairs", "epochs": "epochs", "learning rate": "learning_rate", "hours": "hours"}
    optional |= {"GiB": "memory_bytes"}
    shown = {title: name for title, name in optional.items() if getattr(best, name) is not None}
    for title in shown:
        table.add_column(title, justify="right")
    alike = [one for one in answer.configurations if one.cannot_be_told_apart]
    for one in alike[:_MOST_ROWS]:
        cells = [f"{one.parameters:.3g}", f"{one.tokens:.3g}", f"{one.loss:.4g}"]
        cells += [f"{low:.4g} to {high:.4g}" for low, high in (one.interval_80, one.interval_95)]
        cells.append(f"{one.probability_best:.0%}")
        for title, name in shown.items():
            value = getattr(one, name)
            cells.append("–" if value is None else f"{value / (2**30 if title == 'GiB' else 1):.3g}")
        add_row(table, one.method, one.backbone, *cells)
    screen.print(table)
    count = len(alike)
    if len(answer.configurations) == 1:
        told = "This is the only possible configuration."
    elif count == 1:
        told = (
            "This configuration is clearly the best: every other configuration has a higher loss with a probability of "
            "more than 90 %."
        )
    elif count > _MOST_ROWS:
        told = f"{count} configurations cannot be told apart from the best. The first {_MOST_ROWS} are shown."
    else:
        told = f"These {count} configurations cannot be told apart. The first has the lowest predicted loss."
    line(screen, told)
    if answer.measured is not None:
        line(screen, answer.measured.words)
    for found in optima:
        (fewest, most), (least, largest) = found.tokens_80, found.parameters_80
        (low, high) = found.tokens_per_parameter_80
        line(
            screen,
            f"{plain_text(found.method)}: if backbones of every size were available, the optimum would be "
            f"N = {found.parameters:.3g} ({least:.3g} to {largest:.3g}), D = {found.tokens:.3g} ({fewest:.3g} to "
            f"{most:.3g}), and {found.tokens_per_parameter:.3g} tokens per parameter ({low:.3g} to {high:.3g}; "
            "80 % intervals).",
        )
    methods = sorted(answer.method_probability.items(), key=lambda item: -item[1])
    if len(methods) > 1:
        shares = ", ".join(f"{plain_text(name)} {share:.0%}" for name, share in methods[:_MOST_ROWS])
        line(screen, f"Probability that a method is the best: {shares}.")
    if answer.extrapolation > 1:
        line(screen, f"The budget is {answer.extrapolation:.3g} times the cost of the largest run.")
    for reason, number in answer.ruled_out.items():
        line(screen, f"Configurations ruled out by {reason}: {number}.")
