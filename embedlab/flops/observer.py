"""Observes a prepared model while it runs, so that methods and models need not declare their cost.

A forward pass over a few tokens shows every matrix product, which of its operands are weights, and which operands need
a gradient. For each operand that needs a gradient, the backward pass has one product of the same size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from embedlab.errors import PluginError

aten = torch.ops.aten

_FUSED_ATTENTION = {
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
}
# Position of an operator's first operand among its arguments, where it is not 0.
_FIRST_OPERAND = {aten.addmm: 1, aten.baddbmm: 1}
_LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather}
# Parts of the names of operators that solve equations or factorize matrices: no products, but their gradients are.
_SOLVERS = ("linalg_", "cholesky_", "triangular_solve")
_UNPACKED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    formula = flop_registry[aten._scaled_dot_product_flash_attention]
    return int(formula(query, key, value, *args, **kwargs))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    formula = flop_registry[aten._scaled_dot_product_flash_attention_backward]
    return int(formula(gradient, query, key, value, *args, **kwargs))


def _grouped(left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * int(left.shape[-2]) * int(left.shape[-1]) * int(right.shape[-1])


def _convolution_backward(
    gradient: Any,
    inputs: Any,
    weight: Any,
    _bias_sizes: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    # Each weight meets every position that the filter is laid on, once per gradient. A transposed convolution lays its
    # filter on its input's positions. A weight has the channels of its own group alone, so groups need no factor.
    positions = math.prod((inputs if transposed else gradient).shape[2:])
    return 2 * int(inputs.shape[0] * positions * weight.numel()) * sum(map(bool, output_mask[:2]))


ADDED_FORMULAS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._grouped_mm: _grouped,
    aten.convolution_backward: _convolution_backward,
}
"""FLOP formulas that correct torch's ``FlopCounterMode``, in the form of its ``custom_mapping``.

