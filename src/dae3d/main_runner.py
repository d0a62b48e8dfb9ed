"""The published command line of Disruptive Autoencoders.

`python -m dae3d.main_runner --choice ...` accepts the flags of the published `main_runner.py`, with its
spelling and defaults, and runs `dae3d pretrain` with the corresponding settings. `--data-path` is a store
made by `dae3d prepare`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from dae3d.cli import run_command, show_messages
from dae3d.commands import load_command
from dae3d.training.pretrain_settings import PretrainSettings

CHOICES = {
    "denoise": "denoise",
    "superres": "superres",
    "LD": "local_mask",
    "sld": "local_mask",
    "all": "all",
    "mae": "mae",
}

# Flags that are accepted but have no effect, and why.
WITHOUT_MEANING = {
    "sw_batch_size": "validation crops have the size of training crops",
    "cache_dataset": "the store needs no cache",
    "cache_rate": "the store needs no cache",
    "thread_loader": "crops are read by loader processes",
    "log_dir": "TensorBoard files are in the output folder",
    "out_channels": "the output has the channels of the image",
    "in_channels": "scans have one channel",
    "local_rank": "it is taken from the launcher",
    "deterministic": "every sample depends only on the seed and its number",
    "iso_spacing": "resample with `dae3d prepare --spacing 2 2 2`",
    "roi_x": "crops have the sides of --img_size",
    "roi_y": "crops have the sides of --img_size",
    "roi_z": "crops have the sides of --img_size",
    "pretrained_dir": "--resume continues the run in --output",
    "tag": "use --output to name the run",
    "decoder": "the decoder is that of swin_skip",
    "start_epoch": "--resume continues from the last checkpoint",
    "auto_resume": "use --resume",
}


def parser() -> argparse.ArgumentParser:
    """The published flags with their defaults."""
    p = argparse.ArgumentParser(
        prog="python -m dae3d.main_runner",
        description="Pre-train with the published command line of Disruptive Autoencoders.",
        allow_abbrev=False,
    )
    p.add_argument("--data-path", "--data_path", required=True, help="store made by `dae3d prepare`")
    p.add_argument("--output", default="output", help="run folder")
    p.add_argument(
        "--choice", default="mae", choices=list(CHOICES), help="disruption; LD and sld are the same"
    )
    p.add_argument("--model_type", default="swin_skip", choices=["swin_skip"], help="network")
    p.add_argument(
        "--loss_type", default="mask_only", choices=["all_img", "mask_only"], help="voxels of the L1 loss"
    )
    p.add_argument("--variance", type=float, default=0.1, help="variance of the noise")
    p.add_argument("--interpolate", type=float, default=4, help="factor of down-sampling")
    p.add_argument("--mask_ratio", type=float, default=0.6, help="share of blocks masked by mae")
    p.add_argument("--mask_patch_size", type=int, default=16, help="side of these blocks in voxels")
    p.add_argument("--mm_con", type=float, default=0.02, help="weight of the contrastive loss")
    p.add_argument("--temperature", type=float, default=0.07, help="temperature of the contrastive loss")
    p.add_argument(
        "--img_size", type=int, nargs="+", default=[96], help="side of crops in voxels, or the three sides"
    )
    p.add_argument("--embed_dim", "--feature_size", type=int, default=48, help="channels of the tokens")
    p.add_argument("--batch_size", type=int, default=1, help="crops per GPU and step")
    p.add_argument("--accumulate_step", type=int, default=0, help="batches per optimiser step")
    p.add_argument("--epoch", type=int, default=100, help="epochs to train")
    p.add_argument("--warmpup_epoch", type=int, default=20, help="warm-up epochs")
    p.add_argument("--base_lr", type=float, default=5e-4, help="highest learning rate")
    p.add_argument("--min_lr", type=float, default=5e-6, help="learning rate at the end")
    p.add_argument("--warmup_lr", type=float, default=5e-7, help="learning rate at the start")
    p.add_argument("--weight_decay", type=float, default=0.05, help="weight decay")
    p.add_argument("--clip_grad", type=float, default=1, help="largest gradient norm, 0 for none")
    p.add_argument("--save_freq", type=int, default=1, help="epochs between checkpoints")
    p.add_argument("--print_freq", type=int, default=10, help="steps between rows of metrics")
    p.add_argument("--num_workers", type=int, default=8, help="loader processes per GPU")
    p.add_argument("--seed", type=int, default=0, help="seed of the initial weights and all samples")
    p.add_argument("--amp_opt_level", default="O1", choices=["O0", "O1"], help="O0: float32; O1: automatic")
    for flags in (["--use_checkpoint", "--use_grad_checkpoint"], ["--onlycovid"], ["--encoder_off"]):
        p.add_argument(*flags, action="store_true")
    for flag in ("--decoder_off", "--resume"):
        p.add_argument(flag, action="store_true")
    p.add_argument(
        "--print-settings", action="store_true", help="print the settings of `dae3d pretrain` and exit"
    )
    for name in WITHOUT_MEANING:
        # `python -m torch.distributed.launch` passes --local-rank.
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        p.add_argument(*spellings, dest=name, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return p


def translate(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings of `dae3d pretrain` for published flags, and a remark on each flag without effect."""
    p = parser()
    given = p.parse_args(list(arguments))
    if given.encoder_off and given.decoder_off:
        p.error("--encoder_off and --decoder_off together leave nothing to train")
    if given.interpolate != int(given.interpolate):
        p.error(f"--interpolate: must be a whole number, not {given.interpolate}")
    fields = {
        **PretrainSettings.earlier,
        "data": given.data_path,
        "out": given.output,
        "disruption": CHOICES[given.choice],
        "reconstruction_loss": "masked" if given.loss_type == "mask_only" else "all",
        "noise_variance": given.variance,
        "downsample_factor": int(given.interpolate),
        "block_mask_ratio": given.mask_ratio,
        "block_size": given.mask_patch_size,
        "contrastive_weight": given.mm_con,
        "contrastive_temperature": given.temperature,
        "roi": given.img_size,
        "embed_dim": given.embed_dim,
        "depths": (2, 2, 2, 2),
        "heads": (3, 6, 12, 24),
        "window": 7,
        "restore_intensity": False,
        "crop_region": "volume",
        "batch_size": given.batch_size,
        "accumulate": max(1, given.accumulate_step),
        "max_steps": f"{given.epoch} epochs",
        "warmup_steps": f"{given.warmpup_epoch} epochs",
        "val_every": "1 epochs",
        "save_every": f"{given.save_freq} epochs",
        "log_every": given.print_freq,
        "lr": given.base_lr,
        "min_lr": given.min_lr,
        "warmup_lr": given.warmup_lr,
        "weight_decay": given.weight_decay,
        "clip_grad": given.clip_grad or None,
        "workers": given.num_workers,
        "seed": given.seed,
        "precision": "32-true" if given.amp_opt_level == "O0" else "auto",
        "checkpoint_activations": given.use_checkpoint,
        "freeze": "encoder" if given.encoder_off else "decoder" if given.decoder_off else "none",
        "resume": given.resume,
    }
    if given.onlycovid:
        fields["datasets"] = ["covid19"]
    if given.print_settings:
        fields["print_settings"] = True
    remarks = [f"--{name} has no effect: {why}" for name, why in WITHOUT_MEANING.items() if name in given]
    return fields, remarks


def main(argv: Sequence[str] | None = None) -> int:
    """Translate and run; returns the exit status."""
    show_messages()
    fields, remarks = translate(sys.argv[1:] if argv is None else argv)
    if os.environ.get("RANK", "0") == "0":
        for remark in remarks:
            print(remark, file=sys.stderr)
    return run_command(load_command("pretrain"), fields)


if __name__ == "__main__":
    sys.exit(main())
