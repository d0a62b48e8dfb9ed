"""What a network's header remembers of the task it was made for."""

import numpy as np
import pytest
from monai.transforms import NormalizeIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles
from pydantic import BaseModel, ValidationError

from dae3d.scans.readers import Volume
from dae3d.store.intensity import ScalingRules, normalise, parse_scaling
from dae3d.store.recipe import CaseRecipe
from dae3d.store.statistics import measure


def recipe(**changes) -> CaseRecipe:
    fields = {"modalities": ("ct",), "labels": {0: "background", 6: "liver", 1: "spleen"}} | changes
    return CaseRecipe(**fields)


def test_a_class_is_the_rank_of_its_value():
    made = recipe()
    assert made.label_values == (0, 1, 6)
    assert made.class_names == ("background", "spleen", "liver")


def test_it_survives_json():
    made = recipe(
        modalities=("T1", "flair"),
        spacing=(1.5, 1.5, 2),
        crop_foreground=True,
        intensity={"T1": "percentiles:1:99"},
        roi=32,
    )
    assert CaseRecipe.model_validate_json(made.model_dump_json()) == made
    assert CaseRecipe.model_validate(made.model_dump(mode="json")) == made
    assert made.modalities == ("t1", "flair")
    assert made.intensity == {"t1": "percentiles:1:99"}


def test_stored_voxels_depend_on_the_geometry_alone():
    made = recipe(spacing=(1, 1, 1))
    same = recipe(spacing=(1, 1, 1), intensity={"ct": "zscore"}, roi=32, modalities=("cbct",))
    assert same.geometry == made.geometry
    for other in (recipe(), recipe(spacing=(1, 1, 1), crop_foreground=True)):
        assert other.geometry != made.geometry
    assert recipe(spacing=(1, 1, 1), labels={0: "background", 1: "spleen"}).geometry != made.geometry


@pytest.mark.parametrize(
    "wrong",
    [
        {"modalities": ()},
        {"modalities": ("two words",)},
        {"labels": {0: "background"}},
        {"labels": {0: "background", -1: "spleen"}},
        {"labels": {0: "a", 1: "a"}},
        {"spacing": (1, 1, 0)},
        {"spacing": (1, 1)},
        {"intensity": {"ct": "window:1"}},
        {"roi": 0},
    ],
)
def test_what_is_no_recipe(wrong):
    with pytest.raises(ValidationError):
        recipe(**wrong)


class Rules(BaseModel):
    intensity: ScalingRules


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("window:-175", "not an intensity scaling"),
        ("zscore:1", "not an intensity scaling"),
        ("minmax:0:1", "not an intensity scaling"),
        ("", "not an intensity scaling"),
        ("window:a:b", "bounds must be numbers"),
        ("window:250:-175", "lower bound must be below"),
        ("window:5:5", "lower bound must be below"),
        ("window:-inf:5", "both finite"),
        ("window:nan:5", "lower bound"),
        ("percentiles:2:98", "percentiles must be among 0.5, 1, 5, 25, 50, 75, 95, 99, 99.5"),
    ],
)
def test_what_is_no_scaling(text, why):
    with pytest.raises(ValueError, match=why):
        parse_scaling(text)
    with pytest.raises(ValidationError, match=r"intensity\.ct"):
        Rules(intensity={"ct": text})


@pytest.mark.parametrize(
    ("rule", "monai"),
    [
        ("window:-175:250", ScaleIntensityRange(-175, 250, 0, 1, clip=True)),
        ("zscore", NormalizeIntensity(nonzero=True)),
        ("percentiles:1:99", ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)),
    ],
)
def test_rules_scale_as_monai_does(rule, monai):
    scan = np.random.default_rng(0).normal(40, 200, (20, 20, 20)).astype(np.float32)
    scan[:3] = 0
    statistics = measure(Volume(scan, np.eye(4)))
    scaled = normalise(scan, "ct", statistics, {"ct": rule, "mr": "window:0:1"})
    np.testing.assert_allclose(scaled, np.asarray(monai(scan.copy())), atol=2e-5)


def test_a_rule_is_for_its_own_modality():
    scan = np.arange(-1500, 1500, dtype=np.float32).reshape(30, 10, 10)
    statistics = measure(Volume(scan, np.eye(4)))
    by_default = ScaleIntensityRange(-1000, 1000, 0, 1, clip=True)(scan)
    np.testing.assert_allclose(normalise(scan, "ct", statistics, {"mr": "zscore"}), by_default, atol=1e-6)
