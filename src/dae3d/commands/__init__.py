"""One file per command: its settings, and the function that runs it."""

from importlib import import_module
from typing import Any

# Help text of each command; `store check` is the function `store_check` in the module of that name.
COMMANDS = {
    "index": "Find scans in folders and lists, and describe them in a manifest.",
    "prepare": "Write the scans of a manifest into a store that training reads from.",
    "store check": "Verify all files of a store, and report what is damaged or missing.",
    "plan": "Plan a run: crops, network, batch and steps that fit the data and the device.",
    "pretrain": "Pre-train a network on a store by disruption and repair.",
    "check": "Measure what each level of the encoder has learned in pre-training.",
    "reconstruct": "Disrupt whole scans, repair them, and measure how well.",
    "finetune": "Fine-tune a network to segment, from a list of labelled cases.",
    "study": "Compare initial weights by fine-tuning with few labels, in pairs.",
    "pseudo-label": "Label scans with fine-tuned networks, to train on what they are sure of.",
    "predict": "Segment scans; results are in the grid of each scan.",
    "evaluate": "Compare segmentations with references: Dice, surface distances, volumes.",
    "embed": "Write the encoder's pooled features of whole scans.",
    "export": "Write weights for another program, or as a folder to publish.",
    "push": "Upload weights and a model card to the Hugging Face Hub.",
    "report": "Write a self-contained page about a training run.",
    "bench": "Measure the speed of training, loading and prediction, also against MONAI.",
    "demo": "Run all steps once, on included scans or yours, in a few minutes.",
}


def load_command(command: str) -> Any:
    """Import the function of a command: only this one, because PyTorch takes seconds to import."""
    name = command.replace(" ", "_").replace("-", "_")
    return getattr(import_module(f"dae3d.commands.{name}"), name)
