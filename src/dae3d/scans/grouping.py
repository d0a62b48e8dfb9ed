"""Which names belong to one subject, judged by all names of a data set together.

`subjects.subject_in_path` gives the scans of a patient one name if file names differ by a known sequence
name. Visits, studies and unknown words leave several names of one patient. They are joined here, by what the
names share:

1. A name is cut into words and identifiers: `ProstateX/10001/10001_1000001_hbv` has the identifiers 10001 and
   1000001. An identifier holds a digit. Dates (`20040312`), visits (`week-012`, `baseline`) and sequences
   (`T1`) are not identifiers as long as there is another one.
2. The subject is everything up to the first identifier that not too many names share: there are at least
   two such prefixes, with `MOST_VISITS` names or fewer to each on average, and what follows is not mostly
   words that occur once, as people's names do. So 10001 above is a patient, while in `01/patient_0001` to
   `01/patient_0300` 01 is a hospital.
3. Numbers of one length count as two identifiers if the last digits are a few consecutive numbers, the same
   after every prefix: 0100, 0101, 0102, 0200, 0201, ... are visits 00 to 02 of 01, 02, ...
4. Folders with different names that hold the same identifiers belong to the same subjects if each has its own
   modalities (`hbv/P001`, `cor/P001`).

When unsure, it makes one subject of two, which does no harm to a split, rather than two of one. Remaining
doubts are reported.
"""

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dae3d.scans.subjects import SEQUENCES

# Names per subject, on average and at most; prefixes that more names share are hospitals and data sets.
MOST_VISITS = 12
_MOST_OF_ONE = 36

# The least number of prefixes without an identifier ("anna_01", "anna_02") for them to be subjects, and of
# names to each on average.
_FEWEST_BY_WORD = 8
_SEVERAL = 1.5

# Marks words of a home that name a hospital or a data set, not a patient.
_PLACE = "@"

# Last digits that may be visits: at most so many different ones, each seen at least so often on average.
_MOST_ENDINGS = 5
_TIMES_SEEN = 4
_MOST_DIGITS = 7  # of such a number; dates have more

_TOKEN = re.compile(
    r"(?P<uid>\d+(?:\.\d+){3,})"
    r"|(?P<date>(?<!\d)(?:19|20)\d\d(?P<mark>[-_.]?)(?:0[1-9]|1[0-2])(?P=mark)(?:0[1-9]|[12]\d|3[01])(?!\d)"
    r"|(?<!\d)\d\d[-_.]\d\d[-_.](?:19|20)\d\d(?!\d))"
    r"|(?P<visit>(?<![^\W_])(?:visit|session|sess|ses|timepoint|tp|week|wk|month|mo|year|yr|day|followup|fu"
    r"|baseline|bl|fraction|frac|fx|wave)[-_. ]?\d{1,4}(?![^\W_]))"
    r"|(?P<study>(?<![^\W_])(?:vis|v|time|w|m|y|d|scan|study|exam|phase|series|acq|run|rep|echo)"
    r"[-_. ]?\d{1,4}(?![^\W_]))"
    r"|(?P<place>(?<![^\W_])(?:site|center|centre|hospital|clinic|scanner|batch|part|subset|fold|set|group|split"
    r"|task|dataset)[-_. ]?\d+(?![^\W_])|(?<![^\W_])[^\W\d_]+(?:19|20)\d\d(?![^\W_]))"
    r"|(?P<other>[^\W_]+)",
    re.IGNORECASE,
)
_KINDS = {"uid": "id", "date": "study"}
_VISITS = ("visit", "study")  # the second may also number patients
_YEAR = re.compile(r"(?:19|20)\d\d")
_DIGITS_AT_END = re.compile(r"(.*?)(\d+)")
# Words that do not identify a subject, before an identifier or in place of one.
_PASSED_OVER = re.compile(
    rf"{SEQUENCES}|pt|suv|spect|us|mra|tof|angio|asl|dti|mprage|mp2rage|unit1|t1map|t2map|bold"
    r"|baseline|bl|followup|fu|pre|post|preop|postop|prert|midrt|postrt|pretreatment|posttreatment|screening"
    r"|imagestr|imagests",
    re.IGNORECASE,
)


class Grouping(NamedTuple):
    """Subjects whose several names were joined, and doubts.

    `subject_of` maps each name that was replaced to its subject's name; `doubts` are messages about similar
    names that were kept apart.
    """

    subject_of: Mapping[str, str]
    doubts: Sequence[str]


