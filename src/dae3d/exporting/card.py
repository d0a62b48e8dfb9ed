"""The model card of weights: what they are, what they were trained on, how to load them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dae3d.metrics import read_metrics
from dae3d.models.network import WeightsInfo
from dae3d.models.provenance import trained_on
from dae3d.version import __version__
from dae3d.words import quantity

PAPER = "https://arxiv.org/abs/2307.16896"
CITATION = """\
@article{valanarasu2023disruptive,
  title   = {Disruptive Autoencoders: Leveraging Low-level features for 3D Medical Image Pre-training},
  author  = {Valanarasu, Jeya Maria Jose and Tang, Yucheng and Yang, Dong and Xu, Ziyue and Zhao, Can and
             Li, Wenqi and Patel, Vishal M and Landman, Bennett and Xu, Daguang and He, Yufan and
             Nath, Vishwesh},
  journal = {arXiv preprint arXiv:2307.16896},
  year    = {2023}
}
"""
UNKNOWN_LICENSE = "unknown"

_TASKS = {
    "pretrain": "pre-trained by disruption and repair",
    "segmentation": "fine-tuned for segmentation",
    "encoder": "encoder only",
}
_PIPELINES = {"segmentation": "image-segmentation"}


def front_matter(network: Any, license_name: str | None) -> str:
    """The YAML block at the beginning of a model card."""
    modalities = modalities_of(network.info)
    task = network.info.get("task", "pretrain")
    tags = ["medical-imaging", "3d", network.architecture.backbone, *modalities]
    if task != "segmentation":
        tags.insert(2, "self-supervised-learning")
    fields = {
        "license": license_name or UNKNOWN_LICENSE,
        "library_name": "dae3d",
        "tags": tags,
        "pipeline_tag": _PIPELINES.get(task, "image-feature-extraction"),
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def card(network: Any, source: str, license_name: str | None, figures: Sequence[tuple[str, float]]) -> str:
    """The text below the front matter, in Markdown.

    Args:
        network: with the metadata that is published, as returned by `shareable`.
        source: where others will find the folder, for the examples.
        license_name: named by the user.
        figures: of the validation, by the names in `metrics.csv`.
    """
    parts = [
        *_introduction(network, license_name),
        *_loading(network, source),
        *_data(network.info),
        *_figures(network.info, figures),
        *_training(network),
        "## Citation\n",
        f"The method is *Disruptive Autoencoders* ([arXiv 2307.16896]({PAPER})):\n",
        f"```bibtex\n{CITATION}```\n",
    ]
    return "\n".join(parts)


def modalities_of(info: WeightsInfo) -> list[str]:
    """The modality labels of the training data."""
    return list(dict.fromkeys(info.get("modalities") or info.get("recipe", {}).get("modalities", ())))


def validation_figures(weights: Path, info: WeightsInfo) -> list[tuple[str, float]]:
    """The last validation of a run up to the step of its weights; empty if the file is not in a run folder.

    Args:
        weights: a file in the folder `weights` of a run.
        info: of the file.

    Returns:
        Names as in `metrics.csv` and values; those of baselines, which are measured once, come last.
    """
    if weights.parent.name != "weights":
        return []
    rows = [row for row in read_metrics(weights.parent.parent / "metrics.csv")[0] if row[0] <= _step(info)]
    validated = [step for step, name, _ in rows if name.startswith("val/")]
    if not validated:
        return []
    found = {name: value for step, name, value in rows if step == validated[-1] and name.startswith("val/")}
    return [*found.items(), *{n: value for _, n, value in rows if n.startswith("baseline/")}.items()]


def _step(info: WeightsInfo) -> float:
    return info.get("step", float("inf"))


def _introduction(network: Any, license_name: str | None) -> Iterator[str]:
    info = network.info
    modalities = modalities_of(info)
    of = f" ({', '.join(modalities)})" if modalities else ""
    parameters = sum(tensor.numel() for tensor in network.parameters())
    yield f"# {network.architecture.backbone}, {_TASKS[info.get('task', 'pretrain')]}\n"
    yield (
        f"A 3D network of {quantity(parameters)} parameters for medical images{of}, written by dae3d "
        f"{__version__}. It is for research, not for diagnosis.\n"
    )
    if license_name is None:
        yield "license: unknown. No licence was named, so nobody may assume that these weights can be used.\n"


def _loading(network: Any, source: str) -> Iterator[str]:
    info = network.info
    yield "## How to load\n"
    yield f'```python\nimport dae3d\n\nnetwork = dae3d.load("{source}")  # a torch.nn.Module\n```\n'
    if info.get("task") == "segmentation":
        yield f"```sh\ndae3d predict scan.nii.gz --weights {source} --out segmented\n```\n"
        classes = [f"{value} {name}" for value, name in info.get("recipe", {}).get("labels", {}).items()]
        if classes:
            yield f"Label values: {', '.join(classes)}.\n"
    else:
        yield f"```sh\ndae3d finetune --data task.json --init {source} --out run\n```\n"
    yield (
        "`hf://` addresses need `pip install 'dae3d[hub]'`. Scans are oriented to RAS axes and scaled as in "
        "the training; the file records how.\n"
    )


def _data(info: WeightsInfo) -> Iterator[str]:
    yield "## Training data\n"
    rows = info.get("data", [])
    if not rows:
        yield "Not recorded.\n"
        return
    yield "| modality | data set | training scans | validation scans |\n|---|---|---:|---:|"
    for row in rows:
        cells = [row.get(name, "") for name in ("modality", "dataset", "train", "val")]
        yield f"| {' | '.join(str(cell).replace('|', ' ') for cell in cells)} |"
    stages = trained_on(info)
    if len(stages) > 1:
        earlier = ", ".join(stage.task for stage in stages[:-1])
        yield f"\nThe table is of the last training; before it came: {earlier}."
    if info.get("spacing"):
        sides = " x ".join(f"{side:.3g}" for side in info["spacing"])
        yield f"\nMedian voxel size: {sides} mm (right, anterior, superior)."
    if any(stage.training for stage in stages):
        yield (
            "\nThe file has fingerprints of the content of these scans, by which someone who has a scan can "
            "check whether it was used. It has no names of scans or patients."
        )
    yield ""


def _figures(info: WeightsInfo, figures: Sequence[tuple[str, float]]) -> Iterator[str]:
    if not figures:
        return
    yield "## Validation\n"
    yield "On the validation scans above, by which the weights may have been chosen.\n"
    yield "| figure | value |\n|---|---:|"
    for name, value in figures:
        yield f"| {name.replace('|', ' ')} | {value:.4g} |"
    yield ""


def _training(network: Any) -> Iterator[str]:
    info = network.info
    yield "## Training\n"
    if "step" in info:
        yield f"{info['step']} steps.\n"
    settings = {name: value for name, value in info.get("settings", {}).items() if value is not None}
    for title, fields in (
        ("Settings", settings),
        ("Architecture", network.architecture.header()),
        ("Preparation of the scans", info.get("recipe") or info.get("preparation") or {}),
        ("Versions", info.get("versions", {})),
    ):
        if fields:
            plain = json.loads(json.dumps(fields))
            text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100)
            yield f"<details><summary>{title}</summary>\n\n```yaml\n{text}```\n\n</details>\n"
