"""One file a command: its settings, and the function that runs it."""

from importlib import import_module
from typing import Any

# command: one line of help; `store check` is the function `store_check` of the module of that name.
COMMANDS = {
    "index": "Find scans in folders and lists, and write what they are to a manifest.",
    "prepare": "Write the scans of a manifest into a store that training reads from.",
    "store check": "Read a store whole, and say what in it is damaged or missing.",
    "pretrain": "Pre-train a network on a store by disruption and repair.",
    "check": "Say what pre-training has taught each level of the encoder.",
    "reconstruct": "Disrupt whole scans, repair them, and measure how well.",
    "finetune": "Fine-tune a network to segment, from a list of labelled cases.",
    "predict": "Segment scans, in their own grid.",
    "evaluate": "Compare segmentations with references: Dice, surface distances, volumes.",
    "embed": "Write the encoder's pooled features of whole scans.",
    "export": "Write weights in another layout: MONAI's, or the published one.",
    "report": "Write one self-contained page about a training run.",
    "bench": "Measure a training step, the loader and a prediction, against MONAI's if asked.",
    "demo": "Run everything once, on embedded scans or on yours, in a few minutes.",
}


def load_command(command: str) -> Any:
    """Import the function behind a command: only the one that is asked for, since PyTorch takes seconds."""
    name = command.replace(" ", "_")
    return getattr(import_module(f"dae3d.commands.{name}"), name)
