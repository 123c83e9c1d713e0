"""The verl engine against the real verl package, on the CPU, with Ray and TransferQueue started here.

Where verl is not installed these tests are skipped; `make verl-test` installs it and runs them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed: `make verl-test` runs these in a venv with it")
LOADED_BY_VERL = (
    "lambda_grpo.engines.verl" in sys.modules
)  # nothing above has imported it but verl's own loader

import ray
import transfer_queue as tq
import verl_cpu
from reference import ReferenceGroup
from transformers import AutoModelForCausalLM
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss
from verl_cpu import RATE, config, get, put, row

import lambda_grpo
from lambda_grpo.engines.verl import PRODUCT_IS_EXACT, LambdaSyncTrainer, check, weighted_ppo_loss
from lambda_grpo.engines.verl import trainer as engine
from lambda_grpo.errors import InputError, LambdaGRPOError

KL = ["actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0.3"]
ONE_STEP = ["actor_rollout_ref.actor.ppo_mini_batch_size=12", "actor_rollout_ref.rollout.n=1"]


@pytest.fixture(scope="module")
def queue() -> Iterator[None]:
    """A Ray of our own with a TransferQueue, stopped afterwards."""
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False
    )
    try:
        tq.init({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}})
        yield
        tq.close()
    finally:
        ray.shutdown()


# --- found, registered, told ----------------------------------------------------------------------------


def test_verls_own_loader_finds_it() -> None:
    assert LOADED_BY_VERL
    assert get_trainer_cls("lambda_sync") is LambdaSyncTrainer


def test_the_check_says_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    assert "ready: trainer.v1.trainer_mode=lambda_sync" in capsys.readouterr().out


def _fail(*args: object, **kwargs: object) -> None:
    raise ConnectionError("no port is free")


@pytest.mark.parametrize(
    ("target", "value", "told"),
    [
        (("PACKAGES",), ("no-such-package",), "no-such-package is not installed: pip install"),
        (("ENTRY",), "lambda_snyc", "no entry point in the group verl.plugins"),
        (("os", "environ", "VERL_USE_EXTERNAL_PLUGINS"), "none", "VERL_USE_EXTERNAL_PLUGINS=none keeps verl"),
        (("sys", "modules", "lambda_grpo.engines.verl.trainer"), None, "FAIL  loaded: ModuleNotFoundError"),
        (
            ("registry",),
            PPOTrainerSync,
            "the name belongs to verl.trainer.ppo.v1.trainer_sync.PPOTrainerSync",
        ),
    ],
)
def test_the_check_can_fail(
    target: tuple[str, ...], value: Any, told: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if target == ("registry",):
        monkeypatch.setitem(
            sys.modules["verl.trainer.ppo.v1.trainer_base"].TRAINER_REGISTRY, "lambda_sync", value
        )
    elif target[0] == "os":
        monkeypatch.setenv(target[-1], value)
    elif target[0] == "sys":
        monkeypatch.setitem(sys.modules, target[-1], value)
    else:
        monkeypatch.setattr(check, target[0], value)
    assert check.main([]) == 1
    assert told in capsys.readouterr().out


def test_the_check_tells_that_ray_does_not_start(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", _fail)
    assert check.main(["--ray"]) == 1
    assert "FAIL  ray_starts: ConnectionError: no port is free" in capsys.readouterr().out


def test_another_version_of_verl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import verl

    monkeypatch.setattr(verl, "__version__", "0.8.0")
    monkeypatch.delitem(sys.modules, "lambda_grpo.engines.verl.trainer")
    with pytest.raises(InputError, match=r"verl 0\.8\.0 is not supported: expected 0\.9\.1"):
        __import__("lambda_grpo.engines.verl.trainer")


# --- settings -------------------------------------------------------------------------------------------


def test_settings_come_from_the_command_line_and_stay_in_the_config() -> None:
    given = config("+trainer.v1.lambda_sync.credit=process")
    trainer = LambdaSyncTrainer(given)
    assert trainer._settings.credit == "process"
    assert given.trainer.v1.lambda_sync == {"credit": "process", "credit_kwargs": {}}
    assert LambdaSyncTrainer(config())._settings.credit == "lambda_grpo"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["+trainer.v1.lambda_sync.credit=lamda_grpo"], "did you mean 'lambda_grpo'"),
        (["+trainer.v1.lambda_sync.credits=grpo"], "did you mean 'credit'"),
        (
            ["+trainer.v1.lambda_sync.credit_kwargs={tau: 1}"],
            "unknown parameter of credit 'lambda_grpo' 'tau'",
        ),
        (["+trainer.v1.lambda_sync.credit=branch"], "where completions were forked, which verl does not"),
        (["algorithm.adv_estimator=gae"], "adv_estimator=gae gives each token an advantage of its own"),
        (
            ["+trainer.v1.lambda_sync.credit=process", "actor_rollout_ref.actor.policy_loss.loss_mode=gspo"],
            "not policy_loss.loss_mode=gspo",
        ),
        (["distillation.enabled=true"], "distillation.enabled=true trains with verl's distillation loss"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        LambdaSyncTrainer(config(*overrides))


def test_verl_takes_the_recipes_settings(tmp_path: Path) -> None:
    """What the recipe hands to python, here one that prints it, verl's config accepts."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    recipe = Path(lambda_grpo.__file__).parent / "recipes" / "verl-multi-node.sh"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MODEL": "m",
        "DATA": "d",
        "NODES": "4",
    }
    printed = subprocess.run(
        ["bash", recipe, "trainer.total_epochs=3"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    assert printed[:2] == ["-m", "verl.trainer.main_ppo"]
    given = config(*printed[2:-1])
    assert (given.trainer.nnodes, given.trainer.total_epochs, given.trainer.v1.lambda_sync.credit) == (
        4,
        3,
        "lambda_grpo",
    )
    assert not LambdaSyncTrainer(given)._weights_in_loss


def test_the_replay_buffer_is_the_synchronous_one() -> None:
    trainer = LambdaSyncTrainer(config())
    assert type(trainer.replay_buffer) is ReplayBuffer
    assert trainer.trainer_mode == trainer.config.trainer.v1.trainer_mode == "sync"
    # The trap: without the name set back, verl takes the asynchronous one, and says nothing.
    assert type(PPOTrainerSync(config()).replay_buffer) is ReplayBufferAsync


# --- the advantages -------------------------------------------------------------------------------------


def groups(uid: str) -> list[tuple[str, dict]]:
    """Three prompts: single turns, several turns with observations (mask 0), several rows per rollout."""
    return [
        row(f"{uid}a_0_0", [1, 2], [5, 6, 7], [1, 1, 1], 1.0),
        row(f"{uid}b_0_0", [3], [5, 20, 6], [1, 0, 1], 1.0),
        row(f"{uid}c_0_0", [4], [5, 6], [1, 1], 0.5),
        row(f"{uid}a_1_0", [1, 2], [5, 6, 8, 9], [1, 1, 1, 1], 0.0),
        row(f"{uid}b_1_0", [3], [5, 21, 6], [1, 0, 1], 0.0),
        row(f"{uid}c_0_1", [4, 5, 6, 20], [7], [1], 0.5),
        row(f"{uid}a_2_0", [1, 2], [5, 6, 7], [1, 1, 1], 1.0),
        row(f"{uid}b_2_0", [3], [5, 20, 8], [1, 0, 1], 0.25),
        row(f"{uid}c_1_0", [4], [5, 8], [1, 1], 0.0),
        row(f"{uid}c_2_0", [9, 4], [5, 6], [1, 1], 1.0),
    ]


def padded(partition: str) -> Any:
    batch = upsample_batch_to_divisible_size(put(partition, groups("")), 4, eos_token_id=0)
    assert [bool(tag.get("is_padding")) for tag in batch.tags] == [False] * 10 + [True] * 2
    return batch


def set_sizes(rows: list[tuple[str, dict]]) -> dict[str, list[int]]:
    """|λ| of each response token by reference.py: the rollouts of its uid with a row that begins alike."""
    sizes = {}
    for uid in {field["uid"] for _, field in rows}:
        own = [(key, field) for key, field in rows if field["uid"] == uid]
        reference = ReferenceGroup([field["input_ids"].tolist() for _, field in own])
        for i, (key, field) in enumerate(own):
            begin = len(field["prompts"])
            sets = [reference.process_set(i, t) for t in range(begin, len(field["input_ids"]))]
            sizes[key] = [len({own[j][0].rsplit("_", 1)[0] for j in members}) for members in sets]
    return sizes


def differs(found: dict[str, list[float]], plain: Any, rows: list[tuple[str, dict]]) -> list[str]:
    """The rows whose advantages are not verl's own over |λ|."""
    verls = dict(zip(plain.keys, get(plain, "advantages"), strict=True))
    return [
        key
        for key, sizes in set_sizes(rows).items()
        if not np.allclose(found[key], verls[key].numpy() / np.array(sizes), rtol=1e-6, atol=0)
    ]


def computed(trainer: Any, partition: str) -> tuple[Any, dict[str, Any]]:
    metrics: dict[str, Any] = {}
    return trainer._compute_advantage(padded(partition), metrics), metrics


def test_the_advantages_are_verls_own_times_the_weights(queue: None) -> None:
    plain, _ = computed(PPOTrainerSync(config("trainer.v1.trainer_mode=sync")), "plain")
    batch, metrics = computed(LambdaSyncTrainer(config()), "lambda")
    found = {key: values.tolist() for key, values in zip(batch.keys, get(batch, "advantages"), strict=True)}
    assert differs(found, plain, groups("")) == []
    assert [found[key] for key in batch.keys[10:]] == [[0.0], [0.0]]  # the padding rows
    assert batch.tags == [*batch.tags[:10], *padded("tags").tags[10:]]
    assert {"advantages", "returns", "responses"} <= set(batch.fields)
    assert "credit_weights" not in batch.fields
    # By hand. Group a: 1 0 1, mean 2/3, sample std 0.57735: a = 0.57735, -1.1547, 0.57735. [5 6] is in all three, the
    # first 7 in two. Group b: 5 in all three; then the observation 20 or 21; 6 and 8 in one each.
    assert np.allclose(found["a_0_0"], [0.57735 / 3, 0.57735 / 3, 0.57735 / 2], atol=1e-5)
    assert np.allclose(found["a_1_0"], [-1.1547 / 3, -1.1547 / 3, -1.1547, -1.1547], atol=1e-5)
    b = 0.583333 / 0.520416  # 1 0 0.25, mean 0.416667
    assert np.allclose(found["b_0_0"], [b / 3, 0, b], atol=1e-5)
    # Between root and leaf lie the 20 of b, which is no policy token, and the 5 of c_0 and c_1: one group of 3 is not flat.
    assert metrics["tree/flat_groups"] == pytest.approx(2 / 3)
    assert metrics["tree/path_depth"] == pytest.approx(2 / 9)


def test_the_reward_is_that_of_a_rollouts_last_row() -> None:
    """As verl's advantage; the rows before it may have none."""
    rows = [np.array([1, 2]), np.array([3])]
    columns = {"prompts": rows, "responses": rows, "response_mask": [np.ones(2), np.ones(1)],
               "advantages": [np.ones(2), np.ones(1)], "rm_scores": [np.zeros(2), np.array([0.5])]}  # fmt: skip
    found = engine._rows(["a_0_9", "a_0_10"], ["a", "a"], columns)
    assert [row.reward for row in found] == [0.5, 0.5]


def test_a_planted_fault_is_noticed(queue: None) -> None:
    """Plain GRPO's weights, and an index that counts rows: both are told from |λ|."""
    plain, _ = computed(PPOTrainerSync(config("trainer.v1.trainer_mode=sync")), "plain2")
    batch, _ = computed(LambdaSyncTrainer(config("+trainer.v1.lambda_sync.credit=grpo")), "grpo")
    found = {key: values.tolist() for key, values in zip(batch.keys, get(batch, "advantages"), strict=True)}
    assert "a_0_0" in differs(found, plain, groups(""))
    verls = dict(zip(plain.keys, get(plain, "advantages"), strict=True))
    assert all(found[key] == verls[key].tolist() for key in plain.keys if not key.startswith("pad"))


def test_what_a_batch_lacks_is_told(queue: None) -> None:
    trainer = LambdaSyncTrainer(config())
    nameless = [
        (key, {name: value for name, value in field.items() if name != "uid"}) for key, field in groups("n")
    ]
    with pytest.raises(InputError, match=r"no field uid.*first row: na_0_0"):
        trainer._compute_advantage(put("nameless", nameless), {})
    other = LambdaSyncTrainer(config("algorithm.adv_estimator=reinforce_plus_plus", "algorithm.gamma=0.5"))
    with pytest.raises(InputError, match="its rollout has advantages .* expected one for all"):
        other._compute_advantage(put("uneven", groups("u")), {})
    strange = [("strange", groups("s")[0][1])]
    with pytest.raises(InputError, match="'strange': expected a key"):
        LambdaSyncTrainer(config("algorithm.adv_estimator=rloo"))._compute_advantage(
            put("strange", strange), {}
        )


# --- the loss -------------------------------------------------------------------------------------------

AGGREGATIONS = [
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-token-mean",
]


@cache
def actor_config(loss_mode: str) -> Any:
    policy_loss = "actor_rollout_ref.actor.policy_loss"
    given = config(f"{policy_loss}.loss_mode={loss_mode}", f"+{policy_loss}.dro_beta=0.5")
    return given.actor_rollout_ref.actor


def gradients(loss_mode: str, aggregation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """d loss / d log-prob with w·A as advantage, and with A and each log-prob's gradient scaled by w."""
    actor = omega_conf_to_dataclass(actor_config(loss_mode))
    if loss_mode == "bypass_mode":
        object.__setattr__(
            actor.policy_loss, "rollout_correction", {"loss_type": "reinforce", "rollout_is": "token"}
        )
    torch.manual_seed(0)
    shape = (6, 5)
    old, logps = -torch.rand(shape).double() - 0.1, -torch.rand(shape).double() - 0.1
    advantage, weight = (
        torch.randn(shape[0], 1).double().expand(shape),
        torch.randint(1, 5, shape).double().reciprocal(),
    )
    mask = torch.arange(shape[1]) < torch.tensor([[5], [3], [4], [1], [5], [2]])
    found = []
    for given, factor in ((weight * advantage, torch.ones(shape)), (advantage, weight)):
        leaf = logps.clone().requires_grad_()
        loss, _ = get_policy_loss_fn(loss_mode)(
            old_log_prob=old,
            log_prob=leaf,
            advantages=given,
            response_mask=mask,
            loss_agg_mode=aggregation,
            config=actor,
        )
        (grad,) = torch.autograd.grad(loss, leaf)
        found.append(grad * factor)
    return found[0], found[1]


@pytest.mark.parametrize("loss_mode", sorted(PRODUCT_IS_EXACT))
def test_the_product_is_exact(loss_mode: str) -> None:
    for aggregation in AGGREGATIONS:
        product, scaled = gradients(loss_mode, aggregation)
        assert scaled.abs().max() > 1e-3
        assert torch.allclose(product, scaled, rtol=1e-12, atol=1e-15), aggregation


@pytest.mark.parametrize("loss_mode", ["dro", "geo_mean"])
def test_other_losses_do_need_the_weights(loss_mode: str) -> None:
    product, scaled = gradients(loss_mode, "token-mean")
    assert not torch.allclose(product, scaled, rtol=1e-3)
    assert LambdaSyncTrainer(
        config(f"actor_rollout_ref.actor.policy_loss.loss_mode={loss_mode}")
    )._weights_in_loss


class OneWorker:
    """In place of verl's group of Ray workers: one worker, in this process, that gets the same calls."""

    def __init__(self, worker: Any, takes_a_loss: bool = True) -> None:
        self.worker, self.takes_a_loss = worker, takes_a_loss

    def set_loss_fn(self, loss_fn: Any) -> None:
        if self.takes_a_loss:
            self.worker.set_loss_fn(ray.cloudpickle.loads(ray.cloudpickle.dumps(loss_fn)))

    def update_actor(self, batch: Any) -> Any:
        return self.worker.train_mini_batch(batch)


class Silent:
    def update_weights(self, step: int) -> None:
        pass


def update(trainer: Any, batch: Any, worker: Any, takes_a_loss: bool = True) -> dict[str, torch.Tensor]:
    """One update of the actor by verl's own code; with SGD the change is minus the gradient times the rate."""
    trainer.global_steps, trainer.checkpoint_manager, trainer.distillation_config = 1, Silent(), None
    trainer.actor_rollout_wg = OneWorker(worker, takes_a_loss)
    actor = omega_conf_to_dataclass(trainer.config.actor_rollout_ref.actor)
    worker.set_loss_fn(partial(ppo_loss, config=actor))  # as verl's ActorRolloutRefWorker does
    trainer.on_init_end()
    before = {name: value.full_tensor().clone() for name, value in worker.engine.module.named_parameters()}
    trainer._update_actor(batch, {})
    after = dict(worker.engine.module.named_parameters())
    return {name: (before[name] - after[name].full_tensor()).detach() / RATE for name in before}


def expected_gradients(
    folder: Path, rows: list[tuple[str, dict]], plain: Any, beta: float, weighted: bool = True
) -> dict[str, torch.Tensor]:
    """Σ 1/|λ| · (-A·exp(logp - old) + β·(exp Δ - Δ - 1)) / Σ 1 over policy tokens, Δ = ref - logp; plain torch."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    verls = dict(zip(plain.keys, get(plain, "advantages"), strict=True))
    sizes = set_sizes(rows) if weighted else {key: 1 for key, _ in rows}
    total, tokens = torch.zeros(()), 0
    for key, field in rows:
        begin = len(field["prompts"])
        logits = model(field["input_ids"][None]).logits[0, begin - 1 : -1].log_softmax(-1)
        logps = logits.gather(1, field["responses"][:, None])[:, 0]
        delta = field["ref_log_prob"] - logps
        terms = -verls[key] * (logps - field["old_log_probs"]).exp() + beta * (delta.exp() - delta - 1)
        mask = field["response_mask"]
        total = total + (mask * terms / torch.tensor(sizes[key])).sum()
        tokens += int(mask.sum())
    (total / tokens).backward()
    return {name: value.grad for name, value in model.named_parameters()}


def with_logps(folder: Path) -> list[tuple[str, dict]]:
    """The groups with the model's own log-probs as old ones, and others as the reference's."""
    rows = groups("")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    torch.manual_seed(1)
    for _, field in rows:
        with torch.no_grad():
            logits = model(field["input_ids"][None]).logits[0, len(field["prompts"]) - 1 : -1].log_softmax(-1)
        field["old_log_probs"] = logits.gather(1, field["responses"][:, None])[:, 0]
        field["ref_log_prob"] = field["old_log_probs"] + 0.5 * torch.randn(len(field["responses"]))
    return rows


@pytest.mark.parametrize("overrides", [[], KL], ids=["in the advantages", "in the loss, with a KL term"])
def test_the_actors_update(
    queue: None, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer, TransferQueue, FSDP2 worker and loss are verl's; only the group of Ray workers is not."""
    beta = 0.3 if overrides else 0.0
    trainer = LambdaSyncTrainer(config(*ONE_STEP, *overrides))
    assert trainer._weights_in_loss is bool(overrides)
    with verl_cpu.worker(tmp_path, monkeypatch) as worker:
        rows = with_logps(tmp_path)
        name = f"update{beta}"
        plain = PPOTrainerSync(config("trainer.v1.trainer_mode=sync"))._compute_advantage(
            put(name + "p", rows), {}
        )
        batch = upsample_batch_to_divisible_size(put(name, rows), 12, eos_token_id=0)
        batch = trainer._compute_advantage(batch, {})
        found = update(trainer, batch, worker)
    expected = expected_gradients(tmp_path, rows, plain, beta)
    for parameter, value in expected.items():
        assert (found[parameter] - value).norm() <= 1e-5 * value.norm(), parameter
    # Planted fault: the same with all weights 1 would be noticed.
    unweighted = expected_gradients(tmp_path, rows, plain, beta, weighted=False)
    assert (unweighted["lm_head.weight"] - found["lm_head.weight"]).norm() > 0.1 * found[
        "lm_head.weight"
    ].norm()


def test_workers_that_ignore_the_loss_are_noticed(
    queue: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = LambdaSyncTrainer(config(*ONE_STEP, *KL))
    with verl_cpu.worker(tmp_path, monkeypatch) as worker:
        batch = trainer._compute_advantage(
            upsample_batch_to_divisible_size(put("deaf", groups("d")), 12, 0), {}
        )
        with pytest.raises(LambdaGRPOError, match="the workers trained with another loss than ours"):
            update(trainer, batch, worker, takes_a_loss=False)


def test_the_loss_needs_the_weights() -> None:
    with pytest.raises(InputError, match="no field credit_weights"):
        weighted_ppo_loss(None, {}, {})
