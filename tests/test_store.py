import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.transforms import NormalizeIntensity, ScaleIntensityRange
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from torch.utils.data import DataLoader, Dataset

from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError
from dae3d.store.scan import SCANS
from dae3d.store.store import Store
from scan_files import described, phantom, write_manifest, write_nifti

Box = tuple[tuple[int, int, int], tuple[int, int, int]]


def stored(folder: Path, *scans: Path, modality: str = "mr") -> Store:
    manifest = write_manifest(folder / "manifest.json", [described(scan, modality) for scan in scans])
    return prepare(manifest=manifest, out=folder / "store", workers=1)


def canonical(path: Path) -> np.ndarray:
    """The scan as nibabel reads and orients it, float32."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj, np.float64).astype(np.float32)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, int, int]) -> Box:
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(draw(st.integers(1, n - s)) for n, s in zip(shape, start, strict=True))
    return start, size


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40)),
    dtype=st.sampled_from(["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<u4", "<f4", ">f4", "<f8"]),
    whole=st.booleans(),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    scale=st.sampled_from([None, (1.0, -1024.0), (0.25, 3.5), (-2.0, 10.0)]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_read_is_a_slice_of_the_canonical_array(shape, dtype, whole, order, flips, scale, seed, data):
    """Law: whatever the shape, type, axes and scale factors, a crop is a slice of what nibabel reads."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        array = random.normal(0, 1000, shape)
        array = (np.rint(array) if whole else array).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        low, high = (limits.min, limits.max) if whole else (limits.max // 2, limits.max // 2 + 100)
        array = random.integers(low, high, shape, endpoint=True).astype(dtype)
    assume(array.min() < array.max())
    directions = np.zeros((4, 4))
    directions[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(order, flips, strict=True)):
        directions[world, axis] = sign * (0.7 + axis)
    directions[:3, 3] = (-30, 12, 5)
    with TemporaryDirectory() as folder:
        path = write_nifti(Path(folder) / "scan.nii", array, directions, *(scale or (None, None)))
        expected = canonical(path)
        assume(expected.min() < expected.max())
        store = stored(Path(folder), path)
        scan = store.scans[0]
        start, size = data.draw(boxes(scan.shape))
        crop = store.read(0, start, size)
        assert crop.dtype == np.float32
        assert crop.flags.c_contiguous
        np.testing.assert_array_equal(
            crop, expected[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))]
        )
        affine = nibabel.as_closest_canonical(nibabel.load(path)).affine
        np.testing.assert_allclose(scan.affine, affine, atol=1e-4)


@pytest.fixture(scope="module")
def two_scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
    """A store of a CT and a T1 scan, the CT's intensities, and both as MONAI scales and then pads them."""
    folder = tmp_path_factory.mktemp("two")
    ct = phantom((70, 50, 40))
    mr = np.where(phantom((40, 66, 30), 1) > -500, phantom((40, 66, 30), 2) + 1200, 0).astype(np.float32)
    mr[mr > 0] += 0.5
    scans = [
        described(write_nifti(folder / "data" / "a_ct.nii.gz", ct + 1024, None, 1, -1024), "ct"),
        described(write_nifti(folder / "data" / "b_t1.nii.gz", mr), "t1"),
    ]
    prepare(manifest=write_manifest(folder / "manifest.json", scans), out=folder / "store", workers=1)
    scaled = {
        "ct": ScaleIntensityRange(-1000, 1000, 0, 1, clip=True)(ct.astype(np.float32)),
        "t1": NormalizeIntensity(nonzero=True)(mr.copy()),
    }
    padded = {modality: np.pad(np.asarray(scan), 150) for modality, scan in scaled.items()}
    return folder / "store", ct.astype(np.float32), padded


@settings(max_examples=40)
@given(
    number=st.integers(0, 1),
    start=st.tuples(*[st.integers(-60, 80)] * 3),
    size=st.tuples(*[st.integers(1, 70)] * 3),
)
def test_padded_read_is_a_slice_of_the_scaled_then_padded_scan(two_scans, number, start, size):
    folder, _, padded = two_scans
    store = Store(folder)
    expected = padded[store.scans[number].modality][
        tuple(slice(150 + s, 150 + s + n) for s, n in zip(start, size, strict=True))
    ]
    crop = store.read_padded(number, start, size)
    assert crop.dtype == np.float32
    np.testing.assert_allclose(crop, expected, atol=2e-5)


def test_scans_are_in_the_order_of_their_paths(two_scans):
    store = Store(two_scans[0])
    assert [scan.path.name for scan in store.scans] == ["a_ct.nii.gz", "b_t1.nii.gz"]
    assert len(store.scans) == 2
    assert store.scans[-1].modality == "t1"
    assert [scan.split for scan in store.scans[:2]] == ["train", "train"]
    with pytest.raises(IndexError):
        store.scans[2]


@pytest.mark.parametrize(
    ("start", "size"), [((-1, 0, 0), (4, 4, 4)), ((0, 0, 0), (71, 4, 4)), ((0, 49, 0), (1, 2, 1))]
)
def test_read_refuses_a_box_that_sticks_out(two_scans, start, size):
    with pytest.raises(ValueError, match="not inside"):
        Store(two_scans[0]).read(0, start, size)


