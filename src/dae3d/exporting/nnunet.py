"""Weights for nnU-Net and nnssl."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from dae3d.errors import Dae3dError
from dae3d.exporting.exported import Exported, learned
from dae3d.files import whole_file, write_text
from dae3d.models.loading import load_into
from dae3d.models.network import Segmenter
from dae3d.models.resenc.architecture import ResEncArchitecture
from dae3d.models.resenc.foreign import (
    ENTRY,
    NETWORK_CLASS,
    PLAN,
    REVERSED,
    architecture_of_kwargs,
    inherited,
    kwargs_of,
    to_nnunet,
)
from dae3d.models.weights import HEADER, read_weights, save_weights

TRAINER = "nnUNetTrainerDae3d"
_FIELDS = {
    "stage_strides": "strides",
    "stage_kernels": "kernel_sizes",
    "stage_channels": "features_per_stage",
    "stage_blocks": "n_blocks_per_stage",
}
_CITATION = {
    "type": "Pretraining Method",
    "name": "Disruptive Autoencoders",
    "apa_citations": [
        "Valanarasu, J. M. J., Tang, Y., Yang, D., Xu, Z., Zhao, C., Li, W., ... & Nath, V. (2023). "
        "Disruptive autoencoders: Leveraging low-level features for 3D medical image pre-training. "
        "arXiv:2307.16896."
    ],
}


def write_nnssl(network: Any, out: Path) -> Exported:
    """A checkpoint with nnssl's adaptation plan: tensors and plain values only.

    Raises:
        Dae3dError: if the network is not a residual encoder U-Net.
    """
    architecture = _resenc(network, "nnssl")
    renamed = to_nnunet(learned(network), architecture)
    contents = {
        ENTRY: renamed.state,
        PLAN: _adaptation_plan(network, architecture),
        "citations": [_CITATION],
        HEADER: {"architecture": _plain(architecture.header()), "info": _plain(network.info)},
    }
    with whole_file(out) as temporary:
        torch.save(contents, temporary)
    return Exported(renamed.state, renamed.skipped, _intensity_notes(network))


def write_for_plans(
    network: Any, out: Path, plans: Path, configuration: str, channels: int | None
) -> Exported:
    """A checkpoint for `nnUNetv2_train -pretrained_weights`, with the whole network of some plans.

    The encoder is that of the weights, and so is the decoder of segmentation weights. The rest is random, as
    in nnU-Net; it does not load heads.

    Raises:
        Dae3dError: if the plans cannot be read, or their network differs from that of the weights.
    """
    ours = _resenc(network, "nnunet")
    theirs, axes = _planned(plans, configuration)
    for field, name in _FIELDS.items():
        if getattr(theirs, field) != getattr(ours, field):
            raise Dae3dError(
                f"plans: {plans} has other {name} in {configuration} than {network.weights}: "
                f"{_shown(getattr(theirs, field))} instead of {_shown(getattr(ours, field))} (right, "
                "anterior, superior); pre-train with its values, see docs/nnunet.md"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        segmenter = Segmenter(replace(theirs, in_channels=channels or ours.in_channels))
    contents = read_weights(network.weights)
    half: Any = "both" if contents.task == "segmentation" else "encoder"
    report = load_into(segmenter, contents, half, show=False)
    renamed = to_nnunet(segmenter.state_dict(), theirs, axes)
    state = {name: tensor for name, tensor in renamed.state.items() if ".seg_layers." not in name}
    with whole_file(out) as temporary:
        torch.save(
            {ENTRY: state, HEADER: {"architecture": _plain(theirs.header()), "info": _plain(network.info)}},
            temporary,
        )
    notes = [
        f"From the weights: {len(report.taken) + len(report.adapted)} tensors, the {half} "
        f"{'halves' if half == 'both' else 'only'}; the others are random, as in nnU-Net.",
        f"nnUNetv2_train DATASET {configuration} FOLD -p {plans.stem} -pretrained_weights {out}",
    ]
    return Exported(state, report.skipped, notes + _intensity_notes(network))


def write_trainer(network: Any, out: Path) -> Exported:
    """A folder for `nnUNet_extTrainer`: a trainer of nnU-Net, and the weights that it begins with.

    Raises:
        Dae3dError: if there is a file of these names that dae3d has not written.
    """
    trainer, weights = out / f"{TRAINER}.py", out / "dae3d-weights.safetensors"
    source = resources.files("dae3d.nnunet").joinpath(trainer.name).read_text("utf-8")
    first = source.partition("\n")[0]
    if trainer.exists() and not trainer.read_text("utf-8").startswith(first):
        raise Dae3dError(f"out: {trainer} exists and was not written by dae3d; choose another folder")
    if out.exists() and not out.is_dir():
        raise Dae3dError(f"out: {out} is a file; name a folder")
    state = learned(network)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(weights, state, network.architecture, network.info)
    write_text(trainer, source)
    notes = [
        f"nnUNet_extTrainer={out} nnUNetv2_train DATASET 3d_fullres FOLD -tr {TRAINER}",
        "Prediction needs the same variable, and both need dae3d installed.",
    ]
    return Exported(state, {}, notes + _intensity_notes(network))


def _resenc(network: Any, name: str) -> ResEncArchitecture:
    architecture = network.architecture
    if not isinstance(architecture, ResEncArchitecture):
        raise Dae3dError(
            f"format: {name} is for backbone {ResEncArchitecture.backbone}, and {network.weights} has "
            f"{architecture.backbone}"
        )
    return architecture


def _planned(path: Path, configuration: str) -> tuple[ResEncArchitecture, Sequence[int]]:
    """The architecture of nnU-Net's plans, and the axis of ours that each of their axes is."""
    try:
        plans = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Dae3dError(f"plans: {path}: {error.strerror}") from None
    except ValueError as error:
        raise Dae3dError(f"plans: {path} is not JSON: {error}") from None
    try:
        configurations = plans["configurations"]
        if configuration not in configurations:
            known = ", ".join(configurations)
            raise Dae3dError(f"configuration: {path} has no {configuration!r}; it has {known}")
        network = inherited(configurations, configuration)["architecture"]
        # nnU-Net reads (superior, anterior, right), and then moves axes.
        axes = [REVERSED[axis] for axis in plans["transpose_forward"]]
        name, kwargs = network["network_class_name"], network["arch_kwargs"]
        if name.rpartition(".")[2] != "ResidualEncoderUNet":
            raise Dae3dError(
                f"plans: the network of {path} is {name}, not ResidualEncoderUNet; plan with a planner such "
                "as nnUNetPlannerResEncM"
            )
        return architecture_of_kwargs(kwargs, axes), axes
    except (KeyError, TypeError) as error:
        raise Dae3dError(f"plans: {path} is not a plans file of nnU-Net: {error} is missing") from None
    except ValueError as error:
        raise Dae3dError(f"plans: {path}: {error}") from None


