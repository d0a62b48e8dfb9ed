"""Labels from headers. The published ones are of series whose makers say what they are (BIDS suffixes)."""

import tarfile
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dae3d.scans.dicom.contrast import Acquisition, agreed, contrast_of_acquisition, contrasts_in_words, words
from dae3d.scans.dicom.modality import label_by_header, read_tags
from dicom_files import evenly, write_enhanced, write_series

pytestmark = pytest.mark.slow


def header(modality: str = "MR", **elements) -> Dataset:
    dataset = Dataset()
    dataset.Modality = modality
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def mr(description: str, sequence: str, te: float, tr: float, ti: float | None = None, **elements) -> Dataset:
    times = {"EchoTime": te, "RepetitionTime": tr} | ({} if ti is None else {"InversionTime": ti})
    return header(SeriesDescription=description, ScanningSequence=sequence.split("\\"), **times, **elements)


ORIGINAL = ["ORIGINAL", "PRIMARY", "OTHER"]
M = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
VISIT = {"ProtocolName": "ADNI3 FMRIF Enhanced Pro", "ImageType": ORIGINAL}  # GE: one for all series

PUBLISHED = [
    # OpenNeuro ds004215 (GE MR750) and ds004605 (GE MR750); sidecars of dcm2niix, seconds turned into ms.
    (mr("Axial T2 2D FLAIR", "SE", 121.044, 9500, 2332.63, MRAcquisitionType="2D", **VISIT), "flair"),
    (mr("Axial T2 Star (Rx 2D FLAIR)", "GR", 20, 650, MRAcquisitionType="2D", **VISIT), "t2star"),
    (mr("PURE MP-RAGE 1mm", "RM", 3.476, 7.636, 900, ProtocolName="FMRIF - Clinical 32Ch Br"), "t1"),
    (mr("Axial rsfMRI (Eyes Open)", "EP\\GR", 16.9, 3000, MRAcquisitionType="2D", **VISIT), None),
    (
        mr(
            "Axial 3D pCASL (Eyes Open)",
            "RM",
            10.528,
            4888,
            2025,
            ImageType=["DERIVED", "PRIMARY", "ASL", "PERFUSION", "ASL", "REAL"],
        ),
        None,
    ),
    (mr("T2_1.7mm_fat_sat", "SE", 101.46, 7500, MRAcquisitionType="2D", ImageType=ORIGINAL), "t2"),
    (mr("Sagittal_Anat_MP-Rage_1_mm", "RM", 3.42, 7.664, 425), "t1"),
    (mr("edti_ssgr_cdif09_G01", "EP_RM", 79, 6751.68), "dwi"),
    # neurolabusc/dcm_qa_trt (GE), dcm_qa_canon_61 (Canon), dcm_qa_sag (Siemens).
    (mr("EPI mph acc1 interpPF", "EP\\GR", 17.8, 2000, ProtocolName="Brain Express 5 minute"), None),
    (mr("SAG_DTI_PA-COR_20d", "SE\\EP", 79, 10000, ImageType=["ORIGINAL", "PRIMARY", "GDC"]), "dwi"),
    (mr("gre_field_mapping_PMUlog", "GR", 2.46, 6.7, SequenceName="fm2d2", ImageType=M), None),
    (
        mr(
            "DWI_SagAP",
            "EP",
            64,
            4414,
            SequenceName="ep_b0",
            ImageType=["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"],
        ),
        "dwi",
    ),
    (mr("fmri_SagAP", "EP", 30, 3200, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), None),
    (mr("Product EPI Sag Ascending", "EP", 30, 1500, ImageType=["ORIGINAL", "PRIMARY", "FMRI"]), None),
    # Siemens Skyra, "dark fluid" SPACE: its words alone would be T2 (Monash Biomedical Imaging).
    (
        mr(
            "t2_spc_da-fl_sag_p2_iso_1.0", "SE\\IR", 397, 5000, 1800, SequenceName="*spcir_284ns", ImageType=M
        ),
        "flair",
    ),
    # Philips Achieva, five echoes and the map made of them.
    (mr("T2_map_5_echoes", "RM", 16, 6384.8, ImageType=["ORIGINAL", "PRIMARY", "T2", "MAP", "T2"]), None),
]


