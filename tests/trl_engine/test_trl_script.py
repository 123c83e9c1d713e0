"""examples/trl_grpo.py: started by `accelerate launch`, as TRL's own scripts are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_trainers import qwen2

from lambda_grpo.policy import character_tokenizer

SCRIPT = Path(__file__).parents[2] / "examples" / "trl_grpo.py"


@pytest.mark.slow
def test_accelerate_launches_it(tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "data"
    qwen2().save_pretrained(model)
    tokenizer = character_tokenizer("abc")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    data.mkdir()
    rows = [{"prompt": [{"role": "user", "content": letter}], "solution": "$1$"} for letter in "abcabcab"]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"--model_name_or_path={model}", f"--dataset_name={data}", f"--output_dir={tmp_path / 'out'}", "--use_cpu",
        "--credit=lambda_grpo", '--credit_kwargs={"power": 0.5}', "--max_steps=2", "--num_generations=4",
        "--per_device_train_batch_size=4", "--max_completion_length=5", "--bf16=false", "--report_to=none",
        "--logging_steps=1", "--save_rollouts",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", str(SCRIPT)]
    done = subprocess.run([*launch, *settings], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "credit/mean_weight" in done.stdout
    assert (tmp_path / "out/model.safetensors").exists()
    assert len(list((tmp_path / "out/rollouts").glob("*.parquet"))) == 2
