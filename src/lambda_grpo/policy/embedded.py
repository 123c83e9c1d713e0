"""The embedded policy: a character-level Qwen2 model of about half a million parameters.

It is pre-trained on demonstrations of `thinking-sums` in about a minute on two cores, cached, and loaded like
any other model.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lambda_grpo.policy import cache
from lambda_grpo.tasks import thinking_sums

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Pretraining:
    """How the embedded policy is pre-trained; part of the cache's key."""

    steps: int = 800
    batch_size: int = 128
    learning_rate: float = 3e-3
    seed: int = 0


PRETRAINING = Pretraining()


def embedded_policy(progress: Callable[[int, int, str], None] | None = None) -> Path:
    """The folder of the embedded policy, pre-trained now if it is not in the cache.

    Args:
        progress: called as (step, steps, text with the loss) after each pre-training step.

    Raises:
        LambdaGRPOError: the cache cannot be written to.
    """
    recipe = PRETRAINING
    source = "".join(Path(module).read_text() for module in (thinking_sums.__file__, __file__))
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
    recipe: Pretraining, progress: Callable[[int, int, str], None] | None
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
        _imitate(model, *_examples(recipe, tokenizer), recipe, progress)
    return model.eval(), tokenizer


def _examples(recipe: Pretraining, tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Demonstrations as right-padded ids and labels, (steps × batch, T) each; prompts are unlabelled."""
    pairs = thinking_sums.demonstrations(recipe.steps * recipe.batch_size, recipe.seed)
    texts = [prompt + completion for prompt, completion in pairs]
    rows = tokenizer(texts)["input_ids"]
    width = max(map(len, rows)) + 1
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row) + 1] = torch.tensor([*row, tokenizer.eos_token_id])
        labels[i, len(prompt) : len(row) + 1] = ids[i, len(prompt) : len(row) + 1]
    return ids, labels


def _imitate(
    model: PreTrainedModel,
    ids: torch.Tensor,
    labels: torch.Tensor,
    recipe: Pretraining,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.05
    )
    model.train()
    batches = zip(ids.chunk(recipe.steps), labels.chunk(recipe.steps), strict=True)
    for step, (batch, targets) in enumerate(batches, 1):
        width = int((targets != -100).nonzero()[:, 1].max()) + 1  # right padding needs no mask
        loss = model(input_ids=batch[:, :width], labels=targets[:, :width]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, recipe.steps, f"loss {loss.item():.3f}")
