"""Reads off what a prepared model costs by watching it run, so that no method and no model declares anything.

A forward pass over a few tokens shows every matrix product, whether an operand is a weight, and which operands need a
gradient: the backward pass has one product of the same size for each of those. Three lengths give the polynomial.

Axes in names: B texts, L tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from embedlab.errors import PluginError
from embedlab.flops import Cost, FlopProfile, Passes
from embedlab.method import embedding_parameters, unembedding_parameters

aten = torch.ops.aten

SHORT_LENGTHS = (3, 5, 8)
"""Tokens of the texts whose costs give a polynomial of the second degree."""

_FUSED_ATTENTION = {
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
}
# Where an operator's operands stand among its arguments, if not first.
_FIRST_OPERAND = {aten.addmm: 1, aten.baddbmm: 1}
_ROLES = ("backbone", "added", "embeddings", "head")
_KNOWN_ATTENTION = ("eager", "sdpa")


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    formula = flop_registry[aten._scaled_dot_product_flash_attention]
    return int(formula(query, key, value, *args, **kwargs))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    formula = flop_registry[aten._scaled_dot_product_flash_attention_backward]
    return int(formula(gradient, query, key, value, *args, **kwargs))


def _grouped(left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * int(left.shape[-2]) * int(left.shape[-1]) * int(right.shape[-1])


ADDED_FORMULAS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._grouped_mm: _grouped,
}
"""What torch's counter leaves out (on CPU, fused attention would be free): a ``custom_mapping`` for it."""
for _formula in ADDED_FORMULAS.values():
    _formula._get_raw = True  # they take tensors, not shapes
_FORMULAS: Mapping[Any, Callable[..., int]] = {**flop_registry, **ADDED_FORMULAS}


