"""What trees and credits cost when groups are huge, when there are many, and what travels between ranks.

1. *Long*: 1,024 completions of up to 32,768 tokens on one rank, as one group and as 64, with kinds of sharing
   from realistic to adversarial: tree and λ weights (`credit.lambda_grpo`), and the measures.
2. *Many*: 100,000 groups of 8 short completions, in one call and in parts.
3. *Ranks*: groups that straddle ranks. The gather is simulated in one process, with the bytes that the TRL engine
   really sends (a pickled list of lists, padded to the longest by `all_gather_object`), beside the least that would do.
   Every rank's weights are compared with those of one process.

Each case runs in a fresh process; its memory is the peak over the data itself. One core, processor time.

    python benchmarks/scale.py          # some minutes, below 6 GB
    python benchmarks/scale.py --quick  # seconds
"""

import argparse
import multiprocessing
import pickle
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from timing import VOCABULARY, branching_group

from lambda_grpo import ProcessTree, credit, measures

Rows = list[np.ndarray]


@dataclass(frozen=True)
class Size:
    """How large the three parts are."""

    completions: int
    length: int
    groups: int
    short: int  # tokens of a short completion
    part: int  # groups per call
    rank_length: int  # tokens of a completion where ranks are simulated


FULL = Size(1_024, 32_768, 100_000, 64, 10_000, 4_096)
QUICK = Size(64, 4_096, 2_000, 64, 500, 256)


def fresh(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, VOCABULARY, count, dtype=np.int32)


def branching(rng: np.random.Generator, count: int, length: int) -> Rows:
    """Nine in ten copy a random stretch of an earlier completion and go on alone; lengths vary by half."""
    return branching_group(count, length, rng, np.int32)