@pytest.mark.parametrize(("dataset", "label"), PUBLISHED)
def test_published_headers(dataset, label):
    assert label_by_header(dataset) == label


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        (mr("AX T1 FLAIR", "SE", 10, 2500, 900), "t1"),  # inversion for T1, whatever it is called
        (mr("", "SE\\IR", 120, 9000, 2500), "flair"),
        (mr("T2 FLAIR", "SE", 120, 9000), "flair"),  # inversion time not recorded
        (mr("t2_tirm_tra", "SE\\IR", 60, 4000, 160), "stir"),
        (mr("T1 SE", "SE", 100, 4000), None),  # words and times contradict each other
        (mr("pd+t2_tse_tra", "SE", 90, 3000), "t2"),
        (mr("pd+t2_tse_tra", "SE", 12, 3000), "pd"),
        (mr("", "GR", 4, 25, MRAcquisitionType="3D"), None),  # may be angiography as well
        (mr("TOF_3D_multi-slab", "GR", 4, 25), "angio"),
        (mr("SWI_Images", "GR", 20, 28, ImageType=["ORIGINAL", "PRIMARY", "M", "SWI"]), "swi"),
        (mr("mIP_Images(SW)", "GR", 20, 28), None),
        (mr("Pha_Images", "GR", 20, 28, ImageType=["ORIGINAL", "PRIMARY", "P"]), None),
        (
            mr("ep2d_diff_b1000_ADC", "EP", 90, 6000, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]),
            "adc",
        ),
        (mr("ep2d_diff_FA", "EP", 90, 6000, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "FA"]), None),
        (mr("ax", "SE\\EP", 90, 6000, DiffusionBValue=1000.0), "dwi"),
        (mr("T2* hemo", "GR", 20, 700, MRAcquisitionType="2D"), "t2star"),
        (mr("localizer", "GR", 4, 8), None),
        (mr("t1_vibe_dixon_tra_p2_bh_W", "GR", 1.3, 4), "t1"),  # water
        (mr("t1_vibe_dixon_tra_p2_bh_F", "GR", 1.3, 4), None),
        (mr("T1 LAVA OutPhase", "GR", 1.3, 4), None),
        (mr("T1 rho", "GR", 4, 8), None),
        (mr("patient_t1dataset1", "RM", 3, 8), None),  # no word of its own
    ],
)
def test_mr_contrasts(dataset, label):
    assert label_by_header(dataset) == label


