"""Self-supervised pre-training for 3D medical images by disruption and repair."""

from typing import Any

__version__ = "0.1.0"

# verb: (where its function is, one line of help); the functions are imported when they are first used.
VERBS = {
    "index": (
        "dae3d.scans.index:index",
        "Find scans in folders and lists, and write what they are to a manifest.",
    ),
    "prepare": (
        "dae3d.store.prepare:prepare",
        "Write the scans of a manifest into a store that training reads from.",
    ),
    "store check": (
        "dae3d.store.check:store_check",
        "Read a store whole, and say what in it is damaged or missing.",
    ),
    "pretrain": (
        "dae3d.training.pretrain:pretrain",
        "Pre-train a network on a store by disruption and repair.",
    ),
    "check": (
        "dae3d.probing.check:check",
        "Say what pre-training has taught each level of the encoder.",
    ),
    "reconstruct": (
        "dae3d.inference.reconstruct:reconstruct",
        "Disrupt whole scans, repair them, and measure how well.",
    ),
    "finetune": (
        "dae3d.training.finetune:finetune",
        "Fine-tune a network to segment, from a list of labelled cases.",
    ),
    "predict": ("dae3d.inference.predict:predict", "Segment scans, in their own grid."),
    "evaluate": (
        "dae3d.evaluation.evaluate:evaluate",
        "Compare segmentations with references: Dice, surface distances, volumes.",
    ),
    "embed": ("dae3d.inference.embed:embed", "Write the encoder's pooled features of whole scans."),
    "export": (
        "dae3d.models.export:export",
        "Write weights in another layout: MONAI's, or the published one.",
    ),
    "report": ("dae3d.reporting.page:report", "Write one self-contained page about a training run."),
    "bench": (
        "dae3d.benchmarking.bench:bench",
        "Measure a training step, the loader and a prediction, against MONAI's if asked.",
    ),
    "demo": ("dae3d.first_run:demo", "Run everything once, on embedded scans or on yours, in a few minutes."),
}

# A verb of two words, such as `store check`, is a function of one: `store_check`.
_FUNCTIONS = {verb.replace(" ", "_"): verb for verb in VERBS}

__all__ = ["__version__", "load", *_FUNCTIONS]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        from dae3d.cli import load_verb

        return load_verb(_FUNCTIONS[name])
    if name == "load":
        from dae3d.models.weights import load

        return load
    raise AttributeError(f"module 'dae3d' has no attribute {name!r}")
