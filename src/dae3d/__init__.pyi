"""Self-supervised pre-training for 3D medical images by disruption and repair."""

# Written by tools/write_stub.py.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from dae3d.exporting.embeddings import Embeddings
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.probing.metrics import Check
from dae3d.scans.manifest import Manifest
from dae3d.store.store import Store

COMMANDS: dict[str, str]
__version__: str

@overload
def load(
    weights: str | Path,
    task: Literal["pretrain"],
    classes: int | None = None,
    transfer: Literal["both", "encoder", "decoder"] = "both",
    axes: Literal["straight", "reference"] | None = None,
    channels: int | None = None,
    show: bool = True,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
) -> RepairNetwork: ...
@overload
def load(
    weights: str | Path,
    task: Literal["segmentation"],
    classes: int | None = None,
    transfer: Literal["both", "encoder", "decoder"] = "both",
    axes: Literal["straight", "reference"] | None = None,
    channels: int | None = None,
    show: bool = True,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
) -> Segmenter: ...
@overload
def load(
    weights: str | Path,
    task: Literal["encoder"],
    classes: int | None = None,
    transfer: Literal["both", "encoder", "decoder"] = "both",
    axes: Literal["straight", "reference"] | None = None,
    channels: int | None = None,
    show: bool = True,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
) -> FeatureEncoder: ...
@overload
def load(
    weights: str | Path,
    task: None = None,
    classes: int | None = None,
    transfer: Literal["both", "encoder", "decoder"] = "both",
    axes: Literal["straight", "reference"] | None = None,
    channels: int | None = None,
    show: bool = True,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
) -> nn.Module: ...
def index(
    *,
    folders: Sequence[str | Path],
    out: str | Path = ...,
    layout: Literal[
        "hnscc",
        "luna16",
        "ct-colonography",
        "covid19",
        "lidc-idri",
        "brats21",
        "btcv",
        "feta",
        "decathlon",
        "nnunet",
        "bids",
        "openmind",
    ]
    | None = None,
    root: Mapping[str, str | Path] = ...,
    modality: str | None = None,
    force_modality: bool = False,
    rule: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    dataset: str | None = None,
    subject: str | None = None,
    subjects: str | Path | None = None,
    volume: Literal["none", "first", "middle", "all"] | int = "none",
    channels: Sequence[str] = ...,
    fold: int = 0,
    val_fraction: float = 0.05,
    seed: int = 0,
    min_slices: int = 8,
    salt: str | Path | None = None,
    check: bool = False,
    workers: int = 8,
) -> Manifest:
    """Find scans in folders and lists, and describe them in a manifest."""

def prepare(
    *,
    manifest: str | Path,
    out: str | Path,
    spacing: Sequence[float] | None = None,
    crop_foreground: bool = False,
    only: bool = False,
    again: bool = False,
    workers: int = ...,
    scheduler: str | None = None,
    shard: str | None = None,
    report: bool = True,
) -> Store:
    """Write the scans of a manifest into a store that training reads from."""

def store_check(
    *,
    store: str | Path,
    repair: bool = False,
    prune: bool = False,
    workers: int = ...,
) -> Store:
    """Verify all files of a store, and report what is damaged or missing."""

def plan(
    *,
    store: str | Path,
    out: str | Path,
    for_: str | Path | None = None,
    memory: str | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    backbone: str | None = None,
    size: Literal["small", "standard"] | None = None,
    hours: float | None = None,
    batch_size: int | None = None,
    intensity: Mapping[str, str] = ...,
    steps: int = 5,
) -> Path:
    """Plan a run: crops, network, batch and steps that fit the data and the device."""

