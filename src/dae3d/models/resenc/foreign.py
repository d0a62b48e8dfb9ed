"""Weights of nnU-Net and nnssl: their names of tensors, their plans, their order of axes.

Both hold a state dict under `network_weights`, in which every convolution and norm stands twice, and which
has the encoder a second time in the decoder. Their images have the axes (superior, anterior, right) where
ours have (right, anterior, superior), so the kernels are transposed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dae3d.errors import Dae3dError
from dae3d.models.contents import Contents, Found, MonaiMerging, Reader, Renamed, tensors_of
from dae3d.models.resenc.architecture import ResEncArchitecture
from dae3d.store.boxes import Triple

ENTRY = "network_weights"
PLAN = "nnssl_adaptation_plan"
NETWORK_CLASS = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
REVERSED = (2, 1, 0)  # the axes of ours that nnU-Net's are, in their order

_STEM = "encoder.stem.convs.0.conv.weight"
_TWICE = re.compile(r"\.all_modules\.|^decoder\.encoder\.")
_FIRST = re.compile(r"^(?P<prefix>(?:.*?\.)??)" + re.escape(_STEM) + "$")
_SEG_LAYER = re.compile(r"^decoder\.seg_layers\.(\d+)\.(.*)")
_HEAD = re.compile(r"^(?:decoder\.head|auxiliary_heads\.(\d+))\.(.*)")
_SECOND_NAME = re.compile(r"^(.*)\.(conv|norm)\.(weight|bias)$")


def to_nnunet(
    state: Mapping[str, Tensor], architecture: ResEncArchitecture, axes: Sequence[int] = REVERSED
) -> Renamed:
    """Our tensors under all names that nnU-Net's network has for them; `skipped` has those without one.

    Args:
        state: of a network.
        architecture: of the network.
        axes: the axis of ours that each of nnU-Net's axes is.
    """
    renamed = Renamed({}, {}, {})
    for name, tensor in state.items():
        theirs = name
        if head := _HEAD.match(name):
            stage = len(architecture.stage_channels) - 2 - (int(head[1]) + 1 if head[1] else 0)
            theirs = f"decoder.seg_layers.{stage}.{head[2]}"
        elif ".repair_heads." in name:
            renamed.skipped[name] = "only repairs images"
            continue
        turned = (
            tensor.permute(0, 1, *(2 + axis for axis in axes)).contiguous() if tensor.ndim == 5 else tensor
        )
        for each in _all_names(theirs):
            renamed.state[each] = turned
            renamed.origins[each] = name
    return renamed


def _all_names(name: str) -> list[str]:
    """A name of nnU-Net's, and its other names for the same tensor."""
    names = [name]
    if match := _SECOND_NAME.match(name):
        block, kind, which = match.groups()
        names.append(f"{block}.all_modules.{0 if kind == 'conv' else 1}.{which}")
    if name.startswith("encoder."):
        names += [f"decoder.{each}" for each in names]
    return names


def renamed(found: Found) -> Renamed:
    """nnU-Net's tensors under our names."""
    tensors = tensors_of(found.tensors)
    made = Renamed({}, {}, {})
    heads = [
        int(match[1]) for name in tensors if (match := _SEG_LAYER.match(name.removeprefix(found.prefix)))
    ]
    for name, tensor in tensors.items():
        bare = name.removeprefix(found.prefix)
        if not name.startswith(found.prefix):
            made.skipped[name] = "belongs to another network in the file"
            continue
        if _TWICE.search(bare):
            continue
        ours = bare
        if head := _SEG_LAYER.match(bare):
            above = max(heads) - int(head[1])
            ours = f"decoder.head.{head[2]}" if above == 0 else f"auxiliary_heads.{above - 1}.{head[2]}"
        made.state[ours] = tensor.permute(0, 1, 4, 3, 2).contiguous() if tensor.ndim == 5 else tensor
        made.origins[ours] = name
    return made


