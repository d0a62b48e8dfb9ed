"""Whether nnU-Net's trainer for pre-trained weights takes all of stem and stages from a file of dae3d.

    python check_pretrained.py CHECKPOINT PLANS

Needs nnU-Net's master, in which `nnUNetv2_train_pretrained` is; `interop.sh` makes the plans.
"""

import sys

import torch
from nnunetv2.run.run_training_from_pretrained import get_trainer_from_args


def main() -> None:
    checkpoint, plans = sys.argv[1:]
    trainer = get_trainer_from_args(
        "4", "3d_fullres", 0, "PretrainedTrainer", plans, device=torch.device("cpu")
    )
    trainer.initialize()
    file = torch.load(checkpoint, weights_only=True)
    state, plan = trainer.network.state_dict(), file["nnssl_adaptation_plan"]
    for ours, theirs in (
        (trainer.network.key_to_encoder, plan["key_to_encoder"]),
        (trainer.network.key_to_stem, plan["key_to_stem"]),
    ):
        names = [name for name in state if name.startswith(f"{ours}.")]
        wanted = {name: file["network_weights"][theirs + name.removeprefix(ours)] for name in names}
        equal = sum(torch.equal(state[name], wanted[name]) for name in names)
        print(f"{ours}: {equal} of {len(names)} tensors are those of the file")
        if equal < len(names):
            sys.exit(1)


if __name__ == "__main__":
    main()
