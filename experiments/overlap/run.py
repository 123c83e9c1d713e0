"""overlap: how far groups are from the trivial process reward model while a policy is trained (section 3.2).

Each task is trained on with groups of 6 and of 36 completions, four prompts a step as in the paper; or, with
`--runs FOLDER,FOLDER`, run folders of `lambda-grpo train` are read instead and drawn the same way.

curves.json    path depth, intermediate proportion and share of flat groups of each run, step by step
results.json   their means over the first and the last fifth of the steps; flat groups in all
overlap.png    the curves
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lambda_grpo import console
from lambda_grpo.errors import InputError
from lambda_grpo.training import run_folder
from lambda_grpo.whole_files import write_json, written_whole

Curves = Mapping[str, list[float]]
MEASURES = {
    "tree/path_depth": "path depth",
    "tree/intermediate_proportion": "intermediate proportion",
    "tree/flat_groups": "share of flat groups",
}


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Train, or read run folders; draw, print and write; the figures.

    Raises:
        InputError: as `lambda-grpo train`, or a run folder without these metrics.
    """
    if settings["runs"]:
        curves = {name: read(Path(name)) for name in settings["runs"]}
    else:
        curves = {
            f"{task}, groups of {size}": train(settings, task, size)
            for task in settings["tasks"]
            for size in settings["group_sizes"]
        }
    write_json(output / "curves.json", curves)
    draw(curves, output / "overlap.png")
    figures: dict[str, float] = {}
    shown = Table(
        "", *(f"{label}: first → last fifth" for label in list(MEASURES.values())[:2]), "flat groups"
    )
    for name, curve in curves.items():
        found = measure(curve)
        cells = [f"{found[f'{label}, start']:.2f} → {found[f'{label}, end']:.2f}"
                 for label in list(MEASURES.values())[:2]]  # fmt: skip
        flat = f"{found['share of flat groups']:.1%}"
        if not settings["runs"]:
            groups = settings["prompts"] * len(curve["step"])
            found["flat groups"] = round(found["share of flat groups"] * groups)
            flat = f"{found['flat groups']:.0f} of {groups}"
        shown.add_row(escape(name), *cells, flat)
        figures |= {f"{name} | {what}": round(value, 4) for what, value in found.items()}
    console.CONSOLE.print(shown)
    return figures


def train(settings: Mapping[str, Any], task: str, size: int) -> Curves:
    """Train one policy with the recipe `default` changed to these settings; its curves."""
    from lambda_grpo.training import train as training
    from lambda_grpo.training.settings import resolve

    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "task": task,
            "model": settings["model"],
            "credit": settings["credit"],
            "num_generations": size,
            "per_device_train_batch_size": settings["prompts"] * size,
            "max_steps": settings["steps"],
            "learning_rate": settings["learning_rate"],
            "temperature": settings["temperature"],
            "train_problems": settings["prompts"] * settings["steps"],
            "eval_problems": 8,
            "save_rollouts": "False",
            "output_dir": f"{folder}/run",
        }
        print(f"{task}, groups of {size}")
        training.train(resolve("default", [part for k, v in flags.items() for part in (f"--{k}", str(v))]))
        return read(Path(folder) / "run")


def read(folder: Path) -> Curves:
    """The measures in a run folder, by step.

    Raises:
        InputError: no metrics are there, or none of a process tree.
    """
    try:
        rows = [row for row in run_folder.read_metrics(folder) if all(name in row for name in MEASURES)]
    except (OSError, ValueError) as error:
        raise InputError(f"{str(folder)!r} is no run folder of `lambda-grpo train`: {error}") from error
    if not rows:
        raise InputError(f"{str(folder)!r}: metrics.jsonl has no step with {', '.join(MEASURES)}")
    names = {"step": "step", "reward": "reward", **MEASURES}
    return {label: [round(row[name], 4) for row in rows] for name, label in names.items()}


def measure(curve: Curves) -> dict[str, float]:
    """Means over the first and the last fifth of the steps; over all of them for the flat groups.

    >>> curve = {"path depth": [1, 2], "intermediate proportion": [0, 1], "share of flat groups": [0.5, 0]}
    >>> found = measure(curve)
    >>> found["path depth, start"], found["path depth, end"], found["share of flat groups"]
    (1.0, 2.0, 0.25)
    """
    found = {}
    for label in list(MEASURES.values())[:2]:
        values = curve[label]
        fifth = max(1, len(values) // 5)
        found[f"{label}, start"] = sum(values[:fifth]) / fifth
        found[f"{label}, end"] = sum(values[-fifth:]) / fifth
    flat = curve["share of flat groups"]
    return found | {"share of flat groups": sum(flat) / len(flat)}


def draw(curves: Mapping[str, Curves], path: Path) -> None:
    """One panel per measure; a colour is a task, a dashed line its largest groups."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, len(MEASURES))
    tasks = list(dict.fromkeys(_task(name) for name in curves))
    for axes, label in zip(panels, MEASURES.values(), strict=True):
        for name, curve in curves.items():
            first = next(other for other in curves if _task(other) == _task(name))
            style = {"color": f"C{tasks.index(_task(name))}", "linestyle": "-" if name == first else "--"}
            axes.plot(curve["step"], _smooth(curve[label]), label=name, linewidth=1.8, **style)
        axes.set_title(label, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _task(name: str) -> str:
    return name.split(", groups of ")[0]


def _smooth(values: list[float]) -> list[float]:
    """Running mean over the last tenth."""
    window = max(1, len(values) // 10)
    parts = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
