"""The file of a study: which initial weights are compared, on what, and how each fine-tuning runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dae3d.errors import Dae3dError, SettingsError
from dae3d.evaluation.segmentation_metrics import METRICS
from dae3d.inference.pseudo_settings import PseudoLabelSettings
from dae3d.models.backbones import NetworkSettings
from dae3d.settings import Settings, read_config, resolve
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings

_FROM_STUDY = {
    "finetune": ("data", "out", "init", "resume", "seed", "max_steps", "lr", "train_cases", "fold", "store"),
    "pretrain": ("out", "resume", "seed", "leave_out"),
    "pseudo_label": ("scans", "weights", "task", "fold", "out", "data"),
}
_PATHS = ("data", "init", "probe_task")  # of recipes
_LOG_EVERY = FinetuneSettings.model_fields["log_every"].default
_WARM_UP = 10  # the part of the steps, unless `finetune` says otherwise


def numbers(value: Any) -> Any:
    """10-17 as [10, ..., 17], "0,1,5" as [0, 1, 5], one number as a list."""
    if isinstance(value, int):
        return [value]
    if not isinstance(value, str):
        return value
    found: list[int] = []
    for part in value.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise ValueError("must be numbers, as [0, 1, 5], 10-17 or 0,1,5")
        found += range(int(first), int(last or first) + 1)
    return found


def _different(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) < len(values):
        raise ValueError("must not contain a value twice")
    return values


_Seed = Annotated[int, Field(ge=0, lt=2**31)]
_Count = Annotated[int, Field(ge=1)]
_Rate = Annotated[float, Field(gt=0)]
_Seeds = Annotated[list[_Seed], BeforeValidator(numbers), AfterValidator(_different)]
_Counts = Annotated[list[_Count], BeforeValidator(numbers), AfterValidator(_different), Field(min_length=1)]
_Rates = Annotated[
    list[_Rate],
    BeforeValidator(lambda value: [value] if isinstance(value, (int, float, str)) else value),
    AfterValidator(_different),
    Field(min_length=1),
]


def _metric(name: str) -> str:
    # Others are infinite, or not defined, for classes that are missed.
    highest = [each for each, metric in METRICS.items() if metric.best == "highest" and not metric.volume]
    if name not in highest:
        raise ValueError(f"must be one of {', '.join(highest)}")
    return name


def _own_name(names: dict[str, Any]) -> dict[str, Any]:
    for name in names:
        if not name or not all(sign.isalnum() or sign in "._" for sign in name) or name.startswith("."):
            raise ValueError(f"names are letters, digits, _ and ., not {name!r}")
    return names


class Arm(Settings):
    """Initial weights; without `init`, random ones.

    Attributes:
        init: name of a recipe of the study, or the path of a run or a weights file.
        transfer: half to load, as for `finetune`; "none": only the sizes of the network.
        matched: random weights instead, with the mean and deviation of each tensor of `init`.
        lr: learning rate; None: chosen among those of the study.
        pseudo_label: settings of `pseudo-label`. The network labels the training cases that the subset leaves
            out, and another one is fine-tuned, from the same initial weights, on these too.
        finetune: settings of `finetune` for this arm.
    """

    init: str | None = None
    transfer: Literal["both", "encoder", "decoder", "none"] | None = None
    matched: bool = False
    lr: _Rate | None = None
    pseudo_label: dict[str, Any] | None = None
    finetune: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _begins(self) -> Self:
        if self.init is None and (self.transfer or self.matched):
            raise ValueError("transfer, matched: need init")
        return self

    @property
    def takes_weights(self) -> bool:
        """Whether it begins with weights of `init`, not only with the sizes or other random ones."""
        return self.init is not None and self.transfer != "none" and not self.matched


class Primary(Settings):
    """The comparison that the study is made for, named before it runs."""

    arm: str
    against: str
    train_cases: int
    max_steps: int


class Study(Settings):
    """A study.

    Attributes:
        task: list of labelled cases; its validation cases (or those of `fold`) are the test cases. The last
            weights are tested, so that no test case selects anything.
        fold: that is held out, if the list has folds.
        metric: of `dae3d evaluate`, as a mean over the classes.
        train_cases: numbers of labelled cases.
        subsets: seeds, each of which draws the labelled cases, the crops and the random weights of all arms.
        max_steps: lengths of fine-tuning.
        lr: learning rates. Of several, each arm has its best.
        lr_subsets: seeds with which they are chosen.
        finetune: settings of all fine-tunings, with `config` for those of a file.
        pretrain: settings of recipes that the study trains itself, by name.
        pretrain_seeds: runs of each recipe, which the subsets use in turn.
        arms: initial weights by name; the first is what the others are compared with.
        primary: the comparison that the study is made for.
    """

    task: Path
    fold: int | None = None
    metric: Annotated[str, AfterValidator(_metric)] = "dice"
    train_cases: _Counts
    subsets: Annotated[_Seeds, Field(min_length=2)]
    max_steps: _Counts
    lr: _Rates
    lr_subsets: _Seeds = Field([])
    finetune: dict[str, Any] = Field({})
    pretrain: Annotated[dict[str, dict[str, Any]], AfterValidator(_own_name)] = Field({})
    pretrain_seeds: _Count = 1
    arms: Annotated[dict[str, Arm], AfterValidator(_own_name), Field(min_length=2)]
    primary: Primary

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        primary = self.primary
        for name in (primary.arm, primary.against):
            if name not in self.arms:
                raise ValueError(f"primary: there is no arm {name!r}; there are: {', '.join(self.arms)}")
        for name in ("train_cases", "max_steps"):
            if getattr(primary, name) not in getattr(self, name):
                raise ValueError(f"primary: {name} {getattr(primary, name)} is not one of the study's")
        both = set(self.subsets) & set(self.lr_subsets)
        if both:
            raise ValueError(
                f"lr_subsets: {min(both)} is also one of subsets; rates are chosen on other subsets than "
                "those that are compared"
            )
        if self.chooses and not self.lr_subsets:
            raise ValueError("lr_subsets: needed to choose among several learning rates")
        return self

    @property
    def chooses(self) -> list[str]:
        """The arms whose learning rate is chosen."""
        return [name for name, arm in self.arms.items() if arm.lr is None] if len(self.lr) > 1 else []

    def recipe_runs(self) -> list[tuple[str, int]]:
        """The runs of the recipes that arms need: name and seed."""
        used = {arm.init for arm in self.arms.values()}
        return [(name, seed) for name in self.pretrain if name in used for seed in range(self.pretrain_seeds)]


def read_study(path: Path) -> Study:
    """Read a study; paths in it are relative to its folder.

    Raises:
        SettingsError: naming each invalid field.
    """
    try:
        study = resolve(Study, {"config": path})
    except SettingsError as error:
        raise SettingsError(f"{path}:\n{error}") from None
    assert isinstance(study, Study)
    home = path.absolute().parent
    arms = {}
    for name, arm in study.arms.items():
        init = arm.init
        if init is not None and init not in study.pretrain and not init.startswith("hf://"):
            init = str(home / init)
            if not Path(init).exists():
                recipes = f", nor a recipe ({', '.join(study.pretrain)})" if study.pretrain else ""
                raise SettingsError(f"{path}: arms.{name}.init: {init} does not exist{recipes}")
        arms[name] = arm.model_copy(update={"init": init})
    pretrain = {
        name: {key: _at(home, value) if key in _PATHS else value for key, value in own.items()}
        for name, own in study.pretrain.items()
    }
    return study.model_copy(update={"task": home / study.task, "arms": arms, "pretrain": pretrain})


def _at(home: Path, value: Any) -> Any:
    return str(home / value) if isinstance(value, str) and not value.startswith("hf://") else value


def recipe_settings(study: Study, name: str) -> dict[str, Any]:
    """The settings of a recipe, without those that the study gives.

    Raises:
        SettingsError: naming the recipe and each invalid field.
    """
    given = _merged(study.pretrain[name], "pretrain", f"pretrain.{name}")
    _checked(PretrainSettings, {**given, "out": Path("out")}, f"pretrain.{name}")
    return given


def arm_settings(study: Study, name: str, max_steps: int) -> dict[str, Any]:
    """The settings of an arm's fine-tunings of a length, without those of a cell.

    Raises:
        SettingsError: naming the arm and each invalid field.
    """
    arm = study.arms[name]
    shared = _merged(study.finetune, "finetune", "finetune")
    own = _merged(arm.finetune, "finetune", f"arms.{name}.finetune")
    chosen = {key for part in (study.finetune, arm.finetune) for key in part}
    follow = {
        "warmup_steps": max(1, max_steps // _WARM_UP),
        "val_every": 2 * max_steps,  # only at the end: the test follows
        "save_every": max_steps,
        "log_every": math.gcd(max_steps, int(shared.get("log_every", _LOG_EVERY))),
    }
    given = {**shared, **{key: value for key, value in follow.items() if key not in chosen}, **own}
    if arm.init is not None and arm.transfer is not None:
        given["transfer"] = arm.transfer
    cell = {"data": study.task, "out": Path("out"), "max_steps": max_steps, "transfer": None}
    _checked(FinetuneSettings, {**shared, **cell}, "finetune")
    _checked(FinetuneSettings, {**given, **cell}, f"arms.{name}")
    if arm.pseudo_label is not None:
        place = f"arms.{name}.pseudo_label"
        _refuse_of_study(arm.pseudo_label, "pseudo_label", place)
        made = {"weights": ["run"], "task": study.task, "out": Path("out")}
        _checked(PseudoLabelSettings, {**arm.pseudo_label, **made}, place)
    return given


def _merged(given: dict[str, Any], kind: str, place: str) -> dict[str, Any]:
    """Settings and those of the file that they name."""
    _refuse_of_study(given, kind, place)
    values = {key: value for key, value in given.items() if key != "config"}
    if "config" not in given:
        return values
    try:
        config = read_config(given["config"], kind)
    except SettingsError as error:
        raise SettingsError(f"{place}.{error}") from None
    config = {key: value for key, value in config.items() if key not in _FROM_STUDY[kind]}
    # A config may have settings of another backbone than the one that is chosen here.
    return NetworkSettings.without_others({**config, **values}, set(values))


def _refuse_of_study(given: dict[str, Any], kind: str, place: str) -> None:
    theirs = [name for name in given if name in _FROM_STUDY[kind]]
    if theirs:
        raise SettingsError(f"{place}.{theirs[0]}: is set by the study")


def _checked(model: type[Settings], values: dict[str, Any], place: str) -> None:
    try:
        resolve(model, values)
    except SettingsError as error:
        raise SettingsError("\n".join(f"{place}.{line}" for line in str(error).splitlines())) from None


def refuse_too_few(study: Study, there: int) -> None:
    """Raise Dae3dError if the list has fewer training cases than a subset needs."""
    most = max(study.train_cases)
    if most > there:
        raise Dae3dError(f"train_cases: {most} of {there} training cases in {study.task}")
