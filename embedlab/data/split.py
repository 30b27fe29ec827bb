"""Assigns keys to training, validation and test, so that all code that holds data out agrees on the split."""

from __future__ import annotations

import hashlib


def split_position(key: str) -> float:
    """Return a stable hash of ``key`` as a number in [0, 1).

    Keys with a number below the validation fraction belong to validation. Keys with a number of at least one minus the
    test fraction belong to the test split. A key has the same number on every machine and in every run.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    # A float holds 53 bits. With all 64 bits of the hash, the largest hashes would round to 1.
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)
