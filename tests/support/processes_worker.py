"""One process of `test_trl_processes.py`: trains in each way, and rank 0 writes down what came out.

The completions are made, not sampled: they depend on the step and on the row's place in the global batch, so that any
number of processes sees the same ones.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset
from peft import LoraConfig
from tiny_trainers import TOKENIZER, gpt2_float64, make_trainer, qwen2
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

ROWS, SIZE, STEPS = 24, 8, 3  # three groups of eight: with two or four processes groups straddle them
LETTERS = [TOKENIZER.convert_tokens_to_ids(letter) for letter in "abc"]
PROMPTS = [a + b for a in "abc" for b in "abc"]
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")

WAYS: dict[str, dict[str, Any]] = {
    "plain rows": {"beta": 0.1, "num_iterations": 2},
    "packed, float64": {"model": gpt2_float64, "tree_packing": "on", "beta": 0.1, "num_iterations": 2},
    "packed, per sequence": {"tree_packing": "on", "loss_type": "grpo", "credit": "grpo"},
    "packed, LoRA": {"tree_packing": "on", "lora": True, "beta": 0.1},
    "packed, accumulated": {"tree_packing": "on", "gradient_accumulation_steps": 2},
}


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Eight completions that share prefixes, some as long as may be, some ended."""
    first = trainer.accelerator.process_index * len(prompts)
    completions = []
    for row in range(first, first + len(prompts)):
        trunk = np.random.default_rng([trainer.state.global_step, row // SIZE]).choice(LETTERS, 5)
        rng = np.random.default_rng([trainer.state.global_step, row, 1])
        keep, length = rng.integers(0, 5), rng.integers(3, 6)
        own = [*trunk[:keep], *rng.choice(LETTERS, 5 - keep)][:length]
        completions.append([*map(int, own), *([TOKENIZER.eos_token_id] if length < 5 else [])])
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in prompts]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


class Gradients(TrainerCallback):
    """The gradients of the first update, all ranks' shards put together."""

    def __init__(self) -> None:
        self.found: torch.Tensor | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.found is None:
            self.found = joined([p.grad for p in model.parameters() if p.requires_grad])


def joined(tensors: list[Any]) -> torch.Tensor:
    whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
    return torch.cat([t.detach().clone().flatten().double() for t in whole])


def make(folder: Path, processes: int, **settings: Any) -> Any:
    given: dict[str, Any] = {
        "rollout_func": rollout,
        "train_dataset": Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
    }
    if settings.pop("lora", False):
        torch.manual_seed(0)
        given["peft_config"] = LORA
    rows = ROWS // processes // settings.get("gradient_accumulation_steps", 1)
    return make_trainer(
        folder, model=settings.pop("model", qwen2)(), trainer_kwargs=given, per_device_train_batch_size=rows,
        num_generations=SIZE, max_steps=STEPS, optim="sgd", max_grad_norm=0, max_completion_length=5,
        learning_rate=0.05, lr_scheduler_type="constant", num_generations_eval=1, per_device_eval_batch_size=2, **settings,
    )  # fmt: skip


def run(folder: Path, processes: int, name: str, check: Any = None) -> None:
    """Train, evaluate on five prompts (an uneven last batch), write down."""
    trainer = make(folder, processes, **WAYS[name])
    gradients = Gradients()
    trainer.add_callback(gradients)
    start = joined([p for p in trainer.model.parameters() if p.requires_grad])
    trainer.train()
    if check is not None:
        check(trainer)
    end = joined([p for p in trainer.model_wrapped.parameters() if p.requires_grad])
    logged = [row for row in trainer.state.log_history if "loss" in row]
    if check is None:
        metrics = trainer.evaluate(Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS[:5]]))
        assert 0 < metrics["eval_credit/mean_weight"] <= 1
    if trainer.accelerator.is_main_process:
        what = {"gradient": gradients.found, "update": end - start, "logged": json.dumps(logged)}
        torch.save(what, folder / f"{name}.pt")


def force_fsdp2(state_dict_type: str = "FULL_STATE_DICT") -> None:
    """On CPUs accelerate passes FSDP over in silence and takes DDP; nothing but this choice is in its way."""
    original = AcceleratorState.__init__

    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        fresh = not AcceleratorState._shared_state
        original(self, *args, **kwargs)
        if fresh:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
                reshard_after_forward=True, cpu_ram_efficient_loading=False, state_dict_type=state_dict_type,
            )  # fmt: skip

    AcceleratorState.__init__ = patched


def assert_sharded(trainer: Any) -> None:
    assert all(isinstance(p, DTensor) for p in trainer.model_wrapped.parameters())


def main(folder: str, kind: str) -> None:
    if kind == "fsdp2":
        force_fsdp2()
    processes = PartialState(cpu=True).num_processes
    for name in WAYS:
        if kind == "fsdp2" and name == "plain rows":
            continue
        run(Path(folder), processes, name, assert_sharded if kind == "fsdp2" else None)
