"""How answers are scored on the benchmarks as published: right ones, other problems' answers, and the time of each.

    python benchmarks/answers.py FOLDER [--others 5] [--limit ROWS]

FOLDER holds aime24.jsonl, math500.jsonl, amc23.jsonl, minerva.jsonl, olympiadbench.jsonl, gsm8k-test.jsonl; those
that are not there are left out. `right`: the published solution scores 1, or the published answer in a box where
there is no solution, or none that states one. `false`: the answers of the next few problems score 1 although
they are others; `alike` counts those that coincide, which are no mistakes: the same text, or the same number,
with or without `x=` before it.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lambda_grpo.console import progress
from lambda_grpo.tasks import Problem
from lambda_grpo.tasks.answers import last_boxed, stated_answer
from lambda_grpo.tasks.benchmarks import BENCHMARKS, Benchmark, load_benchmark
from lambda_grpo.tasks.maths import gold_text

GSM8K = "gsm8k-test"


def read(folder: Path, name: str) -> tuple[Benchmark, list[str]]:
    """A benchmark's problems, and for each the published solution, or its answer where no solution states one."""
    path = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    if name == GSM8K:
        problems = [Problem(row["question"], gold_text(row["answer"])) for row in rows]
        return Benchmark(name, str(path), problems), [row["answer"] for row in rows]
    benchmark = load_benchmark(name, str(path))
    return benchmark, [
        _solution(row, problem.answer) for row, problem in zip(rows, benchmark.problems, strict=True)
    ]


def _solution(row: Mapping[str, Any], gold: str) -> str:
    solution = row.get("solution")
    if isinstance(solution, str) and last_boxed(solution) is not None:
        return solution
    return gold if r"\boxed" in gold else rf"The answer is {gold}"


def alike(first: str, second: str) -> bool:
    """Whether two gold answers are the same text, or the same number,
    with or without `x=` before it."""
    texts = [re.sub(r"[\s$]|^\$?[a-zA-Z]=", "", last_boxed(gold) or gold) for gold in (first, second)]
    if texts[0] == texts[1]:
        return True
    try:
        return float(texts[0]) == float(texts[1])
    except ValueError:
        return False


def check(name: str, benchmark: Benchmark, solutions: list[str], others: int) -> dict[str, Any]:
    """Counts for one benchmark; `missed` and `wrongly` name the rows."""
    problems = benchmark.problems
    found: dict[str, Any] = {"name": name, "problems": len(problems), "asked": 0, "alike": 0}
    missed, wrongly = [], []
    seconds: list[float] = []
    for i, problem in enumerate(_shown(name, problems)):
        if not _timed(benchmark, problem, solutions[i], seconds):
            missed.append(f"row {i + 1}: {problem.answer[:70]!r}, read {stated_answer(solutions[i])[-70:]!r}")
        for j in range(i + 1, min(i + 1 + others, i + len(problems))):
            other = problems[j % len(problems)].answer
            found["asked"] += 1
            if not _timed(benchmark, problem, other, seconds):
                continue
            if alike(problem.answer, other):
                found["alike"] += 1
            else:
                wrongly.append(f"row {i + 1}: {problem.answer[:70]!r}, said {other[:70]!r}")
    return found | {"missed": missed, "wrongly": wrongly, "ms": 1000 * sum(seconds) / len(seconds)}


def _timed(benchmark: Benchmark, problem: Problem, completion: str, seconds: list[float]) -> bool:
    started = time.perf_counter()
    score = benchmark.score(problem, completion)
    seconds.append(time.perf_counter() - started)
    return score == 1


def _shown(name: str, problems: list[Problem]) -> Iterator[Problem]:
    with progress(name) as shown:
        for i, problem in enumerate(problems):
            yield problem
            shown(i + 1, len(problems))


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The Markdown table of docs/eval.md."""
    lines = [
        "| file | right | other problems' answers | false | coincide | ms each |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        right = row["problems"] - len(row["missed"])
        lines.append(
            f"| `{row['name']}` | {right} of {row['problems']} | {row['asked']} | {len(row['wrongly'])} "
            f"| {row['alike']} | {row['ms']:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--others", type=int, default=5, help="how many other problems' answers to try on each"
    )
    parser.add_argument("--limit", type=int, help="only so many rows of each file")
    options = parser.parse_args()
    names = [name for name in (*BENCHMARKS, GSM8K) if (options.folder / f"{name}.jsonl").is_file()]
    if not names:
        print(f"{options.folder}: expected a file such as aime24.jsonl, found none", file=sys.stderr)
        return 1
    rows = []
    for name in names:
        benchmark, solutions = read(options.folder, name)
        rows.append(check(name, benchmark.first(options.limit), solutions, options.others))
        for kind in ("missed", "wrongly"):
            for line in rows[-1][kind]:
                print(f"{name}, {kind}: {line}")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