@pytest.mark.parametrize(
    ("description", "agent", "label"),
    [
        ("t1_mprage_sag", None, "t1"),
        ("t1_mprage_sag", "", "t1"),
        ("t1_mprage_sag", "NO", "t1"),
        ("t1_mprage_sag", "Gadovist", "t1ce"),
        ("t1_mprage_sag_POST", None, "t1ce"),
        ("AX T1+C", None, "t1ce"),
        ("AX T1 C+", None, "t1ce"),
        ("T1W pre", "Gadovist", "t1"),  # registered for the visit, not yet given
        ("T1 w/o contrast", "Gadovist", "t1"),
        ("T1 without contrast", None, "t1"),
        ("T1 posterior fossa", None, "t1"),
        ("T1 POST FOSSA", None, "t1"),  # a place, and events other than the agent: silent
        ("T1 MPRAGE post-RT", None, "t1"),
        ("t1 post op", "Gadovist", "t1ce"),
        ("T1 PRE OP", "Gadovist", "t1ce"),
        ("T1 PRE OP POST GD", None, "t1ce"),
        ("T1 w/o", "Gadovist", "t1"),
        ("T1 PRE + POST GD", None, None),
        ("T1", "NO CONTRAST", "t1"),
        ("T1", "N/A", "t1"),
        ("T1", "NON", "t1"),
        ("T1", "-", "t1"),
        ("T1", "No contrast given", "t1"),
        ("T1", "0.1 mmol/kg Gadovist", "t1ce"),
        ("T1", "NON-IONIC", "t1ce"),
    ],
)
def test_contrast_agent(description, agent, label):
    dataset = header(
        SeriesDescription=description, ScanningSequence=["GR", "IR"], EchoTime=3, InversionTime=900
    )
    if agent is not None:
        dataset.ContrastBolusAgent = agent
    assert label_by_header(dataset) == label


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        (header("CT", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]), "ct"),
        (header("CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), None),
        (header("CT", ContrastBolusAgent="Omnipaque", SeriesDescription="Thorax +C"), "ct"),
        (header("CT", ManufacturerModelName="On-Board Imager", Manufacturer="Varian"), "cbct"),
        (header("CT", SeriesDescription="MIP coronal"), None),
        (header("CT", SeriesDescription="tMIP"), None),
        (header("CT", SeriesDescription="topo"), None),
        (header("CT", SeriesDescription="CT perfusion"), None),
        (header("CT", SeriesDescription="Dose Report"), None),
        (header("CT", SeriesDescription="Low Dose Lung"), "ct"),
        (header("CT", SeriesDescription="AC CT low-dose"), "ct"),
        (header("CT", RescaleType="MGML", SeriesDescription="Iodine"), None),
        (header("XA", SOPClassUID="1.2.840.10008.5.1.4.1.1.13.1.1"), "cbct"),
        (header("PT", CorrectedImage=["NORM", "DTIM", "ATTN", "SCAT"]), "pet"),
        (header("PT", CorrectedImage=["NORM", "DTIM"]), None),
        (header("PT", SeriesDescription="WB NAC"), None),
        (header("US"), "us"),
        (header("SR"), None),
        (Dataset(), None),
    ],
)
def test_other_modalities(dataset, label):
    assert label_by_header(dataset) == label


