"""Builds the HTML page of a report, which contains all data, scripts and styles and sends no request to any server."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from embedlab.errors import plain_text
from embedlab.report.figure import Figure, as_dict, colors, compact
from embedlab.report.page_laws import form_of, page_laws
from embedlab.scaling.method_laws import MethodLaw
from embedlab.scaling.observations import Observation
from embedlab.scaling.optimum import optimum_growth
from embedlab.scaling.recipe import Constraints
from embedlab.scaling.tables import UNNAMED
from embedlab.search.confirmation import Confirmation

_LONGEST_TEXT = 1_000_000  # characters, because the numbers of all replicates form one text
_SCRIPTS = ("format.js", "recipe.js", "plots.js", "records.js", "page.js")


def page(
    *,
    source: str,
    observations: Sequence[Observation],
    methods: Sequence[str],
    laws: Sequence[MethodLaw],
    refused: Mapping[str, str],
    figures: Sequence[Figure],
    constraints: Constraints,
    confirmations: Sequence[Confirmation] = (),
) -> str:
    """Return the HTML text of the page.

    Args:
        source: Name of the folder or table that holds the runs, for the reader.
        observations: All runs, including runs that are left out of the fits.
        methods: Names of the methods with runs to fit, in the order of their colors.
        laws: Laws of the methods; methods without a law are missing.
        refused: Reason for each method without a law, by the name of the method.
        figures: Figures to show.
        constraints: Initial constraints of the recipe on the page.
        confirmations: Recipes that were trained, with the predicted and the measured loss.
    """
    data = {
        "source": source,
        "unnamed": UNNAMED,
        "methods": [{"name": name, "color": color} for name, color in zip(methods, colors(len(methods)), strict=True)],
        "figures": [as_dict(figure) for figure in figures],
        "laws": [_law(law) for law in laws],
        "refused": dict(refused),
        "banner": [f"{law.method}: {law.chance_warning}" for law in laws if law.chance_warning],
        "records": _records(observations, laws),
        "recipe": page_laws(laws) if laws else None,
        "constraints": vars(constraints),
        "confirmations": [_confirmation(one) for one in confirmations],
    }
    assets = files("embedlab.report") / "assets"
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return Template((assets / "page.html").read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        title=html.escape(f"embedlab report: {plain_text(source)}"),
        style=(assets / "page.css").read_text(encoding="utf-8"),
        data=_json(_shown(data)),
        plotly=plotly,
        script=script,
    )


def _hash(script: str) -> str:
    """Return the hash of a script for the Content-Security-Policy of the page, which allows no other scripts."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _shown(data: Any) -> Any:
    """Return data with all invisible characters of texts escaped, for example marks that reorder text."""
    if isinstance(data, str):
        return plain_text(data, longest=_LONGEST_TEXT)
    if isinstance(data, Mapping):
        return {_shown(key): _shown(value) for key, value in data.items()}
    if isinstance(data, list | tuple) and not all(isinstance(entry, float) for entry in data):
        return [_shown(entry) for entry in data]
    return data


def _json(data: Any) -> str:
    """Return JSON text that is safe inside an HTML element, whatever names the data contain."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _confirmation(one: Confirmation) -> dict[str, Any]:
    """Return what the page shows of a trained recipe: the prediction, the measured loss and a verdict."""
    measured = compact([float("nan") if one.loss is None else one.loss])[0]
    caution = one.caution and f".{one.caution}"
    return vars(one.prediction) | {"measured": measured, "verdict": "" if measured is None else one.where + caution}


def _law(law: MethodLaw) -> dict[str, Any]:
    """Return what the page shows of a law: parameters with intervals, the fit, and errors on held-out budget levels."""
    fit = law.fit
    bounds = {name: law.replicates.parameter(name) for name in fit.names}
    return {
        "method": law.method,
        "name": fit.law.name,
        **form_of(fit.law),
        "parameters": [
            {"name": name, "value": value, "interval": compact(bounds[name]), "atBound": name in fit.at_bound}
            for name, value in fit.parameters.items()
        ],
        "runs": fit.num_runs,
        "starts": fit.num_starts,
        "startsInBasin": fit.num_in_basin,
        "heldOut": [[held.num_budgets, held.num_runs, held.root_mean_square] for held in law.hold_outs],
        "caution": law.caution,
        "rSquared": law.r_squared,
        "growth": "" if (growth := optimum_growth(law)) is None else growth.words,
        "tried": [[choice.name, *compact([choice.error, choice.weight])] for choice in law.choices],
    }


def _records(observations: Sequence[Observation], laws: Sequence[MethodLaw]) -> dict[str, Any]:
    """Return the table of runs by columns, so that names of columns and repeated names are stored only once."""
    predicted: dict[str, float] = {}
    for law in laws:
        losses = np.exp(law.log_loss(law.runs.configurations))
        predicted |= {row.name: float(loss) for row, loss in zip(law.observations, losses, strict=True)}
    columns: dict[str, Any] = {"name": [row.name for row in observations]}
    for name in ("method", "backbone", "left_out"):
        values = [getattr(row, name) for row in observations]
        known = {value: number for number, value in enumerate(dict.fromkeys(values))}
        columns[name] = {"values": list(known), "of": [known[value] for value in values]}
    for name in ("parameters", "tokens", "flops", "loss", "learning_rate", "pairs", "seconds", "memory_bytes"):
        values = [getattr(row, name) for row in observations]
        columns[name] = compact([float("nan") if value is None else value for value in values])
    columns["predicted"] = compact([predicted.get(row.name, float("nan")) for row in observations])
    return columns
