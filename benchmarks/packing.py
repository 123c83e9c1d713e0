"""The update phase on trees: log-probs forward and backward, plain rows against packed trees, side by side.

Five ways over the same completions, taken in turns; medians, and the most memory each adds to the process:

    TRL         TRL's own `_get_per_token_logps_and_entropies`: on CPU its head projects every position
    kept        plain rows, `logits_to_keep` (`logps.completion_logps`)
    plain       plain rows with the chunked head that packed rows have: what is left is due to sharing alone
    prompt      one packed row that shares the prompt only, as PrefixGrouper and Unsloth do
    tree        one packed row that shares every common prefix: what the trainer runs, packing included

`work` is the plain rows' linear, attention and head work over the tree's, `gain` how many times faster than TRL
the tree should be by a calibration like a trainer's (timed once, on a group that is not in the table), and `auto`
the time of the better of TRL and tree, over that of the way that `tree_packing: auto` would choose by it. The
last line has the same for all rows of the table together, as if they were one run.
Completions are made (`packing_groups.py`), those of the demo's policy excepted. A Qwen2-like model of random
weights, float32; for the demo's completions also the demo's own policy.

    python benchmarks/packing.py [--groups 8 16 64] [-o FOLDER]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from packing_groups import SHAPES, VOCABULARY, Rows, Shape, demo_rows, make_rows, prompt_only
from timing import added_memory
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from lambda_grpo import ProcessTree, policy
from lambda_grpo.engines.trl.packing_trial import Trial, works
from lambda_grpo.logps import completion_logps
from lambda_grpo.packing import join, pack, tree_logps
from lambda_grpo.packing.cost import Calibration, row_work, tree_work
from lambda_grpo.packing.head import Logits, chunk_rows, token_scores
from lambda_grpo.packing.proof import PaddedRows
from lambda_grpo.packing.rows import pack_rows

RATIOS = (1, 1.5, 2, 4, 8, 16)
PLAIN = ("TRL", "kept", "plain")

Way = Callable[[], torch.Tensor]


def make_model(width: int, layers: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=max(width // 128, 1), max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def ways(model: Any, plain: Any, rows: Rows) -> dict[str, Way]:
    """Each gives (R, T) log-probs; `plain` shares the weights of `model` and keeps stock attention."""
    ids, mask, keep = rows.padded()
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    score = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # without its profiler

    def trl() -> torch.Tensor:
        return score(trainer, plain, ids, mask, keep)[0]

    def kept() -> torch.Tensor:
        return completion_logps(plain, rows.prompts, rows.completions)

    def same_head() -> torch.Tensor:
        hidden = plain.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        real = mask[:, -keep:].bool()
        chosen, targets = hidden[:, -keep - 1 : -1][real], ids[:, -keep:][real]
        logps, _ = token_scores(plain.lm_head, chosen, targets, Logits(), chunk_rows(plain.config.vocab_size))
        return torch.zeros(real.shape).masked_scatter(real, logps)

    groups = [
        pack(prompt, ProcessTree.build(completions, contexts=range(len(completions))))
        for prompt, completions in prompt_only(rows)
    ]
    return {
        "TRL": trl, "kept": kept, "plain": same_head,
        "prompt": lambda: tree_logps(model, join(groups)),
        "tree": lambda: tree_logps(model, pack_rows(ids, mask, keep)),
    }  # fmt: skip


def update(model: torch.nn.Module, way: Way) -> float:
    """Seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    logps = way()
    (logps * torch.linspace(-1, 1, logps.shape[1])).sum().backward()
    return time.perf_counter() - started


def extra_memory(model: torch.nn.Module, way: Way) -> float:
    """MB that one forward and backward adds at its peak (Linux only)."""
    model.zero_grad(set_to_none=True)
    return added_memory(lambda: update(model, way))[1]


