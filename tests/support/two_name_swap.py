"""A script for TRL, run as it is and again with two names swapped: `python two_name_swap.py`.

It needs `lambda-grpo[train]` and nothing of this repository, so that it shows what a user of the wheel gets. The model is
a random Qwen2 of 16 dimensions, made on the spot; each run takes two steps on a CPU.
"""

import tempfile
from pathlib import Path

from lambda_grpo.policy import character_tokenizer

SCRIPT = """
import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer


def reward(completions, **columns):
    return [text.count("a") / 4 for text in completions]


torch.manual_seed(0)
ends = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id, "bos_token_id": None}
model = Qwen2ForCausalLM(
    Qwen2Config(
        vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, **ends,
    )
)
trainer = GRPOTrainer(
    model=model,
    reward_funcs=reward,
    args=GRPOConfig(
        output_dir=FOLDER, max_steps=2, num_generations=8, per_device_train_batch_size=8, logging_steps=1,
        max_completion_length=4, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
    ),
    train_dataset=Dataset.from_dict({"prompt": ["ab", "bc"] * 4}),
    processing_class=TOKENIZER,
)
trainer.train()
"""
SWAPPED = SCRIPT.replace("from trl import", "from lambda_grpo.engines.trl import")
SWAPPED = SWAPPED.replace("GRPOConfig", "LambdaGRPOConfig").replace("GRPOTrainer", "LambdaGRPOTrainer")


def main() -> None:
    for script in (SCRIPT, SWAPPED):
        with tempfile.TemporaryDirectory() as folder:
            names = {"TOKENIZER": character_tokenizer("abc"), "FOLDER": str(Path(folder) / "out")}
            exec(compile(script, "<script>", "exec"), names)
        trainer = names["trainer"]
        steps = [line for line in trainer.state.log_history if "grad_norm" in line]
        weighted = "credit/mean_weight" in steps[-1]
        if len(steps) != 2 or weighted != (script is SWAPPED):
            raise SystemExit(f"{type(trainer).__name__}: not the two steps that were asked for: {steps}")
        print(type(trainer).__name__, [round(line["grad_norm"], 4) for line in steps])


if __name__ == "__main__":
    main()
