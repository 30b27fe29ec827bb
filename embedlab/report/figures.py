"""Builds the figures of a report from runs and the laws that were fitted to the runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from embedlab.report.curves import budgets_of, frontier
from embedlab.report.figure import Axis, Figure, Kind, Series
from embedlab.scaling.bootstrap import quantiles
from embedlab.scaling.crossover import crossovers
from embedlab.scaling.isoflop import isoflop_profiles
from embedlab.scaling.method_laws import MethodLaw
from embedlab.scaling.observations import Observation, runs_of
from embedlab.scaling.optimum import best_sizes, has_best_size
from embedlab.scaling.recipe import suite_of

BUDGET = Axis("training budget, FLOPs")
SIZE = Axis("parameters N")
TOKENS = Axis("training tokens D")
LOSS = Axis("held-out loss")

_MOST_POINTS = 1500  # maximum number of points of a method in a figure, because more points would overlap
_MOST_PROFILES = 8
_NO_LAW = "No method has a law, so there is nothing to draw. The section “Laws” gives the reasons."
_SYMBOLS = ("circle", "square", "triangle-up")
_MOST_HOLD_OUTS = len(_SYMBOLS)


def figures(runs: Mapping[str, Sequence[Observation]], laws: Sequence[MethodLaw]) -> list[Figure]:
    """Return all figures of a report, in the order of the page.

    Args:
        runs: Runs that laws may be fitted to, by the name of the method.
        laws: Laws of the methods; methods without a law are missing.
    """
    color = {method: number for number, method in enumerate(runs)}
    by_method = {law.method: law for law in laws}
    found = [_frontier(laws, color), *_best(laws, color)]
    for method, rows in runs.items():
        found.append(_profiles(method, rows, by_method.get(method), color[method]))
    return [*found, _held_out(laws, color)]


def _some(rows: Sequence[Observation]) -> list[Observation]:
    if len(rows) <= _MOST_POINTS:
        return list(rows)
    return [rows[int(number)] for number in np.linspace(0, len(rows) - 1, _MOST_POINTS)]


def _frontier(laws: Sequence[MethodLaw], color: Mapping[str, int]) -> Figure:
    lines: list[Series] = []
    behind: list[Series] = []
    words: list[str] = []
    if laws:
        flops_G = budgets_of(laws)
        sizes_C = np.array([size for _, size in suite_of(laws)])
        for law in laws:
            number = color[law.method]
            estimate_G, log_RG = frontier(law, sizes_C, flops_G)
            known_G = np.isfinite(estimate_G)
            x = flops_G[known_G]
            low_G, high_G = np.exp(quantiles(log_RG[:, known_G], 0.8))
            rows = _some(law.observations)
            behind.append(
                Series(
                    label=law.method,
                    kind=Kind.POINTS,
                    x=[row.flops for row in rows],
                    y=[row.loss for row in rows],
                    color=number,
                    strength=0.35,
                    texts=[row.name for row in rows],
                )
            )
            behind.append(
                Series(label=law.method, kind=Kind.BAND, x=x, low=low_G, high=high_G, color=number, strength=0.2)
            )
            lines.append(Series(label=law.method, kind=Kind.LINE, x=x, y=np.exp(estimate_G[known_G]), color=number))
        told = [one for one in crossovers(laws) if one.is_told(len(laws))]
        words += [one.words for one in told]
        for place, found in enumerate(one for one in told if one.exists):
            (low, high), (first, last) = found.interval_80, found.looked_at
            lines.append(
                Series(
                    label=f"better below: {found.below}; better above: {found.above}",
                    kind=Kind.SPAN,
                    x=[found.flops],
                    y=[0.04 + 0.05 * place],
                    low=[max(low, first)],
                    high=[min(high, last)],
                    color=color[found.below],
                    above=color[found.above],
                )
            )
        largest = max(law.largest_flops for law in laws)
        behind.append(Series(label="largest run", kind=Kind.UPRIGHT, x=[largest]))
    return Figure(
        key="frontier",
        section="frontier",
        title="Minimum loss of each method",
        note="Lines: predicted minimum loss over the sizes of the backbones. Bands: 80 % intervals, which include the "
        "errors of each law on held-out budgets. Points: runs. Predictions beyond the largest run are extrapolations."
        + "".join(f" {one}" for one in words),
        x=BUDGET,
        y=LOSS,
        series=(*behind, *lines),
        empty=None if laws else _NO_LAW,
    )


def _best(laws: Sequence[MethodLaw], color: Mapping[str, int]) -> list[Figure]:
    """Return the figures of the optimal model size and of the optimal amount of data by budget."""
    of_size: list[Series] = []
    of_data: list[Series] = []
    without: list[str] = []
    for law in laws:
        number = color[law.method]
        flops_G = budgets_of(laws)
        if not has_best_size(law):
            without.append(f"{law.method} (all its runs have one size)")
            continue
        log_G, log_RG = best_sizes(law, flops_G)
        if np.isnan(log_G).all():
            without.append(f"{law.method} (its law has no optimal size within 10 times the sizes of the runs)")
            continue
        sizes_G, sizes_RG = np.exp(log_G), np.exp(log_RG)
        known_G = np.isfinite(log_G)
        low_G, high_G = np.exp(quantiles(log_RG, 0.8))[:, known_G]
        tokens_RG = flops_G / law.token_costs.smooth(sizes_RG)
        fewest_G, most_G = np.exp(quantiles(np.log(tokens_RG), 0.8))[:, known_G]
        x = flops_G[known_G]
        size_G = sizes_G[known_G]
        shown = partial(Series, label=law.method, color=number)
        of_size.append(shown(kind=Kind.BAND, x=x, low=low_G, high=high_G, strength=0.2))
        of_data.append(shown(kind=Kind.BAND, x=x, low=fewest_G, high=most_G, strength=0.2))
        of_size.append(shown(kind=Kind.LINE, x=x, y=size_G))
        of_data.append(shown(kind=Kind.LINE, x=x, y=x / law.token_costs.smooth(size_G)))
        inside = [profile for profile in isoflop_profiles(law.runs) if profile.is_interior]
        if inside:
            x = np.array([profile.flops for profile in inside])
            size_G = np.array([profile.optimal_parameters for profile in inside])
            crosses = partial(shown, kind=Kind.POINTS, x=x, symbol="x", texts=["isoFLOP minimum"] * len(x))
            of_size.append(crosses(y=size_G))
            of_data.append(crosses(y=x / law.token_costs.smooth(size_G)))
    if laws and of_size:
        largest = Series(label="largest run", kind=Kind.UPRIGHT, x=[max(law.largest_flops for law in laws)])
        of_size.insert(0, largest)
        of_data.insert(0, largest)
    note = (
        "Lines: optimum of each law, also at sizes that no backbone has. Bands: 80 % intervals. Crosses: minima of "
        "isoFLOP parabolas."
    )
    if without:
        note += " Not drawn: " + "; ".join(without) + "."
    empty = None
    if not laws:
        empty = _NO_LAW
    elif not of_size:
        empty = "No law has an optimal size: " + "; ".join(without) + "."
    return [
        Figure(key=f"best-{name}", section="best", title=title, note=note, x=BUDGET, y=axis, series=series, empty=empty)
        for name, title, axis, series in (
            ("size", "Optimal model size", SIZE, of_size),
            ("data", "Optimal amount of data", TOKENS, of_data),
        )
    ]


def _profiles(method: str, rows: Sequence[Observation], law: MethodLaw | None, color: int) -> Figure:
    """Return the figure of the loss of a method by model size, with a curve for each budget level.

    Args:
        method: Name of the method.
        rows: Runs of the method.
        law: Law of the method; None if the method has no law.
        color: Number of the method.
    """
    runs = runs_of(rows)
    budgets = [
        budget for budget in np.unique(runs.budget_P) if len(np.unique(runs.parameters_P[runs.budget_P == budget])) > 1
    ]
    shown = budgets
    if len(budgets) > _MOST_PROFILES:
        shown = [budgets[int(number)] for number in np.linspace(0, len(budgets) - 1, _MOST_PROFILES).round()]
    parabolas = {round(float(np.log(profile.flops)), 6): profile for profile in isoflop_profiles(runs)}
    series: list[Series] = []
    for place, budget in enumerate(reversed(shown)):
        mask_P = runs.budget_P == budget
        assert runs.flops_P is not None
        flops = float(np.exp(np.log(runs.flops_P[mask_P]).mean()))
        sizes_P = runs.parameters_P[mask_P]
        label = f"{flops:.2g} FLOPs"
        strength = 0.3 + 0.7 * (place + 1) / len(shown)
        size_C = np.geomspace(sizes_P.min() / 1.3, sizes_P.max() * 1.3, 60)
        if law is not None:
            curve_C = law.fit.loss(size_C, flops / law.token_costs.interpolated(size_C))
            series.append(Series(label=label, kind=Kind.LINE, x=size_C, y=curve_C, color=color, strength=strength))
        parabola = parabolas.get(round(float(np.log(flops)), 6))
        if parabola is not None and parabola.is_interior:
            away_C = np.log(size_C / parabola.optimal_parameters)
            curve_C = parabola.loss * np.exp(parabola.curvature * away_C**2)
            series.append(Series(label=label, kind=Kind.DOTS, x=size_C, y=curve_C, color=color, strength=strength))
        own = _some([row for row, is_of_it in zip(rows, mask_P, strict=True) if is_of_it])
        series.append(
            Series(
                label=label,
                kind=Kind.POINTS,
                x=[row.parameters for row in own],
                y=[row.loss for row in own],
                color=color,
                strength=strength,
                texts=[row.name for row in own],
            )
        )
    note = "Each shade is a budget level; runs differ from their level by a factor of up to 1.4. Solid lines: the law."
    note += " Dotted lines: parabolas fitted to the runs of a level, if the minimum lies between the sizes of the runs."
    if len(shown) < len(budgets):
        note += f" The figure shows {len(shown)} of {len(budgets)} budget levels."
    empty = None
    if not series:
        count = len(np.unique(runs.parameters_P))
        sizes = f"{count} size{'s' if count > 1 else ''}"
        empty = f"No budget level has runs of two sizes: the {len(rows)} runs have {sizes} in total."
    return Figure(
        key=f"isoflop-{color + 1}-{_slug(method)}",
        section="isoflop",
        title=f"isoFLOP profiles: {method}",
        note=note,
        x=SIZE,
        y=LOSS,
        series=series,
        empty=empty,
    )


def _held_out(laws: Sequence[MethodLaw], color: Mapping[str, int]) -> Figure:
    """Return the figure of predicted and measured losses at held-out budget levels."""
    series: list[Series] = []
    without: list[str] = []
    for law in laws:
        runs = law.runs
        budgets = np.unique(runs.budget_P)
        if not law.hold_outs:
            without.append(law.method)
        for held in law.hold_outs[:_MOST_HOLD_OUTS]:
            is_held_out_P = runs.budget_P <= budgets[held.num_budgets - 1]
            measured = runs.loss_P[is_held_out_P]
            names = [row.name for row, is_of_it in zip(law.observations, is_held_out_P, strict=True) if is_of_it]
            count = "largest budget" if held.num_budgets == 1 else f"{held.num_budgets} largest budgets"
            series.append(
                Series(
                    label=f"{law.method}, {count}: error {held.root_mean_square:.2%}",
                    kind=Kind.POINTS,
                    x=measured,
                    y=measured * np.exp(held.errors),
                    color=color[law.method],
                    strength=1 - 0.25 * (held.num_budgets - 1),
                    symbol=_SYMBOLS[held.num_budgets - 1],
                    texts=names,
                )
            )
    empty = None
    if not laws:
        empty = _NO_LAW
    elif not series:
        empty = "No budget level could be held out, because the remaining runs would be too few for a law."
    else:
        ends = [value for one in series for values in (one.x, one.y) for value in values]
        line = [min(ends), max(ends)]
        series.insert(0, Series(label="predicted = measured", kind=Kind.LINE, x=line, y=line))
    note = "Each law was fitted without the largest budgets, then predicted their runs. Points on the line are exact."
    if without and series:
        note += f" Methods with too few budgets to hold any out: {', '.join(without)}."
    return Figure(
        key="hold-out",
        section="hold-out",
        title="Predicted and measured loss at the largest budgets",
        note=note,
        x=Axis("measured loss"),
        y=Axis("predicted loss"),
        series=series,
        empty=empty,
    )


def _slug(name: str) -> str:
    """Return a name for a file, made of letters, digits and hyphens, from any name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "method"
