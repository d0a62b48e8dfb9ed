"""Worker processes that execute calls, and whose death the caller survives."""

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

# Workers forked from a server that has only imported the readers start fast. Forked from this process, they
# would inherit the state of PyTorch's and Blosc2's threads in the middle of their work.
_SERVER = (
    "forkserver" in multiprocessing.get_all_start_methods()
    and len(tempfile.gettempdir()) < 70  # for its socket, whose path is limited to 108 bytes
)
_context: Any = multiprocessing.get_context("forkserver" if _SERVER else "spawn")
_IMPORTED = ["dae3d.scans.read"]
# If PyTorch is imported here, the server imports it once for all workers, which need it for labelled cases.
_WITH_TORCH = "dae3d.store.case_files"

_starting = threading.Lock()


class WorkerDied(Exception):
    """A process ended in the middle of a call; the message continues "its process"."""


class Worker:
    """A process for one call at a time; it ends with its parent.

    Args:
        begin: called first in the process; the first call raises its error.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, begin), daemon=True)
        with _starting_processes():
            self._process.start()
        theirs.close()

    @property
    def signs(self) -> list[Any]:
        """What to pass to `multiprocessing.connection.wait`: ready on an answer, or when the process ends."""
        return [self._pipe, self._process.sentinel]

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a call; raises WorkerDied if the process has ended."""
        try:
            self._pipe.send((function, arguments))
        except OSError:
            raise self._death() from None

    def answer(self, seconds: float | None = None) -> Any:
        """Wait for the call; returns what it returned, or raises what it raised.

        Raises:
            WorkerDied: if the process died, or was killed after `seconds`.
        """
        ready = wait(self.signs, seconds)
        if not ready:
            self.kill()
            raise WorkerDied("was killed because it took too long")
        if self._pipe not in ready and not self._pipe.poll():
            raise self._death()
        try:
            done, result = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if done:
            return result
        raise result

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._pipe.close()

    def end(self) -> None:
        """Let the process end after its current call, and wait for it."""
        self._pipe.close()
        self._process.join()

    def _death(self) -> WorkerDied:
        self._process.join()
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return WorkerDied("was killed, most likely for lack of memory")
        if code is not None and code < 0:
            return WorkerDied(f"crashed ({signal.Signals(-code).name})")
        return WorkerDied(f"ended with status {code}")


def expendable() -> bool:
    """Whether this is a worker process, whose death its parent survives."""
    return multiprocessing.current_process().daemon


@contextmanager
def _starting_processes() -> Iterator[None]:
    """Start processes so that Ctrl-C reaches only the main process, which ends the work.

    Also keeps them from importing the caller's script.
    """
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if _SERVER:
                also = [_WITH_TORCH] if "torch" in sys.modules else []
                _context.set_forkserver_preload([*_IMPORTED, *also])
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sys.modules["__main__"] = main


def _serve(pipe: Connection, begin: Callable[[], None]) -> None:
    """Run a worker's loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    begun = _outcome(begin)
    # The parent closed the pipe, or ended with an unread answer.
    with suppress(EOFError, ConnectionError):
        while True:
            function, arguments = pipe.recv()
            outcome = _outcome(function, *arguments) if begun[0] else begun
            pipe.send(outcome)
            # Frees memory during the next call.
            del function, arguments, outcome


def _outcome(function: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    """Whether a call succeeded, and what it returned or raised."""
    try:
        return True, function(*arguments)
    except Exception as error:
        error.add_note("in a worker process:\n" + traceback.format_exc())
        return False, _picklable(error)


def _picklable(error: Exception) -> Exception:
    """The error, or if it cannot be pickled, a RuntimeError with its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
