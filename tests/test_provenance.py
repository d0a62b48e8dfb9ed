"""What weights say they were trained on."""

import hashlib
import json

import pytest

from dae3d.models.provenance import TRAINED_ON, Seen, entry, entry_of, seen, trained_on

SCANS = {name: [hashlib.sha256(name.encode()).hexdigest()] for name in ("a", "b", "c", "d")}


def one(name: str) -> str:
    return SCANS[name][0]


def through_json(stages: list[dict]) -> dict:
    return json.loads(json.dumps({TRAINED_ON: stages}))


def test_cases_are_found_on_the_side_they_were_on() -> None:
    pretrained = entry("pretrain", [one("a"), one("b")], [one("c")])
    info = through_json(entry("segmentation", [one("b")], [one("a")], ["background", "liver"], pretrained))
    assert seen(info, SCANS) == [
        Seen("a", "pretrain", "training"),
        Seen("b", "pretrain", "training"),
        Seen("c", "pretrain", "validation"),
        Seen("a", "segmentation", "validation"),
        Seen("b", "segmentation", "training"),
    ]
    assert [stage.classes for stage in trained_on(info)] == [(), ("background", "liver")]
    assert all(stage.known for stage in trained_on(info))


def test_one_image_of_a_case_is_enough() -> None:
    info = through_json(entry("segmentation", [one("a")], []))
    assert seen(info, {"two channels": [one("d"), one("a")]}) == [
        Seen("two channels", "segmentation", "training")
    ]


def test_a_file_that_says_nothing_is_not_known_to_have_seen_anything() -> None:
    info = {"task": "segmentation", "recipe": {"labels": {"10": "ten", "0": "background", "2": "two"}}}
    (stage,) = trained_on(info)
    assert (stage.known, stage.task) == (False, "segmentation")
    assert stage.classes == ("background", "two", "ten")
    assert seen(info, SCANS) == []
    begun = through_json(entry("segmentation", [one("a")], [], earlier=entry_of(info)))
    assert [stage.known for stage in trained_on(begun)] == [False, True]


def test_a_header_of_many_scans_stays_small() -> None:
    many = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(20_000)]
    info = through_json(entry("pretrain", many, []))
    assert len(json.dumps(info)) < 11 * len(many)
    assert seen(info, {"last": [many[-1]]}) == [Seen("last", "pretrain", "training")]


def test_a_header_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest are kept, so that a scan is among them or not whatever the others are called."""
    monkeypatch.setattr("dae3d.models.provenance._MOST", 2)
    info = through_json(entry("pretrain", ["03" * 32, "01" * 32, "02" * 32], []))
    cases = {"one": ["01" * 32], "two": ["02" * 32], "three": ["03" * 32]}
    assert [found.case for found in seen(info, cases)] == ["one", "two"]