def read(path: Path, file: Any, found: Found, names: Renamed, merging: MonaiMerging | None) -> Contents:
    """A checkpoint of nnU-Net or nnssl, or a state dict of its network.

    Raises:
        Dae3dError: if its architecture is not a residual encoder U-Net in 3D, or cannot be determined.
    """
    if merging is not None:
        raise Dae3dError(f"monai_merging: {path} is not of MONAI; leave this setting out")
    stem = names.state[_STEM]
    if stem.ndim != 5:
        raise Dae3dError(f"{path}: weights of a network for 2D images; dae3d needs a 3D network")
    head = names.state.get("decoder.head.weight")
    plan = file.get(PLAN) if isinstance(file, Mapping) else None
    kwargs = _kwargs(path, file)
    architecture = _from_kwargs(path, kwargs) if kwargs else _from_shapes(path, names.state)
    architecture = replace(
        architecture,
        in_channels=stem.shape[1],
        out_channels=stem.shape[1] if head is None else head.shape[0],
        deep_supervision=any(name.startswith("auxiliary_heads.") for name in names.state),
        restore_intensity=False,
    )
    decodes = any(name.startswith("decoder.") for name in names.state)
    segments = decodes and head is not None and plan is None
    task: Any = "segmentation" if segments else "pretrain" if decodes else "encoder"
    return Contents(path, task, architecture, {"task": task}, names.state, names.origins, names.skipped)


def _kwargs(path: Path, file: Any) -> Mapping[str, Any] | None:
    """Keywords of the network in the plan of nnssl, or in the plans that nnU-Net's checkpoints hold."""
    if not isinstance(file, Mapping):
        return None
    try:
        if PLAN in file:
            plans = file[PLAN]["architecture_plans"]
            name, kwargs = plans["arch_class_name"], plans["arch_kwargs"]
            if name == "ResEncL" and not kwargs:
                return NNSSL_RESENC_L
        elif "init_args" in file:
            plans = file["init_args"]["plans"]["configurations"]
            plans = inherited(plans, file["init_args"]["configuration"])["architecture"]
            name, kwargs = plans["network_class_name"], plans["arch_kwargs"]
        else:
            return None
    except (KeyError, TypeError) as error:
        raise Dae3dError(f"{path}: its plan is incomplete: {error} is missing") from None
    if name.rpartition(".")[2] != "ResidualEncoderUNet":
        raise Dae3dError(f"{path}: its network is {name}; dae3d has only ResidualEncoderUNet of nnU-Net's")
    return dict(kwargs)


def inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with the entries of the one it inherits from."""
    own = configurations[name]
    parent = own.get("inherits_from")
    return {**(inherited(configurations, parent) if parent else {}), **own}


# nnssl's "ResEncL" without keywords.
NNSSL_RESENC_L: dict[str, Any] = {
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
}


def architecture_of_kwargs(kwargs: Mapping[str, Any], axes: Sequence[int] = REVERSED) -> ResEncArchitecture:
    """The architecture of nnU-Net's keywords.

    Args:
        kwargs: of `ResidualEncoderUNet`.
        axes: the axis of ours that each of nnU-Net's axes is.

    Raises:
        KeyError: if one is missing.
        ValueError: if the lists do not fit together, or there are layers of other kinds than ours.
    """
    stages = len(kwargs["strides"])
    if "Conv3d" not in str(kwargs.get("conv_op", "Conv3d")):
        raise ValueError(f"conv_op is {kwargs['conv_op']}, not a 3D convolution")
    if "InstanceNorm3d" not in str(kwargs.get("norm_op", "InstanceNorm3d")):
        raise ValueError(f"norm_op is {kwargs['norm_op']}, not InstanceNorm3d")
    if kwargs.get("dropout_op") is not None:
        raise ValueError("it has dropout")

    def each(value: Any, count: int) -> tuple[int, ...]:
        return (value,) * count if isinstance(value, int) else tuple(value)

    def triple(value: Any) -> Triple:
        theirs = (value,) * 3 if isinstance(value, int) else value
        ours = dict(zip(axes, theirs, strict=True))
        return ours[0], ours[1], ours[2]

    kernels = kwargs["kernel_sizes"]
    kernels = [kernels] * stages if isinstance(kernels, int) else kernels
    return ResEncArchitecture(
        stage_channels=each(kwargs["features_per_stage"], stages),
        stage_strides=tuple(map(triple, kwargs["strides"])),
        stage_kernels=tuple(map(triple, kernels)),
        stage_blocks=each(kwargs["n_blocks_per_stage"], stages),
        decoder_convolutions=each(kwargs["n_conv_per_stage_decoder"], stages - 1),
    )


def kwargs_of(architecture: ResEncArchitecture) -> dict[str, Any]:
    """nnU-Net's keywords for an architecture, in plain JSON, with classes as dotted names."""
    a = architecture
    return {
        "n_stages": len(a.stage_channels),
        "features_per_stage": list(a.stage_channels),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(sides[::-1]) for sides in a.stage_kernels],
        "strides": [list(sides[::-1]) for sides in a.stage_strides],
        "n_blocks_per_stage": list(a.stage_blocks),
        "n_conv_per_stage_decoder": list(a.decoder_convolutions),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _from_kwargs(path: Path, kwargs: Mapping[str, Any]) -> ResEncArchitecture:
    try:
        return architecture_of_kwargs(kwargs)
    except KeyError as error:
        raise Dae3dError(f"{path}: its plan is incomplete: {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise Dae3dError(f"{path}: its network is not one that dae3d has: {error}") from None


def _from_shapes(path: Path, state: Mapping[str, Tensor]) -> ResEncArchitecture:
    """Sizes from the shapes of the tensors; strides are those of the decoder's transposed convolutions."""
    first = re.compile(r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.conv\.weight$")
    convolutions = {
        (int(m[1]), int(m[2])): tensor for name, tensor in state.items() if (m := first.match(name))
    }
    stages = 1 + max((stage for stage, _ in convolutions), default=-1)
    ups = [state.get(f"decoder.transpconvs.{i}.weight") for i in range(stages - 1)]
    if any(up is None for up in ups):
        raise Dae3dError(
            f"{path}: an encoder of nnU-Net without a plan, so its strides are not known; dae3d needs the "
            f"whole checkpoint, with {PLAN} (nnssl) or init_args (nnU-Net)"
        )
    strides = [tuple(up.shape[2:]) for up in reversed(ups) if up is not None]
    kernels = [tuple(convolutions[stage, 0].shape[2:]) for stage in range(stages)]
    decoder = re.compile(r"^decoder\.stages\.(\d+)\.convs\.(\d+)\.conv\.weight$")
    counts = [0] * (stages - 1)
    for name in state:
        if match := decoder.match(name):
            counts[int(match[1])] += 1
    try:
        return ResEncArchitecture(
            stage_channels=tuple(convolutions[stage, 0].shape[0] for stage in range(stages)),
            stage_strides=((1, 1, 1), *strides),  # type: ignore[arg-type]
            stage_kernels=tuple(kernels),  # type: ignore[arg-type]
            stage_blocks=tuple(sum(s == stage for s, _ in convolutions) for stage in range(stages)),
            decoder_convolutions=tuple(counts),
        )
    except (KeyError, ValueError) as error:
        raise Dae3dError(f"{path}: the residual encoder in it is incomplete: {error}") from None


READERS = (
    Reader(
        f"{_STEM} (nnU-Net's and nnssl's ResidualEncoderUNet)",
        lambda name: match["prefix"] if (match := _FIRST.match(name)) and "decoder." not in name else None,
        renamed,
        read,
    ),
)
