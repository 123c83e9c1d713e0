"""λ-GRPO on verl: `trainer.v1.trainer_mode=lambda_sync` is verl's synchronous v1 trainer with a credit.

verl finds this module through the entry-point group `verl.plugins`. Its advantage estimators and policy
losses see no token ids, so the trainer is the place to plug in: after verl has computed its advantages, they
are fetched from TransferQueue with the ids, weighted, and put back. How the weights reach the loss:

- **in the advantages**, w·A, where that is the same as weighting each token's term: without KL term, for the
  policy losses in `PRODUCT_IS_EXACT`, all of them positively homogeneous in the token's own advantage. Every
  `loss_agg_mode` is linear in the terms, so it does not matter;
- else **in the loss**: they travel with the batch, and the workers get `weighted_ppo_loss`, which is verl's
  own with the gradient that flows into the log-probs scaled. That is the same as weighting each token's term,
  KL included. (For losses with one ratio per sequence this *is* our definition of λ-GRPO.)

The entropy bonus stays unweighted. Padding rows have no policy token and stay as they are. For rollouts that
are several rows see `multi_row`. Tested with verl 0.9.1; how to use it: docs/verl.md.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
import verl
from omegaconf import DictConfig, OmegaConf, open_dict
from packaging.version import Version
from tensordict import TensorDict
from verl.trainer.distillation import is_distillation_enabled
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from lambda_grpo.credit import advantage_varies, get_credit, refuse_plan, try_credit
from lambda_grpo.engines.multi_row import Row, credit_rows
from lambda_grpo.errors import InputError, LambdaGRPOError, unknown_name

MODE = "lambda_sync"
PRODUCT_IS_EXACT = {"vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "cispo", "bypass_mode"}
_ONE_RATIO_PER_SEQUENCE = {"gspo", "geo_mean"}
_TOKEN_LEVEL_ESTIMATORS = {"gae", "optimal_token_baseline", "tir_optimal_token_baseline"}
_WEIGHTS = "credit_weights"
_SEEN = "credit_weight"  # the metric by which the workers tell that they use our loss

if not Version("0.9.1") <= Version(verl.__version__) < Version("0.10"):
    raise InputError(
        f"verl {verl.__version__} is not supported: expected 0.9.1 or a later 0.9, whose v1 trainer this "
        "plugin extends: pip install 'lambda-grpo[verl]'"
    )


@dataclass(frozen=True)
class LambdaSyncSettings:
    """The section `trainer.v1.lambda_sync` of verl's config.

    Attributes:
        credit: a key of `lambda_grpo.credit.CREDITS`, or a function of your own, `my_module:my_credit`.
        credit_kwargs: the credit's own parameters.
    """

    credit: str = "lambda_grpo"
    credit_kwargs: dict[str, Any] = field(default_factory=dict)


def read_settings(config: DictConfig) -> LambdaSyncSettings:
    """Our section of verl's config, after checking it and the rest of the config against it.

    Raises:
        InputError: an unknown key, credit or parameter, or something in verl's config that no credit fits.
    """
    section = OmegaConf.to_container(config.trainer.v1.get(MODE, None) or OmegaConf.create({}), resolve=True)
    for key in section:
        if key not in ("credit", "credit_kwargs"):
            raise unknown_name(f"key of trainer.v1.{MODE}", str(key), ["credit", "credit_kwargs"])
    settings = LambdaSyncSettings(**{key: value for key, value in section.items() if value is not None})
    tried = try_credit(settings.credit, settings.credit_kwargs)
    refuse_plan(settings.credit, "verl")
    estimator, loss = str(config.algorithm.adv_estimator), _loss_mode(config)
    if estimator in _TOKEN_LEVEL_ESTIMATORS:
        raise InputError(
            f"algorithm.adv_estimator={estimator} gives each token an advantage of its own; a credit needs "
            "one per rollout: choose grpo, or another estimator that looks at outcomes only"
        )
    if advantage_varies(tried) and loss in _ONE_RATIO_PER_SEQUENCE:
        raise InputError(
            f"credit {settings.credit!r} gives each token of a rollout an advantage of its own, so each "
            f"token needs a ratio of its own too: not policy_loss.loss_mode={loss}. "
            "Choose loss_mode=vanilla, or credit lambda_grpo or grpo"
        )
    if is_distillation_enabled(config.get("distillation")):
        raise InputError(
            "distillation.enabled=true trains with verl's distillation loss, whose terms no credit weights: "
            "switch it off, or use trainer.v1.trainer_mode=sync"
        )
    return settings


def _loss_mode(config: DictConfig) -> str:
    return str(config.actor_rollout_ref.actor.policy_loss.get("loss_mode", "vanilla"))


def _product_is_exact(config: DictConfig) -> bool:
    actor = config.actor_rollout_ref.actor
    has_kl_term = actor.use_kl_loss and actor.kl_loss_coef != 0
    return _loss_mode(config) in PRODUCT_IS_EXACT and not has_kl_term


@register_trainer(MODE)
class LambdaSyncTrainer(PPOTrainerSync):
    """verl's `PPOTrainerSync`, whose tokens get the credit that `trainer.v1.lambda_sync.credit` names.

    Logs beside verl's metrics `tree/path_depth`, `tree/intermediate_proportion`, `tree/shared_tokens` (share
    of the policy's tokens with |λ| > 1), `tree/flat_groups` and `credit/mean_weight`.
    """

    def __init__(self, config: DictConfig) -> None:
        self._settings = read_settings(config)
        self._weights_in_loss = not _product_is_exact(config)
        with open_dict(config):  # verl logs the config: leave in it what was resolved
            config.trainer.v1[MODE] = asdict(self._settings)
            # verl compares the name with "sync": any other would get the asynchronous replay buffer.
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def on_init_end(self) -> None:
        super().on_init_end()
        if self._weights_in_loss:
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            self.actor_rollout_wg.set_loss_fn(partial(weighted_ppo_loss, config=actor))

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        groups = _group_ids(batch)
        batch = super()._compute_advantage(batch, metrics)
        names = ["prompts", "responses", "response_mask", "rm_scores", "advantages"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        columns = {name: [row.numpy() for row in data[name].unbind()] for name in names}
        real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        rows = _rows([batch.keys[i] for i in real], [groups[i] for i in real], _select(columns, real))
        credit = partial(get_credit(self._settings.credit), **self._settings.credit_kwargs)
        credits, means = credit_rows(rows, credit)
        metrics.update(means)

        fields = {"advantages": columns["advantages"]}
        if self._weights_in_loss:
            fields[_WEIGHTS] = [np.zeros(len(row), np.float32) for row in columns["advantages"]]
        for i, result in zip(real, credits, strict=True):
            response = slice(len(columns["prompts"][i]), None)
            if self._weights_in_loss:
                fields["advantages"][i] = result.advantage[response]
                fields[_WEIGHTS][i] = result.weight[response]
            else:
                fields["advantages"][i] = result.weighted[response]
        nested = {name: _nested(values) for name, values in fields.items()}
        output = TensorDict(nested, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=output)

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._update_actor(batch, metrics)
        if self._weights_in_loss and f"actor/{_SEEN}" not in metrics:
            raise LambdaGRPOError(
                "the workers trained with another loss than ours, so the credit had no effect: their worker "
                "class does not take set_loss_fn. Without KL term (actor.use_kl_loss=false) and with "
                "policy_loss.loss_mode=vanilla none is needed"
            )
        return batch


def _group_ids(batch: Any) -> list[str]:
    """Each row's group: the uid of its prompt."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["uid"])
    if "uid" not in data:
        raise InputError(
            f"the batch has no field uid, by which rollouts of one prompt are known (first row: "
            f"{batch.keys[0]}): an agent loop of your own must pass on the uid that it is given"
        )
    return [str(uid) for uid in data["uid"]]


