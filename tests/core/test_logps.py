"""Log-probs of completions: padding changes nothing, whichever side it is on."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from lambda_grpo.errors import InputError
from lambda_grpo.logps import completion_logps

PROMPTS = [[3, 4, 5, 6, 7], [8], [9, 3]]
COMPLETIONS = [[4, 4], [5, 6, 7, 3], []]


def gpt2():
    """Absolute positions: it needs position ids that start at the first real token."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def qwen2():
    """Relative positions: only the attention mask keeps padding out."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=12, num_key_value_heads=2, **sizes))


# Qwen2's RMSNorm computes in float32 inside, of float64 models too.
@pytest.fixture(params=[(gpt2, 1e-12), (qwen2, 1e-6)], ids=["gpt2", "qwen2"])
def model_and_tolerance(request):
    build, tolerance = request.param
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():  # the usual initialisation is so small that padding would hardly be seen
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, tolerance


def close(got, expected, tolerance):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def alone(model, prompt, completion):
    """The definition: one row, no padding, no mask, the model's own positions."""
    logps = model(torch.tensor([prompt + completion])).logits[0].log_softmax(dim=-1)
    return torch.stack([logps[len(prompt) + t - 1, token] for t, token in enumerate(completion)])


def padded_on_the_right(model, prompts, completions):
    """Rows that start in column 0; a causal model sees no padding then. No mask, no positions."""
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    logps = model(torch.tensor([row + [0] * (width - len(row)) for row in rows])).logits.log_softmax(dim=-1)
    out = torch.zeros(len(rows), max(map(len, completions)), dtype=logps.dtype)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        for t, token in enumerate(completion):
            out[i, t] = logps[i, len(prompt) + t - 1, token]
    return out


def test_values_and_gradients_are_those_of_each_row_alone(model_and_tolerance):
    model, tolerance = model_and_tolerance
    logps = completion_logps(model, PROMPTS, COMPLETIONS)
    assert logps.shape == (3, 4)
    assert logps.dtype == torch.float64
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for i in (0, 1):
        expected[i, : len(COMPLETIONS[i])] = alone(model, PROMPTS[i], COMPLETIONS[i])
    close(logps, expected, tolerance)

    direction = torch.randn(3, 4, dtype=torch.float64)
    parameters = list(model.parameters())
    got = torch.autograd.grad((logps * direction).sum(), parameters)
    want = torch.autograd.grad((expected * direction).sum(), parameters)
    for a, b in zip(got, want, strict=True):
        close(a, b, 100 * tolerance)


def test_the_padding_side_does_not_matter(model_and_tolerance):
    model, tolerance = model_and_tolerance
    close(
        completion_logps(model, PROMPTS, COMPLETIONS),
        padded_on_the_right(model, PROMPTS, COMPLETIONS),
        tolerance,
    )


def test_the_order_and_company_of_rows_do_not_matter(model_and_tolerance):
    model, tolerance = model_and_tolerance
    together = completion_logps(model, PROMPTS, COMPLETIONS)
    reversed_ = completion_logps(model, PROMPTS[::-1], COMPLETIONS[::-1]).flip(0)
    without_longest_prompt = completion_logps(model, PROMPTS[1:], COMPLETIONS[1:])
    close(reversed_, together, tolerance)
    close(without_longest_prompt, together[1:], tolerance)


# Without a mask transformers takes each restart of the positions for a new row of a packed batch, which keeps
# padding out as well; so the mask's absence shows where the positions are absent too.
@pytest.mark.parametrize(
    ("build", "dropped"), [(gpt2, ["position_ids"]), (qwen2, ["attention_mask", "position_ids"])]
)
def test_a_planted_fault_is_seen(build, dropped):
    """The mistake of a misspelt keyword: the model never gets it."""
    torch.manual_seed(0)
    model = build().double().eval()

    def forgetful(**inputs):
        return model(**{name: value for name, value in inputs.items() if name not in dropped})

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        faulty = completion_logps(forgetful, PROMPTS, COMPLETIONS)
        assert (faulty - padded_on_the_right(model, PROMPTS, COMPLETIONS)).abs().max() > 0.1


@torch.no_grad()
def test_they_are_those_of_the_policy_that_samples(model_and_tolerance):
    model, tolerance = model_and_tolerance
    width = max(map(len, PROMPTS))
    output = model.generate(
        input_ids=torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]),
        max_new_tokens=5,
        do_sample=True,
        temperature=0.7,
        top_k=0,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    completions = output.sequences[:, width:]
    sampled_from = torch.stack([(logits / 0.7).log_softmax(dim=-1) for logits in output.logits], dim=1)
    expected = sampled_from.gather(2, completions[..., None]).squeeze(2)
    got = completion_logps(model, PROMPTS, completions.tolist(), temperature=0.7)
    close(got, expected.to(got.dtype), max(tolerance, 1e-6))  # generate keeps logits in float32


def test_empty_completions_have_no_log_probs_and_a_gradient_of_zero():
    model = gpt2().eval()
    logps = completion_logps(model, PROMPTS, [[], [], []])
    assert logps.shape == (3, 0)
    logps.sum().backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_bfloat16_models_give_float32():
    model = gpt2().bfloat16().eval()
    assert completion_logps(model, PROMPTS, COMPLETIONS).dtype == torch.float32


@pytest.mark.parametrize(
    ("prompts", "completions", "options", "message"),
    [
        ([[1], []], [[2], [3]], {}, "prompt_ids: #1 is empty"),
        ([[1]], [[2], [3]], {}, "completion_ids: expected one per prompt and at least one, got 2 for 1"),
        ([], [], {}, "completion_ids: expected one per prompt and at least one, got 0"),
        ([[1]], [[2]], {"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
    ],
)
def test_completion_logps_refuses(prompts, completions, options, message):
    with pytest.raises(InputError, match=message):
        completion_logps(gpt2(), prompts, completions, **options)
