"""Raw data sets of nnU-Net: `dataset.json`, and for each channel a file `imagesTr/<case>_0000.nii.gz`, ...

Version 1 lists its cases as the Medical Segmentation Decathlon does, by names without the channel's number;
version 2 lists none, or has them under `dataset`
(https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dae3d.scans.readers import scan_stem, suffix

_PARTS = ("training", "validation", "test")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")
_LOOKED_AT = 20  # entries checked to recognise nnU-Net's lists


def channel_of(file: Path) -> tuple[str, int] | None:
    """The case in a file's name, and the number of its channel: `a_0001.nii.gz` -> ("a", 1)."""
    match = _CHANNEL.fullmatch(scan_stem(file))
    return (match["case"], int(match["number"])) if match else None


def with_channels(home: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A list of nnU-Net's with the files of all channels for each case; other lists unchanged.

    Names start from the folder `home`. An entry's `case_file` is the name of the case in a list of version 1.
    The cases of version 2 are those in its folders. Each has all channels that the list names, whether their
    files exist or not.
    """
    channels = content.get("modality") or content.get("channel_names")
    if not isinstance(channels, dict):
        return content
    entries = [entry for part in _PARTS for entry in _list(content.get(part))]
    if not entries:
        return {**content, **_cases(home, content.get("dataset"), len(channels))}
    # From both ends: for prediction there may be only the test cases.
    images = list(filter(None, map(_single_image, [*entries[:_LOOKED_AT], *entries[-_LOOKED_AT:]])))
    if not any(not (home / image).exists() and (home / _channel_file(image, 0)).exists() for image in images):
        return content
    return {
        **content,
        **{part: [_expanded(entry, len(channels)) for entry in _list(content.get(part))] for part in _PARTS},
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _single_image(entry: Any) -> str | None:
    image = entry.get("image") if isinstance(entry, dict) else entry
    return image if isinstance(image, str) else None


def _expanded(entry: Any, channels: int) -> Any:
    image = _single_image(entry)
    if image is None:
        return entry
    own = entry if isinstance(entry, dict) else {}
    return {**own, "image": [_channel_file(image, number) for number in range(channels)], "case_file": image}


def _channel_file(image: str, number: int) -> str:
    """The file of a channel of the case that a list calls `image`: "x/a.nii.gz" -> "x/a_0001.nii.gz"."""
    path = Path(image)
    stem = scan_stem(path)
    return str(path.with_name(f"{stem}_{number:04d}{path.name[len(stem) :]}"))


def _cases(home: Path, listed: Any, channels: int) -> dict[str, list[Any]]:
    if isinstance(listed, dict):
        return {"training": [_listed(name, case) for name, case in listed.items()]}
    found = {
        "training": list(_cases_in(home, "imagesTr", "labelsTr", channels)),
        "test": list(_cases_in(home, "imagesTs", "labelsTs", channels)),
    }
    return {part: entries for part, entries in found.items() if entries}


def _listed(name: str, case: Any) -> dict[str, Any]:
    images, label = (case.get(key) if isinstance(case, dict) else None for key in ("images", "label"))
    first = Path(images[0]) if isinstance(images, list) and images and isinstance(images[0], str) else None
    own = {"case_file": str(first.with_name(name + first.name[len(scan_stem(first)) :]))} if first else {}
    return {"image": images, "label": label, **own}


def _cases_in(home: Path, images: str, labels: str, channels: int) -> Iterator[dict[str, Any]]:
    cases: dict[str, str] = {}
    for file in (home / images).glob("[!.]*"):
        channel = channel_of(file)
        if channel and suffix(file):
            cases[channel[0]] = file.name[len(scan_stem(file)) :]
    for case, ending in sorted(cases.items()):
        entry = _expanded({"image": f"{images}/{case}{ending}"}, channels)
        label = f"{labels}/{case}{ending}"
        # A training case without a label is an error; test cases need none.
        yield entry | ({"label": label} if images == "imagesTr" or (home / label).exists() else {})
