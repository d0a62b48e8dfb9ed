"""The layout `openmind`, by its table and by the collection that nnssl makes of it."""

import csv
import json
from pathlib import Path

import pytest

from dae3d.errors import Dae3dError
from dae3d.scans.layouts.layout import LAYOUTS
from dae3d.scans.manifest import LeftOut
from dae3d.scans.sources import Candidate
from layout_trees import plant

T1 = "ds000001/sub-01/anat/sub-01_T1w.nii.gz"
FA = "ds003097/sub-0827/dwi/sub-0827_run-3_dwi__Data/FA.nii.gz"
UNI = "ds004146/sub-0271/ses-02/anat/sub-0271_ses-02_UNIT1_denoised.nii.gz"
IMAGES = {T1: "T1w", FA: "FA", UNI: "UNIT1_denoised"}
LABELS = {T1: "t1", FA: "fa", UNI: "unit1"}


def masks(image: str) -> tuple[str, str]:
    """An anonymisation mask of its own, and an anatomy mask that the images of a subject share."""
    return image.replace(".nii.gz", "_anon.nii.gz"), f"{image.split('/')[0]}/anatomy.nii.gz"


def write_table(root: Path) -> None:
    with (root / "openneuro_metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["unique_id", "modality", "age", "image_path", "anon_mask_path", "anat_mask_path"])
        for number, (image, modality) in enumerate(IMAGES.items()):
            table.writerow([f"{image[:8]}_{number}", modality, "", image, *masks(image)])


def collection(prefix: str) -> dict:
    """The images as nnssl nests them."""
    datasets: dict = {}
    for image, modality in IMAGES.items():
        anonymisation, anatomy = (f"{prefix}{mask}" for mask in masks(image))
        dataset, subject, session = image.split("/")[:3]
        session = session if session.startswith("ses-") else "ses-DEFAULT"
        entry = {
            "name": Path(image).name,
            "image_path": f"{prefix}{image}",
            "modality": modality,
            "image_info": {"manufacturer": "somebody"},
            "associated_masks": {"anonymization_mask": anonymisation, "anatomy_mask": anatomy},
        }
        sessions = {session: {"session_id": session, "session_info": None, "images": [entry]}}
        subjects = {subject: {"subject_id": subject, "sessions": sessions, "subject_info": {"age": 30.0}}}
        datasets[dataset] = {"dataset_index": dataset, "name": None, "dataset_info": {}, "subjects": subjects}
    return {"collection_index": 1, "collection_name": "Dataset001_OpenMind", "datasets": datasets}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    root = plant(tmp_path / "OpenMind", *(f"OpenMind/{image}" for image in IMAGES))
    plant(root, *(f"OpenMind/{mask}" for image in IMAGES for mask in masks(image)))
    return root


def check(root: Path, images: Path) -> None:
    """All images are found where they lie, and the masks are not."""
    answers = list(LAYOUTS["openmind"].candidates(root, None))
    scans = [answer for answer in answers if isinstance(answer, Candidate)]
    assert {scan.path: scan.modality for scan in scans} == {
        images / image: label for image, label in LABELS.items()
    }
    assert all(scan.path.is_file() for scan in scans)
    assert [scan.subject for scan in scans] == [
        "openmind/ds000001/sub-01",
        "openmind/ds003097/sub-0827",
        "openmind/ds004146/sub-0271",
    ]
    assert {scan.dataset for scan in scans} == {"openmind"}
    left = [answer for answer in answers if isinstance(answer, LeftOut)]
    assert [(answer.reason, answer.files) for answer in left] == [
        ("anonymisation mask", 3),
        ("anatomy mask", 3),
    ]


def test_the_table_of_the_release(release: Path) -> None:
    write_table(release)
    check(release, release / "OpenMind")


def test_a_collection_made_on_another_machine(release: Path) -> None:
    content = collection("/gpu/data/OpenMind/OpenMind/")
    (release / "pretrain_data.json").write_text(json.dumps(content))
    # It is read in the place of the table, because somebody made it for this.
    (release / "openneuro_metadata.csv").write_text("no,table\n")
    check(release, release / "OpenMind")


@pytest.mark.parametrize("prefix", ["$NNSSL_HERE/", "absolute"])
def test_a_collection_that_lies_apart_from_its_images(
    release: Path, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNSSL_HERE", str(release / "OpenMind"))
    prefix = f"{release / 'OpenMind'}/" if prefix == "absolute" else prefix
    apart = tmp_path / "nnssl_raw" / "Dataset001_OpenMind"
    apart.mkdir(parents=True)
    (apart / "pretrain_data.json").write_text(json.dumps(collection(prefix)))
    check(apart, release / "OpenMind")


def test_masks_that_several_images_share_count_once(release: Path) -> None:
    with (release / "openneuro_metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_path", "modality", "anat_mask_path"])
        for image in IMAGES:
            table.writerow([image, "T1w", "ds000001/shared.nii.gz"])
    left = [answer for answer in LAYOUTS["openmind"].candidates(release, None) if isinstance(answer, LeftOut)]
    assert [(answer.reason, answer.files) for answer in left] == [("anatomy mask", 1)]


def test_what_is_no_modality_label_is_kept_for_the_user_to_see(release: Path) -> None:
    (release / "openneuro_metadata.csv").write_text(f"image_path,modality\n{T1},MR (other)\n")
    (scan,) = LAYOUTS["openmind"].candidates(release, None)
    assert isinstance(scan, Candidate)
    assert (scan.modality, scan.unread) == (None, "MR (other)")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("openneuro_metadata.csv", "id,modality\n1,T1w\n", "not a table of OpenMind: no column image_path"),
        ("pretrain_data.json", '{"training": []}', "not a collection of nnssl: datasets: Field required"),
        ("openneuro_metadata.csv", "\udcff", "cannot be read: 'utf-8' codec"),
        ("pretrain_data.json", "{", "not a collection of nnssl: Invalid JSON"),
    ],
)
def test_a_list_of_another_form(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(Dae3dError, match=f"{name}: {message}"):
        list(LAYOUTS["openmind"].candidates(tmp_path, None))


def test_a_table_cut_short_loses_one_image(release: Path) -> None:
    (release / "openneuro_metadata.csv").write_text(f"modality,image_path\nT1w,{T1}\nFA\n")
    first, cut = LAYOUTS["openmind"].candidates(release, None)
    assert isinstance(first, Candidate)
    assert first.path == release / "OpenMind" / T1
    # A folder, which no reader takes.
    assert cut.path == release / "OpenMind"
