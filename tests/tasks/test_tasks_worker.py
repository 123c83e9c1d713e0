"""The worker process: a time limit that holds whatever a call does."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lambda_grpo import InputError, LambdaGRPOError
from lambda_grpo.errors import unknown_name
from lambda_grpo.tasks import worker
from lambda_grpo.tasks.worker import CallStopped, call


def _allocate(count):
    return len(bytes(count))


HUGE = (10, 10**9)  # pow() of these is C code that holds the interpreter lock for minutes


def test_values_come_back_and_the_worker_is_another_process_that_stays():
    assert call(divmod, 17, 5) == (3, 2)
    assert call(os.getpid) == call(os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("function", "args"),
    [(time.sleep, (60,)), (pow, HUGE), (os._exit, (3,)), (sys.exit, ()), (_allocate, (5 << 30,))],
    ids=["sleeps", "C code", "exits", "SystemExit", "memory"],
)
def test_what_does_not_end_well_is_stopped_and_the_next_call_works(function, args, caplog):
    call(int, "1")
    started = time.monotonic()
    with pytest.raises(CallStopped, match="stopped"):
        call(function, *args, seconds=0.3)
    assert time.monotonic() - started < 3
    assert "stopped, 0.3 s or the memory ran out" in caplog.text
    assert call(int, "7") == 7


def test_a_quick_call_is_not_stopped_and_its_limit_does_not_outlive_it():
    before = call(os.getpid, seconds=0.2)
    time.sleep(0.4)
    assert call(os.getpid) == before


def test_the_limit_holds_outside_the_main_thread():
    stopped = []

    def in_thread():
        try:
            call(pow, *HUGE, seconds=0.3)
        except CallStopped:
            stopped.append(True)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(10)
    assert stopped == [True]


def test_threads_get_their_own_answers():
    answers = {}
    threads = [threading.Thread(target=lambda n=n: answers.update({n: call(pow, n, 2)})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: n * n for n in range(20)}


def test_errors_come_back():
    with pytest.raises(LambdaGRPOError, match=r"(?s)int failed in the worker.*ValueError: invalid literal"):
        call(int, "x")
    with pytest.raises(LambdaGRPOError, match="EOFError"):
        call(eval, "(_ for _ in ()).throw(EOFError())")
    with pytest.raises(LambdaGRPOError, match="no_such_module"):
        call(int, "1", importing="no_such_module")
    with pytest.raises(InputError, match="expected"):
        call(_refuse)
    assert call(int, "7") == 7


def _refuse():
    raise InputError("expected")


def test_what_a_call_prints_does_not_disturb_the_replies():
    assert call(print, "noise" * 1000) is None
    assert call(os.write, 1, b"noise") == 5
    assert call(int, "7") == 7


def test_an_interrupted_call_leaves_no_reply_behind():
    class Interrupted(Exception):
        pass

    def interrupt(signum, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupted):
            call(time.sleep, 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert call(int, "7") == 7


def test_hashing_is_fixed_so_that_sets_repeat():
    first = call(hash, "a")
    worker._shared.end()
    assert call(hash, "a") == first


def test_a_forked_child_gets_a_worker_of_its_own():
    parents = call(os.getpid)
    child = os.fork()
    if child == 0:
        os._exit(0 if call(os.getpid) != parents and call(int, "7") == 7 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert call(os.getpid) == parents


_DIE_BUSY = """
import os, threading, time
from lambda_grpo.tasks.worker import call
print(call(os.getpid), flush=True)
threading.Thread(target=call, args=(pow, 10, 10**9), kwargs={"seconds": 0.5}, daemon=True).start()
time.sleep(0.2)
os._exit(0)
"""


def test_a_worker_ends_with_its_parent_even_if_busy():
    shown = subprocess.run(
        [sys.executable, "-c", _DIE_BUSY], capture_output=True, text=True, check=True
    ).stdout
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_alive(int(shown)):
        time.sleep(0.05)
    assert not _is_alive(int(shown))


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr(worker, "_shared", None)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LambdaGRPOError, match="did not start"):
        call(int, "7")


def test_the_error_for_an_unknown_name_survives_the_pipe():
    with pytest.raises(InputError, match="did you mean 'grpo'"):
        call(_unknown)


def _unknown():
    raise unknown_name("credit", "grpoo", ["grpo"])
