"""The Tinker adapter on the real packages' data types; no server is asked."""

import asyncio
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tinker", reason="needs `pip install lambda-grpo[tinker]`, in a venv of its own")
pytest.importorskip("tinker_cookbook", reason="needs `pip install lambda-grpo[tinker]`, in a venv of its own")

import tinker
import torch
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl import data_processing, train
from tinker_cookbook.rl.types import PARSE_ERROR_MASKED_METRIC_KEY, Trajectory, TrajectoryGroup, Transition

from lambda_grpo.engines.tinker import assemble_training_data, credit_data
from lambda_grpo.errors import InputError

Turn = tuple[list[int], list[int]]  # observation, action


def trajectory(turns: list[Turn], masked: int = -1) -> Trajectory:
    """One trajectory; the actions of turn `masked` did not parse."""
    transitions = [
        Transition(
            ob=tinker.ModelInput.from_ints(observation),
            ac=TokensWithLogprobs(action, [-0.5] * len(action)),
            reward=0.0,
            episode_done=k == len(turns) - 1,
            metrics={PARSE_ERROR_MASKED_METRIC_KEY: 1.0} if k == masked else {},
        )
        for k, (observation, action) in enumerate(turns)
    ]
    return Trajectory(transitions, tinker.ModelInput.empty())


def group(trajectories: list[Trajectory], rewards: list[float]) -> TrajectoryGroup:
    return TrajectoryGroup(trajectories, rewards, [{} for _ in rewards])


def assembled(
    groups: list[TrajectoryGroup], **kwargs: Any
) -> tuple[list[tinker.Datum], list[dict[str, int]]]:
    return assemble_training_data(groups, data_processing.compute_advantages(groups), **kwargs)


def advantages(data: list[tinker.Datum]) -> list[list[float]]:
    return [datum.loss_fn_inputs["advantages"].to_numpy().tolist() for datum in data]


def test_one_turn_by_hand() -> None:
    # Prompt 1 2; the actions share 5 6, then part. The cookbook centres and does not scale: 1 - 1/3, 0 - 1/3.
    actions = [[5, 6, 7], [5, 6, 8], [9]]
    groups = [group([trajectory([([1, 2], a)]) for a in actions], [1.0, 0.0, 0.0])]
    data, metadata = assembled(groups)
    assert [m["traj_idx"] for m in metadata] == [0, 1, 2]
    up, down = 2 / 3, -1 / 3
    assert advantages(data) == [
        pytest.approx([0, up / 2, up / 2, up]),  # the first target is the prompt's 2
        pytest.approx([0, down / 2, down / 2, down]),
        pytest.approx([0, down]),
    ]


def test_observations_divide_and_are_not_weighted() -> None:
    # Equal actions 5 before the observation 3 or 4; after it, equal actions 6 are different steps.
    first, second = ([1], [5]), ([1, 5, 3], [6])
    groups = [
        group(
            [trajectory([first, second]), trajectory([first, ([1, 5, 4], [6])]), trajectory([first, second])],
            [1, 0, 0.5],
        )
    ]
    data, _ = assembled(groups)
    assert len(data) == 3  # the history grows, so one datum each: 1 5 3 6
    assert advantages(data) == [
        pytest.approx([0.5 / 3, 0, 0.5 / 2]),
        pytest.approx([-0.5 / 3, 0, -0.5]),
        [0, 0, 0],
    ]


def test_several_datums_count_as_one_rollout() -> None:
    # The second observation repeats 1 5 but drops 6, so a trajectory is two datums, 1 5 6 and 1 5 3 7. The
    # action 5 is in four rows, yet of two rollouts; in the second row it is no action, and gets nothing.
    turns = [([1], [5, 6]), ([1, 5, 3], [7])]
    groups = [group([trajectory(turns), trajectory(turns)], [1.0, 0.0])]
    data, metadata = assembled(groups)
    assert [m["traj_idx"] for m in metadata] == [0, 0, 1, 1]
    assert advantages(data) == [[0.25, 0.25], [0, 0, 0.25], [-0.25, -0.25], [0, 0, -0.25]]


