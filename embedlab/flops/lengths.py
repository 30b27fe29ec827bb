"""Finds what a text of any length costs from measurements at a few lengths, also where the cost rises in steps.

Some models process a text in blocks and pad it to whole blocks. Their cost jumps where a block begins, and is a
polynomial of the text length only in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_FIRST = 2  # shortest length that is measured: some models process a single token in another way
_BLOCKS_FROM = 9  # shortest length at which steps are looked for
_MOST_PIECES = 6  # pieces that are looked at until two of equal length follow each other
_SHORTEST_PERIOD = 4  # a piece needs three lengths for its polynomial and one to confirm it
_SAME = 1e-6  # relative difference of costs that are on one polynomial
_RIGHT = 1e-3  # relative error of a predicted cost that is accepted
_BETWEEN = 5e-4  # relative error of interpolation that is accepted
_MOST_MEASUREMENTS = 64  # measurements of a cost whose steps do not repeat


def fitted(flops: Mapping[int, int]) -> tuple[float, float, float]:
    """Return the coefficients of the polynomial of degree two through three points.

    Args:
        flops: FLOPs by text length in tokens, at three lengths.

    Returns:
        Constant, coefficient of the length, and coefficient of the squared length. Whole numbers are exact.
    """
    (x0, y0), (x1, y1), (x2, y2) = ((Fraction(length), Fraction(value)) for length, value in flops.items())
    slope = (y1 - y0) / (x1 - x0)
    square = ((y2 - y0) / (x2 - x0) - slope) / (x2 - x1)
    linear = slope - square * (x0 + x1)
    constant = y0 - linear * x0 - square * x0**2
    found = (int(c) if c.denominator == 1 else float(c) for c in (constant, linear, square))
    return tuple(found)  # type: ignore[return-value]


def costs_by_length(measure: Callable[[int], int], max_length: int) -> dict[int, float]:
    """Return costs at lengths between which costs can be interpolated linearly, with an error below 0.5 %.

    The cost of a model that processes texts in blocks is found from its first few blocks, whatever their size, and
    verified at longer texts. A cost that does not repeat in this way is measured at up to 64 lengths, where it bends
    most. Its interpolation may have a larger error.

    Args:
        measure: Function that returns the FLOPs of a text with a number of tokens.
        max_length: Number of tokens of the longest text, at least 9.

    Returns:
        FLOPs by text length in tokens, in ascending order of the length.
    """
    measure = cache(measure)
    costs = _repeated(measure, max_length) or _refined(measure, max_length)
    first, second, third, fourth = (costs[_FIRST + n] for n in range(4))
    of_one = 3 * first - 3 * second + third
    if abs(first - 3 * second + 3 * third - fourth) <= _RIGHT * of_one:  # no step within the shortest lengths
        costs = {_FIRST - 1: of_one, **costs}
    return _thinned(costs)


class _Piece(NamedTuple):
    """Lengths from ``start`` to ``end`` whose costs are on one polynomial, with the function that gives the costs."""

    start: int
    end: int
    cost: Callable[[int], float]

    @property
    def size(self) -> int:
        return self.end - self.start + 1


def _repeated(measure: Callable[[int], int], max_length: int) -> dict[int, float] | None:
    """Return the cost at every length, if it is a polynomial but for steps at equal distances. None if it is not."""
    pieces = _pieces(measure, max_length)
    costs: dict[int, float] = {length: measure(length) for length in range(_FIRST, _BLOCKS_FROM)}
    for piece in pieces:
        costs |= {length: piece.cost(length) for length in range(piece.start, piece.end + 1)}
    last = pieces[-1].end
    if _is_periodic(pieces):
        period, pieces = pieces[-1].size, pieces[-3:]
    elif last < max_length:
        # Steps at every second or third length leave no polynomial to find, but repeat after six lengths.
        if last >= _BLOCKS_FROM + 3 * _MOST_PIECES:
            return None
        period, pieces = 6, [_Piece(last - 6 * n - 5, last - 6 * n, measure) for n in (2, 1, 0)]
    if last < max_length:
        pattern = {n: piece.cost(n) for piece in pieces for n in range(piece.end + 1 - period, piece.end + 1)}
        for length in range(last + 1, max_length + 1):
            one, two, three = (pattern[length - n * period] for n in (1, 2, 3))
            pattern[length] = costs[length] = 3 * one - 3 * two + three  # a polynomial of the number of blocks
        middle = last + (max_length - last) // (2 * period) * period  # where a block ends
        checks = (middle, min(middle + 1, max_length), max_length)
        if any(abs(costs[length] - measure(length)) > _RIGHT * measure(length) for length in checks):
            return None
    return costs


def _pieces(measure: Callable[[int], int], max_length: int) -> list[_Piece]:
    """Return the first pieces, up to the longest text or until pieces of equal length follow each other.

    A piece of less than three lengths at the end holds its measurements. A piece of three lengths may hold a step,
    since nothing confirms its polynomial, but is right at these lengths.
    """
    pieces: list[_Piece] = []
    start = _BLOCKS_FROM
    while start <= max_length and len(pieces) < _MOST_PIECES and not _is_periodic(pieces):
        if start + 2 > max_length:
            pieces.append(_Piece(start, max_length, measure))
            break
        constant, linear, square = fitted({length: measure(length) for length in range(start, start + 3)})

        def cost(length: int, a: float = constant, b: float = linear, c: float = square) -> float:
            return a + b * length + c * length**2

        def agrees(length: int, cost: Callable[[int], float] = cost) -> bool:
            return abs(cost(length) - measure(length)) <= _SAME * measure(length)

        end = _last(agrees, start + 2, start + pieces[-1].size - 1 if pieces else 0, max_length)
        pieces.append(_Piece(start, end, cost))
        start = end + 1
    return pieces


def _is_periodic(pieces: list[_Piece]) -> bool:
    """Return whether the last three pieces are confirmed, and the last two of equal length. The first may be cut."""
    if len(pieces) < 3:
        return False
    first, second, third = (piece.size for piece in pieces[-3:])
    return _SHORTEST_PERIOD <= second == third and _SHORTEST_PERIOD <= first <= second


def _last(agrees: Callable[[int], bool], start: int, guess: int, max_length: int) -> int:
    """Return the last length that agrees, if all lengths from ``start`` agree up to it and none after it does.

    Args:
        agrees: Function that returns whether a length agrees.
        start: Length that agrees.
        guess: Length that is tried first.
        max_length: Maximum length.
    """
    if start < guess < max_length and agrees(guess) and not agrees(guess + 1):
        return guess
    good, step = start, 1
    while good < max_length:
        probe = min(good + step, max_length)
        if not agrees(probe):
            break
        good, step = probe, 2 * step
    else:
        return max_length
    while probe - good > 1:
        middle = (good + probe) // 2
        good, probe = (middle, probe) if agrees(middle) else (good, middle)
    return good


def _thinned(costs: Mapping[int, float]) -> dict[int, float]:
    """Return the costs at as many lengths as interpolation needs."""
    lengths, values = np.array(list(costs)), np.array(list(costs.values()), dtype=np.float64)
    kept, waiting = {0, len(lengths) - 1}, [(0, len(lengths) - 1)]
    while waiting:
        low, high = waiting.pop()
        if high - low < 2:
            continue
        between = slice(low, high + 1)
        line = np.interp(lengths[between], lengths[[low, high]], values[[low, high]])
        errors = np.abs(line - values[between]) / values[between]
        worst = low + int(errors.argmax())
        if errors.max() > _BETWEEN:
            kept.add(worst)
            waiting += [(low, worst), (worst, high)]
    return {int(lengths[row]): costs[int(lengths[row])] for row in sorted(kept)}


def _refined(measure: Callable[[int], int], max_length: int) -> dict[int, float]:
    """Return the cost at every length, from measurements in the middle of intervals in which interpolation is wrong.

    What is interpolated is the difference from a polynomial through three lengths. There are at most 64 measurements.
    """
    constant, linear, square = fitted({length: measure(length) for length in (_FIRST, max_length // 2, max_length)})
    lengths = np.arange(_FIRST, max_length + 1)
    base = dict(zip(lengths.tolist(), constant + linear * lengths + square * lengths**2.0, strict=True))
    found = {length: measure(length) - base[length] for length in (_FIRST, max_length // 2, max_length)}
    waiting = deque(pairwise(found))
    while waiting and len(found) < _MOST_MEASUREMENTS:
        low, high = waiting.popleft()
        middle = (low + high) // 2
        probes = [length for length in (middle, middle + 1) if low < length < high]  # a step may lie between the two
        lines = np.interp(probes, [low, high], [found[low], found[high]])
        found |= {length: measure(length) - base[length] for length in probes}
        if any(abs(line - found[n]) > _BETWEEN * measure(n) for n, line in zip(probes, lines, strict=True)):
            waiting += [(a, b) for a, b in pairwise([low, *probes, high]) if b - a > 1]
    measured = sorted(found)
    rest = np.interp(lengths, measured, [found[length] for length in measured])
    return {length: base[length] + float(one) for length, one in zip(base, rest, strict=True)}
