"""Single values of rollout files, checked: numbers, token ids, texts, chat messages."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

_LARGEST = 1e100  # of rewards and advantages: sums of their squares stay finite

_PLACEHOLDER = re.compile(r"\w+ [\d×]+, [0-9a-f]{8}")  # of an image, by `writing.write_rollouts`

MISSING: Any = object()
"""Stands for the reward of a row that has no such column, which is a fault of the file; null is not."""


class BadRow(Exception):
    """A row of the group at hand cannot be used; `index` counts within the group."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def numbers(values: Sequence[Any], name: str) -> Float64:
    """Finite numbers, one per row; true and false are 1 and 0.

    Raises:
        BadRow: a value that is missing, no number, not finite, or so large that its square might not be.
    """
    out = np.array([number(value) for value in values], np.float64)
    _check_numbers(values, name, np.isfinite(out))
    return out


def scores(values: Sequence[Any], name: str) -> Float64:
    """Rewards, one per row; NaN if the file has null or NaN, because no reward function could score the row.

    Raises:
        BadRow: as `numbers`, for all other values.
    """
    out = np.array([number(value) for value in values], np.float64)
    unscored = [is_unscored(value) for value in values]
    _check_numbers(values, name, np.isfinite(out) | unscored)
    return out


def is_unscored(value: Any) -> bool:
    """Whether this is what trainers write for a completion that no reward function could score."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_numbers(values: Sequence[Any], name: str, good: NDArray[np.bool_]) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        i = int(bad[0])
        got = "is missing" if values[i] is None or values[i] is MISSING else f"is {short(values[i])}"
        raise BadRow(i, f"{name} {got}, expected a finite number (of at most {_LARGEST:g} in size)")


def number(value: Any) -> float:
    """The number, or nan for anything that is none."""
    return float(value) if isinstance(value, int | float) and abs(value) <= _LARGEST else math.nan


def token_ids(index: int, value: Any, name: str = "token_ids") -> Int32:
    """One row's token ids.

    Raises:
        BadRow: no list of integers in [0, 2³¹).
    """
    # Checked before numpy sees it: for a list of texts numpy makes room for the longest one in every place.
    whole = isinstance(value, np.ndarray) or (isinstance(value, list) and set(map(type, value)) <= {int})
    ids = np.asarray(value) if whole and len(value) else np.zeros(0, np.int32)
    if not whole or ids.dtype.kind not in "iu" or (ids.size and (ids.min() < 0 or ids.max() >= 2**31)):
        raise BadRow(index, f"{name} is {short(value)}, expected a list of integers from 0 to 2**31 - 1")
    return ids.astype(np.int32)


def right_or_wrong(index: int, value: Any) -> float:
    """One row's `correct`: 1 or 0, nan if it is missing.

    Raises:
        BadRow: neither true, false nor a number.
    """
    if value is None:
        return math.nan
    if not isinstance(value, bool | int | float) or value != value:
        raise BadRow(index, f"correct is {short(value)}, expected true, false or a number")
    return float(bool(value))


def token_strings(index: int, value: Any) -> list[str]:
    """One row's token strings.

    Raises:
        BadRow: no list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(piece, str) for piece in value):
        raise BadRow(index, f"tokens is {short(value)}, expected a list of strings")
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
        except (ValueError, RecursionError):
            return value
        return _joined(messages) if _are_messages(messages) else value
    if _are_messages(value):
        return _joined(value)
    raise BadRow(index, f"{name} is {short(value)}, expected text or chat messages")


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and _is_content(message.get("content"))
            for message in value
        )
    )


def _is_content(value: Any) -> bool:
    """Text, nothing, or blocks: text, image, …"""
    blocks = isinstance(value, list) and all(isinstance(block, dict) for block in value)
    return value is None or isinstance(value, str) or blocks


def _joined(messages: list[dict[str, Any]]) -> str:
    """One message as its content; several with their roles, since they are several speakers."""
    parts = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(map(_block, content))
        calls = message.get("tool_calls")
        said = (content or "") + (json.dumps(calls, ensure_ascii=False) if calls else "")
        parts.append((message["role"], said))
    if len(parts) == 1:
        return str(parts[0][1])
    return "\n".join(f"[{role}] {said}" for role, said in parts)


def _block(block: dict[str, Any]) -> str:
    """A text, or what stands for an image: `[image 640×480, 1f0a92cc]` in our run folders, else `[image]`."""
    if block.get("text"):
        return str(block["text"])
    kind = str(block.get("type"))
    note = block.get(kind)
    return f"[{note if isinstance(note, str) and _PLACEHOLDER.fullmatch(note) else kind}]"


def short(value: Any) -> str:
    """A value as it is shown in messages."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