def _select(columns: dict[str, list[np.ndarray]], rows: list[int]) -> dict[str, list[np.ndarray]]:
    return {name: [column[i] for i in rows] for name, column in columns.items()}


def _rows(keys: list[str], groups: list[str], columns: dict[str, list[np.ndarray]]) -> list[Row]:
    """The batch's rows, each with its rollout's advantage, which is verl's."""
    rollouts = []
    for key in keys:
        parts = key.rsplit("_", 2)
        if len(parts) != 3:
            raise InputError(
                f"row {key!r}: expected a key {{uid}}_{{session}}_{{index}}, as verl's agent loops make"
            )
        rollouts.append(parts[0] + "_" + parts[1])
    masks = [row > 0 for row in columns["response_mask"]]
    advantages = _rollout_advantages(keys, rollouts, masks, columns["advantages"])
    by_index = sorted(range(len(keys)), key=lambda i: int(keys[i].rsplit("_", 1)[1]))
    rewards = {
        rollouts[i]: float(columns["rm_scores"][i].sum()) for i in by_index
    }  # its last row's, as verl's
    return [
        Row(
            group=groups[i],
            rollout=rollouts[i],
            ids=np.concatenate([columns["prompts"][i], columns["responses"][i]]),
            mask=np.concatenate([np.zeros(len(columns["prompts"][i]), bool), masks[i]]),
            reward=rewards[rollouts[i]],
            advantage=advantages[rollouts[i]],
        )
        for i in range(len(keys))
    ]


