"""What a task is: problems, their scores, and named numbers about a completion."""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol

from lambda_grpo.errors import InputError, LambdaGRPOError, failure

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Problem:
    """One prompt and what its task needs to score an answer.

    Attributes:
        prompt: text, or a list of chat messages (`{"role": ..., "content": ...}`).
        answer: the task's own data, serialisable as JSON.
    """

    prompt: Any
    answer: Any


class Task(Protocol):
    """A source of problems with verifiable rewards.

    A task may also have these attributes; who reads them asks `getattr(task, NAME, DEFAULT)`:

    - `stop`, a tuple of texts, default `()`: the first of them that comes ends a completion. `train` and
      `eval` give `score` and `traits` what stood before it (`before_stop`). Generation ends at those of one
      ASCII character, a newline for example; at longer ones it goes on, and what follows is not scored.
    - `raw_text`, default False: the prompts are texts to be continued, such as worked examples. They are not
      asked as a chat, unless `chat: on` says so.
    """

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` problems; the same for the same seed. No prompt is in both splits.

        A test split that holds fewer is returned whole. A train split that holds fewer is gone through
        again, in a new order each time.
        """

    def score(self, problem: Problem, completion: str) -> float | None:
        """The reward of a completion; None if it cannot be scored."""

    def traits(self, completion: str) -> Mapping[str, float]:
        """Named numbers about a completion, reported as means; often none."""


def draw_problems(task: Task, split: Split, count: int, seed: int) -> list[Problem]:
    """What `task.problems` returns, checked to be problems, at least one.

    Raises:
        LambdaGRPOError: the task raised something; the message says where.
        InputError: it returned something else.
    """
    call = f"task {type(task).__name__}: problems({split!r}, {count}, {seed})"
    try:
        found = task.problems(split, count, seed)
    except LambdaGRPOError:
        raise
    except Exception as error:
        raise LambdaGRPOError(f"{call} failed: {failure(error)}") from error
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise InputError(f"{call} returned a {type(found).__name__}, expected a list of Problem")
    if not found:
        raise InputError(f"{call} returned no problem, expected {count}")
    for i, problem in enumerate(found):
        if not isinstance(problem, Problem):
            raise InputError(f"{call} returned a {type(problem).__name__} as #{i}, expected a Problem")
    return list(found)


def score(task: Task, problem: Problem, completion: str) -> float | None:
    """The score that `task.score` gives a completion, checked to be a finite number or None.

    Raises:
        LambdaGRPOError: the task raised something; the message says where.
        InputError: it returned something else.
    """
    try:
        reward = task.score(problem, completion)
    except LambdaGRPOError:
        raise
    except Exception as error:
        raise LambdaGRPOError(
            f"the task failed to score {completion!r} in answer to {problem.prompt!r}: {failure(error)}"
        ) from error
    if reward is None or (isinstance(reward, Real) and math.isfinite(reward)):
        return reward
    raise InputError(
        f"the task scored {completion!r} in answer to {problem.prompt!r} with {reward!r}: expected a finite "
        "number, or None for what cannot be scored"
    )


def stop_texts(task: Task) -> tuple[str, ...]:
    """The texts that end a completion of the task, its `stop`.

    Raises:
        InputError: one text alone, whose characters would each end a completion; an empty one, which would
            end every completion at once; something else.
    """
    given = getattr(task, "stop", ())
    texts = given if isinstance(given, Sequence) and not isinstance(given, str) else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise InputError(
            f"stop of the task {type(task).__name__}: got {given!r}, expected a tuple of texts, none of them "
            "empty, such as ('\\n',)"
        )
    return tuple(texts)


def before_stop(completion: str, stop: Sequence[str]) -> str:
    """The part of a completion before the first stop text; all of it if it holds none.

    >>> before_stop(" 7\\n\\nQuestion:", ("\\n",)), before_stop("a.b!", ("!", ".")), before_stop(" 7", ("!",))
    (' 7', 'a', ' 7')
    """
    return completion[: min((at for text in stop if (at := completion.find(text)) >= 0), default=None)]


def prompt_key(prompt: Any) -> str:
    """The same text for equal prompts, texts or chat messages.

    >>> prompt_key([{"role": "user", "content": "1+1="}]) == prompt_key([{"content": "1+1=", "role": "user"}])
    True
    """
    return json.dumps(prompt, sort_keys=True)


def in_test_split(prompt: Any, one_in: int = 8) -> bool:
    """Whether a prompt (text or chat messages) belongs to the test split: one in `one_in` does, by checksum.

    The prompt alone decides, so no prompt is in both splits, whatever the seeds and the counts.

    >>> [n for n in range(40) if in_test_split(f"{n}+1=")]
    [4, 8, 10, 20, 30]
    """
    text = prompt if isinstance(prompt, str) else prompt_key(prompt)
    return zlib.crc32(text.encode(errors="surrogatepass")) % one_in == 0