class Crops(Dataset):
    """The same crop of scan 0, so many times."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> np.ndarray:
        return self.store.read_padded(0, (number, 0, 0), (16, 16, 16))


def test_loader_workers_read_what_this_process_reads(two_scans):
    store = Store(two_scans[0])
    here = [store.read_padded(0, (n, 0, 0), (16, 16, 16)) for n in range(4)]
    loader = DataLoader(Crops(store), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for crop, expected in zip(loader, here, strict=True):
        np.testing.assert_array_equal(crop, expected)


def test_another_process_reads_what_this_process_reads(two_scans):
    store = Store(two_scans[0])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        there = executor.submit(store.read_padded, 1, (-3, 5, 5), (16, 16, 16)).result()
    np.testing.assert_array_equal(there, store.read_padded(1, (-3, 5, 5), (16, 16, 16)))


def test_a_store_can_be_moved(two_scans, tmp_path):
    moved = shutil.copytree(two_scans[0], tmp_path / "moved")
    store = Store(moved)
    np.testing.assert_array_equal(store.read(0, (3, 4, 5), (8, 8, 8)), two_scans[1][3:11, 4:12, 5:13])


def test_no_store_says_how_to_make_one(tmp_path):
    with pytest.raises(Dae3dError, match="dae3d prepare"):
        Store(tmp_path / "nothing")


def test_what_is_missing_or_damaged_says_to_prepare_again(tmp_path):
    store = stored(tmp_path, write_nifti(tmp_path / "scan.nii", phantom((20, 20, 20))))
    (file,) = (tmp_path / "store" / SCANS).iterdir()
    content = file.read_bytes()
    for broken in (content[:-100], b"", content[:1000] + bytes(len(content) - 1000)):
        file.write_bytes(broken)
        with pytest.raises(Dae3dError, match="run `dae3d prepare` again"):
            store.read(0, (0, 0, 0), (20, 20, 20))
    file.unlink()
    with pytest.raises(Dae3dError, match="run `dae3d prepare` again"):
        store.read(0, (0, 0, 0), (20, 20, 20))
    index = tmp_path / "store" / "index.jsonl"
    for text in ("", "{}\n", index.read_text().splitlines()[0] + "\n"):
        index.write_text(text)
        with pytest.raises(Dae3dError, match="run `dae3d prepare` again"):
            Store(tmp_path / "store")


NIFTI = [
    "pretrain/brainchop/t1_crop.nii.gz",  # LIA
    "pretrain/niivue/register_T2w.nii.gz",  # oblique LAS
    "awkward/bigendian_float32_zstat1.nii.gz",
    "awkward/orientation_AIL.nii.gz",
    "awkward/sheared_affine_ct_shear.nii.gz",  # uint8 with slope and intercept
    "awkward/4d_singleton_sri24_spgr.nii.gz",
    "labelled/isles22/sub-strokecase0009_ses-0001_adc.nii.gz",  # float64
]
ITK = [
    "pretrain/elastix/3DCT_lung.mha",  # LPS
    "awkward/nrrd_FLAIR.nrrd",  # oblique
]


@pytest.fixture(scope="module")
def real_store(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, int]]:
    store = stored(tmp_path_factory.mktemp("real"), *(shared_data / name for name in NIFTI + ITK))
    numbers = {str(scan.path.relative_to(shared_data)): number for number, scan in enumerate(store.scans)}
    return store, numbers


@pytest.mark.parametrize("name", NIFTI)
def test_real_nifti_reads_as_nibabel_does(shared_data, real_store, name):
    store, numbers = real_store
    scan = store.scans[numbers[name]]
    image = nibabel.load(shared_data / name)
    orientation = io_orientation(image.affine)
    expected = apply_orientation(
        np.asarray(image.dataobj, np.float64).reshape(image.shape[:3]), orientation
    ).astype(np.float32)
    start = tuple(n // 4 for n in scan.shape)
    size = tuple(n // 2 for n in scan.shape)
    np.testing.assert_array_equal(
        store.read(numbers[name], start, size),
        expected[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))],
    )
    np.testing.assert_allclose(
        scan.affine, image.affine @ inv_ornt_aff(orientation, image.shape[:3]), atol=1e-4
    )


@pytest.mark.parametrize("name", ITK)
def test_real_itk_image_reads_as_simpleitk_does(shared_data, real_store, name):
    store, numbers = real_store
    scan = store.scans[numbers[name]]
    image = sitk.DICOMOrient(sitk.ReadImage(str(shared_data / name)), "RAS")
    np.testing.assert_array_equal(
        store.read(numbers[name], (0, 0, 0), scan.shape),
        sitk.GetArrayFromImage(image).T.astype(np.float32),
    )
    # ITK gives LPS millimetres, the store RAS.
    corner = np.array(image.TransformIndexToPhysicalPoint([2, 3, 4])) * (-1, -1, 1)
    np.testing.assert_allclose((np.array(scan.affine) @ (2, 3, 4, 1))[:3], corner, atol=1e-3)
