"""The exact gradient of a batch that does not fit in memory: encode in chunks, then back-propagate each chunk.

The loss needs all embeddings at once, the graphs of all chunks may not fit. While they do, they are kept;
past that, a chunk is encoded without a graph and encoded again, under the same random numbers, when its
gradient is known (Gao et al. 2021, arXiv:2101.06983). Every policy gives the same gradient.

Axes in names: U unique texts of a batch, B texts of a chunk, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from embedlab.gradcache.chunking import Chunk

Recompute = Literal["auto", "always", "never"]

# A backward pass needs about as much again for the chunk in hand, and a replay needs that chunk's graph.
_CHUNKS_OF_HEADROOM = 2


@dataclass(frozen=True)
class _RandomState:
    """The state of the generators that a forward pass on ``device`` draws from."""

    cpu: Tensor
    device: Tensor | None

    @staticmethod
    def now(device: torch.device) -> _RandomState:
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return _RandomState(torch.get_rng_state(), on_device)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)


@dataclass
class _Boundary:
    """What left the last frozen block, and the random state at that moment."""

    output: Any = None
    random_state: _RandomState | None = None


@dataclass(frozen=True)
class _Encoded:
    """One chunk after the first pass: either with its graph, or with what its replay needs."""

    chunk: Chunk
    embeddings_BD: Tensor
    random_state: _RandomState | None
    boundary: _Boundary | None

    @property
    def has_graph(self) -> bool:
        return self.random_state is None


@dataclass(frozen=True)
class EncodedBatch:
    """All embeddings of a batch, and the means to back-propagate through them.

    Attributes:
        embeddings_UD: detached, in the order of the unique texts.
        encoded: the chunks they came from.
    """

    embeddings_UD: Tensor
    encoded: list[_Encoded]

    @property
    def num_recomputed_tokens(self) -> int:
        """Padded tokens of the chunks that are encoded a second time."""
        return sum(item.chunk.num_padded_tokens for item in self.encoded if not item.has_graph)

    def shapes(self) -> Iterator[tuple[int, int, bool]]:
        """Each chunk's number of texts and their padded length, and whether its graph is kept."""
        for item in self.encoded:
            num_texts, length = item.chunk.input_ids_BL.shape
            yield num_texts, length, item.has_graph


