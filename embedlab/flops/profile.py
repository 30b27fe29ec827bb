"""From what passes over texts of a few lengths showed to what a model costs at any length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from embedlab.flops import FlopProfile, FlopsByLength, WeightsByPass
from embedlab.flops.observer import Observer, Trace
from embedlab.method import embedding_parameters, unembedding_parameters

SHORT_LENGTHS = (3, 5, 8)
"""Tokens of the texts whose costs give a polynomial of the second degree."""

_ROLES = ("backbone", "added", "embeddings", "head")
_KNOWN_ATTENTION = ("eager", "sdpa")


def observe(
    model: nn.Module,
    backbone_parameters: Collection[nn.Parameter],
    *,
    max_length: int,
    during_longest: AbstractContextManager[Any] | None = None,
) -> FlopProfile:
    """The cost of a backbone that a method has prepared, on any device, the meta device too.

    Args:
        model: called with ``input_ids`` and ``attention_mask``; in the mode and precision that it trains in.
        backbone_parameters: those of the backbone before it was prepared; all others are the method's.
        max_length: tokens of the longest text; the cost is checked there.
        during_longest: entered for the pass over it.

    Raises:
        PluginError: if a layer computes in a way that cannot be seen; it is named.
    """
    roles = _roles(model, set(backbone_parameters))
    max_length = max(max_length, 1 + SHORT_LENGTHS[-1])  # not one of those
    with visible_attention(model):
        shortest = _trace(model, roles, SHORT_LENGTHS[0])
        with during_longest or nullcontext():
            longest = _trace(model, roles, max_length)
        traces = {SHORT_LENGTHS[0]: shortest, max_length: longest}
        if _is_plain(traces):  # what two lengths agree on needs no third
            return _profile(model, roles, _extrapolated(traces))
        traces |= {length: _trace(model, roles, length) for length in SHORT_LENGTHS[1:]}
        found = _profile(model, roles, traces, two_texts=_trace(model, roles, SHORT_LENGTHS[0], num_texts=2))
        expected = _total(longest)
        if abs(found.algorithmic(_one(max_length)) - expected) <= 0.001 * expected:
            return found
        traces = {length: _trace(model, roles, length) for length in lengths_between(max_length)}
    return _measured(found, traces)


def _is_plain(traces: Mapping[int, Trace]) -> bool:
    """Whether weights cost in proportion to a text's length, attention to its square, and nothing else costs."""
    (short, first), (long, second) = traces.items()
    return (
        not first.reparametrization
        and first.weights.keys() == second.weights.keys()
        and all(long * flops == short * second.weights[key] for key, flops in first.weights.items())
        and long**2 * first.attention == short**2 * second.attention
    )