class _Name(NamedTuple):
    """The parts of a name: `home` is the folder given and the words before the first identifier.

    `studies` are words with numbers that may number visits or patients.
    """

    home: str
    ids: tuple[str, ...]
    studies: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


class _Token(NamedTuple):
    kind: str  # "id", "visit", "study", "place" or "word"
    text: str


# The home of a name, then the identifiers that are its subject's.
_Key = tuple[str, ...]


def group(names: Mapping[str, Collection[str]]) -> Grouping:
    """Join the names of each subject; `names` maps each name to the modalities of its scans.

    A subject is called by the shortest of its names, the first in the alphabet among several, so a subject
    with one name keeps it.
    """
    parsed = {name: _parsed(name) for name in names}
    descriptions = _descriptions(parsed.values())
    homes: dict[str, list[str]] = defaultdict(list)
    for name, parts in parsed.items():
        homes[parts.home].append(name)
    keys: dict[str, _Key] = {}
    doubts: list[str] = []
    for home, inside in homes.items():
        told, doubt = _subjects_at(home, {name: parsed.pop(name) for name in inside}, descriptions)
        keys |= told
        doubts += doubt
    _join_by_word(keys)
    doubts += _join_by_modality(keys, names)
    return Grouping(_one_name_each(keys), doubts)


def _one_name_each(keys: Mapping[str, _Key]) -> dict[str, str]:
    first: dict[_Key, str] = {}
    for name, key in keys.items():
        other = first.setdefault(key, name)
        if (len(name), name) < (len(other), other):
            first[key] = name
    return {name: first[key] for name, key in keys.items() if first[key] != name}


def _parsed(name: str) -> _Name:
    root, _, rest = name.partition("/") if "/" in name else ("", "", name)
    parts = [_tokens(part) for part in rest.split("/")]
    own = [token.text for token in _tokens(root) if token.kind == "id"]
    ids = list(dict.fromkeys(token.text for part in parts for token in part if token.kind == "id"))
    if not ids:
        return _without_ids(root, own, parts)
    # If the folder given is named like its content, the names inside are enough.
    home = "" if set(own) & set(ids) else root
    seen: set[str] = set()
    words: list[str] = []
    studies: list[str] = []
    before = True
    for part in parts:
        home += "/" if before else ""
        for kind, text in part:
            before = before and kind != "id"
            if kind in ("id", "visit") or text in seen:
                continue
            seen.add(text)
            if kind == "study":
                studies.append(text)
            elif before:
                home += f"{_PLACE if kind == 'place' else ' '}{text}"
            else:
                words.append(text)
    return _Name(home, tuple(ids), tuple(studies), tuple(words))


def _without_ids(root: str, own: Sequence[str], parts: Sequence[Sequence[_Token]]) -> _Name:
    """A name without identifiers: its folders, and what precedes a visit, take their place."""
    ids = [*own]
    words: list[str] = []
    for part in parts:
        texts = [token.text for token in part if token.kind not in _VISITS]
        visits = [token.text for token in part if token.kind in _VISITS]
        if part is parts[-1] and not visits:
            words += texts if ids else texts[1:]
            texts = [] if ids else texts[:1]
        ids += filter(None, [" ".join(texts), *visits])
    return _Name("/" if own else f"{root}/", tuple(ids), words=tuple(words))


def _tokens(part: str) -> list[_Token]:
    if _YEAR.fullmatch(part):
        return [_Token("study", part)]
    return list(_tokens_in(part))


