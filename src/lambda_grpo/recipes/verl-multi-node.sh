#!/usr/bin/env bash
# λ-GRPO with verl 0.9.1 on several nodes. NOT run by us; docs/verl.md says what was tested, all of it on a CPU.
#
# On every node:   pip install 'lambda-grpo[verl]' and an inference engine (verl's docs), then
#                  python -m lambda_grpo.engines.verl.check
# On the head:     ray start --head --port 6379
# On the others:   ray start --address HEAD:6379
# On the head:     NODES=2 GPUS=8 MODEL=Qwen/Qwen2.5-7B-Instruct DATA=data/gsm8k bash verl-multi-node.sh
#                  (DATA has train.parquet and test.parquet in verl's format.) More settings are arguments:
#                  ... bash verl-multi-node.sh trainer.total_epochs=3
set -euo pipefail
: "${NODES:=2}" "${GPUS:=8}" "${MODEL:?a model}" "${DATA:?a folder with train.parquet and test.parquet}"

settings=(
    # λ-GRPO: verl's synchronous trainer with our weights. Plain GRPO is trainer_mode=sync.
    trainer.use_v1=true
    trainer.v1.trainer_mode=lambda_sync
    +trainer.v1.lambda_sync.credit=lambda_grpo
    algorithm.adv_estimator=grpo

    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/test.parquet"
    data.train_batch_size=512
    data.max_prompt_length=1024
    data.max_response_length=4096

    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.actor.optim.lr=1e-6
    actor_rollout_ref.actor.ppo_mini_batch_size=128
    actor_rollout_ref.actor.use_dynamic_bsz=true
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true
    actor_rollout_ref.ref.log_prob_use_dynamic_bsz=true
    actor_rollout_ref.actor.loss_agg_mode=token-mean
    actor_rollout_ref.actor.use_kl_loss=false # with true the weights also divide the KL term
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n=8

    trainer.nnodes="$NODES"
    trainer.n_gpus_per_node="$GPUS"
    trainer.project_name=lambda-grpo
    trainer.experiment_name=verl-multi-node
    trainer.test_freq=10
    trainer.save_freq=50
    trainer.rollout_data_dir=rollouts # `lambda-grpo report rollouts` reads it
)
exec python -m verl.trainer.main_ppo "${settings[@]}" "$@"
