"""examples/quickstart.ipynb: executed as a notebook does, every cell."""

import os
import sys
from pathlib import Path

import pytest

from lambda_grpo.policy import embedded

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def test_it_is_stored_without_outputs() -> None:
    assert [cell.id for cell in cells() if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.fixture
def half_taught_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache, in the embedded policy's place, lies one pre-trained for fewer steps."""
    pretrain = embedded._pretrain
    fewer = embedded.Pretraining(steps=150, batch_size=64)
    monkeypatch.setattr(embedded, "_pretrain", lambda recipe, progress: pretrain(fewer, progress))
    monkeypatch.setenv("LAMBDA_GRPO_CACHE", str(tmp_path / "cache"))
    embedded.embedded_policy()


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, half_taught_policy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # the kernel is another process
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=90, resources={"metadata": {"path": tmp_path}})
    client.execute()

    shown = {cell.id: "".join(map(html, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"}
    assert shown["install"] == ""  # it is installed
    for name in ("tree", "grpo-picture", "lambda-picture", "credit"):
        assert shown[name].count("<svg") == 1, name
    pushed = {name: shown[name].count('fill="#1f86d1"') for name in ("grpo-picture", "lambda-picture")}
    assert min(pushed.values()) > 1  # the legend has one
    assert shown["tree"].count("<rect") > 3
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert "λ-GRPO" in printed + shown["compare"]


def html(output) -> str:
    return output.get("data", {}).get("text/html", "")
