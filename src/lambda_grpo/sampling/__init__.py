"""`sample` draws completions of prompts, and computes each shared prefix once.

The prompts form a trie. The model runs over each token of it once (`prefill`), each row gets its path as its
cache (`cache`), but for long prefixes that rows share, which are kept once (`shared_prefix`). All rows are
sampled in one batch that rows leave when they end (`decode`): `draw` draws their tokens, `drawn_tokens` keeps
them, and `rows_on_device` is what the device knows of the rows. The first samples of each model are compared
with plain passes (`trial`).
Models whose layers cannot fork are sampled by transformers' `generate` (`plain`).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lambda_grpo.branching import BranchPlan
from lambda_grpo.errors import InputError, expect
from lambda_grpo.packing.supported import check_dropout, check_layers, inner_model
from lambda_grpo.sampling.cache import growing_cache
from lambda_grpo.sampling.decode import Decoder
from lambda_grpo.sampling.draw import DrawSettings
from lambda_grpo.sampling.plain import generate
from lambda_grpo.sampling.request import Request, Samples, Seed, draw_seed, end_strings
from lambda_grpo.sampling.trial import check_samples

__all__ = ["DrawSettings", "Request", "Samples", "check_can_fork", "draw_seed", "sample", "sample_on_tree"]

_logger = logging.getLogger(__name__)
# Of each model, what its first samples of a kind came to: "" if they were right, otherwise why they were not.
# The kinds: with shared prefixes or without, with forks or without, with a mask for padding or without.
_Kind = tuple[bool, bool, bool]
_found: WeakKeyDictionary[torch.nn.Module, dict[_Kind, str]] = WeakKeyDictionary()
_said: WeakKeyDictionary[torch.nn.Module, set[str]] = WeakKeyDictionary()


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    eos_token_ids: Sequence[int],
    seed_or_generator: Seed = None,
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
    logprobs: bool = False,
    batch_size: int = 256,
    cached_tokens: int | None = None,
    branches: BranchPlan | None = None,
) -> Samples:
    """Sample completions of prompts; the distribution is that of `generate` with the same settings.

    A completion depends on the seed, its place and its prompt, but for rounding not on the other rows, nor on
    `batch_size`. Dropout must be off; the model's mode stays what it was.

    Args:
        model: a causal language model of transformers, maybe with adapters or wrapped for several ranks.
        prompts: lists of token ids, without padding. Those that begin alike share what they have in common.
        num_completions: G, completions of each prompt.
        max_new_tokens: T, tokens of a completion at most.
        temperature: 0 takes the most likely token each time.
        top_p, top_k, min_p, repetition_penalty: as `transformers.GenerationConfig` defines them.
        eos_token_ids: tokens that end a completion, and belong to it; none: only T ends it.
        seed_or_generator: a number, or the generator that gives one; None: torch's own random state gives it.
        stop_strings: texts that end a completion, the token that completes them included.
        tokenizer: needed for `stop_strings` only.
        logprobs: whether `Samples.logps` is wanted.
        batch_size: rows at a time; others join when some have ended.
        cached_tokens: what the cache may hold, rows × (longest prompt + T); None: no bound.
        branches: where the completions of a prompt fork; until then those of a block are sampled as one.
            None: they are independent.

    Raises:
        InputError: an empty prompt, ids beyond the vocabulary, more positions than the model knows, an end
            string that no tokens spell, room for less than one row, a number out of its range; with branches
            also a plan that does not fit `num_completions` or T, and a model that cannot fork.
    """
    expect(num_completions >= 1, "num_completions", num_completions, "at least 1")
    settings = DrawSettings(temperature, top_p, top_k, min_p, repetition_penalty)
    request = Request(
        prompts=[list(prompt) for prompt in prompts for _ in range(num_completions)],
        max_new_tokens=max_new_tokens,
        settings=settings,
        end_ids=tuple(eos_token_ids),
        ends=end_strings(stop_strings, tokenizer),
        batch_size=batch_size,
        cached_tokens=cached_tokens,
        logprobs=logprobs,
        seed=draw_seed(seed_or_generator),
        group=num_completions,
        branches=branches,
    )
    request.check(model)
    try:
        return sample_on_tree(model, request)
    except InputError as error:
        if branches:
            raise InputError(f"branches: this model cannot fork: {error}") from error
        _say_once(inner_model(model), str(error))
        return generate(model, request, str(error))


def sample_on_tree(model: Any, request: Request) -> Samples:
    """Sample what a `Request` asks for, or refuse; it is for those who have a `generate` of their own.

    Raises:
        InputError: the model cannot be sampled on a tree.
    """
    check_can_fork(model)
    inner = inner_model(model)
    with (
        torch.no_grad(),
        _inference(model),
        _without_plans(inner),
        _casts_kept(inner),
        _crashes_refused(model),
    ):
        decoder = Decoder(model, request)
        found = _found.setdefault(inner, {})
        masked = not decoder.shares and request.may_pad
        kind = (decoder.shares, request.branches is not None, masked)
        if kind not in found:
            return _first_samples(model, request, found, kind)
        if found[kind]:
            raise InputError(found[kind])
        return decoder.run()


def _first_samples(model: Any, request: Request, found: dict[_Kind, str], kind: _Kind) -> Samples:
    """Sample, compare with plain passes, and remember the outcome: no later call fails the same way."""
    try:
        with _crashes_refused(model):
            samples = Decoder(model, replace(request, logprobs=True)).run()
            check_samples(model, request, samples)
    except InputError as error:
        found[kind] = str(error)
        raise
    found[kind] = ""
    return samples if request.logprobs else replace(samples, logps=None)


@contextmanager
def _crashes_refused(model: Any) -> Iterator[None]:
    """Inside, a model that nobody has tried may fail in a way of its own, which becomes an `InputError`."""
    try:
        yield
    except (torch.OutOfMemoryError, InputError):
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{type(model).__name__}: {type(error).__name__}: {error}") from error


def check_can_fork(model: Any) -> None:
    """Refuse a model that cannot be sampled on a tree: the rule is that of tree packing.

    Raises:
        InputError: layers that cannot fork, active dropout, weights that ranks share, virtual tokens.
    """
    inner = inner_model(model)
    check_layers(inner, "its prompts are computed once for each completion")
    check_dropout(inner)
    growing_cache(inner.config)
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise InputError(f"{adapter.peft_type.value} puts virtual tokens before the prompt")
    if _sharded(model):
        raise InputError("ranks share the weights, so that all of them must run equally often")


def _sharded(model: Any) -> bool:
    """Whether a pass waits for other ranks: the rule by which `generate` keeps ranks in step."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_managed_module

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_world_size() == 1:
        return False
    shards = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())  # FSDP 2
    return bool(shards or is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Inside, the model is in evaluation mode: gradient checkpointing would switch the cache off."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _without_plans(model: Any) -> Iterator[None]:
    """Inside, a GPU's attention is not cuDNN's, which torch prefers on an H100.

    cuDNN plans for each new shape, for tens of milliseconds, and here each token has a new one.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(before and model.device.type != "cuda")
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def _casts_kept(model: Any) -> Iterator[None]:
    """Inside, autocast casts each weight that is trained once, not once for each token.

    Autocast keeps casts until its outermost context ends, and `accelerate` opens one for each pass. They take
    2 bytes a weight, as in an update under autocast. It keeps no cast of frozen weights, such as those under
    LoRA. No cast is left afterwards, even in a context of the caller's: the weights may change there, and in
    older versions of torch a cast made here would have no gradient.
    """
    kind = model.device.type
    if not torch.amp.is_autocast_available(kind):  # "meta", where accelerate offloads the weights
        yield
        return
    around = torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=around):
        try:
            yield
        finally:
            torch.clear_autocast_cache()


def _say_once(model: Any, reason: str) -> None:
    """Warn, once for each model and reason; numbers in it may change from call to call."""
    said = _said.setdefault(model, set())
    if (kind := re.sub(r"\d+", "", reason)) not in said:
        said.add(kind)
        _logger.warning("Sampling goes through transformers' generate: %s", reason)
