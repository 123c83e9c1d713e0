"""Everything that has to be measured on a GPU, in about ten minutes: JSON, a table and a plot.

    checks      packed against plain rows, log-probs and gradients: float32 and bf16; grouped queries, soft caps,
                sliding windows. If one fails, no figure below counts
    update      log-probs forward and backward with gradient checkpointing, three ways over the same completions:
                TRL's step; the rows without padding, one after the other in one row; the tree
    sampling    `lambda_grpo.sampling` against transformers' `generate`
    head        memory and time of the LM head alone: TRL's, whole logits of the completions, Liger's GRPO loss (if
                `liger-kernel` is installed), ours (`head_memory.py`)
    credit      what trees and λ-GRPO's weights cost, beside the update that needs them
    training    a few steps of λ-GRPO, by `tree_packing` off and auto, with a model of your own (`--model FOLDER`)

Models of the update are random, with the shapes of Qwen2.5, in bf16. TFLOP/s count what the model has to do over
the raw tokens (6 per weight and token, and attention), so a way that shares tokens can exceed the hardware's rate.

    python benchmarks/gpu.py [-o FOLDER] [--minutes 10] [--model FOLDER]
    python benchmarks/gpu.py -o FOLDER --only sampling,training --model FOLDER
    python benchmarks/gpu.py --tiny      # everything, small, on a CPU: it tests the benchmark, and its times say nothing
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gpu_cases import GROUP, MODELS, TINY, ModelShape, make_capped, make_model, rows_of, rows_with_a_tail
from gpu_runs import sampling_case, training_case
from head_memory import HeadShape, compare_heads
from head_memory import line as head_line
from packing_groups import Rows
from timing import median_seconds, weights_of
from transformers.utils import logging as transformers_logging
from trl import GRPOTrainer

from lambda_grpo import ProcessTree
from lambda_grpo.packing import join, pack, tree_logps
from lambda_grpo.packing.cost import now
from lambda_grpo.packing.proof import (
    PaddedRows,
    exact_outcome,
    outcome,
    parameters_of,
    prove,
    some_parameters,
)
from lambda_grpo.packing.rows import pack_rows
from lambda_grpo.whole_files import written_whole

WAYS = ("TRL", "unpadded", "tree")
RATIOS = (1.1, 2.0, 4.0, 8.0)
SECTIONS = ("checks", "update", "head", "credit", "sampling", "training")
Way = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """Where and how long to measure."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    deadline: float
    turns: int

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline


def ways(model: Any, rows: Rows, device: torch.device) -> dict[str, Way]:
    """Each gives log-probs of all completions' tokens."""
    ids, mask, width = rows.padded()
    ids, mask = ids.to(device), mask.to(device)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    score = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # without its profiler
    alone = join(
        [
            pack(prompt, ProcessTree.build([row]))
            for prompt, row in zip(rows.prompts, rows.completions, strict=True)
        ]
    )
    return {
        "TRL": lambda: score(trainer, model, ids, mask, width)[0],
        "unpadded": lambda: tree_logps(model, alone),
        "tree": lambda: tree_logps(model, pack_rows(ids, mask, width)),
    }


