"""docs/engines.md: each snippet runs on stand-ins shaped as the page says; the trainers themselves do not run here."""

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
HELPER = next(snippet for snippet in SNIPPETS if "def lambda_weights" in snippet)

# Prompt 1 2, completions 5 6 7, 5 6 8, 9, of which the second has a masked token (6); and a group of one, prompt 3.
ROWS = [[1, 2, 5, 6, 7], [1, 2, 5, 6, 8], [1, 2, 9], [3, 5]]
MASKS = [[0, 0, 1, 1, 1], [0, 0, 1, 0, 1], [0, 0, 1], [0, 1]]
GROUPS = ["a", "a", "a", "b"]
WEIGHTS = [[0, 0, 0.5, 0.5, 1], [0, 0, 0.5, 0, 1], [0, 0, 1], [0, 1]]


def run(name: str, monkeypatch: pytest.MonkeyPatch, **modules: Any) -> dict[str, Any]:
    """Execute the section `name` of the page, with stand-ins for the modules it imports."""
    for dotted, contents in modules.items():
        parts = dotted.split("__")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
        vars(sys.modules[".".join(parts)]).update(contents)
        vars(sys.modules[".".join(parts[:-1])])[parts[-1]] = sys.modules[".".join(parts)]
    namespace: dict[str, Any] = {}
    exec(HELPER, namespace)
    snippet = re.search(rf"^## {name}\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert snippet, name
    exec(snippet[1], namespace)
    return namespace


def padded(rows: list[list[int]], left: bool = False) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(r)) + r if left else r + [0] * (width - len(r)) for r in rows])


REAL = [[1] * len(row) for row in ROWS]


def test_the_helper_by_hand() -> None:
    namespace: dict[str, Any] = {}
    exec(HELPER, namespace)
    order = [3, 1, 0, 2]  # rows of a group need not be neighbours
    found = namespace["lambda_weights"](*([values[i] for i in order] for values in (ROWS, GROUPS, MASKS)))
    assert [w.tolist() for w in found] == [WEIGHTS[i] for i in order]


def test_prime_rl(monkeypatch: pytest.MonkeyPatch) -> None:
    class GRPOAlgorithm:
        async def score_group(self, episodes: list[Any]) -> None:
            self.scored = True

    registry: dict[str, Any] = {}
    run(
        "prime-rl",
        monkeypatch,
        prime_rl__orchestrator__algo={"GRPOAlgorithm": GRPOAlgorithm, "ALGORITHM_CLASSES": registry},
        prime_rl__orchestrator__algo__base={
            "iter_trainable_traces": lambda episodes: [(None, e) for e in episodes]
        },
    )
    traces = [
        SimpleNamespace(
            nodes=[
                SimpleNamespace(token_ids=ids[:2], mask=mask[:2], loss_weights={"ce": [0.0, 0.0]}),
                SimpleNamespace(token_ids=ids[2:], mask=mask[2:], loss_weights=None),
            ]
        )
        for ids, mask in zip(ROWS[:3], MASKS, strict=False)
    ]
    asyncio.run(registry["grpo"]().score_group(traces))
    assert [[w for node in t.nodes for w in node.loss_weights["rl"]] for t in traces] == WEIGHTS[:3]
    assert traces[0].nodes[0].loss_weights["ce"] == [0.0, 0.0]


def test_skyrl(monkeypatch: pytest.MonkeyPatch) -> None:
    class Batch(dict[str, torch.Tensor]):
        metadata = {"uids": np.array(GROUPS)}

    class RayPPOTrainer:
        def compute_advantages_and_returns(self, data: Batch) -> Batch:
            return data

    namespace = run("SkyRL", monkeypatch, skyrl__train__trainer={"RayPPOTrainer": RayPPOTrainer})
    batch = Batch(
        sequences=padded(ROWS, left=True),
        attention_mask=padded(REAL, left=True),
        loss_mask=padded(MASKS, left=True)[:, -3:].float(),
        advantages=torch.full((4, 3), 2.0),
    )
    found = namespace["LambdaTrainer"]().compute_advantages_and_returns(batch)["advantages"]
    assert found.tolist() == [[1, 1, 2], [1, 0, 2], [0, 0, 2], [0, 0, 2]]


def test_openrlhf(monkeypatch: pytest.MonkeyPatch) -> None:
    class RemoteExperienceMaker:
        strategy = SimpleNamespace(args=SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=3)))

        def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
            return experiences

    namespace = run(
        "OpenRLHF",
        monkeypatch,
        openrlhf__trainer__ppo_trainer={"RemoteExperienceMaker": RemoteExperienceMaker},
    )
    experiences = [  # the first group is dealt to two micro-batches
        SimpleNamespace(
            sequences=padded([ROWS[i] for i in rows]),
            attention_mask=padded([REAL[i] for i in rows]),
            action_mask=padded([MASKS[i] for i in rows])[:, 1:],
            index=rows,
            advantages=torch.full((len(rows), max(len(ROWS[i]) for i in rows) - 1), 2.0),
        )
        for rows in ([3, 1], [0, 2])
    ]
    found = namespace["LambdaExperienceMaker"]().compute_advantages_and_returns(experiences)
    assert found[0].advantages.tolist() == [[2, 0, 0, 0], [0, 1, 0, 2]]
    assert found[1].advantages.tolist() == [[0, 1, 1, 2], [0, 2, 0, 0]]


def test_nemo_rl(monkeypatch: pytest.MonkeyPatch) -> None:
    class GRPOAdvantageEstimator:
        def compute_advantage(
            self, prompt_ids: Any, rewards: torch.Tensor, mask: torch.Tensor, **_: Any
        ) -> torch.Tensor:
            return rewards[:, None].expand(mask.shape)

    namespace = run(
        "NeMo-RL", monkeypatch, nemo_rl__algorithms__grpo={"GRPOAdvantageEstimator": GRPOAdvantageEstimator}
    )
    logs = [[{"token_ids": torch.tensor(row[:1])}, {"token_ids": torch.tensor(row[1:])}] for row in ROWS]
    found = namespace["LambdaAdvantage"]().compute_advantage(
        prompt_ids=torch.tensor([[1, 2], [1, 2], [1, 2], [3, 0]]),
        rewards=torch.full((4,), 2.0),
        mask=padded(MASKS),
        repeated_batch={"message_log": logs},
    )
    assert found.tolist() == [[2 * w for w in row] + [0] * (5 - len(row)) for row in WEIGHTS]


def test_slime(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = run("slime", monkeypatch)
    rewards = [1.0, 0.0, 0.5]  # centred 0.5, -0.5, 0; sample std 0.5
    samples = [
        SimpleNamespace(
            tokens=ids,
            response_length=len(ids) - 2,
            loss_mask=mask[2:] if i == 1 else None,
            group_index=0,
            get_reward_value=lambda args, r=reward: r,
        )
        for i, (ids, mask, reward) in enumerate(zip(ROWS, MASKS, rewards, strict=False))
    ]
    raw, shaped = namespace["post_process_rewards"](SimpleNamespace(n_samples_per_prompt=3), samples)
    assert raw == rewards
    data = {"kl": [torch.zeros(3)], "rewards": [shaped[1], shaped[0]]}
    namespace["advantages"](None, data)
    assert data["advantages"][0].tolist() == pytest.approx([-0.5, 0, -1], abs=1e-5)
    assert data["advantages"][1].tolist() == pytest.approx([0.5, 0.5, 1], abs=1e-5)
