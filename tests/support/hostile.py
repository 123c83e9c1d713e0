"""Files made to do harm, and what must hold whatever a file says. Used by tests and by the fuzzers."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from lambda_grpo import InputError
from lambda_grpo.report import ReportOptions, write_report
from lambda_grpo.report.analysis import analyse
from lambda_grpo.report.page import render
from lambda_grpo.rollouts import RolloutReader

MARKUP = (
    "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a><base href=http://127.0.0.1:9/><!-- {{ 7*7 }} ]]>"
)
TEXTS = [
    "",
    "7+2 = 9",
    MARKUP,
    "<!--<script>",
    "\u202egnorw\u202c\x00\x07\x1b[31m\u2028\u200b\U000e0041",
    "\ud800 lone \udfff",
    "🙂👩‍👩‍👧 مرحبا e\u0301",
    "'\"`${7*7}\\u003cb\\u003e",
    "__proto__",
    '[{"role": "user", "content": "said"}]',
    '[{"role": "user", "content": [{"text": 3}, 4]}]',
    '[{"' + "[" * 3000,
    "a " * 500,
]
NUMBERS = [
    0, 1, -1, 0.5, True, False, -0.0, 5e-324, 1e-300, 1e307, -1e307, 1.7e308, float("nan"), float("inf"), -float("inf"),
    2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400,
]  # fmt: skip
SHAPES: list[Any] = [
    None,
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    [1, 2.5],
    [True, 1],
    [[1], [2, 3]],
    {"role": "user"},
    [{"role": "user", "content": "said"}],
    [{"role": "user", "content": {"text": "x"}}],
    [{"role": "user", "content": [None, 3, "x", {"type": "image"}, {"text": ["y"]}]}],
    [{"role": ["user"], "content": 5, "tool_calls": {"a": float("nan")}}, {"role": None}],
    [{"role": "a", "content": 0}, {"role": "b", "content": [[]]}],
    [["a"] * 3] * 3,
    [2**31 - 1, 0],
    [2**64, -1],
]
COLUMNS = (
    "step", "group", "prompt", "completion", "token_ids", "tokens", "block", "reward", "advantage", "correct",
)  # fmt: skip
OTHER_COLUMNS = ("input", "output", "score", "uid", "acc", "accuracy_reward", "note", "__proto__", MARKUP)
# What no JSON library writes, but a file may hold.
RAW = [
    "NaN", "-Infinity", "1e999", "9" * 5000, "1." + "0" * 5000, "[" * 2000 + "]" * 2000, '{"a":' * 900 + "1" + "}" * 900,
    '"\\ud800"', '"\x00"', "'x'", "", "tru", "01", '"\\u0000"', "[" * 990 + "]" * 990, "{}", "1e5,\"reward\":2",
]  # fmt: skip


@cache
def _frame(several: bool) -> tuple[str, str]:
    """What stands before and after the data in any page of one run, or of several runs."""
    content: dict[str, Any] = {"groups": [], **({"comparison": {}} if several else {})}
    before, _, after = render(content).partition('<script type="application/json" id="data">')
    return before, after[after.index("</script>") :]


def assert_inert(html: str) -> Any:
    """Nothing of the rollouts stands in the page but in the block of data, from which nothing gets out.

    Returns:
        the data.
    """
    before, after = _frame("compare-title" in html[: html.find("</header>")])
    assert html.startswith(before), "what comes before the data has changed"
    assert html.endswith(after), "what comes after the data has changed"
    data = html.removeprefix(before).removeprefix('<script type="application/json" id="data">')
    data = data[: len(data) - len(after)]
    assert data.isascii()
    assert "<" not in data
    return json.loads(data)


def assert_only_refused(read: Callable[[], object]) -> bool:
    """Run `read`; whether it came through. Anything but `InputError` goes up."""
    try:
        read()
    except InputError as error:
        said = str(error)
    else:
        return True
    assert len(said) < 5000, "a message that nobody can read"
    return False


def assert_survived(paths: Sequence[Path], out: Path, group_size: int | None = None) -> bool:
    """Rollouts of any content are measured, counted as unusable, or refused; the page is inert.

    Returns:
        whether a page was made.
    """
    assert_only_refused(lambda: analyse(RolloutReader(paths, group_size=group_size)))
    options = ReportOptions(skip_bad=True, groups=5, group_size=group_size)
    if not assert_only_refused(lambda: write_report(paths, out, options)):
        return False
    data = assert_inert(out.read_text("utf-8"))
    assert data == json.loads(out.with_suffix(".json").read_text())
    return True


def random_rows(random: Random) -> list[dict[str, Any]]:
    """A few groups; most values fit their columns, and the texts are hostile in any case."""
    rows = []
    for group in range(random.randint(1, 3)):
        name, prompt, step = (
            random.choice([group, str(group), f"{MARKUP}{group}"]),
            random.choice(TEXTS),
            group // 2,
        )
        forks = random.random() < 0.5
        for slot in range(random.randint(2, 6)):
            tokens = [random.choice(TEXTS[:9]) for _ in range(random.randint(0, 6))]
            row = {
                "step": step,
                "group": name,
                "prompt": prompt,
                "tokens": tokens,
                "reward": random.choice([0, 1]),
            }
            row |= {
                "advantage": random.choice([-1e100, -1, 1e-300, 0.5, 1e100]),
                "correct": random.random() < 0.5,
            }
            if forks:  # after the first token
                row["tokens"] = tokens = [MARKUP, *tokens]
                row["block"] = [0, *[slot + 1] * (len(tokens) - 1)]
            if random.random() < 0.1:
                row[random.choice([*COLUMNS, *OTHER_COLUMNS])] = random.choice([*NUMBERS, *TEXTS, *SHAPES])
            rows.append(row)
    return rows