def test_masked_turns_and_empty_trajectories() -> None:
    # The masked action stays in the tree: its 5 counts in |λ| of the other's 5. The third has no token.
    masked = trajectory([([1], [5]), ([1, 5, 3], [6])], masked=0)
    nothing = trajectory([([], [])])
    groups = [group([masked, trajectory([([1], [5, 8])]), nothing], [1.0, 0.0, 0.5])]
    data, metadata = assembled(groups)
    assert [m["traj_idx"] for m in metadata] == [0, 1]
    assert advantages(data) == [[0, 0, 0.5], [-0.25, -0.5]]


def random_groups(seed: int) -> list[TrajectoryGroup]:
    """Groups of several turns over three tokens; some turns rewrite the history, some are masked."""
    rng = np.random.default_rng(seed)

    def turns() -> Iterator[Turn]:
        history = [1, 2]
        for _ in range(rng.integers(1, 4)):
            action = rng.integers(5, 7, rng.integers(1, 4)).tolist()
            yield list(history), action
            kept = (
                len(history) + len(action) if rng.random() < 0.6 else int(rng.integers(2, len(history) + 2))
            )
            history = [*[*history, *action][:kept], int(rng.integers(3, 5))]

    return [
        group(
            [trajectory(list(turns()), masked=int(rng.integers(-1, 3))) for _ in range(4)],
            rng.integers(0, 3, 4).astype(float).tolist(),
        )
        for _ in range(3)
    ]


def expected(data: list[tinker.Datum], metadata: list[dict[str, int]], unit: str) -> list[list[float]]:
    """a / |λ| by its definition: of the same group, all `unit`s one of whose datums begins with the same tokens."""
    tokens = [[*d.model_input.to_ints()[:1], *d.loss_fn_inputs["target_tokens"].to_numpy()] for d in data]
    keys = [m["traj_idx"] if unit == "rollout" else n for n, m in enumerate(metadata)]
    found = []
    for n, row in enumerate(tokens):
        peers = [k for k, m in enumerate(metadata) if m["group_idx"] == metadata[n]["group_idx"]]
        sizes = [len({keys[k] for k in peers if tokens[k][:t] == row[:t]}) for t in range(2, len(row) + 1)]
        found.append((data[n].loss_fn_inputs["advantages"].to_numpy() / sizes).tolist())
    return found


def test_equal_the_definition_on_random_groups() -> None:
    fooled = 0
    for seed in range(30):
        groups = random_groups(seed)
        plain, metadata = data_processing.assemble_training_data(
            groups, data_processing.compute_advantages(groups)
        )
        ours, _ = assembled(groups)
        for got, want in zip(advantages(ours), expected(plain, metadata, "rollout"), strict=True):
            assert got == pytest.approx(want, rel=1e-6)
        wrong = expected(plain, metadata, "row")
        fooled += any(
            got != pytest.approx(want, rel=1e-6) for got, want in zip(advantages(ours), wrong, strict=True)
        )
    assert fooled > 10, "counting rows instead of rollouts went unnoticed"


def test_grpo_is_the_cookbook_itself_and_nothing_else_changes() -> None:
    groups = random_groups(0)
    plain, plain_metadata = data_processing.assemble_training_data(
        groups, data_processing.compute_advantages(groups)
    )
    for credit in ("grpo", "lambda_grpo"):
        data, metadata = assembled(groups, credit=credit)
        assert metadata == plain_metadata
        for ours, theirs in zip(data, plain, strict=True):
            assert ours.model_input == theirs.model_input
            assert ours.loss_fn_inputs.keys() == theirs.loss_fn_inputs.keys()
            for key, value in theirs.loss_fn_inputs.items():
                if credit == "grpo" or key != "advantages":
                    assert ours.loss_fn_inputs[key].to_torch().equal(value.to_torch())
                    assert ours.loss_fn_inputs[key].dtype == value.dtype


