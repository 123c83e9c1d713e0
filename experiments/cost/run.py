"""cost: seconds per token of λ-GRPO's weights (paper, section 4.2), and their share of a training step.

It times the tree and the weights, from arrays of token ids to (G, T) float32, for groups that branch at
random (`timing.branching_group`). The paper's figures are for an Intel i7, so only the order of magnitude
compares.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import step_share
from benchmarks.timing import branching_group, median_seconds, weights_of
from lambda_grpo import console

PAPER = {6: 1.19e-7, 36: 1.21e-7}  # seconds per token, by group size


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Measure, print and draw; the figures."""
    figures: dict[str, float] = {}
    rewards = {size: np.arange(size) % 2.0 for size in settings["group_sizes"]}
    with console.progress("Timing the weights") as shown:
        total = len(rewards) * len(settings["seeds"])
        for i, (size, r) in enumerate(rewards.items()):
            medians = []
            for j, seed in enumerate(settings["seeds"], 1):
                group = branching_group(size, settings["length"], seed)
                seconds = median_seconds(partial(weights_of, [group], [0] * size, r))
                medians.append(seconds / sum(map(len, group)))
                shown(i * len(settings["seeds"]) + j, total)
            figures[f"s/token, group of {size}"] = float(np.median(medians))
            figures[f"s/token, group of {size}, slowest"] = max(medians)
    shares = []
    for setting in step_share.settings(settings["demo_pairs"], settings["larger_pairs"]):
        with console.progress(f"Training steps, {setting.name}") as shown:
            share = step_share.measure(setting, shown)
        figures[f"share of a step, {setting.name}"] = share.inside / share.step
        figures[f"paired share, {setting.name}"] = share.paired[1] / share.step
        shares.append(share)
    for size in rewards:
        paper = f"; the paper: {PAPER[size]:.3g}, on another CPU" if size in PAPER else ""
        print(f"group of {size}: {figures[f's/token, group of {size}']:.3g} s per token{paper}")
    print(*shares, sep="\n")
    _draw(figures, list(rewards), shares, output / "cost.png")
    return figures


def _draw(figures: Mapping[str, float], sizes: list[int], shares: list[step_share.Share], path: Path) -> None:
    from matplotlib.figure import Figure

    from lambda_grpo.whole_files import written_whole

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(sizes))
    left.bar(
        places - 0.2, [PAPER.get(size, 0) for size in sizes], 0.4, color="0.7", label="paper (an Intel i7)"
    )
    ours = [figures[f"s/token, group of {size}"] for size in sizes]
    left.bar(places + 0.2, ours, 0.4, label="ours (this machine)")
    left.set_xticks(places, [f"group of {size}" for size in sizes])
    left.set_title("λ-GRPO's weights, seconds per token", loc="left", fontsize=10)
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    right.bar(range(len(shares)), [100 * share.inside / share.step for share in shares], 0.5)
    right.set_xticks(range(len(shares)), [share.setting.name.replace(", ", ",\n") for share in shares])
    right.set_title("our lines, % of a training step", loc="left", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