def deep(rng: np.random.Generator, count: int, length: int) -> Rows:
    """All share the first three quarters, as restarts from one state do, and branch after that."""
    trunk = fresh(rng, 3 * length // 4)
    return [np.concatenate([trunk, row]) for row in branching(rng, count, length - len(trunk))]


def nothing_shared(rng: np.random.Generator, count: int, length: int) -> Rows:
    return [fresh(rng, length) for _ in range(count)]


def identical(rng: np.random.Generator, count: int, length: int) -> Rows:
    row = fresh(rng, length)
    return [row.copy() for _ in range(count)]


def comb(rng: np.random.Generator, count: int, length: int) -> Rows:
    """The k-th leaves a common spine after the k-th stretch: as many nodes, and as deep, as can be."""
    spine = fresh(rng, length)
    rows: Rows = []
    for k in range(count):
        row = spine.copy()
        row[(k + 1) * length // (count + 1) :] = fresh(rng, length - (k + 1) * length // (count + 1))
        rows.append(row)
    return rows


KINDS = {kind.__name__: kind for kind in (branching, deep, nothing_shared, identical, comb)}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def weigh(trees: list[ProcessTree], size: int) -> float:
    """Every group's weights, one after the other; their sum, so that none is left out."""
    rewards = np.arange(size) % 2.0
    return sum(float(credit.lambda_grpo(tree, rewards).weight.sum(dtype=np.float64)) for tree in trees)


def long_case(kind: str, completions: int, length: int, groups: int) -> dict[str, float]:
    rng, each = np.random.default_rng(0), completions // groups
    rows = [row for _ in range(groups) for row in KINDS[kind](rng, each, length)]
    tokens, before = sum(map(len, rows)), peak_mb()
    build_s, trees = seconds(lambda: ProcessTree.build_many(rows, [i // each for i in range(len(rows))]))
    built = peak_mb()
    weigh_s, _ = seconds(lambda: weigh(trees, each))
    totals_s, _ = seconds(lambda: measures.totals(trees, [None] * len(trees)))
    unique = sum(tree.unique_tokens for tree in trees)
    return {
        "tokens": tokens, "unique": unique, "nodes": sum(tree.num_steps for tree in trees),
        "depth": max(int(tree.depth.max()) for tree in trees), "build_s": build_s, "weigh_s": weigh_s,
        "totals_s": totals_s, "build_mb": built - before, "mb": peak_mb() - before,
    }  # fmt: skip


def many_case(groups: int, length: int, part: int) -> dict[str, float]:
    """`part` groups per call; the trees of a part are dropped before the next."""
    rng, tokens = np.random.default_rng(0), 0
    spent = {"build_s": 0.0, "weigh_s": 0.0, "totals_s": 0.0}
    before = peak_mb()
    for _ in range(groups // part):
        rows = [row for _ in range(part) for row in branching(rng, 8, length)]
        tokens += sum(map(len, rows))
        ids = [i // 8 for i in range(len(rows))]
        build_s, trees = seconds(partial(ProcessTree.build_many, rows, ids))
        weigh_s, _ = seconds(partial(weigh, trees, 8))
        totals_s, _ = seconds(partial(measures.totals, trees, [None] * part))
        for name, value in (("build_s", build_s), ("weigh_s", weigh_s), ("totals_s", totals_s)):
            spent[name] += value
    return {"tokens": tokens, **spent, "mb": peak_mb() - before}


def rank_case(ranks: int, rows_per_rank: int, group: int, length: int) -> dict[str, float]:
    """`ranks` ranks in turn, each with the rows that the engine gathers for it."""
    rng = np.random.default_rng(0)
    rows = [row for _ in range(ranks * rows_per_rank // group) for row in branching(rng, group, length)]
    whole = ProcessTree.build_many(rows, [i // group for i in range(len(rows))])
    weights = [row for tree in whole for row in lambda_rows(tree)]
    lists = [row.tolist() for row in rows]
    shards = [lists[r * rows_per_rank : (r + 1) * rows_per_rank] for r in range(ranks)]
    straddles = rows_per_rank % group > 0
    messages = [pickle.dumps(shard) for shard in shards] if straddles else []
    needed = spent = built = 0.0
    for rank in range(ranks):
        start, end = rank * rows_per_rank, (rank + 1) * rows_per_rank
        first, last = start - start % group, -(-end // group) * group
        needed += sum(len(rows[i]) for i in range(first, last) if not start <= i < end)
        load_s, gathered = seconds(lambda: [row for message in messages for row in pickle.loads(message)])
        mine = (gathered if straddles else lists)[first:last]
        build_s, trees = seconds(
            partial(ProcessTree.build_many, mine, [(first + i) // group for i in range(len(mine))])
        )
        spent, built = max(spent, load_s), max(built, build_s)
        found = [row for tree in trees for row in lambda_rows(tree)][start - first : end - first]
        if any(not np.array_equal(a, b) for a, b in zip(found, weights[start:end], strict=True)):
            raise SystemExit(f"rank {rank}: its weights differ from those of one process")
    tokens = sum(map(len, rows))
    return {
        "tokens": tokens / ranks, "own_bytes": len(messages[0]) if straddles else 0,
        "received": max(map(len, messages), default=0) * ranks, "needed": 4 * needed / ranks,
        "bytes_per_token": sum(map(len, messages)) / tokens, "load_s": spent, "build_s": built,
    }  # fmt: skip


def lambda_rows(tree: ProcessTree) -> list[np.ndarray]:
    return list(credit.lambda_grpo(tree, np.arange(tree.num_completions) % 2.0).weight)


def apart(case: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    """Run a case in a fresh process: its peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(case, args)


def show_long(size: Size) -> None:
    print(f"{size.completions:,} completions of up to {size.length:,} tokens")
    print(
        "  sharing × groups         tokens   raw ÷ unique   nodes  depth  build s  weights s   s/token   MB  B/token"
    )
    for kind in KINDS:
        for groups in (1, max(size.completions // 16, 1)):
            r = apart(long_case, kind, size.completions, size.length, groups)
            per_token = (r["build_s"] + r["weigh_s"]) / r["tokens"]
            print(
                f"  {kind:<15} × {groups:<4} {r['tokens']:>12,.0f} {r['tokens'] / r['unique']:>12,.2f} {r['nodes']:>9,} "
                f"{r['depth']:>6,} {r['build_s']:>8.2f} {r['weigh_s']:>9.2f} {per_token:>9.1e} {r['mb']:>6,.0f} "
                f"{r['mb'] * 2**20 / r['tokens']:>6.1f}",
                flush=True,
            )


def show_many(size: Size) -> None:
    print(f"{size.groups:,} groups of 8 completions of up to {size.short} tokens")
    print("  groups per call      tokens   build s  weights s  measures s   s/token  µs/group     MB")
    for part in (size.part, size.groups):
        r = apart(many_case, size.groups, size.short, part)
        spent = r["build_s"] + r["weigh_s"] + r["totals_s"]
        print(
            f"  {part:>15,} {r['tokens']:>11,.0f} {r['build_s']:>9.2f} {r['weigh_s']:>10.2f} {r['totals_s']:>11.3f} "
            f"{spent / r['tokens']:>9.1e} {1e6 * spent / size.groups:>9.1f} {r['mb']:>6,.0f}",
            flush=True,
        )


def show_ranks(size: Size) -> None:
    print(
        f"ranks, simulated: completions of up to {size.rank_length:,} tokens, per rank; group × rows per rank"
    )
    print("  ranks  group × rows   tokens   B/token  received MB  needed MB   unpickle s   build s")
    for ranks, group, rows in ((8, 8, 8), (8, 8, 6), (8, 16, 6), (32, 8, 6), (64, 8, 6)):
        ranks = min(ranks, 8) if size is QUICK else ranks
        r = apart(rank_case, ranks, rows, group, size.rank_length)
        print(
            f"  {ranks:>5} {group:>6} × {rows:<4} {r['tokens']:>9,.0f} {r['bytes_per_token']:>8.2f} "
            f"{r['received'] / 1e6:>11.2f} {r['needed'] / 1e6:>10.2f} {r['load_s']:>12.3f} {r['build_s']:>9.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="small sizes, in seconds")
    size = QUICK if parser.parse_args().quick else FULL
    for show in (show_long, show_many, show_ranks):
        show(size)


if __name__ == "__main__":
    main()
