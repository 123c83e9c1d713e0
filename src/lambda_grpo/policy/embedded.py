"""The embedded policy: a character-level Qwen2 model of about half a million parameters.

It is pre-trained on demonstrations of `thinking-sums` in about a minute on two cores, cached, and loaded like
any other model.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lambda_grpo.policy import cache, imitation
from lambda_grpo.policy.imitation import Pretraining, Progress, imitate
from lambda_grpo.tasks import thinking_sums

EMBEDDED = "embedded"
PRETRAINING = Pretraining()


def embedded_policy(progress: Progress | None = None) -> Path:
    """The folder of the embedded policy, pre-trained now if it is not in the cache.

    Args:
        progress: called as (step, steps, text with the loss) after each pre-training step.

    Raises:
        LambdaGRPOError: the cache cannot be written to.
    """
    recipe = PRETRAINING
    modules = thinking_sums.__file__, imitation.__file__, __file__
    source = "".join(Path(module).read_text() for module in modules)
    key = hashlib.sha256(f"{source} {asdict(recipe)}".encode()).hexdigest()[:12]

    def make(aside: Path) -> None:
        model, tokenizer = _pretrain(recipe, progress)
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

    return cache.made_once(f"thinking-sums-{key}", make)


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character, `<pad>` and `<eos>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _pretrain(
    recipe: Pretraining, progress: Progress | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = character_tokenizer(thinking_sums.CHARACTERS)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )
        demonstrations = thinking_sums.demonstrations(recipe.steps * recipe.batch_size, recipe.seed)
        imitate(model, tokenizer, demonstrations, recipe, progress)
    return model, tokenizer
