"""The command `embed`: one feature vector per scan, for retrieval, classification and drift checks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from dae3d.cores import THREADS
from dae3d.errors import Dae3dError, ScanError
from dae3d.exporting.embeddings import FORMATS, Embeddings
from dae3d.inference.corners import window_corners
from dae3d.inference.device import pick_device
from dae3d.inference.given_cases import ScanCase, given_cases, say_strange_values
from dae3d.inference.given_images import given_images, unseen
from dae3d.inference.prepared import preparation_of, read_prepared
from dae3d.journal import Journal
from dae3d.models.contents import MONAI_MERGING, MonaiMerging
from dae3d.models.hub import SOURCE_GIVEN, WeightsSource
from dae3d.models.loading import load
from dae3d.scans.channels import ScanText, channel_files
from dae3d.scans.given import SCANS_GIVEN, VOLUME_GIVEN, Image, image_names, numbered_names
from dae3d.scans.modality import Label, RuleText
from dae3d.settings import Positional, Settings, command
from dae3d.store.boxes import Roi, Triple, three_sides
from dae3d.store.intensity import normalise
from dae3d.store.recipe import CaseRecipe
from dae3d.store.scan import Preparation
from dae3d.store.source import digest
from dae3d.store.statistics import Box

log = logging.getLogger(__name__)

PUBLISHED_ROI = 96  # for weights of other projects, which do not record it


class EmbedSettings(Settings):
    """Settings of `embed`."""

    scans: Annotated[list[ScanText], Positional()] = Field(description=SCANS_GIVEN, min_length=1)
    weights: WeightsSource = Field(description=SOURCE_GIVEN)
    out: Path = Field(
        description="output file: .npz, or .parquet (needs the extra dae3d[parquet]); for format npy a folder"
    )
    format: Literal["npz", "parquet", "npy"] | None = Field(
        None,
        description="npz or parquet: one file; npy: a folder with <name>.npy for each scan, a vector of "
        "float32, as for the FOMO26 challenge (default: by the ending of --out)",
    )
    modality: Label | None = Field(
        None,
        description="label of scans that no rule matches, which decides how intensities are scaled; "
        "fine-tuned weights have their own",
    )
    rule: list[RuleText] = Field([], description="'GLOB=LABEL': label of the scans whose file name matches")
    volume: int | None = Field(None, ge=0, description=VOLUME_GIVEN)
    roi: Roi | None = Field(
        None,
        description="sides of the windows in voxels: one number, or three (right, anterior, superior) "
        "(default: those of the training crops)",
    )
    overlap: float = Field(0.0, ge=0, lt=1, description="minimum overlap of neighbouring windows")
    axes: Literal["straight", "reference"] | None = Field(
        None, description="order of the token axes (default: as in training)"
    )
    monai_merging: MonaiMerging | None = Field(None, description=MONAI_MERGING)
    window_batch: int = Field(1, ge=1, description="windows per batch")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description=THREADS)

    @model_validator(mode="after")
    def _file_of_its_format(self) -> Self:
        suffix = self.out.suffix
        if self.format is None and suffix not in (".npz", ".parquet"):
            raise ValueError("out: must end in .npz or .parquet; for a folder of .npy files, give format npy")
        if self.format in ("npz", "parquet") and suffix != f".{self.format}":
            raise ValueError(f"out: must end in .{self.format}, not {self.out.name!r}")
        return self


@dataclass(frozen=True)
class _Case:
    """A scan: its name as given, its images (one per channel), its modality, and the name of its file."""

    name: str
    images: tuple[Image, ...]
    modality: str
    file: str = ""

    @property
    def files(self) -> list[Path]:
        """The files of all images."""
        return [file for image in self.images for file in image.files]


@command
def embed(settings: EmbedSettings) -> Embeddings:
    """Compute pooled encoder features of whole scans, and write one vector per scan.

    Windows cover the foreground box of the scan. Features are those of the encoder's last stage, with layer
    norm over the channels of each token as in fine-tuning, averaged over tokens and windows. Scans are
    oriented to RAS, resampled, cropped and scaled as in training; if the weights do not record how, scans are
    used as acquired.

    An .npz file has the arrays `features` (N, F) float32, `scans` and `modalities` (N,); a .parquet file has
    the columns `scan`, `modality` and `features`. With format npy, `out` is a folder with one file `NAME.npy`
    (F,) float32 per scan; NAME is that of the scan's file, numbered if not unique. After an interruption, the
    same command continues; with other weights or windows it is refused.

    Raises:
        Dae3dError: if the weights cannot be used, a modality is unknown, or no scan could be read.
    """
    layout = FORMATS[settings.format or settings.out.suffix[1:]]
    layout.refuse_other(settings.out)
    device = pick_device(settings.device, settings.threads)
    merging = settings.monai_merging
    encoder: Any = load(settings.weights, task="encoder", axes=settings.axes, monai_merging=merging).to(
        device
    )
    recipe = CaseRecipe(**encoder.info["recipe"]) if "recipe" in encoder.info else None
    if recipe is None and encoder.architecture.in_channels > 1:
        raise Dae3dError(
            f"{encoder.weights}: takes {encoder.architecture.in_channels} channels, but does not record "
            "their modalities"
        )
    roi = settings.roi or three_sides(encoder.info.get("settings", {}).get("roi", PUBLISHED_ROI))
    encoder.architecture.check_sides(roi)
    intensity = encoder.info.get("settings", {}).get("intensity")
    preparation = preparation_of(encoder)
    cases = _cases(settings, recipe, encoder.info.get("modalities", ()))
    heading = {
        "weights": digest([encoder.weights]),
        "roi": list(roi),
        "overlap": settings.overlap,
        "axes": settings.axes,
        **({} if settings.volume is None else {"volume": settings.volume}),
        **({"monai_merging": merging} if merging else {}),
    }

    def features_of(case: _Case) -> list[float]:
        image, foreground = _read(case, recipe, preparation, intensity)
        batch, overlap = settings.window_batch, settings.overlap
        return pooled_features(encoder, image, foreground, roi, overlap, batch, device).tolist()

    unfinished = settings.out.with_name(f".{settings.out.name}.unfinished")
    with Journal(unfinished, heading) as journal:
        embeddings = _embed_all(cases, features_of, journal)
        files = {case.name: case.file for case in cases}
        layout.write(embeddings, settings.out, [files[name] for name in embeddings.scans])
        unfinished.unlink(missing_ok=True)
    _say(embeddings, settings.out)
    return embeddings


def pooled_features(
    encoder: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    image: np.ndarray,
    foreground: Box,
    roi: Triple,
    overlap: float,
    window_batch: int,
    device: torch.device,
) -> np.ndarray:
    """The mean of the encoder's last feature map over windows and tokens.

    Args:
        encoder: in eval mode, on `device`; gives a list of maps (B, F, ...).
        image: (C, X, Y, Z) float32, normalised.
        foreground: half-open box that the windows cover.
        roi: sides of the windows in voxels.
        overlap: minimum overlap of neighbouring windows.
        window_batch: windows per batch.
        device: of the encoder.

    Returns:
        (F,) float32.
    """
    corners = window_corners(image.shape[1:], foreground, roi, overlap)
    means: list[torch.Tensor] = []
    with tqdm(total=len(corners), unit="window", leave=False) as progress, torch.inference_mode():
        for first in range(0, len(corners), window_batch):
            batch = corners[first : first + window_batch]
            windows = torch.from_numpy(np.stack([_window(image, corner, roi) for corner in batch]))
            means.append(encoder(windows.to(device))[-1].float().mean(dim=(2, 3, 4)))
            progress.update(len(batch))
    return torch.cat(means).mean(dim=0).cpu().numpy()


def _window(image: np.ndarray, corner: Triple, roi: Triple) -> np.ndarray:
    """The (C, *roi) box from `corner`; zeros outside the image."""
    window = np.zeros((len(image), *roi), np.float32)
    ends = (min(c + size, n) for c, size, n in zip(corner, roi, image.shape[1:], strict=True))
    inside = [slice(max(c, 0), end) for c, end in zip(corner, ends, strict=True)]
    there = [slice(s.start - c, s.stop - c) for s, c in zip(inside, corner, strict=True)]
    window[:, *there] = image[:, *inside]
    return window


def _cases(settings: EmbedSettings, recipe: CaseRecipe | None, known: Sequence[str]) -> list[_Case]:
    """The scans, without repetitions, with their images and modalities."""
    if recipe:
        given = given_cases(settings.scans, recipe.modalities, volume=settings.volume, refuses=False)
        label = "+".join(recipe.modalities)
        return _named([_Case(case.given, case.images, label) for case in given])
    for scan in settings.scans:
        files = channel_files(scan)
        if len(files) > 1:
            raise Dae3dError(f"{scan}: {len(files)} files, but the weights take one per scan")
    items = given_images(settings.scans, settings.rule, settings.modality, settings.volume)
    never_saw = unseen(items, known)
    if never_saw:
        log.warning("%s", never_saw)
    return _named([_Case(item.name, (item.image,), item.modality) for item in items])


def _named(cases: list[_Case]) -> list[_Case]:
    """The scans with the names of their files."""
    names = numbered_names(image_names([case.images[0] for case in cases]))
    return [replace(case, file=name) for case, name in zip(cases, names, strict=True)]


def _embed_all(
    cases: list[_Case], features_of: Callable[[_Case], list[float]], journal: Journal
) -> Embeddings:
    """The features of all cases that can be read; those in the journal are not computed again."""
    rows: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for case in tqdm(cases, "embed", unit="scan"):
        row = journal.find(case.name, case.files)
        if row is None or row["modality"] != case.modality:
            try:
                row = {"modality": case.modality, "features": features_of(case)}
            except ScanError as error:
                log.warning("%s: left out: %s", case.name, error)
                left_out[case.name] = str(error)
                continue
            journal.add(case.name, case.files, row)
        rows[case.name] = row
    if not rows:
        raise Dae3dError("none of the scans could be used; the messages above say why")
    return Embeddings(
        features=np.array([row["features"] for row in rows.values()], np.float32),
        scans=list(rows),
        modalities=[row["modality"] for row in rows.values()],
        left_out=left_out,
    )


def _read(
    case: _Case,
    recipe: CaseRecipe | None,
    preparation: Preparation,
    intensity: Mapping[str, str] | None,
) -> tuple[np.ndarray, Box]:
    """The network's input for a scan, (C, X, Y, Z) float32, and its foreground box."""
    if recipe is not None:
        scan = ScanCase(case.name, case.images)
        conformed = scan.read(recipe)
        say_strange_values(scan, conformed, recipe)
        return conformed.normalised(recipe), conformed.foreground
    _, volume, statistics = read_prepared(case.images[0], preparation, case.modality)
    image = normalise(volume.intensities(), case.modality, statistics, intensity)
    return image[None], statistics.foreground


def _say(embeddings: Embeddings, path: Path) -> None:
    count, width = embeddings.features.shape
    print(f"{count} scans with {width} features each: {path}")
    if embeddings.left_out:
        print(f"{len(embeddings.left_out)} left out:")
        print("\n".join(f"  {name}: {reason}" for name, reason in embeddings.left_out.items()))