def test_process_has_the_gradient_of_grpo() -> None:
    """Theorem: shared tokens have one log-prob, so per context and token the advantages add up to the same."""
    for seed in range(5):
        actions = np.random.default_rng(seed).integers(5, 7, (6, 4)).tolist()
        groups = [group([trajectory([([1, 2], a)]) for a in actions], [1.0, 0.0, 0.5, 0.0, 1.0, 0.25])]
        pushes: dict[str, dict[tuple[int, ...], float]] = {"grpo": {}, "process": {}}
        for credit, push in pushes.items():
            for datum, values in zip(
                data := assembled(groups, credit=credit)[0], advantages(data), strict=True
            ):
                targets = datum.loss_fn_inputs["target_tokens"].to_numpy().tolist()
                for t, value in enumerate(values):
                    prefix = tuple(targets[: t + 1])
                    push[prefix] = push.get(prefix, 0.0) + value
        assert pushes["process"] == pytest.approx(pushes["grpo"], abs=1e-6)
        assert advantages(assembled(groups, credit="grpo")[0]) != advantages(
            assembled(groups, credit="process")[0]
        )


def test_the_cookbooks_training_step_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own `prepare_minibatch`, with the one name replaced that docs/tinker.md tells to replace."""

    class Builder:
        def logging_tags(self) -> list[str]:
            return []

    class Tokenizer:
        def decode(self, tokens: list[int], **_: Any) -> str:
            return " ".join(map(str, tokens))

    groups = random_groups(3)
    monkeypatch.setattr(
        train, "assemble_training_data", functools.partial(assemble_training_data, credit="lambda_grpo")
    )
    coroutine = train.prepare_minibatch([Builder()] * 3, groups, Tokenizer(), None, 0.0, 0.0)  # type: ignore[list-item, arg-type]
    data, _ = asyncio.run(coroutine)
    assert advantages(data) == advantages(assembled(groups)[0])
    assert all("mask" not in train._remove_mask(datum).loss_fn_inputs for datum in data)


def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippets of docs/tinker.md: the data of a loop of one's own, and the name replaced."""
    page = (Path(__file__).parents[2] / "docs" / "tinker.md").read_text()
    own_loop, replaced = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"groups": random_groups(2)}
    exec(own_loop, names)
    assert advantages(names["data"]) == advantages(assembled(names["groups"])[0])
    monkeypatch.setattr(train, "assemble_training_data", train.assemble_training_data)  # puts it back
    exec(replaced, {})
    assert train.assemble_training_data is assemble_training_data


def test_the_means_are_those_of_the_other_engines() -> None:
    actions = [[5, 6, 7], [5, 6, 8], [9]]
    groups = [group([trajectory([([1, 2], a)]) for a in actions], [1.0, 0.0, 0.0])]
    centred = data_processing.compute_advantages(groups)
    data, metadata = data_processing.assemble_training_data(groups, centred)
    _, means = credit_data(data, metadata, [[1.0, 0.0, 0.0]], centred)
    assert means["tree/shared_tokens"] == pytest.approx(4 / 7)
    assert means["credit/mean_weight"] == pytest.approx((4 * 0.5 + 3) / 7)


def test_errors_say_what_is_wrong() -> None:
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([1]), loss_fn_inputs={"target_tokens": [5]})
    place = [{"group_idx": 0, "traj_idx": 0}]
    with pytest.raises(InputError, match=r"datum #0: loss_fn_inputs lack \['advantages', 'mask'\]"):
        credit_data([datum], place, [[1.0]], [[0.0]])
    image = tinker.types.ImageChunk(data=b"", format="png", expected_tokens=2)
    groups = [group([trajectory([([1], [5])])], [1.0])]
    data, _ = data_processing.assemble_training_data(groups, [torch.zeros(1)])
    pictured = tinker.Datum(
        model_input=tinker.ModelInput(chunks=[image, *data[0].model_input.chunks]),
        loss_fn_inputs=data[0].loss_fn_inputs,
    )
    with pytest.raises(InputError, match="datum #0: expected text only, got a ImageChunk"):
        credit_data([pictured], place, [[1.0]], [[0.0]])
    with pytest.raises(InputError, match="did you mean 'lambda_grpo'"):
        assembled(groups, credit="lamda_grpo")
