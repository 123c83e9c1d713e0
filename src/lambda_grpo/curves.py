"""The curves of a run's metrics.jsonl, as one picture."""

from pathlib import Path
from typing import Any

from lambda_grpo import runs

_PANELS = (
    ("Reward", {"reward": "mean reward"}),
    ("Process tree", {"tree/intermediate_proportion": "intermediate proportion",
                      "tree/shared_tokens": "share of tokens with |λ| > 1",
                      "tree/flat_groups": "share of flat groups"}),
    ("Path depth", {"tree/path_depth": "mean path depth"}),
)  # fmt: skip


def draw(folder: Path) -> Path:
    """Draw `folder/curve.png` from `folder/metrics.jsonl`."""
    from matplotlib.figure import Figure

    rows = runs.read_metrics(folder)
    traits = {name: f"{name.removeprefix('task/')} rate" for name in rows[0] if name.startswith("task/")}
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name, label in (lines | traits if title == "Reward" else lines).items():
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            _line(axes, points, label)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylim(0, None if title == "Path depth" else 1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.02, -0.16))
    path = folder / "curve.png"
    with runs.written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return path


def _line(axes: Any, points: list[tuple[int, float]], label: str) -> None:
    """The raw points, faint, and their running mean."""
    steps, values = zip(*points, strict=True)
    window = max(1, len(values) // 16)
    smooth = [sum(values[max(0, i - window) : i + 1]) / len(values[max(0, i - window) : i + 1])
              for i in range(len(values))]  # fmt: skip
    (line,) = axes.plot(steps, smooth, label=label, linewidth=2)
    axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=1)
