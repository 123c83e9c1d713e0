"""λ-GRPO in the shape of TRL's own scripts: TRL's parser and model settings, with two names swapped.

    accelerate launch examples/trl_grpo.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \\
        --dataset_name trl-lib/DeepMath-103K --credit lambda_grpo --output_dir out

The data set has the columns `prompt` (chat messages) and `solution`; a local folder of JSONL files will do.
Needs `lambda-grpo[train,tasks]`.
"""

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config
from trl.rewards import accuracy_reward

from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer


def main(script_args: ScriptArguments, training_args: LambdaGRPOConfig, model_args: ModelConfig) -> None:
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)
    evaluates = training_args.eval_strategy != "no"
    trainer = LambdaGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=accuracy_reward,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, LambdaGRPOConfig, ModelConfig)).parse_args_and_config())