def test_enhanced_mr_is_read_out_of_its_functional_groups():
    frame, echo, timing, modifier = Dataset(), Dataset(), Dataset(), Dataset()
    frame.AcquisitionContrast = "UNKNOWN"
    echo.EffectiveEchoTime = 120.0
    timing.RepetitionTime = 9000.0
    modifier.InversionRecovery, modifier.InversionTimes = "YES", 2500.0
    shared, first = Dataset(), Dataset()
    shared.MRTimingAndRelatedParametersSequence = Sequence([timing])
    shared.MRModifierSequence = Sequence([modifier])
    first.MREchoSequence, first.MRImageFrameTypeSequence = Sequence([echo]), Sequence([frame])
    dataset = header(EchoPulseSequence="SPIN", ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([first])
    assert label_by_header(dataset) == "flair"
    frame.AcquisitionContrast = "T1"  # against the times
    assert label_by_header(dataset) is None


def write_as_text(dataset: Dataset, keyword: str, text: str) -> None:
    """Give an element characters that make no number."""
    dataset.add_new(keyword, "LO", text)
    dataset[keyword].VR = "DS"


@pytest.mark.parametrize("keyword", ["EchoTime", "RepetitionTime", "InversionTime", "DiffusionBValue"])
def test_a_malformed_number_is_as_good_as_none(tmp_path, keyword):
    times = {"EchoTime": 120, "RepetitionTime": 9000, "InversionTime": 2500}
    (path,) = write_series(tmp_path, evenly(1), "MR", SeriesDescription="T2 FLAIR", **times)
    dataset = pydicom.dcmread(path)
    write_as_text(dataset, keyword, "1,2 ms")
    dataset.save_as(path)
    assert label_by_header(pydicom.dcmread(path)) == "flair"


def test_a_malformed_number_among_functional_groups(tmp_path):
    path = write_enhanced(tmp_path / "enhanced.dcm", evenly(3), SeriesDescription="t2 tse", EchoTime=None)
    dataset, echo = pydicom.dcmread(path), Dataset()
    write_as_text(echo, "EffectiveEchoTime", "n/a")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.MREchoSequence = Sequence([echo])
    write_as_text(shared, "FlipAngle", "n/a")
    dataset.save_as(path)
    assert label_by_header(pydicom.dcmread(path)) == "t2"


REAL = {
    "dicom/ct_head_ge_variable_tilt": "ct",
    "dicom/mr_t1_datalad": "t1",  # "anat-T1w", no times
    "awkward/dicom/failing_gantrytilting": "ct",
    "awkward/dicom/failing_sliceincrement": "ct",
    "awkward/dicom/failing_sliceorientation": "t2",  # spin echo, TE 90, TR 3000
    "awkward/dicom/generic_compressed_j2k": "flair",  # inversion 2200, TE 394
    "awkward/dicom/philips_enhanced_anatomical": "t1",  # Acquisition Contrast
    "awkward/dicom/siemens_multiframe_anatomical": None,  # a gradient echo without a description
}


@pytest.mark.parametrize(("name", "label"), REAL.items())
def test_real_headers(shared_data: Path, tmp_path: Path, name, label):
    with tarfile.open(shared_data / f"{name}.tar.gz") as archive:
        member = next(m for m in archive.getmembers() if m.isfile())
        archive.extract(member, tmp_path, filter="data")
    path = tmp_path / member.name
    assert label_by_header(pydicom.dcmread(path, stop_before_pixels=True)) == label
    # The keywords given are all that it needs.
    assert label_by_header(pydicom.dcmread(path, specific_tags=list(read_tags))) == label


@given(st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True), st.sampled_from(["t1", "flair", "adc", "swi", "pd"]))
def test_a_label_inside_another_word_does_not_count(other, label):
    text = words(f"{other}x{label}x{other}")
    assert label not in contrasts_in_words(text)


TIMES = st.none() | st.floats(0, 20_000)


@given(st.builds(Acquisition, *[st.booleans()] * 6, TIMES, TIMES, TIMES))
def test_times_never_contradict_themselves(acquisition):
    label = contrast_of_acquisition(acquisition)
    assert agreed(set(), label) == label
    if label is not None:
        assert agreed({label}, label) == label


SPIN_ECHO = ("SE", 10, 500)  # with which words decide between t1 and t1ce alone


@pytest.mark.parametrize(
    ("description", "label"),
    [
        *(
            (text, "t1")
            for text in ("t1_tse_sag_ohne_KM", "T1 vor KM", "AX T1 sans gado", "SAG T1 AVANT GADO")
        ),
        *((text, "t1") for text in ("AX T1 sin GD", "T1 utan gd", "T1 zonder contrast", "T1 before Gd")),
        *(
            (text, "t1")
            for text in ("T1 Gd-", "T1_C-", "T1 KM (-)", "SAG T1 avant injection", "T1 senza contrasto")
        ),
        *((text, "t1") for text in ("T1 ohne i.v. KM", "T1 sin contraste", "T1 nativ", "T1 før kontrast")),
        *((text, "t1ce") for text in ("T1 nach KM", "T1 après gado", "T1 con contraste", "T1 med kontrast")),
        *(
            (text, "t1ce")
            for text in ("T1-GD-tra", "T1 injecté", "t1_tse_KM_dark", "T1 C+", "T1 post Gd-DTPA")
        ),
        ("T1 sin Gd / con Gd", None),
        # German "vor OP" and English "before surgery" tell of no agent.
        ("T1 vor OP", "t1"),
    ],
)
def test_agents_in_other_languages(description, label):
    assert label_by_header(mr(description, *SPIN_ECHO)) == label


