"""examples/trl_grpo.py: started by `accelerate launch`, as TRL's own scripts are, and pushed to a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from local_hub import local_hub
from tiny_trainers import qwen2

from lambda_grpo.policy import character_tokenizer

SCRIPT = Path(__file__).parents[2] / "examples" / "trl_grpo.py"


def launch(folder: Path, *more: str, processes: int = 1, **environment: str) -> str:
    """Two steps of the script on a tiny model; what it printed."""
    model, data = folder / "model", folder / "data"
    qwen2().save_pretrained(model)
    tokenizer = character_tokenizer("abc")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    data.mkdir()
    rows = [{"prompt": [{"role": "user", "content": letter}], "solution": "$1$"} for letter in "abcabcab"]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"--model_name_or_path={model}", f"--dataset_name={data}", f"--output_dir={folder / 'out'}", "--use_cpu",
        "--credit=lambda_grpo", '--credit_kwargs={"power": 0.5}', "--max_steps=2", "--num_generations=4",
        "--per_device_train_batch_size=4", "--max_completion_length=5", "--bf16=false", "--report_to=none",
        "--logging_steps=1", "--save_rollouts",
    ]  # fmt: skip
    # With --cpu and no MPI accelerate starts one rank, however many it is asked for; --multi_gpu is torchrun's agent,
    # and the script's own --use_cpu makes its ranks talk by gloo.
    device = ["--cpu"] if processes == 1 else ["--multi_gpu", "--main_process_port=0"]
    program = [sys.executable, "-m", "accelerate.commands.launch", *device, f"--num_processes={processes}"]
    done = subprocess.run(
        [*program, str(SCRIPT), *settings, *more],
        capture_output=True, text=True, check=False, timeout=300, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launches_it(tmp_path: Path, processes: int) -> None:
    printed = launch(tmp_path, processes=processes)
    assert "credit/mean_weight" in printed
    assert (tmp_path / "out/model.safetensors").exists()
    rollouts = sorted((tmp_path / "out/rollouts").glob("*.parquet"))
    assert len(rollouts) == 2 * processes  # a file per step and rank
    assert sum(pq.read_metadata(file).num_rows for file in rollouts) == 2 * 4 * processes


@pytest.mark.slow
def test_it_pushes_to_a_hub(tmp_path: Path) -> None:
    """A real push to a hub on this machine: repository, model card, weights and rollouts arrive as they were written."""
    token = "hf_stand_in"
    with local_hub(token) as hub:
        launch(
            tmp_path, "--push_to_hub", "--hub_model_id=me/tiny", f"--hub_token={token}",
            HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
            HF_HOME=str(tmp_path / "home"),
        )  # fmt: skip
    assert list(hub.files) == ["me/tiny"]
    assert hub.commits[-1] == "End of training"
    assert hub.unknown == []
    pushed, out = hub.files["me/tiny"], tmp_path / "out"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(pushed)
    assert all(content == (out / name).read_bytes() for name, content in pushed.items())
    card = pushed["README.md"].decode()
    assert hub.cards[-1] == card
    assert 'credit: lambda_grpo\ncredit_kwargs: {"power": 0.5}' in card
    assert 'model="me/tiny"' in card
    assert {name for name in pushed if name.startswith("rollouts/")} == {
        f"rollouts/{file.name}" for file in (out / "rollouts").glob("*.parquet")
    }
