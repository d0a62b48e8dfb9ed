"""`prepare` on a Dask scheduler with workers that are processes of their own, as on other machines."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError, SettingsError
from dae3d.scans.manifest import Manifest
from scan_files import WATCHED, described, phantom, write_manifest, write_nifti
from waiting import until

pytest.importorskip("distributed")

# Warnings of a worker that is gone, from a library that logs them.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


class Cluster:
    """A scheduler without workers, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "scheduler.json"
        self.processes = [
            self._start("dask_scheduler", "--port", "0", "--scheduler-file", file, "--no-dashboard")
        ]
        until(lambda: file.is_file() and file.read_text().endswith("}"))
        self.address: str = json.loads(file.read_text())["address"]

    def worker(self, working_folder: Path | None = None) -> subprocess.Popen:
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", self.folder)
        self.processes.append(self._start("dask_worker", self.address, *options, cwd=working_folder))
        return self.processes[-1]

    def _start(self, program: str, *words: object, cwd: Path | None = None) -> subprocess.Popen:
        log = (self.folder / f"{program}.log").open("a")
        command = [
            *WATCHED,
            sys.executable,
            "-m",
            f"distributed.cli.{program}",
            "--host",
            "127.0.0.1",
            *words,
        ]
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=cwd)


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        for process in cluster.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "dask").mkdir()
    with started(tmp_path / "dask") as cluster:
        yield cluster


def some_scans(folder: Path, number: int, side: int = 64) -> Path:
    noise = np.random.default_rng(0).integers(-1000, 1000, (side, side, side), dtype=np.int16)
    paths = [write_nifti(folder / "data" / f"{i:02}.nii", np.roll(noise, i)) for i in range(number)]
    return write_manifest(folder / "manifest.jsonl", [described(path) for path in paths])


def open_files(process: subprocess.Popen) -> list[str]:
    """Paths of the files that a process has open."""
    paths = []
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            paths.append(os.readlink(link))
    return paths


def contents(store) -> list:
    return [scan.model_copy(update={"stored_stamp": None}) for scan in store.scans]


