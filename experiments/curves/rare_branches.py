"""Two tasks on the prompts of `thinking-sums` in which right answers are few and rare among their siblings.

What the embedded policy does at the start: it thinks in 40% of its completions, and otherwise answers
directly (`.22`), spread over about four to either side of the total.
"""

import re

from lambda_grpo.tasks import Problem, ThinkingSums

_DIRECT = re.compile(r"\.(\d{1,9})", re.ASCII)


class HeadSums(ThinkingSums):
    """Anti-exploration: the right total at once earns 1, found by thinking 0.3; everything else 0.

    At the start 8% are right at once and 32% by thinking: the frequent good branch may crowd out the better.
    """

    def score(self, problem: Problem, completion: str) -> float:
        right = super().score(problem, completion)
        return right if _DIRECT.fullmatch(completion) else 0.3 * right


class Overshoot(ThinkingSums):
    """Anti-exploitation: a direct answer 5 or more too high earns 1, any other −0.5; thinking earns 0.

    At the start 2% are right. They share the first token, and often the next, with nine bad siblings each.
    """

    def score(self, problem: Problem, completion: str) -> float:
        match = _DIRECT.fullmatch(completion)
        if match is None:
            return -0.5 if completion.startswith(".") else 0.0
        return 1.0 if int(match[1]) >= problem.answer + 5 else -0.5
