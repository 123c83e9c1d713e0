"""The curves of one run's metrics.jsonl, or of several runs', as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lambda_grpo.training import run_folder
from lambda_grpo.whole_files import written_whole

_TREE = {
    "tree/intermediate_proportion": "intermediate proportion",
    "tree/shared_tokens": "share of tokens with |λ| > 1",
    "tree/flat_groups": "share of flat groups",
}
Points = Sequence[tuple[int, float]]


def draw(folder: Path, best_step: int | None = None) -> Path:
    """Draw `folder/curve.png` from `folder/metrics.jsonl`; mark the best validation, if there was any."""
    rows = run_folder.read_metrics(folder)
    names = [name for row in rows for name in row if name.startswith("task/")]
    traits = {name: f"{name.removeprefix('task/')} rate" for name in names}
    figure, (rewards, tree, depth) = _panels(("Reward", "Process tree", "Path depth"))
    line = _line(rewards, _points(rows, "reward"), "mean reward, training")
    _validation(rewards, rows, best_step, "mean reward, validation", "black")
    for axes, lines in ((rewards, traits), (tree, _TREE), (depth, {"tree/path_depth": "mean path depth"})):
        for name, label in lines.items():
            _line(axes, _points(rows, name), label)
    line.set_zorder(3)
    _finish((rewards, tree, depth))
    return _save(figure, folder / "curve.png")


def draw_comparison(path: Path, folders: Mapping[str, Path], best_steps: Mapping[str, int]) -> Path:
    """Draw the runs of several credits over one another; a colour is a credit.

    Args:
        path: of the picture.
        folders: credit → run folder.
        best_steps: credit → step of the best validation, of those that validated.
    """
    titles = ["Reward, training", "Path depth"]
    if best_steps:
        titles.insert(1, "Reward, validation (star: best)")
    figure, panels = _panels(titles)
    for credit, folder in folders.items():
        rows = run_folder.read_metrics(folder)
        colour = _line(panels[0], _points(rows, "reward"), credit).get_color()
        _line(panels[-1], _points(rows, "tree/path_depth"), credit)
        if best_steps:
            _validation(panels[1], rows, best_steps.get(credit), credit, colour)
    _finish(panels)
    return _save(figure, path)


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> Points:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _panels(titles: Sequence[str]) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(titles))
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels)


def _line(axes: Any, points: Points, label: str) -> Any:
    """The raw points, faint, and their running mean."""
    if not points:
        return axes.plot([], [])[0]
    steps, values = zip(*points, strict=True)
    window = max(1, len(values) // 16)
    smooth = [sum(values[max(0, i - window) : i + 1]) / len(values[max(0, i - window) : i + 1])
              for i in range(len(values))]  # fmt: skip
    (line,) = axes.plot(steps, smooth, label=label, linewidth=2)
    axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=1)
    return line


def _validation(
    axes: Any, rows: Sequence[Mapping[str, Any]], best_step: int | None, label: str, colour: str
) -> None:
    """The points of validation, joined; a star on the best."""
    points = _points(rows, "eval_reward")
    if not points:
        return
    axes.plot(
        *zip(*points, strict=True),
        color=colour,
        marker="o",
        markersize=4,
        linewidth=1.2,
        label=label,
        zorder=4,
    )
    best = [point for point in points if point[0] == best_step]
    if best:
        axes.plot(*best[-1], color=colour, marker="*", markersize=14, linestyle="none", zorder=5,
                  markeredgecolor="white", label=f"best, step {best_step}: {best[-1][1]:.3f}")  # fmt: skip


def _finish(panels: Sequence[Any]) -> None:
    for axes in panels:
        low, high = axes.dataLim.intervaly
        top = None if axes.get_title(loc="left") == "Path depth" else max(1, high) * 1.02
        axes.set_ylim(min(0, low), top)
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.02, -0.16))


def _save(figure: Any, path: Path) -> Path:
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return path
