"""Says of each source and evaluation set, once, what of it is used and what is left out: nothing is lost in silence."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from embedlab.data.rows import counts_of
from embedlab.data.texts import TokenizedTexts
from embedlab.data.tokenized import TokenizedPairs

# Shares above which a warning says what to do.
_MUCH_SKIPPED = 0.01
_MUCH_CUT = 0.5
_MUCH_IN_NO_BATCH = 0.1


class Summary:
    """One line of counts, and warnings of those that are a large share.

    Args:
        name: Name of the source or evaluation set.
        max_length: Number of tokens at which texts are cut.
    """

    def __init__(self, name: str, *, max_length: int) -> None:
        self.name = name
        self.max_length = max_length
        self._counts: list[str] = []
        self._notes: list[str] = []
        self._warnings: list[str] = []

    def add(self, count: int, what: str, *, of: int = 0, much: float = 1.0, remedy: str = "") -> None:
        """Add a count unless it is 0.

        Args:
            count: The number.
            what: What was counted.
            of: Number of all of them.
            much: Share of all above which the user is warned.
            remedy: What the user can do then.
        """
        if count:
            self._counts.append(f"{count:,} {what}")
            if of and count > much * of:
                self._warnings.append(f"{self.name}: {count:,} {what}, of {of:,}. {remedy}")

    def add_skipped(self, store: TokenizedPairs) -> None:
        """Add the rows of a source that cannot be used."""
        skipped = sum(store.skipped.values())
        self.add(
            skipped,
            f"row{'s' * (skipped != 1)} skipped ({counts_of(store.skipped)})",
            of=len(store) + skipped,
            much=_MUCH_SKIPPED,
            remedy="Leave on_error: skip out to see the first of them.",
        )

    def add_left_out(self, num_left_out: int, num_pairs: int) -> None:
        """Add the pairs to train on that fill no batch."""
        self.add(
            num_left_out,
            "pairs that fill no batch",
            of=num_pairs,
            much=_MUCH_IN_NO_BATCH,
            remedy="Every epoch leaves out as many: a batch is full and holds no text twice. Lower data.batch_size.",
        )

    def add_cut(self, texts: TokenizedTexts) -> None:
        """Add the texts that are longer than the model is to see."""
        self.add(
            texts.num_truncated,
            f"texts cut at {self.max_length} tokens",
            of=len(texts),
            much=_MUCH_CUT,
            remedy="Raise data.max_length if what matters in them comes later.",
        )

    def add_notes(self, *notes: str) -> None:
        """Add what else was left out or assumed when the files were read."""
        self._notes += filter(None, notes)

    def show(self) -> None:
        """Print the line, then warn."""
        print(f"{self.name}: {'; '.join([', '.join(self._counts), *self._notes])}", flush=True)
        for warning in self._warnings:
            rank_zero_warn(warning)