def calibrated(model: Any, plain: Any) -> Calibration:
    """As a trainer does it on its first micro-batch."""
    rows = make_rows(Shape("", 48, 160), 12, 1.7, seed=7)
    assert rows is not None
    ids, mask, keep = rows.padded()
    score = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    trial = Trial(
        model,
        plain=lambda part: score(trainer, plain, part.ids, part.mask, part.width)[0],
        packed=lambda tree: tree_logps(model, tree),
        temperature=1.0,
        differentiable=True,
    )
    found = trial.calibration(PaddedRows(ids, mask, keep), in_blocks=False)
    print(f"calibration: {found}")
    return found


def compare(
    model: Any, plain: Any, calibration: Calibration, name: str, rows: Rows, turns: int
) -> dict[str, Any]:
    """One row of the table, printed and returned."""
    both = ways(model, plain, rows)
    memory = {way: extra_memory(plain, run) for way, run in both.items()}  # the first run warms up, too
    times: dict[str, list[float]] = {way: [] for way in both}
    for _ in range(turns):
        for way, run in both.items():
            times[way].append(update(plain, run))
    seconds = {way: statistics.median(values) for way, values in times.items()}
    ids, mask, keep = rows.padded()
    packed = pack_rows(ids, mask, keep)
    guess = works(packed, model.config, ids.numel(), in_blocks=False)
    gain = calibration.gain([guess[0]], [guess[1]])
    work = row_work(packed, model.config).flops / tree_work(packed, model.config).flops
    auto = min(seconds["TRL"], seconds["tree"]) / seconds["tree" if gain >= 1 else "TRL"]
    ratio = packed.raw_tokens / packed.num_tokens
    print(
        f"{name:<28} {len(rows.prompts):>3} {packed.raw_tokens:>7,} {ratio:>5.2f}"
        + "".join(f" {1e3 * seconds[way]:>7.0f}" for way in both)
        + "  "
        + "".join(f" {seconds[way] / seconds['tree']:>6.2f}×" for way in list(both)[:-1])
        + f"  {work:>5.2f}× {gain:>5.2f}× {auto:>5.2f}  "
        + "".join(f" {memory[way]:>6.0f}" for way in both),
        flush=True,
    )
    return {
        "name": name, "rows": len(rows.prompts), "raw": packed.raw_tokens, "ratio": ratio, "seconds": seconds,
        "megabytes": memory, "work": work, "gain": gain, "auto": auto,
    }  # fmt: skip


def all_cases(groups: list[int], ratios: list[float]) -> Iterator[tuple[str, Rows]]:
    for shape in SHAPES:
        for size in groups:
            for ratio in ratios:
                rows = make_rows(shape, size, ratio)
                if rows is not None:
                    yield shape.name, rows


def shared(width: int, layers: int) -> tuple[Any, Any]:
    """A model, and the same weights in another with stock attention and TRL's head."""
    model, plain = make_model(width, layers), make_model(width, layers)
    share_weights(model, plain)
    return model, plain


def share_weights(model: Any, plain: Any) -> None:
    for ours, theirs in zip(model.modules(), plain.modules(), strict=True):
        for name, parameter in theirs.named_parameters(recurse=False):
            setattr(ours, name, parameter)
    add_fused_lm_head(plain, outputs=("log_probs", "entropy"))


