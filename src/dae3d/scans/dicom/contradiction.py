"""Labels that contradict the header: a CT labelled t1, an MR labelled ct."""

import re

# By the header's Modality (PS3.3 C.7.3.1.1.1): its name, and its labels, which may have more after the first
# word ("ct-phantom"). Labels of no particular scanner ("angio", "perf", any of the user's own) contradict
# nothing.
_SCANNERS = {
    "CT": ("CT", ("ct", "cbct")),
    "MR": (
        "MR",
        (
            *(
                "mr",
                "mri",
                "t1",
                "t1w",
                "t1ce",
                "t1c",
                "t1gd",
                "t2",
                "t2w",
                "t2star",
                "flair",
                "stir",
                "pd",
                "pdw",
            ),
            *(
                "dwi",
                "dti",
                "adc",
                "fa",
                "md",
                "swi",
                "bold",
                "fmri",
                "asl",
                "unit1",
                "t1map",
                "t2map",
                "qsm",
            ),
        ),
    ),
    "PT": ("PET", ("pet",)),
    "NM": ("SPECT", ("spect",)),
    "US": ("ultrasound", ("us",)),
}


def contradiction(label: str, scanner: str) -> str | None:
    """How `label` contradicts the Modality `scanner` in a series' header; None if it does not."""
    if scanner not in _SCANNERS:
        return None
    word = re.split(r"[-_.+]", label)[0]
    said, own = _SCANNERS[scanner]
    others = {other for key, (_, labels) in _SCANNERS.items() if key != scanner for other in labels}
    if word in own or word not in others:
        return None
    return f"header contradicts the label: {said}, not {label} (--force-modality keeps the label)"
