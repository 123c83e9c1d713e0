"""The model card: what TRL writes, with the credit, its settings, the evidence and the citation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_trainers import make_trainer
from trl import GRPOTrainer

import lambda_grpo
from lambda_grpo.engines.trl import model_card

OWN_CREDIT = """\
from lambda_grpo import credit

def best_only(tree, rewards, *, advantages=None, mask=None):
    return credit.grpo(tree, rewards, advantages=advantages, mask=mask)
"""


def settings(card: str) -> dict[str, Any]:
    """What the card's YAML block says."""
    return yaml.safe_load(card.split("```yaml\n")[1].split("\n```\n")[0])


def test_a_checkpoint_has_the_card(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, credit="lambda_grpo", credit_kwargs={"power": 0.5}, save_strategy="steps", save_steps=2,
        max_steps=2, loss_type="bnpo",
    )  # fmt: skip
    trainer.train()
    card = (tmp_path / "README.md").read_text("utf-8")
    shown = settings(card)
    assert (shown["credit"], shown["credit_kwargs"]) == ("lambda_grpo", {"power": 0.5})
    assert (shown["loss_type"], shown["tree_packing"], shown["sampler"]) == ("bnpo", "off", "generate")
    assert "branch_depths" not in shown  # nothing forked
    assert f"- lambda-grpo: {lambda_grpo.__version__}\n- TRL: " in card
    assert "huggingface.co/papers/2509.21154" in card
    assert "eprint        = {2509.21154}" in card
    assert model_card.EVIDENCE in card
    tags = ModelCard.load(tmp_path / "README.md").data.tags
    assert {"trl", "grpo", "lambda-grpo"} <= set(tags)
    lines = [line for line in trainer.state.log_history if "tree/shared_tokens" in line]
    assert lines
    shared = sum(line["tree/shared_tokens"] for line in lines) / len(lines)
    assert f"in common {shared:.3f}" in card


def test_trls_card_is_whole(tmp_path: Path) -> None:
    """Nothing of what TRL writes is lost or changed: ours is inserted."""
    trainer = make_trainer(tmp_path)
    GRPOTrainer.create_model_card(trainer, model_name="tiny")
    theirs = (tmp_path / "README.md").read_text("utf-8").splitlines()
    trainer.create_model_card(model_name="tiny")
    ours = iter((tmp_path / "README.md").read_text("utf-8").splitlines())
    assert "Cite TRL as:" in theirs
    fixed = [line for line in theirs if not line.startswith("- ")]  # tags come in any order
    assert all(line in ours for line in fixed)  # `in` goes on from where it stopped: the order is kept


def test_where_our_parts_come(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text("utf-8")
    parts = [
        "## Training procedure",
        "### Credit",
        "### Framework versions",
        "- lambda-grpo:",
        "## Citations",
    ]
    parts += ["@article{shao2024deepseekmath", "sullivan2025grpo", "@software{vonwerra2020trl"]
    places = [card.index(part) for part in parts]
    assert places == sorted(places)
    assert "Means over the logged steps" not in card  # nothing was logged yet


def test_a_credit_of_the_users_own_is_named_without_its_path(tmp_path: Path) -> None:
    file = tmp_path / "my_credit.py"
    file.write_text(OWN_CREDIT)
    trainer = make_trainer(tmp_path / "out", credit=f"{file}:best_only")
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert settings(card)["credit"] == "best_only"
    assert str(tmp_path) not in card
    assert "a function of its author's own" in card


def test_a_card_without_trls_headings_still_gets_ours() -> None:
    values = dict.fromkeys(model_card.SETTINGS) | {"credit": "grpo", "credit_kwargs": {"note": "a\n```\nb"}}
    card = model_card.card_with_credit("# Card\n", SimpleNamespace(**values), [])
    assert settings(card)["credit_kwargs"] == {"note": "a\n```\nb"}
    assert card.startswith("# Card\n\n### Credit\n")
    assert "- lambda-grpo: " in card
    assert card.rstrip().endswith("```")
    assert "sullivan2025grpo" in card


@pytest.mark.parametrize("name", ["grpo", "process", "lambda_grpo", "tempo", "vineppo", "treepo"])
def test_a_credits_paper_is_that_of_the_page(name: str) -> None:
    """docs/credits.md names the same source as the credit's docstring."""
    page = (Path(__file__).parents[2] / "docs" / "credits.md").read_text("utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` "))
    paper = model_card.paper_of(name)
    assert paper
    assert paper in row
    assert model_card.paper_of("branch") == model_card.paper_of("a_credit.py:own") == ""