def update(model: Any, way: Way, device: torch.device) -> float:
    """Seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    started = now(device)
    logps = way()
    (logps * torch.linspace(-1, 1, logps.shape[1], device=logps.device)).sum().backward()
    return now(device) - started


def gigabytes(model: Any, way: Way, device: torch.device) -> float:
    """Most memory that an update takes beside the weights; 0 on a CPU."""
    if device.type != "cuda":
        update(model, way, device)
        return 0.0
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    update(model, way, device)
    return (torch.cuda.max_memory_allocated() - before) / 1e9


# The sections


def checks(bench: Bench) -> Iterator[dict[str, Any]]:
    shape = TINY[0] if bench.tiny else ModelShape("0.5B, 4 layers", 896, 4_864, 4, 14, 8_000)
    makers = {
        "Qwen2": lambda dtype: make_model(shape, bench.device, dtype),
        "Gemma 2": lambda dtype: make_capped(bench.device, dtype, large=not bench.tiny),
    }
    rows = rows_of(512 if bench.tiny else 4_096, 2.0)
    assert rows is not None
    ids, mask, width = rows.padded()
    padded = PaddedRows(ids.to(bench.device), mask.to(bench.device), width)
    for name, make in makers.items():
        for dtype in (torch.float32, torch.bfloat16):
            model = make(dtype)
            names = some_parameters(model)
            both = ways(model, rows, bench.device)
            plain, packed = (
                outcome(both[way], padded.real, parameters_of(model, names)) for way in ("TRL", "tree")
            )
            proof = prove(plain, packed, exact_outcome(model, padded, 1.0, names))
            kind = str(dtype).removeprefix("torch.")
            print(f"check {name}, {kind}: {'right' if proof.holds else 'WRONG'}: {proof}", flush=True)
            yield {"model": name, "dtype": kind, "holds": proof.holds, **asdict(proof)}


def update_cases(bench: Bench) -> Iterator[tuple[ModelShape, str, Rows]]:
    sizes = (512,) if bench.tiny else (65_536, 16_384, 4_096)  # what tells most comes first
    for shape in TINY if bench.tiny else MODELS:
        for tokens in sizes:
            if (rows := rows_with_a_tail(tokens)) is not None:
                yield shape, "padded with a tail", rows
            for ratio in (1.1, 2.0) if bench.tiny else RATIOS:
                if (rows := rows_of(tokens, ratio)) is not None:
                    yield shape, f"raw ÷ unique {ratio:g}", rows


def updates(bench: Bench) -> Iterator[dict[str, Any]]:
    made: tuple[str, Any] = ("", None)
    for shape, name, rows in update_cases(bench):
        if bench.late:
            yield {"model": shape.name, "case": name, "skipped": "no time left"}
            continue
        if made[0] != shape.name:
            made = ("", None)  # free the last one first
            made = (shape.name, make_model(shape, bench.device, bench.dtype))
        yield update_row(bench, shape, made[1], name, rows)


def update_row(bench: Bench, shape: ModelShape, model: Any, name: str, rows: Rows) -> dict[str, Any]:
    ids, mask, width = rows.padded()
    packed = pack_rows(ids, mask, width)
    raw, ratio = packed.raw_tokens, packed.raw_tokens / packed.num_tokens
    flops = 6 * shape.parameters * raw + 6 * shape.width * shape.vocabulary * sum(map(len, rows.completions))
    lengths = (packed.prompt_lengths + packed.lengths).double()
    flops += float(6 * shape.layers * shape.width * (lengths**2).sum())
    row: dict[str, Any] = {"model": shape.name, "case": name, "raw": raw, "ratio": ratio, "ways": {}}
    row["padded"] = ids.numel()
    for way, run in ways(model, rows, bench.device).items():
        try:
            memory = gigabytes(model, run, bench.device)
            seconds = statistics.median(update(model, run, bench.device) for _ in range(bench.turns))
        except torch.OutOfMemoryError:
            row["ways"][way] = {"failed": "out of memory"}
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        row["ways"][way] = {
            "seconds": seconds, "tokens_per_second": raw / seconds, "tflops": flops / seconds / 1e12, "gigabytes": memory,
        }  # fmt: skip
    print("update " + line(row), flush=True)
    return row


def credit_case(bench: Bench, table: list[dict[str, Any]]) -> dict[str, Any]:
    """Trees and weights of 64k tokens (4k where tiny), and their share of that update's time."""
    rows = rows_of(512 if bench.tiny else 65_536, 2.0)
    assert rows is not None
    groups = [rows.completions[i : i + GROUP] for i in range(0, len(rows.completions), GROUP)]
    ids = [g for g, group in enumerate(groups) for _ in group]
    arrays = [[torch.tensor(row).numpy() for row in group] for group in groups]
    rewards = torch.arange(GROUP).double().numpy() % 2
    seconds = median_seconds(lambda: weights_of(arrays, ids, rewards))
    tokens = sum(map(len, rows.completions))
    timed = [
        way["seconds"] / row["raw"]
        for row in table
        for way in row.get("ways", {}).values()
        if "seconds" in way
    ]
    share = seconds / tokens / min(timed) if timed else float("nan")
    print(f"credit: {1e3 * seconds:.2f} ms for {tokens:,} tokens, {share:.2%} of the fastest update a token")
    return {"seconds": seconds, "tokens": tokens, "share_of_update": share}


def head_case(bench: Bench) -> list[dict[str, Any]]:
    shape = HeadShape(2, 4, 16, 64, 1_000) if bench.tiny else HeadShape(16, 256, 768, 896, 151_936)
    rows = []
    for row in compare_heads(shape, bench.device, bench.dtype):
        print("head " + head_line(row), flush=True)
        rows.append(row)
    return rows


# What is written


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "skipped" in row:
        return f"| {row['model']} | {row['case']} | {row['skipped']} |"
    cells = [row["model"], row["case"], f"{row['raw']:,}", f"{row['ratio']:.2f}"]
    found = [row["ways"][way] for way in WAYS]
    cells += [f"{way['seconds']:.3f}" if "seconds" in way else way["failed"] for way in found]
    if all("seconds" in way for way in found):
        cells += [f"{found[i]['seconds'] / found[2]['seconds']:.2f}×" for i in range(2)]
        cells += [" → ".join(f"{way['gigabytes']:.1f}" for way in (found[0], found[2]))]
    else:
        cells += ["–"] * 3
    cells += [f"{found[2]['tokens_per_second']:,.0f}" if "seconds" in found[2] else "–"]
    return "| " + " | ".join(cells) + " |"


