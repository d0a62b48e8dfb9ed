"""Probe a pre-trained network on fixed crops, without changing weights or random number generators."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dae3d.disrupt import Disrupted, clipped, disrupt
from dae3d.models.architecture import Architecture
from dae3d.objectives.contrastive import pooled, standardised
from dae3d.probing.crops import SWAPPED, ProbeCrops, probe_crops
from dae3d.probing.features import Covariance, cosines, mean_cosines, nearest_modality
from dae3d.probing.levels import NOTHING, level_names, partners, shares, swap_errors
from dae3d.probing.metrics import ProbeMetrics
from dae3d.probing.voxel_probe import CASES, VoxelProbe, voxel_probe
from dae3d.training.data import TrainingData
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.schedule import is_zero

Computing = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Probe:
    """Computes metrics of a network, always on the same crops and cases.

    Args:
        settings: of the run.
        crops: crops to repair.
        voxels: the voxel probe, or None.
    """

    settings: PretrainSettings
    crops: ProbeCrops
    voxels: VoxelProbe | None = None

    def measure(self, network: Any, device: torch.device, computing: Computing = nullcontext) -> ProbeMetrics:
        """All metrics of a `RepairNetwork` on the device; its forward passes run within `computing()`."""
        with eval_mode(network), torch.no_grad():
            given = _Network(network, computing)
            found = self._crops(given, device)
            if self.voxels is not None:
                found["dice"] = self.voxels.dice(given.encode, device)
        return ProbeMetrics.model_validate(found)

    def rows(
        self, network: Any, device: torch.device, computing: Computing = nullcontext
    ) -> dict[str, float]:
        """The metrics as rows of `metrics.csv`."""
        return self.measure(network, device, computing).rows()

    def voxel_dice(self, network: Any, device: torch.device) -> dict[str, float]:
        """Only the metrics of the voxel probe."""
        if self.voxels is None:
            return {}
        with eval_mode(network), torch.no_grad():
            return self.voxels.dice(network.encode, device)

    def _crops(self, network: "_Network", device: torch.device) -> dict[str, Any]:
        names = level_names(len(network.architecture.level_channels))
        covariances = [Covariance() for _ in names]
        channels: dict[str, int] = {}
        pooled: dict[int, np.ndarray] = {}
        errors: dict[str, list[Tensor]] = {}
        swapped = 0
        for places in self.crops.groups():
            group = self._encoded(network, places, device)
            for name, covariance, level in zip(names, covariances, group.hidden, strict=True):
                covariance.add(level)
                channels[name] = level.shape[1]
            pooled |= dict(zip(places, group.pooled.float().cpu().numpy(), strict=True))
            if swapped < SWAPPED:
                for name, each in self._swapped(network, places, group).items():
                    errors.setdefault(name, []).append(each)
                    swapped += len(each) if name == NOTHING else 0
        joined = {name: torch.cat(parts) for name, parts in errors.items()}
        return {
            "l1": float(joined[NOTHING].mean()) if swapped else None,
            "share": shares(joined) if swapped else {},
            "rank": {name: c.effective_rank() for name, c in zip(names, covariances, strict=True)},
            "channels": channels,
            "tokens": {name: c.count for name, c in zip(names, covariances, strict=True)},
            "crops": self.crops.counts,
            "swapped": swapped,
            **self._pooled(np.stack([pooled[place] for place in sorted(pooled)])),
        }

    def _encoded(self, network: "_Network", places: list[int], device: torch.device) -> "_Group":
        parts: list[_Group] = []
        s = self.settings
        for batch in self.crops.read(places, s.crops, device):
            clean = clipped(batch["image"], s.clip_intensity)
            disrupted = disrupt(clean, s.seed, batch["sample"], s, *network.architecture.tokens)
            hidden = network.encode(disrupted.image, disrupted.channel_keep, disrupted.token_mask)
            compared = pooled(network, clean, hidden, s)
            parts.append(_Group(clean, batch["inside"], disrupted, hidden, compared))
        return _Group.of(parts)

    def _swapped(self, network: "_Network", places: list[int], group: "_Group") -> dict[str, Tensor]:
        """Errors of a group with swapped levels; empty if a crop has no partner."""
        partner = partners([self.crops.crops[place].scan for place in places])
        if None in partner:
            return {}
        loss = self.settings.repair_loss()

        def decode(image: Tensor, hidden: list[Tensor], rows: slice) -> Tensor:
            return network.decode(image, hidden, group.disrupted.rows(rows).token_mask)

        def error(repaired: Tensor, rows: slice) -> Tensor:
            return loss.total([repaired], group.clean[rows], group.inside[rows], group.disrupted.rows(rows))[
                1
            ].cpu()

        return swap_errors(
            decode,
            error,
            group.disrupted.image,
            group.hidden,
            torch.tensor(partner, device=group.clean.device),
            self.settings.crops,
            sees_image=network.architecture.sees_image,
        )

    def _pooled(self, features: np.ndarray) -> dict[str, Any]:
        if not np.isfinite(features).all():
            return {}
        if self.settings.contrastive_standardise:
            features = standardised(torch.from_numpy(features)).numpy()
        crops = self.crops.crops
        modality, scan = [crop.modality for crop in crops], [crop.scan for crop in crops]
        cosine = cosines(features)
        nearest, chance, queries = nearest_modality(cosine, modality, scan)
        return {
            "cosine": mean_cosines(cosine, modality, scan, self.crops.subjects),
            "nearest": nearest,
            "chance": chance,
            "queries": queries,
        }


@dataclass(frozen=True)
class _Network:
    """A `RepairNetwork` whose forward passes run within a context such as autocast."""

    network: Any
    computing: Computing

    @property
    def architecture(self) -> Architecture:
        found: Architecture = self.network.architecture
        return found

    def encode(self, *given: Tensor | None) -> list[Tensor]:
        with self.computing():
            return list(self.network.encode(*given))

    def decode(self, image: Tensor, hidden: list[Tensor], token_mask: Tensor | None) -> Tensor:
        with self.computing():
            return torch.as_tensor(self.network.decode(image, hidden, token_mask))

    def pooled(self, hidden: list[Tensor]) -> Tensor:
        with self.computing():
            return torch.as_tensor(self.network.pooled(hidden))


@dataclass(frozen=True)
class _Group:
    """A group of crops for swapping, with the features (B, F) that the contrastive loss compares."""

    clean: Tensor
    inside: Tensor
    disrupted: Disrupted
    hidden: list[Tensor]
    pooled: Tensor

    @classmethod
    def of(cls, parts: list["_Group"]) -> "_Group":
        return cls(
            torch.cat([part.clean for part in parts]),
            torch.cat([part.inside for part in parts]),
            Disrupted.joined([part.disrupted for part in parts]),
            [torch.cat(levels) for levels in zip(*(part.hidden for part in parts), strict=True)],
            torch.cat([part.pooled for part in parts]),
        )


def make_probe(
    run: PretrainSettings, data: TrainingData, task: Path | None, store: Path, seed: int, **cases: Any
) -> Probe:
    """The probe of a run; prepared cases of `task` go to `store`; `cases` are arguments of `voxel_probe`."""
    preparation = data.store.scans.header.preparation
    voxels = None if task is None else voxel_probe(task, run, preparation, store, seed, **cases)
    return Probe(run, probe_crops(data, run), voxels)


def probe_of_run(settings: PretrainSettings, data: TrainingData) -> Callable[..., dict[str, float]] | None:
    """The probe for `--probe-every`, or None if that is 0; prepares the cases of `--probe-task`.

    Raises:
        Dae3dError: if these cannot be used.
    """
    if is_zero(settings.probe_every):
        return None
    return make_probe(settings, data, settings.probe_task, settings.out / CASES, settings.seed).rows


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Switch the network to eval mode, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
