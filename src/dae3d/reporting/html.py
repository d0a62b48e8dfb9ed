"""Fill the HTML templates in this folder; `base.html` has the common layout and style."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from dae3d.files import refuse_other_file, write_text
from dae3d.words import plural, quantity

# The beginning of pages made from `base.html`.
_PAGE = rb'<!doctype html>\n<html lang="en">\n<head>\n(<meta [^>]*>\n)*<title>[^<]* report</title>'


def fill(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """Fill a template with values; `filters` are additional Jinja filters."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dae3d", "reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"quantity": quantity, "plural": plural, **filters}
    return environment.get_template(template).render(values)


def refuse_other_page(path: Path) -> None:
    """Raise Dae3dError if the path is an existing file that is not a report."""
    refuse_other_file(path, "report of dae3d", _PAGE)


def write_page(path: Path, page: str) -> None:
    """Write a page atomically.

    Raises:
        Dae3dError: if it cannot be written, or the path is an existing file that is not a report.
    """
    refuse_other_page(path)
    write_text(path, page)


def embedded(picture: Path) -> str:
    """A PNG as the source of an <img>, so that the page is self-contained."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
