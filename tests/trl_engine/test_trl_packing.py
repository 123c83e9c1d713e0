"""Tree packing in the trainer, against the same trainer without it: log-probs, losses and gradients."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from corner_settings import CORNERS
from datasets import Dataset
from peft import LoraConfig
from tiny_trainers import (
    CASES,
    GROUP,
    PROMPTS,
    assert_close,
    gpt2_float64,
    gradients,
    make_trainer,
    micro_batches,
    plain_logps,
)
from torch.distributed import DistBackendError
from transformers import GPT2Config, GPT2LMHeadModel
from trl import GRPOTrainer

from lambda_grpo import InputError
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer, packing, packing_trial
from lambda_grpo.engines.trl.packing import TreePacking, whole_groups
from lambda_grpo.engines.trl.packing_trial import Trial
from lambda_grpo.packing import PackedTree, proof, tree_logps_and_entropies
from lambda_grpo.packing.attention import TreeLayout
from lambda_grpo.packing.cost import Calibration, WayCost

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


def assert_equals_plain_rows(trainer: Any, tolerance: float = 1e-5) -> list[dict[str, Any]]:
    """Loss and gradients of every micro-batch, packed and not; and the passes that made the batch, repeated."""
    trainer._learned = {"reason": ""}  # so the passes that make the batch are packed too
    batches = micro_batches(trainer)
    for batch in batches:
        found = []
        for mode in ("on", "off"):
            trainer.args.tree_packing = mode
            trainer._metrics["train"].clear()
            loss = trainer._compute_loss(trainer.model, batch)
            logged = {name: values[0] for name, values in trainer._metrics["train"].items()}
            found.append((loss.item(), gradients(trainer, loss), logged))
        (loss, grads, logged), (plain_loss, plain_grads, plain_logged) = found
        assert loss == pytest.approx(plain_loss, rel=1e3 * tolerance, abs=tolerance)
        assert_close(grads, plain_grads, tolerance)
        assert logged.pop("tree/packed") == 1
        assert logged.pop("tree/raw_per_unique") > 1.2
        assert logged == pytest.approx(plain_logged, rel=1e3 * tolerance, abs=1e2 * tolerance)
        with pytest.raises(AssertionError):  # the planted fault: no weights
            unweighted = {**batch, "credit_weights": torch.ones_like(batch["credit_weights"])}
            assert_close(gradients(trainer, trainer._compute_loss(trainer.model, unweighted)), grads, 1e-3)
        trainer.args.tree_packing = "on"
    return batches


@pytest.mark.parametrize(("loss_type", "beta", "iterations", "accumulation"), CASES)
def test_every_loss(tmp_path: Path, loss_type: str, beta: float, iterations: int, accumulation: int) -> None:
    trainer = make_trainer(
        tmp_path,
        tree_packing="on",
        loss_type=loss_type,
        beta=beta,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=len(PROMPTS) * GROUP // accumulation,
        epsilon_high=5.0 if loss_type == "cispo" else None,
    )
    assert len(assert_equals_plain_rows(trainer)) == accumulation


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
def test_exact_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str) -> None:
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", plain_logps)
    trainer = make_trainer(
        tmp_path, model=gpt2_float64(), tree_packing="on", loss_type=loss_type, beta=0.3, num_iterations=2,
        epsilon_high=5.0 if loss_type == "cispo" else None,
    )  # fmt: skip
    assert_equals_plain_rows(trainer, 1e-10)


@pytest.mark.parametrize("name", CORNERS)
def test_corner(tmp_path: Path, name: str) -> None:
    assert_equals_plain_rows(make_trainer(tmp_path, **copy.deepcopy(CORNERS[name]), tree_packing="on"))


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"trainer_kwargs": {"peft_config": LORA}, "beta": 0.1, "num_iterations": 2}, 1e-5),
        ({"gradient_checkpointing": True, "beta": 0.1}, 1e-5),
        ({"bf16": True, "num_iterations": 2}, 3e-2),
        ({"cast_lm_head_to_fp32": True, "model": None}, 1e-5),
    ],
    ids=["LoRA", "gradient checkpointing", "bf16 autocast", "head in float32"],
)
def test_how_the_model_is_run(tmp_path: Path, settings: dict[str, Any], tolerance: float) -> None:
    assert_equals_plain_rows(make_trainer(tmp_path, tree_packing="on", **settings), tolerance)


def test_old_and_reference_passes_are_packed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_calls = []
    plain = GRPOTrainer._get_per_token_logps_and_entropies

    def counted(*args: Any, **kwargs: Any) -> Any:
        plain_calls.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", counted)
    trainer = make_trainer(
        tmp_path, tree_packing="on", beta=0.1, num_iterations=2, gradient_accumulation_steps=2,
        per_device_train_batch_size=12,
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer._learned = {"reason": ""}
    batch = trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)])
    shapes = [tuple(args[2].shape) for args in plain_calls]
    assert shapes == [(3, 7)] * 4  # the probe's two passes, of the policy and of the reference
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    real = batch["completion_mask"].bool()
    for name, model in (("old", trainer.model), ("ref", trainer.ref_model)):
        expected, _, _ = plain(trainer, model, ids, mask, real.shape[1])
        assert torch.allclose(batch[f"{name}_per_token_logps"][real], expected[real].detach(), atol=1e-5)


def test_micro_batches_hold_whole_groups(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, tree_packing="on", gradient_accumulation_steps=2, per_device_train_batch_size=12
    )
    firsts = set()
    for seed in range(12):
        trainer._buffered_inputs = None
        torch.manual_seed(seed)
        batches = micro_batches(trainer)
        for batch in batches:
            prompts = trainer.processing_class.batch_decode(batch["prompt_ids"])
            counts = [prompts.count(prompt) for prompt in prompts]
            assert counts == [GROUP] * 12
        firsts.add(trainer.processing_class.decode(batches[0]["prompt_ids"][0], skip_special_tokens=True))
    assert len(firsts) > 1  # groups are shuffled


def test_rows_stay_together_with_what_belongs_to_them() -> None:
    rng = np.random.default_rng(0)
    group = torch.from_numpy(rng.permutation(np.repeat(np.arange(5), 4)))
    tensors = {"group": group, "twice": 2 * group, "wide": group[:, None] * torch.arange(3)}
    batches = [
        {k: v[i : i + 4] for k, v in tensors.items()} | {"none": None, "count": torch.tensor(7)}
        for i in range(0, 20, 4)
    ]
    dealt = whole_groups(batches)
    assert sorted(batch["group"].unique().item() for batch in dealt) == list(range(5))
    for batch in dealt:
        assert torch.equal(batch["twice"], 2 * batch["group"])
        assert torch.equal(batch["wide"], batch["group"][:, None] * torch.arange(3))
        assert batch["none"] is None
        assert batch["count"] == 7


def test_a_micro_batch_smaller_than_a_group(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, tree_packing="on", gradient_accumulation_steps=8, per_device_train_batch_size=3
    )
    for batch in micro_batches(trainer):
        assert len(set(trainer.processing_class.batch_decode(batch["prompt_ids"]))) == 1


@pytest.mark.parametrize("head_in_float32", [False, True])  # True: not the way of plain linear heads
def test_nothing_to_predict(tmp_path: Path, head_in_float32: bool) -> None:
    """All completions truncated and masked: a differentiable zero, as in TRL."""
    trainer = make_trainer(tmp_path, tree_packing="on", cast_lm_head_to_fp32=head_in_float32)
    (batch,) = micro_batches(trainer)
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters())


def test_training_on_and_off_ends_at_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", plain_logps)
    trained = []
    for mode in ("on", "off"):
        trainer = make_trainer(
            tmp_path, model=gpt2_float64(), tree_packing=mode, optim="sgd", num_iterations=2, beta=0.1
        )
        start = torch.cat([p.detach().clone().flatten() for p in trainer.model.parameters()])
        trainer.train()
        trained.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - start)
    assert_close(trained[0], trained[1], 1e-9)


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_old_and_reference_passes_agree_with_the_policys(tmp_path: Path, mode: str) -> None:
    """Learned positions, prompts of unequal length: the first passes are plain, later ones may be packed."""
    trainer = make_trainer(
        tmp_path, model=gpt2_float64().float(), tree_packing=mode, num_iterations=2, beta=0.1, max_steps=4,
        learning_rate=0.0, per_device_train_batch_size=12, gradient_accumulation_steps=2,
    )  # fmt: skip
    if mode == "auto":
        plant(trainer, 100.0, 1.0)
    trainer.train()
    rows = trainer.state.log_history[:4]
    assert [row["tree/packed"] for row in rows] == [1] * 4
    for row in rows:
        assert abs(row["kl"]) < 1e-6
        assert row["clip_ratio/region_mean"] == 0


def plant(trainer: Any, rows: float, tree: float, reason: str = "") -> None:
    """An earlier trial in the run's folder, which says how much slower than guessed either way is."""
    found = Calibration(1e10, WayCost(factor=rows), WayCost(factor=tree)).as_numbers()
    learned = {"circumstances": trainer._circumstances(), "reason": reason, "calibration": found}
    (Path(trainer.args.output_dir) / "machine_speed_0.json").write_text(json.dumps(learned))


