"""Values that differ only in rounding or spelling: numbers, positions, texts of headers."""

import math
import re
from collections.abc import Collection

import numpy as np

# Numbers below this are compared by difference, those above by ratio.
_SMALL = 0.1


def leaders(vectors: np.ndarray, within: float) -> list[int]:
    """For each row the index of one nearly equal to it: no number differs by more than `within`."""
    # Its import takes a third of a second.
    from scipy.spatial import cKDTree

    # Duplicates are removed, or memory would grow with the square of their number.
    _, firsts, numbers = np.unique(vectors.round(6), axis=0, return_index=True, return_inverse=True)
    distinct = vectors[firsts]
    found = np.full(len(distinct), -1)
    for i, near in enumerate(cKDTree(distinct).query_ball_point(distinct, within, p=np.inf)):
        if found[i] < 0:
            found[[j for j in near if found[j] < 0]] = firsts[i]
    return [int(leader) for leader in found[numbers.ravel()]]


def alike_texts(texts: Collection[str], share: float = 0.0) -> dict[str, str]:
    """For each text the first one like it: with the same words, ignoring case, and the same numbers.

    Numbers are the same if they differ by at most a `share` of themselves: "85" and "85.0" always are.
    """
    distinct = sorted(set(texts))
    by_words: dict[tuple[str | None, ...], list[tuple[str, list[float]]]] = {}
    for text in distinct:
        parts = [(part.upper(), _number(part)) for part in re.split(r"[ \\]+", text.strip())]
        words = tuple(word if number is None else None for word, number in parts)
        by_words.setdefault(words, []).append((text, [number for _, number in parts if number is not None]))
    found: dict[str, str] = {}
    for members in by_words.values():
        numbers = np.array([numbers for _, numbers in members])
        if len(members) == 1 or not numbers.size:
            found |= dict.fromkeys((text for text, _ in members), members[0][0])
            continue
        if share:
            numbers = np.arcsinh(numbers / _SMALL)
        first = leaders(numbers, math.log1p(share))
        found |= {text: members[i][0] for (text, _), i in zip(members, first, strict=True)}
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
