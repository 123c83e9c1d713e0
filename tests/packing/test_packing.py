"""Theorem: one pass over a packed tree gives each completion's log-probs, and all gradients, as a row of its own does."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from groups import group as some_group
from hypothesis import given, settings
from packed_groups import GROUPS, Groups, gradients, loss_of, packed_of
from tiny_models import FAMILIES, LAYER_NORM, VOCABULARY, make_model, with_exact_norms
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, BloomForCausalLM, Mamba2Config, Mamba2ForCausalLM

from lambda_grpo import InputError, ProcessTree
from lambda_grpo.packing import PackedTree, join, pack, tree_logps, tree_logps_and_entropies
from lambda_grpo.packing.attention.switching import use_tree_attention
from lambda_grpo.packing.head import Logits, token_scores
from lambda_grpo.packing.rows import pack_rows


def row_by_row(model: Any, groups: Groups, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies, (R, T), from each completion's own forward pass: no padding, no masks."""
    pairs = [(prompt, row) for prompt, rows in groups for row in rows]
    width = max(len(row) for _, row in pairs)
    columns: tuple[list[Any], list[Any]] = [], []
    for prompt, row in pairs:
        logits = model(input_ids=torch.tensor([[*prompt, *row]]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logps = (logits / temperature).log_softmax(dim=-1) if len(row) else logits.new_zeros(0, VOCABULARY)
        values = logps[range(len(row)), row], -(logps.exp() * logps).sum(dim=-1)
        for column, value in zip(columns, values, strict=True):
            column.append(torch.nn.functional.pad(value, (0, width - len(row))))
    return torch.stack(columns[0]), torch.stack(columns[1])


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference, relative to each tensor's largest entry."""
    return max(
        float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-2))
        for a, b in zip(ours, theirs, strict=True)
    )


def error(model: Any, packed: PackedTree, groups: Groups, plain: Any = None) -> float:
    plain = plain or model
    expected, _ = row_by_row(plain, groups)
    wanted = [expected, *gradients(plain, expected)]
    logps = tree_logps(model, packed)
    return distance([logps, *gradients(model, logps)], wanted)


# The layout


def test_by_hand() -> None:
    packed = pack([1, 2], ProcessTree.build([[5, 6, 7], [5, 8], [5]]), mask=[[1, 1, 1], [1, 0, 0], [1, 0, 0]])
    assert packed.ids.tolist() == [1, 2, 5, 6]  # nothing is predicted after 7 and 8
    assert packed.position.tolist() == [0, 1, 2, 3]
    assert packed.subtree_end.tolist() == [4, 4, 4, 4]
    assert packed.target.tolist() == [5, 6, 7]  # 8 is masked
    assert packed.predictor.tolist() == [1, 2, 3]
    assert packed.index.tolist() == [[0, 1, 2], [0, -1, -1], [0, -1, -1]]
    assert packed.raw_tokens == 3 * 2 + 6

    both = join([packed, pack([3], ProcessTree.build([[4, 4, 4, 4]]))])
    assert both.ids.tolist() == [1, 2, 5, 6, 3, 4, 4, 4]
    assert both.subtree_end.tolist() == [4, 4, 4, 4, 8, 8, 8, 8]
    assert both.predictor.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert both.index.tolist() == [[0, 1, 2, -1], [0, -1, -1, -1], [0, -1, -1, -1], [3, 4, 5, 6]]


