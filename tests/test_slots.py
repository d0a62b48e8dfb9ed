"""Batches in shared memory that is used again: whole, never overwritten too early, never lost for good."""

import gc
import multiprocessing
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from dae3d.store.stored_crop import StoredCrop
from dae3d.training.batch import NumberedCrop, Packed, pack, slot_bytes
from dae3d.training.slots import Slots

ROI = 24
BATCH = 2
SIZE = slot_bytes(BATCH, (ROI,) * 3)
FORKS = "fork" in multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif(not FORKS, reason="needs processes that fork")


def crop_of(sample: int) -> NumberedCrop:
    voxels = np.random.default_rng(sample).integers(-1000, 1000, (ROI,) * 3).astype(np.int16)
    # A wider type now and then, of which a batch takes twice the bytes.
    voxels = voxels.astype(np.float32) if sample % 3 == 0 else voxels
    return NumberedCrop(StoredCrop(voxels, (0, 0, 0), None), sample % 2, sample)


class Crops(Dataset[NumberedCrop]):
    def __getitem__(self, index: int) -> NumberedCrop:
        return crop_of(index)

    def __len__(self) -> int:
        return 60


def loader(slots: Slots | None, workers: int = 2, **rest: Any) -> DataLoader[Any]:
    return DataLoader(
        Crops(), batch_size=BATCH, num_workers=workers, collate_fn=partial(pack, slots=slots), **rest
    )


def check(batch: Packed) -> None:
    samples = batch.numbers[:, 1].tolist()
    assert batch.numbers[:, 0].tolist() == [sample % 2 for sample in samples]
    image = batch.unpack((ROI,) * 3)["image"]
    np.testing.assert_array_equal(image[:, 0], np.stack([crop_of(sample).crop.voxels for sample in samples]))


@settings(max_examples=200)
@given(
    workers=st.integers(1, 3),
    each=st.integers(1, 3),
    actions=st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 8)), max_size=40),
)
def test_a_slot_is_filled_by_its_own_process_and_not_again_before_it_is_emptied(workers, each, actions):
    slots = Slots(workers, each, 64)
    filled: dict[int, list] = {worker: [] for worker in range(workers)}
    for fills, worker, place in actions:
        mine = filled[worker % workers]
        if fills:
            slot = slots.fill(worker % workers)
            assert (slot is None) == (len(mine) == each)
            if slot is not None:
                slot.bytes(64).fill_(len(mine) + 1)
                mine.append((slot, len(mine) + 1))
        elif mine:
            slot, value = mine.pop(place % len(mine))
            assert slot.bytes(64).tolist() == [value] * 64
            slot.empty()
    places = [slot.place for mine in filled.values() for slot, _ in mine]
    assert len(set(places)) == len(places)


@needs_fork
@pytest.mark.parametrize("each", [1, 4])
def test_loader_processes_fill_the_same_slots_again_and_again(each):
    slots, places = Slots(2, each, SIZE), []
    numbers = []
    for batch in loader(slots):
        places.append(batch.slot.place if batch.slot else None)
        numbers.extend(batch.numbers[:, 1].tolist())
        check(batch)
    assert numbers == list(range(60))
    # Nothing waits for a slot: with too few for what is made ahead, a batch may go without.
    assert each == 1 or None not in places
    assert len(set(places) - {None}) <= 2 * each


@needs_fork
def test_batches_that_nobody_empties_are_not_overwritten():
    slots = Slots(2, 3, SIZE)
    kept = list(loader(slots))
    assert sum(batch.slot is not None for batch in kept) == 6
    for batch in kept:
        check(batch)


@needs_fork
def test_a_batch_that_nobody_wants_leaves_its_slot():
    slots = Slots(1, 3, SIZE)
    kept = list(loader(slots, workers=1))
    assert slots.fill(0) is None
    del kept
    gc.collect()
    assert [slots.fill(0) is None for _ in range(4)] == [False, False, False, True]


@needs_fork
@pytest.mark.parametrize("way", ["unpacked", "moved"])
def test_a_slot_is_emptied_once_not_again_when_another_batch_is_in_it(way):
    slots = Slots(1, 1, SIZE)
    batch = next(iter(loader(slots, workers=1)))
    assert batch.slot is not None
    assert slots.fill(0) is None
    taken = batch.unpack((ROI,) * 3) if way == "unpacked" else batch.to(torch.device("meta"))
    again = slots.fill(0)
    assert again is not None
    del batch
    gc.collect()
    assert slots.fill(0) is None
    if way == "moved":
        assert taken.slot is None
        assert taken.voxels.device.type == "meta"


def test_a_batch_in_a_slot_is_sent_as_a_few_numbers():
    slots = Slots(1, 1, SIZE)
    batch = pack([crop_of(1), crop_of(2)])
    slot = slots.fill(0)
    sent = Packed(slot.bytes(len(batch.voxels)), batch.parts, batch.numbers, slot)
    sent.voxels.copy_(batch.voxels)
    message = pickle.dumps(sent)
    assert len(message) < 2000 < len(batch.voxels)
    check(pickle.loads(message))
    check(pickle.loads(pickle.dumps(batch)))


def test_processes_started_anew_do_without():
    for batch in loader(Slots(1, 2, SIZE), workers=1, multiprocessing_context="spawn"):
        assert batch.slot is None
        check(batch)


def test_without_loader_processes_there_are_no_slots():
    for batch in loader(Slots(0, 6, SIZE), workers=0):
        assert batch.slot is None
        check(batch)


def test_slots_end_with_whoever_made_them():
    slots = Slots(1, 2, SIZE)
    number = pickle.dumps(slots)
    assert pickle.loads(number) is slots
    del slots
    gc.collect()
    assert pickle.loads(number) is None


@pytest.mark.parametrize(
    ("count", "roi"), [(1, (1, 1, 1)), (3, (17, 17, 17)), (5, (96, 96, 96)), (3, (64, 17, 5))]
)
def test_the_largest_batch_fits_a_slot(count, roi):
    crops = [NumberedCrop(StoredCrop(np.ones(roi, np.float32), (0, 0, 0), None), 0, 0)] * count
    assert len(pack(crops).voxels) == slot_bytes(count, roi)
