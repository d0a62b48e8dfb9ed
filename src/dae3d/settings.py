"""Typed settings, one class per command: validated, read from and written to YAML, shown by `--help`.

A command is a function of one settings object, decorated with `command`. It can then be called with keywords
from Python (`dae3d.index(folders=["scans"])`) and from the command line (`dae3d index scans`).
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dae3d.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result = TypeVar("Result")
Record = TypeVar("Record", bound="DataclassInstance")


class Settings(BaseModel):
    """Base of every command's settings: immutable, no unknown fields, each field with a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # Subfolder of dae3d.configs, for a command that takes --config.
    configs: ClassVar[str | None] = None

    @classmethod
    def completed(cls, given: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
        """The values that are given, with those that follow from them or are in a file they name.

        Args:
            given: of the user and of a config.
            chosen: the names of the user's own.

        Raises:
            SettingsError: where that file cannot be used.
        """
        return given

    def as_dataclass(self, kind: type[Record]) -> Record:
        """A dataclass filled from the settings of the same names; its other fields keep their defaults."""
        names = [field.name for field in fields(kind) if field.name in type(self).model_fields]
        return kind(**{name: getattr(self, name) for name in names})

    def to_yaml(self) -> str:
        """The settings as YAML: every field, in the order of definition."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


class Positional:
    """Marks a field that is a positional argument on the command line."""


class Group(str):
    """The heading under which `--help` lists a field."""


def resolve(model: type[Settings], fields: dict[str, Any]) -> Settings:
    """Make settings from keywords, which override the values of the YAML file named by `config`.

    Raises:
        SettingsError: naming each invalid field, its value and what is allowed.
    """
    config = fields.pop("config", None)
    values = {} if config is None else read_config(config, model.configs)
    try:
        return model.model_validate(model.completed({**values, **fields}, set(fields)))
    except ValidationError as error:
        raise SettingsError(_explain(model, error)) from None


def read_config(config: str | Path, kind: str | None) -> dict[str, Any]:
    """Read a YAML settings file, or a shipped one of this `kind` by its bare name (`small-cpu`)."""
    path: Any = Path(config)
    if not path.is_file():
        names = shipped_configs(kind)
        if str(config) not in names:
            raise SettingsError(f"config: {path} is neither a file nor a shipped config ({', '.join(names)})")
        path = resources.files("dae3d.configs") / str(kind) / f"{config}.yaml"
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"config: {path} must hold `field: value` lines, not a {type(values).__name__}")
    return values


def shipped_configs(kind: str | None) -> list[str]:
    """Names of the configs of this `kind` that are shipped with the package."""
    if kind is None:
        return []
    entries = (resources.files("dae3d.configs") / kind).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def _explain(model: type[Settings], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][:1])
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) > 1:
            lines.append(f"{'.'.join(map(str, problem['loc']))}: unknown setting")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{name}: unknown setting; the settings are: {', '.join(model.model_fields)}")
        elif problem["type"] == "missing" and len(problem["loc"]) == 1:
            lines.append(f"{name}: required, but not given")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            value = f" (got {problem['input']!r})" if name else ""
            lines.append(f"{name}: {message}{value}" if name else message)
    return "\n".join(dict.fromkeys(lines))


def command(run: Callable[[Any], Result]) -> Callable[..., Result]:
    """Make a function of one settings object callable with that object's fields as keywords."""
    model: type[Settings] = next(iter(inspect.signature(run, eval_str=True).parameters.values())).annotation

    @functools.wraps(run)
    def call(**fields: Any) -> Result:
        return run(resolve(model, fields))

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(
            name,
            keyword,
            default=inspect.Parameter.empty
            if field.is_required()
            else field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for name, field in model.model_fields.items()
    ]
    if model.configs:
        parameters.append(inspect.Parameter("config", keyword, default=None, annotation=str | Path | None))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.settings = model  # type: ignore[attr-defined]
    return call
