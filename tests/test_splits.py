"""Laws of the split: whole subjects, stable under additions, lists obeyed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dae3d.scans.splits import Member, hash01, split_subjects, straddling

FREE = st.builds(Member, st.integers(0, 40).map("s{}".format), st.sampled_from("abc"), st.none())
ANY = st.builds(
    Member,
    st.integers(0, 20).map("s{}".format),
    st.sampled_from("abc"),
    st.sampled_from([None, "train", "val"]),
)
FRACTION = st.floats(0, 0.9)


def subjects_of(members: list[Member], modality: str) -> set[str]:
    return {member.subject for member in members if member.modality == modality}


def test_hash01_is_uniform_and_depends_on_the_seed() -> None:
    values = [hash01(0, f"case{number}") for number in range(4000)]
    assert all(0 <= value < 1 for value in values)
    # Standard error of a share near 0.05 over 4000 is 0.0034.
    assert abs(sum(value < 0.05 for value in values) / 4000 - 0.05) < 0.014
    assert abs(sum(values) / 4000 - 0.5) < 0.02
    assert hash01(0, "case1") != hash01(1, "case1")


def test_hash01_is_the_same_on_every_machine() -> None:
    # `printf 0:case1 | sha256sum` begins so; its first 48 bits over 2^48.
    assert hash01(0, "case1") == 0x31F6F39D8E94 / 2**48


@given(st.lists(FREE, min_size=1), st.lists(FREE), FRACTION, st.integers(0, 3))
def test_adding_scans_moves_nobody_but_the_one_held_out_for_want_of_others(
    members: list[Member], more: list[Member], fraction: float, seed: int
) -> None:
    before = split_subjects(members, fraction, seed)
    after = split_subjects(members + more, fraction, seed)
    drawn = {subject: hash01(seed, subject) < fraction for subject in after}
    for subject, side in before.items():
        if drawn[subject]:
            # Of the modalities of a subject that is trained on all the same, one would have no other.
            for sides, scans in ((before, members), (after, members + more)):
                own = {member.modality for member in scans if member.subject == subject}
                assert sides[subject] == "val" or any(
                    all(drawn[other] for other in subjects_of(scans, modality)) for modality in own
                )
        elif side == "val":
            assert sum(held == "val" for held in before.values()) <= max(1, round(fraction * len(before)))
    moved = {subject for subject in before if before[subject] != after[subject]}
    # For each modality, one that had to be trained on and one that had to be held out, before and after.
    assert len(moved) <= 4 * 3


@given(st.lists(FREE, min_size=1), FRACTION, st.integers(0, 3))
def test_order_of_scans_does_not_matter(members: list[Member], fraction: float, seed: int) -> None:
    assert split_subjects(members, fraction, seed) == split_subjects(members[::-1], fraction, seed)


@given(st.lists(ANY, min_size=1), FRACTION)
def test_what_lists_say_is_kept_and_straddlers_are_held_out(members: list[Member], fraction: float) -> None:
    sides = split_subjects(members, fraction, 0)
    for subject in {member.subject for member in members}:
        marks = {member.given for member in members if member.subject == subject}
        if "val" in marks:
            assert sides[subject] == "val"
        elif "train" in marks:
            assert sides[subject] == "train"
        assert (subject in straddling(members)) == ({"train", "val"} <= marks)


@given(st.lists(FREE, min_size=1), FRACTION, st.integers(0, 3))
def test_every_modality_is_trained_on(members: list[Member], fraction: float, seed: int) -> None:
    sides = split_subjects(members, fraction, seed)
    for modality in {member.modality for member in members}:
        assert any(sides[subject] == "train" for subject in subjects_of(members, modality))


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(11, 0.05, 1), (40, 0.05, 2), (30, 0.1, 3)])
def test_what_is_held_out_for_want_of_others_is_counted_over_all(
    count: int, fraction: float, held_out: int
) -> None:
    """Five modalities, each of subjects of its own: what is asked for is not asked of each of them."""
    # Names none of which is drawn by its hash.
    spared = (f"s{number}" for number in range(10_000) if hash01(0, f"s{number}") >= fraction)
    members = [Member(next(spared), "abcde"[number % 5], None) for number in range(count)]
    sides = split_subjects(members, fraction, 0)
    assert sum(side == "val" for side in sides.values()) == held_out
    held = {member.modality for member in members if sides[member.subject] == "val"}
    assert len(held) == held_out  # each of another modality


@given(st.lists(FREE, min_size=1))
def test_holding_one_out_takes_no_modality_its_last_training_subject(members: list[Member]) -> None:
    # A fraction so small that no hash is below it: only step 4 holds out.
    sides = split_subjects(members, 1e-12, 0)
    for modality in "abc":
        there = subjects_of(members, modality)
        if there:
            assert any(sides[subject] == "train" for subject in there)
    if len({member.modality for member in members}) == 1 and len(sides) >= 2:
        assert sum(side == "val" for side in sides.values()) == 1
        assert sides[min(sides, key=lambda subject: hash01(0, subject))] == "val"


@given(st.lists(FREE, min_size=1))
def test_fraction_0_holds_nothing_out(members: list[Member]) -> None:
    assert set(split_subjects(members, 0, 0).values()) == {"train"}
