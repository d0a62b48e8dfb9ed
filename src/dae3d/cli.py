"""The command line: `dae3d COMMAND ...`. The flags of a command are the fields of its settings."""

import argparse
import logging
import sys
import types
import typing
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from dae3d.commands import COMMANDS, load_command
from dae3d.errors import Dae3dError
from dae3d.settings import Group, Positional, Settings, resolve, shipped_configs
from dae3d.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 an error the user can fix, 130 interrupted."""
    try:
        return parse_and_run(argv)
    except KeyboardInterrupt as interrupt:  # while the command is imported
        return say_interrupted(interrupt)


def parse_and_run(argv: Sequence[str] | None) -> int:
    """Run the command that is named on the command line."""
    show_messages()
    arguments = one_word_command([with_hyphens(word) for word in (sys.argv[1:] if argv is None else argv)])
    name = next((word for word in arguments if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="dae3d", description=(import_module("dae3d").__doc__ or "").strip(), allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"dae3d {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the requested command is imported: `dae3d --help` does not wait for PyTorch.
    for command, summary in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=summary, description=summary, allow_abbrev=False)
        if command == name:
            add_settings_arguments(subparser, load_command(command).settings)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse(unknown[0], subparsers.choices[known.command])
    options = vars(known)
    return run_command(load_command(options.pop("command")), options)


def _refuse(word: str, parser: argparse.ArgumentParser) -> None:
    """Exit with an error for an unknown argument; suggests the nearest flag."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    near = get_close_matches(word.partition("=")[0], flags, 1)
    parser.error(f"unknown setting: {word}" + (f"; did you mean {near[0]}?" if near else ""))


def with_hyphens(word: str) -> str:
    """Turn `--max_steps=8` into `--max-steps=8`, so that flags may be spelt like the fields."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def one_word_command(words: list[str]) -> list[str]:
    """Join a command of two words, such as `store check`, into one argument."""
    command = " ".join(words[:2])
    return [command, *words[2:]] if command in COMMANDS else words


def show_messages() -> None:
    """Print our own messages without a prefix, and only warnings of other libraries."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dae3d").setLevel(logging.INFO)


def run_command(function: Any, fields: dict[str, Any]) -> int:
    """Call a command with its arguments, and turn its errors into an exit status."""
    show_only = fields.pop("print_settings", False)
    try:
        if show_only:
            print(resolve(function.settings, fields).to_yaml(), end="")
        else:
            function(**fields)
    except Dae3dError as error:
        print(f"dae3d: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        return say_interrupted(interrupt)
    return 0


def say_interrupted(interrupt: KeyboardInterrupt) -> int:
    """Print how to continue, and return the exit status."""
    how = str(interrupt) or "run the same command again to continue"
    print(f"\ndae3d: interrupted; {how}", file=sys.stderr)
    return 130


def add_settings_arguments(parser: argparse.ArgumentParser, model: type[Settings]) -> None:
    """Add one argument for each field of `model`, spelt with hyphens.

    Arguments not given are absent from the parsed namespace, so that a config file can set them.
    """
    groups: dict[str, Any] = {}
    fields = model.model_fields.items()
    words = [name.upper() for name, field in fields if _is_positional(field)]
    parser.usage = " ".join([parser.prog, *words, "[--setting value ...]"])
    if model.configs:
        parser.add_argument(
            "--config",
            default=argparse.SUPPRESS,
            help="YAML file of settings, overridden by flags; shipped: "
            + ", ".join(shipped_configs(model.configs)),
        )
        parser.add_argument(
            "--print-settings",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print the resolved settings as YAML and exit",
        )
    # A command's own settings come before those it shares with others.
    shared: Any = model.__base__
    others = shared.model_fields.keys() - model.__annotations__.keys()
    own = [field for name, field in fields if name not in others]
    for field in (*own, *model.model_fields.values()):
        heading = _heading(field)
        if heading and heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
    for name, field in fields:
        _add_argument(groups.get(_heading(field), parser), name, field)


def _heading(field: FieldInfo) -> str:
    return next((str(m) for m in field.metadata if isinstance(m, Group)), "")


def _add_argument(parser: Any, name: str, field: FieldInfo) -> None:
    kinds = _kinds(field.annotation)
    help_text = (field.description or "").replace("%", "%%")
    if field.is_required():
        help_text += " (required)"
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, bool):
        help_text += f" (default: {'yes' if default else 'no'})"
    elif default not in (None, (), [], {}):
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        help_text += f" (default: {shown})"
    many = any(typing.get_origin(kind) in (list, tuple, dict) for kind in kinds)
    options: dict[str, Any] = {"help": help_text, "default": argparse.SUPPRESS}
    if _is_positional(field):
        count = ("+" if field.is_required() else "*") if many else (None if field.is_required() else "?")
        parser.add_argument(
            name, nargs=count, metavar=name.upper(), help=help_text, default=argparse.SUPPRESS
        )
        return
    # The field of a Python keyword, such as `for`, ends in an underscore.
    flag, options["dest"] = f"--{name.rstrip('_').replace('_', '-')}", name
    if bool in kinds:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif many:
        kind = next(k for k in kinds if typing.get_origin(k) in (list, tuple, dict))
        metavar = "KEY=VALUE" if typing.get_origin(kind) is dict else _metavar(typing.get_args(kind)[0])
        parser.add_argument(flag, nargs="+", action=_Many, kind=kind, metavar=metavar, **options)
    else:
        none = type(None) in kinds
        convert: Callable[[str], Any] = (lambda text: None if text == "none" else text) if none else str
        parser.add_argument(flag, type=convert, metavar="|".join(map(_metavar, kinds)), **options)


def _is_positional(field: FieldInfo) -> bool:
    return any(isinstance(m, Positional) for m in field.metadata)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for each in typing.get_args(annotation) for kind in _kinds(each))
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    return (annotation,)


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Annotated:
        return _metavar(typing.get_args(kind)[0])
    if kind == str | Path:
        return "PATH"
    names = {int: "N", float: "X", str: "TEXT", Path: "PATH", type(None): "none"}
    return names.get(kind, "VALUE")


class _Many(argparse.Action):
    """Collect words into a list, or KEY=VALUE words into a dict; the single word `none` gives None."""

    def __init__(self, *args: Any, kind: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values == ["none"]:
            value: Any = None
        elif typing.get_origin(self.kind) is dict:
            bad = [word for word in values if "=" not in word]
            if bad:
                parser.error(f"{option_string}: {bad[0]!r} is not KEY=VALUE")
            given = dict(word.rsplit("=", 1) for word in values)
            value = (getattr(namespace, self.dest, None) or {}) | given
        elif typing.get_origin(self.kind) is tuple and ... not in typing.get_args(self.kind):
            value = values  # of a fixed number: given again, it replaces
        else:
            value = (getattr(namespace, self.dest, None) or []) + values
        setattr(namespace, self.dest, value)


if __name__ == "__main__":
    sys.exit(main())
