"""`index` on the real scans beside the checkout; expectations are counted from their catalogue by hand."""

import csv
from collections import Counter
from pathlib import Path

import pytest

import dae3d
from dae3d.errors import ScanError
from dae3d.scans.manifest import Manifest
from dae3d.scans.readers import read_header, read_volume, suffix

LABELS = ["labels/*", "*/labels/*", "GT_*", "gold_standard*", "*_seg*", "*_label.nrrd", "*_msk.nii.gz",
          "aorta.nii.gz", "pulmonary_artery.nii.gz", "*aseg.mgz"]  # fmt: skip
RULES = [
    "tcia_ct/*=ct",
    "elastix/*=ct",
    "ct_cropped*=ct",
    "example_ct*=ct",
    "*FLAIR.nii.gz=flair",
    "*_T1W.nii.gz=t1",
    "T1.nii.gz=t1",
    "T1POST.nii.gz=t1ce",
    "T2.nii.gz=t2",
    "niivue/MR_Gd.nii.gz=t1ce",
    "niivue/register_T2w.nii.gz=t2",
    "brainchop/*=t1",
    "MR_Img*=t1",
    "msd_hippocampus/images/*=t1",
    "norm.mgz=t1",
    "example_mr*=mr",
    "pyradiomics/*=mr",
]


@pytest.fixture(scope="module")
def catalogue(shared_data: Path) -> dict[str, dict[str, str]]:
    with (shared_data / "CATALOG.tsv").open() as file:
        return {row["path"]: row for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def manifest(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return dae3d.index(
        folders=[shared_data / "pretrain", shared_data / "labelled"],
        out=tmp_path_factory.mktemp("index") / "manifest.json",
        rule=RULES,
        exclude=LABELS,
    )


def test_counts_by_modality(manifest: Manifest) -> None:
    # t1: 130 hippocampus, 4 subcortical, 2 + 1 MS, brainchop, FreeSurfer; ct: lung, LIDC, spleen, 4 others.
    assert Counter(scan.modality for scan in manifest.scans) == {
        "t1": 139, "ct": 7, "flair": 6, "t1ce": 2, "t2": 2, "mr": 3, "adc": 1, "dwi": 1
    }  # fmt: skip
    # Labels: 130 hippocampus, 4 subcortical, MS, ISLES, spleen, 2 + 2 TotalSegmentator, 2 pyradiomics, aseg.
    assert Counter(item.reason.partition(":")[0] for item in manifest.left_out) == {"excluded": 144}


def test_headers_agree_with_the_catalogue(
    manifest: Manifest, catalogue: dict[str, dict[str, str]], shared_data: Path
) -> None:
    for scan in manifest.scans:
        row = catalogue[scan.path.relative_to(shared_data).as_posix()]
        assert "x".join(map(str, scan.shape)) == row["shape"]
        assert scan.spacing == pytest.approx([float(word) for word in row["spacing_mm"].split("x")], rel=1e-3)
        said = row["modality"].removeprefix("MR-").lower()
        assert scan.modality == said


def test_scans_of_one_catalogued_subject_are_one_subject_and_on_one_side(
    manifest: Manifest, catalogue: dict[str, dict[str, str]], shared_data: Path
) -> None:
    sides: dict[str, set[tuple[str, str]]] = {}
    for scan in manifest.scans:
        row = catalogue[scan.path.relative_to(shared_data).as_posix()]
        sides.setdefault(row["subject"], set()).add((scan.subject, scan.split))
    # 130 hippocampus, 4 subcortical, 3 MS, 5 TotalSegmentator, 2 pyradiomics, 10 of one scan or case each.
    assert len(sides) == 154
    assert {len(side) for side in sides.values()} == {1}


AWKWARD = {
    "4d_example4d.nii.gz": "4-D",
    "analyze75/avg152T1.hdr.gz": None,
    "4d_singleton_sri24_spgr.nii.gz": None,
    "bigendian_float32_zstat1.nii.gz": None,
    "complex64.nii.gz": "complex-valued",
    "corrupt/git_lfs_pointer_T1.nii.gz": "unreadable: a Git LFS pointer",
    "corrupt/truncated_patient20_T1W.nii.gz": None,  # its header is whole; `prepare` finds the rest missing
    "mha_fmri.mha": None,
    "nrrd_FLAIR.nrrd": None,
    "oblique_uint8_ct_pitch_phantom.nii.gz": None,
    "orientation_AIL.nii.gz": None,
    "rgba_CIT168.nii.gz": "RGB or vector",
    "sheared_affine_ct_shear.nii.gz": None,
    "unpaired_label_hippocampus_010.nii.gz": None,
    "unpaired_label_hippocampus_281.nii.gz": None,
}


def test_every_awkward_file_has_its_outcome(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "awkward"
    manifest = dae3d.index(folders=[folder], out=tmp_path / "m.json", modality="mr")
    outcomes: dict[str, str | None] = {
        scan.path.relative_to(folder).as_posix(): None for scan in manifest.scans
    }
    outcomes |= {item.path.relative_to(folder).as_posix(): item.reason for item in manifest.left_out}
    assert outcomes.pop("dicom/failing_gantrytilting.tar.gz") == "archive that is not read: .tar.gz"
    assert outcomes.keys() == AWKWARD.keys()
    for name, reason in AWKWARD.items():
        found = outcomes[name]
        assert found is None if reason is None else found is not None and found.startswith(reason), name
    unlisted = {path.name for path in folder.rglob("*") if path.is_file() and not suffix(path)}
    # The voxels of the Analyze pair.
    assert {name for name in unlisted if not name.endswith(".tar.gz")} == {"avg152T1.img.gz"}


@pytest.mark.parametrize(
    ("name", "orientation", "dtype"),
    [
        ("awkward/orientation_AIL.nii.gz", "AIL", "uint8"),
        ("awkward/bigendian_float32_zstat1.nii.gz", "LAS", "float32"),
        ("awkward/4d_singleton_sri24_spgr.nii.gz", "LAS", "int16"),
        ("labelled/isles22/sub-strokecase0009_ses-0001_adc.nii.gz", "LAS", "float64"),
        ("labelled/freesurfer_aseg/niivue_fs/norm.mgz", "LIA", "uint8"),
    ],
)
def test_axes_and_types(shared_data: Path, name: str, orientation: str, dtype: str) -> None:
    header = read_header(shared_data / name)
    assert (header.orientation, header.dtype) == (orientation, dtype)


@pytest.mark.parametrize(
    "name",
    [
        "awkward/sheared_affine_ct_shear.nii.gz",
        "awkward/bigendian_float32_zstat1.nii.gz",
        "pretrain/elastix/3DCT_lung.mha",
        "labelled/pyradiomics/brain1_image.nrrd",
    ],
)
def test_intensities_span_what_the_catalogue_says(
    shared_data: Path, catalogue: dict[str, dict[str, str]], name: str
) -> None:
    values = read_volume(shared_data / name).intensities()
    row = catalogue[name]
    if row["intensity_min"]:
        assert values.min() == pytest.approx(float(row["intensity_min"]), abs=1)
        assert values.max() == pytest.approx(float(row["intensity_max"]), abs=1)
    else:
        assert values.min() < values.max()


def test_a_truncated_scan_is_found_when_its_voxels_are_read(shared_data: Path) -> None:
    with pytest.raises(ScanError, match="unreadable"):
        read_volume(shared_data / "awkward" / "corrupt" / "truncated_patient20_T1W.nii.gz")
