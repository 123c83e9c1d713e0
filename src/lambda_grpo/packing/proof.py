"""Whether packed rows give what plain rows give on the device in use: log-probs, and a few gradients.

Three passes run over the same rows: plain, packed, and exact. The exact pass runs each row on its own,
without padding, in float32. Errors are root mean squares, and those of gradients are relative to the exact
gradient. Packing is right if

    error(packed) ≤ 2 · error(plain) + what float32 rounds.

So 16-bit weights, autocast and TF32 are judged by what they do to plain rows. If there is no room for a copy
of 16-bit weights in float32, packed rows are compared with plain ones, and a fixed difference is allowed.

R is the number of rows, T of their completions' tokens.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FACTOR = 2.0
_FLOAT32 = (2e-4, 2e-3)  # rounding of log-probs, and of gradients relative to their size
_NARROW = (0.1, 0.3)  # the same of 16 bits, where no exact pass tells
_MOST_GRADIENTS = 6
_LARGEST_GRADIENT = 2**24  # numbers

Score = Callable[[], Tensor]


@dataclass(frozen=True)
class PaddedRows:
    """A trainer's padded rows.

    Attributes:
        ids, mask: (R, L), prompts padded on the left, completions on the right.
        width: the last columns are the completions'.
    """

    ids: Tensor
    mask: Tensor
    width: int

    @property
    def real(self) -> Tensor:
        """(R, width) bool, the completions' tokens."""
        return self.mask[:, -self.width :].bool()

    def answered(self) -> "PaddedRows":
        """The rows whose completion has a token."""
        some = self.real.any(dim=1)
        return PaddedRows(self.ids[some], self.mask[some], self.width)

    def first(self, count: int) -> "PaddedRows":
        """The first rows."""
        return PaddedRows(self.ids[:count], self.mask[:count], self.width)

    def alone(self) -> Iterator[tuple[Tensor, int]]:
        """Each row without padding, and the length of its completion."""
        for ids, mask, real in zip(self.ids, self.mask.bool(), self.real, strict=True):
            yield ids[mask], int(real.sum())


@dataclass(frozen=True)
class Outcome:
    """What a pass gave.

    Attributes:
        logps: those of real tokens, float32 at least.
        gradients: of a fixed combination of them, one tensor per parameter; none where weights are sharded.
    """

    logps: Tensor
    gradients: list[Tensor]

    def error(self, exact: "Outcome") -> tuple[float, float]:
        """Root mean square of the log-probs' difference; the gradients', relative to the exact gradient."""
        off = (self.logps - exact.logps.to(self.logps.device)).double().square().mean().sqrt()
        if not self.gradients:
            return float(off), 0.0
        pairs = list(zip(self.gradients, exact.gradients, strict=True))
        wrong = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
        size = sum(float(b.double().square().sum()) for _, b in pairs)
        return float(off), float((wrong / max(size, 1e-30)) ** 0.5)


