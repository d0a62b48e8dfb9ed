"""Write `src/dae3d/__init__.pyi`: the commands' settings as typed keywords, for type checkers and editors.

    python tools/write_stub.py

A command accepts what its settings accept, paths and lists as users write them. Run it after changing a
setting; a test compares.
"""

import inspect
import json
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from dae3d import COMMANDS
from dae3d.commands import load_command
from dae3d.models.loading import NETWORKS, load
from dae3d.scans.channels import ScanText
from dae3d.settings import Settings
from dae3d.store.boxes import Roi

STUB = Path(__file__).parents[1] / "src/dae3d/__init__.pyi"
HEAD = '''\
"""Self-supervised pre-training for 3D medical images by disruption and repair."""

# Written by tools/write_stub.py.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

{imports}

COMMANDS: dict[str, str]
__version__: str
'''


def main() -> None:
    """Write the file."""
    STUB.write_text(stub())


def stub() -> str:
    """The file's content."""
    functions = [load_command(name) for name in COMMANDS]
    classes = {*NETWORKS.values(), *(_result(function) for function in functions)}
    names: dict[str, set[str]] = {}
    for each in classes:
        if each.__module__.startswith("dae3d."):
            names.setdefault(each.__module__, set()).add(each.__name__)
    imports = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    definitions = [*_loading(), *(_definition(name) for name in COMMANDS)]
    text = HEAD.format(imports="\n".join(imports)) + "".join(definitions)
    formatter = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(STUB), "-"]
    return subprocess.run(formatter, input=text, capture_output=True, text=True, check=True).stdout


def _result(function: Any) -> Any:
    return inspect.signature(function.__wrapped__, eval_str=True).return_annotation


def _loading() -> Iterator[str]:
    """`load`, with an overload for each task."""
    parameters = inspect.signature(load).parameters.values()
    for task, result in [
        *((f'Literal["{name}"]', network.__name__) for name, network in NETWORKS.items()),
        ("None", "nn.Module"),
    ]:
        words = []
        for parameter in parameters:
            kind = task if parameter.name == "task" else _accepted(parameter.annotation)
            needed = parameter.default is parameter.empty or (parameter.name == "task" and task != "None")
            words.append(
                f"{parameter.name}: {kind}" + ("" if needed else f" = {_written(parameter.default)}")
            )
        yield f"@overload\ndef load({', '.join(words)}) -> {result}: ...\n"


def _definition(name: str) -> str:
    function = load_command(name)
    model: type[Settings] = function.settings
    words = [_parameter(key, field, bool(model.configs)) for key, field in model.model_fields.items()]
    if model.configs:
        words.insert(0, "config: str | Path | None = None")
    head = f"def {function.__name__}(*, {', '.join(words)},) -> {_name(_result(function))}:"
    return f'{head}\n    """{COMMANDS[name]}"""\n'


def _parameter(name: str, field: FieldInfo, has_config: bool) -> str:
    """One keyword. With a config every keyword is optional, because the file may have it."""
    kind = _accepted(field.annotation)
    if field.is_required():
        return f"{name}: {kind} = ..." if has_config else f"{name}: {kind}"
    return f"{name}: {kind} = {_written(field.default)}"


def _written(default: Any) -> str:
    plain = default is None or isinstance(default, bool | int | float | str)
    return json.dumps(default) if isinstance(default, str) else repr(default) if plain else "..."


def _accepted(annotation: Any) -> str:
    """What users may pass for a field of this type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation == ScanText:
        return "str | Path | Sequence[str | Path]"
    if annotation == typing.get_args(Roi)[0]:
        return "int | Sequence[int]"
    if origin is typing.Annotated:
        return _accepted(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(part for a in arguments for part in _accepted(a).split(" | ")))
    if origin is Literal:
        return "Literal[" + ", ".join(f'"{value}"' for value in arguments) + "]"
    if origin in (list, tuple):
        return f"Sequence[{_accepted(arguments[0])}]"
    if origin is dict:
        return f"Mapping[{_accepted(arguments[0])}, {_accepted(arguments[1])}]"
    return "str | Path" if annotation is Path else _name(annotation)


def _name(annotation: Any) -> str:
    """A type as written in code; for classes the bare name."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return "None" if annotation is types.NoneType else annotation.__name__
    return str(annotation).replace("typing.", "").replace("pathlib.", "")


if __name__ == "__main__":
    main()
