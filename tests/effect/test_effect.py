"""`lambda-grpo effect`: its packed gradients are those of plain rows, and what cannot be compared is refused."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rollout_samples import write_jsonl
from tiny_models import VOCABULARY, make_model
from tiny_trainers import TOKENIZER, make_trainer, qwen2

from lambda_grpo import ProcessTree, cli
from lambda_grpo.credit import CREDITS
from lambda_grpo.effect import gradients
from lambda_grpo.effect.gradients import Comparison, Passes, compare_gradients
from lambda_grpo.effect.readable_groups import check_fit, pushing_groups
from lambda_grpo.errors import InputError
from lambda_grpo.logps import completion_logps
from lambda_grpo.rollouts import Group, RolloutReader


def rollouts(seed: int, steps: int = 2, groups: int = 3, count: int = 5) -> list[dict[str, Any]]:
    """Groups whose completions share beginnings; the last one of each group has a prompt of its own."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(steps):
        for group in range(groups):
            prompt = [1, 2, *rng.integers(1, VOCABULARY, group).tolist()]
            for i in range(count):
                ids = [3] * int(rng.integers(0, 3)) + rng.integers(1, 5, int(rng.integers(1, 6))).tolist()
                rows.append(
                    {
                        "step": step, "group": group, "prompt_ids": prompt if i < count - 1 else [*prompt, 7],
                        "completion": "", "token_ids": ids, "reward": None if i == 1 else float(rng.random()),
                    }
                )  # fmt: skip
    return rows


def read(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> list[Group]:
    return list(RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows)]))


def plain(
    model: Any, groups: Sequence[Group], credit: Callable[..., Any], by_completion: bool
) -> torch.Tensor:
    """The gradient, one row at a time, from `backward` of the loss as it is written down."""
    model.zero_grad()
    for group in groups:
        scored = ~np.isnan(group.rewards)
        tree = ProcessTree.build(group.token_ids, group.contexts.tolist())
        mask = tree.policy_tokens() & scored[:, None] if credit is CREDITS["process"] else None
        given = credit(tree, np.nan_to_num(group.rewards), advantages=group.advantages, mask=mask)
        for i, ids in enumerate(group.token_ids):
            logps = completion_logps(model, [group.prompt_ids[i].tolist()], [ids.tolist()])[0]
            push = torch.from_numpy(given.weighted[i, : len(ids)].astype(np.float64))
            (-(logps * push).sum() / (len(ids) if by_completion else 1)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("by_completion", [False, True])
@pytest.mark.parametrize("name", ["lambda_grpo", "process"])
def test_packed_passes_give_the_gradients_of_plain_rows(
    tmp_path: Path, name: str, by_completion: bool
) -> None:
    groups = read(tmp_path, rollouts(0))
    model = make_model("gpt2")
    wanted = Passes(CREDITS[name], by_completion, tokens=20)
    whole, *steps = compare_gradients(model, groups, wanted)
    assert [(each.run, each.step, each.groups) for each in steps] == [("r.jsonl", 0, 3), ("r.jsonl", 1, 3)]
    for found, own in [(whole, groups), (steps[0], groups[:3]), (steps[1], groups[3:])]:
        a, b = (plain(model, own, CREDITS[each], by_completion) for each in ("grpo", name))
        assert found.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-10)
        assert found.norm_ratio == pytest.approx(float(b.norm() / a.norm()), rel=1e-10)
    if name == "lambda_grpo":
        assert whole.cosine < 0.999, "there is something to measure"


def test_rows_that_are_not_packed_give_the_same(tmp_path: Path) -> None:
    groups = read(tmp_path, rollouts(1))
    model = make_model("gpt2")
    packed, rows = (
        compare_gradients(model, groups, Passes(CREDITS["lambda_grpo"], tokens=tokens, packed=packed))
        for packed, tokens in ((True, 30), (False, 10**6))
    )
    for one, other in zip(packed, rows, strict=True):
        assert one.cosine == pytest.approx(other.cosine, abs=1e-10)
        assert one.norm_ratio == pytest.approx(other.norm_ratio, rel=1e-10)


