"""λ-GRPO in a training loop of your own: sample, tree, credit, loss, step. Needs torch and transformers only.

python examples/own_loop.py                      the embedded policy, pre-trained first: about a minute
python examples/own_loop.py MODEL --steps 200    any causal language model: a local folder or a Hub id
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lambda_grpo import ProcessTree, credit
from lambda_grpo.logps import completion_logps
from lambda_grpo.loss import Objective, TokenBatch, policy_loss
from lambda_grpo.policy import embedded_policy, load_policy
from lambda_grpo.tasks import get_task

TASK = "thinking-sums"
PROMPTS = 8  # per step
GROUP_SIZE = 16  # completions per prompt
MAX_NEW_TOKENS = 16
LEARNING_RATE = 1e-4
OBJECTIVE = Objective(normalisation="dapo")

Rows = list[list[int]]  # token ids without padding


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: int) -> Iterator[float]:
    """Train the model in place; yields each step's mean reward."""
    task = get_task(TASK)
    problems = task.problems("train", steps * PROMPTS, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    model.eval()  # no dropout: the policy that learns is the one that sampled
    for step in range(steps):
        # Sample: GROUP_SIZE completions of each prompt, group after group.
        batch = [problem for problem in problems[step * PROMPTS :][:PROMPTS] for _ in range(GROUP_SIZE)]
        prompts, completions = sample(model, tokenizer, [problem.prompt for problem in batch])
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        scores = [task.score(problem, text) or 0.0 for problem, text in zip(batch, texts, strict=True)]
        rewards = np.reshape(scores, (PROMPTS, GROUP_SIZE))

        # Tree, one per group; credit: an advantage and a weight for each token.
        trees = ProcessTree.build_many(completions, [row // GROUP_SIZE for row in range(len(batch))])
        credits = [credit.lambda_grpo(tree, group) for tree, group in zip(trees, rewards, strict=True)]
        tokens = TokenBatch.from_credits(trees, credits)

        # Loss. For several updates per batch, or a KL term, compute old or reference log-probs under no_grad
        # first, and add them with dataclasses.replace(tokens, old_logps=..., ref_logps=...).
        logps = completion_logps(model, prompts, completions)
        loss = policy_loss(logps, tokens, OBJECTIVE)

        # Step.
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield float(rewards.mean())


@torch.no_grad()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> tuple[Rows, Rows]:
    """The token ids of each prompt and of one completion of it, its end token included."""
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
    prompt_ids, prompt_mask = batch["input_ids"], batch["attention_mask"]
    sequences = model.generate(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_k=0,  # with top_k or top_p it would be another policy that samples than the one that learns
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    completion_ids = sequences[:, prompt_ids.shape[1] :]
    ended = (completion_ids == tokenizer.eos_token_id).int()
    completion_mask = ended.cumsum(dim=1) - ended == 0  # up to the first end token; padding may equal it
    return without_padding(prompt_ids, prompt_mask.bool()), without_padding(completion_ids, completion_mask)


def without_padding(ids: torch.Tensor, mask: torch.Tensor) -> Rows:
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder or Hub id; default: the embedded policy")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()

    torch.manual_seed(0)
    model, tokenizer = load_policy(args.model or str(embedded_policy()), dtype=torch.float32)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for step, reward in enumerate(train(model, tokenizer, args.steps), start=1):
        print(f"step {step:3d}  reward {reward:.3f}", flush=True)


if __name__ == "__main__":
    main()
