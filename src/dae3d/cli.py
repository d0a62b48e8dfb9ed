"""The command line: `dae3d COMMAND ...`. Every verb's flags are made from the fields of its settings."""

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

from dae3d.commands import VERBS, load_verb
from dae3d.errors import Dae3dError
from dae3d.settings import Group, Positional, Settings, resolve, shipped_configs
from dae3d.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 done, 1 an error the user can mend, 130 interrupted."""
    try:
        return parse_and_run(argv)
    except KeyboardInterrupt as interrupt:  # while a verb is imported
        return say_interrupted(interrupt)


def parse_and_run(argv: Sequence[str] | None) -> int:
    """Run the verb that the words of the command line name."""
    show_messages()
    arguments = one_word_verb([with_hyphens(word) for word in (sys.argv[1:] if argv is None else argv)])
    name = next((word for word in arguments if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="dae3d", description=(import_module("dae3d").__doc__ or "").strip(), allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"dae3d {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    # Only the verb that is asked for is imported: `dae3d --help` does not wait for PyTorch.
    for verb, summary in VERBS.items():
        command = commands.add_parser(
            verb,
            help=summary,
            description=summary,
            allow_abbrev=False,
        )
        if verb == name:
            add_settings_arguments(command, load_verb(verb).settings)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse(unknown[0], commands.choices[known.verb])
    options = vars(known)
    return run_verb(load_verb(options.pop("verb")), options)


def _refuse(word: str, command: argparse.ArgumentParser) -> None:
    """End with an error for a word that the verb does not know, and what may have been meant."""
    flags = [flag for action in command._actions for flag in action.option_strings]
    near = get_close_matches(word.partition("=")[0], flags, 1)
    command.error(f"no such setting: {word}" + (f"; did you mean {near[0]}?" if near else ""))


def with_hyphens(word: str) -> str:
    """`--max_steps=8` as `--max-steps=8`: flags may be spelt as the fields are."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def one_word_verb(words: list[str]) -> list[str]:
    """The words with a verb of two, such as `store check`, made one word."""
    verb = " ".join(words[:2])
    return [verb, *words[2:]] if verb in VERBS else words


def show_messages() -> None:
    """Print our own messages plainly, and of other libraries only warnings."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dae3d").setLevel(logging.INFO)


def run_verb(function: Any, fields: dict[str, Any]) -> int:
    """Call a verb with what was given on the command line, and turn its errors into an exit status."""
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
    """Print how to go on, and return the exit status."""
    how = str(interrupt) or "run the same command again to go on"
    print(f"\ndae3d: interrupted; {how}", file=sys.stderr)
    return 130


def add_settings_arguments(parser: argparse.ArgumentParser, model: type[Settings]) -> None:
    """Give `parser` one argument for each field of `model`, spelt with hyphens.

    Arguments that are not given are left out of the parsed namespace, so that a config file can set them.
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
    # What is a verb's own comes before what it shares with others.
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
    flag = f"--{name.replace('_', '-')}"
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
        return typing.get_args(annotation)
    return (annotation,)


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Annotated:
        return _metavar(typing.get_args(kind)[0])
    names = {int: "N", float: "X", str: "TEXT", Path: "PATH", type(None): "none"}
    return names.get(kind, "VALUE")


class _Many(argparse.Action):
    """Several words into a list, or into a dict for KEY=VALUE words; the single word `none` into None."""

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
        else:
            value = (getattr(namespace, self.dest, None) or []) + values
        setattr(namespace, self.dest, value)


if __name__ == "__main__":
    sys.exit(main())
