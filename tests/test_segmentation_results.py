"""A small table of scores worked out by hand."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest

from dae3d.evaluation.held_out import HeldOut
from dae3d.evaluation.results import Results
from dae3d.evaluation.segmentation_metrics import METRICS, Scores
from dae3d.reporting.evaluation import Context, remarkable, render
from dae3d.reporting.evaluation_text import findings, summary
from dae3d.reporting.strips import LEFT, MOST_DOTS, RIGHT, lowest_tick, strip

NAN, INF = math.nan, math.inf


def scores(dice: float, hd95: float, reference: float, predicted: float) -> Scores:
    known = reference > 0
    return dict.fromkeys(METRICS, NAN) | {
        "dice": dice,
        "nsd": dice,
        "hd95_mm": hd95,
        "volume_error_percent": 100 * (predicted - reference) / reference if known else NAN,
        "volume_error_ml": predicted - reference if known or predicted else NAN,
        "reference_ml": reference,
        "predicted_ml": predicted,
    }


ABSENT = scores(NAN, NAN, 0, 0)
TABLE = {
    "anna": {"liver": scores(0.9, 2, 100, 90), "cyst": scores(0.6, 4, 10, 8)},
    "ben": {"liver": scores(0.8, 4, 100, 80), "cyst": scores(0.0, INF, 5, 0)},
    "carl": {"liver": scores(0.7, 6, 100, 70), "cyst": ABSENT},
    "dora": {"liver": scores(0.95, 1, 100, 95), "cyst": scores(0.0, INF, 0, 3)},
    "emil": {"liver": ABSENT, "cyst": ABSENT},
}


@pytest.fixture(scope="module")
def results() -> Results:
    return Results.of(TABLE, {"liver": [1], "cyst": [2]}, {}, seed=0)


def test_means_leave_out_what_is_not_there(results: Results) -> None:
    liver, cyst = results.summaries["liver"], results.summaries["cyst"]
    assert (liver.present, liver.missed, liver.spurious) == (4, 0, 0)
    assert (cyst.present, cyst.missed, cyst.spurious) == (2, 1, 1)
    assert liver.means["dice"].value == pytest.approx((0.9 + 0.8 + 0.7 + 0.95) / 4)
    assert liver.means["dice"].cases == 4
    assert cyst.means["dice"].value == pytest.approx(0.6 / 3)
    # An infinite distance is counted and not averaged; one value has no interval.
    assert (cyst.means["hd95_mm"].value, cyst.means["hd95_mm"].cases) == (4, 1)
    assert math.isnan(cyst.means["hd95_mm"].low)
    assert cyst.means["volume_error_percent"].value == pytest.approx((-20 - 100) / 2)
    assert cyst.means["volume_error_ml"].value == pytest.approx((-2 - 5 + 3) / 3)


def test_each_class_has_the_same_weight(results: Results) -> None:
    assert results.mean["dice"].value == pytest.approx((0.8375 + 0.2) / 2)
    assert results.mean["hd95_mm"].value == pytest.approx((3.25 + 4) / 2)
    low, high = results.mean["dice"].low, results.mean["dice"].high
    assert 0.35 < low < 0.51 < high < 0.78


def test_the_interval_of_the_mean_is_of_means_over_the_same_resamples() -> None:
    """Two classes with the same values are as uncertain together as each alone."""
    column = {
        f"{i}": dict.fromkeys("ab", scores(d, 1, 1, 1)) for i, d in enumerate((0.2, 0.5, 0.6, 0.9, 0.95))
    }
    same = Results.of(column, {"a": [1], "b": [2]}, {}, seed=1)
    alone = same.summaries["a"].means["dice"]
    assert (same.mean["dice"].low, same.mean["dice"].high) == pytest.approx((alone.low, alone.high))


def test_cases_in_order(results: Results) -> None:
    np.testing.assert_allclose(results.case_dice, [0.75, 0.4, 0.7, 0.475, NAN])
    assert [results.cases[i] for i in results.ranked] == ["ben", "dora", "carl", "anna"]
    assert remarkable(results) == {"worst": 1, "median": 3, "best": 0}


@pytest.mark.parametrize(("count", "ranks"), [(0, []), (1, ["only"]), (2, ["worst", "best"])])
def test_remarkable_cases_of_few(count: int, ranks: list[str]) -> None:
    few = dict(list(TABLE.items())[:count]) or {"emil": TABLE["emil"]}
    found = Results.of(few, {"liver": [1], "cyst": [2]}, {}, seed=0)
    assert list(remarkable(found)) == ranks
    assert len(set(remarkable(found).values())) == len(ranks)


def test_regions_are_apart_from_the_classes() -> None:
    table = {"anna": {"a": scores(0.5, 1, 1, 1), "all": scores(0.9, 1, 2, 2)}}
    found = Results.of(table, {"a": [1]}, {"all": [1, 2]}, seed=0)
    assert found.mean["dice"].value == 0.5
    assert found.mean_of_regions["dice"].value == 0.9
    assert found.case_dice.tolist() == [0.5]
    assert found.json()["classes"]["all"]["values"] == [1, 2]


def test_csv_has_a_row_for_everything(results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(results.csv())))
    assert len(rows) == 5 * 2 * len(METRICS)
    values = {(row["case"], row["class"], row["metric"]): float(row["value"]) for row in rows}
    assert values["anna", "liver", "dice"] == 0.9
    assert values["ben", "cyst", "hd95_mm"] == INF
    assert values["ben", "cyst", "volume_error_percent"] == -100
    assert math.isnan(values["carl", "cyst", "dice"])
    assert values["dora", "cyst", "predicted_ml"] == 3


def test_json_is_strict(results: Results) -> None:
    text = json.dumps(results.json(), allow_nan=False)
    found = json.loads(text)
    assert found["cases"]["ben"]["classes"]["cyst"]["hd95_mm"] is None
    assert found["cases"]["emil"]["mean_dice"] is None
    assert found["classes"]["cyst"]["missed"] == 1
    assert found["mean"]["dice"]["mean"] == pytest.approx(0.51875)


def test_what_fails_is_said(results: Results) -> None:
    assert "4 of" not in (said := summary(results, "Abdomen", "fold 2"))
    assert "5 cases of “Abdomen” (fold 2)" in said
    assert "Mean Dice of the 2 classes: 0.519 (" in said
    lines = findings(results)
    assert lines[0] == "Missed completely: cyst in 1 of 2 (ben)."
    assert lines[1] == "Predicted, but not in the reference: cyst in 1 (dora)."
    assert lines[2].startswith("Weakest class: cyst, mean Dice 0.200 (")
    assert "ben (0.400), dora (0.475) and carl (0.700); best: anna (0.750)" in lines[3]
    assert lines[4].startswith("Systematic volume errors: too small: liver (-16 %)")
    assert lines[5] == "Largest surface distance: 6.0 mm (HD95) of liver in carl."


def test_dots_stand_where_the_axis_says() -> None:
    assert lowest_tick([0.83, 0.99, NAN]) == 0.8
    assert lowest_tick([0.0, 1.0]) == 0
    assert lowest_tick([1.0]) == lowest_tick([]) == 0.9
    table = {"a": {"x": scores(0.6, 1, 1, 1)}, "b": {"x": scores(1.0, 1, 1, 1)}, "c": {"x": ABSENT}}
    found = Results.of(table, {"x": [1]}, {}, seed=0)
    drawn = strip("x", "abc", [0.6, 1.0, NAN], found.summaries["x"].means["dice"], 0.6)
    assert [(dot.x, dot.title) for dot in drawn.dots] == [(LEFT, "a: 0.600"), (RIGHT, "b: 1.000")]
    assert drawn.mean == pytest.approx((LEFT + RIGHT) / 2)
    assert drawn.ticks[0] == (RIGHT, "1.0")
    assert drawn.ticks[-1] == (LEFT, "0.6")


def test_of_many_classes_those_missed_most_are_named() -> None:
    """Class c<n> is missed in the first n of eight cases."""
    table = {
        f"case{i}": {f"c{n}": scores(0.0, INF, 5, 0) if i < n else scores(0.9, 1, 5, 5) for n in range(9)}
        for i in range(8)
    }
    found = Results.of(table, {f"c{n}": [n + 1] for n in range(9)}, {}, seed=0)
    line = findings(found)[0]
    assert line.startswith("Missed completely: c8 in 8 of 8 (case0, case1, case2, case3, ")
    assert "case4 and 3 others); c7 in 7 of 8 (" in line
    assert line.endswith("; c4 in 4 of 8 (case0, case1, case2 and case3); and 3 other classes.")


def test_of_many_cases_a_part_is_drawn_and_the_page_says_so() -> None:
    dice = np.random.default_rng(0).uniform(0.2, 1, 1000)
    table = {f"case{i}": {"x": scores(d, 1, 1, 1), "y": ABSENT} for i, d in enumerate(dice)}
    table |= {f"more{i}": {"x": ABSENT, "y": scores(0.5, 1, 1, 1)} for i in range(MOST_DOTS)}
    found = Results.of(table, {"x": [1], "y": [2]}, {}, seed=0)
    page = render(found, Context("Many", "test", 1.0, "", {}, HeldOut(0)), [])
    assert page.count("<circle") == 2 * MOST_DOTS
    assert f"At most {MOST_DOTS} cases are" in page
    assert f"x ({MOST_DOTS} of 1000 cases drawn)</figcaption>" in page
    assert "<figcaption>y</figcaption>" in page
    titles = re.findall(r"<title>case\d+: ([\d.]+)</title>", page)
    drawn = np.array(titles, float)
    assert (drawn[0], drawn[-1]) == pytest.approx((dice.min(), dice.max()), abs=5e-4)
    # As spread as all are.
    np.testing.assert_allclose(
        np.quantile(drawn, [0.25, 0.5, 0.75]), np.quantile(dice, [0.25, 0.5, 0.75]), atol=0.01
    )


def test_dots_of_one_value_do_not_hide_one_another() -> None:
    table = {str(i): {"x": scores(0.9, 1, 1, 1)} for i in range(5)}
    found = Results.of(table, {"x": [1]}, {}, seed=0)
    drawn = strip("x", list(table), [0.9] * 5, found.summaries["x"].means["dice"], 0.8)
    assert len({dot.y for dot in drawn.dots}) == 5
