"""Input scans for fine-tuned weights: find them, group and order their channels, check modalities."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.channels import channel_files
from dae3d.scans.given import Image, contradictions, image_names, images_at, listed, say_found
from dae3d.scans.modality_conflicts import Conflict, conflict
from dae3d.scans.readers import scan_stem
from dae3d.scans.subjects import sequence_at_end
from dae3d.scans.task import Task, case_names
from dae3d.store.conform_case import ConformedCase, conform_case
from dae3d.store.ct_units import strange_values
from dae3d.store.recipe import CaseRecipe

log = logging.getLogger(__name__)

_CHANNEL = re.compile(r"(?P<rest>.+)_(?P<number>000[0-9])")
_BIDS_CASE = re.compile(r"(?P<case>(?P<subject>sub-[^_]+)(?:_ses-[^_]+)?)_.+")


@dataclass(frozen=True)
class ScanCase:
    """A scan: one image per channel in the order of the weights, and its label file, if any.

    `name` is unique; `given` is the text by which the user named it, or its paths if a folder was given.
    """

    name: str
    images: tuple[Image, ...]
    label: Path | None = None
    given: str = ""

    @property
    def files(self) -> list[Path]:
        """The files of all images."""
        return [file for image in self.images for file in image.files]

    def read(self, recipe: CaseRecipe) -> ConformedCase:
        """Read the images and resample them to the grid of the network.

        Raises:
            ScanError: naming the images, if one cannot be read or they are on different grids.
        """
        volumes = []
        for image in self.images:
            try:
                volumes.append(image.read())
            except ScanError as error:
                raise ScanError(f"{image.path}: {error}") from None
        try:
            return conform_case(volumes, recipe)
        except ScanError as error:
            raise ScanError(f"{', '.join(str(image.path) for image in self.images)}: {error}") from None


def in_words(modalities: Sequence[str]) -> str:
    """The channels that weights expect: "1 channel (ct)", "2 channels in this order: t1, flair"."""
    if len(modalities) == 1:
        return f"1 channel ({modalities[0]})"
    return f"{len(modalities)} channels in this order: {', '.join(modalities)}"


def given_cases(
    scans: Iterable[str],
    modalities: Sequence[str],
    labels: Sequence[str] | None = None,
    volume: int | None = None,
    pass_over: Callable[[Path], bool] = lambda _: False,
    refuses: bool = True,
) -> list[ScanCase]:
    """The scans named by a user, without duplicates, for weights with channels of `modalities`.

    A folder stands for all scans in it. For weights with one channel, images of another modality by header or
    name are left out. For several channels, images are grouped by subject and session of BIDS names, by the
    study of DICOM series, or by a common name before the sequence name (`p1_t1`, `p1_flair`) or the channel
    number of nnU-Net (`p1_0000`, `p1_0001`).

    Args:
        scans: files, DICOM series and folders; channels of one scan are joined by commas.
        modalities: one per channel, in the order of the weights.
        labels: modalities of the channels of every scan, in their order; None reads them from headers and
            names.
        volume: index of the volume in 4-D files and DICOM time series, from 0.
        pass_over: files in a folder to ignore.
        refuses: raise an error, instead of a warning, for images of another kind of scanner by header or BIDS
            name.

    Raises:
        Dae3dError: if a file is missing, the number of channels is wrong, images cannot be grouped, or an
            image is refused.
    """
    refuse_other_labels(labels, modalities)
    found: dict[tuple[Image, ...], str] = {}
    for scan in dict.fromkeys(scans):
        files = channel_files(scan)
        if len(files) == 1 and files[0].is_dir():
            for images in _in_folder(files[0], modalities, labels, volume, pass_over):
                found.setdefault(images, ",".join(str(path) for path in image_names(images)))
        else:
            found.setdefault(_of_files(scan, files, modalities, labels, volume), scan)
    if labels is None:
        _check(found, modalities, refuses)
    names = case_names(image_names([images[0] for images in found]))
    return [
        ScanCase(name, images, None, given)
        for name, (images, given) in zip(names, found.items(), strict=True)
    ]


def refuse_other_labels(labels: Sequence[str] | None, modalities: Sequence[str]) -> None:
    """Raise Dae3dError if the labels given by the user do not match the channels of the weights."""
    if labels is not None and Counter(labels) != Counter(modalities):
        raise Dae3dError(f"modality: {', '.join(labels)}: the weights expect {in_words(modalities)}")


def refuse_other_classes(task: Task, recipe: CaseRecipe) -> None:
    """Refuse a list with other label values than the weights; warn of other class names."""
    if task.labels == recipe.labels:
        return
    own, learned = (
        ", ".join(f"{value} {name}" for value, name in labels.items())
        for labels in (task.labels, recipe.labels)
    )
    if tuple(task.labels) != recipe.label_values:
        raise Dae3dError(f"{task.path}: its `labels` are {own}, but the weights were trained on {learned}")
    log.warning("%s: its class names are %s, but those of the weights are %s", task.path, own, learned)


def say_strange_values(case: ScanCase, conformed: ConformedCase, recipe: CaseRecipe) -> None:
    """Warn about images with values that are implausible for their modality."""
    for image, statistics, modality in zip(case.images, conformed.statistics, recipe.modalities, strict=True):
        said = strange_values(statistics, modality)
        if said:
            log.warning("%s: used as %s, but %s", image.path, modality, said)


def _of_files(
    scan: str,
    files: Sequence[Path],
    modalities: Sequence[str],
    labels: Sequence[str] | None,
    volume: int | None,
) -> tuple[Image, ...]:
    """The channels of one scan, in the order of the weights."""
    if len(files) != len(modalities):
        raise Dae3dError(f"{scan}: {len(files)} files, but the weights expect {in_words(modalities)}")
    images = tuple(_one(path, volume) for path in files)
    told = list(labels or [image.told.label if image.told else "" for image in images])
    distinct = len(set(modalities)) == len(modalities)
    if told == list(modalities) or not distinct or set(told) != set(modalities):
        return images
    ordered = tuple(images[told.index(modality)] for modality in modalities)
    if labels is None:
        log.warning(
            "%s: %s by headers and names; reordered to the order of the weights, %s (set --modality to "
            "override)",
            *(scan, ", ".join(told), ", ".join(modalities)),
        )
    return ordered


def _one(path: Path, volume: int | None) -> Image:
    found = images_at(path, volume)
    if len(found.images) > 1:
        raise Dae3dError(f"{path}: contains {len(found.images)} scans, but one channel is expected")
    return found.images[0]


def _in_folder(
    folder: Path,
    modalities: Sequence[str],
    labels: Sequence[str] | None,
    volume: int | None,
    pass_over: Callable[[Path], bool],
) -> list[tuple[Image, ...]]:
    """The scans in a folder."""
    found = images_at(folder, volume, pass_over)
    if len(modalities) > 1:
        if labels is not None:
            raise Dae3dError(f"modality: applies to scans given as files, not to the folder {folder}")
        cases, others = _together(found.images, modalities, folder)
    elif labels is None:
        cases = [(image,) for image in found.images if not _conflict(image, modalities[0])]
        others = [image for image in found.images if _conflict(image, modalities[0])]
    else:
        cases, others = [(image,) for image in found.images], []
    left_out = [*found.left_out, *(image.left_out(_saying(image)) for image in others)]
    say_found(folder, len(cases), left_out)
    return cases


def _conflict(image: Image, modality: str) -> Conflict | None:
    return conflict(image.told.label, modality) if image.told else None


def _saying(image: Image) -> str:
    return f"{image.told.label} by {image.told.source}" if image.told else "of unknown modality"


def _together(
    images: Sequence[Image], modalities: Sequence[str], folder: Path
) -> tuple[list[tuple[Image, ...]], list[Image]]:
    """Images grouped to scans with several channels, and images that match no channel."""
    groups: dict[tuple[str, str], dict[str, list[Image]]] = {}
    others = []
    for image in images:
        group, label = _place(image, modalities)
        if label is not None and label in modalities:
            groups.setdefault(group, {}).setdefault(label, []).append(image)
        else:
            others.append(image)
    problems = list(_problems(groups.values(), modalities))
    if len(set(modalities)) < len(modalities):
        problems = ["several channels have the same modality, so names do not identify the channel"]
    if problems or not groups:
        raise Dae3dError(
            f"{folder}: its images cannot be grouped to scans of {in_words(modalities)}:\n  "
            f"{listed(problems or ['no image has any of these modalities'])}\n"
            "Give each scan as its files joined by commas in that order, or a list of cases with --data."
        )
    return [tuple(group[modality][0] for modality in modalities) for group in groups.values()], others


def _place(image: Image, modalities: Sequence[str]) -> tuple[tuple[str, str], str | None]:
    """A key common to the images of one scan, and the modality of this image."""
    label = image.told.label if image.told else None
    if image.study:
        return ("", image.study), label
    stem, home = scan_stem(image.path), str(image.path.parent)
    bids = _BIDS_CASE.fullmatch(stem)
    if bids:
        # Images of one session are in separate folders: anat, dwi.
        place = next((parent.parent for parent in image.path.parents if parent.name == bids["subject"]), "")
        return (str(place or home), bids["case"]), label
    numbered = _CHANNEL.fullmatch(stem)
    if numbered and int(numbered["number"]) < len(modalities):
        return (home, numbered["rest"]), modalities[int(numbered["number"])]
    return (home, stem.removesuffix(sequence_at_end(stem) or "").rstrip("_.-")), label


def _problems(groups: Iterable[dict[str, list[Image]]], modalities: Sequence[str]) -> Iterator[str]:
    """Why groups of images are not complete scans: missing or duplicate channels."""
    for group in groups:
        first = next(iter(group.values()))[0].path
        lacking = [modality for modality in modalities if modality not in group]
        if lacking:
            yield f"{first}: no {' and no '.join(lacking)} image of the same scan"
        for modality, several in group.items():
            if len(several) > 1:
                yield f"{several[0].path} and {several[1].path}: both {modality}, of the same scan"


def _check(cases: Iterable[tuple[Image, ...]], modalities: Sequence[str], refuses: bool) -> None:
    """Refuse images that are certainly of another kind of scanner; warn about doubtful modalities."""
    wrong: list[str] = []
    odd: list[str] = []
    for images in cases:
        for _, sentence, certain in contradictions(images, modalities):
            (wrong if refuses and certain else odd).append(sentence)
    if wrong:
        raise Dae3dError(f"{listed(wrong)}\nTo use them anyway, set --modality {' '.join(modalities)}.")
    if odd:
        log.warning("%s", listed(odd))
