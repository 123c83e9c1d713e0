"""One process, two, four, and two with sharded weights: the same gradients, weights and metrics."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Jobs
from processes_worker import WAYS

# What the clock says, and what is shared less where groups are apart.
_OWN = {"step_time", "tree/raw_per_unique"}


def launch(jobs: Jobs, folder: Path, processes: int, kind: str) -> dict[str, Any]:
    folder.mkdir()
    job = jobs.start(folder, kind, call="processes_worker:main", processes=processes)
    assert job.wait(400) == 0, job.output()
    return {name: torch.load(path) for name in WAYS if (path := folder / f"{name}.pt").exists()}


@pytest.fixture(scope="module")
def alone(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(jobs, tmp_path_factory.mktemp("alone") / "1", 1, "ddp")


def assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for what in ("gradient", "update"):
        scale = expected[what].abs().max()
        assert scale > 1e-4
        assert ((got[what] - expected[what]).abs().max() / scale).item() <= tolerance, what
    rows = [json.loads(run["logged"]) for run in (got, expected)]
    for row, reference in zip(*rows, strict=True):
        assert row.keys() == reference.keys()
        for name in row.keys() - _OWN:
            # TRL averages entropies over micro-batches, whatever their lengths, and those are others here.
            relative = 1e-2 if name == "entropy" else 1e-4
            assert row[name] == pytest.approx(reference[name], rel=relative, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kind"), [(2, "ddp"), (4, "ddp"), (2, "fsdp2")])
def test_equals_one_process(
    jobs: Jobs, tmp_path: Path, alone: dict[str, Any], processes: int, kind: str
) -> None:
    found = launch(jobs, tmp_path / "runs", processes, kind)
    assert set(found) == set(WAYS) - ({"plain rows"} if kind == "fsdp2" else set())
    for name, got in found.items():
        assert_same(got, alone[name], 1e-10 if "float64" in name else 5e-6)
        for other in found.keys() - {name}:  # the planted fault: another way's run
            if alone[other]["update"].shape == got["update"].shape:
                with pytest.raises(AssertionError):
                    assert_same(got, alone[other], 1e-3)
