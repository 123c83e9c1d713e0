"""What goes to the device while rows are sampled."""

import pytest
import torch
from tiny_models import make_model

from lambda_grpo.sampling import sample, shared_prefix


def sent(monkeypatch: pytest.MonkeyPatch, tokens: int) -> int:
    """How many arrays become tensors while so many tokens are drawn and no row ends."""
    made = []
    own = torch.from_numpy
    with monkeypatch.context() as patched:
        patched.setattr(torch, "from_numpy", lambda array: made.append(array) or own(array))
        prompts = [[1, 2, 3], [1, 2, 3, 4, 5]]
        settings = {"num_completions": 2, "max_new_tokens": tokens, "eos_token_ids": []}
        sample(make_model("llama"), prompts, seed_or_generator=0, **settings)
    return len(made)


@pytest.mark.parametrize("shared", [False, True])
def test_a_token_sends_nothing(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """A GPU waits for each transfer; rows that go on need none."""
    if shared:
        monkeypatch.setattr(shared_prefix, "_WORTH_BYTES", {"cpu": 0})
    assert sent(monkeypatch, 20) == sent(monkeypatch, 10)
