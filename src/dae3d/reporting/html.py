"""Pages out of the templates beside this file; `base.html` has what all of them look like."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from dae3d.reporting.words import plural, quantity


def fill(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """A page as HTML: a template's name, what it formats values with, and the values."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dae3d", "reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"quantity": quantity, "plural": plural, **filters}
    return environment.get_template(template).render(values)


def embedded(picture: Path) -> str:
    """A PNG as the source of an <img>, so that the page needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
