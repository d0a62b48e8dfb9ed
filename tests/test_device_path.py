"""What steps do on a device other than the CPU, for which the meta device stands: it holds no values.

So whatever would wait for a value fails there, as does a tensor that was left on the CPU.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dae3d.disrupt import DISRUPTIONS
from dae3d.models.network import Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.store.intensity import Normalisation
from dae3d.store.scan import Preparation
from dae3d.store.stored_crop import PendingScaling, StoredCrop
from dae3d.training.batch import NumberedCrop, pack
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.finetuning import Finetuning
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.pretraining import Pretraining

pytestmark = pytest.mark.slow

META = torch.device("meta")
SIZES = {"embed_dim": 12, "heads": (1, 2, 4, 8), "window": 3, "roi": 64, "batch_size": 4}


class Uploads(TorchDispatchMode):
    """The tensors of the CPU, but for single numbers, that operations have brought to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __enter__(self) -> Any:
        # A list that becomes a tensor of the device goes past the dispatcher, and waits there.
        self.tensor = torch.tensor

        def noted(data: Any, *rest: Any, **options: Any) -> torch.Tensor:
            made = self.tensor(data, *rest, **options)
            if made.is_meta and made.dim():
                self.found.append(f"tensor {data}")
            return made

        torch.tensor = noted
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch.tensor = self.tensor
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = any(leaf.is_meta for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        if there and any(tensor.device.type == "cpu" and tensor.dim() for tensor in given):
            self.found.append(f"{func} {[tuple(tensor.shape) for tensor in given]}")
        return made


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def check_steps(module: Any, batch: dict[str, torch.Tensor]) -> None:
    """The first brings tables to the device that the later ones find there."""
    module.to(META)
    module.sums.reset(META)
    module.training_step(batch, 0).backward()
    with Uploads() as uploads:
        loss = module.training_step(batch, 1)
        loss.backward()
    assert loss.is_meta
    assert uploads.found == []
    gradients = [p.grad for p in module.network.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.is_meta for gradient in gradients)


# Everything that a step can do beyond the published one, and that one.
FULL = {
    "repair_from": "pyramid",
    "skip_drop": 0.5,
    "dense_weight": 0.2,
    "feature_weight": 0.5,
    "intensity_jitter": 0.2,
    "clip_intensity": 5.0,
    "contrastive_view": "clean",
    "relative_loss": True,
    "loss_on_padding": False,
    "masked_weight": 3.0,
}
PUBLISHED = {name: PretrainSettings.earlier[name] for name in FULL}


@pytest.mark.parametrize(
    ("disruption", "changes"),
    [
        *((name, PUBLISHED) for name in sorted(DISRUPTIONS)),
        ("all", PUBLISHED | {"patch_embed": "linear"}),
        ("varied", FULL),
        ("varied", FULL | {"dense_weight": 0.0}),
        ("mae", FULL | {"reconstruction_loss": "masked"}),
    ],
)
def test_a_pre_training_step_waits_for_nothing(tmp_path, disruption, changes):
    given = PretrainSettings(
        data=tmp_path, out=tmp_path, disruption=disruption, max_steps=9, **SIZES, **changes
    )
    module = Pretraining(
        given, given.schedule(1), ["ct", "t1"], Preparation(spacing=None, crop_foreground=False), tmp_path
    )
    numbers = torch.zeros(4, dtype=torch.int64, device=META)
    image = torch.empty(4, 1, 64, 64, 64, device=META)
    inside = torch.empty(image.shape, dtype=torch.bool, device=META)
    origin = torch.zeros((4, 3), dtype=torch.int64, device=META)
    batch = {"image": image, "inside": inside, "modality": numbers, "sample": numbers, "origin": origin}
    check_steps(module, batch)


@pytest.mark.parametrize(("deep_supervision", "ignores"), [(False, False), (True, True)])
def test_a_fine_tuning_step_waits_for_nothing(tmp_path, deep_supervision, ignores):
    given = FinetuneSettings(data=tmp_path, out=tmp_path, max_steps=9, **SIZES)
    architecture = SwinArchitecture(
        embed_dim=12,
        heads=(1, 2, 4, 8),
        window=3,
        in_channels=2,
        out_channels=3,
        deep_supervision=deep_supervision,
    )
    network = Segmenter(architecture)
    module = Finetuning(given, given.schedule(1), network, SimpleNamespace(), tmp_path, ignores)
    image = torch.empty(4, 2, 64, 64, 64, device=META)
    label = torch.empty(4, 1, 64, 64, 64, dtype=torch.uint8, device=META)
    check_steps(module, {"image": image, "label": label})


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("padding", [None, -1000.0])
def test_scaling_waits_for_nothing(clips, padding):
    rest = PendingScaling(-1024.0, padding, 0.0, Normalisation(0.5, 3.0, clips))
    crops = [
        NumberedCrop(StoredCrop(np.zeros((20, 24, 24), np.int16), (4, 0, 0), rest), 0, 0),
        NumberedCrop(StoredCrop(np.zeros((24, 24, 24), np.float32), (0, 0, 0), None), 1, 1),
    ]
    batch = pack(crops).to(META)
    with Uploads() as uploads:
        sample = batch.unpack((24, 24, 24))
    assert {name: tensor.is_meta for name, tensor in sample.items()} == dict.fromkeys(sample, True)
    assert sample["image"].shape == (2, 1, 24, 24, 24)
    assert uploads.found == []


def test_what_waits_or_is_left_behind_is_noticed():
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(3, device=META).sum().item()
    with Uploads() as uploads:
        torch.ones(3).to(META)
        torch.tensor([1, 2], device=META)
    assert len(uploads.found) == 2
