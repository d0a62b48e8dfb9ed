"""Units of length, as image headers spell them."""

_NAMES = {
    1e-6: ("nanometres", "nm nanometer nanometers nanometre nanometres"),
    # Unicode has two micro signs; in Latin-1 it is the byte B5, which is not UTF-8.
    1e-3: ("micrometres", "um µm μm \udcb5m micron microns micrometer micrometers micrometre micrometres"),
    1.0: ("millimetres", "mm millimeter millimeters millimetre millimetres"),
    10.0: ("centimetres", "cm centimeter centimeters centimetre centimetres"),
    1000.0: ("metres", "m meter meters metre metres"),
}
_MM = {word: mm for mm, (_, words) in _NAMES.items() for word in words.split()}
_SHOWN = 20  # characters of a word that is not a unit


def mm_in(word: str) -> float | None:
    """The size in mm of the unit that a header calls `word`; None if it is not a unit of length."""
    return _MM.get(word.strip().lower())


def units_as_mm(words: list[str]) -> tuple[tuple[float, ...], str]:
    """The size in mm of each axis's unit, and a remark if they are not all mm.

    A missing unit ("" or "?") is read as mm, and so is a word that is not a unit of length.
    """
    sizes = [mm_in(word) for word in words]
    told = tuple(size or 1.0 for size in sizes)
    strange = [
        word for word, size in zip(words, sizes, strict=True) if size is None and word not in ("", "?", "???")
    ]
    remarks = []
    if set(told) != {1.0}:
        remarks.append(_converted(told))
    if strange:
        remarks.append(f"its unit is called {strange[0][:_SHOWN]!r}, which is not a length: read as mm")
    return told, "; ".join(remarks)


def _converted(told: tuple[float, ...]) -> str:
    if len(set(told)) == 1:
        return f"its unit is {_NAMES[told[0]][0]}, multiplied by {told[0]:g} to get mm"
    names = ", ".join(_NAMES[mm][0] for mm in told)
    return f"its units are {names}, multiplied by {', '.join(f'{mm:g}' for mm in told)} to get mm"
