"""Block freezing: most of the quality of full fine-tuning, for less compute and memory."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from embedlab.errors import ConfigError
from embedlab.method import FineTuningMethod, decoder_blocks


class BlockFreezing(FineTuningMethod):
    """Freeze the embeddings and the first blocks, and train the other blocks and the final norm.

    The method is that of Ziarko et al. 2024, arXiv:2406.04165. No gradient flows back into the frozen layers, so they
    cost a forward pass and no backward pass. All layers that run before the first block count as embeddings: token and
    position tables, and a norm or a projection of the embeddings if the architecture has one.

    Args:
        blocks: Number of first blocks to freeze: a count (an int of at least 0), or a fraction of all blocks (a float
            between 0 and 1), which is rounded to the nearest count (halves to the even count). 0 freezes only the
            embeddings.

    Raises:
        ConfigError: If ``blocks`` is neither a count nor a fraction, or freezes every block of the backbone.
    """

    def __init__(self, *, blocks: int | float = 0.5) -> None:
        is_number = isinstance(blocks, int | float) and not isinstance(blocks, bool)
        if not is_number or blocks < 0 or (isinstance(blocks, float) and not 0 < blocks < 1):
            raise ConfigError(
                "BlockFreezing blocks must be a count of at least 0 (an int) or a fraction between 0 and 1 (a float), "
                f"got blocks={blocks!r}. Leave it out for the default of 0.5."
            )
        self.blocks = blocks

    def prepare(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Freeze the embeddings and the first blocks, and unfreeze all other weights.

        Raises:
            ConfigError: If no block is left to train.
        """
        blocks = decoder_blocks(backbone)
        frozen = _embedding_side(backbone, blocks[0])
        for block in blocks[: self._num_frozen(len(blocks))]:
            frozen.update(block.parameters())
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter.is_floating_point() and parameter not in frozen)
        return backbone

    def _num_frozen(self, num_blocks: int) -> int:
        fraction = isinstance(self.blocks, float)
        num_frozen = round(self.blocks * num_blocks) if fraction else int(self.blocks)
        if num_frozen >= num_blocks:
            meant = f" (blocks={self.blocks} of {num_blocks}, rounded)" if fraction else ""
            raise ConfigError(
                f"BlockFreezing would freeze {num_frozen} blocks{meant}, but the backbone has {num_blocks} blocks and "
                f"at least one must be trained. Set blocks to at most {num_blocks - 1}, or to a smaller fraction."
            )
        return num_frozen


class _FirstBlockReached(Exception):
    """The first block was reached: ends the forward pass that ``_embedding_side`` observes."""


def _embedding_side(backbone: PreTrainedModel, first_block: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that a forward pass uses before the first block.

    The parameters are found in a forward pass over one token, because neither names nor the order of registration
    distinguish layers before the blocks from layers after the blocks (OPT registers its final norm first). The forward
    pass ends at the first block, so that no layer runs that needs a certain device (flash attention, quantized layers).
    """
    reached: set[nn.Parameter] = set()

    def record(module: nn.Module, _inputs: object) -> None:
        if module is first_block:
            raise _FirstBlockReached
        reached.update(module.parameters(recurse=False))

    handles = [module.register_forward_pre_hook(record) for module in backbone.modules()]
    token = int(backbone.config.get_text_config().pad_token_id == 0)  # transformers warns of unmasked padding
    input_ids = torch.full((1, 1), token, device=backbone.device)
    # On the meta device an attention mask of ones works only with eager attention, and GPT-2 does not work without one.
    mask = torch.ones_like(input_ids) if backbone.config._attn_implementation == "eager" else None
    try:
        with torch.no_grad():
            backbone(input_ids=input_ids, attention_mask=mask)
    except _FirstBlockReached:
        return reached
    finally:
        for handle in handles:
            handle.remove()
    raise AssertionError("a decoder's forward pass runs its first block")
