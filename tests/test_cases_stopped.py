"""Preparing cases that is killed, or done by two runs at once."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dae3d.scans.task import TaskCase
from dae3d.store.cases import CaseStore, prepare_cases
from dae3d.store.recipe import CaseRecipe
from scan_files import phantom, write_nifti
from waiting import until

pytestmark = pytest.mark.slow

CASES = 24
SHAPE = (80, 80, 80)
RUN = """
import pickle, sys
from pathlib import Path
from dae3d.store.cases import prepare_cases
data = Path(sys.argv[1])
cases, recipe = pickle.loads((data / "cases.pickle").read_bytes())
prepare_cases(cases, recipe, data / "store", workers=1)
"""
RECIPE = CaseRecipe(modalities=("ct",), labels={0: "background", 1: "body"})


def cases(folder: Path) -> list[TaskCase]:
    return [
        TaskCase(f"c{i}", (folder / f"{i}.nii",), folder / f"{i}_label.nii", str(i)) for i in range(CASES)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, case in enumerate(cases(tmp_path)):
        volume = phantom(SHAPE, number)
        write_nifti(case.images[0], volume)
        write_nifti(case.label, (volume > 40).astype(np.uint8))
    return tmp_path


def start(data: Path) -> subprocess.Popen:
    (data / "cases.pickle").write_bytes(pickle.dumps((cases(data), RECIPE)))
    return subprocess.Popen([sys.executable, "-c", RUN, str(data)], stderr=subprocess.PIPE, text=True)


def done(data: Path) -> dict[Path, int]:
    return {folder: folder.stat().st_mtime_ns for folder in (data / "store").glob("cases/*")}


def test_a_killed_run_leaves_whole_cases_and_is_gone_on_with(data):
    run = start(data)
    until(lambda: len(done(data)) >= 3)
    run.kill()
    run.communicate()
    before = done(data)
    assert 3 <= len(before) < CASES
    for folder in before:
        assert {file.name for file in folder.iterdir()} == {
            "0.b2nd", "label.b2nd", "positions.npy", "case.json"
        }  # fmt: skip
    store = prepare_cases(cases(data), RECIPE, data / "store", workers=1)
    assert before.items() <= done(data).items()
    assert len(store.cases) == len(done(data)) == CASES
    assert not (data / "store" / ".dae3d-partial").exists()
    last = store.label(CASES - 1, (0, 0, 0), SHAPE)
    np.testing.assert_array_equal(last, phantom(SHAPE, CASES - 1) > 40)


def test_runs_wait_for_each_other_and_get_their_own_cases(data):
    run = start(data)
    until(lambda: len(done(data)) >= 2)
    store = prepare_cases(cases(data)[-2:], RECIPE, data / "store", workers=1)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    assert [case.name for case in store.cases] == [f"c{CASES - 2}", f"c{CASES - 1}"]
    assert len(done(data)) == CASES
    assert [case.name for case in CaseStore(data / "store").cases] == [case.name for case in store.cases]


def test_a_worker_that_dies_keeps_no_case_from_being_prepared(data):
    def kill_one() -> None:
        until(lambda: done(data))
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert len(prepare_cases(cases(data), RECIPE, data / "store", workers=2).cases) == CASES
    killer.join()
