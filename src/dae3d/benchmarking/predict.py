"""The time and memory of segmenting one scan by sliding windows."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dae3d.inference.sliding import segment
from dae3d.memory import peak_memory
from dae3d.models.layouts import FINETUNING, to_layout
from dae3d.models.swin_unetr import Architecture, Segmenter
from dae3d.phantom import phantom
from dae3d.training.cpu import keep_freed_memory

CLASSES = 14


@torch.inference_mode()
def segmentation(
    network: str,
    device: str,
    embed_dim: int,
    heads: tuple[int, int, int, int],
    window: int,
    roi: int,
    overlap: float,
    scan: tuple[int, int, int],
    bf16: bool,
    labels: str,
) -> dict[str, float]:
    """Segment a scan with Gaussian blending, and write its labels to the file `labels`.

    Args:
        network: "dae3d", or "monai": its SwinUNETR with the same weights, and its sliding windows.
        device: where the network runs.
        embed_dim: channels of a token.
        heads: attention heads of each stage.
        window: side of an attention window in tokens.
        roi: side of a sliding window in voxels.
        overlap: share of a window that the next one covers too.
        scan: voxels of the scan.
        bf16: autocast to bfloat16.
        labels: .npy file.

    Returns:
        Seconds, and peak memory in bytes.
    """
    torch.manual_seed(0)
    architecture = Architecture(
        embed_dim=embed_dim, heads=heads, window=window, out_channels=CLASSES, patch_embed="linear"
    )
    ours = Segmenter(architecture).eval()
    image = torch.from_numpy(np.resize(phantom(0), scan).astype(np.float32) / 1000)[None]
    model: Any = ours if network == "dae3d" else _monais(ours)
    if network == "dae3d":
        keep_freed_memory()
        model = model.to(memory_format=torch.channels_last_3d)
    model = model.to(device)

    def logits(windows: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            return model(windows).float()

    start = time.perf_counter()
    if network == "dae3d":
        classes = segment([logits], image, roi, overlap, device=torch.device(device))
    else:
        from monai.inferers.utils import sliding_window_inference

        scores: Any = sliding_window_inference(
            image[None], roi, 1, logits, overlap, mode="gaussian", sw_device=device, device="cpu"
        )
        classes = scores[0].argmax(0).to(torch.uint8)
    seconds = time.perf_counter() - start
    np.save(Path(labels), classes.numpy())
    on_gpu = device != "cpu"
    return {
        "seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory(),
    }


def _monais(network: Segmenter) -> nn.Module:
    from monai.networks.nets.swin_unetr import SwinUNETR

    a = network.architecture
    theirs = SwinUNETR(
        1, CLASSES, feature_size=a.embed_dim, num_heads=a.heads, window_size=a.window, downsample="mergingv2"
    )
    theirs.load_state_dict(to_layout(network.state_dict(), FINETUNING).state)
    return theirs.eval()
