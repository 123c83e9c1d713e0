"""Who may import what, read off the source; and the check itself is shown able to fail."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
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
    """The top-level packages that some source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


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
    folders = r"(?!training(?:\.| import )(?:run_folder|checkpoint_folders)\b)"  # the engines write both
    for path in (PACKAGE / "engines").rglob("*.py"):
        text = path.read_text()
        assert not re.search(rf"lambda_grpo\.{folders}(training|evaluating|cli)\b", text), path.name


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
    assert importers(tmp_path, {"trl"}) == {"guilty.py"}
    assert "torch" in loaded_by("import lambda_grpo.policy")