class ProductCounter(TorchDispatchMode):
    """Counts the FLOPs of everything that runs within it: ``FlopCounterMode`` without its tables, and faster."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


@dataclass
class _Trace:
    """FLOPs of one forward pass over one text, and of the backward pass that would follow it.

    Attributes:
        weights: of products of activations with weights, by role and pass.
        mixing: of products of activations with each other.
        folding: of products of weights with each other.
        elementwise: parameters that only scale and shift, by pass.
    """

    weights: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    mixing: int = 0
    folding: int = 0
    elementwise: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class _Observer(TorchDispatchMode):
    """Watches one forward pass: what is data, what is made of weights alone, and what needs a gradient."""

    def __init__(self, model: nn.Module, roles: Mapping[nn.Parameter, str], data: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = _Trace()
        self._model = model
        self._roles = roles
        self._names = {module: name for name, module in model.named_modules()}
        # By storage. What is neither data nor made of it is constant, whether or not it is a registered parameter.
        self._data = {_storage(tensor) for tensor in data}
        self._made_of = {_storage(p): frozenset([p]) for p in model.parameters()}
        self._needs_gradient: set[int] = set()  # in custom functions, whose tensors do not say so themselves
        self._seen: set[nn.Parameter] = set()
        self._multiplied: set[nn.Parameter] = set()
        self._opaque: dict[nn.Parameter, str] = {}
        self._called: dict[nn.Module, tuple[bool, int]] = {}  # whether an input needs a gradient; its elements

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the model's forward pass is observed; at its end what could not be seen is settled."""
        handles = [m.register_forward_pre_hook(self._enter, with_kwargs=True) for m in self._model.modules()]
        try:
            with torch.enable_grad(), self:
                yield
        finally:
            for handle in handles:
                handle.remove()
        for module, (needs_gradient, elements) in self._called.items():
            self._settle(module, needs_gradient, elements)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        needs_gradient = any(map(self._is_active, inputs))
        before, _ = self._called.get(module, (False, 0))
        self._called[module] = (before or needs_gradient, inputs[0].numel() if inputs else 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operator = func._overloadpacket
        if operator in _FORMULAS:
            self._product(operator, args, _FORMULAS[operator](*args, **kwargs, out_val=out))
        elif func.namespace != "aten" and any(map(self._is_data, inputs)):
            for parameter in self._parameters_of(inputs):
                self._opaque[parameter] = str(func)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        # A view of a weight says nothing of what becomes of it.
        views = set(map(_storage, outputs))
        self._seen.update(self._parameters_of([tensor for tensor in inputs if _storage(tensor) not in views]))
        self._follow(inputs, outputs)
        return out

    def _follow(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Marks what an operator made by what it was made of."""
        is_data = not inputs or any(map(self._is_data, inputs))  # a range of positions is data, too
        made_of = frozenset(self._parameters_of(inputs))
        hidden = not torch.is_grad_enabled() and any(map(self._is_active, inputs))
        shared = set(map(_storage, inputs))
        for output in outputs:
            key = _storage(output)
            if is_data:
                self._data.add(key)
                self._made_of.pop(key, None)
            else:
                self._data.discard(key)  # a storage that was data's may have been freed and taken again
                self._made_of[key] = made_of
            if hidden:
                self._needs_gradient.add(key)
            elif key not in shared:
                self._needs_gradient.discard(key)

    def _product(self, operator: Any, args: tuple[Any, ...], flops: int) -> None:
        first = _FIRST_OPERAND.get(operator, 0)
        operands: tuple[Tensor, ...] = args[first : first + (3 if operator in _FUSED_ATTENTION else 2)]
        active = [self._is_active(operand) for operand in operands]
        if operator in _FUSED_ATTENTION:
            query, key, value = active
            query_BHLD, _, value_BHLD = operands
            of_values = Fraction(value_BHLD.shape[-1], query_BHLD.shape[-1] + value_BHLD.shape[-1]) * flops
            scores = flops - of_values
            backward = scores * (query + key) + of_values * ((query or key) + value)
            self.trace.mixing += flops + round(backward)
            return
        data = [self._is_data(operand) for operand in operands]
        if all(data):
            self.trace.mixing += flops * (1 + sum(active))
        elif not any(data):
            self.trace.folding += flops * (1 + sum(active))
        else:
            weight, activation = operands[data.index(False)], active[data.index(True)]
            self._weight_product(weight, activation, flops)

    def _weight_product(self, weight: Tensor, activation_needs_gradient: bool, flops: int) -> None:
        parameters = set(self._parameters_of([weight]))
        self._multiplied.update(parameters)
        if not parameters and not _is_matrix(weight):
            return  # a vector of constants, rotary frequencies for instance
        roles = {self._roles[p] for p in parameters} or {"backbone"}  # quantised matrices may be buffers
        role = "added" if roles == {"added"} else min(roles - {"added"})
        self.trace.weights[role, "forward"] += flops
        self.trace.weights[role, "backward"] += flops * activation_needs_gradient
        self.trace.weights[role, "update"] += flops * any(p.requires_grad for p in parameters)

    def _settle(self, module: nn.Module, needs_gradient: bool, elements: int) -> None:
        """Counts what a module's own weights did besides visible products."""
        for parameter in module.parameters(recurse=False):
            role = self._roles[parameter]
            if parameter in self._multiplied or role in ("embeddings", "head"):
                continue
            hidden = parameter in self._opaque or parameter not in self._seen
            if hidden and (_is_matrix(parameter) or not parameter.is_floating_point()):
                self._count_linear(module, parameter, needs_gradient, elements)
                continue
            self.trace.elementwise["forward"] += parameter.numel()
            self.trace.elementwise["backward"] += parameter.numel() * needs_gradient
            self.trace.elementwise["update"] += parameter.numel() * parameter.requires_grad

    def _count_linear(self, module: nn.Module, parameter: nn.Parameter, needs_gradient: bool, elements: int) -> None:
        """A matrix that an operator of its own multiplies, in 8 bits for instance, counts as what it stands for."""
        inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if not (isinstance(inputs, int) and isinstance(outputs, int)):
            by = self._opaque.get(parameter, "something that torch does not see")
            raise PluginError(
                f"The cost of layer '{self._names[module]}' ({type(module).__name__}) cannot be observed: {by} uses "
                f"its weight of shape {tuple(parameter.shape)}. Expected operators of torch, or a layer with "
                "in_features and out_features."
            )
        flops = 2 * elements * outputs
        role = self._roles[parameter]
        self.trace.weights[role, "forward"] += flops
        self.trace.weights[role, "backward"] += flops * needs_gradient
        self.trace.weights[role, "update"] += flops * parameter.requires_grad

    def _is_data(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._data

    def _is_active(self, tensor: Tensor) -> bool:
        return tensor.requires_grad or _storage(tensor) in self._needs_gradient

    def _parameters_of(self, tensors: Sequence[Tensor]) -> Iterator[nn.Parameter]:
        for tensor in tensors:
            yield from self._made_of.get(_storage(tensor), ())


def _is_matrix(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) >= 2


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def observe(model: nn.Module, backbone_parameters: Collection[nn.Parameter], *, max_length: int) -> FlopProfile:
    """The cost of a backbone that a method has prepared, on any device, the meta device too.

    Args:
        model: called with ``input_ids`` and ``attention_mask``; in the mode and precision that it trains in.
        backbone_parameters: those of the backbone before it was prepared; all others are the method's.
        max_length: tokens of the longest text; the cost is checked there.

    Raises:
        PluginError: if a layer computes in a way that cannot be seen; it is named.
    """
    roles = _roles(model, set(backbone_parameters))
    with visible_attention(model):
        traces = {length: _trace(model, roles, length) for length in (*SHORT_LENGTHS, max_length)}
    found = _profile(model, roles, traces)
    expected = _total(traces[max_length])
    if abs(found.algorithmic(_one(max_length)) - expected) <= 0.001 * expected:
        return found
    with visible_attention(model):
        traces = {length: _trace(model, roles, length) for length in lengths_between(max_length)}
    return _measured(found, traces)


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


def _trace(model: nn.Module, roles: Mapping[nn.Parameter, str], length: int) -> _Trace:
    tokens_BL = torch.zeros(1, length, dtype=torch.int64, device=next(model.parameters()).device)
    mask_BL = torch.ones_like(tokens_BL)
    observer = _Observer(model, roles, [tokens_BL, mask_BL])
    torch.clear_autocast_cache()  # the observer has to see what the low-precision copies of weights are made of
    with torch.random.fork_rng(devices=[]), observer.watching():
        model(input_ids=tokens_BL, attention_mask=mask_BL)
    return observer.trace


def _total(trace: _Trace) -> int:
    return sum(trace.weights.values()) + trace.mixing + trace.folding


def _one(length: int) -> np.ndarray:
    return np.array([length])


def _profile(model: nn.Module, roles: Mapping[nn.Parameter, str], traces: Mapping[int, _Trace]) -> FlopProfile:
    short = {length: traces[length] for length in SHORT_LENGTHS}
    passes: dict[str, dict[str, float]] = defaultdict(dict)
    border, squares = 0.0, 0.0
    for key in {key for trace in short.values() for key in trace.weights}:
        constant, linear, square = fitted({length: trace.weights[key] for length, trace in short.items()})
        passes[key[0]][key[1]] = linear // 2 if linear % 2 == 0 else linear / 2
        border, squares = border + constant, squares + square
    constant, linear, square = fitted({length: trace.mixing for length, trace in short.items()})
    a_call, a_folded_token, _ = fitted({length: trace.folding for length, trace in short.items()})
    numbers = {parameter: parameter.numel() for parameter in roles}
    for module in model.modules():  # packed into bytes, a quantised matrix has fewer elements than entries
        for parameter in module.parameters(recurse=False):
            if not parameter.is_floating_point() and hasattr(module, "in_features"):
                numbers[parameter] = int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
    return FlopProfile(
        parameters=sum(numbers.values()),
        embedding_parameters=sum(n for p, n in numbers.items() if roles[p] in ("embeddings", "head")),
        added_parameters=sum(n for p, n in numbers.items() if roles[p] == "added"),
        trainable_parameters=sum(n for p, n in numbers.items() if p.requires_grad),
        **{role: Passes(**passes[role]) for role in _ROLES},
        elementwise=Passes(**traces[SHORT_LENGTHS[0]].elementwise),
        mixing=Cost(per_text=constant, per_token=linear, per_squared_token=square),
        overhead=Cost(per_text=border, per_squared_token=squares, per_token=a_folded_token, per_call=a_call),
    )


def _measured(found: FlopProfile, traces: Mapping[int, _Trace]) -> FlopProfile:
    """A model whose cost is no polynomial: its weights' passes at the longest text, and the rest as measured."""
    longest = max(traces)
    passes: dict[str, dict[str, float]] = defaultdict(dict)
    for (role, name), flops in traces[longest].weights.items():
        passes[role][name] = flops / (2 * longest)
    weights: dict[str, Any] = {role: Passes(**passes[role]) for role in _ROLES}
    without = replace(found, **weights, mixing=Cost(), overhead=Cost())
    rest = tuple((length, _total(trace) - without.algorithmic(_one(length))) for length, trace in traces.items())
    return replace(without, mixing=Cost(measured=rest))
