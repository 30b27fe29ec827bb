"""Computes the exact gradient of a batch that does not fit in memory, by encoding and back-propagating in chunks.

The loss needs the embeddings of the whole batch at once, but the autograd graphs of all chunks may not fit in memory.
The first chunks keep their graphs while memory lasts. Each later chunk is encoded without a graph, and encoded again
with the same random numbers when the gradient of its embeddings is known (Gao et al. 2021, arXiv:2101.06983). Every
recompute policy gives the same gradient.

Names end in their axes: U unique texts of a batch, B texts of a chunk, L tokens, D dimensions.
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

# Memory to keep free, in graphs of one chunk: the backward pass of a chunk needs about as much memory as its graph, and
# encoding a chunk again needs one more graph.
_CHUNKS_OF_HEADROOM = 2


@dataclass(frozen=True)
class _RandomState:
    """The state of the random number generators that a forward pass uses.

    Attributes:
        cpu: State of the generator of the CPU.
        device: State of the generator of the GPU; None for a forward pass on the CPU.
    """

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
    """The output of the last frozen block, and the random state right after this block.

    Attributes:
        output: Output of the block; None before the first pass.
        random_state: Random state after the block; None before the first pass.
    """

    output: Any = None
    random_state: _RandomState | None = None


@dataclass(frozen=True)
class _Encoded:
    """A chunk after the first pass, either with its graph or with the state that encoding it again needs.

    Attributes:
        chunk: Texts that were encoded.
        embeddings_BD: Embeddings of the texts; attached to the graph if the graph is kept.
        random_state: Random state before the first forward pass; None if the graph is kept.
        boundary: Output of the last frozen block; None if the graph is kept or no block is frozen.
    """

    chunk: Chunk
    embeddings_BD: Tensor
    random_state: _RandomState | None
    boundary: _Boundary | None

    @property
    def has_graph(self) -> bool:
        return self.random_state is None


@dataclass(frozen=True)
class EncodedBatch:
    """The embeddings of a batch, with the chunks to back-propagate through.

    Attributes:
        embeddings_UD: Embeddings of the unique texts, in the order of their rows, detached from the graph.
        encoded: Encoded chunks of the batch. ``GradCache.surrogates`` empties this list.
    """

    embeddings_UD: Tensor
    encoded: list[_Encoded]

    @property
    def num_recomputed_tokens(self) -> int:
        """Number of tokens, padding included, in the chunks that are encoded a second time."""
        return sum(item.chunk.num_padded_tokens for item in self.encoded if not item.has_graph)

    def shapes(self) -> Iterator[tuple[int, int, bool]]:
        """Yield the number of texts, the padded length in tokens, and whether the graph is kept, for each chunk."""
        for item in self.encoded:
            num_texts, length = item.chunk.input_ids_BL.shape
            yield num_texts, length, item.has_graph


class GradCache:
    """Encodes the chunks of a batch and back-propagates through them, within the available memory.

    Args:
        encode: Function that turns a chunk into embeddings of shape (texts, dimensions).
        parameters: Parameters of the model behind ``encode``. Their memory does not count as memory of a graph.
        recompute: Policy for autograd graphs. ``never`` keeps the graph of every chunk, ``always`` encodes every chunk
            twice, and ``auto`` keeps graphs while they fit in memory.
        frozen_blocks: Leading blocks of the model through which no gradient flows. They are not computed a second time
            when a chunk is encoded again.
        memory_share: Share of the free memory that kept graphs may use, from 0 to 1.
        memory_bytes: Memory that kept graphs may use, in bytes, for tests and for shared devices; None for
            ``memory_share`` of the free memory of the device.
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
        # Measured on the longest chunk so far, because the bytes of graph per padded token grow with the length.
        self._measured_length = 0
        self._bytes_per_token = 0.0

    def encode(self, chunks: Sequence[Chunk]) -> EncodedBatch:
        """Encode all chunks of a batch (first pass). Graphs are kept as the recompute policy allows.

        Args:
            chunks: Chunks of one batch, at least 1. Together they hold each unique text of the batch once.
        """
        assert chunks, "a batch has at least one chunk"
        left = self._free_bytes(chunks[0].input_ids_BL.device) if self._recompute == "auto" else 0.0
        encoded = []
        for chunk in chunks:
            if self._keeps_graph(chunk, left):
                item, used = self._with_graph(chunk)
                left -= used
            else:
                left = 0.0  # only the first chunks keep graphs, so that these are freed before others are built
                item = self._without_graph(chunk)
            encoded.append(item)
        num_texts = sum(len(item.chunk.rows_B) for item in encoded)
        embeddings_UD = encoded[0].embeddings_BD.new_empty(num_texts, encoded[0].embeddings_BD.shape[1])
        for item in encoded:
            embeddings_UD[item.chunk.rows_B] = item.embeddings_BD.detach()
        return EncodedBatch(embeddings_UD, encoded)

    def surrogates(self, batch: EncodedBatch, gradient_UD: Tensor) -> Iterator[Tensor]:
        """Yield one scalar per chunk (second pass). Back-propagate each scalar before taking the next.

        The sum of the gradients of all scalars is the gradient of the loss with respect to the parameters.

        Args:
            batch: Encoded batch, which is used up.
            gradient_UD: Gradient of the loss with respect to ``batch.embeddings_UD``.
        """
        while batch.encoded:
            item = batch.encoded.pop(0)  # the graph is freed as soon as it is used
            embeddings_BD = item.embeddings_BD if item.has_graph else self._encode_again(item)
            yield (embeddings_BD * gradient_UD[item.chunk.rows_B]).sum()

    def _keeps_graph(self, chunk: Chunk, left: float) -> bool:
        if self._recompute != "auto":
            return self._recompute == "never"
        length = chunk.input_ids_BL.shape[1]
        if length > self._measured_length:
            # The memory of so long a chunk is unknown. Its graph has to fit at least once, for the backward pass.
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
        # Autocast caches low-precision copies of the weights. Copies made without a graph would silently be used by the
        # next forward pass with a graph, and the weights would get no gradient.
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

        # An attribute of an instance shadows the forward method of its class. The model still loops over all blocks,
        # but each frozen block only returns what the last frozen block returned in the first pass.
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
    """Context manager that counts the bytes which autograd keeps for the backward pass, on any device.

    Args:
        parameters: Parameters of the model. Their memory does not count as part of the graph.
        counts: Function that returns whether a kept tensor counts; by default every tensor counts.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], counts: Callable[[Tensor], bool] = lambda _: True) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._left_out = {parameter.untyped_storage()._cdata for parameter in parameters}
        self._counts = counts
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Size of the kept tensors in bytes. A storage that several tensors share counts once."""
        return sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._left_out and self._counts(tensor):
            self._sizes[storage._cdata] = storage.nbytes()
        return tensor
