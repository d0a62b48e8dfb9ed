"""How labelled crops are augmented: image and label alike, and from a seed alone."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dae3d.training.augment import Augmentation
from dae3d.training.finetune_settings import FinetuneSettings

UNCHANGED = {"flip_prob": 0, "rotate_prob": 0, "scale_prob": 0, "shift_prob": 0}


def settings_with(**changes):
    return FinetuneSettings(data="task.json", out="run", **changes)


def marked(channels=2):
    """An image and a label that say of every voxel where it was."""
    label = torch.arange(64, dtype=torch.uint8).reshape(1, 4, 4, 4)
    return torch.cat([label * (channel + 1.0) for channel in range(channels)]), label


def augmented(seed, **changes):
    image, label = marked()
    return Augmentation(settings_with(**(UNCHANGED | changes)))(image, label, seed)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_image_and_label_are_moved_alike_and_intensities_change_within_bounds(seed):
    image, label = Augmentation(settings_with(flip_prob=0.5, rotate_prob=0.5, scale_prob=1, shift_prob=1))(
        *marked(), seed
    )
    assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
    assert (type(image), type(label)) == (torch.Tensor, torch.Tensor)
    assert sorted(label.flatten().tolist()) == list(range(64))
    for channel in (0, 1):
        where = label[0].double() * (channel + 1)
        factor, offset = np.polyfit(where.flatten(), image[channel].double().flatten(), 1)
        assert abs(factor - 1) <= 0.1 + 1e-6
        assert abs(offset) <= 0.1 + 1e-5
        torch.testing.assert_close(image[channel].double(), factor * where + offset, rtol=0, atol=1e-4)


def test_flips_are_of_every_axis_and_as_often_as_asked_for():
    _, label = marked()
    torch.testing.assert_close(augmented(0, flip_prob=1)[1], label.flip(1, 2, 3))
    flipped = np.zeros(3)
    for seed in range(200):
        _, moved = augmented(seed, flip_prob=0.2)
        # Voxel (i, j, k) is 16 i + 4 j + k: the first one tells which axes were flipped.
        flipped += np.array(np.unravel_index(int(moved[0, 0, 0, 0]), (4, 4, 4))) > 0
    assert (abs(flipped - 40) < 5 * np.sqrt(200 * 0.2 * 0.8)).all()


def test_rotations_are_by_all_right_angles_in_the_axial_plane():
    _, label = marked()
    turned = [torch.rot90(label, k, (1, 2)) for k in (1, 2, 3)]
    seen = Counter()
    for seed in range(150):
        _, moved = augmented(seed, rotate_prob=1)
        seen.update(k for k, expected in enumerate(turned) if torch.equal(moved, expected))
    assert seen.total() == 150
    assert min(seen.values()) > 25
    assert len(seen) == 3


def test_without_augmentation_a_crop_stays_as_it_is():
    image, label = augmented(5)
    torch.testing.assert_close(image, marked()[0], rtol=0, atol=0)
    assert torch.equal(label, marked()[1])


def test_an_augmentation_depends_on_its_seed_alone():
    strong = {"flip_prob": 0.5, "rotate_prob": 0.5, "scale_prob": 0.5, "shift_prob": 0.5}
    augment = Augmentation(settings_with(**strong))
    first = [augment(*marked(), seed) for seed in range(20)]
    again = [augment(*marked(), seed) for seed in reversed(range(20))][::-1]
    for ours, theirs in zip(first, again, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