def test_what_must_be_one(tmp_path: Path) -> None:
    """The theorem: the hidden process reward model has GRPO's gradient. And a rescaled credit turns nothing."""
    groups = read(tmp_path, rollouts(2))
    model = make_model("gpt2")
    process = compare_gradients(model, groups, Passes(CREDITS["process"]))[0]
    assert (process.cosine, process.norm_ratio) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))

    def doubled(*args: Any, **kwargs: Any) -> Any:
        given = CREDITS["grpo"](*args, **kwargs)
        return type(given)(given.advantage, 2 * given.weight)

    found = compare_gradients(model, groups, Passes(doubled))[0]
    assert (found.cosine, found.norm_ratio) == (pytest.approx(1, abs=1e-12), pytest.approx(2, abs=1e-12))


def test_compiled_layers(tmp_path: Path) -> None:
    """A compiled graph allows one backward only; FlexAttention is compiled on CUDA."""
    groups = read(tmp_path, rollouts(1))
    model = make_model("qwen2").float()
    expected = compare_gradients(model, groups, Passes(CREDITS["lambda_grpo"]))[0]
    for layer in model.model.layers:
        layer.mlp.compile(backend="aot_eager", dynamic=True)
    found = compare_gradients(model, groups, Passes(CREDITS["lambda_grpo"]))[0]
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-5)
    assert found.norm_ratio == pytest.approx(expected.norm_ratio, rel=1e-5)


