"""Memory of a pre-training step on a CPU: calculated (`dae3d.planning.step_memory`) and measured.

    python benchmarks/step_memory.py [--backbone resenc] [--roi 64] [--crops 2]

Measured is the growth of this process from a step with small crops, which loads libraries and makes gradients
and moments, to two steps with the crops asked for. So the calculation is given without weights and moments,
and without the small step. The C library keeps freed memory, as in a run.
"""

import argparse
from pathlib import Path

import torch

from dae3d.memory import peak_memory
from dae3d.planning.network import PlannedNetwork
from dae3d.planning.trial import PretrainTrial
from dae3d.training.beginning import ONE_MM, with_all_sizes
from dae3d.training.cpu import keep_freed_memory
from dae3d.training.pretrain_settings import PretrainSettings

_SMALL = 32  # voxels per side
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="swin-unetr")
    parser.add_argument("--roi", type=int, default=64)
    parser.add_argument("--crops", type=int, default=2)
    given = parser.parse_args()
    roi, small = (given.roi,) * 3, (_SMALL,) * 3
    sizes = PlannedNetwork(given.backbone, "small", "cpu", ONE_MM).sizes(roi)
    here = Path(".")
    settings = PretrainSettings(
        data=here, out=here, roi=roi, batch_size=given.crops, accelerator="cpu", **sizes
    )
    trial = PretrainTrial(with_all_sizes(settings, ONE_MM))
    calculated = trial.memory(given.crops, roi)
    keep_freed_memory()
    torch.manual_seed(0)
    module = trial.module().train()
    module.sums.reset(CPU)
    optimizer = module.configure_optimizers()
    trial.step(module, optimizer, trial.batch(2, small, CPU), CPU)
    before = peak_memory()
    batch = trial.batch(given.crops, roi, CPU)
    for _ in range(2):
        trial.step(module, optimizer, batch, CPU)
    grown = peak_memory() - before
    expected = calculated.total - calculated.weights - calculated.optimiser - calculated.gradients
    print(
        f"{given.backbone}, {given.crops} x {given.roi}^3: calculated {expected / 1e6:.0f} MB, measured "
        f"{grown / 1e6:.0f} MB, {grown / expected:.2f} of it"
    )


if __name__ == "__main__":
    main()
