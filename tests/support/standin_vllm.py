"""TRL's own `VLLMGeneration` on stand-ins for vLLM: an engine in the process, and a server.

What TRL does on its side of vLLM runs as it is: prompts gathered, sampling parameters, slices, log-probs.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.generation import vllm_generation

Draw = Callable[[list[int], int], tuple[list[int], list[float]]]  # prompt, most tokens → tokens, log-probs


class StandInVLLM(vllm_generation.VLLMGeneration):
    """`VLLMGeneration` whose tokens a function draws. `calls` holds (prompts, most tokens, completions of each)."""

    draw: Draw
    calls: list[tuple[list[list[int]], int, int]]

    def _init_vllm(self) -> None:
        self.calls, self.synced = [], 0
        self.llm = SimpleNamespace(generate=self._engine)
        self.vllm_client = SimpleNamespace(generate=self._server)

    def sync_weights(self) -> None:
        self.synced += 1

    def _engine(self, prompts: list[dict[str, Any]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        self.calls.append((ids, sampling_params.max_tokens, sampling_params.n))
        return [self._output(prompt, *self.draw(prompt, sampling_params.max_tokens)) for prompt in ids]

    def _output(self, prompt: list[int], ids: list[int], logps: list[float]) -> Any:
        found = [{token: SimpleNamespace(logprob=p, rank=1)} for token, p in zip(ids, logps, strict=True)]
        completion = SimpleNamespace(token_ids=ids, logprobs=found)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[completion])

    def _server(self, prompts: list[list[int]], n: int, max_tokens: int, **_: Any) -> dict[str, Any]:
        self.calls.append((prompts, max_tokens, n))
        drawn = [self.draw(prompt, max_tokens) for prompt in prompts for _ in range(n)]
        logprobs = [[[p] for p in logps] for _, logps in drawn]
        return {"prompt_ids": prompts, "completion_ids": [ids for ids, _ in drawn], "logprobs": logprobs}


def stand_in(accelerator: Any, draw: Draw, mode: str, model: Any = None, **settings: Any) -> StandInVLLM:
    """The object that TRL's trainer would have as `vllm_generation`."""
    found = StandInVLLM(model, accelerator, None, mode=mode, **settings)
    found.draw = draw
    return found


def draws_of(model: Any, temperature: float, end_ids: list[int]) -> Draw:
    """Tokens of a model, each by a pass over all that lies before it."""

    def draw(prompt: list[int], most: int) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        logps: list[float] = []
        while len(ids) < most and not (ids and ids[-1] in end_ids):
            with torch.no_grad():
                scores = model(torch.tensor([prompt + ids])).logits[0, -1].div(temperature).log_softmax(-1)
            ids.append(int(torch.multinomial(scores.exp(), 1)))
            logps.append(float(scores[ids[-1]]))
        return ids, logps

    return draw


def give(trainer: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> StandInVLLM:
    """Let a trainer that was made without vLLM generate with the stand-in."""
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    found = stand_in(
        trainer.accelerator,
        draws_of(trainer.model, trainer.temperature, trainer.eos_token_ids),
        mode,
        trainer.model,
        temperature=trainer.temperature,
        max_completion_length=trainer.max_completion_length,
    )
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, found, -1
    return found
