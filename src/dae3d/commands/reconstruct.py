"""The command `reconstruct`: disrupt whole scans, repair them window by window, and measure how well."""

import csv
import dataclasses
import io
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import nibabel
import torch
from monai.inferers.utils import sliding_window_inference
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from pydantic import Field, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from dae3d.cores import THREADS
from dae3d.disrupt import DISRUPTIONS, Disrupted, DisruptionName, DisruptionSettings, clipped, sample_keys
from dae3d.disrupt.step import Step
from dae3d.drawing.pictures import triptych
from dae3d.errors import Dae3dError, ScanError
from dae3d.evaluation.image_metrics import IMAGE_METRICS
from dae3d.evaluation.quality import image_quality
from dae3d.files import inside, refuse_other_file, whole_file, write_text
from dae3d.inference.device import pick_device
from dae3d.inference.given_images import GivenImage, given_images, unseen
from dae3d.inference.prepared import Prepared, preparation_of, read_prepared
from dae3d.models.hub import SOURCE_GIVEN, WeightsSource
from dae3d.models.loading import load
from dae3d.models.network import RepairNetwork
from dae3d.run_folder import refuse_a_runs_folder
from dae3d.scans.given import VOLUME_GIVEN, image_names, numbered_names
from dae3d.scans.modality import Label, RuleText
from dae3d.settings import Positional, Settings, command
from dae3d.store.boxes import Roi, Triple, by_axis
from dae3d.store.intensity import normalise
from dae3d.training.pretrain_settings import PretrainSettings

log = logging.getLogger(__name__)


