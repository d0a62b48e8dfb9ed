"""Settings: what is refused and how it is said, YAML, durations, and the shipped configs."""

import inspect
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import Field

import dae3d
from dae3d.commands import load_command
from dae3d.commands.finetune import with_init
from dae3d.commands.index import IndexSettings
from dae3d.commands.prepare import PrepareSettings
from dae3d.commands.reconstruct import ReconstructSettings
from dae3d.errors import SettingsError
from dae3d.settings import Settings, command, read_config, resolve, shipped_configs
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.optimiser import learning_rate
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.schedule import in_steps

NEEDED = {"data": Path("store"), "out": Path("run")}


def pretrain_settings(**fields):
    return resolve(PretrainSettings, NEEDED | fields)


# What is refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch_size": 0}, ["batch_size:", "greater than or equal to 1", "0"]),
        ({"roi": 50}, ["roi:", "multiples of 32", "50 x 50 x 50"]),
        ({"roi": [96, 40, 96]}, ["roi:", "multiples of 32", "96 x 40 x 96"]),
        ({"roi": 4}, ["roi:", "greater than or equal to 8", "4"]),
        ({"roi": [96, 64]}, ["roi:", "one number, or three", "not 2", "[96, 64]"]),
        ({"roi": (96, 64, 64, 32)}, ["roi:", "one number, or three", "not 4"]),
        ({"roi": []}, ["roi:", "one number, or three", "not 0"]),
        ({"roi": "wide"}, ["roi:", "integer", "wide"]),
        ({"embed_dim": 12, "heads": [3, 6, 12, 7]}, ["heads:", "stage 4", "96 channels", "7"]),
        ({"heads": [0, 6, 12, 24]}, ["heads:", "stage 1", "0"]),
        ({"heads": [3, 6]}, ["heads:"]),
        ({"disruption": "blur"}, ["disruption:", "denoise", "superres", "local_mask", "mae", "'blur'"]),
        ({"lr": 0}, ["lr:", "greater than 0"]),
        ({"lr": "fast"}, ["lr:", "number", "'fast'"]),
        ({"lr": float("inf")}, ["lr:", "finite", "inf"]),
        ({"modality_weights": {"ct": float("nan")}}, ["modality_weights:", "finite", "nan"]),
        (
            {"disruption": "all", "downsample_factor": 5},
            ["downsample_factor:", "divide every side of roi 96 x 96 x 96", "5"],
        ),
        (
            {"disruption": "mae", "block_size": 20},
            ["block_size:", "divide every side of roi 96 x 96 x 96", "20"],
        ),
        ({"disruption": "mae", "block_size": 3}, ["block_size:", "even", "3"]),
        ({"disruption": "all", "reconstruction_loss": "masked"}, ["reconstruction_loss:", "mae"]),
        ({"dense_weight": 0.1, "batch_size": 3}, ["batch_size:", "even", "3", "dense_weight 0"]),
        ({"backbone": "resenc", "roi": [40, 40, 9]}, ["roi:", "even", "40 x 40 x 9", "blocks of 2"]),
        ({"ema_decay": 0.9, "strategy": "fsdp"}, ["ema_decay:", "fsdp"]),
        ({"save_every": 25}, ["save_every:", "multiple of log_every 10", "25"]),
        ({"max_steps": 0}, ["max_steps:", "1 or more", "0"]),
        ({"val_every": "0 epochs"}, ["val_every:", "1 or more", "0"]),
        ({"precision": "fp8"}, ["precision:", "'bf16-mixed'", "'fp8'"]),
        ({"max_steps": "4 weeks"}, ["max_steps:", "epochs", "'4 weeks'"]),
        ({"batchsize": 2}, ["batchsize:", "unknown setting", "batch_size"]),
    ],
)
def test_a_bad_value_names_the_field_the_value_and_what_is_allowed(fields, said):
    with pytest.raises(SettingsError) as error:
        pretrain_settings(**fields)
    message = str(error.value)
    assert message.startswith(next(iter(said)))
    assert "\n" not in message
    for words in said:
        assert words in message


