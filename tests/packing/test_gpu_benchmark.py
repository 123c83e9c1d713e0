"""`benchmarks/gpu.py` runs, small, on a CPU, and sees a fault."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tiny(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--turns", "1", "-o", str(tmp_path)]
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": source}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["checks"]) == 4
    assert all(check["holds"] for check in found["checks"])
    assert [row["case"] for row in found["update"]] == [
        "padded with a tail", "raw ÷ unique 1.1", "raw ÷ unique 2",
    ]  # fmt: skip
    assert all(set(row["ways"]) == {"TRL", "unpadded", "tree"} for row in found["update"])
    assert found["update"][0]["padded"] > 2 * found["update"][0]["raw"]
    assert set(found["sampling"]["seconds"]) == {"generate", "sample"}
    assert found["credit"]["tokens"] > 0
    heads = {row["way"]: row for row in found["head"]}
    assert set(heads) == {"TRL", "kept", "Liger", "ours"}
    assert max(heads[way]["off"] for way in ("kept", "ours")) < 1e-5  # the same gradient
    liger = importlib.util.find_spec("liger_kernel")
    assert heads["Liger"]["off"] < 1e-4 if liger else "not installed" in heads["Liger"]["skipped"]
    assert set(found["training"]) == {"TRL", "tree sampling", "both", "both, auto"}
    assert all(way["seconds"] > way["sampling"] > 0 for way in found["training"].values())
    assert found["training"]["both"]["packed"] == 1
    assert "raw ÷ unique 2" in (tmp_path / "gpu.md").read_text()
    assert "The LM head alone" in (tmp_path / "gpu.md").read_text()
    assert (tmp_path / "gpu.png").stat().st_size > 1000


def test_only_a_section_keeps_the_others(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"checks": [{"holds": true}], "head": []}')
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "-o", str(tmp_path), "--only"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for section, code in (("credit,haed", 2), ("credit", 0)):
        ended = subprocess.run([*command, section], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr[-3000:]
        assert ("no section haed; there are checks, update" in ended.stderr) == (code == 2)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["checks"] == [{"holds": True}]
    assert found["credit"]["tokens"] > 0


def test_without_a_device_it_says_so() -> None:
    ended = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert ended.returncode == 2
    assert "there is no CUDA device here; --tiny runs everything on a CPU" in ended.stderr