def test_progress_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes hold no more tokens than asked for, except a group that is larger by itself; each is counted."""
    groups = read(tmp_path, rollouts(3))
    sizes = [gradients.group_tokens(group) for group in groups]
    used: list[int] = []
    real = gradients.tree_logps
    monkeypatch.setattr(
        gradients,
        "tree_logps",
        lambda model, packed, **k: used.append(len(packed.ids)) or real(model, packed, **k),
    )
    calls: list[tuple[int, int]] = []
    compare_gradients(
        make_model("gpt2"),
        groups,
        Passes(CREDITS["lambda_grpo"], tokens=sum(sizes[:2])),
        lambda *a: calls.append(a),
    )
    assert calls[-1] == (6, 6)
    assert len(used) == 2 * len(calls) >= 6  # GRPO's gradient and the credit's have a forward each
    assert max(used) <= max(sum(sizes[:2]), *sizes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model with its rollouts; the model that sampled step 0 is in start/."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, save_rollouts=True, max_steps=2).train()
    TOKENIZER.save_pretrained(folder / "start")
    return folder


def effect(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    output = tmp_path / "effect.json"
    assert cli.main(["effect", *arguments, "-o", str(output)]) == 0
    return dict(json.loads(output.read_text()))


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = effect(tmp_path, str(run / "start"), str(run), "--tokens", "64")
    groups, _ = pushing_groups(RolloutReader([run]), None)
    model = qwen2().eval()
    a, b = (plain(model, groups, CREDITS[name], False).double() for name in ("grpo", "lambda_grpo"))
    assert found["cosine"] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-5)
    assert found["norm_ratio"] == pytest.approx(float(b.norm() / a.norm()), rel=1e-5)
    assert [step["step"] for step in found["steps"]] == [0, 1]
    assert found["tokens"] > found["unique_tokens"] > 0
    assert (found["credit"], found["against"], found["groups_read"]) == ("lambda_grpo", "grpo", 8)
    said = " ".join(capsys.readouterr().out.split())
    assert f"cosine {found['cosine']:.4f}" in said
    assert "step by step (2 steps)" in said


def test_other_credits_and_a_part(run: Path, tmp_path: Path) -> None:
    found = effect(
        tmp_path, str(run / "start"), str(run), "--credit", "optimistic", "--credit_kwargs", '{"tau": 0.3}',
        "--groups", "2", "--loss_type", "grpo", "--temperature", "0.5",
    )  # fmt: skip
    assert (found["groups"], found["credit_kwargs"], found["loss_type"]) == (2, {"tau": 0.3}, "grpo")
    assert -1 <= found["cosine"] <= 1


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["effect", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


IDS = {"group": 0, "prompt_ids": [1], "token_ids": [2, 3], "completion": "ab"}
BAD = {
    "no ids": ([{"group": 0, "completion": c, "reward": r} for c, r in (("a", 1), ("b", 0))], "has no token_ids and no prompt_ids"),
    "no prompt ids": ([{"group": 0, "token_ids": [1], "reward": r} for r in (0, 1)], "has no prompt_ids: a gradient needs"),
    "an empty prompt": ([IDS | {"prompt_ids": [], "reward": r} for r in (0, 1)], "prompt_ids of completion #0 is empty"),
    "equal rewards": ([IDS | {"reward": 1}] * 2, "all 1 groups have equal rewards: no token is pushed"),
    "no rewards": ([IDS | {"reward": None}] * 2, "equal rewards, 2 completions have no reward: no token"),
    "no reward column": ([IDS] * 2, "fit no known rollout file. lambda-grpo's lacks only 'reward'."),
    "ids beyond the vocabulary": ([IDS | {"token_ids": [999], "reward": r} for r in (0, 1)], "holds token id 999, but"),
    "ids of another tokenizer": ([IDS | {"token_ids": [i] * 9, "completion": "c" * 9, "reward": i - 3} for i in (3, 4)],
                                 "does not fit the token ids: a completion saved as 'ccccccccc' decodes to"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_rollouts_that_cannot_be_used(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], message: str
) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    assert message in refused(capsys, str(run / "start"), str(path), "-o", str(tmp_path / "e.json"))
    assert not (tmp_path / "e.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--credit", "lamda_grpo"), "did you mean 'lambda_grpo'?"),
        (("--credit_kwargs", "tau"), "--credit_kwargs: got 'tau', which is no JSON"),
        (("--credit_kwargs", "[1]"), "--credit_kwargs: got '[1]', expected a JSON object"),
        (("--credit_kwargs", '{"tau": 1}'), "unknown parameter of credit 'lambda_grpo' 'tau'"),
        (("--credit", "branch"), "where completions were forked, which a rollout file does not"),
        (("--groups", "0"), "--groups: got 0, expected at least 1"),
        (("--temperature", "0"), "--temperature: got 0.0, expected a number above 0"),
        (("--output", "nowhere/e.json"), "expected a file in a folder that exists"),
    ],
)
def test_options_that_cannot_be_used(
    run: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, str(run / "start"), str(run), *flags)


def test_bad_rows_are_left_out_where_asked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        IDS | {"group": g, "reward": r, "token_ids": [3, 3 + r], "completion": ""}
        for g in (0, 1)
        for r in (0, 1)
    ]
    rows[0]["reward"] = "none"
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    assert "--skip_bad goes on" in refused(capsys, str(run / "start"), str(path))
    assert effect(tmp_path, str(run / "start"), str(path), "--skip-bad")["groups"] == 1
    assert "note: left out 2 rows" in capsys.readouterr().out


def test_no_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot load a model" in refused(capsys, str(tmp_path), str(run), "-o", str(tmp_path / "e.json"))


def test_a_tokenizer_that_fits_is_not_refused(run: Path) -> None:
    groups, _ = pushing_groups(RolloutReader([run]), None)
    check_fit(groups, TOKENIZER, len(TOKENIZER), "the model")
    with pytest.raises(InputError, match="has a vocabulary of 2"):
        check_fit(groups, TOKENIZER, 2, "the model")


def test_a_credit_without_any_push_is_null_in_the_file(tmp_path: Path) -> None:
    groups = read(tmp_path, rollouts(4, steps=1, groups=1))

    def nothing(*args: Any, **kwargs: Any) -> Any:
        given = CREDITS["grpo"](*args, **kwargs)
        return type(given)(given.advantage, 0 * given.weight)

    found: Comparison = compare_gradients(make_model("gpt2"), groups, Passes(partial(nothing)))[0]
    assert math.isnan(found.cosine)
    assert found.norm_ratio == 0
