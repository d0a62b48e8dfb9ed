"""Values that differ in rounding or spelling alone: numbers, positions, texts of headers."""

import math
import re
from collections.abc import Collection

import numpy as np

# Numbers below are compared by their difference, those above by their ratio.
_SMALL = 0.1


def leaders(vectors: np.ndarray, within: float) -> list[int]:
    """For each row the index of one nearly equal to it, by no more than `within` in any number."""
    # Takes a third of a second to import.
    from scipy.spatial import cKDTree

    # Equal ones count once, or memory would grow with their square.
    _, firsts, numbers = np.unique(vectors.round(6), axis=0, return_index=True, return_inverse=True)
    distinct = vectors[firsts]
    found = np.full(len(distinct), -1)
    for i, near in enumerate(cKDTree(distinct).query_ball_point(distinct, within, p=np.inf)):
        if found[i] < 0:
            found[[j for j in near if found[j] < 0]] = firsts[i]
    return [int(leader) for leader in found[numbers.ravel()]]


def alike_texts(texts: Collection[str], share: float = 0.0) -> dict[str, str]:
    """For each text the first of those like it: with the same words, in upper or lower case, and numbers.

    Numbers are the same that differ by no more than a `share` of themselves: "85" and "85.0" always are.
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