@dataclass(frozen=True)
class Proof:
    """Errors of log-probs and of gradients, and those allowed."""

    packed: tuple[float, float]
    plain: tuple[float, float]
    allowed: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether packed rows are right; NaN is not."""
        return all(found <= limit for found, limit in zip(self.packed, self.allowed, strict=True))

    def __str__(self) -> str:
        (logps, grads), (own, own_grads), (limit, limit_grads) = self.packed, self.plain, self.allowed
        return (
            f"packed log-probs are {logps:.2g} off (plain rows {own:.2g}, allowed {limit:.2g}), gradients "
            f"{grads:.2g} of their size (plain rows {own_grads:.2g}, allowed {limit_grads:.2g})"
        )


def prove(plain: Outcome, packed: Outcome, exact: Outcome | None) -> Proof:
    """Compare.

    Args:
        plain, packed: as the run computes.
        exact: the plain pass in float32. None: there is none; packed is then compared with plain.
    """
    if exact is None:
        return Proof(packed.error(plain), (0.0, 0.0), _NARROW)
    own = plain.error(exact)
    low, high = (_FACTOR * error + floor for error, floor in zip(own, _FLOAT32, strict=True))
    return Proof(packed.error(exact), own, (low, high))


def outcome(score: Score, real: Tensor, parameters: Sequence[Tensor]) -> Outcome:
    """Run a pass, backward included.

    Args:
        score: gives (R, T) log-probs.
        real: (R, T) bool, the tokens that count.
        parameters: to differentiate by; none, or none that the pass depends on: no backward.
    """
    with torch.set_grad_enabled(bool(parameters)):
        logps = score()[real]
        logps = logps.to(torch.promote_types(logps.dtype, torch.float32))
        if not logps.requires_grad:
            return Outcome(logps, [])
        loss = (logps * _weights(len(logps), logps)).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    return Outcome(logps.detach(), [g.float() for g in gradients])


def exact_outcome(model: Any, rows: "PaddedRows", temperature: float, names: Sequence[str]) -> Outcome | None:
    """Each row on its own, in float32; None if there is no room for a float32 copy of 16-bit weights.

    Args:
        model: a transformers model, unwrapped. Its class's forward runs, so no wrapper changes the precision.
        names: parameters to differentiate by.
    """
    wide = exact_copy(model)
    if wide is None:
        return None
    parameters = parameters_of(wide, names)
    logps: list[Tensor] = []
    total: list[Tensor] = [torch.zeros_like(p) for p in parameters]
    count = int(rows.real.sum())
    with torch.set_grad_enabled(bool(parameters)), exact_products(rows.ids.device), exact_attention(wide):
        for ids, completion in rows.answered().alone():
            output = type(wide).forward(wide, input_ids=ids[None], use_cache=False)
            scores = (output.logits[0, -completion - 1 : -1].float() / temperature).log_softmax(-1)
            found = scores.gather(-1, ids[-completion:, None])[:, 0]
            if parameters:
                weights = _weights(count, found)[sum(map(len, logps)) :][:completion]
                grads = torch.autograd.grad((found * weights).sum() / count, parameters, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, grads, strict=True)]
            logps.append(found.detach())
    return Outcome(torch.cat(logps), total)


@contextmanager
def exact_attention(model: Any) -> Iterator[None]:
    """Flash attention knows no float32, so another takes its place inside."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        if "flash" in str(model.config._attn_implementation):
            capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
            model.set_attn_implementation("eager" if capped else "sdpa")
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def _weights(count: int, like: Tensor) -> Tensor:
    return torch.cos(torch.arange(count, device=like.device, dtype=like.dtype))


def some_parameters(model: Any) -> list[str]:
    """Names of a few trained parameters, from the first layers to the last."""
    names = [n for n, p in model.named_parameters() if p.requires_grad and p.numel() <= _LARGEST_GRADIENT]
    step = max(1, (len(names) - 1) / (_MOST_GRADIENTS - 1))
    return [names[round(i * step)] for i in range(min(len(names), _MOST_GRADIENTS))]


def parameters_of(model: Any, names: Sequence[str]) -> list[Tensor]:
    """The parameters so named."""
    found = dict(model.named_parameters())
    return [found[name] for name in names]


def exact_copy(model: Any) -> Any:
    """The model itself, if its weights are float32 or wider; a float32 copy; None without room for one."""
    narrow = [p for p in model.parameters() if p.dtype.itemsize < 4]
    if not narrow:
        return model
    if not all(p.dtype.is_floating_point for p in narrow):
        return None  # quantised
    device = narrow[0].device
    needed = 8 * sum(p.numel() for p in model.parameters())  # the copy in 16 bits, then in 32, with some room
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < needed:
        return None
    return copy.deepcopy(model).float()


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Inside, matrix products are float32's own: no autocast, no TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """What is drawn inside does not change what is drawn later."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield
