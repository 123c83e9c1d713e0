"""Tasks for tests of how a model is asked: words to spell, as texts or as chat messages, and with end strings."""

from typing import Any

from lambda_grpo.tasks import Problem, Split
from lambda_grpo.tasks.task import in_test_split

WORDS = [a + b + c for a in "abcdef" for b in "aeiou" for c in "lmnr"]


class Spell:
    """Spell a word. The reward is the share of its letters that come, if the problem is the task's own."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        prompts = [self.prompt(word) for word in WORDS if in_test_split(word) == (split == "test")]
        return [Problem(prompt, None) for prompt in (prompts * count)[:count]]

    def prompt(self, word: str) -> Any:
        return f"Spell {word}."

    def score(self, problem: Problem, completion: str) -> float:
        assert problem.prompt.startswith("Spell ")  # the task's own prompt, however it was asked
        return len(set(completion) & set(problem.prompt[6:9])) / 3

    def traits(self, completion: str) -> dict[str, float]:
        return {}


class SpellRaw(Spell):
    """The same as a text to be continued."""

    raw_text = True


class SpellTold(Spell):
    """The same as chat messages."""

    def prompt(self, word: str) -> Any:
        return [{"role": "user", "content": f"Spell {word}."}]

    def score(self, problem: Problem, completion: str) -> float:
        return len(set(completion)) / 10


class Line(Spell):
    """The same on one line: a newline ends it, and so does `ab`, which generation does not see."""

    stop = ("\n", "ab")

    def score(self, problem: Problem, completion: str) -> float:
        assert "\n" not in completion
        assert "ab" not in completion
        return super().score(problem, completion)

    def traits(self, completion: str) -> dict[str, float]:
        assert "\n" not in completion
        return {"empty": float(not completion)}
