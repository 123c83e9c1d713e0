"""`sample` gives what `generate` gives: greedy token for token, with the log-probs of a full forward pass."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload
from accelerate.utils import convert_outputs_to_fp32
from tiny_models import FAMILIES, VOCABULARY, make_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from lambda_grpo import sampling
from lambda_grpo.branching import BranchPlan
from lambda_grpo.errors import InputError
from lambda_grpo.policy import LowRank, adapters, character_tokenizer, load_policy, load_tokenizer
from lambda_grpo.sampling import DrawSettings, Request, Samples, decode, prefill, sample, shared_prefix, trial

END = 2
SHARED = [5, 9, 1, 1, 12, 7, 3, 5, 8]
PROMPTS = [
    [*SHARED, 4],
    [*SHARED, 4, 6, 10, 3],
    [*SHARED, 11, 1, 1, 7, 9, 3, 6],
    [8, 3, 3, 1, 10],
    SHARED[:5],  # the beginning of others
    [8, 3, 3, 1, 10],  # the same once more
    [12],
]
UNIQUE = len(SHARED) + 1 + 3 + 7 + 5 + 1  # tokens of PROMPTS, each shared one once
NEW = 18


def greedy(model: Any, **settings: Any) -> Samples:
    settings = {
        "num_completions": 2,
        "max_new_tokens": NEW,
        "eos_token_ids": [END],
        "logprobs": True,
    } | settings
    return sample(model, PROMPTS, temperature=0, seed_or_generator=0, **settings)


def generated(model: Any, prompt: list[int], **settings: Any) -> list[int]:
    """The completion of one prompt in a row of its own, by `generate`."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": END, "pad_token_id": 0} | settings
    ids = torch.tensor([prompt])
    output: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return output[0, len(prompt) :].tolist()


