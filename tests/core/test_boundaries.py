"""Who may import what, read off the source; and the check itself is shown able to fail."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

import lambda_grpo

PACKAGE = Path(lambda_grpo.__file__).parent
LIGHT = [
    "tree", "process_sets", "tree_picture", "credit", "measures", "rollouts", "rollouts.writing", "report", "errors", "cli", "branching", "fork_chooser",
    "tasks.asking", "evaluating.intervals", "evaluating.eval_command", "evaluating.answer_log", "custom", "effect.effect_command", "whole_files", "resumable_jsonl",
]  # fmt: skip
HEAVY = {"torch", "trl", "verl", "ray", "transformers", "datasets"}


def imports(source: str) -> Iterator[str]:
    """What some source imports, inside functions too, with the packages it lies in: a, a.b, a.b.c."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield from accumulate(name.split("."), "{}.{}".format)


def importers(folder: Path, forbidden: set[str]) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if forbidden & set(imports(path.read_text()))
    }


def test_only_engines_import_a_trainer() -> None:
    found = importers(PACKAGE, {"trl", "verl", "ray", "tinker"})
    assert found, "the check sees no importer at all"
    assert {name for name in found if not name.startswith("engines/")} == set()
    assert importers(Path(__file__).parents[2] / "experiments", {"trl", "verl", "ray", "tinker"}) == set()


def test_engines_know_nothing_of_the_command_line() -> None:
    commands = {f"lambda_grpo.{name}" for name in ("training", "evaluating", "cli")}
    assert importers(PACKAGE / "engines", commands) == set()


def test_only_the_command_line_imports_training() -> None:
    found = importers(PACKAGE, {"lambda_grpo.training"})
    assert {name for name in found if not name.startswith("training/")} == {"cli.py"}


def test_the_attention_plan_needs_numpy_only() -> None:
    assert importers(PACKAGE / "packing" / "attention", {"numpy"}) >= {"plan.py", "blocks.py"}
    assert not {"plan.py", "blocks.py"} & set(importers(PACKAGE / "packing" / "attention", HEAVY))


def test_tasks_know_no_trainer_and_no_torch() -> None:
    assert importers(PACKAGE / "tasks", HEAVY - {"datasets"}) == set()


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import lambda_grpo.{module}") & HEAVY == set()


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    report = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """Planted faults: an importer hidden in a function, and a module that pulls in torch."""
    (tmp_path / "innocent.py").write_text("import trlx\nfrom . import trl\n'import trl'\n")
    (tmp_path / "guilty.py").write_text("def f():\n    from trl.trainer import x\n")
    (tmp_path / "inner.py").write_text("from lambda_grpo import console, training\n")
    assert importers(tmp_path, {"trl"}) == {"guilty.py"}
    assert importers(tmp_path, {"lambda_grpo.training"}) == {"inner.py"}
    assert "torch" in loaded_by("import lambda_grpo.policy")
