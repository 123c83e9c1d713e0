"""Packed rows through wrappers for several processes: the gradients of both processes' groups, averaged."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_groups import GROUPS, gradients, loss_of, packed_of
from tiny_models import make_model
from torch import distributed

from lambda_grpo.packing import tree_logps


def wrapped(model: Any, kind: str) -> Any:
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    mesh = distributed.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        distributed.fsdp.fully_shard(layer, mesh=mesh)
    return distributed.fsdp.fully_shard(model, mesh=mesh)


def work(rank: int, store: str, kind: str) -> None:
    patience = timedelta(seconds=120)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=patience)
    parts, alone = [GROUPS[:1], GROUPS[1:]], make_model("qwen3")
    both = [gradients(alone, tree_logps(alone, packed_of(part))) for part in parts]
    model = make_model("qwen3")
    wrapper = wrapped(model, kind)
    for _ in range(2):  # the second step shows that the first left everything in order
        model.zero_grad()
        loss_of(tree_logps(wrapper, packed_of(parts[rank]))).backward()
    for parameter, one, other in zip(model.parameters(), *both, strict=True):
        grad: Any = parameter.grad
        found = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        assert (found - (one + other) / 2).abs().max() < 1e-10
    distributed.barrier()
    os._exit(0)  # taking a gloo group down can wait for ever: one thread joins another that waits for the GIL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(tmp_path: Path, kind: str) -> None:
    torch.multiprocessing.spawn(work, args=(str(tmp_path / "store"), kind), nprocs=2)
