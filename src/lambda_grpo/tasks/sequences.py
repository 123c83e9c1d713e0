"""`sequences`: given n, d and S, write n integers in non-decreasing order with sum S and last − first = d.

A completion is the integers, separated by commas or spaces, with or without brackets round them; text
before or after counts only if the integers stand in `<answer>…</answer>`. The reward is 1 if every condition
holds, otherwise 0. A problem often has several right answers: a tree of completions with several good
branches.

**For which (n, d) is there exactly one sequence, whatever the integer S?** Let n ≥ 2 and write the sequence
as a + b with a its first member and 0 = b₁ ≤ … ≤ bₙ = d. Then S = n·a + Σb: b can be used iff Σb ≡ S (mod n),
and it fixes a. So exactly one sequence exists for every S iff the sums Σb, over all b, are a complete residue
system modulo n, each residue once. The n − 2 inner members of b are any multiset from {0, …, d}, so there are
C(n−2+d, d) of them, and that must be n:

- n = 2: there is one b, not two.
- n = 3: there are d + 1, so d = 2; the sums 2, 3, 4 are indeed all residues modulo 3.
- n ≥ 4: there are 1 < n for d = 0, n − 1 < n for d = 1, and at least C(n, 2) = n(n−1)/2 > n for d ≥ 2.

Hence (3, 2) alone. (With n = 1 the sequence is S itself, for d = 0 only.)
"""

import random
import re
from collections.abc import Mapping

from lambda_grpo.errors import InputError
from lambda_grpo.tasks.answers import final_answer
from lambda_grpo.tasks.task import Problem, Split, in_test_split

_LENGTHS = (2, 6)
_SPREADS = (0, 9)
_SUMS = (-50, 99)
# At most 18 digits: int() refuses very long numbers.
_INTEGERS = re.compile(r"-?\d{1,18}(?:(?:\s*,\s*|\s+)-?\d{1,18})*", re.ASCII)
_BRACKETS = {("[", "]"), ("(", ")"), ("{", "}")}


class Sequences:
    """Non-decreasing sequences of integers with a given length, sum and spread."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Random n from 2 to 6, d from 0 to 9 and S from −50 to 99 for which a sequence exists.

        One prompt in eight, chosen by checksum, belongs to the test split. Prompts may repeat.
        """
        rng = random.Random(f"{seed} {split}")
        return [_problem(split, rng) for _ in range(count)]

    def score(self, problem: Problem, completion: str) -> float:
        wanted = problem.answer
        values = _read(final_answer(completion))
        return float(
            len(values) == wanted["n"]
            and values == sorted(values)
            and values[-1] - values[0] == wanted["d"]
            and sum(values) == wanted["S"]
        )

    def traits(self, completion: str) -> Mapping[str, float]:
        return {}


def count_sequences(n: int, d: int, total: int) -> int:
    """How many non-decreasing sequences of n integers have sum `total` and last − first = d.

    >>> count_sequences(3, 2, 7), count_sequences(4, 2, 6), count_sequences(2, 1, 4)
    (1, 2, 0)

    Raises:
        InputError: n is less than 1.
    """
    return _counts_by_residue(n, d)[total % n]


def _counts_by_residue(n: int, d: int) -> list[int]:
    """Element r is the number of sequences for each sum S ≡ r (mod n)."""
    if n < 1:
        raise InputError(f"n: a sequence needs at least one integer, got {n}")
    if d < 0 or (n == 1 and d > 0):
        return [0] * n
    if n == 1:
        return [1]
    # ways[k][r]: multisets of k values out of those seen so far, with sum ≡ r
    ways = [[0] * n for _ in range(n - 1)]
    ways[0][0] = 1
    for value in range(d + 1):
        for k in range(1, n - 1):
            ways[k] = [ways[k][r] + ways[k - 1][(r - value) % n] for r in range(n)]
    return [ways[n - 2][(r - d) % n] for r in range(n)]


def _problem(split: Split, rng: random.Random) -> Problem:
    while True:
        n, d, total = rng.randint(*_LENGTHS), rng.randint(*_SPREADS), rng.randint(*_SUMS)
        prompt = (
            f"Write {n} integers in non-decreasing order, separated by commas. "
            f"Their sum is {total} and the last minus the first is {d}."
        )
        if count_sequences(n, d, total) and in_test_split(prompt) == (split == "test"):
            return Problem(prompt, {"n": n, "d": d, "S": total})


def _read(text: str) -> list[int]:
    """The integers of a text; none if it holds anything else."""
    if (text[:1], text[-1:]) in _BRACKETS:
        text = text[1:-1].strip()
    if not _INTEGERS.fullmatch(text):
        return []
    return [int(number) for number in re.split(r"[\s,]+", text)]
