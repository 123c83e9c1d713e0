"""Calls in a worker process, each under a time limit that holds whatever the call does.

Scorers of free text may hang: sympy tries to compute 9**9**9. Signals cannot stop C code and work in the main
thread only, so other people's scorers run in a process that can be ended. One worker serves the whole
process; it starts at the first call, keeps what it imported, and is replaced after an overrun.

The limit is kept by faulthandler's watchdog, a thread of the worker that needs no interpreter lock: when
time is up the worker ends, and the caller reads the end of the pipe. A worker also ends with its parent. Its
memory is capped (on Linux), and hashing is fixed, so that generators which iterate over sets repeat.

A process pool does not serve: multiprocessing's (and so pebble's) runs the caller's script again in each
worker, starts the one after an overrun with the environment of that moment, so with another hash seed, and
lets a worker in C code outlive its parent.

A worker is no sandbox: it may do whatever its parent may.
"""

import atexit
import contextlib
import faulthandler
import importlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import IO, Any

from lambda_grpo.errors import LambdaGRPOError

SECONDS = 5.0
_log = logging.getLogger(__name__)
_MEMORY_BYTES = 4 << 30
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class CallStopped(LambdaGRPOError):
    """A call ran past its time limit, or ended the worker (out of memory, a crash)."""


def call(function: Callable[..., Any], *args: Any, seconds: float = SECONDS, importing: str = "") -> Any:
    """`function(*args)`, computed by the worker. May be called from any thread, one call at a time.

    Args:
        function: a function at the top level of an importable module.
        args: anything that can be pickled; the result must be too.
        seconds: the time limit, which does not include starting the worker and importing.
        importing: a module to import before the time starts.

    Raises:
        CallStopped: time is up, or the worker ended. It is logged too, because callers may score it 0.
        LambdaGRPOError: the function raised one, or something else (its traceback is quoted), or the
            worker cannot start.
    """
    with _lock:
        global _shared
        if _shared is None or not _shared.usable():
            _shared = _Worker()
        outcome, value = _shared.ask((function, args, seconds, importing))
    if outcome == "value":
        return value
    if outcome == "refused":
        raise value
    if outcome == "stopped":
        message = (
            f"{function.__module__}.{function.__qualname__}: stopped, {seconds:g} s or the memory ran out"
        )
        _log.warning(message)
        raise CallStopped(message)
    raise LambdaGRPOError(f"{function.__qualname__} failed in the worker process:\n{value}")


class _Worker:
    """The parent's end: one request is written, one reply is read."""

    def __init__(self) -> None:
        self._parent = os.getpid()
        path = os.pathsep.join(folder or "." for folder in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from lambda_grpo.tasks.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._replies = self._process.stdin, self._process.stdout
        if self._read()[0] != "ready":
            raise LambdaGRPOError(f"the worker process {sys.executable} did not start: see its error above")

    def usable(self) -> bool:
        """False in a forked child, which shares its parent's pipes, and after the worker has ended."""
        return self._parent == os.getpid() and self._process.poll() is None

    def ask(self, request: Any) -> tuple[str, Any]:
        content = pickle.dumps(request)
        try:
            with contextlib.suppress(BrokenPipeError):
                _send(self._requests, content)
            return self._read()
        except BaseException:  # interrupted while a reply is due: it must not answer the next request
            self.end()
            raise

    def _read(self) -> tuple[str, Any]:
        try:
            reply: tuple[str, Any] = pickle.loads(pickle.load(self._replies))
            return reply
        except (EOFError, pickle.UnpicklingError):  # the worker has ended, perhaps while it wrote
            self.end()
            return "stopped", None

    def end(self) -> None:
        if self._parent != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._replies.close()


_lock = threading.Lock()
_shared: _Worker | None = None


@atexit.register
def _end_shared() -> None:
    if _shared is not None:
        _shared.end()


def serve() -> None:
    """The worker's end: answer requests until the parent closes the pipe."""
    requests, replies = _take_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    logging.disable()
    warnings.simplefilter("ignore")
    _cap_memory()
    _send(replies, pickle.dumps(("ready", None)))
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        while True:
            try:
                request = pickle.load(requests)
            except EOFError:
                return
            _send(replies, _reply(request, nowhere))


def _reply(request: bytes, nowhere: IO[str]) -> bytes:
    try:
        function, args, seconds, importing = pickle.loads(request)
        if importing:
            importlib.import_module(importing)
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            return pickle.dumps(("value", function(*args)))
        except MemoryError:
            return pickle.dumps(("stopped", None))
        finally:
            faulthandler.cancel_dump_traceback_later()
    except LambdaGRPOError as error:
        return pickle.dumps(("refused", error))
    except Exception:
        return pickle.dumps(("failed", traceback.format_exc()))


def _send(pipe: IO[bytes], content: bytes) -> None:
    """Write `content` as one pickled object, so that a reader takes all of it, understood or not."""
    pickle.dump(content, pipe)
    pipe.flush()


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for us alone: what others print or read goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, replies


def _cap_memory() -> None:
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        cap = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (cap, hard))
