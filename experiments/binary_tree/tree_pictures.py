"""The pictures and tables of binary_tree."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from experiments.binary_tree.ranking import BASELINES, Ranked, mean_table, rank_intervals
from lambda_grpo import console
from lambda_grpo.whole_files import written_whole

ResultRows = Sequence[Mapping[str, Any]]
CURVE_STEPS = 5  # steps that make one point of a curve
COLOURS = {"grpo": "black", "lambda_grpo": "#d62728"}
OTHERS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#e377c2", "#bcbd22")


def show(title: str, ranked: Sequence[Ranked], baselines: Sequence[str]) -> None:
    """Print one ranking."""
    shown = Table("", "target frequency", "rank", *(f"minus {name}" for name in baselines), title=title)
    for r in ranked:
        rank = f"{r.rank.low:.0f} to {r.rank.high:.0f}"
        differences = [format(r.ahead_of[b], "+.3f") if b in r.ahead_of else "–" for b in baselines]
        cells = (str(r.mean), rank, *differences)
        shown.add_row(r.name, *(escape(cell).replace(", ", ",\u00a0") for cell in cells))
    console.CONSOLE.print(shown)


def draw(rows: ResultRows, folder: Path) -> None:
    """Draw curves-RATE.png for each learning rate, and ranking.png."""
    draw_curves(rows, folder)
    _ranking(rows, folder / "ranking.png")


def draw_curves(rows: ResultRows, folder: Path) -> None:
    """Draw curves-RATE.png for each learning rate."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    others = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    for rate in dict.fromkeys(row["learning_rate"] for row in rows):
        at_rate = [row for row in rows if row["learning_rate"] == rate]
        _curves(at_rate, colours, folder / f"curves-{rate:g}.png", f"learning rate {rate:g}")


def _curves(rows: ResultRows, colours: Mapping[str, Any], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys((row["mode"], row["cell"]) for row in rows))
    columns = min(4, len(cells))
    figure = Figure(figsize=(3.6 * columns, 2.9 * -(-len(cells) // columns) + 1), layout="constrained")
    panels = figure.subplots(-(-len(cells) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(cells) :]:
        axes.set_visible(False)
    for axes, (mode, cell) in zip(panels.flat, cells, strict=False):
        for row in (row for row in rows if row["cell"] == cell):
            _curve(axes, row, colours[row["variant"]])
        axes.set_title(f"{cell}\n({mode})", loc="left", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 1)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    for axes in panels[:, 0]:
        axes.set_ylabel("frequency of the target")
    lines, labels = panels.flat[0].get_legend_handles_labels()
    figure.suptitle(f"{title}; mean over seeds, bands: 95% bootstrap intervals", x=0.01, ha="left")
    figure.legend(lines, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    _save(figure, path)


def _curve(axes: Any, row: Mapping[str, Any], colour: Any) -> None:
    curve = row["curve"]
    steps = [CURVE_STEPS * (point + 0.5) for point in range(len(curve["mean"]))]
    front = 3 if row["variant"] in BASELINES else 2
    axes.plot(steps, curve["mean"], color=colour, linewidth=1.8, label=row["variant"], zorder=front)
    axes.fill_between(steps, curve["low"], curve["high"], color=colour, alpha=0.08, linewidth=0)


def _ranking(rows: ResultRows, path: Path) -> None:
    from matplotlib.figure import Figure

    modes = list(dict.fromkeys(row["mode"] for row in rows))
    rates = sorted({row["learning_rate"] for row in rows})
    order = _order(rows)
    figure = Figure(figsize=(5.5 * len(modes), 1.8 + 0.45 * len(order)), layout="constrained")
    panels = figure.subplots(1, len(modes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        for i, rate in enumerate(rates):
            _estimates(axes, [r for r in rows if (r["mode"], r["learning_rate"]) == (mode, rate)], order, i)
        axes.set_title(mode, loc="left", fontsize=11)
        axes.set_xlabel("frequency of the target")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(order)), order)
    panels[0].invert_yaxis()
    for axes in panels:
        axes.grid(axis="y", alpha=0)
        for y in range(len(order) - 1):
            axes.axhline(y + 0.5, color="0.9", linewidth=1)
    figure.suptitle(
        "Mean over cells with 95% bootstrap intervals over seeds, by learning rate", x=0.01, ha="left"
    )
    handles = [panels[0].plot([], [], "o", color=f"C{i}")[0] for i in range(len(rates))]
    labels = [f"learning rate {rate:g}" for rate in rates]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """As a PNG of 256 colours: bands over bands take four times as much otherwise."""
    from PIL import Image

    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=100)
        with Image.open(aside) as image:
            image.convert("RGB").quantize(256).save(aside, format="png", optimize=True)


def _order(rows: ResultRows) -> list[str]:
    """Variants by their mean over everything, best first."""
    return [ranked.name for ranked in rank_intervals(mean_table(rows))]


def _estimates(axes: Any, rows: ResultRows, order: Sequence[str], i: int) -> None:
    """One learning rate's points with their intervals."""
    for r in rank_intervals(mean_table(rows)):
        y = order.index(r.name) + 0.22 * i - 0.11
        spread = [[r.mean.mean - r.mean.low], [r.mean.high - r.mean.mean]]
        axes.errorbar(r.mean.mean, y, xerr=spread, color=f"C{i}", marker="o", markersize=4, linewidth=1.5)
