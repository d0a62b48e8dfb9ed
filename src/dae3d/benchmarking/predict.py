"""Time and memory of segmenting one scan with sliding windows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dae3d.inference.sliding import segment
from dae3d.memory import peak_memory
from dae3d.models.network import Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.swin_unetr.layouts import FINETUNING, to_layout
from dae3d.phantom import phantom
from dae3d.store.boxes import Triple
from dae3d.training.cpu import keep_freed_memory

CLASSES = 14


@torch.inference_mode()
def segmentation(
    network: str,
    device: str,
    embed_dim: int,
    heads: tuple[int, int, int, int],
    window: int,
    roi: Triple,
    overlap: float,
    scan: tuple[int, int, int],
    tuned: bool,
    labels: str,
) -> dict[str, float]:
    """Segment a scan with Gaussian blending and write the labels to the file `labels`.

    Args:
        network: "dae3d", or "monai" for its SwinUNETR with the same weights and its sliding-window inference.
        device: device of the network.
        embed_dim: channels of the tokens.
        heads: attention heads of each stage.
        window: side of an attention window in tokens.
        roi: sides of a sliding window in voxels.
        overlap: overlap of neighbouring windows as a share of their sides.
        scan: shape of the scan in voxels.
        tuned: bf16 on a GPU, channels-last layout and reuse of freed memory on a CPU; for MONAI also flash
            attention, four windows at a time, and blending on the device of the network.
        labels: .npy file.

    Returns:
        Seconds, and peak memory in bytes.
    """
    torch.manual_seed(0)
    architecture = SwinArchitecture(
        embed_dim=embed_dim,
        heads=heads,
        window=window,
        out_channels=CLASSES,
        patch_embed="linear",
        window_edges="reference",  # MONAI's
    )
    ours = Segmenter(architecture).eval()
    image = torch.from_numpy(np.resize(phantom(0), scan).astype(np.float32) / 1000)[None]
    model: Any = ours if network == "dae3d" else _monai_network(ours, tuned)
    on_gpu = device != "cpu"
    if tuned:
        model = model.to(memory_format=torch.channels_last_3d)
        if not on_gpu:
            keep_freed_memory()
    model = model.to(device)

    def logits(windows: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=tuned and on_gpu):
            return model(windows).float()

    start = time.perf_counter()
    if network == "dae3d":
        classes = segment([logits], image, roi, overlap, device=torch.device(device))
    else:
        classes = _segment_with_monai(logits, image, roi, overlap, device, tuned)
    seconds = time.perf_counter() - start
    np.save(Path(labels), classes.numpy())
    return {
        "seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory(),
    }


def _segment_with_monai(
    logits: Callable[[Tensor], Tensor], image: Tensor, roi: Triple, overlap: float, device: str, tuned: bool
) -> Tensor:
    """The most probable class of each voxel by the sliding-window inference of MONAI."""
    from monai.inferers.utils import sliding_window_inference

    scores: Any = sliding_window_inference(
        image[None],
        roi,
        4 if tuned else 1,
        logits,
        overlap,
        mode="gaussian",
        sw_device=device,
        device=device if tuned else "cpu",
    )
    return scores[0].argmax(0).to(torch.uint8).cpu()


def _monai_network(network: Segmenter, flash: bool) -> nn.Module:
    from monai.networks.nets.swin_unetr import SwinUNETR

    a: Any = network.architecture
    theirs = SwinUNETR(
        1,
        CLASSES,
        feature_size=a.embed_dim,
        num_heads=a.heads,
        window_size=a.window,
        downsample="mergingv2",
        use_flash_attention=flash,
    )
    theirs.load_state_dict(to_layout(network.state_dict(), FINETUNING).state)
    return theirs.eval()