Without these formulas, fused attention on a CPU and grouped matrix products would count as zero FLOPs, and the gradient
of a convolution's weights as if every group had all channels.
"""
for _formula in ADDED_FORMULAS.values():
    _formula._get_raw = True  # tells torch that the formula takes tensors, not shapes
_FORMULAS: Mapping[Any, Callable[..., int]] = {**flop_registry, **ADDED_FORMULAS}


class ProductCounter(TorchDispatchMode):
    """Context manager that counts the FLOPs of all operators run in it, faster than torch's ``FlopCounterMode``.

    Attributes:
        flops: FLOPs counted so far.
    """

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
class Trace:
    """FLOPs of one forward pass, and of the backward pass that would follow it.

    Attributes:
        weights: FLOPs of products of activations with weights. The key is the weight's role (``backbone``, ``added``,
            ``embeddings`` or ``head``) and the pass (``forward``, ``backward`` or ``update``).
        attention: FLOPs of products of activations with each other.
        reparametrization: FLOPs of products of weights with each other, for example where a method computes one weight
            from several.
        elementwise: Number of parameters that only scale or shift activations, by pass.
    """

    weights: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    attention: int = 0
    reparametrization: int = 0
    elementwise: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass
class _Gradients:
    """FLOPs of the gradients of one operator's operands, counted only if the operator contributes to the output.

    Attributes:
        output: Result of the operator, held until its autograd node is known. None afterward.
        node: Autograd node of the result. None inside a custom autograd function, where no node is recorded.
        weights: FLOPs of gradients in products of activations with weights, by role and pass.
        attention: FLOPs of gradients in products of activations with each other.
        reparametrization: FLOPs of gradients in products of weights with each other.
    """

    output: Tensor | None
    node: Node | None = None
    weights: Mapping[tuple[str, str], int] = field(default_factory=dict)
    attention: int = 0
    reparametrization: int = 0


@dataclass
class _Solver:
    """An operator that is no product itself, but whose gradients are computed with products.

    An operator with several results counts as if the gradients of all its results were needed.

    Attributes:
        gradients: Gradients of the operator's operands, without their FLOPs until ``count`` is called.
        call: Operator with all its arguments, whose tensors are on the meta device.
        active: Whether an operand needs a gradient, one entry per operand.
        data: Whether an operand is data and not a weight, one entry per operand.
        role: Role of the weights among the operands.
    """

    gradients: _Gradients
    call: partial[Any]
    active: Sequence[bool]
    data: Sequence[bool]
    role: str

    def count(self) -> None:
        """Count the products of a backward pass. It must not run inside the observed pass, which hides autograd."""
        flops = [self._of_operand(position) if active else 0 for position, active in enumerate(self.active)]
        of_data = sum(one for one, is_data in zip(flops, self.data, strict=True) if is_data)
        if all(self.data):
            self.gradients.attention = of_data
        elif not any(self.data):
            self.gradients.reparametrization = sum(flops)
        else:
            self.gradients.weights = {(self.role, "backward"): of_data, (self.role, "update"): sum(flops) - of_data}

    def _of_operand(self, position: int) -> int:
        operands = [leaf for leaf in tree_leaves((self.call.args, self.call.keywords)) if isinstance(leaf, Tensor)]
        operand = operands[position].requires_grad_()
        with torch.enable_grad(), ProductCounter() as counter:
            outputs = [leaf for leaf in tree_leaves(self.call()) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if outputs:
                torch.autograd.grad(outputs, operand, [torch.empty_like(output) for output in outputs])
        operand.requires_grad_(False)
        return int(counter.flops)


class Observer(TorchDispatchMode):
    """Observe one forward pass: which tensors are data, depend on weights alone, or need gradients.

    A tensor is data if it was computed from the texts' tokens. Every other tensor, for example a matrix of ones, is
    equal for all texts.

    Args:
        model: Model to observe.
        roles: Role of each of the model's parameters: ``backbone``, ``added``, ``embeddings`` or ``head``.
        data: Input tensors that hold the texts' tokens.
    """

    def __init__(self, model: nn.Module, roles: Mapping[nn.Parameter, str], data: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._model = model
        self._roles = roles
        self._names = {module: name for name, module in model.named_modules()}
        self._kept: dict[int, StorageWeakRef] = {}  # so that no other storage takes a freed one's address
        # The following three collections identify a tensor by the address of its storage.
        self._data = {self._storage(tensor) for tensor in data}
        self._made_of = {self._storage(p): frozenset([p]) for p in model.parameters()}
        self._needs_gradient: set[int] = set()  # inside custom functions, where requires_grad is not set
        self._viewed: set[nn.Parameter] = set()
        self._used: set[nn.Parameter] = set()
        self._looked_up: set[nn.Parameter] = set()
        self._multiplied: set[nn.Parameter] = set()
        self._opaque: dict[nn.Parameter, str] = {}
        self._gradients: list[_Gradients] = []
        self._solvers: list[_Solver] = []
        self._called: dict[nn.Module, tuple[bool, int]] = {}  # whether an input needs a gradient; first input's size

    def watch(self, forward: Callable[[], Tensor]) -> Trace:
        """Return the cost of a forward pass, and of the backward pass from its output.

        Args:
            forward: Function that runs the model and returns the tensor that the backward pass starts from.
        """
        handles = [m.register_forward_pre_hook(self._enter, with_kwargs=True) for m in self._model.modules()]
        try:
            with torch.enable_grad(), self:
                output = forward()
        finally:
            for handle in handles:
                handle.remove()
        for module, (needs_gradient, elements) in self._called.items():
            self._settle(module, needs_gradient, elements)
        self._count_gradients(output)
        return self.trace

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        needs_gradient = any(map(self._is_active, inputs))
        before, _ = self._called.get(module, (False, 0))
        self._called[module] = (before or needs_gradient, inputs[0].numel() if inputs else 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._note_node()
        out = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operator = func._overloadpacket
        if operator in _FORMULAS:
            self._product(operator, args, out, _FORMULAS[operator](*args, **kwargs, out_val=out))
        elif func.namespace == "aten" and any(part in func._opname for part in _SOLVERS):
            self._solver(func, args, kwargs, out)
        elif func.namespace != "aten" and any(map(self._is_data, inputs)):
            for parameter in self._parameters_of(inputs):
                self._opaque[parameter] = str(func)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        # A view of a weight does not show how the weight is used, so views and uses are recorded separately.
        views = set(map(self._storage, outputs))
        self._viewed.update(self._parameters_of([tensor for tensor in inputs if self._storage(tensor) in views]))
        self._used.update(self._parameters_of([tensor for tensor in inputs if self._storage(tensor) not in views]))
        if operator in _LOOKUPS and not self._is_data(inputs[0]):
            self._looked_up.update(self._parameters_of(inputs[:1]))
            if inputs[0].ndim > 2:
                inputs = inputs[:1]  # matrices (experts) chosen by data are still weights, not data
        self._follow(inputs, outputs)
        return out

    def _follow(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Mark an operator's outputs as data, made of weights, or in need of a gradient, according to its inputs."""
        is_data = any(map(self._is_data, inputs))
        made_of = frozenset(self._parameters_of(inputs))
        hidden = not torch.is_grad_enabled() and any(map(self._is_active, inputs))
        shared = set(map(self._storage, inputs))
        for output in outputs:
            key = self._storage(output)
            if is_data:
                self._data.add(key)
                self._made_of.pop(key, None)
            else:
                self._made_of[key] = made_of
            if hidden:
                self._needs_gradient.add(key)
            elif key not in shared:
                self._needs_gradient.discard(key)

    def _product(self, operator: Any, args: tuple[Any, ...], out: Any, flops: int) -> None:
        first = _FIRST_OPERAND.get(operator, 0)
        operands: tuple[Tensor, ...] = args[first : first + (3 if operator in _FUSED_ATTENTION else 2)]
        active = [self._is_active(operand) for operand in operands]
        output = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        if operator in _FUSED_ATTENTION:
            query, key, value = active
            query_BHLD, _, value_BHLD = operands
            of_values = Fraction(value_BHLD.shape[-1], query_BHLD.shape[-1] + value_BHLD.shape[-1]) * flops
            scores = flops - of_values
            backward = scores * (query + key) + of_values * ((query or key) + value)
            self.trace.attention += flops
            self._gradients.append(_Gradients(output, attention=round(backward)))
            return
        data = [self._is_data(operand) for operand in operands]
        if all(data):
            self.trace.attention += flops
            self._gradients.append(_Gradients(output, attention=flops * sum(active)))
        elif not any(data):
            self.trace.reparametrization += flops
            self._gradients.append(_Gradients(output, reparametrization=flops * sum(active)))
        else:
            weight, activation = operands[data.index(False)], active[data.index(True)]
            self._weight_product(weight, activation, output, flops)

    def _weight_product(self, weight: Tensor, activation_needs_gradient: bool, output: Tensor, flops: int) -> None:
        parameters = set(self._parameters_of([weight]))
        self._multiplied.update(parameters)
        if not parameters and not _is_matrix(weight):
            return  # a constant vector is no weight matrix
        role = self._role(parameters)
        self.trace.weights[role, "forward"] += flops
        backward, update = flops * activation_needs_gradient, flops * any(p.requires_grad for p in parameters)
        gradients = {(role, "backward"): backward, (role, "update"): update}
        self._gradients.append(_Gradients(output, weights=gradients))

    def _role(self, parameters: set[nn.Parameter]) -> str:
        roles = {self._roles[p] for p in parameters} or {"backbone"}  # quantized matrices may be buffers
        return "added" if roles == {"added"} else min(roles - {"added"})

    def _solver(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note an operator that is no product, but whose gradients are computed with products."""
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        output = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
        if output is None or not any(map(self._is_active, operands)):
            return
        self._gradients.append(_Gradients(output))
        args, kwargs = tree_map_only(Tensor, partial(torch.empty_like, device="meta"), (args, kwargs))
        active, data = ([test(operand) for operand in operands] for test in (self._is_active, self._is_data))
        role = self._role(set(self._parameters_of(operands)))
        self._solvers.append(_Solver(self._gradients[-1], partial(function, *args, **kwargs), active, data, role))

    def _note_node(self) -> None:
        """Record the autograd node of the last noted operator's output: autograd sets it after the operator returns."""
        if self._gradients and self._gradients[-1].output is not None:
            self._gradients[-1].node = self._gradients[-1].output.grad_fn
            self._gradients[-1].output = None  # so that its memory can be freed

    def _count_gradients(self, output: Tensor) -> None:
        self._note_node()
        for solver in self._solvers:
            solver.count()
        reached = _nodes_behind(output)
        for gradients in self._gradients:
            if gradients.node is not None and gradients.node not in reached:
                continue  # the product was detached, for example a norm that is treated as a constant
            for key, flops in gradients.weights.items():
                self.trace.weights[key] += flops
            self.trace.attention += gradients.attention
            self.trace.reparametrization += gradients.reparametrization

    def _settle(self, module: nn.Module, needs_gradient: bool, elements: int) -> None:
        """Count those of a module's own weights that took part in no visible matrix product."""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in self._multiplied or parameter in self._looked_up:
                continue
            if self._roles[parameter] in ("embeddings", "head"):
                continue
            packed = parameter.dtype not in _UNPACKED
            if not (packed or any(parameter in seen for seen in (self._viewed, self._used, self._opaque))):
                continue  # the module did not use this parameter
            hidden = parameter in self._opaque or parameter not in self._used
            if hidden and (packed or _is_matrix(parameter)):
                self._count_linear(module, name, parameter, needs_gradient, elements)
                continue
            self.trace.elementwise["forward"] += parameter.numel()
            self.trace.elementwise["backward"] += parameter.numel() * needs_gradient
            self.trace.elementwise["update"] += parameter.numel() * parameter.requires_grad

    def _count_linear(
        self, module: nn.Module, name: str, parameter: nn.Parameter, needs_gradient: bool, elements: int
    ) -> None:
        """Count a matrix of a special operator (for example in 8 bits) like the linear layer that it stands for.

        Raises:
            PluginError: If the module does not state ``in_features`` and ``out_features``.
        """
        inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if not (isinstance(inputs, int) and isinstance(outputs, int)):
            by = self._opaque.get(parameter, "code outside torch's operators")
            raise PluginError(
                f"The cost of layer '{self._names[module]}' ({type(module).__name__}) cannot be observed: {by} uses "
                f"its parameter '{name}' of shape {tuple(parameter.shape)}. Expected operators of torch, or a layer "
                "with in_features and out_features."
            )
        flops = 2 * elements * outputs
        role = self._roles[parameter]
        self.trace.weights[role, "forward"] += flops
        self.trace.weights[role, "backward"] += flops * needs_gradient
        self.trace.weights[role, "update"] += flops * parameter.requires_grad

    def _storage(self, tensor: Tensor) -> int:
        if tensor.layout == torch.sparse_coo:
            tensor = tensor._values()
        storage = tensor.untyped_storage()
        address = int(storage._cdata)
        if address not in self._kept:
            self._kept[address] = StorageWeakRef(storage)
        return address

    def _is_data(self, tensor: Tensor) -> bool:
        return self._storage(tensor) in self._data

    def _is_active(self, tensor: Tensor) -> bool:
        return tensor.requires_grad or self._storage(tensor) in self._needs_gradient

    def _parameters_of(self, tensors: Sequence[Tensor]) -> Iterator[nn.Parameter]:
        for tensor in tensors:
            yield from self._made_of.get(self._storage(tensor), ())


def _is_matrix(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) >= 2


def _nodes_behind(output: Tensor) -> set[Node]:
    """Return all autograd nodes that a backward pass from ``output`` visits."""
    reached: set[Node] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in reached:
            reached.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return reached