@pytest.mark.parametrize(("rows", "tree", "packed"), [(100.0, 1.0, 1), (1.0, 100.0, 0)])
def test_auto_packs_what_pays(tmp_path: Path, rows: float, tree: float, packed: int) -> None:
    trainer = make_trainer(tmp_path, tree_packing="auto", max_steps=1)
    plant(trainer, rows, tree)
    trainer.train()
    assert trainer.state.log_history[0]["tree/packed"] == packed


def test_what_auto_learns_is_written_down_and_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that begins anew in the same folder times nothing, and decides alike."""
    path = tmp_path / "machine_speed_0.json"
    make_trainer(tmp_path, tree_packing="auto", max_steps=1, beta=0.1).train()
    learned = json.loads(path.read_text())
    calibration = Calibration.from_numbers(learned["calibration"])
    assert learned["reason"] == ""
    assert min(calibration.rows.factor, calibration.tree.factor) > 0
    monkeypatch.setattr(Trial, "calibration", lambda *_: pytest.fail("timed again"))
    monkeypatch.setattr(Trial, "proof", lambda *_: pytest.fail("proved again"))
    make_trainer(tmp_path, tree_packing="auto", max_steps=1, beta=0.1).train()
    assert json.loads(path.read_text()) == learned


def test_what_was_learned_elsewhere_is_not_believed(tmp_path: Path) -> None:
    """TRL's default output_dir is the same for all scripts, so another model's trial may lie there."""
    earlier = make_trainer(tmp_path, tree_packing="on", max_steps=1)
    plant(earlier, 1.0, 1.0, reason="packed log-probs are 3 off")
    later = make_trainer(tmp_path, model=gpt2_float64().float(), tree_packing="on", max_steps=1)
    later.train()
    assert later.state.log_history[0]["tree/packed"] == 1
    learned = json.loads((tmp_path / "machine_speed_0.json").read_text())
    assert learned["circumstances"]["model"] == "GPT2LMHeadModel"
    assert learned["reason"] == ""


ACCUMULATED = {"per_device_train_batch_size": 6, "steps_per_generation": 4, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2},
        {"beta": 0.1},
        {"beta": 0.1, "peft_config": LORA},
    ],
    ids=["old", "reference", "LoRA"],
)
def test_the_trial_runs_as_updates_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """One micro-batch, with gradients, under gradient checkpointing: old and reference passes come first."""
    seen = []

    def outcome(score: Any, real: torch.Tensor, parameters: list[torch.Tensor]) -> Any:
        found = proof.outcome(score, real, parameters)
        checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in trainer.model.modules())
        seen.append((len(real), len(found.gradients) > 0, checkpointing, trainer.model.training))
        return found

    monkeypatch.setattr(packing_trial, "outcome", outcome)
    monkeypatch.setattr(packing_trial, "_ALL_SECONDS", 0.0)
    adapters = {name: value for name, value in settings.items() if name == "peft_config"}
    others = {name: value for name, value in settings.items() if name != "peft_config"}
    others |= ACCUMULATED | {"gradient_checkpointing": True, "max_steps": 1}
    trainer = make_trainer(tmp_path, tree_packing="auto", trainer_kwargs=adapters, **others)
    trainer.train()
    assert len(seen) > 6
    assert max(rows for rows, *_ in seen) <= 6
    assert all(all(rest) for _, *rest in seen)


def test_the_trial_keeps_to_tokens_per_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    packed_pass = TreePacking._packed_pass

    def counted(self: Any, model: Any, tree: PackedTree) -> Any:
        lengths.append((len(tree.index), tree.num_tokens))
        return packed_pass(self, model, tree)

    monkeypatch.setattr(TreePacking, "_packed_pass", counted)
    make_trainer(tmp_path, tree_packing="auto", tokens_per_pass=20, max_steps=1).train()
    assert max(tokens for rows, tokens in lengths if rows > 1) <= 20


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of resource: shared memory"),
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
    ],
    ids=["kernel", "device", "Python"],
)
def test_a_trial_that_fails_leaves_the_rows_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """As FlexAttention's backward may fail where its forward, which the probe has tried, does not."""
    monkeypatch.setattr(packing, "tree_logps_and_entropies", failing_at(2, error))
    trainer = make_trainer(tmp_path, tree_packing="auto", max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["tree/packed"] == 0
    assert f"the trial failed: {type(error).__name__}" in caplog.text


def test_without_memory_for_an_exact_pass_packed_rows_are_compared_with_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(packing_trial, "exact_outcome", fail)
    trainer = make_trainer(tmp_path, tree_packing="on", max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["tree/packed"] == 1


def test_the_time_of_packing_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training packs each micro-batch anew, so what is timed does too."""
    packed: list[int] = []
    passed: list[int] = []
    pack_rows, packed_pass = packing_trial.pack_rows, TreePacking._packed_pass

    def pack(*args: Any, **kwargs: Any) -> PackedTree:
        packed.append(1)
        return pack_rows(*args, **kwargs)

    def run(*args: Any) -> Any:
        passed.append(len(packed))
        return packed_pass(*args)

    monkeypatch.setattr(packing_trial, "pack_rows", pack)
    monkeypatch.setattr(TreePacking, "_packed_pass", run)
    make_trainer(tmp_path, tree_packing="auto", max_steps=1).train()
    assert len(set(passed)) > 6  # two rounds of three packed updates at least, each with a tree of its own


def test_what_auto_packs_is_the_same_after_resuming(tmp_path: Path) -> None:
    """Wherever the process that goes on runs: the checkpoint holds what was learned."""
    settings = {"tree_packing": "auto", "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, max_steps=1, **settings)
    plant(trainer, rows=1.0, tree=100.0)
    trainer.train()
    (tmp_path / "machine_speed_0.json").unlink()
    resumed = make_trainer(tmp_path, max_steps=2, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[-2]["tree/packed"] == 0
    assert not (tmp_path / "machine_speed_0.json").exists()


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_mask_that_is_wrong_here_is_seen_on_the_first_micro_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The planted fault shows in larger trees only, as one of a device's kernels might."""

    def faulty(packed: PackedTree) -> TreeLayout:
        large = packed.num_tokens > 16
        end = torch.full_like(packed.subtree_end, packed.num_tokens) if large else packed.subtree_end
        return TreeLayout(end, packed.position)

    settings = {"tree_packing": mode, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    monkeypatch.setattr(PackedTree, "layout", property(faulty))
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    warnings = [record.getMessage() for record in caplog.records if "packing is off" in record.getMessage()]
    assert len(warnings) == 1
    assert re.search(
        r"packed log-probs are \d.* off \(plain rows .*gradients \d.* of their size", warnings[0]
    )
    assert trainer.state.log_history[0]["tree/packed"] == 0
    assert "packed log-probs" in json.loads((tmp_path / "machine_speed_0.json").read_text())["reason"]
    monkeypatch.undo()  # what is packed stays the same in this run
    resumed = make_trainer(tmp_path, **settings | {"max_steps": 3})
    resumed.train(resume_from_checkpoint=True)
    assert "tree/packed" not in resumed.state.log_history[-2]


@pytest.mark.parametrize("limit", [1, 12, 40])
def test_tokens_per_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Rows of bounded length: the same log-probs, losses and gradients."""
    lengths: list[int] = []
    packed_pass = TreePacking._packed_pass

    def counted(self: Any, model: Any, tree: PackedTree) -> Any:
        if len(tree.index) > 1:
            lengths.append(tree.num_tokens)
        return packed_pass(self, model, tree)

    trainer = make_trainer(tmp_path, tree_packing="on", tokens_per_pass=limit, beta=0.1)
    trainer._learned = {"reason": ""}
    trainer._proven = ("Qwen2ForCausalLM in training", "Qwen2ForCausalLM in evaluation")
    monkeypatch.setattr(TreePacking, "_packed_pass", counted)
    (batch,) = micro_batches(trainer)
    found = []
    for bound in (limit, 0):
        trainer.args.tokens_per_pass = bound
        loss = trainer._compute_loss(trainer.model, batch)
        found.append(gradients(trainer, loss))
        if bound:
            assert max(lengths, default=0) <= limit
    assert_close(*found, 1e-5)
    with pytest.raises(InputError, match="tokens_per_pass: expected 0 or more, got -1"):
        make_trainer(tmp_path, tokens_per_pass=-1)


def test_dropout_runs_plainly_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = make_trainer(tmp_path).processing_class
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokens), n_positions=32, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.1,
            eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id, bos_token_id=None,
        )
    )  # fmt: skip
    trainer = make_trainer(tmp_path, model=model, tree_packing="on", max_steps=2, disable_dropout=False)
    trainer.train()
    warnings = [record.getMessage() for record in caplog.records if "packing" in record.getMessage()]
    assert len(warnings) == 1
    assert "Tree packing is off, the rows run plainly: " in warnings[0]
    assert "dropout 0.1 is active" in warnings[0]
    assert "tree/packed" not in trainer.state.log_history[1]


@pytest.mark.parametrize(
    ("mode", "fault"), [("auto", "shapes"), ("on", "pass"), ("auto", "Mamba"), ("on", "Mamba")]
)
def test_a_model_that_fails_in_its_own_way_trains_on_plain_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mode: str, fault: str
) -> None:
    """Mamba's configuration has no heads. The others: shapes that nobody has seen, and a packed pass that fails."""
    reasons = {
        "Mamba": "carries a state from token to token",
        "shapes": "qwen2: the cost of its layers cannot be told from its configuration",
        "pass": "KeyError: 'planted'",
    }

    def fail(*_: object, **__: object) -> None:
        raise (TypeError if fault == "shapes" else KeyError)("planted")

    if fault != "Mamba":
        place = (
            "packing.cost._operations"
            if fault == "shapes"
            else "engines.trl.packing.tree_logps_and_entropies"
        )
        monkeypatch.setattr(f"lambda_grpo.{place}", fail)
    model = None
    if fault == "Mamba":
        tokens = make_trainer(tmp_path).processing_class
        model = transformers.MambaForCausalLM(
            transformers.MambaConfig(
                vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, bos_token_id=None,
                eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
            )
        )  # fmt: skip
    given = {} if model is None else {"model": model}
    trainer = make_trainer(tmp_path, **given, tree_packing=mode, max_steps=2)
    trainer.train()
    warnings = [record.getMessage() for record in caplog.records if "packing is off" in record.getMessage()]
    assert len(warnings) == 1
    assert reasons[fault] in warnings[0]


class Scaled(torch.nn.Module):
    """A layer with noise, from numbers that bear no telling name."""

    def __init__(self, inner: torch.nn.Module, strength: float) -> None:
        super().__init__()
        self.inner, self.strength = inner, strength

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        return out * (1 + self.strength * torch.randn_like(out)) if self.training else out


@pytest.mark.parametrize("fault", ["wrong log-probs", "noise"])
def test_a_model_that_would_be_packed_wrongly_in_silence_trains_on_plain_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def off(*args: Any, **kwargs: Any) -> Any:
        logps, entropies = tree_logps_and_entropies(*args, **kwargs)
        return logps + 0.02, entropies

    trainer = make_trainer(tmp_path, tree_packing="on", max_steps=2)
    if fault == "noise":
        for layer in trainer.model.model.layers:
            layer.mlp = Scaled(layer.mlp, 0.3)
    else:
        monkeypatch.setattr(packing, "tree_logps_and_entropies", off)
    trainer.train()
    reasons = {"noise": "draws random numbers", "wrong log-probs": "are 0.02 off those of plain rows"}
    warnings = [record.getMessage() for record in caplog.records if "packing is off" in record.getMessage()]
    assert len(warnings) == 1
    assert reasons[fault] in warnings[0]
    assert trainer.state.log_history[0]["tree/packed"] == 0


def test_the_probe_runs_once_and_draws_no_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = []
    original = packing.why_not_packed

    def watched(*args: Any, **kwargs: Any) -> str:
        before = torch.get_rng_state()
        probed.append(original(*args, **kwargs))
        assert torch.equal(torch.get_rng_state(), before)
        return probed[-1]

    monkeypatch.setattr(packing, "why_not_packed", watched)
    settings = {"tree_packing": "on", "save_strategy": "steps", "save_steps": 2, "beta": 0.1}
    make_trainer(tmp_path, max_steps=2, **settings).train()
    assert probed == ["", ""]  # the reference in evaluation, the policy in training
    resumed = make_trainer(tmp_path, max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[-2]["tree/packed"] == 1
    assert len(probed) == 2


NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …"
)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), NO_MEMORY, MemoryError(), DistBackendError("gone")],
    ids=["device", "CPU", "Python", "ranks"],
)  # fmt: skip
@pytest.mark.parametrize("call", [1, 3], ids=["probe", "training"])
def test_memory_and_lost_ranks_say_nothing_about_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, call: int
) -> None:
    monkeypatch.setattr(packing, "tree_logps_and_entropies", failing_at(call, error))
    with pytest.raises(type(error)) as raised:
        make_trainer(tmp_path, tree_packing="on").train()
    assert raised.value is error


