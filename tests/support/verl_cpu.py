"""What verl needs to run in one process without a GPU: its config, a batch in TransferQueue, an FSDP2 worker."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl.plugin.platform import platform_cuda, platform_manager
from verl.trainer.config import CheckpointConfig
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

VOCABULARY = 32
RATE = 1000.0  # so high that the rounding of the new weights does not blur their change


def config(*overrides: str) -> Any:
    """verl's own config with what a command line would add."""
    needed = ["algorithm.adv_estimator=grpo", "trainer.v1.trainer_mode=lambda_sync"]
    needed += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose("ppo_trainer", overrides=[*needed, *overrides])
    OmegaConf.resolve(composed)
    return composed


def row(key: str, prompt: list[int], response: list[int], mask: list[int], score: float) -> tuple[str, dict]:
    """A row as verl's agent loop stores it; its key is uid_session_index."""
    length = len(response)
    policy = torch.tensor(mask)
    scores = torch.zeros(length)
    scores[-1] = score
    return key, {
        "uid": key.rsplit("_", 2)[0],
        "prompts": torch.tensor(prompt),
        "responses": torch.tensor(response),
        "input_ids": torch.tensor(prompt + response),
        "position_ids": torch.arange(len(prompt) + length),
        "response_mask": policy,
        "loss_mask": policy,
        "rm_scores": scores,
        "rollout_log_probs": torch.zeros(length),
        "old_log_probs": torch.zeros(length),
        "ref_log_prob": torch.zeros(length),
        "num_turns": 2,
        "multi_modal_inputs": {},
    }


def put(partition: str, rows: list[tuple[str, dict]]) -> Any:
    """Store rows in TransferQueue, as an agent loop does."""
    tags = [
        {"seq_len": len(field["input_ids"]), "global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        for _, field in rows
    ]
    fields = list_of_dict_to_tensordict([field for _, field in rows])
    return tq.kv_batch_put(keys=[key for key, _ in rows], partition_id=partition, fields=fields, tags=tags)


def get(batch: Any, name: str) -> list[torch.Tensor]:
    """One jagged field of a batch, row by row."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[name])
    return list(data[name].unbind())


class _Device:
    """`torch.cpu`, with an answer to what only accelerators know."""

    def mem_get_info(self) -> tuple[int, int]:
        return 1, 1

    def get_device_name(self) -> str:
        return "H100"  # for its FLOPS, of which verl logs a share

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name, lambda *args, **kwargs: 0)


(_Cuda,) = (
    kind
    for kind in vars(platform_cuda).values()
    if isinstance(kind, type)
    and issubclass(kind, platform_cuda.PlatformBase)
    and kind is not platform_cuda.PlatformBase
)


class _CPU(_Cuda):  # verl 0.9.1 brings no platform for CPUs, but lets one be added
    device_name = "cpu"

    @property
    def device_module(self) -> Any:
        return _Device()

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def communication_backend_name(self) -> str:
        return "gloo"


@contextlib.contextmanager
def worker(folder: Path, monkeypatch: Any) -> Iterator[TrainingWorker]:
    """verl's training worker with its FSDP2 engine, a tiny random model and SGD, on the CPU."""
    torch.manual_seed(0)
    model = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(model).save_pretrained(folder / "model")
    monkeypatch.setattr(platform_manager, "_current_platform", _CPU())
    environment = {"VERL_ENGINE_DEVICE": "cuda", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # read, but the processes meet in a file
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    try:
        made = TrainingWorker(
            TrainingWorkerConfig(
                model_type="language_model",
                model_config=HFModelConfig(
                    path=str(folder / "model"), load_tokenizer=False, use_remove_padding=False,
                    enable_gradient_checkpointing=False, override_config={"attn_implementation": "eager"},
                ),
                engine_config=FSDPEngineConfig(
                    strategy="fsdp2", model_dtype="fp32", mixed_precision={"param_dtype": "fp32"}, fsdp_size=1,
                    use_torch_compile=False, use_dynamic_bsz=False, micro_batch_size_per_gpu=2,
                ),
                optimizer_config=FSDPOptimizerConfig(
                    optimizer="SGD", lr=RATE, total_training_steps=10, clip_grad=1e9, weight_decay=0.0
                ),
                checkpoint_config=CheckpointConfig(),
            )
        )  # fmt: skip
        made.reset()
        yield made
    finally:
        torch.distributed.destroy_process_group()