def test_what_is_needed_and_missing_is_named():
    with pytest.raises(SettingsError) as error:
        resolve(PretrainSettings, {"lr": -1})
    lines = str(error.value).splitlines()
    assert lines[:2] == ["data: required, but not given", "out: required, but not given"]
    assert lines[2].startswith("lr: ")
    assert len(lines) == 3


def test_a_disruption_that_is_not_used_may_have_any_strength():
    assert pretrain_settings(disruption="denoise", downsample_factor=5).downsample_factor == 5
    assert pretrain_settings(disruption="superres", block_size=20).block_size == 20


def test_settings_do_not_change():
    settings = pretrain_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.lr = 1.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"rule": ["t1"]}, ["rule:", "GLOB=LABEL", "'t1'"]), ({"modality": "a b"}, ["modality:", "'a b'"])],
)
@pytest.mark.parametrize(
    ("model", "needed"),
    [
        (IndexSettings, {"folders": ["x"]}),
        (ReconstructSettings, {"scans": ["x"], "weights": "w", "out": "o"}),
    ],
)
def test_labels_and_rules_are_checked_before_anything_is_done(model, needed, fields, said):
    with pytest.raises(SettingsError) as error:
        resolve(model, needed | fields)
    for words in said:
        assert words in str(error.value)


# Durations


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (1000, 1000),
        ("10", 10),
        ("10 steps", 10),
        ("1 step", 1),
        ("4 epochs", "4 epochs"),
        ("1 epoch", "1 epochs"),
        (" 300  epochs ", "300 epochs"),
        ("3epochs", "3 epochs"),
    ],
)
def test_durations_are_steps_or_epochs(given, meant):
    assert pretrain_settings(max_steps=given, save_every="1 epoch").max_steps == meant


@pytest.mark.parametrize("given", ["x", "", "-3", -3, "1.5 epochs", "4 epoch s", "epochs", 1.5])
def test_what_is_no_duration_is_refused(given):
    with pytest.raises(SettingsError, match="warmup_steps:"):
        pretrain_settings(warmup_steps=given)


def test_an_epoch_becomes_its_steps_and_save_every_whole_rows():
    assert (in_steps("4 epochs", 7), in_steps(4, 7)) == (28, 4)
    schedule = pretrain_settings(
        max_steps="3 epochs", warmup_steps="0 epochs", val_every="2 epochs", save_every="1 epoch", log_every=5
    ).schedule(7)
    assert (schedule.max_steps, schedule.warmup_steps, schedule.val_every) == (21, 0, 14)
    assert schedule.save_every == 10  # 7, rounded up to whole rows of 5


# YAML


def test_every_field_is_written_in_the_order_of_definition_and_reads_as_it_was(tmp_path):
    settings = pretrain_settings(
        data=tmp_path / "a store: é #1 'x' \"y\"",
        modality_weights={"ct": 1, "t1-ce": 2.5, "no": 3, "1": 4},
        datasets=["a b", "null", "007"],
        max_steps="300 epochs",
        clip_grad=None,
        min_lr=1e-5,
        heads=[3, 6, 12, 24],
    )
    text = settings.to_yaml()
    written = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert written == list(PretrainSettings.model_fields)
    (tmp_path / "settings.yaml").write_text(text)
    assert resolve(PretrainSettings, {"config": tmp_path / "settings.yaml"}) == settings


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)


@hypothesis_settings(max_examples=80)
@given(
    folders=st.lists(TEXT, min_size=1, max_size=3),
    globs=st.lists(TEXT, max_size=3),
    dataset=st.none() | TEXT,
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(-(2**40), 2**40),
)
def test_whatever_the_text_yaml_gives_it_back(tmp_path_factory, folders, globs, dataset, fraction, seed):
    settings = resolve(
        IndexSettings,
        {
            "folders": folders,
            "rule": [f"{glob}=ct" for glob in globs],
            "dataset": dataset,
            "val_fraction": fraction,
            "seed": seed,
        },
    )
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(settings.to_yaml())
    assert resolve(IndexSettings, {"config": path}) == settings


def test_spacing_none_and_three_numbers_come_back(tmp_path):
    for spacing in (None, (1.5, 1.5, 2.0)):
        settings = resolve(PrepareSettings, {"manifest": "m", "out": "s", "spacing": spacing})
        (tmp_path / "s.yaml").write_text(settings.to_yaml())
        assert resolve(PrepareSettings, {"config": tmp_path / "s.yaml"}) == settings


