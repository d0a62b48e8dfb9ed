"""Peak memory and time of `dae3d predict` on one large scan, CPU.

The scan is synthetic: int16, smooth, of the given shape, uncompressed. The network is the smallest possible
(embedding of 4 channels), so that this measures the scan, the sliding windows and resampling to the scan's
grid. A larger network adds its activations of one batch of windows.

    python benchmarks/predict_memory.py [--shape 512 512 1000] [--classes 14] [--spacing 1.5 1.5 2]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch

from dae3d.models.network import Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.store.recipe import CaseRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 1000))
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--spacing", type=float, nargs=3, default=None, help="resample to; the scan has 1 mm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scan(folder / "scan.nii", tuple(arguments.shape))
        write_weights(folder / "weights.safetensors", arguments.classes, arguments.spacing)
        command = [sys.executable, "-m", "dae3d.cli", "predict", str(folder / "scan.nii")]
        command += ["--weights", str(folder / "weights.safetensors"), "--out", str(folder / "out")]
        command += ["--overlap", "0.25", "--device", "cpu"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        label = nibabel.load(folder / "out/scan.nii.gz")
        assert label.shape == tuple(arguments.shape)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    shape = " x ".join(map(str, arguments.shape))
    spacing = "as acquired" if arguments.spacing is None else " x ".join(map(str, arguments.spacing)) + " mm"
    print("| scan | classes | windows | voxels | peak RSS (GiB) | seconds |\n|---|---:|---|---|---:|---:|")
    print(f"| {shape} | {arguments.classes} | 96^3, overlap 0.25 | {spacing} | {peak:.1f} | {seconds:.0f} |")


def write_scan(path: Path, shape: tuple[int, ...]) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    waves = [np.sin(np.arange(n) / 20).astype(np.float32) for n in shape]
    plane = 400 * waves[0][:, None] * waves[1]
    volume = np.empty(shape, np.int16)
    for z, wave in enumerate(waves[2]):
        volume[..., z] = plane * wave
    nibabel.Nifti1Image(volume, np.eye(4), header).to_filename(path)


def write_weights(path: Path, classes: int, spacing: list[float] | None) -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 4, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 2}
    network = Segmenter(SwinArchitecture(**sizes, out_channels=classes))
    labels = {0: "background"} | {value: f"class {value}" for value in range(1, classes)}
    recipe = CaseRecipe(modalities=("ct",), labels=labels, spacing=spacing, roi=96)
    info = {"task": "segmentation", "recipe": recipe.model_dump(mode="json")}
    save_weights(path, network.state_dict(), network.architecture, info)


if __name__ == "__main__":
    main()
