"""Completions by vLLM, if it is installed. Written after vLLM's documentation; tried with a stand-in only."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError
from lambda_grpo.evaluating.completions import Sampling


class VLLMModel:
    """A model served by vLLM in this process; of a folder of adapters, their base model and them.

    Args:
        longest: the longest prompt and completion together, in tokens.

    Raises:
        InputError: vLLM is not installed.
    """

    def __init__(self, model: str, longest: int) -> None:
        vllm = _vllm()
        self._params = vllm.SamplingParams
        options: dict[str, Any] = {"model": model, "max_model_len": longest, "generation_config": "vllm"}
        self._adapter: Any = None
        config = Path(model) / "adapter_config.json"
        if config.is_file():
            from vllm.lora.request import LoRARequest

            adapter = json.loads(config.read_text("utf-8"))
            options |= {"model": adapter["base_model_name_or_path"], "tokenizer": model}
            options |= {"enable_lora": True, "max_lora_rank": adapter["r"]}
            self._adapter = LoRARequest("trained", 1, model)
        self._llm = vllm.LLM(**options)

    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], *, sample: bool
    ) -> tuple[list[str], list[int]]:
        """One completion per prompt (token ids), each with a seed of its own: the texts, and their tokens."""
        params = [
            self._params(
                temperature=sampling.temperature if sample else 0.0,
                top_p=sampling.top_p if sample else 1.0,
                top_k=(sampling.top_k or -1) if sample else -1,
                min_p=sampling.min_p if sample else 0.0,
                repetition_penalty=sampling.repetition_penalty,
                max_tokens=sampling.max_completion_length,
                seed=seed,
            )
            for seed in seeds
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            params,
            use_tqdm=False,
            lora_request=self._adapter,
        )
        first = [output.outputs[0] for output in outputs]
        return [each.text for each in first], [len(each.token_ids) for each in first]


def _vllm() -> Any:
    try:
        import vllm
    except ModuleNotFoundError as error:
        raise InputError(
            "engine vllm: vLLM is not installed: pip install vllm, or --engine transformers"
        ) from error
    return vllm