def test_a_worker_that_is_killed_costs_nothing(cluster, tmp_path):
    manifest, out = some_scans(tmp_path, 40, 96), tmp_path / "store"
    (tmp_path / "data" / "07.nii").write_bytes(b"no scan")
    first, _ = cluster.worker(), cluster.worker()

    def kill_one() -> None:
        until(lambda: (out / "scans").is_dir() and len(list((out / "scans").iterdir())) >= 5)
        os.kill(first.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    store = prepare(manifest=manifest, out=out, scheduler=cluster.address, report=False)
    killer.join()
    assert first.wait(600) == -signal.SIGKILL
    local = prepare(manifest=manifest, out=tmp_path / "local", workers=1, report=False)
    assert len(store.scans) == 39
    assert contents(store) == contents(local)
    for number in (0, 38):
        box = (0, 0, 0), store.scans[number].shape
        np.testing.assert_array_equal(store.read(number, *box), local.read(number, *box))
    rejected = [(folder / "rejected.csv").read_text() for folder in (out, tmp_path / "local")]
    assert rejected[0] == rejected[1]
    assert "07.nii" in rejected[0]
    assert not list(out.glob("partial*"))


def test_ctrl_c_keeps_what_is_done_and_workers_may_come_later(cluster, tmp_path):
    manifest, out = some_scans(tmp_path, 40, 96), tmp_path / "store"
    command = [sys.executable, "-m", "dae3d.cli", "prepare", manifest, "--out", out, "--no-report"]
    run = subprocess.Popen(
        [*WATCHED, *command, "--scheduler", cluster.address],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stderr is not None
    while "waiting for Dask workers" not in run.stderr.readline():
        assert run.poll() is None
    cluster.worker()
    until(lambda: (out / "scans").is_dir() and len(list((out / "scans").iterdir())) >= 3)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in errors
    done = len(list((out / "scans").iterdir()))
    assert 3 <= done < 40
    store = prepare(manifest=manifest, out=out, scheduler=cluster.address, report=False)
    assert len(store.scans) == 40


def test_a_scan_that_workers_die_of_is_rejected_and_the_rest_go_on(cluster, tmp_path):
    """With no failures allowed, one death is enough."""
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    manifest, out = some_scans(tmp_path, 3), tmp_path / "store"
    # Zeros without end, to be read for the sake of their checksum, stand in for a scan that takes all memory.
    scan = tmp_path / "data" / "01.nii"
    scan.write_bytes(gzip.compress(scan.read_bytes()) + gzip.compress(bytes(1 << 24)) * 4000)
    worker = cluster.worker()

    def replace_it() -> None:
        until(lambda: str(scan) in open_files(worker))
        os.kill(worker.pid, signal.SIGKILL)
        cluster.worker()

    killer = threading.Thread(target=replace_it)
    killer.start()
    store = prepare(manifest=manifest, out=out, scheduler=cluster.address, report=False)
    killer.join()
    assert [scan.path.name for scan in store.scans] == ["00.nii", "02.nii"]
    assert '01.nii,"its workers died' in (out / "rejected.csv").read_text()


@pytest.mark.parametrize("out", ["store", "/proc/self/cwd/store"])
def test_a_worker_that_sees_not_all_is_told_of_whenever_it_joins(cluster, tmp_path, monkeypatch, out):
    """A path below the working folder stands in for a disk that one machine has not mounted."""
    if not Path("/proc/self/cwd").exists():
        pytest.skip("needs /proc")
    some_scans(tmp_path, 40, 96)
    (tmp_path / "data" / "03.nii").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    scans = Manifest.load(tmp_path / "manifest.jsonl").scans
    here = Path("/proc/self/cwd/data") if out == "store" else tmp_path / "data"
    moved = [scan.model_copy(update={"path": here / scan.path.name}) for scan in scans]
    manifest = write_manifest(tmp_path / "here.jsonl", moved)
    stored = tmp_path / "store" / "scans"
    cluster.worker(tmp_path)

    def join_late() -> None:
        until(lambda: stored.is_dir() and len(list(stored.iterdir())) >= 5)
        cluster.worker(tmp_path / "elsewhere")

    joining = threading.Thread(target=join_late)
    joining.start()
    unseen = "data" if out == "store" else "store"
    with pytest.raises(Dae3dError, match=rf"worker tcp://.* does not see /proc/self/cwd/{unseen}.*same path"):
        prepare(manifest=manifest, out=out, scheduler=cluster.address, report=False)
    joining.join()
    assert 5 <= len(list(stored.iterdir())) < 39
    assert len(prepare(manifest=manifest, out=out, workers=1, report=False).scans) == 39


def test_no_scheduler_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("dae3d.store.cluster._CONNECT", "1s")
    manifest = some_scans(tmp_path, 1, 16)
    with pytest.raises(Dae3dError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*dask scheduler"):
        prepare(manifest=manifest, out=tmp_path / "store", scheduler="tcp://127.0.0.1:9")


def test_a_lost_scheduler_is_an_error_and_what_is_done_is_kept(cluster, tmp_path):
    import dask

    manifest, out = some_scans(tmp_path, 40, 96), tmp_path / "store"
    cluster.worker()

    def kill_it() -> None:
        until(lambda: (out / "scans").is_dir() and len(list((out / "scans").iterdir())) >= 3)
        os.kill(cluster.processes[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_it)
    killer.start()
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "10s"}),
        pytest.raises(Dae3dError, match=r"lost the Dask scheduler.*run the same command again"),
    ):
        prepare(manifest=manifest, out=out, scheduler=cluster.address, report=False)
    killer.join()
    assert len(prepare(manifest=manifest, out=out, workers=1, report=False).scans) == 40


def test_without_dask_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "dae3d.store.cluster", raising=False)
    path = write_nifti(tmp_path / "ct.nii", phantom((16, 16, 16)))
    manifest = write_manifest(tmp_path / "manifest.jsonl", [described(path)])
    with pytest.raises(Dae3dError, match=r"pip install 'dae3d\[cluster\]'"):
        prepare(manifest=manifest, out=tmp_path / "store", scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("address", ["localhost", "tcp://host", "host:8786"])
def test_an_address_that_is_none_is_refused_at_once(tmp_path, address):
    with pytest.raises(SettingsError, match="scheduler: must be PROTOCOL://HOST:PORT"):
        prepare(manifest=tmp_path / "manifest.jsonl", out=tmp_path / "store", scheduler=address)


def test_a_run_that_cannot_start_leaves_the_list_of_rejected_scans(tmp_path):
    paths = [write_nifti(tmp_path / f"{i}" / "ct.nii", phantom((16, 16, 16), i)) for i in range(2)]
    manifest = write_manifest(tmp_path / "manifest.jsonl", [described(path) for path in paths])
    out = tmp_path / "store"
    prepare(manifest=manifest, out=out, workers=1, report=False)
    (out / "rejected.csv").write_text("path,reason\nother,constant\n")
    next((out / "scans").iterdir()).unlink()
    with pytest.raises(Dae3dError, match="no Dask scheduler answers"):
        prepare(manifest=manifest, out=out, scheduler="tcp://127.0.0.1:9")
    assert (out / "rejected.csv").read_text() == "path,reason\nother,constant\n"
