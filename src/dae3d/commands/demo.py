"""The command `demo`: all steps once, from scans to report."""

import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from dae3d.commands.check import check
from dae3d.commands.index import index
from dae3d.commands.prepare import prepare
from dae3d.commands.pretrain import pretrain
from dae3d.commands.reconstruct import reconstruct
from dae3d.commands.report import report
from dae3d.errors import Dae3dError
from dae3d.files import whole_file, write_text
from dae3d.phantom import write_phantom
from dae3d.scans.manifest import Scan
from dae3d.settings import Settings, command

PHANTOMS = 6
# The file that marks a demo's folder, and the demo's files and folders in it.
_MARK = ".dae3d-demo"
_NAMES = ("scans", "manifest.jsonl", "store", "run", "reconstructions")
# Folder of the MNI152 template (ICBM 2009a symmetric) in the nilearn wheel, and the names of its files here.
_NILEARN_DATA = Path("datasets/data")
_MNI152 = {
    "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz": "sub-mni152_T1w.nii.gz",
    "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz": "sub-mni152_gm-map.nii.gz",
    "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz": "sub-mni152_wm-map.nii.gz",
}
_RULES = ["*_gm-map.nii.gz=gm-map", "*_wm-map.nii.gz=wm-map", "*_ct-phantom.nii.gz=ct-phantom"]


class DemoSettings(Settings):
    """Settings of `demo`."""

    out: Path = Field(Path("demo-out"), description="output folder")
    data: list[Path] | None = Field(
        None, description="folders of your scans, instead of the included ones", min_length=1
    )
    modality: str | None = Field(None, description="with --data: as in `dae3d index`")
    rule: list[str] = Field([], description="with --data: as in `dae3d index`")
    exclude: list[str] = Field([], description="with --data: as in `dae3d index`")
    max_steps: int = Field(80, ge=1, description="training steps of the small network")


@command
def demo(settings: DemoSettings) -> Path:
    """Run index, prepare, pretrain, reconstruct, check and report once, with the small network.

    Without `data` it runs on the MNI152 T1 template with its grey and white matter maps (from nilearn), and
    on generated CT-like phantoms. After an interruption, the same command continues.

    Returns:
        The report's path.

    Raises:
        Dae3dError: if nilearn is missing, the scans cannot be used, or the folder contains other work.
    """
    out = settings.out
    _take_folder(out)
    folders, rules = settings.data, settings.rule
    if folders is None:
        print("The demo trains on the MNI152 T1 template, its tissue maps, and a CT-like PHANTOM made here.")
        folders, rules = [embedded_scans(out / "scans")], _RULES
    manifest = index(
        folders=folders,
        out=out / "manifest.jsonl",
        modality=settings.modality,
        rule=rules,
        exclude=settings.exclude,
        val_fraction=0.2,
    )
    store = prepare(manifest=out / "manifest.jsonl", out=out / "store", only=True)
    try:
        run = pretrain(
            config="small-cpu",
            data=store.path,
            out=out / "run",
            max_steps=settings.max_steps,
            val_every=max(1, settings.max_steps // 2),
            save_every=max(1, settings.max_steps // 2 // 5) * 5,
            val_crops=2,
            resume=(out / "run/settings.yaml").is_file(),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # without advice on --resume: the demo resumes by itself
    files = (scan for scan in manifest.scans if not scan.files and scan.volume is None)
    for scan in one_of_each_modality(files):
        reconstruct(
            scans=[scan.path],
            weights=run,
            modality=scan.modality,
            out=out / "reconstructions" / scan.modality,
            overlap=0.25,
        )
    check(run=run)
    page = report(run=run)
    print(f"report: {page.absolute()}")
    return page


def _take_folder(out: Path) -> None:
    """Mark the folder as a demo's; refuse one that contains a user's own store or run."""
    others = [name for name in _NAMES if (out / name).exists()]
    if others and not ((out / _MARK).is_file() or (out / "scans" / "mni152").is_dir()):
        raise Dae3dError(
            f"out: {out} contains {', '.join(others)}, not made by `demo`; choose another folder"
        )
    write_text(out / _MARK, f"What is called {', '.join(_NAMES)} in this folder is a demo's.\n")


def embedded_scans(folder: Path) -> Path:
    """Put the included scans into a folder, unless they are there.

    Raises:
        Dae3dError: if nilearn is not installed.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise Dae3dError("the included scans come with nilearn: pip install 'dae3d[demo]', or use --data")
    source = Path(spec.submodule_search_locations[0]) / _NILEARN_DATA
    mni = folder / "mni152"
    phantoms = folder / "ct-phantom"
    for theirs, ours in _MNI152.items():
        if not (mni / ours).is_file():
            with whole_file(mni / ours) as temporary:
                shutil.copyfile(source / theirs, temporary)
    for seed in range(PHANTOMS):
        path = phantoms / f"sub-phantom{seed}_ct-phantom.nii.gz"
        if not path.is_file():
            write_phantom(path, seed)
    return folder


def one_of_each_modality(scans: Iterable[Scan]) -> list[Scan]:
    """The first scan of every modality, preferably a validation scan."""
    chosen: dict[str, Scan] = {}
    for scan in sorted(scans, key=lambda scan: scan.split != "val"):
        chosen.setdefault(scan.modality, scan)
    return [chosen[modality] for modality in sorted(chosen)]
