"""A MONAI bundle of a fine-tuned network: weights, and a configuration that runs inference in MONAI."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dae3d.errors import Dae3dError
from dae3d.exporting.bundle_network import network_definition, same_in_monai, write_model
from dae3d.exporting.card import UNKNOWN_LICENSE, card, validation_figures
from dae3d.exporting.exported import Exported
from dae3d.exporting.hub import published_network, refuse_own_source
from dae3d.files import refuse_other_folder, whole_folder
from dae3d.models.network import Segmenter
from dae3d.scans.padding import HOUNSFIELD
from dae3d.store.intensity import IntensityWindow, PercentileRange, Scaling, ZScore, scaling
from dae3d.store.recipe import CaseRecipe
from dae3d.version import __version__

LICENSE, METADATA, INFERENCE = "LICENSE", "configs/metadata.json", "configs/inference.json"
MODEL, README = "models/model.pt", "docs/README.md"
FILES = (LICENSE, METADATA, INFERENCE, MODEL, README)
_KIND = "monai-bundle"
_ROOT = "PATH_OF_THIS_FOLDER"


def write_bundle(network: Any, out: Path, license_name: str | None, name_data_sets: bool = True) -> Exported:
    """A bundle, as a whole.

    Args:
        network: as returned by `load`.
        out: folder.
        license_name: for `LICENSE`.
        name_data_sets: as for `shareable`.

    Raises:
        Dae3dError: if the network does not segment, MONAI has no equivalent of its preprocessing, or `out`
            has other files.
    """
    refuse_other_folder(out, _KIND, "MONAI bundle", FILES.__contains__)
    refuse_own_source(out, network.weights)
    recipe = _recipe(network)
    preprocessing = _preprocessing(network, recipe)
    published = published_network(network, name_data_sets)
    inference = _inference(published, recipe, preprocessing)
    with whole_folder(out, _KIND) as folder:
        for name in FILES:
            (folder / name).parent.mkdir(exist_ok=True)
        exported = write_model(published, folder / MODEL)
        for name, content in ((METADATA, _metadata(published, recipe)), (INFERENCE, inference)):
            (folder / name).write_text(json.dumps(content, indent=4) + "\n")
        (folder / LICENSE).write_text(_license(license_name))
        figures = validation_figures(network.weights, network.info)
        text = card(published, _ROOT, license_name, figures)
        (folder / README).write_text(text + "\n" + _how_to_run(recipe))
    return Exported(exported.state, exported.left_out, list(_notes(published, license_name)))


def _recipe(network: Any) -> CaseRecipe:
    if not isinstance(network, Segmenter) or "recipe" not in network.info:
        raise Dae3dError(
            f"format: monai-bundle is for weights of `dae3d finetune`, which segment, and {network.weights} "
            f"is for the task {network.info.get('task', 'pretrain')}; hub is for all weights"
        )
    return CaseRecipe.model_validate(network.info["recipe"])


def _preprocessing(network: Any, recipe: CaseRecipe) -> list[dict[str, Any]]:
    """MONAI's transforms that do what the recipe says, for the key `image`.

    Raises:
        Dae3dError: if there are none.
    """
    if recipe.crop_foreground:
        raise Dae3dError(
            f"format: {network.weights} crops scans to the foreground (crop_foreground) as no transform of "
            "MONAI does, so a MONAI bundle would give other labels; hub is for all weights"
        )
    rules = {scaling(modality, recipe.intensity) for modality in recipe.modalities}
    transform = _intensity(next(iter(rules))) if len(rules) == 1 else None
    if transform is None:
        shown = ", ".join(f"{m}: {scaling(m, recipe.intensity)}" for m in recipe.modalities)
        raise Dae3dError(
            f"format: MONAI has no equivalent of the intensity scaling of {network.weights} ({shown}); a "
            "bundle needs window, zscore or percentiles, the same for all channels"
        )
    keys = {"keys": "image"}
    return [
        {"_target_": "LoadImaged", **keys, "image_only": True, "ensure_channel_first": True},
        {"_target_": "Orientationd", **keys, "axcodes": "RAS"},
        *(
            [{"_target_": "Spacingd", **keys, "pixdim": list(recipe.spacing), "mode": "bilinear"}]
            if recipe.spacing
            else []
        ),
        {**transform, **keys},
        {"_target_": "EnsureTyped", **keys, "dtype": "$torch.float32"},
    ]


def _intensity(rule: Scaling) -> dict[str, Any] | None:
    bounds = {"b_min": 0.0, "b_max": 1.0, "clip": True}
    if isinstance(rule, IntensityWindow):
        return {"_target_": "ScaleIntensityRanged", "a_min": rule.low, "a_max": rule.high, **bounds}
    if isinstance(rule, PercentileRange):
        percentiles = {"lower": rule.low, "upper": rule.high, "channel_wise": True}
        return {"_target_": "ScaleIntensityRangePercentilesd", **percentiles, **bounds}
    if isinstance(rule, ZScore) and not rule.over_foreground:
        return {"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True}
    return None


def _postprocessing(recipe: CaseRecipe) -> list[dict[str, Any]]:
    values = list(recipe.label_values)
    classes = list(range(len(values)))
    keys = {"keys": "pred"}
    return [
        {"_target_": "Activationsd", **keys, "softmax": True},
        {
            "_target_": "Invertd",
            **keys,
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", **keys, "argmax": True},
        *(
            [{"_target_": "MapLabelValued", **keys, "orig_labels": classes, "target_labels": values}]
            if values != classes
            else []
        ),
        {
            "_target_": "SaveImaged",
            **keys,
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_dtype": "$numpy.uint8" if max(values) < 256 else "$numpy.int16",
            "separate_folder": False,
            "resample": False,
        },
    ]


def _inference(network: Any, recipe: CaseRecipe, preprocessing: list[dict[str, Any]]) -> dict[str, Any]:
    in_monai = same_in_monai(network.architecture, recipe.roi)
    load = (
        "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt', map_location=@device, "
        "weights_only=True))"
    )
    return {
        "imports": ["$import glob", "$import os", "$import numpy", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network_definition(network.architecture, in_monai),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing},
        **_data(len(recipe.modalities)),
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(recipe.roi),
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(recipe)},
        # For tools that expect it; it needs the package ignite, which `run` does without.
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "val_data_loader": "@dataloader",
            **{name: f"@{name}" for name in ("device", "network", "inferer", "postprocessing")},
        },
        "predict": "$torch.no_grad()(lambda batch: @inferer(batch['image'].to(@device), @network).cpu())",
        "initialize": [*([load] if in_monai else []), "$@network.eval()"],
        "run": [
            "$[@postprocessing(case) for batch in @dataloader "
            "for case in monai.data.decollate_batch({**batch, 'pred': @predict(batch)})]"
        ],
    }


def _data(channels: int) -> dict[str, Any]:
    """The scans in a folder; several channels are files numbered as in nnU-Net."""
    ending = "_0000.nii.gz" if channels > 1 else ".nii.gz"
    files = f"[f[:-12] + f'_{{c:04}}.nii.gz' for c in range({channels})]" if channels > 1 else "f"
    loader = {"dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0}
    return {
        "images": f"$sorted(glob.glob(os.path.join(@dataset_dir, '*{ending}')))",
        "datalist": f"$[{{'image': {files}}} for f in @images]",
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", **loader},
    }


def _metadata(network: Any, recipe: CaseRecipe) -> dict[str, Any]:
    packages = {name: version(name) for name in ("nibabel", "einops")}
    if not same_in_monai(network.architecture, recipe.roi):
        packages["dae3d"] = __version__
    channels = dict(enumerate(recipe.modalities))
    classes = dict(enumerate(recipe.class_names))
    patch = {"dtype": "float32", "spatial_shape": list(recipe.roi), "is_patch_data": True}
    clips = not isinstance(scaling(recipe.modalities[0], recipe.intensity), ZScore)
    image = {
        "type": "image",
        "format": "hounsfield" if recipe.modalities[0] in HOUNSFIELD else "magnitude",
        "modality": "+".join(recipe.modalities),
        "num_channels": len(channels),
        **patch,
        "value_range": [0, 1] if clips else [-100, 100],
        "channel_def": {str(number): name for number, name in channels.items()},
    }
    pred = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(classes),
        **patch,
        "value_range": [0, 1],
        "channel_def": {str(number): name for number, name in classes.items()},
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"written by dae3d {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": packages,
        "name": f"{network.architecture.backbone} fine-tuned by dae3d",
        "task": f"segmentation of {', '.join(recipe.class_names[1:])} in {'+'.join(recipe.modalities)}",
        "description": "A network pre-trained or initialised by dae3d and fine-tuned for segmentation.",
        "authors": "not named",
        "copyright": "not named",
        "references": ["Valanarasu et al., Disruptive Autoencoders, arXiv 2307.16896"],
        "intended_use": "Research only, not for diagnosis.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _license(name: str | None) -> str:
    if name is None:
        return (
            f"license: {UNKNOWN_LICENSE}\n\nNo licence was named for these weights. Without one, nobody may "
            "assume that they can be used.\n"
        )
    return f"license: {name}\n\nThe weights and the configuration in this folder are under {name}.\n"


def _how_to_run(recipe: CaseRecipe) -> str:
    channels = ", ".join(f"_{number:04} is {name}" for number, name in enumerate(recipe.modalities))
    names = f"`<case>_0000.nii.gz` and so on ({channels})" if len(recipe.modalities) > 1 else "`*.nii.gz`"
    return (
        "## In MONAI\n\n"
        "```sh\npython -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS "
        "--output_dir OUT\n```\n\n"
        f"Run it in this folder. SCANS has {names}; OUT gets a label map `<name>_seg.nii.gz` for each, in "
        "the scan's own grid. `configs/metadata.json` names the packages.\n"
    )


def _notes(network: Any, license_name: str | None) -> Iterator[str]:
    names = dict.fromkeys(row["dataset"] for row in network.info.get("data", ()))
    if names:
        yield f"Data sets named in the folder: {', '.join(names)}."
    if license_name is None:
        yield "No licence is named: give --license, or write it into LICENSE."
    recipe = CaseRecipe.model_validate(network.info["recipe"])
    if same_in_monai(network.architecture, recipe.roi):
        yield "The network is MONAI's SwinUNETR; users need MONAI only."
    else:
        yield "MONAI has no such network, so users need dae3d too: configs/inference.json calls dae3d.load."
    yield "Authors and copyright are not named: write them into configs/metadata.json."