def padded_rows(
    pairs: list[tuple[list[int], list[int]]], padding: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left, completions on the right, by `padding` more than need be."""
    left, right = (max(len(pair[i]) for pair in pairs) for i in range(2))
    ids = torch.full((len(pairs), left + right + padding), 12)
    mask = torch.zeros_like(ids)
    for i, (prompt, row) in enumerate(pairs):
        real = slice(left - len(prompt), left + len(row))
        ids[i, real], mask[i, real] = torch.tensor([*prompt, *row]), 1
    return ids, mask


def test_padded_rows_in_any_order() -> None:
    """The function a trainer calls; its rows are shuffled, padded, and one is masked whole."""
    pairs = [(prompt, row) for prompt, rows in GROUPS for row in rows]
    order = np.random.default_rng(0).permutation(len(pairs)).tolist()
    ids, mask = padded_rows([pairs[i] for i in order], padding=2)
    left = max(len(prompt) for prompt, _ in pairs)
    width = ids.shape[1] - left
    masked = next(i for i, j in enumerate(order) if len(pairs[j][1]) > 3)
    mask[masked, left:] = 0
    model = make_model("gpt2")
    packed = pack_rows(ids, mask, width)
    assert packed.num_tokens <= packed_of(GROUPS).num_tokens
    expected = torch.nn.functional.pad(row_by_row(model, GROUPS)[0], (0, 2))[order]
    expected = torch.where(torch.arange(len(pairs))[:, None] == masked, 0, expected)
    assert (tree_logps(model, packed) - expected).abs().max() < 1e-10
    assert packed.lengths.tolist() == mask[:, left:].sum(dim=1).tolist()
    assert packed.prompt_lengths.tolist() == mask[:, :left].sum(dim=1).tolist()
    mask[masked, left + 1] = 1
    no_prompt = mask.clone()
    no_prompt[masked] = torch.arange(ids.shape[1]) == left
    for wrong, words in [
        ((ids, mask, width), f"row #{masked} has padding"),
        ((ids, mask[:1], width), "width below L"),
        ((ids, no_prompt, width), f"row #{masked} has no prompt"),
    ]:
        with pytest.raises(InputError, match=words):
            pack_rows(*wrong)


@settings(max_examples=200, deadline=None)
@given(some_group)
def test_every_path_spells_its_completion(completions: list[list[int]]) -> None:
    packed = pack([7, 8], ProcessTree.build(completions))
    n = packed.num_tokens
    visible = packed.layout.mask().numpy()
    paths = [np.flatnonzero(visible[token]).tolist() for token in range(n)]
    for token, path in enumerate(paths):
        assert len(path) == packed.position[token] + 1
        assert packed.position[path].tolist() == list(range(len(path)))
    for row, index in zip(completions, packed.index.tolist(), strict=True):
        assert index[len(row) :] == [-1] * (len(index) - len(row))
        for t, predicted in enumerate(index[: len(row)]):
            assert packed.target[predicted] == row[t]
            before = paths[int(packed.predictor[predicted])]
            assert packed.ids[before].tolist() == [7, 8, *row[:t]]
    prefixes = {tuple(row[: t + 1]) for row in completions for t in range(len(row))}
    assert len(packed.target) == len(prefixes)
    inner = {row[:t] for row in map(tuple, completions) for t in range(len(row))} - {()}
    assert n == (2 + len(inner) if prefixes else 1)  # the prompt, and what something follows


# The theorem


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_row_of_its_own(family: str) -> None:
    """Stock models; their RMSNorm, router and eager softmax round to float32."""
    tolerance = 1e-10 if family in LAYER_NORM else 1e-6
    assert error(make_model(family), packed_of(GROUPS), GROUPS, make_model(family)) < tolerance


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "qwen3-moe"])  # its router rounds to float32
def test_equals_a_row_of_its_own_to_float64(family: str) -> None:
    model = with_exact_norms(make_model(family))
    if family == "gemma2":
        use_tree_attention(model)  # without a tree: SDPA, or dense with a soft cap, in float64
    assert error(model, packed_of(GROUPS), GROUPS) < 1e-10


@settings(max_examples=15, deadline=None)
@given(some_group)
def test_random_groups(completions: list[list[int]]) -> None:
    groups: Groups = [([3, 4], [[], *completions]), ([5], [[1, 1]])]
    assert error(make_model("gpt2"), packed_of(groups), groups) < 1e-10


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_entropies_and_temperature(family: str, rows: int) -> None:
    model = with_exact_norms(make_model(family))
    use_tree_attention(model)
    expected = row_by_row(model, GROUPS, temperature=0.6)
    ours = tree_logps_and_entropies(model, packed_of(GROUPS), temperature=0.6, rows=rows)
    assert distance(list(ours), list(expected)) < 1e-10
    loss, wanted = (logps.exp() * 3 + entropies**2 for logps, entropies in (ours, expected))
    assert distance(gradients(model, loss), gradients(model, wanted)) < 1e-10


def test_groups_do_not_see_each_other() -> None:
    model = make_model("gpt2")
    other = [GROUPS[0], ([8, 8, 8], [[1], [2, 2]]), GROUPS[2]]
    a, b = (tree_logps(model, packed_of(groups)) for groups in (GROUPS, other))
    # not to the bit: a matrix product may sum in another order where another group has another number of tokens
    assert torch.allclose(a[:5], b[:5, : a.shape[1]], rtol=0, atol=1e-12)
    assert torch.allclose(a[8:], b[7:], rtol=0, atol=1e-12)


def test_masked_tokens_take_no_gradient() -> None:
    model = make_model("gpt2")
    prompt, rows = GROUPS[0]
    tree = ProcessTree.build(rows)
    mask = np.arange(tree.step_index.size).reshape(tree.step_index.shape) % 3 > 0
    ours = tree_logps(model, pack(prompt, tree, mask))
    expected = row_by_row(model, GROUPS[:1])[0] * torch.from_numpy(mask)
    assert distance([ours], [expected]) < 1e-10
    ours, expected = (gradients(model, x * torch.from_numpy(mask)) for x in (ours, expected))
    assert distance(ours, expected) < 1e-10


@pytest.mark.parametrize("fault", ["subtree_end", "position", "predictor", "index"])
def test_planted_faults_are_seen(fault: str) -> None:
    packed = packed_of(GROUPS)
    at = {"subtree_end": 5, "position": 7, "predictor": 3, "index": (0, 2)}[fault]
    wrong = getattr(packed, fault).clone()
    wrong[at] += -1 if fault == "position" else 1
    assert error(make_model("gpt2"), packed, GROUPS) < 1e-10
    assert error(make_model("gpt2"), replace(packed, **{fault: wrong}), GROUPS) > 1e-3


# The head


def test_logits_are_never_whole() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    model, packed = make_model("llama"), packed_of(GROUPS)
    model.resize_token_embeddings(5_000)
    m = len(packed.target)
    whole, chunked = Largest(), Largest()
    for mode, rows in ((whole, m), (chunked, 4)):
        with mode:
            tree_logps(model, packed, rows=rows).sum().backward()
    assert whole.numel == m * 5_000  # the check itself sees whole logits
    assert chunked.numel == 16 * 5_000  # the head's own weight; its gradient too


# How training runs it


def test_with_gradient_checkpointing() -> None:
    model = make_model("qwen2")
    packed = packed_of(GROUPS)
    expected = gradients(model, tree_logps(model, packed))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert distance(gradients(model, tree_logps(model, packed)), expected) < 1e-10
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    loss_of(tree_logps(model, packed)).backward()
    assert distance([p.grad for p in model.parameters()], expected) < 1e-10


def test_entropies_under_autocast_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    head, hidden, target = torch.nn.Linear(16, 500, bias=False), torch.randn(9, 16), torch.arange(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, entropies = token_scores(head, hidden, target, Logits(), rows=4)
        z = head(hidden).float().log_softmax(-1)
    assert (entropies + (z.exp() * z).sum(-1)).abs().max() < 1e-5
    assert (logps - z[target, target]).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("how", ["whole", "in place", "layers"])
def test_a_compiled_model(how: str, checkpointing: bool) -> None:
    """Compiled as a whole its packed pass is eager; plain passes stay compiled."""
    torch._dynamo.reset()
    packed, rows = packed_of(GROUPS), torch.arange(1, 11).view(2, 5)
    model = make_model("qwen2").train()
    expected = tree_logps(model, packed)
    wanted = [expected, *gradients(model, expected)]
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    compiled = torch.compile(model, backend="aot_eager") if how == "whole" else model
    for part in {"whole": [], "in place": [model], "layers": model.model.layers}[how]:
        part.compile(backend="aot_eager")
    before = compiled(rows).logits.detach()
    logps = tree_logps(compiled, packed)
    assert distance([logps, *gradients(model, logps)], wanted) < 1e-12
    assert (compiled(rows).logits - before).abs().max() < 1e-12
    torch._dynamo.reset()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["v_proj", "lm_head"]])
def test_with_lora(targets: list[str]) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(with_exact_norms(make_model("llama")), config).double().eval()
    assert error(model, packed_of(GROUPS), GROUPS) < 1e-10


def test_under_bfloat16_autocast() -> None:
    """As far from the exact log-probs and gradients as plain rows under the same autocast."""
    model = make_model("qwen3")
    exact, _ = row_by_row(model, GROUPS)
    wanted = [exact, *gradients(model, exact)]
    errors = []
    for way in (lambda m: tree_logps(m, packed_of(GROUPS)), lambda m: row_by_row(m, GROUPS)[0]):
        rounded = make_model("qwen3").float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logps = way(rounded)
        assert logps.dtype == torch.float32
        found = [logps, *gradients(rounded, logps)]
        errors.append(
            sum(
                float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(found, wanted, strict=True)
            )
        )
    assert 0 < errors[0] < 1.2 * errors[1]


def test_without_gradients_and_back_to_plain_attention() -> None:
    for family in ("qwen2", "gemma2"):
        model, untouched = make_model(family), make_model(family)
        with torch.no_grad():
            tree_logps(model, packed_of(GROUPS))
        prompt = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 6, 7, 8]])
        mask = (prompt > 0).long()
        generate = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
        ours, theirs = (
            model.float().generate(prompt, **generate),
            untouched.float().generate(prompt, **generate),
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("family", "implementation"), [("qwen2", "sdpa"), ("gemma2", "eager")])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_the_model_keeps_its_own_attention(
    family: str, implementation: str, checkpointing: bool | None
) -> None:
    """After a packed pass and its backward, plain passes are to the bit what they were, masks included."""
    model = make_model(family).float()
    model.set_attn_implementation(implementation)
    if checkpointing is not None:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    rows = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 6, 7, 8]])
    plain = {"input_ids": rows, "attention_mask": (rows > 0).long()}
    before = model(**plain).logits.detach()
    for _ in range(2):
        logps = tree_logps(model, packed_of(GROUPS))
        assert torch.equal(model(**plain).logits.detach(), before)  # between forward and backward as well
        loss_of(logps).backward()
        assert model.config._attn_implementation == implementation
        assert torch.equal(model(**plain).logits.detach(), before)


def test_a_soft_cap_that_plain_rows_leave_out_is_refused() -> None:
    """Older releases of transformers run Gemma 2 by SDPA, which leaves it out."""
    model = make_model("gemma2")
    model.config._attn_implementation_internal = "sdpa"
    with pytest.raises(InputError, match="leaves out the soft cap of 1.5"):
        tree_logps(model, packed_of(GROUPS))
    assert model.config._attn_implementation == "sdpa"


def test_what_a_model_makes_of_its_heads_output_must_be_known() -> None:
    model = make_model("gpt2")
    original = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.logits = output.logits * 1.1
        return output

    assert torch.isfinite(tree_logps(model, packed_of(GROUPS))).all()
    model.forward = scaled
    with pytest.raises(InputError, match="in a way that is not known"):
        tree_logps(model, packed_of(GROUPS))


def test_a_pass_that_fails_leaves_the_attention_alone() -> None:
    model = make_model("gpt2")
    with pytest.raises(InputError, match="vocabulary"):
        tree_logps(model, pack([1], ProcessTree.build([[10**6]])))
    layer = model.transformer.h[1]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("planted")))
    with pytest.raises(KeyError, match="planted"):
        tree_logps(model, packed_of(GROUPS))
    handle.remove()
    assert model.config._attn_implementation == "sdpa"


# What is refused


def build_mamba() -> Any:
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=VOCABULARY, hidden_size=16, num_heads=4, head_dim=8, state_size=4, num_hidden_layers=1
        )
    )


def build_bloom() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2))


def build_linear() -> Any:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=4,
            head_dim=8,
            shared_expert_intermediate_size=4,
            linear_num_value_heads=2,
            linear_num_key_heads=1,
            linear_key_head_dim=4,
            linear_value_head_dim=4,
            layer_types=["linear_attention"],
        )
    )


def build_active_dropout() -> Any:
    return FAMILIES["gpt2"]().train()


def build_attention_dropout() -> Any:
    model = FAMILIES["qwen2"]().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    return model


def build_noisy_embeddings() -> Any:
    """As transformers' trainer does it with `neftune_noise_alpha`."""
    model = make_model("qwen2").train()
    model.get_input_embeddings().neftune_noise_alpha = 5
    return model


def build_sinks() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
            num_experts_per_tok=1,
            head_dim=8,
            experts_implementation="eager",
            layer_types=["full_attention"],
            pad_token_id=0,
        )
    )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (build_mamba, "Mamba2"),
        (build_linear, "GatedDeltaNet"),
        (build_bloom, "position_ids"),
        (build_active_dropout, "dropout 0.1 is active"),
        (build_attention_dropout, "dropout 0.1 is active"),
        (build_noisy_embeddings, "neftune_noise_alpha: noise 5 is active"),
        (build_sinks, "s_aux"),
    ],
)
def test_refused_models(build: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tree_logps(build(), packed_of(GROUPS))


def test_refused_input() -> None:
    model, tree = make_model("gpt2"), ProcessTree.build([[1, 2], [1]])
    score = partial(tree_logps, model)
    for call, words in [
        (lambda: pack([], tree), "at least one token id"),
        (lambda: pack([[1]], tree), "in one dimension"),
        (lambda: pack([1, -100], tree), "cut off padding"),
        (lambda: pack([1], tree, mask=[[1]]), "mask: expected shape"),
        (lambda: join([]), "at least one"),
        (lambda: score(pack([VOCABULARY], tree)), "13 is beyond the model's vocabulary of 13"),
        (lambda: score(pack([1], ProcessTree.build([[VOCABULARY]]))), "beyond the model's vocabulary"),
        (lambda: score(pack([1] * 64, tree)), "need 65 positions, transformer.wpe knows 64"),
        (lambda: score(pack([1], tree), temperature=0.0), "temperature"),
        (lambda: score(pack([1], tree), rows=0), "rows"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    assert torch.isfinite(score(pack([1] * 63, tree))).all()


def test_prompts_that_begin_alike_share_their_beginning() -> None:
    rows = [([7, 8, 9], [1, 2]), ([7, 8, 9], [1]), ([7, 8, 3], [1, 2]), ([7], [8, 9, 1])]
    ids, mask = padded_rows(rows)
    packed = pack_rows(ids, mask, 3)
    # 7 8 9 1, then 3 1 below 8: the last row's completion runs along the first row's prompt
    assert packed.num_tokens == 6
    assert packed.raw_tokens == 5 + 4 + 5 + 4
    model = make_model("gpt2")
    alone = [(prompt, [row]) for prompt, row in rows]
    expected = row_by_row(model, alone)[0]
    got = tree_logps(model, packed)
    assert (got[:, : expected.shape[1]] - expected).abs().max() < 1e-10
