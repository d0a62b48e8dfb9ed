"""Processes that do one call after another, and whose death is survived."""

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

# Forked from a process that has no more than imported what readers need, a worker is there at once. Forked
# from this one, it would share the threads of PyTorch and Blosc2 half-way through their work.
_SERVER = (
    "forkserver" in multiprocessing.get_all_start_methods()
    and len(tempfile.gettempdir()) < 70  # the server is called through a socket there, named in 108 bytes
)
_context: Any = multiprocessing.get_context("forkserver" if _SERVER else "spawn")
_IMPORTED = ["dae3d.scans.read"]
# Where PyTorch is at hand workers need it too, for labelled cases, and would take seconds each to import it.
_WITH_TORCH = "dae3d.store.case_files"

_starting = threading.Lock()


class WorkerDied(Exception):
    """A process ended, or was ended, in the middle of a call; the message goes on from "its process"."""


class Worker:
    """A process for one call at a time; it ends with the one that started it.

    Args:
        begin: called in the process before all else; its error is that of the first call.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, begin), daemon=True)
        with _starting_processes():
            self._process.start()
        theirs.close()

    @property
    def signs(self) -> list[Any]:
        """What `multiprocessing.connection.wait` is told of: an answer, the end of the process."""
        return [self._pipe, self._process.sentinel]

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Hand over a call; raises WorkerDied where there is no process any more."""
        try:
            self._pipe.send((function, arguments))
        except OSError:
            raise self._death() from None

    def answer(self, seconds: float | None = None) -> Any:
        """What the call returned, or raised, once it is done.

        Raises:
            WorkerDied: where the process has died of it, or is ended after so many seconds.
        """
        ready = wait(self.signs, seconds)
        if not ready:
            self.kill()
            raise WorkerDied("was ended for taking too long")
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
        """End the process at once."""
        self._process.kill()
        self._pipe.close()

    def end(self) -> None:
        """End the process once it has done what it is doing, and wait for that."""
        self._pipe.close()
        self._process.join()

    def _death(self) -> WorkerDied:
        self._process.join()
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return WorkerDied("was killed, most often for lack of memory")
        if code is not None and code < 0:
            return WorkerDied(f"crashed ({signal.Signals(-code).name})")
        return WorkerDied(f"ended with status {code}")


def expendable() -> bool:
    """Whether the death of this process is survived by the one that started it."""
    return multiprocessing.current_process().daemon


@contextmanager
def _starting_processes() -> Iterator[None]:
    """What processes inherit that are started within: Ctrl-C is for the main process, to end the work.

    They also do not run the caller's script again, of which nothing is needed there.
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
    """Be a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    begun = _outcome(begin)
    # The parent closed the pipe, or was ended with an answer unread in it.
    with suppress(EOFError, ConnectionError):
        while True:
            function, arguments = pipe.recv()
            outcome = _outcome(function, *arguments) if begun[0] else begun
            pipe.send(outcome)
            # Not held while the next is worked on.
            del function, arguments, outcome


def _outcome(function: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    """Whether a call came to its end, and what it returned or raised."""
    try:
        return True, function(*arguments)
    except Exception as error:
        error.add_note("in a worker process:\n" + traceback.format_exc())
        return False, _sent_whole(error)


def _sent_whole(error: Exception) -> Exception:
    """The error, if it can be sent, or else one with its words."""
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
