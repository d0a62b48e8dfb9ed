"""What each part of the package may know of: only parts of the layers below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dae3d

ROOT = Path(dae3d.__file__).parent
# From the lowest. Parts of one layer know nothing of each other.
LAYERS = (
    ("configs", "cores", "errors", "memory", "metrics", "version", "words"),
    ("files", "locks", "processes", "run_folder", "settings"),
    ("lines", "phantom"),
    ("journal",),
    ("scans",),
    ("store",),
    ("disrupt", "models"),
    ("drawing", "evaluation", "inference", "nnunet", "objectives"),
    ("training",),
    ("benchmarking", "exporting", "probing", "studies"),
    ("planning",),
    ("reporting",),
    ("commands",),
    ("__init__",),
    ("cli",),
    ("main_runner",),
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Parts of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module or ""]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "dae3d":
                yield rest.partition(".")[0] or "__init__"


def test_every_part_has_its_layer():
    assert {part_of(path) for path in ROOT.rglob("*.py")} == set(HEIGHT)


@pytest.mark.parametrize("part", HEIGHT)
def test_a_part_knows_of_lower_layers_alone(part):
    files = [path for path in ROOT.rglob("*.py") if part_of(path) == part]
    upward = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in files
        for other in imported(path)
        if other != part and HEIGHT[other] >= HEIGHT[part]
    }
    assert not upward


def test_operators_below_the_public_functions_of_pytorch_stand_in_one_file():
    found = {path.name for path in ROOT.rglob("*.py") if "torch.ops" in path.read_text()}
    assert found == {"aten.py"}
