"""The voxel probe: linear segmentation of labelled cases from frozen encoder features.

Cases are prepared as for fine-tuning, and a few windows of each are used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dae3d.errors import Dae3dError
from dae3d.inference.corners import window_corners
from dae3d.probing.levels import ALL, level_names
from dae3d.probing.metrics import ProbeTask
from dae3d.probing.ridge import Ridge, at_voxels, fit_ridge, look_up, mean_dice, overlaps
from dae3d.scans.task import read_task
from dae3d.scans.task_labels import IGNORED
from dae3d.settings import resolve
from dae3d.store.boxes import Triple
from dae3d.store.recipe import CaseRecipe
from dae3d.store.scan import Preparation
from dae3d.training.cases import LabelledData, labelled_data
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.sampling import philox

CASES = "cases"  # folder in a run for prepared cases
TRAIN_CASES = 4
TEST_CASES = 30
WINDOWS = 8  # per case at most
VOXELS = 4000  # per case, for fitting

_VOXELS = 8

Encode = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class LabelledWindow:
    """A window of a case: `image` (1, C, *roi), `label` (*roi) int64."""

    image: Tensor
    label: Tensor


@dataclass(frozen=True)
class _Fitted:
    """Sampled voxels of a case: `features` (n, F) per level, classes, and how many voxels each stands for."""

    features: list[Tensor]
    label: Tensor
    stand_for: Tensor


class VoxelProbe:
    """Segments labelled cases by ridge regression on the feature maps of an encoder.

    At most `WINDOWS` windows of a case are used: they cover the bounding box of the labelled voxels, or are
        those
    with the most labelled voxels. Half of the sampled voxels are background; the others are split evenly
    between the classes of the case.

    Args:
        data: the cases.
        task: path of the list of cases.
        roi: sides of the windows in voxels.
        seed: of the voxel sampling.
    """

    def __init__(self, data: LabelledData, task: Path, roi: Triple, seed: int) -> None:
        self.data, self.roi, self.seed = data, roi, seed
        self.classes = len(data.recipe.labels)
        self.training = [n for n in data.training if sum(data.store.cases[n].voxels[1:])]
        self.tested = [n for n in data.validation if sum(data.store.cases[n].voxels[1:])]
        self.about = ProbeTask(
            task=str(task),
            classes=tuple(data.recipe.class_names),
            fitted=tuple(data.store.cases[n].name for n in self.training),
            tested=len(self.tested),
        )

    def dice(self, encode: Encode, device: torch.device) -> dict[str, float]:
        """Mean Dice over the test cases, for the features of each level and of all levels together.

        The Dice of a case is the mean over its foreground classes within its windows.

        Args:
            encode: maps images (1, C, D, H, W) to feature maps.
            device: device of the encoder.
        """
        cases = [self._to_fit_on(number, encode, device) for number in self.training]
        if not all(torch.isfinite(feature).all() for case in cases for feature in case.features):
            return {}
        labels, stand_for = [case.label for case in cases], [case.stand_for for case in cases]
        ridges = {
            name: fit_ridge([case.features[level] for case in cases], labels, stand_for, self.classes)
            for level, name in enumerate(level_names(len(cases[0].features)))
        }
        ridges[ALL] = fit_ridge(
            [torch.cat(case.features, 1) for case in cases], labels, stand_for, self.classes
        )
        tested = [self._test(number, encode, ridges, device) for number in self.tested]
        return {name: float(np.nanmean([dice[name] for dice in tested])) for name in ridges}

    def _test(
        self, number: int, encode: Encode, ridges: Mapping[str, Ridge], device: torch.device
    ) -> dict[str, float]:
        """Mean Dice of a case by level. Scores are interpolated rather than features, which is equivalent."""
        counts = {name: torch.zeros(self.classes - 1, 3, dtype=torch.float64) for name in ridges}
        for window in self._windows(number):
            # Voxels to ignore count as background found as such, which is in no class's Dice.
            ignored = (window.label == IGNORED).to(device)
            maps, label = encode(window.image.to(device)), window.label.to(device).where(~ignored, 0)
            together = at_voxels(ridges[ALL].parts([each.shape[1] for each in maps]), maps, label.shape)
            scores = {ALL: together}
            for name, feature in zip(level_names(len(maps)), maps, strict=True):
                scores[name] = at_voxels([ridges[name]], [feature], label.shape)
            for name, found in scores.items():
                counts[name] += overlaps(found.argmax(1)[0].where(~ignored, 0), label, self.classes)
        return {name: mean_dice(count) for name, count in counts.items()}

    def _to_fit_on(self, number: int, encode: Encode, device: torch.device) -> "_Fitted":
        """Sample voxels from the windows of a case."""
        windows = list(self._windows(number))
        labels = torch.stack([window.label for window in windows])
        drawn = torch.from_numpy(draw_voxels(labels.numpy(), VOXELS, philox(self.seed, _VOXELS, number)))
        label = labels[tuple(drawn.T)]
        known = labels[labels != IGNORED]
        often, of_drawn = (torch.bincount(each.flatten(), minlength=self.classes) for each in (known, label))
        found: list[list[Tensor]] = []
        for place, window in enumerate(windows):
            where = drawn[drawn[:, 0] == place][:, 1:]
            if len(where):
                maps = encode(window.image.to(device))
                found.append([look_up(feature[0], where, window.label.shape).cpu() for feature in maps])
        return _Fitted(
            [torch.cat(parts) for parts in zip(*found, strict=True)], label, (often / of_drawn)[label]
        )

    def _windows(self, number: int) -> Iterator[LabelledWindow]:
        store, size = self.data.store, self.roi
        for corner in case_windows(store.cases[number].shape, self._labelled(number), size):
            image = store.image(number, corner, size, self.data.recipe.intensity)
            label = store.label(number, corner, size)
            yield LabelledWindow(torch.from_numpy(image)[None], torch.from_numpy(label).long())

    def _labelled(self, number: int) -> np.ndarray:
        return np.concatenate(self.data.store.positions(number)[1:])


def case_windows(shape: Sequence[int], labelled: np.ndarray, roi: Triple) -> list[Triple]:
    """First voxels of at most `WINDOWS` windows around the labelled voxels (n, 3) of a case."""
    low, high = labelled.min(0).tolist(), (labelled.max(0) + 1).tolist()
    corners = window_corners(shape, (tuple(low), tuple(high)), roi, 0.0)

    def inside(corner: Triple) -> int:
        return int(((labelled >= corner) & (labelled < np.add(corner, roi))).all(1).sum())

    return sorted(corners, key=inside, reverse=True)[:WINDOWS]


def draw_voxels(labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Sample about `count` indices (n, ndim): half background, half evenly from the other classes.

    Voxels to ignore are not drawn.
    """
    flat = labels.ravel()
    there = np.unique(flat[flat != IGNORED])
    foreground = there[there > 0]
    drawn = []
    for label in there:
        where = np.flatnonzero(flat == label)
        share = count // 2 if label == 0 else count // (2 * len(foreground))
        drawn.append(random.choice(where, min(share, len(where)), replace=False))
    return np.stack(np.unravel_index(np.sort(np.concatenate(drawn)), labels.shape), 1)


