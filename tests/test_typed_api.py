"""The commands as typed functions of the package."""

import inspect
import runpy
from pathlib import Path

import pytest

import dae3d
from dae3d.commands import load_command

TOOL = Path(__file__).parents[1] / "tools/write_stub.py"


def test_the_stub_is_that_of_the_settings():
    tool = runpy.run_path(str(TOOL))
    written = (Path(dae3d.__file__).parent / "__init__.pyi").read_text()
    assert tool["stub"]() == written, "run python tools/write_stub.py"


def test_commands_are_listed():
    names = {command.replace(" ", "_").replace("-", "_") for command in dae3d.COMMANDS}
    assert {"pretrain", "store_check"} <= names
    assert names | {"load", "__version__"} <= set(dir(dae3d))


@pytest.mark.parametrize("command", dae3d.COMMANDS)
def test_a_config_is_a_keyword_where_there_are_configs(command):
    command = load_command(command)
    assert ("config" in inspect.signature(command).parameters) == bool(command.settings.configs)