def _tokens_in(part: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(part):
        kind = _KINDS.get(str(match.lastgroup), str(match.lastgroup))
        text = match[0]
        if kind == "other":
            if _PASSED_OVER.fullmatch(text):
                continue
            kind = "id" if any(map(str.isdecimal, text)) else "word"
        yield _Token(kind, sys.intern(text))


def _descriptions(names: Iterable[_Name]) -> Collection[str]:
    """The studies and words that occur with several identifiers, and so do not belong to one patient."""
    first: dict[str, tuple[str, tuple[str, ...]]] = {}
    found = set()
    for name in names:
        for word in name.studies + name.words:
            if first.setdefault(word, (name.home, name.ids)) != (name.home, name.ids):
                found.add(word)
    return found


def _subjects_at(
    home: str, names: Mapping[str, _Name], descriptions: Collection[str]
) -> tuple[dict[str, _Key], list[str]]:
    """The subject key of each name of a home, and doubts."""
    split = _numbers_split({parts.ids for parts in names.values()})
    told = {
        name: (
            *split.get(parts.ids, parts.ids),
            *(text for text in parts.studies if text not in descriptions),
        )
        for name, parts in names.items()
    }
    ids = {
        name: (*told[name], *(word for word in parts.words if word not in descriptions))
        for name, parts in names.items()
    }
    count = len(set(ids.values()))
    if count > 2 * len(set(told.values())):
        return {name: (home, *found) for name, found in ids.items()}, []
    doubts: list[str] = []
    for depth in range(1, max(map(len, ids.values())) + 1):
        beginnings = Counter(found[:depth] for found in set(ids.values()))
        most = max(beginnings.values())
        if len(beginnings) >= 2 and count <= MOST_VISITS * len(beginnings) and most <= _MOST_OF_ONE:
            # The part before the subject is treated like a folder that holds many of them.
            return {
                name: (
                    f"{home}{' '.join(found[: depth - 1])}/" if depth > 1 else home,
                    *found[depth - 1 : depth],
                )
                for name, found in ids.items()
            }, doubts
        if len(beginnings) >= 2:
            first = min(beginnings)
            some = sorted(name for name, found in ids.items() if found[:depth] == first)
            doubts.append(f"names that begin alike are taken as different subjects: {some[0]} and {some[-1]}")
    return {name: (home, *found) for name, found in ids.items()}, doubts


def _numbers_split(found: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Identifiers whose last number joins those of subject and visit, with the two separated."""
    matches = {ids: _DIGITS_AT_END.fullmatch(ids[-1]) for ids in found if ids}
    numbers = {ids: (match[1], match[2]) for ids, match in matches.items() if match}
    lengths = {len(digits) for _, digits in numbers.values()}
    if len(numbers) < len(found) or len(lengths) != 1 or max(lengths) > _MOST_DIGITS:
        return {}
    for length in range(1, lengths.pop()):
        endings = {int(digits[-length:]) for _, digits in numbers.values()}
        beginnings = {(*ids[:-1], text, digits[:-length]) for ids, (text, digits) in numbers.items()}
        if (
            2 <= len(endings) <= _MOST_ENDINGS
            and max(endings) - min(endings) == len(endings) - 1
            and len(found) >= _TIMES_SEEN * len(endings)
            and 2 <= len(beginnings) < len(found)
        ):
            return {
                ids: (*ids[:-1], text + digits[:-length], digits[-length:])
                for ids, (text, digits) in numbers.items()
            }
    return {}


def _join_by_word(keys: dict[str, _Key]) -> None:
    """Use the words before the identifiers as the subject, if there are many with a few names each."""
    inside: dict[str, dict[str, set[_Key]]] = defaultdict(lambda: defaultdict(set))
    for home, *ids in keys.values():
        root, _, words = home.partition("/")
        if words.strip("/") and _PLACE not in words:
            inside[root][home].add(tuple(ids))
    for homes in inside.values():
        count = sum(map(len, homes.values()))
        if len(homes) >= _FEWEST_BY_WORD and _SEVERAL * len(homes) <= count <= MOST_VISITS * len(homes):
            keys |= {name: (key[0],) for name, key in keys.items() if key[0] in homes}


def _join_by_modality(keys: dict[str, _Key], names: Mapping[str, Collection[str]]) -> list[str]:
    """Join the same identifiers in differently named folders, if each folder has its own modalities."""
    same: dict[_Key, set[str]] = defaultdict(set)
    for home, *ids in keys.values():
        root, *folders, words = home.split("/")
        places = _PLACE.join(folder for folder in folders if _PLACE in folder)
        if ids:
            same[root, places, words, *ids].add(home)
    several = [[(home, *ids[3:]) for home in sorted(homes)] for ids, homes in same.items() if len(homes) > 1]
    kinds: dict[_Key, set[str]] = {key: set() for here in several for key in here}
    for name, key in keys.items():
        if key in kinds:
            kinds[key].update(names[name])
    joined: dict[_Key, _Key] = {}
    apart: dict[_Key, str] = {}
    for here in several:
        each = [kinds[key] for key in here]
        if sum(map(len, each)) == len(set().union(*each)):
            joined |= dict.fromkeys(here, here[0])
        else:
            apart |= dict.fromkeys(here, "")
    for name, key in keys.items():
        if key in apart:
            apart[key] = apart[key] or name
        elif key in joined:
            keys[name] = joined[key]
    if not apart:
        return []
    one, other, *_ = apart.values()
    return [f"the same names in several folders are taken as different subjects: {one} and {other}"]