def _adaptation_plan(network: Any, architecture: ResEncArchitecture) -> dict[str, Any]:
    """What nnU-Net and nnssl need to know of the pre-training."""
    settings = network.info.get("settings", {})
    spacing = [float(side) for side in network.info.get("spacing", (1.0, 1.0, 1.0))][::-1]
    roi = settings.get("roi", [8 * side for side in architecture.multiple])
    patch = [int(side) for side in ([roi] * 3 if isinstance(roi, int) else roi)][::-1]
    resampling = {"resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": {}}
    return {
        "architecture_plans": {
            "arch_class_name": NETWORK_CLASS,
            "arch_kwargs": kwargs_of(architecture),
            "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "pretrain_plan": {
            "dataset_name": "dae3d",
            "plans_name": "dae3d",
            "original_median_spacing_after_transp": spacing,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "experiment_planner_used": "dae3d",
            "configurations": {
                "onemmiso": {
                    "data_identifier": "dae3d",
                    "preprocessor_name": "DefaultPreprocessor",
                    "spacing_style": "median",
                    "spacing": spacing,
                    "patch_size": patch,
                    "normalization_schemes": ["ZScoreNormalization"] * architecture.in_channels,
                    "use_mask_for_norm": [False] * architecture.in_channels,
                    **resampling,
                }
            },
        },
        "pretrain_num_input_channels": architecture.in_channels,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }


def _intensity_notes(network: Any) -> list[str]:
    """What nnU-Net does to intensities, where pre-training did something else."""
    rules = network.info.get("settings", {}).get("intensity", {})
    others = [
        name for name in network.info.get("modalities", ()) if not rules.get(name, "").startswith("zscore")
    ]
    scaled = [name for name in others if name in rules or name.startswith(("ct", "pet"))]
    if not scaled:
        return []
    advice = " ".join(f"{name}=zscore" for name in scaled)
    return [
        f"Pre-trained on {', '.join(scaled)} scaled to a window; nnU-Net gives every image z-scores (CT over "
        f"the data set's foreground). Pre-training with --intensity {advice} is closer to that."
    ]


def _plain(value: Any) -> Any:
    """As JSON holds it: a file for `torch.load(weights_only=True)` has no tuples of our own types."""
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    return " ".join(",".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)