def _extrapolated(traces: Mapping[int, Trace]) -> dict[int, Trace]:
    """A plain model's traces at the short lengths, from the first of them."""
    first = traces[SHORT_LENGTHS[0]]
    return {
        length: replace(
            first,
            weights={key: flops * length // SHORT_LENGTHS[0] for key, flops in first.weights.items()},
            attention=first.attention * length**2 // SHORT_LENGTHS[0] ** 2,
        )
        for length in SHORT_LENGTHS
    }


def lengths_between(max_length: int) -> list[int]:
    """Lengths at which a cost that is no polynomial is measured: powers of two, and the longest."""
    return [*(2**power for power in range(1, max_length.bit_length()) if 2**power < max_length), max_length]


def fitted(flops: Mapping[int, int]) -> tuple[float, float, float]:
    """The polynomial through three points: constant, per token and per squared token; whole numbers stay whole."""
    (x0, y0), (x1, y1), (x2, y2) = ((Fraction(length), Fraction(value)) for length, value in flops.items())
    slope = (y1 - y0) / (x1 - x0)
    square = ((y2 - y0) / (x2 - x0) - slope) / (x2 - x1)
    linear = slope - square * (x0 + x1)
    constant = y0 - linear * x0 - square * x0**2
    found = (int(c) if c.denominator == 1 else float(c) for c in (constant, linear, square))
    return tuple(found)  # type: ignore[return-value]


@contextmanager
def visible_attention(model: nn.Module) -> Iterator[None]:
    """Within it attention runs through torch's operators, which do the same products as any package's kernels."""
    changed = []
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation not in _KNOWN_ATTENTION:
            changed.append((module, module.config._attn_implementation))
            module.set_attn_implementation("sdpa" if module._supports_sdpa else "eager")
    try:
        yield
    finally:
        for module, name in changed:
            module.set_attn_implementation(name)


def _roles(model: nn.Module, of_backbone: set[nn.Parameter]) -> dict[nn.Parameter, str]:
    tables, head = embedding_parameters(model), unembedding_parameters(model)
    roles = {}
    for parameter in model.parameters():
        if parameter not in of_backbone:
            roles[parameter] = "added"
        elif parameter in head:
            roles[parameter] = "head"
        else:
            roles[parameter] = "embeddings" if parameter in tables else "backbone"
    return roles


def _trace(model: nn.Module, roles: Mapping[nn.Parameter, str], length: int, num_texts: int = 1) -> Trace:
    tokens_BL = torch.zeros(num_texts, length, dtype=torch.int64, device=next(model.parameters()).device)
    mask_BL = torch.ones_like(tokens_BL)
    observer = Observer(model, roles, [tokens_BL, mask_BL])
    torch.clear_autocast_cache()  # the observer has to see what the low-precision copies of weights are made of
    with torch.random.fork_rng(devices=[]):
        return observer.watch(lambda: model(input_ids=tokens_BL, attention_mask=mask_BL).last_hidden_state)


def _total(trace: Trace) -> int:
    return sum(trace.weights.values()) + trace.attention + trace.reparametrization


def _one(length: int) -> np.ndarray:
    return np.array([length])


def _profile(
    model: nn.Module,
    roles: Mapping[nn.Parameter, str],
    traces: Mapping[int, Trace],
    two_texts: Trace | None = None,
) -> FlopProfile:
    """Of three short texts, and of two texts at once where products of weights with each other cost something."""
    short = {length: traces[length] for length in SHORT_LENGTHS}
    weights_by_pass: dict[str, dict[str, float]] = defaultdict(dict)
    border, squares = 0.0, 0.0
    for key in {key for trace in short.values() for key in trace.weights}:
        constant, linear, square = fitted({length: trace.weights[key] for length, trace in short.items()})
        weights_by_pass[key[0]][key[1]] = linear // 2 if linear % 2 == 0 else linear / 2
        border, squares = border + constant, squares + square
    constant, linear, square = fitted({length: trace.attention for length, trace in short.items()})
    once, a_token, _ = fitted({length: trace.reparametrization for length, trace in short.items()})
    if two_texts is not None:  # what each text of a call adds, a weight that is made anew for every text, say
        a_text = two_texts.reparametrization - short[SHORT_LENGTHS[0]].reparametrization - a_token * SHORT_LENGTHS[0]
        border, once = border + a_text, once - a_text
    numbers = {parameter: parameter.numel() for parameter in roles}
    for module in model.modules():  # packed into bytes, a quantized matrix has fewer elements than entries
        for parameter in module.parameters(recurse=False):
            if not parameter.is_floating_point() and hasattr(module, "in_features"):
                numbers[parameter] = int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
    return FlopProfile(
        parameters=sum(numbers.values()),
        embedding_parameters=sum(n for p, n in numbers.items() if roles[p] in ("embeddings", "head")),
        added_parameters=sum(n for p, n in numbers.items() if roles[p] == "added"),
        trainable_parameters=sum(n for p, n in numbers.items() if p.requires_grad),
        **{role: WeightsByPass(**weights_by_pass[role]) for role in _ROLES},
        elementwise=WeightsByPass(**traces[SHORT_LENGTHS[0]].elementwise),
        attention=FlopsByLength(per_text=constant, per_token=linear, per_squared_token=square),
        overhead=FlopsByLength(per_text=border, per_squared_token=squares, per_token=a_token, per_call=once),
    )


def _measured(found: FlopProfile, traces: Mapping[int, Trace]) -> FlopProfile:
    """A model whose cost is no polynomial: its weights' passes at the longest text, and the rest as measured."""
    longest = max(traces)
    weights_by_pass: dict[str, dict[str, float]] = defaultdict(dict)
    for (role, name), flops in traces[longest].weights.items():
        weights_by_pass[role][name] = flops / (2 * longest)
    weights: dict[str, Any] = {role: WeightsByPass(**weights_by_pass[role]) for role in _ROLES}
    without = replace(found, **weights, attention=FlopsByLength(), overhead=FlopsByLength())
    rest = tuple((length, _total(trace) - without.algorithmic(_one(length))) for length, trace in traces.items())
    return replace(without, attention=FlopsByLength(measured=rest))
