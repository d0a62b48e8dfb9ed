"""The published commands mean the published recipes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dae3d import main_runner
from dae3d.main_runner import WITHOUT_MEANING, translate
from dae3d.models.loading import load
from dae3d.settings import resolve
from dae3d.training.pretrain_settings import PretrainSettings

pytestmark = pytest.mark.slow

# The sample commands of the published README, from --batch_size on; --data-path is ours.
COMMON = (
    "--data-path STORE --batch_size=2 --sw_batch_size=1 --mask_ratio=0.6 --epoch={epochs} "
    "--mask_patch_size=16 --img_size=96 --min_lr=1e-5 --warmpup_epoch=4 --loss_type=all_img --base_lr=1e-4 "
    "--warmup_lr=1e-6 --weight_decay=0.05 --cache_dataset --cache_rate=1 --model_type=swin_skip "
    '--save_freq=5 --print_freq=1 --log_dir="./logdir/swin_denoise_mm" --output="./output/swin_denoise_mm" '
    '--thread_loader --out_channels=1 --choice "{choice}" {strength} --mm_con 0.03 --temperature 0.5 '
    '--amp_opt_level="O0"'
)
PUBLISHED = {
    "reference-denoise": COMMON.format(epochs=300, choice="denoise", strength="--variance 0.1"),
    "reference-superres": COMMON.format(epochs=300, choice="superres", strength="--interpolate 4"),
    "reference-local-mask": COMMON.format(epochs=300, choice="LD", strength=""),
    "reference-all": COMMON.format(epochs=1000, choice="all", strength="--variance 0.1"),
}
MINIMAL = ["--data-path", "STORE", "--choice", "denoise", "--loss_type", "all_img"]


def meant(*words):
    """The settings that published flags mean."""
    fields, _ = translate(words)
    fields.pop("print_settings", None)
    return resolve(PretrainSettings, fields)


@pytest.mark.parametrize("config", PUBLISHED)
def test_a_published_command_means_the_shipped_config(config):
    ours = meant(*shlex.split(PUBLISHED[config])).model_dump()
    shipped = resolve(PretrainSettings, {"config": config, "data": "STORE", "out": "output"}).model_dump()
    different = {name: ours[name] for name in ours if ours[name] != shipped[name]}
    assert different == {
        "out": Path("output/swin_denoise_mm"),
        "log_every": 1,  # --print_freq
        "workers": 8,  # the published default of --num_workers
    }


def test_all_that_a_published_command_says_arrives():
    ours = meant(*shlex.split(PUBLISHED["reference-all"]))
    said = {
        "data": Path("STORE"),
        "disruption": "all",
        "noise_variance": 0.1,
        "reconstruction_loss": "all",
        "contrastive_weight": 0.03,
        "contrastive_temperature": 0.5,
        "roi": (96, 96, 96),
        "batch_size": 2,
        "max_steps": "1000 epochs",
        "warmup_steps": "4 epochs",
        "save_every": "5 epochs",
        "lr": 1e-4,
        "min_lr": 1e-5,
        "warmup_lr": 1e-6,
        "cosine_from": "start",
        "weight_decay": 0.05,
        "precision": "32-true",
        "block_mask_ratio": 0.6,
        "block_size": 16,
        "window": 7,
        "window_edges": "reference",
        "restore_intensity": False,
        "normalise_skips": False,
        "shuffle_modalities": False,
        "freeze": "none",
        "resume": False,
        "datasets": None,
    }
    assert {name: getattr(ours, name) for name in said} == said


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--onlycovid"], {"datasets": ["covid19"]}),
        (["--encoder_off"], {"freeze": "encoder"}),
        (["--decoder_off"], {"freeze": "decoder"}),
        (["--resume"], {"resume": True}),
        (["--amp_opt_level", "O0"], {"precision": "32-true"}),
        (["--amp_opt_level", "O1"], {}),
        (["--choice", "sld"], {"disruption": "local_mask"}),
        (["--choice", "LD"], {"disruption": "local_mask"}),
        (["--choice", "mae"], {"disruption": "mae"}),
        (["--variance", "0.3"], {"noise_variance": 0.3}),
        (["--choice", "superres", "--interpolate", "2"], {"disruption": "superres", "downsample_factor": 2}),
        (["--clip_grad", "0"], {"clip_grad": None}),
        (["--accumulate_step", "3"], {"accumulate": 3}),
        (["--feature_size", "24"], {"embed_dim": 24}),
        (["--img_size", "64"], {"roi": (64, 64, 64)}),
        (["--img_size", "64", "64", "32"], {"roi": (64, 64, 32)}),
        (["--use_checkpoint"], {"checkpoint_activations": True}),
        (["--mm_con", "0"], {"contrastive_weight": 0.0}),
    ],
)
def test_one_flag_changes_what_it_means_and_nothing_else(words, changes):
    plain, changed = meant(*MINIMAL).model_dump(), meant(*MINIMAL, *words).model_dump()
    assert {name: changed[name] for name in plain if changed[name] != plain[name]} == changes


def test_masked_loss_is_that_of_mae():
    ours = meant("--data-path", "S", "--choice", "mae", "--loss_type", "mask_only", "--mask_ratio", "0.75")
    assert (ours.disruption, ours.reconstruction_loss, ours.block_mask_ratio) == ("mae", "masked", 0.75)


def test_o1_is_automatic_precision():
    assert meant(*MINIMAL, "--amp_opt_level=O1").precision == "auto"


def test_each_flag_without_meaning_is_remarked_on_once():
    _, remarks = translate(shlex.split(PUBLISHED["reference-denoise"]))
    named = [remark.split()[0] for remark in remarks]
    without = ("sw_batch_size", "cache_dataset", "cache_rate", "thread_loader", "log_dir", "out_channels")
    assert sorted(named) == sorted(f"--{name}" for name in without)
    for remark in remarks:
        assert "has no effect: " in remark
    assert translate(MINIMAL)[1] == []


@pytest.mark.parametrize("flag", WITHOUT_MEANING)
@pytest.mark.parametrize("value", [[], ["1"]])
def test_every_flag_without_meaning_is_taken_with_a_value_and_without(flag, value):
    fields, remarks = translate([*MINIMAL, f"--{flag}", *value, "--seed", "5"])
    assert len(remarks) == 1
    assert fields == {**translate(MINIMAL)[0], "seed": 5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--choice", "blur"], "--choice"),
        (["--encoder_off", "--decoder_off"], "nothing to train"),
        (["--interpolate", "2.5"], "whole number"),
        (["--warmup_epoch", "4"], "--warmup_epoch"),  # the published flag is --warmpup_epoch
        (["--model_type", "swin"], "--model_type"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        translate([*MINIMAL, *words])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_a_bad_value_is_an_error_in_one_line(capsys):
    assert main_runner.main([*MINIMAL, "--img_size", "50", "--print-settings"]) == 1
    error = capsys.readouterr().err
    assert error == "dae3d: error: roi: sides must be multiples of 32, not 50 x 50 x 50\n"


@pytest.mark.parametrize(("rank", "lines"), [(None, 1), ("0", 1), ("1", 0)])
def test_of_several_processes_one_makes_the_remarks(rank, lines, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert main_runner.main([*MINIMAL, "--cache_dataset", "--print-settings"]) == 0
    assert capsys.readouterr().err.count("\n") == lines


def test_as_a_program_it_prints_the_settings():
    words = [*shlex.split(PUBLISHED["reference-superres"]), "--print-settings"]
    done = subprocess.run(
        [sys.executable, "-m", "dae3d.main_runner", *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert PretrainSettings(**shown) == meant(*words)
    assert done.stderr.count("--cache_dataset has no effect") == 1


def test_the_published_command_trains_under_torchrun(tiny_store, tmp_path):
    # As published, but for the sizes: two processes, an epoch, a network that a CPU can train.
    words = shlex.split(PUBLISHED["reference-all"].replace("STORE", shlex.quote(str(tiny_store))))
    small = ["--img_size=32", "--epoch=1", "--warmpup_epoch=0", "--feature_size=3", "--num_workers=0"]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "dae3d.main_runner",
    ]
    done = subprocess.run(
        [sys.executable, *launcher, *words, *small, f"--output={tmp_path / 'run'}"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("--cache_dataset has no effect") == 1
    network = load(tmp_path / "run")
    # 6 training scans, 2 crops in each of 2 processes: 2 steps.
    assert network.info["settings"]["max_steps"] == 2
    assert network.architecture.embed_dim == 3
    assert not network.architecture.restore_intensity