def markdown(result: dict[str, Any]) -> str:
    where = result["where"]
    head = (
        f"{where['device']}, torch {where['torch']}, transformers {where['transformers']}, trl {where['trl']}\n\n"
        "| model | completions | raw tokens | raw ÷ unique | TRL, s | unpadded, s | tree, s | over TRL "
        "| over unpadded | GB, TRL → tree | raw tokens/s, tree |\n|---|---|" + "--:|" * 9 + "\n"
    )
    heads = "".join(f"    {head_line(row)}\n" for row in result.get("head", []))
    rows = "".join(line(row) + "\n" for row in result.get("update", []))
    return f"{head}{rows}\nThe LM head alone:\n\n{heads}"


def plot(table: list[dict[str, Any]], path: Path) -> None:
    """Times faster than TRL's step, against raw ÷ unique tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    whole = [row for row in table if all("seconds" in row.get("ways", {}).get(way, {}) for way in WAYS)]
    figure, ax = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    for name in dict.fromkeys(row["model"] for row in whole):
        rows = [row for row in whole if row["model"] == name]
        faster = [row["ways"]["TRL"]["seconds"] / row["ways"]["tree"]["seconds"] for row in rows]
        ax.plot([row["ratio"] for row in rows], faster, "o", alpha=0.8, label=name)
    ax.plot([1, 8], [1, 8], color="grey", linewidth=1, label="as many times as tokens repeat")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="raw ÷ unique tokens",
        ylabel="update, times faster than TRL's step",
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(matplotlib.ticker.FixedLocator([0.5, 1, 2, 4, 8, 16]))
        axis.set_major_formatter(lambda value, _: f"{value:g}×")
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def where(device: torch.device) -> dict[str, Any]:
    import transformers
    import trl

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU ({platform.processor() or 'unknown'})",
        "memory": torch.cuda.get_device_properties(device).total_memory / 1e9 if cuda else None,
        "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__,
        "trl": trl.__version__,
    }  # fmt: skip


def earlier(folder: Path | None) -> dict[str, Any]:
    """What an earlier call with other sections wrote."""
    found = folder / "gpu.json" if folder else None
    return json.loads(found.read_text()) if found and found.exists() else {}


def growing(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields the list of all rows so far, after each row."""
    found = []
    for row in rows:
        found.append(row)
        yield found


def measured(section: str, bench: Bench, model: str | None, result: dict[str, Any]) -> Iterator[Any]:
    """Yields what a section has found so far, after each row. `result` holds the sections before it."""
    if section == "checks":
        yield from growing(checks(bench))
    elif section == "update":
        yield from growing(updates(bench))
    elif section == "head":
        yield head_case(bench)
    elif section == "credit":
        yield credit_case(bench, result.get("update", []))
    elif section == "sampling":
        yield sampling_case(bench.device, bench.dtype, model, bench.tiny)
    else:
        yield from training_case(bench.device, model, bench.tiny)


def write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("gpu.json", json.dumps(result, indent=1) + "\n"), ("gpu.md", markdown(result))):
        with written_whole(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="small, on a CPU")
    parser.add_argument(
        "--minutes", type=float, default=10, help="updates that would begin later are left out"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--only",
        default=",".join(SECTIONS),
        help="sections, by comma, which begin anew; a folder keeps the others of earlier calls",
    )
    parser.add_argument("--model", help="folder or name of a model to sample with and to train")
    parser.add_argument("-o", "--output", type=Path, help="folder for gpu.json, gpu.md and gpu.png")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(SECTIONS):
        parser.error(f"--only: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    transformers_logging.disable_progress_bar()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --tiny runs everything on a CPU, small")
    device = torch.device("cpu" if args.tiny else "cuda")
    deadline = time.perf_counter() + 60 * args.minutes * 0.7  # the rest is for sampling and training
    bench = Bench(device, torch.float32 if args.tiny else torch.bfloat16, args.tiny, deadline, args.turns)
    result = earlier(args.output) | {"where": where(device)}
    for section in args.only.split(","):
        for found in measured(section, bench, args.model, result):
            result[section] = found
            if args.output:  # each time: whatever cuts this off, what was measured is kept
                write(result, args.output)
    if args.output and "update" in result:
        plot(result["update"], args.output / "gpu.png")
    print(markdown(result))
    if not all(check["holds"] for check in result.get("checks", [])):
        raise SystemExit("a check failed: no figure counts")


if __name__ == "__main__":
    main()
