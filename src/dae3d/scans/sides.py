"""The axes of a body, and classes that are distinguished by left and right alone.

A left kidney mirrored along the left-right axis is a right kidney. The names of classes show where that
matters: "left kidney", "kidney_r" beside "kidney_l", "ctx-lh-insula", "Niere rechts", "rein gauche".
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

Axis = Literal["lr", "ap", "si"]

# Left-right, front-back (anterior-posterior), up-down (superior-inferior): the axes of an array in RAS.
AXES: tuple[Axis, ...] = get_args(Axis)
AXES_SHOWN = "lr (left-right), ap (front-back), si (up-down)"

# Words that always name a side.
_TOLD = re.compile(
    r"(?:left|right|links|rechts|sinist|dext)\w*|lh|rh"
    r"|linke[rsnm]?|rechte[rsnm]?|gauche?s?|droite?s?"
    r"|izquierd[oa]s?|izqd?[oa]?|izd[oa]|derech[oa]s?|dch[oa]"
    r"|esquerd[oa]s?|direit[oa]s?|destr[oaie]"
    r"|лев\w+|прав\w+|左\w*|右\w*"
)
# Words that name a side if the class of the other side exists too: "l" may mean many things.
_PAIRED = (
    *(("l", "r"), ("lt", "rt"), ("li", "re"), ("g", "d"), ("izq", "der"), ("esq", "dir")),
    *(("sin", "dex"), ("sin", "dx"), ("sx", "dx")),
)

# Words of letters with a number at the end, split at changes of case as well: "kidneyL", "L5", "Niere_re".
_WORD = re.compile(r"[A-ZÀ-ÖØ-Þ]+(?![a-zß-öø-ÿ])\d*|[A-ZÀ-ÖØ-Þ]?[^\W\d_A-ZÀ-ÖØ-Þ]+\d*|\d+")


def sided(names: Iterable[str]) -> list[str]:
    """The names that contain a side, in their order, by words in several languages."""
    words = {name: tuple(word.casefold() for word in _WORD.findall(name)) for name in names}
    all_words = set(words.values())
    return [
        name
        for name, own in words.items()
        if any(map(_TOLD.fullmatch, own)) or any(other in all_words for other in _other_sides(own))
    ]


def telling(names: Sequence[str]) -> str:
    """The beginning of a message about classes that are left or right."""
    more = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return f"names of classes tell left from right ({', '.join(names[:3])}{more})"


def _other_sides(words: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """The possible names of the class of the other side."""
    for place, word in enumerate(words):
        for pair in (*_PAIRED, *(pair[::-1] for pair in _PAIRED)):
            if word == pair[0]:
                yield (*words[:place], pair[1], *words[place + 1 :])
