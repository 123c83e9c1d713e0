"""What the language-model head adds to memory in an update: four ways over the same hidden states, on a CPU.

    TRL         TRL's fused head, as `GRPOTrainer` calls it: on CPUs it projects every position, prompts too
    kept        logits of the completions, whole, as `logits_to_keep` gives them
    Liger       `LigerFusedLinearGRPOLoss` in its usual chunks of one row; its plain-torch form runs on a CPU, so
                `liger-kernel` must be there, though nothing of Triton is used
    ours        the head of packed rows in plain PyTorch (on CUDA the trainer takes TRL's kernels instead), on the same
                completions, so nothing is shared

Only the head is measured: hidden states are given, the gradients of hidden states and of weights are made. Liger
computes its loss in the same call, and the others add GRPO's loss (no clipping bites, no KL) to their log-probs. `benchmarks/gpu.py` does the same on a GPU.

    OMP_NUM_THREADS=1 python benchmarks/head_memory.py
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timing import added_memory
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from lambda_grpo.packing.head import LinearScores, Logits, chunk_rows


@dataclass(frozen=True)
class HeadShape:
    """Rows, tokens of prompt and completion, width of the hidden states, size of the vocabulary."""

    rows: int
    prompt: int
    completion: int
    width: int
    vocabulary: int


SMOLLM2 = HeadShape(8, 64, 128, 576, 49_152)


class HeadCase:
    """A head of random weights, and what it gets."""

    def __init__(self, shape: HeadShape, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.head = torch.nn.Linear(shape.width, shape.vocabulary, bias=False).to(device, dtype)
        length = shape.prompt + shape.completion
        self.hidden = torch.randn(shape.rows, length, shape.width).to(device, dtype).requires_grad_()
        self.ids = torch.randint(shape.vocabulary, (shape.rows, shape.completion)).to(device)
        self.advantages = torch.randn(shape.rows).to(device)

    @property
    def predicting(self) -> torch.Tensor:
        """(rows, completion, width) hidden states that predict a token of a completion."""
        return self.hidden[:, -self.shape.completion - 1 : -1]

    def loss(self, logps: torch.Tensor) -> torch.Tensor:
        """GRPO's, of (rows, completion) log-probs; no ratio is clipped."""
        return -((logps - logps.detach()).exp() * self.advantages[:, None]).mean()


def with_trl(case: HeadCase) -> torch.Tensor:
    every = case.hidden.device.type == "cpu"
    labels, hidden = case.ids, case.predicting
    if every:
        prompts = labels.new_zeros(case.shape.rows, case.shape.prompt - 1)
        labels, hidden = torch.cat([prompts, labels], dim=1), case.hidden[:, :-1]
    found = ChunkedLogProbFunction.apply(
        hidden.reshape(-1, case.shape.width), case.head.weight, None, labels.reshape(-1), 1.0,
        _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy"),
    )  # fmt: skip
    return case.loss(found[0].view(case.shape.rows, -1)[:, -case.shape.completion :])


def kept(case: HeadCase) -> torch.Tensor:
    logits = case.head(case.predicting).float()
    return case.loss(logits.log_softmax(-1).gather(-1, case.ids[..., None])[..., 0])


def with_liger(case: HeadCase) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    compiled = case.hidden.is_cuda  # as it is by default
    score = LigerFusedLinearGRPOLoss(beta=0.0, compiled=compiled, use_ref_model=False, loss_type="bnpo")
    mask = torch.ones_like(case.ids)
    loss: torch.Tensor = score(case.predicting, case.head.weight, case.ids, mask, case.advantages)[0]
    return loss


def ours(case: HeadCase) -> torch.Tensor:
    hidden, chunk = case.predicting.reshape(-1, case.shape.width), chunk_rows(case.shape.vocabulary)
    logps, _ = LinearScores.apply(hidden, case.head.weight, None, case.ids.reshape(-1), Logits(), chunk)
    return case.loss(logps.view(case.shape.rows, -1))


WAYS: dict[str, Callable[[HeadCase], torch.Tensor]] = {
    "TRL": with_trl,
    "kept": kept,
    "Liger": with_liger,
    "ours": ours,
}


def compare_heads(shape: HeadShape, device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Of each way: seconds, megabytes at the peak, and how far the weight's gradient is from TRL's."""
    trls: Any = None
    for name, way in WAYS.items():
        case = HeadCase(shape, device, dtype)
        case.head(case.hidden[0, :1]).sum().backward()  # what a library needs once
        try:
            if device.type == "cuda":
                way(case).backward()  # compiles
            seconds, megabytes = _measured(case, way)
        except ImportError as missing:
            yield {"way": name, "skipped": f"liger-kernel is not installed ({missing})"}
            continue
        found: Any = case.head.weight.grad
        trls = found if trls is None else trls
        off = float((found - trls).float().norm() / trls.float().norm())
        yield {"way": name, "seconds": seconds, "megabytes": megabytes, "off": off}


def _measured(case: HeadCase, way: Callable[[HeadCase], torch.Tensor]) -> tuple[float, float]:
    case.head.zero_grad(set_to_none=True)
    case.hidden.grad = None

    def update() -> float:
        cpu = case.hidden.device.type == "cpu"
        started = time.process_time() if cpu else time.perf_counter()
        way(case).backward()
        if not cpu:
            torch.cuda.synchronize()
        return (time.process_time() if cpu else time.perf_counter()) - started

    if case.hidden.device.type == "cpu":
        return added_memory(update)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = update()
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20


def line(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['way']:<6} skipped: {row['skipped']}"
    return f"{row['way']:<6} {row['megabytes']:>6,.0f} MB, {row['seconds']:.2f} s; gradient {row['off']:.1e} from TRL's"


def main() -> None:
    print(SMOLLM2)
    for row in compare_heads(SMOLLM2, torch.device("cpu"), torch.float32):
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