def pretrain(
    *,
    config: str | Path | None = None,
    disruption: str = "varied",
    noise_variance: float = 0.1,
    downsample_factor: int = 4,
    downsample_mode: Literal["nearest", "trilinear", "area"] = "nearest",
    local_mask: Literal["channels", "blocks"] = "channels",
    channel_mask_ratio: float = 0.6,
    channel_mask_per_token: bool = False,
    block_size: int = 16,
    block_mask_ratio: float = 0.6,
    intensity_jitter: float = 0.2,
    reconstruction_loss: Literal["all", "masked"] = "all",
    masked_weight: float = 3.0,
    coarse_weight: float = 0.5,
    relative_loss: bool = True,
    loss_on_padding: bool = False,
    contrastive_weight: float = 0.1,
    contrastive_view: Literal["clean", "disrupted"] = "clean",
    contrastive_standardise: bool = True,
    contrastive_temperature: float = 0.5,
    dense_weight: float = 0.2,
    dense_temperature: float = 0.1,
    feature_weight: float = 0.5,
    backbone: str | None = None,
    embed_dim: int | None = None,
    depths: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    window: int | None = None,
    window_edges: Literal["exact", "reference"] | None = None,
    patch_embed: Literal["conv", "linear"] | None = None,
    patch_merging: Literal["straight", "reference"] | None = None,
    size: Literal["small", "standard"] | None = None,
    stage_channels: Sequence[int] | None = None,
    stage_blocks: Sequence[int] | None = None,
    stage_strides: Sequence[Sequence[int]] | None = None,
    stage_kernels: Sequence[Sequence[int]] | None = None,
    data: str | Path = ...,
    out: str | Path = ...,
    resume: bool = False,
    max_steps: int | str = 30000,
    seed: int = 0,
    init: str | Path | None = None,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
    roi: int | Sequence[int] = ...,
    batch_size: int | Literal["auto"] = 4,
    workers: int | None = None,
    checkpoint_activations: bool = False,
    lr: float = 0.0001,
    min_lr: float = 1e-05,
    warmup_lr: float = 1e-06,
    warmup_steps: int | str = 300,
    cosine_from: Literal["start", "warmup"] = "warmup",
    weight_decay: float = 0.05,
    clip_grad: float | None = 1.0,
    accumulate: int = 1,
    ema_decay: float | None = None,
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    threads: int | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    val_every: int | str = 1000,
    save_every: int | str = 1000,
    keep: int = 2,
    log_every: int = 10,
    transfer: Literal["both", "encoder"] = "both",
    restore_intensity: bool = True,
    normalise_skips: bool = True,
    repair_from: Literal["full", "half", "pyramid"] = "pyramid",
    skip_drop: float = 0.0,
    freeze: Literal["none", "encoder", "decoder"] = "none",
    crop_region: Literal["volume", "foreground"] = "foreground",
    modality_weights: Mapping[str, float] | None = None,
    shuffle_modalities: bool = True,
    datasets: Sequence[str] | None = None,
    leave_out: str | Path | None = None,
    intensity: Mapping[str, str] = ...,
    clip_intensity: float | None = 5.0,
    val_crops: int = 4,
    probe_every: int | str = 0,
    probe_task: str | Path | None = None,
) -> Path:
    """Pre-train a network on a store by disruption and repair."""