def voxel_probe(
    task: Path,
    run: PretrainSettings,
    preparation: Preparation,
    store: Path,
    seed: int,
    train_cases: int = TRAIN_CASES,
    test_cases: int = TEST_CASES,
    modality: list[str] | None = None,
    fold: int | None = None,
    workers: int | None = None,
) -> VoxelProbe:
    """Prepare labelled cases in the same way as the scans of a run, and select training and test cases.

    Args:
        task: list of labelled cases, as for `finetune`.
        run: settings of the run.
        preparation: how its scans were prepared.
        store: folder for the prepared cases.
        seed: of the selection of cases and the sampling of voxels.
        train_cases: number of cases to fit on.
        test_cases: maximum number of cases to test on.
        modality: labels of the channels, if the list does not give them.
        fold: fold to test on.
        workers: processes that prepare cases.

    Raises:
        Dae3dError: if the list or a case cannot be used, or the number of channels differs from that of the
            network.
    """
    known = read_task(task, modality=modality).modalities
    settings = resolve(
        FinetuneSettings,
        {
            "data": task,
            "out": store,
            "store": store,
            "roi": run.roi,
            "seed": seed,
            "train_cases": train_cases,
            "modality": modality,
            "fold": fold,
            "spacing": preparation.spacing,
            "crop_foreground": preparation.crop_foreground,
            "intensity": {name: rule for name, rule in run.intensity.items() if name in known},
            "prepare_workers": workers,
        },
    )
    assert isinstance(settings, FinetuneSettings)
    channels = run.architecture().in_channels

    def check(recipe: CaseRecipe) -> None:
        if len(recipe.modalities) != channels:
            raise Dae3dError(
                f"{task}: its cases have {len(recipe.modalities)} channels "
                f"({', '.join(recipe.modalities)}), but the network of the run takes {channels}; give a list "
                f"of cases with {channels}"
            )

    data = labelled_data(settings, check=check, validation_cases=test_cases)
    return VoxelProbe(data, task, run.roi, seed)