def test_an_error_in_a_packed_pass_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe and trial went well; to go on plainly on this rank alone would leave the others waiting."""
    error = RuntimeError("planted")
    monkeypatch.setattr(packing, "tree_logps_and_entropies", failing_at(3, error))
    with pytest.raises(RuntimeError, match="planted") as raised:
        make_trainer(tmp_path, tree_packing="on").train()
    assert raised.value is error


def failing_at(call: int, error: Exception) -> Any:
    """`tree_logps_and_entropies` that raises when it is called for the n-th time, counted from 1."""
    calls = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise error
        return tree_logps_and_entropies(*args, **kwargs)

    return fail


def test_a_feature_that_cannot_be_packed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, tree_packing="on")
    (batch,) = micro_batches(trainer)
    width = batch["completion_ids"].shape[1]
    types = torch.zeros(len(batch["prompt_ids"]), batch["prompt_ids"].shape[1] + width, dtype=torch.long)
    trainer._metrics["train"].clear()
    trainer._compute_loss(trainer.model, {**batch, "token_type_ids": types})
    assert "tree/packed" not in trainer._metrics["train"]
    assert "token_type_ids cannot be packed" in caplog.text


def test_off_is_trls_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreePacking, "_pack", lambda *_: pytest.fail("packed"))
    make_trainer(tmp_path, tree_packing="off", beta=0.1, max_steps=1).train()


def test_evaluation_packs(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, tree_packing="on", num_generations_eval=2, per_device_eval_batch_size=4, beta=0.1
    )
    trainer._learned = {"reason": ""}
    metrics = trainer.evaluate(Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]))
    assert "eval_loss" in metrics
    assert "eval_tree/packed" not in metrics  # only updates are counted


def test_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown tree_packing 'onn': did you mean 'on'"):
        LambdaGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, tree_packing="onn")
    assert issubclass(LambdaGRPOTrainer, TreePacking)
