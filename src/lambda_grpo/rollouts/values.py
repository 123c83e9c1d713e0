"""Single values of rollout files, checked: numbers, token ids, texts, chat messages."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]


class BadRow(Exception):
    """A row of the group at hand cannot be used; `index` counts within the group."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def numbers(values: Sequence[Any], name: str) -> Float64:
    """Finite numbers, one per row; true and false are 1 and 0.

    Raises:
        BadRow: a value that is missing, no number, or not finite.
    """
    out = np.array([number(value) for value in values], np.float64)
    bad = np.flatnonzero(~np.isfinite(out))
    if len(bad):
        i = int(bad[0])
        got = "is missing" if values[i] is None else f"is {_short(values[i])}"
        raise BadRow(i, f"{name} {got}, expected a finite number")
    return out


def number(value: Any) -> float:
    """The number, or nan for anything that is none."""
    return float(value) if isinstance(value, int | float) and abs(value) < 2.0**1023 else math.nan


def token_ids(index: int, value: Any) -> Int32:
    """One row's token ids.

    Raises:
        BadRow: no list of integers in [0, 2³¹).
    """
    try:
        ids = np.asarray([] if value is None else value)
    except (ValueError, OverflowError):
        ids = np.array("ragged")
    whole = ids.ndim == 1 and (ids.dtype.kind in "iu" or not ids.size)
    if value is None or not whole or (ids.size and (ids.min() < 0 or ids.max() >= 2**31)):
        raise BadRow(index, f"token_ids is {_short(value)}, expected a list of integers from 0 to 2**31 - 1")
    return ids.astype(np.int32)


def token_strings(index: int, value: Any) -> list[str]:
    """One row's token strings.

    Raises:
        BadRow: no list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(piece, str) for piece in value):
        raise BadRow(index, f"tokens is {_short(value)}, expected a list of strings")
    return value


def text(index: int, value: Any, name: str) -> str:
    """One row's prompt or completion: text, or chat messages, whose contents are joined.

    Raises:
        BadRow: neither.
    """
    if isinstance(value, str):
        if not value.startswith('[{"'):
            return value
        try:  # our run folders store chat messages as JSON
            messages = json.loads(value)
        except ValueError:
            return value
        return _joined(messages) if _are_messages(messages) else value
    if _are_messages(value):
        return _joined(value)
    raise BadRow(index, f"{name} is {_short(value)}, expected text or chat messages")


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(message, dict) and "role" in message for message in value)
    )


def _joined(messages: list[dict[str, Any]]) -> str:
    """One message as its content; several with their roles, since they are several speakers."""
    parts = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):  # blocks: text, image, …
            content = "".join(str(block.get("text") or f"[{block.get('type')}]") for block in content)
        calls = message.get("tool_calls")
        said = (content or "") + (json.dumps(calls, ensure_ascii=False) if calls else "")
        parts.append((message["role"], said))
    if len(parts) == 1:
        return str(parts[0][1])
    return "\n".join(f"[{role}] {said}" for role, said in parts)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
