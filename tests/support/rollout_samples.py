"""Made-up rollouts for tests and benchmarks: groups whose completions branch like sampled text does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "so",
    "we",
    "first",
    "add",
    "the",
    "numbers",
    "then",
    "check",
    "each",
    "total",
    "again",
    "because",
    "it",
    "is",
    "easy",
    "to",
    "slip",
    "here",
    "now",
    "let",
    "us",
    "write",
    "half",
    "of",
    "x",
    "as",
    "two",
    "fifths",
    "and",
    "try",
    "seven",
    "eight",
    "nine",
    "maybe",
    "wrong",
    "hmm",
    "wait",
    "okay",
    "therefore",
    "answer",
]


# The group of test_flaw_measures.py: tree and numbers are worked out there.
BY_HAND = [
    {"group": "hand", "prompt": "count", "tokens": tokens, "reward": r, "advantage": a}
    for tokens, r, a in [
        (["one ", "two ", "three"], 1.0, 3.0),
        (["one ", "two ", "four"], 0.0, -2.0),
        (["one ", "five"], 0.0, -2.0),
        (["six"], 0.5, 1.0),
    ]
]


def branching_ids(rng: np.random.Generator, count: int, length: int, stay: float = 0.9) -> list[list[int]]:
    """`count` completions of at most `length` tokens; each leaves an earlier one after a geometric number
    of tokens."""
    rows: list[list[int]] = []
    for i in range(count):
        tokens = rng.integers(0, len(WORDS), int(rng.integers(length // 2, length + 1))).tolist()
        if rows:
            source = rows[int(rng.integers(i))]
            kept = min(int(rng.geometric(1 - stay)), len(source), len(tokens))
            tokens[:kept] = source[:kept]
        rows.append(tokens)
    return rows


def text_of(ids: Sequence[int]) -> str:
    return "".join(f" {WORDS[i]}" for i in ids)


def group_rows(
    rng: np.random.Generator, step: int, group: int, count: int = 8, length: int = 40
) -> list[dict[str, Any]]:
    """One group in the plain schema; longer shared prefixes at later steps."""
    ids = branching_ids(rng, count, length, stay=0.85 + 0.01 * min(step, 10))
    return [
        {
            "step": step,
            "group": group,
            "prompt": f"Problem {group}: what is {group} + {step}?",
            "completion": text_of(row),
            "token_ids": row,
            "reward": float(rng.random() < 0.3 + 0.03 * step),
        }
        for row in ids
    ]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_run(folder: Path, steps: int, groups: int, seed: int = 0) -> Path:
    """A run folder of ours: one Parquet file per step."""
    rng = np.random.default_rng(seed)
    (folder / "rollouts").mkdir(parents=True)
    for step in range(steps):
        rows = [row for group in range(groups) for row in group_rows(rng, step, group)]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "rollouts" / f"step-{step:06d}-rank-0.parquet")
    return folder


def save_tokenizer(folder, characters):
    """One id per character, from 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token=characters[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)