def _rollout_advantages(
    keys: list[str], rollouts: list[str], masks: list[np.ndarray], advantages: list[np.ndarray]
) -> dict[str, float]:
    """The one advantage of each rollout: that of all its policy tokens; 0 if it has none."""
    found = dict.fromkeys(rollouts, 0.0)
    seen = set()
    for key, rollout, mask, row in zip(keys, rollouts, masks, advantages, strict=True):
        values = row[mask]
        if not len(values):
            continue
        if rollout not in seen:
            seen.add(rollout)
            found[rollout] = float(values[0])
        if not np.allclose(values, found[rollout], rtol=1e-5, atol=1e-6):
            other = values[np.argmax(np.abs(values - found[rollout]))]
            raise InputError(
                f"row {key!r}: its rollout has advantages {found[rollout]:g} and {other:g}, expected one for "
                "all its tokens: set algorithm.adv_estimator=grpo, or another that looks at outcomes only"
            )
    return found


def _nested(rows: list[np.ndarray]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def weighted_ppo_loss(config: Any, model_output: Any, data: TensorDict, dp_group: Any = None) -> Any:
    """verl's `ppo_loss`, the gradient that flows into each token's log-prob scaled by its weight.

    Arguments and result are those of `verl.workers.utils.losses.ppo_loss`; `data` has the weights, jagged
    (B, responses), beside its other fields.

    Raises:
        InputError: a batch without weights.
    """
    if _WEIGHTS not in data:
        raise InputError(f"the batch has no field {_WEIGHTS}: this loss needs trainer.v1.trainer_mode={MODE}")
    logps = model_output["log_probs"]
    flat = (logps.values() if logps.is_nested else logps).clone()
    weights = data[_WEIGHTS].to_padded_tensor(0.0).to(flat)
    # Where each response token's log-prob lies in `flat`, by verl's own reckoning; 0 is past the end.
    places = torch.arange(1, len(flat) + 1, device=flat.device)
    places = no_padding_2_padding(places, data)[:, : weights.shape[1]]
    factor = flat.new_ones(len(flat) + 1)
    factor[places] = weights
    if flat.requires_grad:
        flat.register_hook(lambda grad: grad * factor[1:])
    loss, metrics = ppo_loss(config, {**model_output, "log_probs": flat}, data, dp_group)
    metrics[_SEEN] = float(weights.sum() / data["response_mask"].values().sum().clamp(min=1))
    return loss, metrics
