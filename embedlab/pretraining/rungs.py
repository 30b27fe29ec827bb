"""Defines the shapes of the models in the ladder, independent of how the models are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import GPTNeoXConfig

from embedlab.errors import ConfigError, suggestion


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The shape of one model in a ladder.

    Args:
        name: Name of the rung, and of its folder in the ladder.
        width: Dimension of the hidden states. The MLP is 4 times as wide. Must be a multiple of 8 times the number of
            attention heads.
        blocks: Number of blocks; each block has one attention layer and one MLP.
        heads: Number of attention heads per block.

    Raises:
        ConfigError: If the name cannot be the name of a folder, or the shape is impossible.
    """

    name: str
    width: int
    blocks: int
    heads: int

    def __post_init__(self) -> None:
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ConfigError(
                f"The name of a rung is the name of its folder, and cannot be '{self.name}'. Expected a name without "
                "slashes that does not begin with a dot."
            )
        if self.blocks < 1 or self.heads < 1 or self.width < 1 or self.width % (8 * self.heads):
            raise ConfigError(
                f"Rung '{self.name}' cannot have width={self.width}, blocks={self.blocks}, heads={self.heads}. Each "
                "must be at least 1, and width a multiple of 8 * heads (a quarter of each head is rotated in pairs)."
            )

    @property
    def default_learning_rate(self) -> float:
        """Peak learning rate if none is set: inversely proportional to the width, and 6e-3 for a width of 64."""
        return 0.384 / self.width


RUNGS = (
    Rung(name="s0", width=32, blocks=2, heads=2),
    Rung(name="s1", width=48, blocks=2, heads=2),
    Rung(name="r0", width=64, blocks=3, heads=2),
    Rung(name="r1", width=128, blocks=4, heads=4),
    Rung(name="r2", width=192, blocks=6, heads=6),
    Rung(name="r3", width=256, blocks=8, heads=8),
    Rung(name="r4", width=384, blocks=9, heads=6),
    Rung(name="r5", width=576, blocks=10, heads=9),
)
"""The default ladder.

Rungs r0 to r5 have 0.15, 0.79, 2.7, 6.3, 16 and 40 million parameters without embeddings. Rungs s0 and s1 have 0.03 and
0.06 million parameters and are pre-trained within a minute, so that small examples of a search have several sizes.
"""


def rung_named(name: str) -> Rung:
    """Return a rung of the default ladder.

    Args:
        name: Name of the rung, for example ``r0``.

    Raises:
        ConfigError: If no rung has this name.
    """
    known = {rung.name: rung for rung in RUNGS}
    if name not in known:
        raise ConfigError(f"There is no rung '{name}'. Rungs: {', '.join(known)}.{suggestion(name, known)}")
    return known[name]


def model_config(rung: Rung, *, vocabulary: int, context: int, learning_rate: float) -> GPTNeoXConfig:
    """Return the configuration of the model of a rung.

    Args:
        rung: Shape of the model.
        vocabulary: Number of tokens in the vocabulary.
        context: Number of tokens per sequence in pre-training. The model has positions for 4 times as many tokens.
        learning_rate: Peak learning rate of pre-training. The configuration stores it, because fine-tuning derives its
            default learning rate from it.
    """
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=rung.width,
        intermediate_size=4 * rung.width,
        num_hidden_layers=rung.blocks,
        num_attention_heads=rung.heads,
        max_position_embeddings=4 * context,  # rotary positions have no parameters to learn
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    config.pretraining_peak_learning_rate = learning_rate
    return config
