"""Which names are of one patient, in the trees of public data sets and in others.

Every tree has forty patients or so; the patient of a file is what `patient` finds in its path, by hand.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

import dae3d
from dae3d.scans.grouping import Grouping, group
from dae3d.scans.subjects import subject_in_path
from indexed import write_scan

Tree = Callable[[int], list[str]]


def surname(n: int) -> str:
    return f"m{'aeiou'[n % 5]}{'bdfgklnr'[n // 5 % 8]}a"


# Files of patient n, and what in a path is the patient.
TREES: dict[str, tuple[Tree, str]] = {
    # Several sequences, of which some are unknown words.
    "PI-CAI": (
        lambda n: [f"{10000 + n}/{10000 + n}_{1000000 + n}_{s}.mha" for s in ("t2w", "hbv", "cor")],
        r"(\d{5})/",
    ),
    "HECKTOR": (lambda n: [f"CHUM-{n:03d}/CHUM-{n:03d}__{s}.nii.gz" for s in ("CT", "PT")], r"M-(\d+)/"),
    "HaN-Seg": (lambda n: [f"case_{n:02d}/case_{n:02d}_IMG_{s}.nrrd" for s in ("CT", "MR_T1")], r"e_(\d+)/"),
    "IXI": (
        lambda n: [f"IXI-{s}/IXI{n:03d}-Guys-{800 + n:04d}-{s}.nii.gz" for s in ("T1", "PD", "MRA")],
        r"(IXI\d{3})",
    ),
    "UCSF-PDGM": (
        lambda n: [f"UCSF-PDGM-{n:04d}_nifti/UCSF-PDGM-{n:04d}_{s}.nii.gz" for s in ("T1", "T1c_bias", "SW")],
        r"PDGM-(\d+)_n",
    ),
    "WMH": (
        lambda n: [
            f"{site}/{first + n}/pre/{s}.nii.gz"
            for site, first in (("Utrecht", 0), ("Singapore", 50), ("Amsterdam/GE3T", 100))
            for s in ("FLAIR", "3DT1")
        ],
        r"/(\d+)/pre",
    ),
    "no digits": (lambda n: [f"{surname(n)}/{s}.nii.gz" for s in ("perfusion", "brain")], r"(\w+)/"),
    "no folders": (lambda n: [f"{surname(n)}_{s}.nii.gz" for s in ("late", "base")], r"(\w+)_"),
    # Several visits.
    "autoPET": (
        lambda n: [
            f"PETCT_{n:010x}/0{v}-01-2004-NA-PET-CT/{s}.nii.gz" for v in (1, 2) for s in ("CTres", "SUV")
        ],
        r"(PETCT_\w+)/",
    ),
    "autoPET III": (
        lambda n: (
            [f"imagesTr/fdg_{n * 7919:010x}_0{v}-23-2003_000{c}.nii.gz" for v in (1, 2) for c in (0, 1)]
            + [f"imagesTr/psma_{n * 7907:012x}_2018-05-0{v}_0000.nii.gz" for v in (1, 2)]
        ),
        r"((?:fdg|psma)_[0-9a-f]+)_",
    ),
    "LUMIERE": (
        lambda n: [f"Patient-{n:03d}/week-{w:03d}/{s}.nii.gz" for w in (0, 12) for s in ("CT1", "T2")],
        r"(Patient-\d+)/",
    ),
    "BraTS-GLI": (
        lambda n: [
            f"BraTS-GLI-{n:05d}-{v}/BraTS-GLI-{n:05d}-{v}-{s}.nii.gz"
            for v in (100, 101)
            for s in ("t1n", "t2f")
        ],
        r"GLI-(\d{5})",
    ),
    "HNTS-MRG": (lambda n: [f"{n}/{v}/{n}_{v}_T2.nii.gz" for v in ("preRT", "midRT")], r"(\d+)/"),
    "MU-Glioma-Post": (
        lambda n: [
            f"PatientID_{n:04d}/Timepoint_{v}/PatientID_{n:04d}_Timepoint_{v}_brain_t1c.nii.gz"
            for v in range(1, 2 + n % 4)
        ],
        r"D_(\d+)/",
    ),
    "OASIS-1": (
        lambda n: [f"OAS1_{n:04d}_MR{v}/OAS1_{n:04d}_MR{v}_mpr-{k}_anon.hdr" for v in (1, 2) for k in (1, 2)],
        r"OAS1_(\d+)",
    ),
    "ISBI 2015": (
        lambda n: [
            f"training{n:02d}/training{n:02d}_{v:02d}_{s}_pp.nii" for v in (1, 2, 3, 4) for s in ("pd", "t2")
        ],
        r"(training\d+)/",
    ),
    "DIR-Lab": (lambda n: [f"case{n}/case{n}_T{phase}0.nii.gz" for phase in range(10)], r"(case\d+)/"),
    "CT-RATE": (
        lambda n: [f"train/train_{n}/train_{n}{a}/train_{n}_{a}_{k}.nii.gz" for a in "ab" for k in (1, 2)],
        r"train_(\d+)/",
    ),
    "a CBCT a day": (lambda n: [f"P{n:02d}/day_{d:02d}/cbct.nii.gz" for d in range(35)], r"P(\d+)"),
    "visits above patients": (lambda n: [f"visit{v}/P{n:02d}_T1.nii.gz" for v in (1, 2)], r"P(\d\d)"),
    "years above patients": (lambda n: [f"{2010 + v}/P{n:02d}/ct.nii.gz" for v in (1, 2)], r"P(\d\d)"),
    "dates after words": (lambda n: [f"{surname(n)}_2004010{v}_T1.nii.gz" for v in (1, 2)], r"(\w+?)_2"),
    "numbers after words": (lambda n: [f"{surname(n)}_0{v}.nii.gz" for v in (1, 2)], r"(\w+)_"),
    "visits in the number": (
        lambda n: [f"imagesTr/genius_{n:02d}{v:02d}.nii.gz" for v in range(3)],
        r"genius_(\d\d)",
    ),
    # One scan of each patient: nobody is joined to anybody.
    "MSD liver": (lambda n: [f"imagesTr/liver_{n}.nii.gz"], r"(liver_\d+)"),
    "MSD hippocampus": (lambda n: [f"imagesTr/hippocampus_{3 * n:03d}.nii.gz"], r"(s_\d+)"),
    "BraTS 2021": (lambda n: [f"BraTS2021_{n:05d}/BraTS2021_{n:05d}_t1.nii.gz"], r"_(\d+)/"),
    "BraTS 2018": (
        lambda n: [
            f"HGG/Brats18_{centre}_1/Brats18_{centre}_1_t1.nii.gz"
            for centre in (f"CBICA_{surname(n).upper()}", f"2013_{n}", f"TCIA{n % 8 + 1:02d}_{100 + n}")
        ],
        r"/Brats18_(\w+)_1/",
    ),
    "LUNA16": (lambda n: [f"subset{n % 10}/1.3.6.1.4.1.14519.5.2.1.{n * 829322}.mhd"], r"(\d+)\.mhd"),
    "TotalSegmentator": (lambda n: [f"s{n:04d}/ct.nii.gz"], r"(s\d+)"),
    "KiTS": (lambda n: [f"case_{n:05d}/imaging.nii.gz"], r"(case_\d+)"),
    "Calgary-Campinas": (lambda n: [f"CC{n:04d}_philips_15_{20 + n}_M.nii.gz"], r"(CC\d+)"),
    "MosMed": (lambda n: [f"CT-{k}/study_{50 * k + n:04d}.nii.gz" for k in range(5)], r"(study_\d+)"),
    "MICCAI 2016 MS": (
        lambda n: [f"Center_{c:02d}/Patient_{n:02d}/{s}.nii.gz" for c in (1, 7, 8) for s in ("T1", "GADO")],
        r"(Center_\d+/Patient_\d+)/",
    ),
    "TCGA": (
        lambda n: [
            f"TCGA-{s:02d}-{n:04d}/TCGA-{s:02d}-{n:04d}_1999.01.0{v}_t1.nii.gz"
            for s in (2, 6)
            for v in (1, 2)
        ],
        r"(TCGA-\d\d-\d+)/",
    ),
    "hospitals": (lambda n: [f"site{s}/case{n}.nii.gz" for s in range(5)], r"(site\d/case\d+)\."),
    "hospitals in names": (
        lambda n: [f"{s:02d}/{s:02d}_{n:04d}_t1.nii.gz" for s in range(5)],
        r"(\d\d_\d{4})",
    ),
    "one after the other": (lambda n: [f"{n:03d}.nii.gz"], r"(\d+)\."),
    "only dates": (lambda n: [f"scan_2004{1 + n % 12:02d}{1 + n // 12:02d}.nii.gz"], r"scan_(\d+)"),
    "wards": (lambda n: [f"ward{n % 5}_{surname(n)}.nii.gz"], r"(ward\w+)\."),
    "cases and controls": (lambda n: [f"{('cases', 'controls')[n % 2]}/{surname(n)}.nii.gz"], r"/(\w+)\."),
}


def names_of(files: list[str], modality: Callable[[str], str] = lambda file: "t1") -> dict[str, set[str]]:
    """The modalities of each name that files have on their own, in a folder `/data/set`."""
    names: dict[str, set[str]] = defaultdict(set)
    for file in files:
        names[name_of(file)].add(modality(file))
    return names


def name_of(file: str) -> str:
    return subject_in_path(Path("/data/set", file), {Path("/data/set")})


def subject(told: Grouping, file: str) -> str:
    return told.subject_of.get(name_of(file), name_of(file))


@pytest.mark.parametrize("tree", TREES)
def test_patients_in_trees(tree: str) -> None:
    make, patient = TREES[tree]
    files = [file for n in range(1, 41) for file in make(n)]
    told = group(names_of(files))
    by_patient, by_subject = defaultdict(set), defaultdict(set)
    for file in files:
        by_patient[re.search(patient, file)[1]].add(file)
        by_subject[subject(told, file)].add(file)
    assert sorted(map(sorted, by_subject.values())) == sorted(map(sorted, by_patient.values()))


def test_a_subject_is_called_by_its_shortest_name_and_a_lone_name_stays() -> None:
    told = group(names_of(["P1/P1_v2_x.nii", "P1/P1_v1_x.nii", "P1/P1_v1_longer.nii", "P2/P2_v1_x.nii"]))
    assert set(told.subject_of.values()) == {"set/P1/P1_v1_x"}
    assert set(told.subject_of) == {"set/P1/P1_v2_x", "set/P1/P1_v1_longer"}


def test_the_order_of_names_does_not_matter() -> None:
    files = [file for make, _ in TREES.values() for n in range(1, 9) for file in make(n)]
    names = names_of(files)
    backwards = dict(reversed(names.items()))
    assert group(names).subject_of == group(backwards).subject_of


def test_folders_each_of_a_modality_of_its_own_hold_the_same_patients() -> None:
    files = [f"{folder}/P{n:03d}.nii.gz" for folder in ("hbv", "cor", "t1crop") for n in range(20)]
    told = group(names_of(files, lambda file: file.partition("/")[0]))
    assert len({subject(told, file) for file in files}) == 20
    assert not told.doubts
    # The same of one modality: two sets of patients, or two versions of one; that is said.
    told = group(names_of(files))
    assert len({subject(told, file) for file in files}) == 60
    assert any("the same names in several folders" in doubt for doubt in told.doubts)


def test_numbers_that_may_be_hospitals_are_said() -> None:
    told = group(names_of([f"{site:02d}_{n:04d}.nii.gz" for site in range(3) for n in range(40)]))
    assert not told.subject_of
    assert told.doubts[0].endswith("different subjects: set/00_0000 and set/00_0039")


def test_several_folders_given_share_nobody() -> None:
    roots = {Path("/data/a"), Path("/data/b")}
    names = {
        subject_in_path(root / f"P{n:02d}/visit{v}.nii.gz", roots): {"ct"}
        for root in roots
        for n in range(10)
        for v in (1, 2)
    }
    told = group(names)
    assert len({told.subject_of.get(name, name) for name in names}) == 20


def test_folders_given_one_a_patient() -> None:
    roots = {Path(f"/data/Patient-{n:03d}") for n in range(10)}
    names = {
        subject_in_path(root / f"week-0{week}/T1.nii.gz", roots): {"t1"} for root in roots for week in (0, 12)
    }
    told = group(names)
    assert len({told.subject_of.get(name, name) for name in names}) == 10


def test_index_holds_patients_out_whole_and_says_how_they_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Visits in the number, of nnU-Net's channels two each."""
    for patient in range(12):
        for visit in range(3):
            for channel in range(2):
                write_scan(
                    tmp_path / "d" / "imagesTr" / f"g_{patient:02d}{visit:02d}_{channel:04d}.nii.gz", (8,) * 3
                )
    rules = ["*_0000.nii.gz=t2", "*_0001.nii.gz=adc"]
    manifest = dae3d.index(folders=[tmp_path / "d"], out=tmp_path / "m.jsonl", rule=rules, val_fraction=0.3)
    sides = defaultdict(set)
    for scan in manifest.scans:
        sides[scan.path.name[:4]].add((scan.split, scan.subject))
    assert len(sides) == 12
    assert all(len(found) == 1 for found in sides.values())
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "12 subjects of 72 scans are known by names alone; if they are wrong, use --subject or --subjects"
        in said
    )
    assert "similar names are taken as one subject, 12 times: d/imagesTr/g_0000 and d/imagesTr/g_0001" in said


def test_a_subject_of_most_scans_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        write_scan(tmp_path / "d" / f"day_{number:02d}" / "P1.nii.gz", (8,) * 3)
    dae3d.index(folders=[tmp_path / "d"], out=tmp_path / "m.jsonl", modality="ct")
    said = " ".join(capsys.readouterr().out.split())
    assert "one subject has 12 of the 12 scans: d/day_00/P1; if they are of several subjects" in said
    assert "nothing held out for ct" in said
