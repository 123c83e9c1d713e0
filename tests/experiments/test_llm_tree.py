"""The toy tree with a Llama: one row of 15 tokens is the model, and the fast training is the plain one."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from experiments.binary_tree import toy_training, toy_tree
from experiments.binary_tree.stacked_gpt2 import stack
from experiments.binary_tree.toy_tree import Cell
from experiments.common import command
from experiments.llm_tree import run as llm_tree
from experiments.llm_tree import tree_results
from experiments.llm_tree.llama_on_tree import LlamaPolicy
from lambda_grpo.errors import InputError

IDS = (3, 7, 1)  # the start token, L, R
PREFIXES = [[3]]
for node in range(1, toy_tree.NODES):
    PREFIXES.append([*PREFIXES[(node - 1) // 2], IDS[1 + (node - 1) % 2]])


def llama(**changes: Any) -> LlamaForCausalLM:
    """Random, and far from the start's small weights, so that nothing is nearly zero."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 9, "hidden_size": 12, "intermediate_size": 20}
    shape |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.4)
    return model


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"head_dim": 4}])
def test_one_row_says_what_transformers_says_and_has_its_gradient(changes: dict[str, Any]) -> None:
    model = llama(**changes)
    policy = LlamaPolicy.of(model, IDS)
    weights = {name: weight.clone().requires_grad_() for name, weight in policy.weights.items()}
    got = policy.log_probs(weights)[0]
    plain = torch.stack([model(torch.tensor([p])).logits[0, -1, list(IDS[1:])] for p in PREFIXES])
    torch.testing.assert_close(got, plain.log_softmax(-1), rtol=1e-5, atol=1e-5)

    pushes = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * pushes).sum().backward()
    (plain.log_softmax(-1) * pushes).sum().backward()
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            own = weights["embedding" if "embed_tokens" in name else "head"].grad
            torch.testing.assert_close(own, parameter.grad[list(IDS)], rtol=1e-4, atol=1e-5)
            others = [i for i in range(9) if i not in IDS]
            assert not parameter.grad[others].any(), "so Adam leaves them alone"
        else:
            own = weights[name.removeprefix("model.")].grad
            torch.testing.assert_close(own, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_model_that_is_read_otherwise_is_refused() -> None:
    for model in (llama(attention_bias=True), llama(mlp_bias=True), GPT2LMHeadModel(GPT2Config(n_layer=1))):
        with pytest.raises(InputError, match="expected a plain Llama"):
            LlamaPolicy.of(model, IDS)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(InputError, match="expected a plain Llama"):
        LlamaPolicy.of(llama(rope_parameters=scaled), IDS)


def test_weights_that_step_alone_end_where_they_end_together() -> None:
    """A few steps of Adam, in float64: the same weights, also over steps whose gradient is zero."""
    config = GPT2Config(
        vocab_size=3, n_positions=4, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    start = stack([GPT2LMHeadModel(config).double().eval()])
    tree, pushes = toy_tree.layout(0, (1, 2)), torch.randn(5, 1, 15, 2, dtype=torch.float64)
    pushes[[0, 3]] = 0
    ends = []
    for each_alone in (False, True):
        policies = toy_training.Policies(start, config, 0, (1, 2))
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in start.items()}
        step = toy_training.adam(weights, 1e-2, each_alone)
        for push in pushes:
            step((policies.log_probs(weights) * push).sum(), not push.any())
        ends.append(weights)
    assert len(tree.ids) == 15
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=0, msg=name)
        assert (weight != start[name]).any(), name
    held = [weakref.ref(weight) for weight in ends[1].values()]
    del weights, weight, step
    ends.clear()
    gc.collect()
    assert not any(weight() is not None for weight in held), "a run leaves nothing in memory"


def test_measures_by_hand() -> None:
    """16 completions a step: none is the target in 10 steps, 8 in the next 5, then 12 in 5, then all."""
    target = [0] * 10 + [8] * 5 + [12] * 5 + [16] * 5
    counts = np.zeros((25, 16), np.uint8)
    counts[:, 0] = target
    counts[:, 3] = 16 - counts[:, 0]
    found = llm_tree.measures(counts, last=10)
    assert found["curve"] == [0, 0, 0.5, 0.75, 1]
    assert found["target"] == 0.875
    assert found["half_at"] == 11  # steps 11 to 15: 8, 8, 8, 8, 12 of 16
    assert llm_tree.measures(counts[:15], last=5)["half_at"] is None, "one half is not more than one half"


def rows(variant: str, targets: dict[int, float], half: dict[int, int | None]) -> list[dict[str, Any]]:
    same = {"cell": "n=1, r_neg=-1", "variant": variant, "learning_rate": 1e-5, "curve": [0.1, 0.2]}
    return [same | {"seed": s, "target": t, "half_at": half[s]} for s, t in targets.items()]


def test_differences_are_taken_over_the_seeds_that_both_have() -> None:
    given = rows("grpo", {0: 0.5, 1: 0.0, 2: 0.9}, {0: 100, 1: None, 2: 60})
    given += rows("lambda_grpo", {0: 0.7, 1: 0.8}, {0: 70, 1: 90})
    found = tree_results.figures(given)
    name = "n=1, r_neg=-1 | lr 1e-05"
    assert found[f"{name} | lambda_grpo - grpo"] == pytest.approx(0.5)  # (0.2 + 0.8) / 2
    assert found[f"{name} | lambda_grpo - grpo | half at"] == -30  # of seed 0 alone
    assert (found[f"{name} | grpo | missed"], found[f"{name} | grpo | never"]) == (1, 1)
    assert found[f"{name} | grpo | half at"] == 80
    assert found["all cells | lr 1e-05 | lambda_grpo - grpo"] == pytest.approx(0.5)


def test_llm_tree_in_miniature_ends_between_two_runs_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "llm_tree",
        "--quick",
        "--steps",
        "10",
        "--last_steps",
        "5",
        "--seeds",
        "1",
        "-o",
        str(tmp_path / "out"),
    ]
    assert command.main([*flags, "--minutes", "0"]) == 0
    assert "4 runs are left: the same command" in capsys.readouterr().out
    assert command.main(flags) == 0
    settings, *found = [
        json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    ]
    assert settings["settings"]["model"] == "tiny"
    assert [(row["variant"], row["learning_rate"]) for row in found] == [
        ("grpo", 0.003), ("lambda_grpo", 0.003), ("grpo", 0.01), ("lambda_grpo", 0.01)]  # fmt: skip
    assert all(0 < row["probability_at_start"] < 1 and len(row["curve"]) == 2 for row in found)
    assert (tmp_path / "out" / "curves-0.003.png").exists()
    assert command.main([*flags, "--credits", "no_such"]) == 2
    assert "unknown credit 'no_such'" in capsys.readouterr().err


def test_the_target_may_be_unlikely_at_the_start() -> None:
    policy = llm_tree.load("tiny")
    each = [llm_tree._at_start(policy, leaf)["probability_at_start"] for leaf in range(16)]
    assert sum(each) == pytest.approx(1, abs=1e-4)
    assert Cell("anti-exploitation", -1.0, 1).name == "n=1, r_neg=-1"
