"""The shapes of the ladder's models, apart from how they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import GPTNeoXConfig

from embedlab.errors import ConfigError, suggestion


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The shape of one model.

    Args:
        name: of its folder.
        width: of the hidden states; the MLP is four times as wide.
        blocks: attention and MLP.
        heads: of attention; each needs a multiple of eight dimensions.
    """

    name: str
    width: int
    blocks: int
    heads: int

    def __post_init__(self) -> None:
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ConfigError(f"A rung's name is that of its folder, got '{self.name}'.")
        if self.blocks < 1 or self.heads < 1 or self.width < 1 or self.width % (8 * self.heads):
            raise ConfigError(
                f"Rung '{self.name}' cannot have width={self.width}, blocks={self.blocks}, heads={self.heads}. Each "
                "must be at least 1, and the width a multiple of 8 for each head (a quarter of it is rotated in pairs)."
            )

    @property
    def default_learning_rate(self) -> float:
        """The peak learning rate if none is set, in inverse proportion to the width."""
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
"""The default ladder: 0.15, 0.79, 2.7, 6.3, 16 and 40 million parameters without the embeddings; and below it two rungs
that are pre-trained within a minute, 0.03 and 0.06 million, so that a search in miniature has sizes to choose from."""


def rung_named(name: str) -> Rung:
    """A rung of the default ladder.

    Raises:
        ConfigError: if there is none of this name.
    """
    known = {rung.name: rung for rung in RUNGS}
    if name not in known:
        raise ConfigError(f"There is no rung '{name}'. Rungs: {', '.join(known)}.{suggestion(name, known)}")
    return known[name]


def model_config(rung: Rung, *, vocabulary: int, context: int, learning_rate: float) -> GPTNeoXConfig:
    """The configuration of a rung's model.

    Args:
        rung: its shape.
        vocabulary: tokens of the tokenizer.
        context: tokens of a sequence in pre-training.
        learning_rate: the peak of pre-training; fine-tuning derives its own from it.
    """
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=rung.width,
        intermediate_size=4 * rung.width,
        num_hidden_layers=rung.blocks,
        num_attention_heads=rung.heads,
        max_position_embeddings=4 * context,  # rotary: nothing to learn for a position
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    config.pretraining_peak_learning_rate = learning_rate
    return config