def test_keywords_override_the_config(tmp_path):
    (tmp_path / "c.yaml").write_text("data: store\nout: run\nlr: 1e-3\nbatch_size: 4\n")
    settings = resolve(PretrainSettings, {"config": tmp_path / "c.yaml", "batch_size": 2})
    assert (settings.lr, settings.batch_size) == (1e-3, 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- 1\n- 2\n", "must hold `field: value` lines, not a list"),
        (b"[]\n", "must hold `field: value` lines, not a list"),
        (b"just words\n", "must hold `field: value` lines, not a str"),
        (b"lr: [1, 2\nbatch_size: 2\n", "is not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not valid YAML"),
    ],
)
def test_a_config_that_is_none_is_named(tmp_path, content, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="config: ") as error:
        read_config(path, "pretrain")
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_is_no_word_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("1: 2\n")
    with pytest.raises(SettingsError, match="1: "):
        resolve(PretrainSettings, NEEDED | {"config": tmp_path / "c.yaml"})


def test_an_empty_config_changes_nothing(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert resolve(PretrainSettings, NEEDED | {"config": tmp_path / "c.yaml"}) == pretrain_settings()


def test_an_unknown_config_lists_the_shipped_ones():
    with pytest.raises(SettingsError, match="config: referense-all is neither") as error:
        read_config("referense-all", "pretrain")
    for name in ("reference-all", "reference-denoise", "small-cpu"):
        assert name in str(error.value)


# The shipped configs

# The published recipe: arXiv 2307.16896 and its code.
PUBLISHED = {
    "noise_variance": 0.1,
    "downsample_factor": 4,
    "downsample_mode": "nearest",
    "channel_mask_ratio": 0.6,
    "reconstruction_loss": "all",
    "contrastive_weight": 0.03,
    "contrastive_temperature": 0.5,
    "embed_dim": 48,
    "depths": (2, 2, 2, 2),
    "heads": (3, 6, 12, 24),
    "window": 7,
    "window_edges": "reference",
    "restore_intensity": False,
    "normalise_skips": False,
    "repair_from": "full",
    "skip_drop": 0.0,
    "masked_weight": 1.0,
    "relative_loss": False,
    "loss_on_padding": True,
    "clip_intensity": None,
    "intensity_jitter": 0.0,
    "contrastive_view": "disrupted",
    "contrastive_standardise": False,
    "dense_weight": 0.0,
    "feature_weight": 0.0,
    "freeze": "none",
    "roi": (96, 96, 96),
    "batch_size": 2,
    "crop_region": "volume",
    "shuffle_modalities": False,
    "warmup_steps": "4 epochs",
    "lr": 1e-4,
    "min_lr": 1e-5,
    "warmup_lr": 1e-6,
    "cosine_from": "start",
    "weight_decay": 0.05,
    "clip_grad": 1.0,
    "accumulate": 1,
    "ema_decay": None,
    "precision": "32-true",
}


@pytest.mark.parametrize(
    ("name", "disruption", "epochs"),
    [
        ("reference-denoise", "denoise", 300),
        ("reference-superres", "superres", 300),
        ("reference-local-mask", "local_mask", 300),
        ("reference-all", "all", 1000),
    ],
)
def test_the_reference_configs_are_the_published_recipe(name, disruption, epochs):
    settings = pretrain_settings(config=name)
    assert (settings.disruption, settings.max_steps) == (disruption, f"{epochs} epochs")
    known = dict(settings) | asdict(settings.architecture())
    assert {field: known[field] for field in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", shipped_configs("pretrain"))
def test_every_shipped_config_loads_and_is_explained(name):
    pretrain_settings(config=name)
    path = Path(dae3d.__file__).parent / "configs/pretrain" / f"{name}.yaml"
    assert path.read_text().startswith("# ")
    assert not {"data", "out", "resume"} & set(read_config(name, "pretrain"))


@pytest.mark.parametrize("name", [None, *shipped_configs("pretrain")])
def test_windows_divide_the_grids_of_every_stage_but_in_the_published_recipe(name):
    settings = pretrain_settings(**({"config": name} if name else {}))
    grids = [side // 2**stage for side in settings.roi for stage in (1, 2, 3, 4)]
    published = name is not None and name.startswith("reference-")
    architecture = settings.architecture()
    assert any(grid % architecture.window for grid in grids) == published
    assert architecture.window_edges == ("reference" if published else "exact")


@pytest.mark.parametrize(("given", "usual"), [({}, (6, "exact")), ({"window": 8}, (8, "exact"))])
def test_fine_tuning_from_scratch_has_windows_that_divide_its_grids(given, usual):
    settings = with_init(resolve(FinetuneSettings, NEEDED | given))
    assert (settings.window, settings.window_edges) == usual


def test_a_file_goes_before_a_shipped_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small-cpu").write_text("lr: 0.5\n")
    assert read_config("small-cpu", "pretrain") == {"lr": 0.5}


# Resuming


def test_a_resumed_run_keeps_its_settings_but_for_those_given(tmp_path):
    saved = pretrain_settings(out=tmp_path, lr=5e-4, batch_size=8)
    (tmp_path / "settings.yaml").write_text(saved.to_yaml())
    resumed = resolve(PretrainSettings, {"out": tmp_path, "resume": True, "batch_size": 4})
    assert (resumed.lr, resumed.batch_size, resumed.data) == (5e-4, 4, saved.data)
    fresh = resolve(PretrainSettings, NEEDED | {"out": tmp_path})
    assert fresh.lr == 1e-4


def test_a_setting_that_the_run_was_begun_without_means_what_was_then(tmp_path):
    older = yaml.safe_load(pretrain_settings(out=tmp_path).to_yaml())
    for name in PretrainSettings.earlier:
        del older[name]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(older))
    resumed = resolve(PretrainSettings, {"out": tmp_path, "resume": True})
    assert {name: getattr(resumed, name) for name in PretrainSettings.earlier} == PretrainSettings.earlier
    # It is the published recipe, as far as that is said by these settings.
    assert PUBLISHED.items() >= {n: v for n, v in PretrainSettings.earlier.items() if n in PUBLISHED}.items()
    assert PretrainSettings.earlier.keys() - PUBLISHED.keys() == {"probe_every", "backbone"}


def test_a_fine_tuning_run_begun_without_a_setting_means_what_was_then(tmp_path):
    older = yaml.safe_load(resolve(FinetuneSettings, NEEDED | {"out": tmp_path}).to_yaml())
    del older["cosine_from"], older["flip_axes"], older["window_edges"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(older))
    resumed = resolve(FinetuneSettings, {"out": tmp_path, "resume": True})
    assert (resumed.cosine_from, resumed.window_edges) == ("start", "reference")
    assert resumed.flip_axes == ["lr", "ap", "si"]


@pytest.mark.parametrize(("text", "said"), [("lr: [1", "is not valid YAML"), ("lr", "contains no settings")])
def test_settings_of_a_run_that_cannot_be_read_are_named(text, said, tmp_path):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(SettingsError, match=rf"settings\.yaml {said}"):
        resolve(PretrainSettings, {"out": tmp_path, "resume": True})


# A schedule whose rates do not fit together


@pytest.mark.parametrize("model", [PretrainSettings, FinetuneSettings])
def test_usual_rates_above_the_highest_are_lowered_with_it(model, caplog):
    usual = resolve(model, dict(NEEDED))
    assert usual.min_lr == model.model_fields["min_lr"].default
    with caplog.at_level(logging.INFO):
        low = resolve(model, NEEDED | {"lr": "1e-7"})
    assert (low.lr, low.min_lr, low.warmup_lr) == (1e-7, min(1e-7, usual.min_lr), min(1e-7, usual.warmup_lr))
    assert ("min_lr: 1e-07 instead of 1e-05" in caplog.text) == (usual.min_lr > 1e-7)
    schedule = low.schedule(1)
    assert max(learning_rate(step, low, schedule) for step in range(0, 30_000, 7)) <= 1e-7


@pytest.mark.parametrize("name", ["min_lr", "warmup_lr"])
def test_rates_that_are_given_are_not_changed_but_refused(name):
    with pytest.raises(SettingsError, match=f"^{name}: must be at most lr 1e-07, not 2e-07"):
        resolve(PretrainSettings, NEEDED | {"lr": 1e-7, name: 2e-7})
    with pytest.raises(SettingsError, match=f"^{name}: must be at most lr 0.0001, not 0.01"):
        resolve(PretrainSettings, NEEDED | {name: 1e-2})


def test_rates_of_a_config_and_of_the_run_resumed_give_way_to_a_rate_that_is_given(tmp_path):
    low = pretrain_settings(config="small-cpu", lr=1e-6)
    assert (low.min_lr, low.warmup_lr) == (1e-6, 1e-6)
    saved = pretrain_settings(out=tmp_path, min_lr=1e-5, warmup_lr=1e-9)
    (tmp_path / "settings.yaml").write_text(saved.to_yaml())
    resumed = resolve(PretrainSettings, {"out": tmp_path, "resume": True, "lr": 1e-6})
    assert (resumed.min_lr, resumed.warmup_lr) == (1e-6, 1e-9)


def test_the_usual_warm_up_is_a_tenth_of_a_run_that_is_shorter(caplog):
    with caplog.at_level(logging.INFO):
        settings = resolve(FinetuneSettings, NEEDED | {"max_steps": "5 epochs"})
        short = settings.schedule(10)
    assert (short.warmup_steps, short.max_steps) == (5, 50)
    assert "warmup_steps: 5 instead of 300, because the run has 50 steps" in caplog.text
    assert learning_rate(4, settings, short) == pytest.approx(8e-4 * 4 / 5)
    assert max(learning_rate(step, settings, short) for step in range(50)) == 8e-4
    longer = resolve(FinetuneSettings, NEEDED | {"max_steps": 301}).schedule(10)
    assert longer.warmup_steps == 300
    as_long = resolve(FinetuneSettings, NEEDED | {"max_steps": 300}).schedule(10)
    assert as_long.warmup_steps == 30


@pytest.mark.parametrize("cosine_from", ["start", "warmup"])
def test_a_warm_up_that_was_given_stays_and_is_warned_of(cosine_from, caplog):
    fields = {"warmup_lr": 0, "lr": 1e-4, "cosine_from": cosine_from}
    settings = pretrain_settings(warmup_steps="4 epochs", max_steps=20, **fields)
    long = settings.schedule(10)
    assert (long.warmup_steps, long.max_steps) == (40, 20)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    # The last of 20 steps is step 19: 19/40 of the way to 1e-4.
    assert "warmup_steps: 40, but the run has 20 steps" in record.message
    assert "rises only to 4.75e-05: lr 0.0001 is not reached" in record.message
    assert max(learning_rate(step, settings, long) for step in range(20)) == pytest.approx(4.75e-5)
    caplog.clear()
    pretrain_settings(warmup_steps=19, max_steps=20, **fields).schedule(10)
    assert not caplog.records


# Commands


class TwiceSettings(Settings):
    """For the test below."""

    number: Annotated[float, "any"] = Field(ge=0, description="what to double")
    times: int = Field(1, description="how often")


def test_a_verb_is_a_function_of_its_settings_fields():
    @command
    def twice(settings: TwiceSettings) -> float:
        """Double it."""
        return settings.number * 2**settings.times

    assert twice(number="3") == 6
    assert twice(number=3, times=2) == 12
    assert twice.__doc__ == "Double it."
    assert str(inspect.signature(twice)) == "(*, number: float, times: int = 1)"
    with pytest.raises(SettingsError, match=r"number: .* -1"):
        twice(number=-1)


@pytest.mark.parametrize("name", dae3d.COMMANDS)
def test_every_verb_of_the_package_shows_its_settings(name):
    function = getattr(dae3d, name.replace(" ", "_").replace("-", "_"))
    assert function is load_command(name)
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("config", None)
    assert list(parameters) == list(function.settings.model_fields)
    for parameter in parameters.values():
        field = function.settings.model_fields[parameter.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert (parameter.default is inspect.Parameter.empty) == field.is_required()
        assert field.description
    assert function.__doc__


def test_an_unknown_verb_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'finetoon'"):
        dae3d.__getattr__("finetoon")
