"""Time and memory of a training step."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from dae3d.errors import Dae3dError
from dae3d.memory import peak_memory
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.resenc import ResEncArchitecture
from dae3d.models.resenc.foreign import kwargs_of
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.store.boxes import Triple
from dae3d.training.cpu import keep_freed_memory

_WARM_UP = 3  # uncounted steps for memory allocation and kernel selection


def training_step(
    network: str,
    device: str,
    embed_dim: int,
    heads: tuple[int, int, int, int],
    window: int,
    roi: Triple,
    batch_size: int,
    steps: int,
    bf16: bool,
    tuned: bool,
    checkpoint_activations: bool,
    compiled: bool,
    size: str = "",
) -> dict[str, float]:
    """Measure one step: forward, L1 loss, backward, AdamW.

    Args:
        network: "dae3d", "monai" (its SwinUNETR), or "library" (nnU-Net's ResidualEncoderUNet).
        device: device of the network.
        embed_dim: channels of the tokens.
        heads: attention heads of each stage.
        window: side of an attention window in tokens.
        roi: sides of a crop in voxels.
        batch_size: crops per step.
        steps: number of measured steps.
        bf16: autocast to bfloat16.
        tuned: with the optimisations of `pretrain`: channels-last layout, reuse of freed memory (on a CPU),
            fused AdamW. The documentation of MONAI uses none of these.
        checkpoint_activations: recompute activations.
        compiled: use `torch.compile`.
        size: of the residual encoder U-Net; "" for Swin UNETR, with the sizes above.

    Returns:
        Median seconds per step, samples/s, peak memory in bytes, and seconds for the first step.
    """
    torch.manual_seed(0)
    if tuned and device == "cpu":
        keep_freed_memory()
    if size:
        model = make_resenc(network, size, roi, checkpoint_activations).to(device)
    else:
        model = make_network(network, embed_dim, heads, window, checkpoint_activations).to(device)
    if tuned:
        model = model.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(model.parameters(), fused=tuned)
    image = torch.rand(batch_size, 1, *roi, device=device)
    step: Any = torch.compile(model) if compiled else model
    seconds: list[float] = []
    for _ in range(_WARM_UP + steps):
        start = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            loss = _l1(step(image), image)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[_WARM_UP:])
    return {
        "seconds": median,
        "samples_per_second": batch_size / median,
        "peak_bytes": peak_memory() if device == "cpu" else torch.cuda.max_memory_allocated(),
        "first_step_seconds": seconds[0],
    }


def _l1(repaired: Tensor, image: Tensor) -> Tensor:
    return nn.functional.l1_loss(repaired.float(), image)


def make_network(
    name: str, embed_dim: int, heads: tuple[int, int, int, int], window: int, checkpoint_activations: bool
) -> Any:
    """The SwinUNETR of "dae3d" or "monai" with one input and one output channel."""
    if name == "dae3d":
        # With the window edges of MONAI, both do the same computation.
        architecture = SwinArchitecture(
            embed_dim=embed_dim, heads=heads, window=window, window_edges="reference"
        )
        return RepairNetwork(architecture, checkpoint_activations)
    from monai.networks.nets.swin_unetr import SwinUNETR as Theirs

    return Theirs(
        in_channels=1,
        out_channels=1,
        feature_size=embed_dim,
        num_heads=heads,
        window_size=window,
        use_checkpoint=checkpoint_activations,
    )


def make_resenc(name: str, size: str, roi: Triple, checkpoint_activations: bool) -> Any:
    """The residual encoder U-Net of "dae3d" or "library", for crops of 1 mm voxels and one class."""
    sizes = ResEncArchitecture.sizes({"size": size}, roi, (1.0, 1.0, 1.0))
    architecture = ResEncArchitecture(**sizes, restore_intensity=False)
    if name == "dae3d":
        return Segmenter(architecture, checkpoint_activations)
    try:
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    except ImportError:
        raise Dae3dError(
            "against: library needs nnU-Net's networks: pip install dynamic-network-architectures"
        ) from None
    kwargs = kwargs_of(architecture)
    classes = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU, "dropout_op": None}
    return ResidualEncoderUNet(input_channels=1, num_classes=1, deep_supervision=False, **kwargs | classes)
