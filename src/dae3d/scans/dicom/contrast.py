"""The contrast of an MR series: by the words of its description, by how it was acquired, and by both."""

import re
import unicodedata
from dataclasses import dataclass

# A word has no letters or digits next to it: "t1" is in "T1_mprage", not in "dataset1".
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
# Projections, renderings and reports, of any modality.
DERIVED_PICTURES = (
    r"t?mips?|min ?ips?|max ?ips?|mnips?|vrt|ssd|subtra[ck]\w*|soustraction|segmentation|screen ?save"
    r"|dose (?:report|info\w*|record|summary)"
)
# Maps of perfusion, of any modality.
PERFUSION_MAPS = r"perfusion|r?cbf|r?cbv|r?mtt|r?ttp|tmax|ktrans|kep|i?auc|permeability"
# Not images of a contrast: planning, phase, maps, projections, time series, parts of Dixon.
_NO_CONTRAST = _word(
    rf"{DERIVED_PICTURES}|{PERFUSION_MAPS}|subs?|parcellation|overlay|perf|wash ?(?:in|out)"
    r"|(?:aah)?scout|loc(?:ali[sz]er)?|survey|calib(?:ration)?|shim|report|fusion|synthetic|prescan"
    r"|(?:[tb][012]|field)? ?map(?:s|ping)?|mapit|(?:sh)?molli|sasha|relaxometry|qsm|mag images|velocity|venc"
    r"|e(?:x|xp)? ?adc|exp|exponential|fa|colfa|tensor|(?:fractional|relative) aniso\w*|diffusivity"
    r"|(?:e?dti|diff|diffusion) (?:[^ ]+ )*[mar]d"
    r"|pwi|dsc|dce|p?c?asl|r2 ?(?:\*|star)"
    r"|bold|(?:rs ?)?fmri|rest|resting|task|sbref|cine|svs|csi|mrs|spectroscopy|mre|mrcp"
    r"|inv ?[12]|dir|psir|t1 ?rho|(?:fat|fett|graisse)(?! ?(?:sat|sup))|(?:pd)?ff|m?dixon(?: [^ ]+)* f"
    r"|opp|opposed phase|out ?(?:of )?phase"
)
# "Phase" can mean phase images, but also the time after a contrast agent, Dixon or encoding.
_PHASE = _word(r"pha|phases?")
_NAMED_PHASE = (
    r"arter\w*|art|ven\w*|portal|pv|late|early|mid|delay\w*|equilibrium|hepat\w*|hb|nephro\w*|cortico\w*"
    r"|excretory|parenchymal|pancreatic|uptake|dynamic|dyn|multi|single|dual|bi|tri|triple|in|breath|cardiac"
    r"|tardive|spaet|first|second|third|post|pre|plain|native|[0-9]+(?:st|nd|rd|th)?"
)
_OTHER_PHASE = _word(
    rf"(?:{_NAMED_PHASE}) (?:pha|phases?)"
    r"|(?:pha|phases?) (?:[0-9]+|over ?sampl\w*|enc\w*|os|cycl\w*|sens\w*)"
)