class ReconstructSettings(Settings):
    """Settings of `reconstruct`."""

    scans: Annotated[list[Path], Positional()] = Field(
        description="scan files, and folders of scans or of DICOM series", min_length=1
    )
    weights: WeightsSource = Field(description=SOURCE_GIVEN)
    out: Path = Field(description="output folder")
    modality: Label | None = Field(
        None, description="label of scans that no rule matches, which decides how intensities are scaled"
    )
    rule: list[RuleText] = Field([], description="'GLOB=LABEL': label of the scans whose file name matches")
    volume: int | None = Field(None, ge=0, description=VOLUME_GIVEN)
    disruption: DisruptionName | None = Field(
        None, description="how the scans are disrupted (default: as in training)"
    )
    roi: Roi | None = Field(
        None,
        description="sides of the windows in voxels: one number, or three (right, anterior, superior) "
        "(default: those of the training crops)",
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="overlap of neighbouring windows")
    axes: Literal["straight", "reference"] | None = Field(
        None, description="order of the token axes (default: as in training)"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the disruption")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description=THREADS)


@dataclass(frozen=True)
class Repair:
    """A whole scan before and after, as tensors (1, 1, X, Y, Z) of normalised intensities."""

    clean: Tensor
    disrupted: Tensor
    repaired: Tensor


@command
def reconstruct(settings: ReconstructSettings) -> list[dict[str, Any]]:
    """Disrupt whole scans, repair them with sliding windows, and write and measure the results.

    Writes for each scan `<name>/clean.nii.gz`, `disrupted.nii.gz`, `repaired.nii.gz` and `error.nii.gz`
    (absolute) in the network's normalised intensities, and `triptych.png`. The images are in the scan's own
    grid or, if the weights were trained on resampled or cropped scans, in the prepared grid with the scan's
    order of axes. All metrics go to `metrics.csv`.

    Returns:
        The rows of `metrics.csv`: scan, modality, image ("disrupted" or "repaired"), and the metrics of
        `IMAGE_METRICS`: l1, psnr (dB), ssim.

    Raises:
        Dae3dError: if the weights cannot be used, were not trained on a modality, no scan could be read, or
            a run, results of other scans or a scan would be overwritten.
    """
    refuse_a_runs_folder(settings.out, "reconstructions")
    device = pick_device(settings.device, settings.threads)
    network = _network(settings).to(device)
    trained = _trained_with(network)
    roi = settings.roi or trained.roi
    disruption = settings.disruption or trained.disruption
    preparation = preparation_of(network)
    network.architecture.check_sides(roi)
    results = settings.out / "metrics.csv"
    refuse_other_file(results, "table of `reconstruct`", rb"scan,modality,image,l1,psnr")
    log.info("%s, windows of %s", disruption, by_axis(roi))

    scans = _scans(settings, network.info.get("modalities", ()))
    paths = image_names([scan.image for scan in scans])
    named = list(zip(paths, numbered_names(paths), strict=True))
    _refuse_overwriting(settings.out, [scan.name for scan in scans], named)
    rows: list[dict[str, Any]] = []
    for number, ((given, source, label), (path, name)) in enumerate(zip(scans, named, strict=True)):
        try:
            scan = read_prepared(source, preparation, label)
            clean = normalise(scan.volume.intensities(), label, scan.statistics, trained.intensity)
        except ScanError as error:
            log.warning("%s: left out: %s", given, error)
            continue
        keys = sample_keys(settings.seed, torch.tensor([number], device=device))
        image = clipped(torch.from_numpy(clean)[None, None].to(device), trained.clip_intensity)
        repair = repair_scan(network, image, disruption, trained, keys, roi, settings.overlap)
        folder = inside(settings.out, name)
        _write(folder, repair, scan, f"{path.name} ({label}), {disruption}")
        rows += [
            {"scan": given, "modality": label, "image": which, **_quality(result, repair.clean)}
            for which, result in (("disrupted", repair.disrupted), ("repaired", repair.repaired))
        ]
        _write_rows(results, rows)
    if not rows:
        raise Dae3dError("none of the scans could be used; the messages above say why")
    _show(rows, settings.out)
    return rows


def _network(settings: ReconstructSettings) -> RepairNetwork:
    network = load(settings.weights, axes=settings.axes)
    if not isinstance(network, RepairNetwork):
        task = network.info["task"]
        raise Dae3dError(f"{network.weights}: a network for {task}; reconstruct needs a pre-training network")
    return network


def _scans(settings: ReconstructSettings, known: Sequence[str]) -> list[GivenImage]:
    """The scans to repair; raises Dae3dError if one has a modality that the network was not trained on."""
    scans = given_images(settings.scans, settings.rule, settings.modality, settings.volume)
    never_saw = unseen(scans, known)
    if never_saw:
        raise Dae3dError(f"{never_saw}; to treat the scans as one of those, set --modality")
    return scans


def repair_scan(
    network: RepairNetwork,
    image: Tensor,
    disruption: str,
    strengths: DisruptionSettings,
    keys: Tensor,
    roi: Triple,
    overlap: float,
) -> Repair:
    """Disrupt a whole scan and repair it with Gaussian-weighted sliding windows.

    Voxels are disrupted once, over the whole scan; embedding channels are masked separately in each window.

    Args:
        network: in eval mode.
        image: (1, 1, X, Y, Z) normalised, on the network's device.
        disruption: key of `DISRUPTIONS`.
        strengths: of the disruption.
        keys: (1,) int64 random key.
        roi: sides of the windows in voxels.
        overlap: overlap of neighbouring windows, as a share of their sides.
    """
    steps = DISRUPTIONS[disruption].steps
    whole = _disrupt_voxels(image, steps, strengths, keys, roi)
    in_windows = [step for step in steps if step.masks_channels]
    windows_seen = 0

    def repair_windows(windows: Tensor) -> Tensor:
        nonlocal windows_seen
        numbers = torch.arange(windows_seen, windows_seen + len(windows), device=windows.device)
        windows_seen += len(windows)
        channels, stride = network.architecture.tokens
        image, own_keys = windows[:, :1].contiguous(), keys + ((numbers + 1) << 40)
        batch = Disrupted(image, own_keys, channels=channels, stride=stride)
        for step in in_windows:
            batch = step(batch, strengths)
        if whole.voxel_mask is not None:
            batch = dataclasses.replace(batch, voxel_mask=windows[:, 1:].bool())
        return network(batch.image, batch.channel_keep, batch.token_mask).float()

    channels = [whole.image] if whole.voxel_mask is None else [whole.image, whole.voxel_mask.to(image.dtype)]
    strides = [max(2, int(side * (1 - overlap)) // 2 * 2) for side in roi]  # voxels; a token is 2 voxels wide
    # Half a voxel more, because MONAI rounds it down.
    overlaps = [max(0.0, 1 - (stride + 0.5) / side) for stride, side in zip(strides, roi, strict=True)]
    with torch.inference_mode():
        repaired = sliding_window_inference(
            torch.cat(channels, dim=1),
            roi,
            1,
            repair_windows,
            overlaps,
            mode="gaussian",
            progress=True,
        )
    x, y, z = image.shape[2:]
    return Repair(image, whole.image[:, :, :x, :y, :z], torch.as_tensor(repaired)[:, :, :x, :y, :z])


def _disrupt_voxels(
    image: Tensor, steps: Sequence[Step], strengths: DisruptionSettings, keys: Tensor, roi: Triple
) -> Disrupted:
    """Pad a scan as needed and apply the steps that change voxels."""
    # The network's stages and the blocks of the disruptions must fit, as in a training crop; those of
    # "varied" have sides that are powers of two.
    sides = [getattr(strengths, name) for step in steps for name in step.sides]
    unit = math.lcm(32, *sides, *(1 << side.bit_length() - 1 for side in sides))
    ends = [
        -(-max(size, side) // unit) * unit - side for size, side in zip(roi, image.shape[2:], strict=True)
    ]
    padded = torch.nn.functional.pad(image, [p for end in reversed(ends) for p in (0, end)])
    whole = Disrupted(padded, keys)
    for step in steps:
        if not step.masks_channels:
            whole = step(whole, strengths)
    return whole


def _trained_with(network: RepairNetwork) -> PretrainSettings:
    """The settings of a network's training; for published checkpoints, the published settings."""
    if "settings" in network.info:
        try:
            # Published weights do not record paths.
            recorded: dict[str, Any] = {"data": Path(), "out": Path(), **PretrainSettings.earlier}
            recorded |= {**network.info["settings"], "resume": False}
            return PretrainSettings.model_validate(recorded)
        except ValidationError as error:
            raise Dae3dError(
                f"{network.weights}: its training settings are not valid: {error.errors()[0]['msg']}"
            ) from None
    sizes = dataclasses.asdict(network.architecture)
    own = {name: value for name, value in sizes.items() if name in PretrainSettings.model_fields}
    published = {**PretrainSettings.earlier, "disruption": "all", **own}
    return PretrainSettings.model_validate({"data": Path(), "out": Path(), **published})


def _refuse_overwriting(out: Path, scans: Sequence[str], named: Sequence[tuple[Path, str]]) -> None:
    """Refuse a folder with results of other scans, or in which results would be written beside a scan."""
    results = out / "metrics.csv"
    if results.is_file():
        with results.open(newline="") as file:
            measured = {row.get("scan") or "" for row in csv.DictReader(file)}
        others = {os.path.abspath(scan) for scan in measured} - set(map(os.path.abspath, scans))
        if others:
            raise Dae3dError(f"out: {results} has results of other scans, and would be overwritten")
    for path, name in named:
        if path.resolve().parent == (out / name).resolve():
            raise Dae3dError(f"out: the results of {path} would be written beside it; choose another folder")


def _write(folder: Path, repair: Repair, scan: Prepared, title: str) -> None:
    """Write NIfTI files in the scan's own order of axes, and a picture."""
    images = {
        "clean": repair.clean,
        "disrupted": repair.disrupted,
        "repaired": repair.repaired,
        "error": (repair.repaired - repair.clean).abs(),
    }
    volumes = {name: image[0, 0].cpu().numpy() for name, image in images.items()}
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(scan.acquired))
    affine = scan.volume.affine @ inv_ornt_aff(back, scan.volume.array.shape)
    for name, volume in volumes.items():
        with whole_file(folder / f"{name}.nii.gz") as temporary:
            nibabel.Nifti1Image(apply_orientation(volume, back), affine).to_filename(temporary)
    triptych(volumes, title, folder / "triptych.png", scan.volume.spacing)


def _quality(image: Tensor, clean: Tensor) -> dict[str, float]:
    return {name: values.item() for name, values in image_quality(image, clean).items()}


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    table = Table("scan", "modality", "image", *(metric.heading for metric in IMAGE_METRICS.values()))
    for row in rows:
        figures = (f"{row[name]:.{metric.decimals}f}" for name, metric in IMAGE_METRICS.items())
        table.add_row(escape(Path(row["scan"]).name), row["modality"], row["image"], *figures)
    Console().print(table)
    print(f"pictures and NIfTI files: {out}")