def markdown(table: list[dict[str, Any]]) -> str:
    """The table in short: the best of the three plain ways in one column."""
    lines = [
        "| completions | rows | tokens | raw ÷ unique | TRL, ms | best plain | prompt shared | tree | over TRL "
        "| over best plain | work ratio | MB, TRL → tree |",
        "|---|" + "--:|" * 11,
    ]
    for row in table:
        ms = {way: 1e3 * seconds for way, seconds in row["seconds"].items()}
        best, memory = min(ms[way] for way in PLAIN), row["megabytes"]
        lines.append(
            f"| {row['name']} | {row['rows']} | {row['raw']:,} | {row['ratio']:.2f} | {ms['TRL']:,.0f} | {best:,.0f} "
            f"| {ms['prompt']:,.0f} | {ms['tree']:,.0f} | {ms['TRL'] / ms['tree']:.2f}× | {best / ms['tree']:.2f}× "
            f"| {row['work']:.2f}× | {memory['TRL']:,.0f} → {memory['tree']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(table: list[dict[str, Any]], path: Path) -> None:
    """Speed-up over TRL and over the best plain step, against the ratio."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for ax, title in zip(axes, ("over TRL's own step", "over the best plain step"), strict=True):
        for name in dict.fromkeys(row["name"] for row in table):
            rows = [row for row in table if row["name"] == name]
            baselines = PLAIN[:1] if ax is axes[0] else PLAIN
            faster = [min(r["seconds"][b] for b in baselines) / r["seconds"]["tree"] for r in rows]
            ax.plot([r["ratio"] for r in rows], faster, "o", alpha=0.8, label=name)
        ax.plot([1, 16], [1, 16], color="grey", linewidth=1, label="as many times as tokens repeat")
        ax.set(xscale="log", yscale="log", xlabel="raw ÷ unique tokens", title=title)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(matplotlib.ticker.FixedLocator([1, 2, 4, 8, 16, 32]))
            axis.set_major_formatter(lambda value, _: f"{value:g}×")
            axis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("update phase, times faster")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def construction() -> None:
    """Seconds per raw token to build the tree and pack it, from arrays."""
    rng = np.random.default_rng(0)
    for size, length in ((16, 4_000), (64, 1_000), (64, 8_000)):
        rows = [rng.integers(0, 150_000, length) for _ in range(size)]
        for i in range(1, size):
            cut = int(rng.integers(length))
            rows[i][:cut] = rows[rng.integers(i)][:cut]
        times = []
        for _ in range(15):
            started = time.perf_counter()
            packed = pack(range(500), ProcessTree.build(rows))
            times.append(time.perf_counter() - started)
        print(
            f"tree + packing of ({size}, {length:,}): {statistics.median(times) / (size * length):.1e} s per completion "
            f"token, {packed}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--made-only", action="store_true", help="leave out the demo's completions")
    parser.add_argument("-o", "--output", type=Path, help="folder for table.json, table.md and speed.png")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    construction()
    print(
        f"{torch.get_num_threads()} threads, {args.layers} × {args.width}, V = {VOCABULARY}; ms, speed-up of the tree, MB\n"
        "completions                 rows     raw ratio     TRL    kept   plain  prompt    tree     TRL    kept   plain  prompt "
        "  work   gain  auto  memory: TRL, kept, plain, prompt, tree"
    )
    model, plain = shared(args.width, args.layers)
    calibration = calibrated(model, plain)
    table = [
        compare(model, plain, calibration, name, rows, args.turns)
        for name, rows in all_cases(args.groups, args.ratios)
    ]
    if args.made_only:
        summary(table, args.output)
        return
    demo = demo_rows()
    table.append(compare(model, plain, calibration, "the demo's completions", demo, args.turns))
    model, plain = (policy.load_policy(str(policy.embedded_policy()))[0].eval() for _ in range(2))
    share_weights(model, plain)
    calibration = calibrated(model, plain)
    table.append(compare(model, plain, calibration, "the demo, its own policy", demo, args.turns))
    summary(table, args.output)


def summary(table: list[dict[str, Any]], output: Path | None) -> None:
    """What `auto` reaches over all rows; the files."""
    best = [min(row["seconds"]["TRL"], row["seconds"]["tree"]) for row in table]
    chosen = [seconds / row["auto"] for seconds, row in zip(best, table, strict=True)]
    print(f"auto, all rows together: {sum(best) / sum(chosen):.3f} of the better way's speed")
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (output / "table.md").write_text(markdown(table))
        plot(table, output / "speed.png")


if __name__ == "__main__":
    main()
