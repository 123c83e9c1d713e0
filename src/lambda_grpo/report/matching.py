"""Which groups of several runs belong together: those of the same prompt, met at the same training step.

    runs   a a a b b b          groups, in the order in which they are read
    step   0 0 1 0 0 1
    prompt p q p p p r    →     [[0, 3], [2, 4]]: p at step 0 in both; p at step 1 of a, at step 0 of b

A prompt is its text, or its token ids where a file holds no text. Several groups of one prompt at one step
are matched by their order. What is left over is matched by the prompt alone, by order again.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.rollouts import Group

_END = 300  # characters that are kept of either end of a prompt

Int = NDArray[np.int64]


@dataclass
class MetPrompts:
    """What is noted of each group while groups are read, one entry a group.

    Attributes:
        keys: the same for the same prompt; empty if the file holds no prompt.
        prompts: the text, without its middle if it is long.
        ids: checksum of the prompt's token ids; 0 if they are not known.
        completions: checksum of the completions' token ids.
    """

    keys: list[bytes] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    completions: list[int] = field(default_factory=list)

    def note(self, group: Group) -> None:
        ids = group.prompt_ids[0].tobytes() if group.prompt_ids else b""
        known = group.prompt.encode("utf-8", "surrogatepass") or ids
        self.keys.append(blake2b(known, digest_size=16).digest() if known else b"")
        self.prompts.append(_without_middle(group.prompt))
        self.ids.append(zlib.crc32(ids) if ids else 0)
        checksum = 0
        for row in group.token_ids:
            checksum = zlib.crc32(row.tobytes(), zlib.crc32(bytes([0]), checksum))
        self.completions.append(checksum)


def match(runs: Sequence[int], steps: Sequence[int], keys: Sequence[bytes]) -> Int:
    """(P, R) the groups of each problem: one per run, -1 where the run did not meet it; at least two of them.

    Args:
        runs, steps: of each group: the number of its run, and its training step.
        keys: of its prompt; groups with an empty one are not matched.

    >>> match([0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 1], [b"p", b"q", b"p", b"p", b"p", b"r"]).tolist()
    [[0, 3], [2, 4]]
    """
    count = max(runs, default=0) + 1
    known = [row for row, key in enumerate(keys) if key]
    exact, left = _together((((keys[row], steps[row]), row) for row in known), runs, count)
    others, _ = _together(((keys[row], row) for row in left), runs, count)
    problems = sorted([*exact, *others], key=lambda rows: (max(steps[row] for row in rows if row >= 0), rows))
    return np.array(problems, np.int64).reshape(-1, count)


def _together(
    keyed: Iterable[tuple[object, int]], runs: Sequence[int], count: int
) -> tuple[list[list[int]], list[int]]:
    """The first groups of each key in each run, the second ones, and so on; and those that stay alone."""
    waiting: dict[object, list[list[int]]] = {}
    for key, row in keyed:
        waiting.setdefault(key, [[] for _ in range(count)])[runs[row]].append(row)
    problems, alone = [], []
    for lists in waiting.values():
        for place in range(max(map(len, lists))):
            rows = [mine[place] if place < len(mine) else -1 for mine in lists]
            if sum(row >= 0 for row in rows) > 1:
                problems.append(rows)
            else:
                alone.append(max(rows))
    return problems, sorted(alone)


def _without_middle(text: str) -> str:
    return text if len(text) <= 2 * _END else f"{text[:_END]} … {text[-_END:]}"


def told_apart(prompts: Sequence[str], length: int = 200) -> list[str]:
    """Prompts without what all of them begin with, each at most `length` characters.

    >>> told_apart(["You add numbers. Add 1 and 2", "You add numbers. Add 3 and 4"], 8)
    ['… 1 and 2', '… 3 and 4']
    """
    same = 0
    if len(set(prompts)) > 1:
        low, high = min(prompts), max(prompts)
        same = next(
            (i for i, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low)
        )
        same = max(low.rfind(" ", 0, same), low.rfind("\n", 0, same)) + 1
    shown = [text[same:] for text in prompts]
    cut = [text if len(text) <= length else text[:length] + "…" for text in shown]
    return [f"… {text}" for text in cut] if same > 12 else [text[:length] for text in prompts]
