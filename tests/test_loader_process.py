"""Loader processes of fine-tuning's batches, where shared memory is short, and where one dies."""

import os
import pickle
import signal
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dae3d.errors import Dae3dError
from dae3d.training.labelled_batch import labelled_slot_bytes, pack_labelled
from dae3d.training.loader_process import check_shared_memory, naming_loader_processes, start_loader_process
from dae3d.training.slots import Slots

ROI, CHANNELS, BATCH = (8, 6, 10), 3, 2


def crop_of(number: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(number)
    return {
        "image": torch.randn((CHANNELS, *ROI), generator=random),
        "label": torch.randint(0, 5, (1, *ROI), generator=random, dtype=torch.uint8),
        "sample": torch.tensor(number),
    }


class Crops(Dataset):
    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if number == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is short
        return crop_of(number)

    def __len__(self) -> int:
        return 40


def loader(crops: Dataset, slots: Slots | None) -> DataLoader:
    return DataLoader(
        crops,
        batch_size=BATCH,
        num_workers=2,
        collate_fn=partial(pack_labelled, slots=slots),
        worker_init_fn=start_loader_process,
    )


@pytest.mark.parametrize("slots_each", [None, 1, 6])
def test_labelled_batches_come_whole(slots_each):
    slots = slots_each and Slots(2, slots_each, labelled_slot_bytes(BATCH, CHANNELS, ROI))
    kept = [batch.unpack(ROI) for batch in loader(Crops(), slots)]
    assert len(kept) == 20
    for place, batch in enumerate(kept):
        expected = [crop_of(BATCH * place + i) for i in range(BATCH)]
        for name in ("image", "label", "sample"):
            assert torch.equal(batch[name], torch.stack([crop[name] for crop in expected])), name


def test_a_batch_is_sent_without_files_in_shared_memory():
    batch = pack_labelled([crop_of(0), crop_of(1)])
    again = pickle.loads(pickle.dumps(batch))  # PyTorch's own pickler alone knows shared tensors
    for name, tensor in batch.unpack(ROI).items():
        assert torch.equal(tensor, again.unpack(ROI)[name])


def test_a_loader_process_that_is_killed_is_named_and_advice_given():
    with (
        pytest.raises(Dae3dError, match=r"loader process failed: DataLoader worker.*--workers"),
        naming_loader_processes(),
    ):
        for _ in loader(Crops(dies_at=21), None):
            pass


def test_errors_of_others_are_left_alone():
    with pytest.raises(RuntimeError, match=r"^mine$"), naming_loader_processes():
        raise RuntimeError("mine")


def test_too_little_shared_memory_for_locks_is_said(monkeypatch):
    def full() -> None:
        raise OSError(28, "No space left on device")

    check_shared_memory(2)
    monkeypatch.setattr("multiprocessing.Lock", full)
    check_shared_memory(0)
    with pytest.raises(Dae3dError, match=r"/dev/shm.*2 loader processes.*--shm-size.*--workers"):
        check_shared_memory(2)
