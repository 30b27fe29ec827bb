"""Derives the cost of a model at any text length from passes over texts of a few lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from embedlab.flops import FlopProfile, FlopsByLength, WeightsByPass
from embedlab.flops.lengths import costs_by_length, fitted
from embedlab.flops.observer import Observer, Trace
from embedlab.method import embedding_parameters, unembedding_parameters

SHORT_LENGTHS = (3, 5, 8)
"""Lengths, in tokens, of the texts whose costs determine a polynomial of degree two."""

_ROLES = ("backbone", "added", "embeddings", "head")
_KNOWN_ATTENTION = ("eager", "sdpa")


def observe(
    model: nn.Module,
    backbone_parameters: Collection[nn.Parameter],
    *,
    max_length: int,
    during_longest: AbstractContextManager[Any] | None = None,
) -> FlopProfile:
    """Return the cost of a backbone that a method has prepared, on any device including the meta device.

    Args:
        model: Prepared model, in the mode and precision that it trains in. It is called with ``input_ids`` and
            ``attention_mask``.
        backbone_parameters: Parameters of the backbone before the method prepared it. All other parameters count as
            added by the method.
        max_length: Number of tokens of the longest text. The profile is verified at this length.
        during_longest: Context manager to enter for the forward pass over the longest text.

    Raises:
        PluginError: If a layer computes in a way that cannot be observed. The message names the layer.
    """
    roles = _roles(model, set(backbone_parameters))
    max_length = max(max_length, 1 + SHORT_LENGTHS[-1])  # the check needs a length that the fit does not use
    traced = cache(partial(_trace, model, roles))
    with visible_attention(model):
        shortest = traced(SHORT_LENGTHS[0])
        with during_longest or nullcontext():
            longest = traced(max_length)
        traces = {SHORT_LENGTHS[0]: shortest, max_length: longest}
        if _is_plain(traces):  # two lengths that agree make further ones unnecessary
            return _profile(model, roles, _extrapolated(traces))
        traces |= {length: traced(length) for length in SHORT_LENGTHS[1:]}
        found = _profile(model, roles, traces, two_texts=_trace(model, roles, SHORT_LENGTHS[0], num_texts=2))
        expected = _total(longest)
        if abs(found.algorithmic(_one(max_length)) - expected) <= 0.001 * expected:
            return found
        costs = costs_by_length(lambda length: _total(traced(length)), max_length)
    return _measured(found, longest, max_length, costs)


def _is_plain(traces: Mapping[int, Trace]) -> bool:
    """Return whether weights cost in proportion to the text length, attention to its square, and nothing else costs.

    Args:
        traces: Traces of two texts by their length in tokens, the shorter text first.
    """
    (short, first), (long, second) = traces.items()
    return (
        not first.reparametrization
        and first.weights.keys() == second.weights.keys()
        and all(long * flops == short * second.weights[key] for key, flops in first.weights.items())
        and long**2 * first.attention == short**2 * second.attention
    )


def _extrapolated(traces: Mapping[int, Trace]) -> dict[int, Trace]:
    """Return the traces of a plain model at all ``SHORT_LENGTHS``, scaled from the trace at the first of them."""
    first = traces[SHORT_LENGTHS[0]]
    return {
        length: replace(
            first,
            weights={key: flops * length // SHORT_LENGTHS[0] for key, flops in first.weights.items()},
            attention=first.attention * length**2 // SHORT_LENGTHS[0] ** 2,
        )
        for length in SHORT_LENGTHS
    }


@contextmanager
def visible_attention(model: nn.Module) -> Iterator[None]:
    """Run attention through torch's operators inside the context, so that its products can be observed.

    The operators compute the same products as the kernels of other packages, for example of flash-attn.
    """
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
    torch.clear_autocast_cache()  # so that the observer sees which weights the low-precision copies are made of
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
    """Build the profile from the traces of three short texts.

    Args:
        model: Model that was traced.
        roles: Role of each of the model's parameters.
        traces: Trace of one text by its length in tokens, at ``SHORT_LENGTHS`` at least.
        two_texts: Trace of two texts of the shortest length in one call. It separates the cost per text from the cost
            per call in products of weights with each other.
    """
    short = {length: traces[length] for length in SHORT_LENGTHS}
    weights_by_pass: dict[str, dict[str, float]] = defaultdict(dict)
    border, squares = 0.0, 0.0
    for key in {key for trace in short.values() for key in trace.weights}:
        constant, linear, square = fitted({length: trace.weights[key] for length, trace in short.items()})
        weights_by_pass[key[0]][key[1]] = linear // 2 if linear % 2 == 0 else linear / 2
        border, squares = border + constant, squares + square
    constant, linear, square = fitted({length: trace.attention for length, trace in short.items()})
    once, a_token, _ = fitted({length: trace.reparametrization for length, trace in short.items()})
    if two_texts is not None:  # what each further text adds, for example a weight computed anew for every text
        a_text = two_texts.reparametrization - short[SHORT_LENGTHS[0]].reparametrization - a_token * SHORT_LENGTHS[0]
        border, once = border + a_text, once - a_text
    numbers = {parameter: parameter.numel() for parameter in roles}
    for module in model.modules():  # a quantized matrix, packed into bytes, has fewer elements than entries
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


def _measured(found: FlopProfile, longest: Trace, max_length: int, costs: Mapping[int, float]) -> FlopProfile:
    """Build the profile of a model whose cost is not a polynomial of the text length.

    The weights by pass come from the longest text, and the cost per call from the short texts. The rest of the cost is
    kept at each length.

    Args:
        found: Profile that was built from short texts.
        longest: Trace of the longest text.
        max_length: Number of tokens of the longest text.
        costs: FLOPs of one text in a call of its own, by length in tokens.
    """
    weights_by_pass: dict[str, dict[str, float]] = defaultdict(dict)
    for (role, name), flops in longest.weights.items():
        weights_by_pass[role][name] = flops / (2 * max_length)
    weights: dict[str, Any] = {role: WeightsByPass(**weights_by_pass[role]) for role in _ROLES}
    per_call = FlopsByLength(per_call=found.overhead.per_call)
    without = replace(found, **weights, attention=FlopsByLength(), overhead=per_call)
    rest = tuple((length, flops - without.algorithmic(_one(length))) for length, flops in costs.items())
    return replace(without, attention=FlopsByLength(measured=rest))
