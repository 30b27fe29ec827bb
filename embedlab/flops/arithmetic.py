"""What training costs, as arithmetic over texts' lengths; without torch, so that a search can plan with it.

One multiplication and one addition are two FLOPs. Counted are matrix products and convolutions, as in
``torch.utils.flop_counter``; elementwise work, normalization, softmax, lookups and the optimizer are not. How the
numbers come about: ``embedlab.flops.observer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FlopsByLength:
    """FLOPs of one pass over texts, as a function of their lengths.

    Attributes:
        per_token: for each token of a text.
        per_squared_token: for each pair of tokens of a text: softmax attention.
        per_text: for each text, whatever its length.
        per_call: for each forward call, whatever it holds: products of weights with each other.
        measured: FLOPs of one text at some lengths, ascending, for models whose cost is no polynomial; between
            them it is interpolated, and the three above it are not used.
    """

    per_token: float = 0
    per_squared_token: float = 0
    per_text: float = 0
    per_call: float = 0
    measured: tuple[tuple[int, float], ...] = ()

    def of(self, lengths_U: np.ndarray, *, calls: int = 1) -> int:
        """FLOPs of texts with these lengths in so many calls.

        >>> FlopsByLength(per_token=10, per_squared_token=1).of(np.array([2, 3]))
        63
        """
        per_call = calls * self.per_call
        if self.measured:
            at, flops = zip(*self.measured, strict=True)
            beyond = np.maximum(lengths_U - at[-1], 0) * (flops[-1] / at[-1])
            return round(float((np.interp(lengths_U, at, flops) + beyond).sum()) + per_call)
        lengths_U = lengths_U.astype(np.int64, copy=False)
        tokens, squares = int(lengths_U.sum()), int(np.dot(lengths_U, lengths_U))
        return round(
            self.per_token * tokens + self.per_squared_token * squares + self.per_text * len(lengths_U) + per_call
        )

    def of_chunk(self, num_texts: int, length: int) -> int:
        """FLOPs of one call over so many texts, all padded to one length."""
        if self.measured:
            return self.of(np.full(num_texts, length))
        a_text = self.per_token * length + self.per_squared_token * length**2 + self.per_text
        return round(num_texts * a_text + self.per_call)


@dataclass(frozen=True)
class WeightsByPass:
    """Weights by the passes in which a token meets them.

    Attributes:
        forward: N_F, used in the forward pass.
        backward: N_B, through which the gradient of an activation flows: those whose input needs a gradient.
        update: N_U, whose own gradient is computed.
    """

    forward: float = 0
    backward: float = 0
    update: float = 0

    @property
    def flops_per_token(self) -> float:
        """Two for each weight and pass."""
        return 2 * (self.forward + self.backward + self.update)

    def __add__(self, other: WeightsByPass) -> WeightsByPass:
        return WeightsByPass(self.forward + other.forward, self.backward + other.backward, self.update + other.update)


@dataclass(frozen=True)
class FlopProfile:
    """What a backbone prepared by a method costs, apart from how it is run: the algorithmic count.

    Attributes:
        parameters: all weights, those the method adds included; a quantized matrix counts its entries.
        embedding_parameters: of token and position tables and the unembedding.
        added_parameters: of what the method adds.
        trainable_parameters: that a step changes.
        backbone: matrices of the backbone, without tables and unembedding.
        added: matrices that the method adds (adapters).
        embeddings: tables that a matrix product reads; a lookup is free.
        head: the unembedding, where the model has one.
        elementwise: weights that only scale or shift (norms, biases, gates), outside tables and unembedding. They cost
            no matrix product; the paper's convention counts them as if they did.
        attention: products of activations with each other, forward and backward: softmax attention, for most models.
        overhead: what matrices cost besides a token's share: convolutions' borders, products of weights.
    """

    parameters: int
    embedding_parameters: int
    added_parameters: int
    trainable_parameters: int
    backbone: WeightsByPass
    added: WeightsByPass
    embeddings: WeightsByPass
    head: WeightsByPass
    elementwise: WeightsByPass
    attention: FlopsByLength
    overhead: FlopsByLength = field(default_factory=FlopsByLength)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FlopProfile:
        """From what ``dataclasses.asdict`` made of one, through JSON or not."""
        made: dict[str, Any] = {}
        for name, value in values.items():
            if not isinstance(value, Mapping):
                made[name] = value
            elif "measured" in value:
                measured = tuple((int(length), flops) for length, flops in value["measured"])
                made[name] = FlopsByLength(**{**value, "measured": measured})
            else:
                made[name] = WeightsByPass(**value)
        return cls(**made)

    @property
    def nonembedding_parameters(self) -> int:
        """Of the backbone alone, without token and position tables and the unembedding."""
        return self.parameters - self.embedding_parameters - self.added_parameters

    @property
    def matrices(self) -> WeightsByPass:
        """N_F, N_B and N_U of all matrix products with weights."""
        return self.backbone + self.added + self.embeddings + self.head

    @property
    def by_measurement(self) -> bool:
        """Whether the model has no softmax attention, so that its cost is what was measured at some lengths."""
        return bool(self.attention.measured) or not self.attention.per_squared_token

    @property
    def remark(self) -> str | None:
        """How the cost depends on a text's length where that is measured; None where it is known."""
        if self.attention.measured:
            shortest, longest = (self.attention.measured[end][0] for end in (0, -1))
            return (
                "the cost is no polynomial of a text's length (a window or blocks, for instance): counted by "
                f"measurement at lengths from {shortest} to {longest}, and interpolated between them."
            )
        if self.by_measurement:
            return "no softmax attention: counted by measurement at a few lengths, in proportion to them."
        return None

    def algorithmic(self, lengths_U: np.ndarray, *, attention: bool = True) -> int:
        """FLOPs of one training step over texts with these lengths, padding and recomputation left out.

        2 (N_F + N_B + N_U) a token, plus attention (without: ``attention=False``).
        """
        flops = round(self.matrices.flops_per_token * int(lengths_U.sum())) + self.overhead.of(lengths_U)
        return flops + self.attention.of(lengths_U) if attention else flops

    def paper_flops_per_token(self) -> float:
        """The convention of Ziarko et al. 2024, arXiv:2406.04165: no tables, no attention, no recomputation.

        Theirs is 6 N for full fine-tuning, 2 N + 4 N_trainable for freezing and 4 N + 2 N_trainable for LoRA and
        biases, N being all parameters but the tables. Here a weight whose input needs no gradient has no N_B.
        """
        return (self.backbone + self.added + self.elementwise).flops_per_token
