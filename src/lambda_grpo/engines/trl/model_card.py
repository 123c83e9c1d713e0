"""The part of TRL's model card that is ours: the credit, its settings, what it did in this run, the evidence.

TRL writes the card (`README.md` of the output folder) and says how the model was trained. `card_with_credit`
puts a section into that text. It names a credit of the user's own without its path, because a card is public.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import lambda_grpo
from lambda_grpo.credit import CREDITS

SETTINGS = (
    "credit_kwargs", "loss_type", "beta", "importance_sampling_level", "num_generations", "temperature",
    "max_completion_length", "learning_rate", "tree_packing", "sampler", "branch_depths", "branch_factors",
)  # fmt: skip
SEEN = {
    "tree/shared_tokens": "share of tokens that several completions have in common",
    "credit/mean_weight": "mean weight of a token (1 in GRPO)",
}
EVIDENCE = (
    "In lambda-grpo's own experiments, all with small models, λ-GRPO was ahead of GRPO on a toy tree, and "
    "ahead, level or behind on small tasks, so a gain is not certain. Its documentation lists every result "
    "(`docs/reproduction.md`). The paper reports gains in three of its four settings, at 1 and 1.5 billion "
    "parameters."
)
CITATION = """\
Cite λ-GRPO and the process trees as:

```bibtex
@misc{sullivan2025grpo,
    title         = {{GRPO is Secretly a Process Reward Model}},
    author        = {Michael Sullivan and Alexander Koller},
    year          = 2025,
    eprint        = {2509.21154},
    archivePrefix = {arXiv},
}
```
"""
_VERSIONS = "### Framework versions\n\n"
_CITATIONS = "Cite TRL as:"


def card_with_credit(card: str, config: Any, history: Sequence[Mapping[str, Any]]) -> str:
    """TRL's card with a section on the credit, our version and the paper's citation.

    Args:
        card: the text of TRL's card. If TRL changes its headings, our parts come at its end.
        config: a `LambdaGRPOConfig`.
        history: what the run has logged, `trainer.state.log_history`.
    """
    version = f"- lambda-grpo: {lambda_grpo.__version__}\n"
    card = _put_before(card, _VERSIONS, f"{_credit_section(config, history)}\n")
    card = card.replace(_VERSIONS, _VERSIONS + version) if _VERSIONS in card else f"{card}\n{version}"
    return _put_before(card, _CITATIONS, f"{CITATION}\n")


def _put_before(card: str, heading: str, part: str) -> str:
    start, found, rest = card.rpartition(heading)
    return f"{start}{part}{found}{rest}" if found else f"{card.rstrip()}\n\n{part}"


def _credit_section(config: Any, history: Sequence[Mapping[str, Any]]) -> str:
    credit = config.credit.rpartition(":")[2]
    paper = paper_of(config.credit)
    source = f" ([arXiv {paper}](https://huggingface.co/papers/{paper}))" if paper else ""
    if ":" in config.credit:
        source = ", a function of its author's own"
    values = {name: getattr(config, name) for name in SETTINGS}
    settings = "".join(f"{name}: {_plain(value)}\n" for name, value in values.items() if value is not None)
    return (
        f"### Credit\n\nThe credit `{credit}`{source} gave each token its advantage and its weight in the "
        "loss. lambda-grpo's `LambdaGRPOTrainer` computed both from the steps that completions of a prompt "
        "share.\n\n"
        f"```yaml\ncredit: {credit}\n{settings}```\n\n{_seen(history)}{EVIDENCE}\n"
    )


def paper_of(credit: str) -> str:
    """The first paper on arXiv that a registered credit's docstring names; "" if there is none."""
    named = re.search(r"arXiv (\d{4}\.\d{5})", getattr(CREDITS.get(credit), "__doc__", None) or "")
    return named[1] if named else ""


def _seen(history: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on what the trees of this run were like; empty if nothing was logged yet."""
    parts = []
    for name, meaning in SEEN.items():
        values = [line[name] for line in history if line.get(name) is not None]
        if values:
            parts.append(f"{meaning} {sum(values) / len(values):.3f}")
    return f"Means over the logged steps of this run: {', '.join(parts)}.\n\n" if parts else ""


def _plain(value: Any) -> str:
    """As JSON, which holds no line break and so cannot end the fence."""
    return json.dumps(value, default=str, ensure_ascii=False)
