"""Runs of `prepare` that are killed, interrupted, hindered or started twice, caught while they are at it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError
from dae3d.store.scan import read_metadata
from dae3d.store.store import Store
from scan_files import WATCHED, described, phantom, write_manifest, write_nifti, written
from waiting import until

pytestmark = pytest.mark.slow

RUN = "import dae3d, sys; dae3d.prepare(manifest=sys.argv[1], out=sys.argv[2], workers=int(sys.argv[3]))"


@pytest.fixture
def many(tmp_path: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    noise = random.integers(-1000, 1000, (96, 96, 96), dtype=np.int16)
    paths = [write_nifti(tmp_path / "data" / f"{i:02}.nii", np.roll(noise, i)) for i in range(40)]
    return write_manifest(tmp_path / "many.json", [described(path) for path in paths]), tmp_path / "store"


def some_done(out: Path) -> bool:
    return (out / "scans").is_dir() and len(list((out / "scans").iterdir())) >= 3


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        pytest.skip("needs /proc")
    return [int(word) for word in found.read_text().split()]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_leaves_whole_scans_and_is_gone_on_with(many, workers):
    manifest, out = many
    command = [*WATCHED, sys.executable, "-c", RUN, manifest, out, str(workers)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: some_done(out))
    others = children(run.pid)
    run.kill()
    run.wait()
    until(lambda: not any(map(alive, others)))
    before = written(out)
    assert 3 <= len(before) < 40
    for name in before:
        assert read_metadata(out / "scans" / name) is not None
    store = prepare(manifest=manifest, out=out, workers=1)
    after = written(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(store.scans) == 40
    assert sorted(path.name for path in out.iterdir()) == [
        ".dae3d-store",
        ".lock",
        "data-report.html",
        "index.jsonl",
        "rejected.csv",
        "scans",
    ]
    for number in (0, 20, 39):
        expected = np.asarray(nibabel.load(store.scans[number].path).dataobj)
        shape = store.scans[number].shape
        np.testing.assert_array_equal(store.read(number, (0, 0, 0), shape), expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_keeps_what_is_done(many, workers):
    manifest, out = many
    command = [
        *WATCHED,
        sys.executable,
        "-m",
        "dae3d.cli",
        "prepare",
        manifest,
        "--out",
        out,
        "--workers",
        str(workers),
    ]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: some_done(out))
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate()
    assert run.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    before = written(out)
    assert 3 <= len(before) < 40
    # It may come when a scan is written and not counted yet; the next run counts it.
    assert len(before) - len(Store(out).scans) in (0, 1)
    prepare(manifest=manifest, out=out, workers=1)
    after = written(out)
    assert len(after) == 40
    assert {name: after[name] for name in before} == before


def test_a_worker_that_dies_keeps_no_scan_from_being_prepared(many):
    manifest, out = many

    def kill_one() -> None:
        until(lambda: some_done(out))
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert len(prepare(manifest=manifest, out=out, workers=2).scans) == 40
    killer.join()


def test_one_run_at_a_time(many):
    manifest, out = many
    run = subprocess.Popen(
        [*WATCHED, sys.executable, "-c", RUN, manifest, out, "1"], stderr=subprocess.DEVNULL
    )
    until(lambda: some_done(out))
    with pytest.raises(Dae3dError, match="another run of dae3d"):
        prepare(manifest=manifest, out=out, workers=1)
    assert run.wait() == 0
    assert len(Store(out).scans) == 40


def test_a_script_without_a_main_guard_may_use_workers(tmp_path):
    paths = [write_nifti(tmp_path / "data" / f"{i}.nii", phantom((20, 20, 20), i)) for i in range(3)]
    manifest = write_manifest(tmp_path / "manifest.json", [described(path) for path in paths])
    script = tmp_path / "script.py"
    script.write_text(RUN)
    run = subprocess.run(
        [sys.executable, script, manifest, tmp_path / "store", "2"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert len(Store(tmp_path / "store").scans) == 3


def test_a_full_disk_is_told_of_and_leaves_no_part(many):
    """A limit on file size stands in for the disk: writing fails in the middle of a scan."""
    manifest, out = many
    limited = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1))\n"
        "from dae3d.cli import main\n"
        "raise SystemExit(main())\n"
    )
    command = [sys.executable, "-c", limited, "prepare", manifest, "--out", out, "--workers", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "is the disk full?" in run.stderr
    assert "Traceback" not in run.stderr
    assert written(out) == {}