def check(
    *,
    run: str | Path,
    data: str | Path | None = None,
    store: str | Path | None = None,
    weights: Literal["best", "last"] = "best",
    cases: str | Path | None = None,
    modality: Sequence[str] | None = None,
    fold: int | None = None,
    train_cases: int = 4,
    test_cases: int = 30,
    seed: int = 0,
    prepare_workers: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Check:
    """Measure what each level of the encoder has learned in pre-training."""

def reconstruct(
    *,
    scans: Sequence[str | Path],
    weights: str | Path,
    out: str | Path,
    modality: str | None = None,
    rule: Sequence[str] = ...,
    volume: int | None = None,
    disruption: str | None = None,
    roi: int | Sequence[int] | None = None,
    overlap: float = 0.5,
    axes: Literal["straight", "reference"] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Disrupt whole scans, repair them, and measure how well."""

def finetune(
    *,
    config: str | Path | None = None,
    backbone: str | None = None,
    embed_dim: int | None = None,
    depths: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    window: int | None = None,
    window_edges: Literal["exact", "reference"] | None = None,
    patch_embed: Literal["conv", "linear"] | None = None,
    patch_merging: Literal["straight", "reference"] | None = None,
    size: Literal["small", "standard"] | None = None,
    stage_channels: Sequence[int] | None = None,
    stage_blocks: Sequence[int] | None = None,
    stage_strides: Sequence[Sequence[int]] | None = None,
    stage_kernels: Sequence[Sequence[int]] | None = None,
    data: str | Path = ...,
    out: str | Path = ...,
    resume: bool = False,
    max_steps: int | str = 10000,
    seed: int = 0,
    init: str | Path | None = None,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
    roi: int | Sequence[int] = ...,
    batch_size: int | Literal["auto"] = 4,
    workers: int | None = None,
    checkpoint_activations: bool = False,
    lr: float = 0.0008,
    min_lr: float = 0.0,
    warmup_lr: float = 0.0,
    warmup_steps: int | str = 300,
    cosine_from: Literal["start", "warmup"] = "warmup",
    weight_decay: float = 1e-05,
    clip_grad: float | None = 1.0,
    accumulate: int = 1,
    ema_decay: float | None = None,
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    threads: int | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    val_every: int | str = 1000,
    save_every: int | str = 1000,
    keep: int = 2,
    log_every: int = 10,
    transfer: Literal["both", "encoder", "decoder", "none"] | None = None,
    axes: Literal["straight", "reference"] | None = None,
    freeze: Literal["none", "encoder"] = "none",
    freeze_steps: int | str = 0,
    label_fraction: float | None = None,
    train_cases: int | None = None,
    fold: int | None = None,
    store: str | Path | None = None,
    modality: Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
    crop_foreground: bool = False,
    intensity: Mapping[str, str] = ...,
    prepare_workers: int | None = None,
    deep_supervision: bool = False,
    crops_per_case: int = 4,
    positive_share: float = 0.5,
    crop_balance: Literal["voxels", "classes"] = "voxels",
    flip_prob: float = 0.2,
    flip_axes: Sequence[Literal["lr", "ap", "si"]] | None = None,
    rotate_prob: float = 0.2,
    scale_intensity: float = 0.1,
    scale_prob: float = 0.1,
    shift_intensity: float = 0.1,
    shift_prob: float = 0.1,
    layer_decay: float = 1.0,
    val_cases: int | None = None,
    val_overlap: float = 0.5,
) -> Path:
    """Fine-tune a network to segment, from a list of labelled cases."""

def study(
    *,
    study: str | Path,
    out: str | Path,
    jobs: int = 1,
    threads: int | None = None,
    shard: str | None = None,
    dry_run: bool = False,
) -> dict[str, float]:
    """Compare initial weights by fine-tuning with few labels, in pairs."""

def pseudo_label(
    *,
    scans: Sequence[str | Path | Sequence[str | Path]] = ...,
    weights: Sequence[str | Path],
    task: str | Path,
    fold: int | None = None,
    out: str | Path,
    data: str | Path | None = None,
    ignore_below: float = 0.6,
    min_probability: float = 0.7,
    min_agreement: float = 0.8,
    volume_factor: float = 1.5,
    weight: float | None = None,
    overlap: float = 0.5,
    mirror: bool = False,
    mirror_axes: Sequence[Literal["lr", "ap", "si"]] | None = None,
    window_batch: int = 1,
    device: str = "auto",
    threads: int | None = None,
) -> Path:
    """Label scans with fine-tuned networks, to train on what they are sure of."""

def predict(
    *,
    scans: Sequence[str | Path | Sequence[str | Path]] = ...,
    weights: Sequence[str | Path],
    out: str | Path,
    data: str | Path | None = None,
    split: Literal["training", "validation", "test"] | None = None,
    fold: int | None = None,
    modality: Sequence[str] | None = None,
    volume: int | None = None,
    overlap: float = 0.5,
    mirror: bool = False,
    mirror_axes: Sequence[Literal["lr", "ap", "si"]] | None = None,
    resample: Literal["probabilities", "labels"] = "probabilities",
    probabilities: bool = False,
    window_batch: int = 1,
    device: str = "auto",
    threads: int | None = None,
) -> list[Path]:
    """Segment scans; results are in the grid of each scan."""

def evaluate(
    *,
    data: str | Path,
    predictions: str | Path | None = None,
    weights: Sequence[str | Path] = ...,
    split: Literal["training", "validation", "test"] = "validation",
    fold: int | None = None,
    out: str | Path | None = None,
    modality: Sequence[str] | None = None,
    tolerance: float = 1.0,
    regions: Mapping[str, str] = ...,
    seed: int = 0,
    workers: int = ...,
) -> dict[str, Any]:
    """Compare segmentations with references: Dice, surface distances, volumes."""

def embed(
    *,
    scans: Sequence[str | Path | Sequence[str | Path]],
    weights: str | Path,
    out: str | Path,
    format: Literal["npz", "parquet", "npy"] | None = None,
    modality: str | None = None,
    rule: Sequence[str] = ...,
    volume: int | None = None,
    roi: int | Sequence[int] | None = None,
    overlap: float = 0.0,
    axes: Literal["straight", "reference"] | None = None,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
    window_batch: int = 1,
    device: str = "auto",
    threads: int | None = None,
) -> Embeddings:
    """Write the encoder's pooled features of whole scans."""

def export(
    *,
    weights: str | Path,
    format: Literal[
        "safetensors", "monai", "reference", "nnssl", "nnunet", "nnunet-trainer", "hub", "monai-bundle"
    ] = "safetensors",
    plans: str | Path | None = None,
    configuration: str = "3d_fullres",
    channels: int | None = None,
    license: str | None = None,
    name_data_sets: bool = True,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
    out: str | Path,
) -> Path:
    """Write weights for another program, or as a folder to publish."""

def push(
    *,
    weights: str | Path,
    repository: str,
    license: str | None = None,
    private: bool = False,
    name_data_sets: bool = True,
    monai_merging: Literal["reference", "merging", "mergingv2"] | None = None,
) -> str:
    """Upload weights and a model card to the Hugging Face Hub."""

def report(
    *,
    run: str | Path,
    out: str | Path | None = None,
) -> Path:
    """Write a self-contained page about a training run."""

def bench(
    *,
    what: Literal["all", "model", "loader", "predict"] = "all",
    against: Literal["none", "monai", "library"] = "none",
    backbone: Literal["swin-unetr", "resenc"] = "swin-unetr",
    size: Literal["small", "standard"] = "standard",
    device: str = "auto",
    embed_dim: int = 48,
    heads: Sequence[int] = ...,
    window: int = 7,
    roi: int | Sequence[int] = ...,
    batch_size: int = 2,
    steps: int = 5,
    rounds: int = 1,
    crops: int = 100,
    scan: Sequence[int] = ...,
    overlap: float = 0.5,
    checkpoint_activations: bool = False,
    compiled: bool = False,
    out: str | Path = ...,
) -> Path:
    """Measure the speed of training, loading and prediction, also against MONAI."""

def demo(
    *,
    out: str | Path = ...,
    data: Sequence[str | Path] | None = None,
    modality: str | None = None,
    rule: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    max_steps: int = 80,
) -> Path:
    """Run all steps once, on included scans or yours, in a few minutes."""
