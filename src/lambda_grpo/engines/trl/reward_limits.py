"""Reward functions that fail are named, and stop training, before what they return does harm.

A reward function that raises, takes too long, or returns anything but one finite number (or None) per
completion ends training with an error that says which, where and what. Nothing is scored 0 in silence. The
last checkpoint is good: with the function repaired, training goes on from it.
"""

import asyncio
import faulthandler
import functools
import inspect
import math
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from lambda_grpo.errors import InputError, LambdaGRPOError, failure

_GRACE = 30.0
"""Seconds after which a call that did not stop when told to ends the process."""


def guarded(function: Callable[..., Any], name: str, seconds: float) -> Callable[..., Any]:
    """`function` with its failures named and its rewards checked.

    Args:
        function: takes `completions=` and others by keyword; sync or async.
        name: for the messages.
        seconds: the time limit of one call, 0 for none. Kept in the main thread, and for async functions.

    Raises (the guarded function, when called):
        LambdaGRPOError: the function raised, or took too long.
        InputError: it returned something else than one finite number, or None, per completion.
    """
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

        @functools.wraps(function)
        async def later(**given: Any) -> list[float | None]:
            limit = asyncio.timeout(seconds or None)
            try:
                async with limit:
                    rewards = await function(**given)
            except Exception as error:
                # A function may raise a TimeoutError of its own, such as that of a judge's server.
                raise (_too_long(name, seconds) if limit.expired() else _failed(name, error)) from error
            return checked(rewards, given["completions"], name)

        return later

    @functools.wraps(function)
    def now(**given: Any) -> list[float | None]:
        try:
            rewards = _within(lambda: function(**given), seconds, name)
        except Exception as error:
            raise _failed(name, error) from error
        return checked(rewards, given["completions"], name)

    return now


def checked(rewards: Any, completions: Sequence[Any], name: str) -> list[float | None]:
    """`rewards` as a list of numbers, None where a completion cannot be scored.

    >>> checked((1, 0.5, None), ["a", "b", "c"], "right")
    [1.0, 0.5, None]

    Raises:
        InputError: not one finite number or None per completion.
    """
    where = f"reward function {name!r}"
    if isinstance(rewards, str | bytes | dict) or not hasattr(rewards, "__iter__"):
        raise InputError(f"{where} returned {rewards!r}: expected a list, one number per completion")
    try:
        rewards = list(rewards)
    except TypeError as error:  # a tensor of no dimension
        raise InputError(
            f"{where} returned {rewards!r}: expected a list, one number per completion"
        ) from error
    if len(rewards) != len(completions):
        raise InputError(
            f"{where} returned {len(rewards)} rewards for {len(completions)} completions: expected one each, "
            "None for what cannot be scored"
        )
    return [_number(reward, i, completions[i], where) for i, reward in enumerate(rewards)]


def _number(reward: Any, i: int, completion: Any, where: str) -> float | None:
    if reward is None:
        return None
    try:
        number = math.nan if isinstance(reward, str | bytes) else float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        text = repr(completion)
        raise InputError(
            f"{where} returned {reward!r} for completion #{i}, {text[:200]}{'…' if len(text) > 200 else ''}: "
            "expected a finite number, or None for what cannot be scored"
        )
    return number


def _failed(name: str, error: Exception) -> LambdaGRPOError:
    if isinstance(error, LambdaGRPOError):
        return error
    return LambdaGRPOError(f"reward function {name!r} failed: {failure(error)}")


def _too_long(name: str, seconds: float) -> LambdaGRPOError:
    return LambdaGRPOError(
        f"reward function {name!r} took longer than {seconds:g} s for one batch and was stopped: repair it, "
        "or raise reward_timeout (0 for no limit)"
    )


class _TimeIsUp(BaseException):
    """Not an Exception: a reward function that catches everything must not catch it."""


def _within(call: Callable[[], Any], seconds: float, name: str) -> Any:
    """`call()`, interrupted by a signal once time is up.

    A signal wakes a sleeping call too, but not C code that never comes back to Python: such a call ends the
    process, with a traceback, half a minute later. The timer is a thread and the signal is our own, because
    math-verify, which TRL's `accuracy_reward` calls, sets and clears the process's one alarm
    (`signal.alarm`, `setitimer`).
    """
    if not seconds or sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return call()
    number = getattr(signal, "SIGRTMAX", signal.SIGUSR2)

    def stop(*_: Any) -> None:
        raise _TimeIsUp

    previous = signal.signal(number, stop)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), number))
    timer.daemon = True
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=sys.__stderr__)
    try:
        try:
            timer.start()
            return call()
        finally:
            timer.cancel()
            timer.join()  # a signal on its way arrives here at the latest
    except _TimeIsUp:
        raise _too_long(name, seconds) from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(number, previous)
