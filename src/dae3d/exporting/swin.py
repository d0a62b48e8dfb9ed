"""Swin UNETR in MONAI's layout and in the published one."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dae3d.errors import Dae3dError
from dae3d.exporting.exported import Exported, learned
from dae3d.files import whole_file
from dae3d.models.network import FeatureEncoder, RepairNetwork
from dae3d.models.swin_unetr.architecture import SwinArchitecture, sides_without_edges
from dae3d.models.swin_unetr.layouts import FINETUNING, PRETRAINING, Layout, to_layout
from dae3d.models.weights import HEADER


def write_reference(network: Any, out: Path) -> Exported:
    """The published layout, with our header as an additional entry."""
    exported = to_reference(network)
    architecture = replace(network.architecture, deep_supervision=False)
    header = {"architecture": architecture.header(), "info": network.info}
    with whole_file(out) as temporary:
        torch.save({_whole_layout(network).entry: exported.state, HEADER: header}, temporary)
    return exported


def write_monai(network: Any, out: Path) -> Exported:
    """A plain state dict, with our header in its `_metadata`, where PyTorch keeps module versions."""
    exported = to_monai(network)
    exported.notes.extend(["In MONAI:", *_monai_code(network, out)])
    architecture = replace(network.architecture, deep_supervision=False)
    state: Any = OrderedDict(exported.state)
    state._metadata = OrderedDict({HEADER: {"architecture": architecture.header(), "info": network.info}})
    with whole_file(out) as temporary:
        torch.save(state, temporary)
    return exported


def to_reference(network: Any) -> Exported:
    """A network in the published layout: pre-training for `SwinUNETR`, fine-tuning for `Segmenter`."""
    layout = _whole_layout(network)
    renamed = to_layout(learned(network) | _position_indices(network), layout)
    architecture: SwinArchitecture = network.architecture
    state = renamed.state | _never_used(architecture.embed_dim, layout)
    notes = _edge_notes(architecture, "the published network")
    if architecture.patch_merging == "straight":
        notes.append(
            "The published network merges other octants (two of them twice, two never), so these weights "
            "give different outputs there."
        )
    if architecture.patch_embed == "linear":
        notes.append(
            "The patch embedding of the published network is different and cannot use these weights."
        )
    if isinstance(network, RepairNetwork):
        notes += _repair_notes(network, "the published fine-tuning network")
        if architecture.normalise_skips:
            notes.append("The published pre-training network does not normalise the decoder's features.")
        if architecture.axes == "straight":
            notes.append("The published pre-training network swaps depth and channels, this one does not.")
    elif architecture.axes == "reference":
        notes.append("This network swaps depth and channels, the published fine-tuning network does not.")
    return Exported(state, renamed.skipped, notes)


def to_monai(network: Any) -> Exported:
    """A network as a state dict of MONAI's `SwinUNETR`.

    Raises:
        Dae3dError: if MONAI does not support the network.
    """
    _whole_layout(network)
    architecture: SwinArchitecture = network.architecture
    if architecture.embed_dim % 12:
        raise Dae3dError(
            f"format: embed_dim of MONAI's SwinUNETR must be a multiple of 12, but it is "
            f"{architecture.embed_dim} in these weights; the other formats support it"
        )
    renamed = to_layout(learned(network) | _position_indices(network), FINETUNING)
    state, left_out = renamed.state, renamed.skipped
    notes = _edge_notes(architecture, "MONAI")
    if architecture.patch_embed == "conv":
        for name in [name for name in state if name.startswith("swinViT.patch_embed.")]:
            left_out[renamed.origins[name]] = "MONAI's patch embedding is a single 2^3 convolution"
            del state[name]
        notes.append(
            "Without the patch embedding the outputs differ, and it has to be trained again "
            '(weights trained with patch_embed "linear" are exported completely).'
        )
    if isinstance(network, RepairNetwork):
        notes += _repair_notes(network, "MONAI's network")
    if architecture.axes == "reference":
        notes.append("This network swaps depth and channels, MONAI's does not.")
    return Exported(state, left_out, notes)


def _monai_code(network: Any, file: Path) -> list[str]:
    """Python code that loads the file."""
    a: SwinArchitecture = network.architecture
    lines = ["from monai.networks.nets import SwinUNETR"]
    downsample = '"mergingv2"'
    if a.patch_merging == "reference":
        # MONAI's "merging" has this order only up to version 1.4.
        lines.append("from dae3d.models.swin_unetr import ReferencePatchMerging")
        downsample = "ReferencePatchMerging"
    # The published pre-training passes features to the decoder without normalisation.
    raw = ", normalize=False" if isinstance(network, RepairNetwork) and not a.normalise_skips else ""
    lines.append(
        f"network = SwinUNETR(in_channels={a.in_channels}, out_channels={a.out_channels}, "
        f"feature_size={a.embed_dim}, depths={a.depths}, num_heads={a.heads}, window_size={a.window}, "
        f"downsample={downsample}{raw})"
    )
    whole = a.patch_embed == "linear" and not _ends_at_half(network)
    strict = "" if whole else ", strict=False"
    lines.append(f'network.load_state_dict(torch.load("{file}", weights_only=True){strict})')
    return [f"    {line}" for line in lines]


def _edge_notes(architecture: SwinArchitecture, theirs: str) -> list[str]:
    """Differences of attention at the edges of a volume."""
    if architecture.window_edges == "reference":
        return []
    side = sides_without_edges(architecture.window)
    return [
        f'Warning: these weights have window_edges "exact"; in {theirs} tokens attend to padding, and cut '
        "windows take the biases of other offsets. On images, or sliding windows, whose sides are all "
        f"multiples of {side} there is no padding and no cut window, and attention is the same; on others "
        "outputs differ slightly."
    ]


def _ends_at_half(network: Any) -> bool:
    return isinstance(network, RepairNetwork) and network.architecture.repair_from != "full"


def _repair_notes(network: RepairNetwork, theirs: str) -> list[str]:
    if _ends_at_half(network):
        return [
            "The decoder of these weights ends at half resolution. Its heads are left out, and the "
            f"corresponding layers of {theirs} (encoder1, decoder1, out) are not in the file: load it with "
            "strict=False. The network cannot repair images until these layers are trained."
        ]
    if not network.architecture.restore_intensity:
        return []
    return [
        "This network multiplies its output by the standard deviation of the input and adds its mean; the "
        "other one does not, so do this yourself."
    ]


def _whole_layout(network: Any) -> Layout:
    if not isinstance(network.architecture, SwinArchitecture):
        raise Dae3dError(
            f"format: this one is for backbone {SwinArchitecture.backbone}, and {network.weights} has "
            f"{network.architecture.backbone}"
        )
    if isinstance(network, FeatureEncoder):
        raise Dae3dError(
            f"{network.weights}: these are weights of an encoder only; export them as safetensors"
        )
    return PRETRAINING if isinstance(network, RepairNetwork) else FINETUNING


def _position_indices(network: Any) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name.endswith("relative_position_index")
    }


def _never_used(dim: int, layout: Layout) -> dict[str, Tensor]:
    """Tensors that the published network has but does not use."""
    filled = {
        f"encoder{i}.layer.conv3.conv.weight": torch.zeros(width * dim, width * dim, 1, 1, 1)
        for i, width in ((2, 1), (3, 2), (4, 4), (10, 16))
    }
    if layout is PRETRAINING:
        filled["encoder.norm.weight"] = torch.ones(16 * dim)
        filled["encoder.norm.bias"] = torch.zeros(16 * dim)
    return filled
