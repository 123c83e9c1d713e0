"""What is checked before several processes train, and how their shares of an evaluation become one."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.run import get_args_parser

from lambda_grpo import InputError, cli
from lambda_grpo.engines.trl import ranks
from lambda_grpo.evaluating.evaluation import Answers
from lambda_grpo.training import multi_rank
from lambda_grpo.training import options as options_module
from lambda_grpo.training.settings import RECIPES, resolve

SETTINGS = RECIPES / "accelerate"


def environment(path: Path) -> dict[str, str]:
    """What `accelerate launch --config_file path --num_processes 2` hands to its processes."""
    parser = launch_command_parser()
    args = parser.parse_args(
        ["--config_file", str(path), "--num_processes=2", "-m", "lambda_grpo.cli", "train"]
    )
    args, *_ = _validate_launch_command(args)
    assert args.num_processes == 2
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        return prepare_deepspeed_cmd_env(args)[1]
    return prepare_multi_gpu_env(args)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_accelerate_reads_our_settings(name: str) -> None:
    kinds = {
        "ddp": DistributedType.MULTI_GPU,
        "fsdp2": DistributedType.FSDP,
        "zero3": DistributedType.DEEPSPEED,
    }
    assert load_config_from_file(str(SETTINGS / f"{name}.yaml")).distributed_type == kinds[name]
    assert {path.stem for path in SETTINGS.iterdir()} == set(kinds)


def test_accelerate_hands_our_settings_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ACCELERATE_USE_FSDP" not in environment(SETTINGS / "ddp.yaml")
    zero3 = environment(SETTINGS / "zero3.yaml")
    assert zero3["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert zero3["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    for key, value in environment(SETTINGS / "fsdp2.yaml").items():
        if key.startswith(("FSDP", "ACCELERATE_USE_FSDP")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    multi_rank.check_sharding(accelerator(DistributedType.FSDP, plugin.state_dict_type.name))


def test_accelerate_refuses_an_unknown_key(tmp_path: Path) -> None:
    """The planted fault."""
    path = tmp_path / "mine.yaml"
    path.write_text((SETTINGS / "ddp.yaml").read_text() + "number_of_processes: 8\n")
    with pytest.raises(ValueError, match="number_of_processes"):
        load_config_from_file(str(path))


def test_the_vllm_server_recipe() -> None:
    """All but where completions come from is as in the recipe that it extends, with two processes."""
    ours, base = (
        resolve(name, ["--use_cpu", "--bf16=false"]).explicit for name in ("vllm-server", "openrs-qwen-1.5b")
    )
    changed = {name for name in ours if ours[name] != base.get(name)}
    server = {"use_vllm", "vllm_mode", "vllm_server_host", "vllm_server_port", "vllm_server_timeout"}
    assert changed - {"output_dir"} == server | {"gradient_accumulation_steps"}
    assert ours["gradient_accumulation_steps"] * 2 == base["gradient_accumulation_steps"]


@pytest.mark.slow
def test_the_vllm_server_recipe_runs_dry(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    assert cli.main(["train", "--config=vllm-server", "--dry_run", f"--output_dir={tmp_path / 'run'}"]) == 0


def accelerator(kind: DistributedType, saved: str = "FULL_STATE_DICT") -> Any:
    plugin = SimpleNamespace(state_dict_type=SimpleNamespace(name=saved))
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(fsdp_plugin=plugin))


def test_fsdp_must_be_in_force_and_save_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    multi_rank.check_sharding(accelerator(DistributedType.MULTI_CPU))
    with pytest.raises(InputError, match="got SHARDED_STATE_DICT, expected FULL_STATE_DICT"):
        multi_rank.check_sharding(accelerator(DistributedType.FSDP, "SHARDED_STATE_DICT"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    multi_rank.check_sharding(accelerator(DistributedType.FSDP))
    with pytest.raises(InputError, match="got distributed type MULTI_CPU, expected FSDP"):
        multi_rank.check_sharding(accelerator(DistributedType.MULTI_CPU))


def test_accelerate_that_starts_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process it starts."""
    multi_rank.expect_all_started()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    multi_rank.expect_all_started()  # --num_processes 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(InputError, match=r"got one process, .* expected `torchrun"):
        multi_rank.expect_all_started()


