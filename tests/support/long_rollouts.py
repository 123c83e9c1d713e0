"""Made-up rollouts as long as those of reasoning models: maths, code, chat markers, several turns with tools."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lambda_grpo.branching import BranchPlan
from lambda_grpo.rollouts.tokens import pieces

PROMPT = [
    {
        "role": "system",
        "content": "You are a careful mathematician. You may call tools.\n\n<tools>\n"
        '{"type": "function", "function": {"name": "python", "description": "Run a program and return what it '
        'prints.", "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": '
        '["code"]}}}\n</tools>\n\nThink inside <think> … </think>. Put the final answer into \\boxed{}.',
    },
    {
        "role": "user",
        "content": "Let $a_n$ be the number of ways to tile a $2 \\times n$ board with dominoes and $2 \\times 2$ "
        "squares. Find the remainder of $a_{20}$ when it is divided by 1000.",
    },
]
OPENING = "<think>\nOkay, so I need to count tilings of a $2 \\times n$ board. Let me set up a recurrence first.\n\n"
THOUGHTS = [
    "If the last column is covered by one vertical domino, what remains is a $2 \\times (n-1)$ board, which has "
    "$a_{n-1}$ tilings. Otherwise the last two columns hold two horizontal dominoes or one square.\n\n",
    "So $a_n = a_{n-1} + 2a_{n-2}$ with $a_1 = 1$ and $a_2 = 3$. Let me check $a_2$ by hand: two vertical, two "
    "horizontal, one square. That makes 3. Good.\n\n",
    "The characteristic equation is $x^2 - x - 2 = 0$, so $(x-2)(x+1) = 0$ and the roots are $2$ and $-1$. Hence "
    "$$a_n = \\frac{2^{n+1} + (-1)^n}{3}.$$\nFor $n = <a>$ this gives "
    "$\\frac{2^{<b>} \\pm 1}{3}$.\n\n",
    "Wait, I should double-check this. Suppose $n = <a>$. Then $a_{<a>} = <c>$, and the recurrence gives "
    "<c> = <d> + 2 · <e>. Hmm, does that agree? <d> + <f> is <c>, so yes.\n\n",
    "Alternatively, count by the number $k$ of positions that are not a vertical domino: "
    "$\\sum_k \\binom{n-k}{k} 2^k$. With $n = <a>$ the terms are 1, <d>, <e>, … and their sum should be <c>. "
    "Let me add them slowly, because it is easy to slip here.\n\n",
    "Hmm, wait. Is a $2 \\times 2$ square different from two horizontal dominoes that lie above each other? The "
    "problem names both, so they are different tilings, and the factor 2 is right.\n\n",
    "- $n = <a>$: $<c>$\n- $n = <b>$: $<d>$\n- the difference is $<e>$, which is $2 \\cdot <f>$\n\nThe pattern "
    "holds, so I trust the recurrence now.\n\n",
    "Modulo 1000 I can reduce at each step: <c> + 2 · <d> ≡ <e> (mod 1000). I keep three digits and go on.\n\n",
]
CODE = [
    "def tilings(n):\n    a, b = 1, 1  # a_0, a_1\n    for _ in range(n - 1):\n        a, b = b, b + 2 * a\n"
    "    return b\n\nfor n in (<a>, <b>, 20):\n    print(n, tilings(n), tilings(n) % 1000)\n",
    "from functools import cache\n\n@cache\ndef count(n):\n    if n < 0:\n        return 0\n    return 1 if n == 0 "
    "else count(n - 1) + 2 * count(n - 2)\n\nassert count(<a>) == <c>\nprint(count(20) % 1000)\n",
]
TURN = "<|im_end|>\n<|im_start|>{role}\n"


class Writer:
    """Writes what a reasoning model might write, without end."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def filled(self, templates: Sequence[str]) -> str:
        """One of the templates, with a number in the place of each <a>, <b>, …"""
        numbers = {f"<{name}>": str(self.rng.integers(3, 999)) for name in "abcdef"}
        template = templates[int(self.rng.integers(len(templates)))]
        return re.sub("<[a-f]>", lambda found: numbers[found[0]], template)

    def tool_turn(self) -> str:
        code = self.filled(CODE)
        call = f'<tool_call>\n{{"name": "python", "arguments": {{"code": {code!r}}}}}\n</tool_call>'
        said = "".join(f"{n} {v} {v % 1000}\n" for n, v in self.rng.integers(1, 99_999, (2, 2)).tolist())
        answer = f"<tool_response>\n{said}</tool_response>"
        again = TURN.format(role="assistant") + "<think>\nThe program agrees with one of my two values. "
        return f"</think>\n\nLet me run it.\n\n```python\n{code}```\n{call}{TURN.format(role='tool')}{answer}{again}"

    def parts(self) -> Iterator[str]:
        yield OPENING
        while True:
            for _ in range(int(self.rng.integers(5, 9))):
                yield self.filled(THOUGHTS)
            yield self.tool_turn()

    def tokens(self, count: int, opening: bool) -> list[str]:
        """At least `count` tokens, to the end of a part."""
        written: list[str] = []
        parts = self.parts()
        if not opening:
            next(parts)
        while len(written) < count:
            written += pieces(next(parts))
        return written

    def ending(self, answer: int) -> list[str]:
        said = f"</think>\n\nThe recurrence gives $a_{{20}} = 699051$, so the remainder is **{answer}**.\n\n"
        return pieces(f"{said}$$\\boxed{{{answer}}}$$<|im_end|>")


