"""Prints once, for each source and evaluation set, which data are used and left out, so that no loss goes unnoticed."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from embedlab.data.rows import counts_of
from embedlab.data.texts import TokenizedTexts
from embedlab.data.tokenized import TokenizedPairs

# Shares above which a warning tells the user what to do.
_MUCH_SKIPPED = 0.01
_MUCH_CUT = 0.5
_MUCH_IN_NO_BATCH = 0.1


class Summary:
    """One line of counts for a source or evaluation set, and warnings about counts that are a large share.

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
            count: Number to add.
            what: Name of the things that were counted.
            of: Total number that the count is a share of. With 0 there is no warning.
            much: Share of the total above which the user is warned.
            remedy: Sentence for the warning that says what the user can do.
        """
        if count:
            self._counts.append(f"{count:,} {what}")
            if of and count > much * of:
                self._warnings.append(f"{self.name}: {count:,} {what}, of {of:,}. {remedy}")

    def add_skipped(self, store: TokenizedPairs) -> None:
        """Add to the summary how many rows of a source were skipped because they cannot be used."""
        skipped = sum(store.skipped.values())
        self.add(
            skipped,
            f"row{'s' * (skipped != 1)} skipped ({counts_of(store.skipped)})",
            of=len(store) + skipped,
            much=_MUCH_SKIPPED,
            remedy="Remove on_error: skip to see the first skipped row.",
        )

    def add_left_out(self, num_left_out: int, num_pairs: int) -> None:
        """Add the number of training pairs that fill no batch."""
        self.add(
            num_left_out,
            "pairs that fill no batch",
            of=num_pairs,
            much=_MUCH_IN_NO_BATCH,
            remedy="Every epoch leaves out this many: a batch is full and holds no text twice. Lower data.batch_size.",
        )

    def add_cut(self, texts: TokenizedTexts) -> None:
        """Add the number of texts that were cut at the maximum length."""
        self.add(
            texts.num_truncated,
            f"texts cut at {self.max_length} tokens",
            of=len(texts),
            much=_MUCH_CUT,
            remedy="Raise data.max_length if the relevant parts of these texts come later.",
        )

    def add_notes(self, *notes: str) -> None:
        """Add remarks about further data that were left out, or about assumptions in reading the files."""
        self._notes += filter(None, notes)

    def show(self) -> None:
        """Print the line of counts, then the warnings."""
        print(f"{self.name}: {'; '.join([', '.join(self._counts), *self._notes])}", flush=True)
        for warning in self._warnings:
            rank_zero_warn(warning)
