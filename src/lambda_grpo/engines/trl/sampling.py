"""Sampling on the tree in TRL's trainer: each prompt runs once for all its completions.

`TreeSampling` is `GRPOTrainer` whose `model.generate` is ours while TRL generates a turn: TRL pads the
prompts, unwraps the model and cuts the completions as ever. `sampler: generate` is TRL to the bit. On devices
other than a CPU `auto` first times both ways (`sampling_trial.py`).

Random numbers come from torch's generator on the CPU, one number a turn, and so they are in every checkpoint.
What cannot be sampled on a tree (vLLM, continuous batching, tools, images, active dropout, layers that cannot
fork, settings of `generate` that are not ours, a `generate` of the model's own) goes TRL's own way, after one
warning where it is a surprise. With `branch_depths` it is refused instead, because TRL's own way cannot fork;
only with vLLM it can (`vllm_forks.py`).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from lambda_grpo.branching import BranchPlan
from lambda_grpo.engines.trl.branching import Branching, cannot_fork
from lambda_grpo.engines.trl.sampling_trial import SamplingTrial, is_timed
from lambda_grpo.engines.trl.vllm_forks import generate_forked
from lambda_grpo.errors import InputError
from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling import DrawSettings, Request, draw_seed, sample_on_tree
from lambda_grpo.sampling.plain import NEUTRAL

SAMPLERS = ("auto", "tree", "generate")

# What we do as `generate` does it, and what does not change what it draws.
_DRAWING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
_OURS = _DRAWING | {"max_new_tokens", "do_sample", "eos_token_id"}
_WITHOUT_EFFECT = {
    "pad_token_id", "bos_token_id", "disable_compile", "transformers_version", "max_length", "use_cache",
}  # fmt: skip
_NEUTRAL = NEUTRAL | {"num_return_sequences": 1, "length_penalty": 1.0, "encoder_no_repeat_ngram_size": 0}

_METHODS = ("generate", "_sample", "_get_logits_processor")  # what draws a token, of transformers

_logger = logging.getLogger(__name__)


class TreeSampling(Branching):
    """`GRPOTrainer` with `args.sampler`; it forks where `Branching` says."""

    use_transformers_continuous_batching: bool
    _sampled_tokens = 0  # drawn on this rank for the generation batch at hand
    _tree_is_off = False  # known after the first try; kept, because a try takes a random number

    @cached_property
    def _sampling_trial(self) -> SamplingTrial:
        return SamplingTrial()

    def kept_state(self) -> dict[str, Any]:
        return super().kept_state() | {
            "sampling": {"off": self._tree_is_off, "timed": self._sampling_trial.kept()}
        }

    def load_kept_state(self, kept: Mapping[str, Any]) -> None:
        super().load_kept_state(kept)
        self._tree_is_off = kept["sampling"]["off"]
        self._sampling_trial.load(kept["sampling"].get("timed", {}))  # older checkpoints have none

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._generate(*args, **kwargs)
        completion_ids, tool_mask = output[1:3]
        if not self._plan:  # of forks a turn has counted what was drawn once for several completions
            # What tools wrote was not drawn.
            drawn = map(len, completion_ids) if tool_mask is None else map(sum, tool_mask)
            self._sampled_tokens = int(sum(drawn))
        return output

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *args: Any, **kwargs: Any
    ) -> Any:
        turn = super()._generate_single_turn
        if self.use_vllm and self._plan:
            with _replaced_generate(self.vllm_generation, partial(self._fork_with_vllm, self._plan)):
                return turn(prompt_ids, images, multimodal_fields, *args, **kwargs)
        if self.args.sampler == "generate" or self._tree_is_off or self._generated_elsewhere():
            return turn(prompt_ids, images, multimodal_fields, *args, **kwargs)
        if images is not None or multimodal_fields or self.tools:
            self._leave_to_trl("tools and images go through TRL's own turns")
            return turn(prompt_ids, images, multimodal_fields, *args, **kwargs)
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if own := _own_drawing(model):
            self._leave_to_trl(f"{type(inner_model(model)).__name__} has a {own} of its own")
            return turn(prompt_ids, images, multimodal_fields, *args, **kwargs)
        with _replaced_generate(model, partial(self._sample_turn, self._plan)):
            return turn(prompt_ids, images, multimodal_fields, *args, **kwargs)

    def _fork_with_vllm(self, plan: BranchPlan, vllm: Any, own: Callable[..., Any], **asked: Any) -> Any:
        """In place of `VLLMGeneration.generate`, which is `own`."""
        output, self._sampled_tokens = generate_forked(vllm, own, plan, self.eos_token_ids, **asked)
        return output

    def _generated_elsewhere(self) -> bool:
        return bool(self.use_vllm or self.use_transformers_continuous_batching)

    def _sample_turn(
        self,
        plan: BranchPlan | None,
        model: Any,
        own: Callable[..., Tensor],
        input_ids: Tensor,
        attention_mask: Tensor,
        generation_config: Any,
    ) -> Tensor:
        """In place of `model.generate`, which is `own`: (B, prompt + completion), padded on both sides."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "generation_config": generation_config,
        }
        tree, generate = partial(self._on_tree, plan, model, **inputs), partial(own, **inputs)
        try:
            if self.args.sampler == "auto" and not self.args.forks and is_timed(input_ids.device):
                return self._sampling_trial.turn(input_ids, tree, generate, training=self.model.training)
            return tree()
        except InputError as reason:
            self._leave_to_trl(str(reason))
            return generate()

    def _on_tree(
        self,
        plan: BranchPlan | None,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        generation_config: Any,
    ) -> Tensor:
        prompts = [row[mask].tolist() for row, mask in zip(input_ids, attention_mask.bool(), strict=True)]
        request = request_of(model, prompts, generation_config)
        if plan:
            request = replace(request, group=self.num_generations, branches=plan)
        request.check(model)
        samples = sample_on_tree(model, request)
        self._sampled_tokens, completions = samples.sampled_tokens, samples.completions
        padded = torch.full((len(prompts), max(map(len, completions))), self._tokenizer.pad_token_id)
        for row, ids in zip(padded, completions, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return torch.cat([input_ids, padded.to(input_ids.device)], dim=1)

    def _leave_to_trl(self, reason: str) -> None:
        """Go TRL's way from now on.

        Raises:
            InputError: the settings want a tree, or forks.
        """
        if self.args.forks:
            raise cannot_fork(reason)
        if self.args.sampler == "tree":
            raise InputError(f"sampler: got 'tree', but {reason}. Set sampler='auto'")
        _logger.warning("Sampling on the tree is off, transformers' generate samples: %s", reason)
        self._tree_is_off = True


def request_of(model: Any, prompts: list[list[int]], generation_config: Any) -> Request:
    """What `generate` would sample: what TRL sets, and what it leaves open as the model's own settings say.

    Raises:
        InputError: a setting that is not among ours.
    """
    settings: dict[str, Any] = {}
    for config in (inner_model(model).generation_config, generation_config):
        settings |= {name: value for name, value in config.to_diff_dict().items() if value is not None}
    others = {
        name
        for name, value in settings.items()
        if value is not False and name[0] != "_" and not (name in _NEUTRAL and value == _NEUTRAL[name])
    } - (_OURS | _WITHOUT_EFFECT)
    if others or not settings.get("do_sample"):
        names = ", ".join(sorted(others or {"do_sample"}))
        raise InputError(f"the model or generation_kwargs set {names}, which this sampler does not know")
    if settings.get("max_new_tokens") is None:
        raise InputError("max_completion_length is not set, and this sampler needs it")
    given = {name: settings[name] for name in _DRAWING if settings.get(name) is not None}
    ends = settings.get("eos_token_id")
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    return Request(
        prompts=prompts,
        max_new_tokens=settings["max_new_tokens"],
        settings=DrawSettings(**{"top_k": 50} | given),  # transformers' default, where nothing is set
        end_ids=tuple(ends),
        ends=None,
        batch_size=len(prompts),
        cached_tokens=None,
        logprobs=False,
        seed=draw_seed(None),
    )


def _own_drawing(model: Any) -> str:
    """The name of a method of drawing that a model does not have from transformers or peft; "" if none.

    TRL has no setting for a logits processor, so people put one into a `generate` of their own.
    """
    inner = inner_model(model)
    if hasattr(model, "_get_fsdp_state"):  # FSDP 2, where transformers wraps `generate`; refused later
        return ""
    if "generate" in vars(model):
        return "generate"
    for name in _METHODS:
        if name in vars(inner) or getattr(type(inner), name) is not getattr(GenerationMixin, name):
            return name
    return ""


@contextmanager
def _replaced_generate(model: Any, generate: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, `model.generate(…)` is `generate(model, own, …)`, where `own` is what it was.

    TRL gives everything by keyword.
    """
    before, own = vars(model).get("generate"), model.generate
    model.generate = lambda **inputs: generate(model, own, **inputs)
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before
