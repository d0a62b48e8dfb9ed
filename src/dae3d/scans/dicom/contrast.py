"""The contrast of an MR series: by the words of its description, by how it was acquired, and by both."""

import re
from dataclasses import dataclass

# A word stands between anything but letters and digits: "t1" is in "T1_mprage", not in "dataset1".
_START, _END = r"(?<![a-z0-9])", r"(?![a-z0-9])"


def _word(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{_START}(?:{pattern}){_END}")


_WORDS = {
    "t1": _word(r"(?:3d ?)?s?t1(?:wi?| weighted)?|(?:me)?mp ?rage|bravo|f?spgr|vibe|thrive|lava"),
    "t2": _word(r"(?:3d ?)?s?t2(?:wi?| weighted)?(?! ?(?:\*|star))|haste|ssfse"),
    "t2star": _word(r"t2 ?\*w?|t2 ?star ?w?|t2s|hemo"),
    "flair": _word(r"(?:t[12])?flair|dark ?fluid|da fl"),
    "stir": _word(r"stir"),
    "pd": _word(r"pd(?:wi?)?|proton density"),
    "dwi": _word(r"dwi|diff|diffusion|e?dti|tracew?|dwibs|hardi"),
    "adc": _word(r"d?adc|apparent diffusion(?: coefficient)?|avg dc|average dc"),
    "swi": _word(r"swip?|swan|susceptibility(?: weighted)?"),
    "angio": _word(r"tof|mra|mrv|angio(?:graphy)?"),
    "unit1": _word(r"uni(?: images| den)?"),
}
# Series that are no image of a contrast: planning, phase, maps, projections, series in time, parts of Dixon.
_NO_CONTRAST = _word(
    r"(?:aah)?scout|loc(?:ali[sz]er)?|survey|calib(?:ration)?|shim|report|screen ?save|fusion|synthetic"
    r"|map|maps|[tb][012] ?map|field ?map(?:ping)?|qsm|pha images|phase images?|mag images"
    r"|mip|minip|sub|subtraction|eadc|exp|exponential|fa|colfa|tensor"
    r"|perf|perfusion|pwi|dsc|dce|p?c?asl|r?cbf|r?cbv|mtt|ttp|ktrans"
    r"|bold|(?:rs ?)?fmri|rest|resting|task|sbref|cine|svs|csi|mrs|spectroscopy|mre|mrcp"
    r"|inv ?[12]|dir|psir|t1 ?rho|fat(?! ?(?:sat|sup))|dixon(?: [^ ]+)* f"
    r"|opp|opposed phase|out ?(?:of )?phase"
)
_AGENT = r"contrast|gd|gado?|gadolinium|ce|km"
# "Pre" and "post" are also said of other events, and "post fossa" of a place.
_ELSE = r"(?! ?(?:op|operative|surg\w*|fossa|rt|rtx|radi\w*|chemo\w*|treat\w*|therapy|tx|biopsy|resect\w*)\b)"
_BEFORE_AGENT = _word(
    rf"pre(?: ?contrast| (?:{_AGENT}))?{_ELSE}|plain|native?|unenhanced"
    rf"|(?:no|non|without|wo|w o) (?:iv )?(?:{_AGENT}|c)|(?:without|wo|w o)$"
)
_AFTER_AGENT = re.compile(
    rf"{_START}(?:post(?: ?contrast)?{_ELSE}|{_AGENT}){_END}|{_START}c ?\+|\+ ?(?:c|gd){_END}"
)

# What a word or an acquisition of one kind may turn out to be, once the other tells more.
_FINER = {"t2": ("flair", "stir", "t2star"), "t2star": ("swi",)}
# Where a description has several words, these say more than "t1" or "t2".
_TELLING = ("adc", "dwi", "swi", "angio", "unit1", "stir", "t2star")


@dataclass(frozen=True)
class Acquisition:
    """How a series was acquired; times in ms, None where the header does not say."""

    spin_echo: bool
    gradient_echo: bool
    echo_planar: bool
    inversion: bool
    two_dimensional: bool
    diffusion: bool
    echo_time: float | None
    repetition_time: float | None
    inversion_time: float | None


def words(text: str) -> str:
    """The words of a description, in lower case, one space between them; "+" and "*" stay."""
    return " ".join(re.sub(r"[^a-z0-9+*]+", " ", text.lower()).split())


def names_no_contrast(text: str) -> bool:
    """Whether `words` tell of a localiser, a map, a projection or a series in time."""
    return bool(_NO_CONTRAST.search(text))


def contrasts_in_words(text: str) -> set[str]:
    """The labels that `words` name."""
    return {label for label, pattern in _WORDS.items() if pattern.search(text)}


def contrast_agent_in_words(text: str) -> set[bool]:
    """Whether `words` say that a contrast agent was given: empty where they are silent, or both."""
    rest, before = _BEFORE_AGENT.subn(" ", text)
    return ({False} if before else set()) | ({True} if _AFTER_AGENT.search(rest) else set())


def contrast_of_acquisition(acquisition: Acquisition) -> str | None:
    """The label that the echo, repetition and inversion times give for certain.

    The ranges (ms) leave out what lies between two contrasts. A spoiled gradient echo without inversion may
    be T1, angiography or a localiser, and an echo-planar one may be BOLD: no label.
    """
    if acquisition.diffusion:
        return "dwi"
    if acquisition.echo_planar or acquisition.echo_time is None:
        return None
    if acquisition.spin_echo and not acquisition.gradient_echo:
        return _contrast_of_spin_echo(acquisition, acquisition.echo_time)
    if acquisition.gradient_echo and not acquisition.spin_echo:
        return _contrast_of_gradient_echo(acquisition, acquisition.echo_time)
    return None


def _contrast_of_spin_echo(acquisition: Acquisition, echo: float) -> str | None:
    inversion, repetition = acquisition.inversion_time, acquisition.repetition_time
    if inversion:
        if inversion < 300:
            return "stir"
        if 400 <= inversion <= 1300 and echo <= 35:
            return "t1"
        return "flair" if inversion >= 1500 and echo >= 60 else None
    if acquisition.inversion or repetition is None:
        return None
    if repetition <= 1000 and echo <= 30:
        return "t1"
    if repetition >= 1800 and echo <= 40:
        return "pd"
    return "t2" if repetition >= 1800 and echo >= 70 else None


def _contrast_of_gradient_echo(acquisition: Acquisition, echo: float) -> str | None:
    inversion, repetition = acquisition.inversion_time, acquisition.repetition_time
    if inversion:
        return "t1" if 300 <= inversion <= 1300 and echo <= 10 else None
    late = acquisition.two_dimensional and repetition is not None and repetition >= 200 and 12 <= echo <= 60
    return "t2star" if late and not acquisition.inversion else None


def agreed(named: set[str], acquired: str | None) -> str | None:
    """The one label that words and acquisition agree on.

    Either may be silent, and either may say it more closely ("t2" in words, an inversion of 2,500 ms in the
    acquisition: "flair"). None where they contradict each other.
    """
    spoken = _one_of(named, acquired)
    if spoken is None or acquired is None or spoken == acquired:
        return spoken if named else acquired
    if spoken in ("adc", "swi", "angio", "unit1", "dwi"):  # no times tell these
        return spoken
    if spoken in _FINER.get(acquired, ()):
        return spoken
    return acquired if acquired in _FINER.get(spoken, ()) else None


def _one_of(named: set[str], acquired: str | None) -> str | None:
    """The label meant by several: "T2 FLAIR" is flair, "T1 FLAIR" is t1, "PD+T2" what the echo time says."""
    for label in _TELLING:
        if label in named:
            return label
    if "flair" in named and len(named) == 2:
        return next(("t1" if label == "t1" else "flair") for label in named - {"flair"})
    if len(named) > 1:
        return acquired if acquired in named else None
    return next(iter(named), None)
