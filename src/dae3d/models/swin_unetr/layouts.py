"""Names of tensors in files of other programs, mapped to ours.

Three layouts: the published pre-training (`ckpt_best.pth`), the published fine-tuning, which is the same as
MONAI's `SwinUNETR`, and MONAI's self-supervised encoder (`model_swinvit.pt`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dae3d.models.contents import Half, Renamed
from dae3d.models.network import Task
from dae3d.models.swin_unetr import SwinArchitecture

MASK_TOKEN = "encoder.mask_token"
NEVER_USED = "the published network never uses it"
FOLLOWS_FROM_WINDOW = "follows from the window size"
NO_SUCH_TENSOR = "the network has no such tensor"
NO_PART = "not part of a Swin UNETR"
ANOTHER_NETWORK = "belongs to another network in the file"

_DECODER = {
    **{f"decoder.skips.{i}.": f"encoder{i + 1}." for i in range(4)},
    "decoder.bottleneck.": "encoder10.",
    **{f"decoder.ups.{i}.": f"decoder{5 - i}." for i in range(5)},
    "decoder.head.": "out.",
}

# MONAI 0.8 created a third convolution in every residual block and used it only where channels change; the
# encoder's final norm feeds an output that no network here uses.
_UNUSED = re.compile(r"^(encoder\.|swinViT\.)?norm\.|^encoder(2|3|4|10)\.layer\.conv3\.")

# Names in any kind of Swin UNETR, by the half they belong to.
_HALVES: Mapping[Half, re.Pattern[str]] = {
    "encoder": re.compile(r"^(encoder|swinViT)\.|^(patch_embed|layers\d+[a-z]*)\."),
    "decoder": re.compile(r"^(encoder|decoder)\d+\.|^out\."),
}

# Identifies a layout after any prefix such as "module._orig_mod." or "student.backbone."; the first match
# counts.
_FIRST_STAGE = re.compile(
    r"^(?P<prefix>(?:.*?\.)??)"
    r"(?:(?P<pretrain>encoder\.layers1\.0\.0\.)|(?P<segmentation>(?:swinViT|swin_vit)\.layers1\.0\.)"
    r"|(?P<encoder>layers1\.0\.))"
)
_OTHER_NAME = re.compile(r"^swin_vit\.")


@dataclass(frozen=True)
class Layout:
    """One naming scheme for the tensors.

    Attributes:
        task: what a network with such names was trained for.
        entry: key of the file that holds the tensors.
        prefixes: prefixes of names, ours to theirs.
        mlp: name of the two linear layers of a transformer block's MLP.
        others: reason given for a tensor that is not part of a Swin UNETR.
    """

    task: Task
    entry: str
    prefixes: Mapping[str, str]
    mlp: Literal["fc", "linear"]
    others: str = NO_PART

    def theirs(self, name: str) -> str | None:
        """One of our names in this layout; None if it has no counterpart."""
        renamed = _with_prefix(name, self.prefixes.items())
        return renamed and renamed.replace(".mlp.linear", f".mlp.{self.mlp}")

    def ours(self, name: str) -> str | None:
        """A name of this layout as ours; None if we have no such tensor."""
        renamed = _with_prefix(name, ((theirs, ours) for ours, theirs in self.prefixes.items()))
        return renamed and renamed.replace(".mlp.fc", ".mlp.linear")


def _with_prefix(name: str, prefixes: Iterable[tuple[str, str]]) -> str | None:
    return next((new + name[len(old) :] for old, new in prefixes if name.startswith(old)), None)


def _encoder(prefix: str, stage: str) -> dict[str, str]:
    """Prefixes of the encoder; `stage` follows the number of a stage."""
    stages = {f"encoder.stages.{i}.": f"{prefix}layers{i + 1}{stage}" for i in range(4)}
    return {"encoder.patch_embed.": f"{prefix}patch_embed.proj.", **stages}


PRETRAINING = Layout(
    task="pretrain",
    entry="model",
    prefixes={MASK_TOKEN: MASK_TOKEN, **_encoder("encoder.", ".0.0."), **_DECODER},
    mlp="fc",
)
FINETUNING = Layout(
    task="segmentation",
    entry="state_dict",
    prefixes={**_encoder("swinViT.", ".0."), **_DECODER},
    mlp="linear",
)
SWIN_VIT = Layout(
    task="encoder",
    entry="state_dict",
    prefixes=_encoder("", ".0."),
    mlp="fc",
    others="belongs to the heads of its own pre-training",
)


def prefix_before(name: str, layout: Layout) -> str | None:
    """The prefix ("" or "module.") of a name that only networks of a layout have; None for other names."""
    match = _FIRST_STAGE.match(name)
    return match["prefix"] if match and match[layout.task] else None


def from_layout(state: Mapping[str, Tensor], layout: Layout, prefix: str = "") -> Renamed:
    """Rename the tensors of a file that have the prefix to our names."""
    renamed = Renamed({}, {}, {})
    for name, tensor in state.items():
        bare = _OTHER_NAME.sub("swinViT.", name.removeprefix(prefix))
        ours = layout.ours(bare)
        if not name.startswith(prefix):
            renamed.skipped[name] = ANOTHER_NETWORK
        elif _UNUSED.match(bare):
            renamed.skipped[name] = NEVER_USED
        elif bare.endswith("relative_position_index"):
            renamed.skipped[name] = FOLLOWS_FROM_WINDOW
        elif ours is not None:
            renamed.state[ours] = tensor.reshape(1, -1, 1, 1, 1) if ours == MASK_TOKEN else tensor
            renamed.origins[ours] = name
        elif half := next((half for half, names in _HALVES.items() if names.match(bare)), None):
            renamed.skipped[name] = NO_SUCH_TENSOR
            renamed.strangers[name] = half
        else:
            renamed.skipped[name] = layout.others
    return renamed


def to_layout(state: Mapping[str, Tensor], layout: Layout) -> Renamed:
    """Rename our tensors to the names of a layout; those without a counterpart are in `skipped`."""
    renamed = Renamed({}, {}, {})
    for name, tensor in state.items():
        theirs = layout.theirs(name)
        if theirs is None:
            renamed.skipped[name] = "this layout has no such tensor"
        else:
            renamed.state[theirs] = tensor.reshape(1, 1, -1) if name == MASK_TOKEN else tensor
            renamed.origins[theirs] = name
    return renamed


def architecture_of(state: Mapping[str, Tensor]) -> SwinArchitecture:
    """The architecture of tensors under our names, assuming the published patch merging and window edges.

    Raises:
        KeyError: if a tensor needed to infer it is missing.
    """
    linear = "encoder.patch_embed.weight" in state
    embedding = state["encoder.patch_embed.weight" if linear else "encoder.patch_embed.conv1.conv.weight"]
    tables = [state[f"encoder.stages.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(4)]
    depths = [
        len({name.split(".")[4] for name in state if name.startswith(f"encoder.stages.{i}.blocks.")})
        for i in range(4)
    ]
    head = state.get("decoder.head.conv.conv.weight")
    return SwinArchitecture(
        embed_dim=embedding.shape[0],
        depths=(depths[0], depths[1], depths[2], depths[3]),
        heads=(tables[0].shape[1], tables[1].shape[1], tables[2].shape[1], tables[3].shape[1]),
        window=(round(tables[0].shape[0] ** (1 / 3)) + 1) // 2,
        patch_merging="reference",
        restore_intensity=False,
        normalise_skips=False,
        in_channels=embedding.shape[1],
        out_channels=embedding.shape[1] if head is None else head.shape[0],
        patch_embed="linear" if linear else "conv",
        window_edges="reference",
    )