class GradCache:
    """Encodes chunks and back-propagates through them, within the memory there is.

    Args:
        encode: chunk to embeddings (texts, dim).
        parameters: of the model behind ``encode``: not counted as memory of a graph.
        recompute: ``never`` keeps every graph; ``always`` keeps none; ``auto`` keeps graphs while they fit.
        frozen_blocks: leading blocks through which no gradient flows; a replay starts after them.
        memory_share: share of the free memory that kept graphs may take.
        memory_bytes: instead of what is free on the device; for tests and for sharing a device.
    """

    def __init__(
        self,
        encode: Callable[[Chunk], Tensor],
        parameters: Sequence[nn.Parameter],
        *,
        recompute: Recompute = "auto",
        frozen_blocks: Sequence[nn.Module] = (),
        memory_share: float = 0.7,
        memory_bytes: int | None = None,
    ) -> None:
        self._encode = encode
        self._parameters = parameters
        self._recompute = recompute
        self._frozen_blocks = list(frozen_blocks)
        self._memory_share = memory_share
        self._memory_bytes = memory_bytes
        # Learned from the longest chunk so far: bytes of graph a padded token, which grow with the length.
        self._measured_length = 0
        self._bytes_per_token = 0.0

    def encode(self, chunks: Sequence[Chunk]) -> EncodedBatch:
        """First pass: the embeddings of all chunks' texts, graphs kept as far as the policy says."""
        assert chunks, "a batch has at least one chunk"
        left = self._free_bytes(chunks[0].input_ids_BL.device) if self._recompute == "auto" else 0.0
        encoded = []
        for chunk in chunks:
            if self._keeps_graph(chunk, left):
                item, used = self._with_graph(chunk)
                left -= used
            else:
                left = 0.0  # kept graphs come first, so that they are freed before the replays begin
                item = self._without_graph(chunk)
            encoded.append(item)
        num_texts = sum(len(item.chunk.rows_B) for item in encoded)
        embeddings_UD = encoded[0].embeddings_BD.new_empty(num_texts, encoded[0].embeddings_BD.shape[1])
        for item in encoded:
            embeddings_UD[item.chunk.rows_B] = item.embeddings_BD.detach()
        return EncodedBatch(embeddings_UD, encoded)

    def surrogates(self, batch: EncodedBatch, gradient_UD: Tensor) -> Iterator[Tensor]:
        """Second pass: one scalar a chunk; back-propagate each before taking the next.

        The gradients of the scalars add up to the gradient, with respect to the parameters, of the loss whose
        gradient with respect to the embeddings is ``gradient_UD``.
        """
        while batch.encoded:
            item = batch.encoded.pop(0)  # frees the graph as soon as it is used
            embeddings_BD = item.embeddings_BD if item.has_graph else self._encode_again(item)
            yield (embeddings_BD * gradient_UD[item.chunk.rows_B]).sum()

    def _keeps_graph(self, chunk: Chunk, left: float) -> bool:
        if self._recompute != "auto":
            return self._recompute == "never"
        length = chunk.input_ids_BL.shape[1]
        if length > self._measured_length:
            # Nothing is known of chunks this long. One alone always has to fit: its backward needs its graph.
            return left > 0
        return chunk.num_padded_tokens * self._bytes_per_token * (1 + _CHUNKS_OF_HEADROOM) <= left

    def _with_graph(self, chunk: Chunk) -> tuple[_Encoded, float]:
        length = chunk.input_ids_BL.shape[1]
        with torch.enable_grad():
            if self._recompute == "auto" and length > self._measured_length:
                graph = GraphBytes(self._parameters)
                with graph:
                    embeddings_BD = self._encode(chunk)
                self._measured_length = length
                self._bytes_per_token = max(self._bytes_per_token, graph.bytes / chunk.num_padded_tokens)
            else:
                embeddings_BD = self._encode(chunk)
        return _Encoded(chunk, embeddings_BD, None, None), chunk.num_padded_tokens * self._bytes_per_token

    def _without_graph(self, chunk: Chunk) -> _Encoded:
        random_state = _RandomState.now(chunk.input_ids_BL.device)
        boundary = _Boundary() if self._frozen_blocks else None
        with torch.no_grad(), self._recording(boundary):
            embeddings_BD = self._encode(chunk)
        # Autocast caches the low-precision copies of weights; those made here have no graph, and a forward
        # pass with one would silently use them.
        torch.clear_autocast_cache()
        return _Encoded(chunk, embeddings_BD, random_state, boundary)

    def _encode_again(self, item: _Encoded) -> Tensor:
        device = item.chunk.input_ids_BL.device
        assert item.random_state is not None
        after = _RandomState.now(device)
        item.random_state.restore(device)
        with torch.enable_grad(), self._skipping(item.boundary, device):
            embeddings_BD = self._encode(item.chunk)
        after.restore(device)
        return embeddings_BD

    @contextmanager
    def _recording(self, boundary: _Boundary | None) -> Iterator[None]:
        if boundary is None:
            yield
            return

        def record(_block: nn.Module, _inputs: object, output: Any) -> None:
            boundary.output = output
            hidden = output[0] if isinstance(output, tuple) else output
            boundary.random_state = _RandomState.now(hidden.device)

        handle = self._frozen_blocks[-1].register_forward_hook(record)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _skipping(self, boundary: _Boundary | None, device: torch.device) -> Iterator[None]:
        if boundary is None:
            yield
            return

        def recorded(*_: object, **__: object) -> Any:
            assert boundary.random_state is not None
            boundary.random_state.restore(device)
            return boundary.output

        # An attribute of the instance shadows the class's forward: the model's own loop over its blocks runs
        # as always, and each frozen block hands on what the last of them returned the first time.
        shadowed = [block.__dict__.get("forward") for block in self._frozen_blocks]
        for block in self._frozen_blocks:
            block.__dict__["forward"] = recorded
        try:
            yield
        finally:
            for block, forward in zip(self._frozen_blocks, shadowed, strict=True):
                del block.__dict__["forward"]
                if forward is not None:
                    block.__dict__["forward"] = forward

    def _free_bytes(self, device: torch.device) -> float:
        if self._memory_bytes is not None:
            return float(self._memory_bytes)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return self._memory_share * (free + unused)
        return float(self._memory_share * psutil.virtual_memory().available)


class GraphBytes(saved_tensors_hooks):
    """Within it, counts the bytes that autograd keeps for the backward pass, on any device.

    Args:
        parameters: whose memory is no part of the graph.
        counts: whether a kept tensor counts.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], counts: Callable[[Tensor], bool] = lambda _: True) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._left_out = {parameter.untyped_storage()._cdata for parameter in parameters}
        self._counts = counts
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """What is kept, each storage once."""
        return sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._left_out and self._counts(tensor):
            self._sizes[storage._cdata] = storage.nbytes()
        return tensor
