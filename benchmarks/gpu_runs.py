"""The parts of `benchmarks/gpu.py` that need a whole model: sampling, and a few steps of training."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset
from gpu_cases import GROUP, MODELS, TINY, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lambda_grpo import policy
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.engines.trl.sampling_trial import TRIAL_TURNS
from lambda_grpo.packing.cost import now
from lambda_grpo.tasks import get_task

STEPS = 4  # of training that are timed
TRAINING_WAYS: dict[str, tuple[dict[str, str], int]] = {  # settings, and steps before those that are timed
    "TRL": ({"tree_packing": "off", "sampler": "generate"}, 1),
    "tree sampling": ({"tree_packing": "off", "sampler": "tree"}, 1),
    "both": ({"tree_packing": "on", "sampler": "tree"}, 1),
    "both, auto": ({"tree_packing": "auto", "sampler": "auto"}, TRIAL_TURNS),
}


def sampling_case(device: torch.device, dtype: torch.dtype, name: str | None, tiny: bool) -> dict[str, Any]:
    """Seconds of `generate` and of our sampling: 8 prompts × 8 completions behind a common beginning."""
    try:
        from lambda_grpo.sampling import sample
    except ImportError:
        print("sampling: skipped, this version has no lambda_grpo.sampling")
        return {"skipped": "this version has no lambda_grpo.sampling"}
    if name:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    else:
        model = make_model((TINY if tiny else MODELS)[0], device, dtype).eval()
    common, own, new = (16, 8, 8) if tiny else (200, 45, 256)
    torch.manual_seed(0)
    beginning = torch.randint(10, 8_000, (common,)).tolist()
    prompts = [beginning + torch.randint(10, 8_000, (own,)).tolist() for _ in range(8)]
    end = model.config.vocab_size - 1
    ids = torch.tensor([prompt for prompt in prompts for _ in range(GROUP)], device=device)
    settings = GenerationConfig(
        max_new_tokens=new, do_sample=True, eos_token_id=end, pad_token_id=end, top_k=0
    )

    def generate() -> None:
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)

    def ours() -> None:
        sample(model, prompts, num_completions=GROUP, max_new_tokens=new, eos_token_ids=[end])

    seconds = {}
    for way, run in (("generate", generate), ("sample", ours)):
        run()
        times = []
        for _ in range(3):
            started = now(device)
            run()
            times.append(now(device) - started)
        seconds[way] = statistics.median(times)
    print(f"sampling: generate {seconds['generate']:.2f} s, ours {seconds['sample']:.2f} s")
    return {"seconds": seconds, "prompts": 8, "completions": GROUP, "common": common, "new_tokens": new}


def training_case(device: torch.device, name: str | None, tiny: bool) -> Iterator[dict[str, Any]]:
    """Seconds a step takes, in all and for sampling: as TRL does it, and with each part of ours.

    The model is loaded anew for each way. Yields all ways so far, after each way.
    """
    if not name and not tiny:
        print("training: skipped, no --model was given")
        yield {"skipped": "no --model was given"}
        return
    task = get_task("largest")
    problems = task.problems("train", 64, 0)
    found = {}
    for way, (settings, warm) in TRAINING_WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            settings = {**settings, "max_steps": warm + STEPS}
            trainer = _trainer(folder, name, settings, device, problems, task)
            sampling = _timed_sampling(trainer, device)
            trainer.train()
            logs = [log for log in trainer.state.log_history if "step_time" in log][warm:]
            found[way] = {
                "seconds": statistics.median(log["step_time"] for log in logs),
                "sampling": statistics.median(sampling[warm:]),
                "packed": statistics.mean(log.get("tree/packed", 0.0) for log in logs),
                "raw_per_unique": statistics.mean(log.get("tree/raw_per_unique", 1.0) for log in logs),
                "length": statistics.mean(log["completions/mean_length"] for log in logs),
            }
            if device.type == "cuda":
                found[way]["gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
                torch.cuda.reset_peak_memory_stats()
        print(f"training, {way}: {found[way]}", flush=True)
        yield found


def _timed_sampling(trainer: Any, device: torch.device) -> list[float]:
    """A list that gets the seconds of each turn of sampling, as they pass."""
    seconds: list[float] = []
    own = trainer._generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = now(device)
        output = own(*args, **kwargs)
        seconds.append(now(device) - started)
        return output

    trainer._generate = timed
    return seconds


def _trainer(
    folder: str,
    name: str | None,
    settings: Mapping[str, Any],
    device: torch.device,
    problems: list[Any],
    task: Any,
) -> Any:
    answers = {problem.prompt: problem for problem in problems}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [task.score(answers[prompt], text) for prompt, text in zip(prompts, completions, strict=True)]

    cuda = device.type == "cuda"
    prompts_per_step = 8 if cuda else 2
    config = LambdaGRPOConfig(
        output_dir=folder, **settings, logging_steps=1, report_to="none", bf16=cuda,
        use_cpu=not cuda, per_device_train_batch_size=prompts_per_step * GROUP, num_generations=GROUP,
        max_completion_length=128 if cuda else 6, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    if name:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    else:
        tokenizer = policy.character_tokenizer("".join(sorted(set("".join(answers)))))
        model = make_model(TINY[0], device, torch.float32)
        model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return LambdaGRPOTrainer(
        model, reward, config, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": problem.prompt} for problem in problems]),
    )  # fmt: skip
