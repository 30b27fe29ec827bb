"""Says where a key stands between training, validation and test, so that every part that holds data out agrees."""

from __future__ import annotations

import hashlib


def split_position(key: str) -> float:
    """A stable hash of ``key`` as a number in [0, 1).

    Validation takes the keys below its fraction, test those from one minus its fraction on. The same key has
    the same position on every machine and in every run.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    # 53 bits, all that a float holds: with 64 the largest hashes would round to 1.
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)