@pytest.mark.parametrize(
    ("agent", "label"),
    [
        ("ohne", "t1"),
        ("keine", "t1"),
        ("sans", "t1"),
        ("sin contraste", "t1"),
        ("Dotarem 10 ml", "t1ce"),
        ("Sinerem", "t1ce"),
    ],
)
def test_agents_of_the_header_in_other_languages(agent, label):
    assert label_by_header(mr("T1 tra", *SPIN_ECHO, ContrastBolusAgent=agent)) == label


@pytest.mark.parametrize(
    "description",
    [
        *("Fractional Aniso. DTI", "DTI mean diffusivity", "DWI exADC", "DTI 64 dir MD", "ep2d_diff_eADC"),
        *("FILT_PHA: Ax SWAN", "SWI phase", "Pha Images SWI", "T2* R2star"),
        *("T1_SUBTRACTED", "T1 Subtraktion", "T1 soustraction", "T1 mDixon F", "T1 vibe Fett", "PDFF T2*"),
        *("T2_mapping", "T1 Mapping MOLLI", "ShMOLLI T1", "T2 wash-in", "T1 COR MIPs", "T1 rCBV"),
    ],
)
def test_maps_phases_and_subtractions_are_no_images_of_a_contrast(description):
    assert label_by_header(mr(description, "SE", 10, 500)) is None
    assert label_by_header(mr(description, "EP", 80, 5000)) is None


@pytest.mark.parametrize(
    ("description", "label"),
    [
        *(
            (f"T1 vibe fs {phase} phase", "t1")
            for phase in ("arterial", "portal venous", "late", "in", "3rd")
        ),
        ("T1 tse phase oversampling", "t1"),
        ("T1 dynamic phase 2", "t1"),
        ("T1 fat sat", "t1"),
        ("T1 Fett sat", "t1"),
        ("T1 tra submandibular", "t1"),
    ],
)
def test_what_sounds_like_one_and_is_none(description, label):
    assert label_by_header(mr(description, *SPIN_ECHO)) == label


@pytest.mark.parametrize(
    ("description", "image_type", "label"),
    [
        *(
            (text, ["DERIVED", "PRIMARY", "AXIAL"], None)
            for text in ("Z Effective", "Electron Density", "Rho Z")
        ),
        *(
            (text, ["DERIVED", "PRIMARY", "AXIAL"], None)
            for text in ("rCBF", "COR MIPS 10mm", "Effective Z", "tMIP")
        ),
        *(
            ("ME", ["DERIVED", "PRIMARY", "AXIAL", value], None)
            for value in ("EFF_ATOMIC_NUM", "MAT_SPECIFIC")
        ),
        *(
            ("ME", ["DERIVED", "PRIMARY", "AXIAL", value], None)
            for value in ("ELECTRON_DENSITY", "MAT_FRACTIONAL")
        ),
        # In HU by the standard.
        *(("ME", ["DERIVED", "PRIMARY", "AXIAL", value], "ct") for value in ("VMI", "MAT_REMOVED")),
        ("ABD WASHOUT 15 MIN", ["ORIGINAL", "PRIMARY", "AXIAL"], "ct"),
        ("HEAD SUB-MM", ["ORIGINAL", "PRIMARY", "AXIAL"], "ct"),
        ("R/O PERF APPENDIX", ["ORIGINAL", "PRIMARY", "AXIAL"], "ct"),
    ],
)
def test_ct_that_is_and_is_not_in_hu(description, image_type, label):
    assert label_by_header(header("CT", SeriesDescription=description, ImageType=image_type)) == label


def test_a_projection_of_pet_is_no_pet():
    given = {"CorrectedImage": ["ATTN", "DECY"]}
    assert label_by_header(header("PT", SeriesDescription="WB AC", **given)) == "pet"
    assert label_by_header(header("PT", SeriesDescription="WB AC MIP", **given)) is None
    assert (
        label_by_header(
            header("PT", SeriesDescription="WB", ImageType=["DERIVED", "PRIMARY", "MIP"], **given)
        )
        is None
    )
