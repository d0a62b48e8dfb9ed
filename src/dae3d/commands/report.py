"""The command `report`: one self-contained page about a training run."""

import logging
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dae3d.errors import Dae3dError
from dae3d.reporting import finetuning, pretraining
from dae3d.reporting.html import write_page
from dae3d.reporting.run_folder import load_run
from dae3d.settings import Positional, Settings, command

log = logging.getLogger(__name__)

RENDER = {"pretrain": pretraining.render, "finetune": finetuning.render}


class ReportSettings(Settings):
    """Settings of `report`."""

    run: Annotated[Path, Positional()] = Field(
        description="run folder of `pretrain` or `finetune`, finished or not"
    )
    out: Path | None = Field(None, description="output file (default: report.html in the run folder)")


@command
def report(settings: ReportSettings) -> Path:
    """Write a page about a run: data, settings, results, curves and pictures.

    The page says if the run is not finished or lacks parts.

    Returns:
        The page's path.

    Raises:
        Dae3dError: if the folder is not a run, or the page cannot be written.
    """
    run = load_run(settings.run)
    out = settings.out or settings.run / "report.html"
    if out.is_dir():
        raise Dae3dError(f"out: {out} is a folder; give the path of the page, such as {out / 'report.html'}")
    write_page(out, RENDER[run.record.kind](run))
    log.info("report: %s", out)
    return out
