"""The LM head in chunks: both ways agree, and sums over chunks are not rounded to 16 bits."""

from collections.abc import Callable

import pytest
import torch

from lambda_grpo.engines.trl.head_kernels import scores_by_trl
from lambda_grpo.packing import head as heads
from lambda_grpo.packing.head import Logits, token_scores

CAPPED = Logits(temperature=0.7, scale=1.3, softcap=5.0)
Scores = Callable[[torch.nn.Linear, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_case(
    bias: bool, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 300, bias=bias)
    hidden, target = torch.randn(23, 16), torch.randint(300, (23,))
    return head.to(device, dtype), hidden.to(device, dtype).requires_grad_(), target.to(device)


def values_and_gradients(
    case: tuple[torch.nn.Linear, torch.Tensor, torch.Tensor], way: Scores
) -> list[torch.Tensor]:
    head, hidden, target = case
    logps, entropies = way(head, hidden, target)
    weights = torch.linspace(-1, 1, len(target), device=hidden.device)
    loss = (logps * weights).sum() + (entropies * weights**2).sum()
    return [logps, entropies, *torch.autograd.grad(loss, [hidden, *head.parameters()])]


@pytest.mark.parametrize("logits", [Logits(), CAPPED])
@pytest.mark.parametrize("bias", [False, True])
def test_trls_kernels_say_the_same(logits: Logits, bias: bool) -> None:
    ours = values_and_gradients(make_case(bias), lambda *case: token_scores(*case, logits, rows=7))
    trls = values_and_gradients(make_case(bias), lambda *case: scores_by_trl(*case, logits))
    for a, b in zip(ours, trls, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max().clamp(min=1)


def test_the_trainer_brings_them() -> None:
    assert heads._kernels == [scores_by_trl]


@pytest.mark.gpu
@pytest.mark.parametrize("logits", [Logits(), CAPPED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_device(dtype: torch.dtype, logits: Logits) -> None:  # pragma: no cover
    exact = values_and_gradients(make_case(True), lambda *case: token_scores(*case, logits, rows=7))
    found = values_and_gradients(make_case(True, dtype, "cuda"), lambda *case: token_scores(*case, logits, 7))
    for a, b in zip(found, exact, strict=True):
        off = (a.cpu().float() - b).norm() / b.norm()
        assert off < (1e-4 if dtype == torch.float32 else 0.03)


def test_a_gradient_in_16_bits_is_rounded_once() -> None:
    """The sum over many chunks is as near to the exact one as that of a single chunk."""
    errors = []
    for rows in (23, 1):
        head, hidden, target = make_case(False, torch.bfloat16)
        exact = [x.detach().double().requires_grad_() for x in (hidden, head.weight)]
        z = (exact[0] @ exact[1].T).log_softmax(-1)
        wanted = torch.autograd.grad(z[torch.arange(23), target].sum(), exact)[1]
        logps, _ = token_scores(head, hidden, target, Logits(), rows)
        found = torch.autograd.grad(logps.sum(), [head.weight])[0]
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert errors[1] < 1.05 * errors[0]