def test_shares_of_an_evaluation() -> None:
    """Five problems, the first process has 0, 2 and 4; a trait of 3 in 6 answers there and 1 in 4 here is 4 in 10."""
    first = Answers(
        np.array([[0.0], [2], [4]]), np.array([0.0, 2, 4]), np.array([[10.0], [12], [14]]), {"neat": 3 / 6}
    )
    second = Answers(np.array([[1.0], [3]]), np.array([1.0, 3]), np.array([[11.0], [13]]), {"neat": 1 / 4})
    whole = multi_rank._interleaved([first, second])
    assert whole.sampled[:, 0].tolist() == whole.greedy.tolist() == [0, 1, 2, 3, 4]
    assert whole.lengths[:, 0].tolist() == [10, 11, 12, 13, 14]
    assert whole.traits["neat"] == pytest.approx(4 / 10)


def test_the_commands_of_the_document() -> None:
    """Each is understood by its launcher, and what it launches by us."""
    document = (RECIPES.parents[2] / "docs" / "ranks.md").read_text()
    lines = [
        line
        for block in re.findall(r"```sh\n(.*?)```", document, re.DOTALL)
        for line in block.replace("\\\n", "").splitlines()
    ]
    launchers = {"accelerate": launch_command_parser(), "torchrun": get_args_parser()}
    found = []
    for line in lines:
        words = [word for word in line.replace("RANK", "1").split() if not word.startswith("CUDA_VISIBLE")]
        if words[0] not in launchers:
            continue
        start = 2 if words[0] == "accelerate" else 1
        args = launchers[words[0]].parse_args(words[start:])
        assert (args.module, args.training_script) == (True, "lambda_grpo.cli")
        command, recipe, name, *flags = args.training_script_args
        assert (command, recipe) == ("train", "--config")
        resolve(name, [*flags, "--use_cpu", "--bf16=false"])
        found.append(words[0])
    assert sorted(found) == ["accelerate"] * 3 + ["torchrun"] * 2
    assert set(re.findall(r"recipes/accelerate/(\w+)\.yaml", document)) <= {
        path.stem for path in SETTINGS.iterdir()
    }


def test_a_rollout_function_that_returns_too_few() -> None:
    """One completion for two prompts, on the second process; with both, what it returned goes through."""
    trainer = SimpleNamespace(accelerator=SimpleNamespace(process_index=1))
    output = {"completion_ids": [[1], [2]], "prompt_ids": [[3], [3]], "logprobs": None}
    given = ranks.checked_rollouts(lambda prompts, trainer: output)
    assert given(["a", "a"], trainer) is output
    output["completion_ids"] = [[1]]
    with pytest.raises(InputError, match="rollout_func, on process 1: got 1 completion_ids for 2 prompts"):
        given(["a", "a"], trainer)


@pytest.mark.parametrize(
    ("problems", "count", "most", "expected"),
    [
        (12, 1, 8, 6),  # 12 = 2 × 6; eight at a time would repeat four
        (12, 2, 8, 6),  # one batch of six for each
        (5, 2, 8, 3),  # one or three at a time repeat one problem, two or four three, eight eleven
        (125, 8, 4, 4),  # 128, whether by one, two or four
    ],
)
def test_validation_repeats_few_problems(problems: int, count: int, most: int, expected: int) -> None:
    options = options_module.TrainOptions(validate_every=1, validation_problems=problems)
    config: Any = SimpleNamespace(
        num_generations_eval=1, num_generations=4, world_size=count, per_device_train_batch_size=most
    )
    assert options_module.implied(options, config)["per_device_eval_batch_size"] == expected