def long_rows(count: int = 16, tokens: int = 4000, seed: int = 0) -> list[dict[str, Any]]:
    """One group of chat completions; each leaves an earlier one somewhere in its first half."""
    rng = np.random.default_rng(seed)
    writer = Writer(rng)
    texts: list[list[str]] = []
    for i in range(count):
        length = int(rng.integers(tokens // 2, tokens))
        kept: list[str] = []
        if i:
            source = texts[int(rng.integers(i))]
            kept = source[: int(rng.integers(20, len(source) // 2))]
        texts.append(kept + writer.tokens(length - len(kept), opening=not kept))
    return _rows(rng, writer, texts)


def forked_rows(plan: BranchPlan, count: int = 16, tokens: int = 1200, seed: int = 0) -> list[dict[str, Any]]:
    """One group that forked by `plan`. All roots begin alike by coincidence; the last ended before its first fork."""
    rng = np.random.default_rng(seed)
    writer = Writer(rng)
    roots, *forked = plan.sizes(count)
    texts: list[list[str]] = []
    for _ in range(0, count, roots):
        texts += [writer.tokens(tokens, opening=True)] * roots
    for depth, size in zip(plan.depths, forked, strict=True):
        for first in range(0, count, size):
            texts[first : first + size] = [
                texts[first][:depth] + writer.tokens(tokens - depth, opening=False)
            ] * size
    ended = pieces(OPENING)[: plan.depths[0] - 1]
    texts[count - roots :] = [ended] * roots
    rows = _rows(rng, writer, texts[: count - roots])
    rows += [{**rows[0], "tokens": ended, "completion": "".join(ended), "reward": 0.0}] * roots
    blocks = plan.blocks(count, max(len(row["tokens"]) for row in rows))
    return [{**row, "block": blocks[i, : len(row["tokens"])].tolist()} for i, row in enumerate(rows)]


def _rows(rng: np.random.Generator, writer: Writer, texts: Sequence[list[str]]) -> list[dict[str, Any]]:
    rows = []
    for text in texts:
        right = bool(rng.random() < 0.4)
        tokens = text + writer.ending(51 if right else int(rng.integers(100, 999)))
        rows.append(
            {
                "group": "tiling",
                "prompt": PROMPT,
                "tokens": tokens,
                "completion": "".join(tokens),
                "reward": float(right),
            }
        )
    return rows
