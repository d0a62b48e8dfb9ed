"""Pages out of the templates beside this file; `base.html` has what all of them look like."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from dae3d.files import refuse_other_file, write_text
from dae3d.words import plural, quantity

# How `base.html` begins, and its titles end.
_PAGE = rb'<!doctype html>\n<html lang="en">\n<head>\n(<meta [^>]*>\n)*<title>[^<]* report</title>'


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


def refuse_other_page(path: Path) -> None:
    """Raise Dae3dError where there is a file that is not a report: it may be anybody's."""
    refuse_other_file(path, "report of dae3d", _PAGE)


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        Dae3dError: where it cannot be written, or there is a file that is not a report.
    """
    refuse_other_page(path)
    write_text(path, page)


def embedded(picture: Path) -> str:
    """A PNG as the source of an <img>, so that the page needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
