"""Computes the FLOPs of training from the lengths of texts, without torch, so that a search can plan with them.

One multiplication and one addition are two FLOPs. Matrix products and convolutions are counted, as in
``torch.utils.flop_counter``. Elementwise operations, normalization, softmax, table lookups, solving equations,
factorizing matrices and the optimizer are not counted. ``embedlab.flops.observer`` measures the numbers that the
computation starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FlopsByLength:
    """FLOPs of processing texts, as a function of the texts' lengths in tokens.

    Attributes:
        per_token: FLOPs for each token of a text.
        per_squared_token: FLOPs for each ordered pair of tokens of a text, as in softmax attention.
        per_text: FLOPs for each text, independent of its length.
        per_call: FLOPs for each forward call, independent of its texts: products of weights with each other.
        measured: Pairs of a text length in tokens and the FLOPs of one text of that length, in ascending order. Used
            for models whose cost is not a polynomial of the length: costs between the lengths are interpolated, and
            ``per_token``, ``per_squared_token`` and ``per_text`` are ignored.
    """

    per_token: float = 0
    per_squared_token: float = 0
    per_text: float = 0
    per_call: float = 0
    measured: tuple[tuple[int, float], ...] = ()

    def of(self, lengths_U: np.ndarray, *, calls: int = 1) -> int:
        """Return the FLOPs of texts that are processed without padding.

        Args:
            lengths_U: Number of tokens of each text.
            calls: Number of forward calls that the texts are divided among.

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
        """Return the FLOPs of one forward call over ``num_texts`` texts, each padded to ``length`` tokens."""
        if self.measured:
            return self.of(np.full(num_texts, length))
        a_text = self.per_token * length + self.per_squared_token * length**2 + self.per_text
        return round(num_texts * a_text + self.per_call)


@dataclass(frozen=True)
class WeightsByPass:
    """Number of weights that one token uses, for each kind of pass.

    Attributes:
        forward: N_F, the number of weights used in the forward pass.
        backward: N_B, the number of weights through which the gradient of an activation flows, that is, of weights
            whose input needs a gradient.
        update: N_U, the number of weights whose own gradient is computed.
    """

    forward: float = 0
    backward: float = 0
    update: float = 0

    @property
    def flops_per_token(self) -> float:
        """FLOPs per token: two for each weight in each pass."""
        return 2 * (self.forward + self.backward + self.update)

    def __add__(self, other: WeightsByPass) -> WeightsByPass:
        return WeightsByPass(self.forward + other.forward, self.backward + other.backward, self.update + other.update)


@dataclass(frozen=True)
class FlopProfile:
    """Training cost of a backbone that a method has prepared, independent of how it is run: the algorithmic count.

    Attributes:
        parameters: Number of all weights, including weights that the method adds. A quantized matrix counts with the
            number of its entries, not of its packed bytes.
        embedding_parameters: Number of weights in token tables, position tables and the unembedding.
        added_parameters: Number of weights that the method adds.
        trainable_parameters: Number of weights that a training step changes.
        backbone: Matrices of the backbone, without embedding tables and the unembedding.
        added: Matrices that the method adds, for example adapters.
        embeddings: Embedding tables that take part in a matrix product. A table lookup costs no FLOPs.
        head: The unembedding, if the model has one.
        elementwise: Weights that only scale or shift activations (norms, biases, gates), outside embedding tables and
            the unembedding. They take part in no matrix product, but the convention of ``paper_flops_per_token``
            counts them as if they did.
        attention: FLOPs of products of activations with each other, in the forward and the backward pass. In most
            models these products are softmax attention.
        overhead: FLOPs of matrices that are not proportional to the number of tokens or that multiply no activations,
            for example at the borders of convolutions or in products of weights with each other.
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
        """Build a profile from the output of ``dataclasses.asdict``, also after a round trip through JSON."""
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
        """Number of the backbone's own weights, without token tables, position tables and the unembedding."""
        return self.parameters - self.embedding_parameters - self.added_parameters

    @property
    def matrices(self) -> WeightsByPass:
        """N_F, N_B and N_U, summed over all weights that take part in matrix products."""
        return self.backbone + self.added + self.embeddings + self.head

    @property
    def by_measurement(self) -> bool:
        """Whether the cost rests on measurements at some text lengths, since it has no quadratic attention term."""
        return bool(self.attention.measured) or not self.attention.per_squared_token

    @property
    def remark(self) -> str | None:
        """Explanation of how a measured cost depends on the text length. None if the cost was not measured."""
        if self.attention.measured:
            shortest, longest = (self.attention.measured[end][0] for end in (0, -1))
            return (
                "the cost is not a polynomial of the text length, for example because attention has a window. It is "
                f"counted by measurement at lengths from {shortest} to {longest} tokens, and interpolated in between."
            )
        if self.by_measurement:
            return (
                "the model has no softmax attention. Its cost is counted by measurement at a few text lengths, and "
                "taken as proportional to the length."
            )
        return None

    def algorithmic(self, lengths_U: np.ndarray, *, attention: bool = True) -> int:
        """Return the FLOPs of one training step over texts, without padding and recomputation.

        The cost is 2 (N_F + N_B + N_U) FLOPs per token, plus overhead and attention.

        Args:
            lengths_U: Number of tokens of each text.
            attention: Whether the FLOPs of attention are included.
        """
        flops = round(self.matrices.flops_per_token * int(lengths_U.sum())) + self.overhead.of(lengths_U)
        return flops + self.attention.of(lengths_U) if attention else flops

    def paper_flops_per_token(self) -> float:
        """Return the FLOPs per token by the convention of Ziarko et al. 2024, arXiv:2406.04165.

        The convention leaves out embedding tables, attention and recomputation. With N parameters outside the
        embedding tables, the paper counts 6 N for full fine-tuning, 2 N + 4 N_trainable for block freezing, and
        4 N + 2 N_trainable for LoRA and bias tuning. Deviation from the paper: here a weight whose input needs no
        gradient does not count toward N_B.
        """
        return (self.backbone + self.added + self.elementwise).flops_per_token
