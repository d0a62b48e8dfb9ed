"""Runs commands of dae3d in processes of their own, several at a time, each job in a folder that it locks."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from dae3d.cores import usable_cores
from dae3d.errors import Dae3dError
from dae3d.files import make_folder
from dae3d.locks import lock

Ending = Literal["done", "failed", "elsewhere", "stopped"]

SCREEN = "screen.txt"
_ERROR = "dae3d: error: "


@dataclass(frozen=True)
class Job:
    """Commands that run one after the other.

    Attributes:
        name: for messages.
        folder: where they write; another process that has it locked is left alone.
        prepare: called first; gives the commands, or None if all is done. Errors fail the job.
        finish: called after the last command with the seconds they took.
    """

    name: str
    folder: Path
    prepare: Callable[[], list[list[str]] | None]
    finish: Callable[[float], None]


@dataclass(frozen=True)
class Result:
    """How a job ended; `why` and the file with all it printed, if it failed."""

    job: Job
    ending: Ending
    why: str = ""


@dataclass
class Pool:
    """Runs jobs.

    Attributes:
        size: jobs at a time.
        threads: of each; None: the cores divided among them.
        gpus: identifiers of the GPUs that jobs use in turn; empty: jobs are not assigned any.
    """

    size: int
    threads: int | None = None
    gpus: Sequence[str] = ()
    _stopped: threading.Event = field(default_factory=threading.Event)
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run(self, jobs: Sequence[Job], what: str) -> list[Result]:
        """Run all jobs; one that fails does not stop the others.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running commands have saved and ended.
        """
        slots: queue.Queue[int] = queue.Queue()
        for slot in range(self.size):
            slots.put(slot)

        def one(job: Job) -> Result:
            slot = slots.get()
            try:
                return self._run(job, slot)
            finally:
                slots.put(slot)

        with ThreadPoolExecutor(self.size) as threads, _sigterm_as_interrupt():
            futures = [threads.submit(one, job) for job in jobs]
            try:
                self._wait(futures, what)
            except KeyboardInterrupt:
                self._stop()
                raise
        return [future.result() for future in futures]

    def _wait(self, futures: Sequence[Future[Result]], what: str) -> None:
        waiting = set(futures)
        with tqdm(total=len(futures), desc=what, unit="run", disable=not futures) as bar:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                bar.update(len(finished))
                for future in finished:
                    result = future.result()
                    if result.ending == "failed":
                        bar.write(f"{result.job.name}: failed: {result.why}")

    def _stop(self) -> None:
        """Interrupt the running commands; the others do not begin."""
        self._stopped.set()
        for process in list(self._running):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)

    def _run(self, job: Job, slot: int) -> Result:
        if self._stopped.is_set():
            return Result(job, "stopped")
        try:
            make_folder(job.folder)
            with (job.folder / "lock").open("ab+") as file:
                if not lock(file, job.folder / "lock"):
                    return Result(job, "elsewhere")
                commands = job.prepare()
                if commands is None:
                    return Result(job, "done")
                started = time.monotonic()
                for command in commands:
                    status = self._call(command, job.folder / SCREEN, slot, file.fileno())
                    if self._stopped.is_set():
                        return Result(job, "stopped")
                    if status:
                        return Result(job, "failed", _said(job.folder / SCREEN, status))
                job.finish(time.monotonic() - started)
        except (Dae3dError, OSError) as error:
            return Result(job, "failed", str(error))
        return Result(job, "done")

    def _call(self, command: list[str], screen: Path, slot: int, locked: int) -> int:
        threads = self.threads or max(1, usable_cores() // self.size)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        with screen.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dae3d.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that Ctrl-C reaches it once, from here
                pass_fds=(locked,),  # if this process is killed, the folder stays locked until it ends
            )
            self._running.add(process)
            try:
                if self._stopped.is_set():
                    process.send_signal(signal.SIGINT)
                return process.wait()
            finally:
                self._running.discard(process)


def _said(screen: Path, status: int) -> str:
    """What a failed command printed as its error, or its status."""
    lines = screen.read_text("utf-8", errors="replace").splitlines()
    said = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    ended = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"{said[-1] if said else ended} (all it printed: {screen})"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