_AGENT = (
    r"(?:iv |i v )?(?:contrast[eo]?|kontrast\w*|gd|gado?|gadolinium|gadovist|dotarem|magnevist|prohance|ce|km"
    r"|inj|inject\w*)"
)
# "Pre" and "post" can refer to other events, and "post fossa" is a place.
_ELSE = r"(?! ?(?:op|operative|surg\w*|fossa|rt|rtx|radi\w*|chemo\w*|treat\w*|therapy|tx|biopsy|resect\w*)\b)"
# In English, German, French, Spanish, Italian, Portuguese, Dutch, Swedish, Danish, Norwegian and Polish.
_BEFORE = r"before|vor|avant|antes(?: de)?|prima(?: di)?|voor|innan|fore|for|foer|przed"
_WITHOUT = r"no|non|not|without|wo|w o|ohne|kein|sans|sin|senza|sem|utan|uden|uten|zonder|geen|bez"
_BEFORE_AGENT = _word(
    rf"pre(?: ?contrast| {_AGENT})?{_ELSE}|plain|nativ[eoa]?|unenhanced|(?:{_BEFORE}) {_AGENT}"
    rf"|(?:{_WITHOUT}) (?:{_AGENT}|c)|(?:without|wo|w o|ohne|sans)$"
    rf"|{_AGENT} (?:no|none|nein|non|neg|negative)"
)
# "Gd-", "C(-)": the sign would be lost as a separator.
_MINUS = re.compile(rf"{_START}(gd|km|ce|c|gado\w*|contrast|kontrast)(?:-|\s*\(-\))(?=[\s_)]|$)")
_AFTER_AGENT = re.compile(
    rf"{_START}(?:post(?: ?contrast)?{_ELSE}|{_AGENT}){_END}|{_START}c ?\+|\+ ?(?:c|gd){_END}"
)

# More specific labels that either source may refine a label to.
_FINER = {"t2": ("flair", "stir", "t2star"), "t2star": ("swi",)}
# In a description with several words, these are more specific than "t1" or "t2".
_TELLING = ("adc", "dwi", "swi", "angio", "unit1", "stir", "t2star")

# Letters that Unicode does not decompose.
_LETTERS = str.maketrans({"ø": "o", "æ": "ae", "ł": "l", "ß": "ss"})


@dataclass(frozen=True)
class Acquisition:
    """How a series was acquired; times in ms, None if the header does not say."""

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
    """The words of a description: lower case, no accents, one space between them; "+" and "*" stay."""
    plain = unicodedata.normalize("NFKD", text.lower().translate(_LETTERS)).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^a-z0-9+*]+", " ", _MINUS.sub(r" no \1 ", plain)).split())


def names_no_contrast(text: str) -> bool:
    """Whether `words` describe a localiser, a map, a phase image, a projection or a time series."""
    return bool(_NO_CONTRAST.search(text) or _PHASE.search(_OTHER_PHASE.sub(" ", text)))


def contrasts_in_words(text: str) -> set[str]:
    """The labels that `words` name."""
    return {label for label, pattern in _WORDS.items() if pattern.search(text)}


def contrast_agent_in_words(text: str) -> set[bool]:
    """Whether `words` say that a contrast agent was given: possibly both, or empty if unknown."""
    rest, before = _BEFORE_AGENT.subn(" ", text)
    return ({False} if before else set()) | ({True} if _AFTER_AGENT.search(rest) else set())


def contrast_of_acquisition(acquisition: Acquisition) -> str | None:
    """The label that the echo, repetition and inversion times give for certain.

    The ranges (ms) leave gaps between contrasts. A spoiled gradient echo without inversion may
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
    """The label that words and acquisition agree on; None if they contradict each other.

    Either may be missing, and either may be more specific ("t2" in words, an inversion of 2,500 ms in the
    acquisition: "flair").
    """
    spoken = _one_of(named, acquired)
    if spoken is None or acquired is None or spoken == acquired:
        return spoken if named else acquired
    if spoken in ("adc", "swi", "angio", "unit1", "dwi"):  # times do not show these
        return spoken
    if spoken in _FINER.get(acquired, ()):
        return spoken
    return acquired if acquired in _FINER.get(spoken, ()) else None


def _one_of(named: set[str], acquired: str | None) -> str | None:
    """The label meant by several: "T2 FLAIR" is flair, "T1 FLAIR" is t1, "PD+T2" depends on the echo time."""
    for label in _TELLING:
        if label in named:
            return label
    if "flair" in named and len(named) == 2:
        return next(("t1" if label == "t1" else "flair") for label in named - {"flair"})
    if len(named) > 1:
        return acquired if acquired in named else None
    return next(iter(named), None)