def full_logps(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    scores = (logits[len(prompt) - 1 : -1].float() / temperature).log_softmax(-1)
    return scores.gather(1, torch.tensor(completion)[:, None])[:, 0]


def assert_as_generated(model: Any, samples: Samples, tolerance: float = 2e-5) -> None:
    assert samples.reason == ""
    for i, prompt in enumerate(PROMPTS):
        expected = generated(model, prompt)
        assert samples.completions[2 * i : 2 * i + 2] == [expected, expected]
        logps = full_logps(model, prompt, expected)
        for row in samples.logps[2 * i : 2 * i + 2]:
            assert (torch.tensor(row) - logps).abs().max() < tolerance


@pytest.mark.usefixtures("prefixes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family: str, dtype: torch.dtype) -> None:
    model = make_model(family).to(dtype)
    if family == "gemma2":  # older versions of transformers choose SDPA, which leaves the soft cap out
        model.set_attn_implementation("eager")
    samples = greedy(model)
    assert_as_generated(model, samples)
    assert samples.prompt_tokens == UNIQUE
    lengths = {len(completion) for completion in samples.completions}
    assert max(lengths) == NEW  # the windows of some families are shorter


@pytest.mark.usefixtures("prefixes")
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma3"])
@pytest.mark.parametrize("settings", [{"batch_size": 3}, {"batch_size": 1}, {"cached_tokens": 100}], ids=str)
def test_rows_that_wait_and_join(
    family: str, settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling.cache, "SPARE", 3)  # the buffers of a cache are made anew several times
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", 12)
    model = make_model(family)
    assert_as_generated(model, greedy(model, **settings))


def roll_rows(part: prefill.Prefilled, index: int) -> tuple[Tensor, Tensor]:
    keys, values = (
        part._fan_out(x) for x in (part.cache.layers[index].keys, part.cache.layers[index].values)
    )
    return keys.roll(1, dims=0), values.roll(1, dims=0)


def shift_positions(step: Callable[..., None]) -> Callable[..., None]:
    def shifted(self: decode.Decoder, tokens: np.ndarray) -> None:
        model = self.model

        def later(position_ids: Tensor, **inputs: Any) -> Any:
            return model(position_ids=position_ids + 1, **inputs)

        self.model = later
        step(self, tokens)
        self.model = model

    return shifted


def assert_sampled_as_told(model: Any) -> None:
    """The log-probs of sampled rows, of which some leave early, are those of a full pass."""
    samples = sample(
        model, PROMPTS, num_completions=3, max_new_tokens=NEW, temperature=0.7, top_p=0.9, eos_token_ids=[END],
        seed_or_generator=3, logprobs=True,
    )  # fmt: skip
    assert samples.reason == ""
    assert len({len(ids) for ids in samples.completions}) > 3
    for i, (ids, logps) in enumerate(zip(samples.completions, samples.logps, strict=True)):
        expected = full_logps(model, PROMPTS[i // 3], ids, temperature=0.7)
        assert (torch.tensor(logps) - expected).abs().max() < 2e-5, i


@pytest.mark.usefixtures("prefixes")
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "mistral"])
def test_sampled_log_probs_are_those_of_a_full_pass(family: str) -> None:
    assert_sampled_as_told(make_model(family))


def of_others(place: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, rows, device: place(self, np.roll(rows, 1), device)


def plant(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "cache of another row":
        monkeypatch.setattr(prefill.Prefilled, "layer", roll_rows)
    elif fault == "prefix of other rows":
        monkeypatch.setattr(shared_prefix, "_WORTH_BYTES", {"cpu": 0})
        place = shared_prefix.SharedPrefixes.place
        monkeypatch.setattr(shared_prefix.SharedPrefixes, "place", of_others(place))
    elif fault == "position after fan-out":
        monkeypatch.setattr(decode.Decoder, "_step", shift_positions(decode.Decoder._step))
    else:
        move = sampling.cache.ColumnBuffer.move
        monkeypatch.setattr(
            sampling.cache.ColumnBuffer,
            "move",
            lambda self, to, source, rows: move(self, to[:0], source[:0], rows),
        )


FAULTS = ["cache of another row", "position after fan-out", "prefix of other rows", "who takes whose place"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_planted_faults_are_caught(family: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(fault, monkeypatch)
    monkeypatch.setattr(sampling, "check_samples", lambda *_: None)
    with pytest.raises(AssertionError, match="assert tensor"):
        assert_sampled_as_told(make_model(family))


@pytest.mark.parametrize("fault", FAULTS[:3])
def test_a_model_that_turns_out_wrong_is_left_to_generate(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first samples are compared with plain passes; those of a model that passed are not."""
    model, proved = make_model("gpt2"), make_model("gpt2")
    shared = fault == "prefix of other rows"
    monkeypatch.setattr(shared_prefix, "_WORTH_BYTES", {"cpu": 0 if shared else 1 << 40})
    assert_as_generated(proved, greedy(proved, logprobs=True))
    plant(fault, monkeypatch)
    samples = greedy(model)
    assert "log-probs of sampled tokens are off by" in samples.reason
    assert samples.completions[::2] == [generated(model, prompt) for prompt in PROMPTS]
    assert greedy(proved).reason == ""


def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with each run on the tree."""
    runs, run = list[None](), decode.Decoder.run
    monkeypatch.setattr(decode.Decoder, "run", lambda self: (runs.append(None), run(self))[1])
    return runs


def crash(*_: Any) -> None:
    raise RuntimeError(f"shape {np.random.default_rng().random()}")


@pytest.mark.parametrize("crashes", [False, True])
def test_a_failure_is_remembered_and_said_once_for_a_model(
    crashes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama")
    if crashes:
        monkeypatch.setattr(decode.Decoder, "_step", crash)
    else:
        plant("position after fan-out", monkeypatch)
    runs = counted_runs(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="lambda_grpo.sampling"):
        reasons = {greedy(model, max_new_tokens=4 + i).reason for i in range(3)}
    (reason,) = reasons
    assert reason
    assert len(runs) == len(caplog.records) == 1
    forked = {"num_completions": 4, "branches": BranchPlan((2,), (2,))}
    for _ in range(2):
        with pytest.raises(InputError, match="cannot fork"):
            greedy(model, **forked)
    assert len(runs) == 2  # forks are another kind
    greedy(make_model("llama"))
    assert len(runs) == 3


def test_rows_with_padding_are_checked_by_themselves() -> None:
    """Without padding a model gets no mask, so rows that have none say nothing about its mask."""

    def unmasked(module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = inputs["attention_mask"] if inputs["input_ids"].shape[1] == 1 else None
        return args, inputs | ({} if mask is None else {"attention_mask": torch.ones_like(mask)})

    model = make_model("llama")
    model.register_forward_pre_hook(unmasked, with_kwargs=True)
    settings: dict[str, Any] = {"num_completions": 2, "max_new_tokens": 8, "eos_token_ids": []}
    assert sample(model, [[1, 2, 3]], **settings).reason == ""
    assert "are off by" in sample(model, [[1, 2, 3], [*range(1, 13)]], **settings).reason


def test_a_crash_is_said_once_though_its_words_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That of a model whose first samples were right is not remembered: it may come from what was asked."""
    model = make_model("llama")
    whole = greedy(model)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="lambda_grpo.sampling"):
        patch.setattr(decode.Decoder, "_step", crash)
        reasons = {greedy(model).reason for _ in range(2)}
    assert len(reasons) == 2
    assert len(caplog.records) == 1
    again = greedy(model)
    assert (again.reason, again.completions) == ("", whole.completions)


def test_dropout_may_be_switched_off() -> None:
    model = dropping_out()
    assert "dropout" in greedy(model).reason
    assert greedy(model.eval()).reason == ""


PRECISIONS = ["float32", "bfloat16", "bfloat16, no exact pass", "torch.autocast", "accelerate's autocast"]


def autocast_inside(model: Any) -> Any:
    """As `Accelerator.prepare_model` does it: outside of the forward, nothing shows that there is autocast."""
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    return model


def rounding_model(precision: str) -> Any:
    """Large enough that bfloat16 takes its log-probs further off than float32 may."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    if "bfloat16" in precision:
        return model.bfloat16()
    return autocast_inside(model) if precision == "accelerate's autocast" else model


def warm_request(prompts: list[list[int]], **settings: Any) -> Request:
    given = {"end_ids": (END,), "ends": None, "batch_size": 64, "cached_tokens": None, "logprobs": False}
    settings = {"settings": DrawSettings(temperature=0.7), "max_new_tokens": NEW, "seed": 3} | settings
    return Request([prompt for prompt in prompts for _ in range(3)], **given | settings)


@pytest.mark.parametrize("fault", ["none", *FAULTS])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_check_tells_rounding_from_faults(
    precision: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "no exact pass" in precision:
        monkeypatch.setattr(trial, "exact_copy", lambda _: None)
    if fault != "none":
        plant(fault, monkeypatch)
    model = rounding_model(precision)
    around = torch.autocast("cpu", torch.bfloat16, enabled=precision == "torch.autocast")
    with around, nullcontext() if fault == "none" else pytest.raises(InputError, match="are off by"):
        sampling.sample_on_tree(model, warm_request(PROMPTS))


def test_rounding_under_autocast_is_more_than_float32_may_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the model above shows what it is made for."""
    monkeypatch.setattr(trial._Row, "rounding", lambda *_: 0.0)
    with pytest.raises(InputError, match="are off by"):
        sampling.sample_on_tree(rounding_model("accelerate's autocast"), warm_request(PROMPTS))


class CountedCasts(TorchDispatchMode):
    """Counts how often each of some tensors is cast."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.names = {weight.data_ptr(): i for i, weight in enumerate(weights)}
        self.counts = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.counts[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def test_autocast_casts_each_weight_once() -> None:
    model = rounding_model("accelerate's autocast")
    matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    sampling.sample_on_tree(model, warm_request(PROMPTS))
    with CountedCasts(matrices) as casts:
        samples = sampling.sample_on_tree(model, warm_request(PROMPTS))
    assert max(map(len, samples.completions)) > 1
    assert casts.counts == dict.fromkeys(range(len(matrices)), 1)


def test_casts_of_sampling_end_with_it() -> None:
    """In a context of autocast around it too, where weights that change between two calls count."""
    model = rounding_model("torch.autocast")
    head = model.lm_head.weight
    with torch.autocast("cpu", torch.bfloat16):
        before = sampling.sample_on_tree(model, warm_request(PROMPTS)).completions
        with torch.no_grad():
            head.copy_(head.roll(5, dims=0))
        assert sampling.sample_on_tree(model, warm_request(PROMPTS)).completions != before


def test_weights_that_accelerate_offloads() -> None:
    """They are on the device "meta" between passes, which knows no autocast."""
    model = cpu_offload(make_model("llama").float())
    assert model.device.type == "meta"
    samples = greedy(model)
    assert samples.reason
    assert samples.completions == greedy(make_model("llama").float()).completions


def turn_wrong_late(first: int) -> Callable[..., None]:
    """The cache of each row is another row's from some token on."""
    step = decode.Decoder._step

    def wrong(self: decode.Decoder, tokens: np.ndarray) -> None:
        if int(self.drawn.count.max()) == first:
            for layer in self.cache.layers:
                layer.keys.copy_(layer.keys.roll(1, dims=0))
        step(self, tokens)

    return wrong


@pytest.mark.parametrize("late", [False, True])
def test_the_check_of_long_rows_is_bounded_and_sees_their_ends(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made = make_model("llama").float(), list[int]()
    if late:
        monkeypatch.setattr(decode.Decoder, "_step", turn_wrong_late(first=35))
    compare = trial.check_samples

    def counted(*args: Any) -> None:
        hook = model.lm_head.register_forward_hook(lambda _, args, output: made.append(output.numel()))
        try:
            compare(*args)
        finally:
            hook.remove()

    monkeypatch.setattr(sampling, "check_samples", counted)
    monkeypatch.setattr(trial, "_LOGITS", 8 * VOCABULARY)
    monkeypatch.setattr(trial, "_FEWEST", 2)
    samples = greedy(model, max_new_tokens=45, eos_token_ids=[])
    assert ("are off by" in samples.reason) == late
    assert set(made) == {8 * VOCABULARY}
    assert late or len(made) == trial.ROWS


def drawn(model: Any, **settings: Any) -> list[list[int]]:
    settings = {
        "num_completions": 4,
        "max_new_tokens": 9,
        "eos_token_ids": [END],
        "seed_or_generator": 5,
    } | settings
    return sample(model, PROMPTS, **settings).completions


@pytest.mark.usefixtures("prefixes")
def test_a_completion_depends_on_its_seed_and_place_only() -> None:
    model = make_model("llama")
    once = drawn(model)
    assert drawn(model, batch_size=3) == once
    assert drawn(model, cached_tokens=70) == once
    assert drawn(model, seed_or_generator=6) != once
    generator = torch.Generator().manual_seed(1)
    first, second = (drawn(model, seed_or_generator=generator) for _ in range(2))
    assert first != second
    assert drawn(model, seed_or_generator=torch.Generator().manual_seed(1)) == first
    torch.manual_seed(7)
    first, second = (drawn(model, seed_or_generator=None) for _ in range(2))
    assert first != second
    torch.manual_seed(7)
    assert drawn(model, seed_or_generator=None) == first


@pytest.mark.usefixtures("prefixes")
def test_a_repetition_penalty_and_filters_are_those_of_generate() -> None:
    model = make_model("llama")
    samples = greedy(model, repetition_penalty=1.7)
    plain = [generated(model, prompt, repetition_penalty=1.7) for prompt in PROMPTS]
    assert samples.completions[::2] == plain != greedy(model).completions[::2]
    assert drawn(model, top_k=1) == drawn(model, temperature=0)


def letters(completions: list[list[int]], count: int) -> str:
    """The text of neighbours in a completion, after its first token."""
    texts = ["".join("." if token < 3 else LETTERS[token - 3] for token in ids[1:]) for ids in completions]
    return next(text[i : i + count] for text in texts for i in range(9) if text[i : i + count].isalpha())


LETTERS = "abcdefghij"  # and three special tokens, as many as the models have


@pytest.mark.usefixtures("prefixes")
def test_end_strings_end_as_those_of_generate() -> None:
    tokenizer, model = character_tokenizer(LETTERS), make_model("llama")
    completions = greedy(model).completions
    strings = [letters(completions, 2), letters(completions[::-1], 1)]
    samples = greedy(model, stop_strings=strings, tokenizer=tokenizer)
    expected = [generated(model, prompt, stop_strings=strings, tokenizer=tokenizer) for prompt in PROMPTS]
    assert samples.reason == ""
    assert samples.completions[::2] == expected != completions[::2]


@pytest.mark.usefixtures("prefixes")
def test_adapters_and_training_mode() -> None:
    import peft

    model = make_model("llama")
    before = greedy(model).completions
    low_rank = peft.get_peft_model(model, adapters(model, LowRank(rank=2, alpha=4, dropout=0.0)))
    for name, parameter in low_rank.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    low_rank.train()
    low_rank.get_base_model().gradient_checkpointing_enable()
    samples = greedy(low_rank)
    assert all(module.training for module in low_rank.modules())
    low_rank.eval()
    assert_as_generated(low_rank, samples)
    assert samples.completions != before


@pytest.mark.usefixtures("prefixes")
def test_bfloat16_is_as_far_from_float32_as_the_full_pass_is() -> None:
    exact, model = make_model("llama").float(), make_model("llama").bfloat16()
    samples = sample(
        model,
        PROMPTS,
        num_completions=2,
        max_new_tokens=NEW,
        eos_token_ids=[END],
        seed_or_generator=0,
        logprobs=True,
    )
    assert samples.reason == ""
    ours, theirs = [], []
    for i, ids in enumerate(samples.completions):
        true = full_logps(exact, PROMPTS[i // 2], ids)
        ours.append((torch.tensor(samples.logps[i]) - true).abs())
        theirs.append((full_logps(model, PROMPTS[i // 2], ids) - true).abs())
    assert torch.cat(ours).mean() < 1.5 * torch.cat(theirs).mean()


SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
}


def mamba() -> Any:
    config = transformers.MambaConfig(
        **SIZE, state_size=4, pad_token_id=0, bos_token_id=None, eos_token_id=None
    )
    return transformers.MambaForCausalLM(config).eval()


def dropping_out() -> Any:
    model = make_model("llama").train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 1e-9
    return model


@pytest.mark.parametrize("make", [mamba, dropping_out])
def test_what_cannot_fork_goes_through_generate_which_is_said_once(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = make()
    with caplog.at_level(logging.WARNING, logger="lambda_grpo.sampling"):
        for _ in range(2):
            samples = greedy(model, batch_size=5)
    (said,) = [record for record in caplog.records if record.name == "lambda_grpo.sampling"]
    assert samples.reason
    assert samples.reason in said.message
    for i, prompt in enumerate(PROMPTS):
        expected = generated(model, prompt)
        assert samples.completions[2 * i] == expected
        assert (torch.tensor(samples.logps[2 * i]) - full_logps(model, prompt, expected)).abs().max() < 1e-4
    assert drawn(model) == drawn(model) != drawn(model, seed_or_generator=6)


def test_end_strings_and_an_encoder_through_generate() -> None:
    torch.manual_seed(0)
    tokenizer, model = character_tokenizer(LETTERS), mamba()
    completions = greedy(model).completions
    strings = [letters(completions, 2)]
    samples = greedy(model, stop_strings=strings, tokenizer=tokenizer)
    expected = [generated(model, prompt, stop_strings=strings, tokenizer=tokenizer) for prompt in PROMPTS]
    assert samples.completions[::2] == expected != completions[::2]
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=END,
    )  # fmt: skip
    encoder = transformers.T5ForConditionalGeneration(config).eval()
    samples = sample(
        encoder, PROMPTS[:1], num_completions=1, max_new_tokens=5, temperature=0, eos_token_ids=[END]
    )
    expected = encoder.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=5, do_sample=False)[0, 1:].tolist()
    assert samples.completions == [expected]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompts": []}, "prompts: got none"),
    ({"prompts": [[1], []]}, "prompt #1 has no token"),
    ({"prompts": [[1], [13]]}, "prompt #1: got token id 13, expected ids from 0 to 12"),
    ({"prompts": [[-1, 1]]}, "prompt #0: got token id -1"),
    ({"prompts": [[1], [1] * 60]}, "prompt #1 .60 tokens. and 6 new tokens need 65 positions, transformer.wpe knows 64"),
    ({"eos_token_ids": [13]}, "eos_token_ids: got 13, expected a token of the model's vocabulary, from 0 to 12"),
    ({"batch_size": 0}, "batch_size: got 0, expected at least 1 row"),
    ({"cached_tokens": 8}, "cached_tokens: got 8, expected at least 9"),
    ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
    ({"num_completions": 0}, "num_completions: got 0"),
    ({"temperature": -1.0}, "temperature: got -1"),
    ({"temperature": float("nan")}, "temperature: got nan"),
    ({"top_p": 0.0}, "top_p: got 0"),
    ({"top_k": -1}, "top_k: got -1"),
    ({"min_p": 2.0}, "min_p: got 2"),
    ({"repetition_penalty": 0.0}, "repetition_penalty: got 0"),
    ({"seed_or_generator": -1}, "seed: got -1"),
    ({"stop_strings": ["a"]}, "stop_strings need a tokenizer"),
    ({"stop_strings": ["aX"], "tokenizer": character_tokenizer("abc")}, "got 'aX', which the tokenizer's tokens cannot spell"),
    ({"stop_strings": [""], "tokenizer": character_tokenizer("abc")}, "got '', which the"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[message for _, message in BAD])
def test_mistakes_are_named(wrong: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "prompts": [[1, 2, 3]],
        "num_completions": 1,
        "max_new_tokens": 6,
        "eos_token_ids": [2],
    }
    given |= wrong
    with pytest.raises(InputError, match=message):
        sample(make_model("gpt2"), given.pop("prompts"), **given)


def test_the_last_position_of_a_table_is_reached() -> None:
    model = make_model("gpt2")
    samples = sample(model, [[1] * 59], num_completions=1, max_new_tokens=6, temperature=0, eos_token_ids=[])
    assert samples.reason == ""
    assert len(samples.completions[0]) == 6


@pytest.mark.parametrize("window", [None, 4])
def test_a_growing_layer_holds_what_that_of_transformers_holds(window: int | None) -> None:
    """One token at a time, rows that leave, columns that are cut off."""
    config = transformers.MistralConfig(
        num_hidden_layers=1, sliding_window=window, hidden_size=8, num_attention_heads=1, head_dim=4
    )
    theirs, ours = DynamicCache(config=config), sampling.cache.growing_cache(config)
    torch.manual_seed(0)
    start = torch.randn(2, 3, 1, 5, 4)
    theirs.layers[0].update(*start)
    ours.layers[0].admit(*start)
    for step in range(70):
        new = torch.randn(2, 3 if step < 6 else 2, 1, 1, 4)
        sizes = ours.layers[0].get_mask_sizes(1)
        assert sizes == theirs.layers[0].get_mask_sizes(1)
        expected, got = theirs.layers[0].update(*new), ours.layers[0].update(*new)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
        assert got[0].shape[2] == sizes[0]
        if step == 5:
            theirs.layers[0].batch_select_indices(torch.tensor([2, 1]))
            ours.layers[0].move(torch.tensor([0]), torch.tensor([2]), 2)


QUESTIONS = ["What is the capital of France?", "Which is the largest: 18, 59, 44?", "Write about the sea."]


def asked(tokenizer: Any, questions: list[str]) -> list[list[int]]:
    chats = [[{"role": "user", "content": question}] for question in questions]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
    return [list(row) for row in ids]


@pytest.mark.slow
def test_a_real_language_model_greedily(smollm2_folder: Path) -> None:
    """SmolLM2-135M in float32: token for token, and the log-probs of full passes."""
    model, tokenizer = load_policy(str(smollm2_folder), dtype=torch.float32)
    prompts = asked(tokenizer, QUESTIONS)
    samples = sample(
        model, prompts, num_completions=2, max_new_tokens=32, temperature=0, eos_token_ids=[2], logprobs=True
    )
    assert samples.reason == ""
    assert samples.prompt_tokens < 0.5 * sum(map(len, prompts)) * 2
    for i, prompt in enumerate(prompts):
        expected = generated(model, prompt, max_new_tokens=32, repetition_penalty=1.0)
        assert samples.completions[2 * i : 2 * i + 2] == [expected, expected]
        assert (torch.tensor(samples.logps[2 * i]) - full_logps(model, prompt, expected)).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "accelerate's autocast"])
def test_the_check_of_a_real_language_model(
    precision: str, smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that are wrong by one take SmolLM2's log-probs off by 0.1; bfloat16 by 0.02 to 0.05."""

    def load() -> Any:
        if precision == "bfloat16":
            return load_policy(str(smollm2_folder), dtype=torch.bfloat16)[0]
        return autocast_inside(load_policy(str(smollm2_folder), dtype=torch.float32)[0])

    request = warm_request(asked(load_tokenizer(str(smollm2_folder)), QUESTIONS), max_new_tokens=16)
    request = replace(request, settings=DrawSettings())
    sampling.sample_on_tree(load(), request)
    plant("position after fan-out", monkeypatch)
    with pytest.raises(InputError, match="are off by"):
        sampling.sample_on_tree(load(), request)
