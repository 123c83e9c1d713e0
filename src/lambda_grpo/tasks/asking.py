"""How a model is asked: one value for training, for validation, and for the table before → after.

`PromptFormat` says what is wanted, `Asked` is a task as one model is asked it. Training and evaluation take
their prompts, their end tokens and their scores from the same `Asked`, so they cannot differ.

Generation ends at a task's `stop` texts of one ASCII character, such as a newline: at every token whose text
holds that character. This is exact, because such a character is never cut into two tokens. Longer stop texts
may begin in one token and end in the next; they only cut what is scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambda_grpo.errors import InputError, expect
from lambda_grpo.tasks.task import Problem, Split, Task, before_stop, draw_problems, stop_texts

CHAT = ("auto", "on", "off")
_OURS = ("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length",
         "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tools",
         "truncation")  # fmt: skip


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt becomes what the model reads.

    Attributes:
        chat: `auto`: a text becomes the user's message if the tokenizer has a chat template, unless the task
            says `raw_text`; `on`: always; `off`: never. Prompts that are chat messages stay as they are.
        system_prompt: the system message before a text that becomes the user's; empty for none.
        chat_template_kwargs: what the chat template is given, such as `enable_thinking`.

    Raises:
        InputError: an unknown `chat`; a system message without a chat; kwargs that are no mapping, or that
            are not the template's.
    """

    chat: str = "auto"
    system_prompt: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = self.chat_template_kwargs
        expect(self.chat in CHAT, "chat", repr(self.chat), f"one of {', '.join(CHAT)}")
        expect(isinstance(given, Mapping), "chat_template_kwargs", repr(given), "a JSON object")
        for name in given:
            wanted = f"what a chat template reads, such as enable_thinking: {name!r} is set by the trainer"
            expect(name not in _OURS, "chat_template_kwargs", dict(given), wanted)

    def apply(self, prompt: Any, tokenizer: Any, raw_text: bool = False) -> Any:
        """The prompt, a text or chat messages, as the model of this tokenizer is asked it.

        Args:
            raw_text: the task says that its prompts are texts to be continued.

        Raises:
            InputError: it cannot be asked so.
        """
        template = bool(getattr(tokenizer, "chat_template", None))
        if not isinstance(prompt, str):
            self._check_messages(prompt, template)
            return prompt
        if self.chat == "on" and not template:
            raise InputError(
                "chat is on, but the model's tokenizer has no chat template: take a chat model, or set chat "
                "to off"
            )
        why_not = ""
        if self.chat == "off":
            why_not = "chat is off"
        elif self.chat == "auto" and raw_text:
            why_not = "the task's prompts are texts to be continued (chat on asks them as a chat)"
        elif not template:
            why_not = "the model's tokenizer has no chat template"
        if not why_not:
            opening = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
            return [*opening, {"role": "user", "content": prompt}]
        for name in ("system_prompt", "chat_template_kwargs"):
            if getattr(self, name):
                raise InputError(
                    f"{name} is set, but the prompts are not asked as a chat, because {why_not}: leave it "
                    "away"
                )
        return prompt

    def record(self, chat: bool) -> dict[str, Any]:
        """How prompts were asked, for results.json and `in_words`; `chat`: as chat messages."""
        return {
            "chat": chat,
            "system_prompt": self.system_prompt,
            "chat_template_kwargs": dict(self.chat_template_kwargs),
        }

    def _check_messages(self, prompt: Any, template: bool) -> None:
        shown = f"the task's prompts are chat messages already ({str(prompt)[:60]}…)"
        if self.chat == "off":
            raise InputError(f"chat is off, but {shown}: set chat to auto")
        if self.system_prompt:
            raise InputError(f"system_prompt: {shown}: put the system message there")
        if not template:
            raise InputError(
                f"{shown}, and the model's tokenizer has no chat template: expected a chat model, or a task "
                "with prompts of text"
            )


@dataclass(frozen=True)
class AskedProblem(Problem):
    """A problem with the prompt that the model is given, beside the task's own."""

    original: Problem


class Asked:
    """A task as the model of one tokenizer is asked it. It is a task itself.

    Attributes:
        how: the wanted format.
        stop: the task's stop texts. `score` and `traits` give the task what stood before the first of them.
        ends_at: those of them at which generation ends.
        end_tokens: the ids of all tokens that hold one of `ends_at`.

    Raises:
        InputError: as `stop_texts`; from `problems`, as `draw_problems`; from it and `formatted`, as
            `PromptFormat.apply`.
    """

    def __init__(self, task: Task, how: PromptFormat, tokenizer: Any) -> None:
        self._task, self._tokenizer, self.how = task, tokenizer, how
        self.stop = stop_texts(task)
        self.ends_at = tuple(text for text in self.stop if len(text) == 1 and text.isascii() and text != " ")
        self.end_tokens = tokens_holding(tokenizer, self.ends_at)

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any]:
        return self.how.chat_template_kwargs

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """The task's, `formatted`. Which split a problem is in stays."""
        return self.formatted(draw_problems(self._task, split, count, seed))

    def formatted(self, problems: Sequence[Problem]) -> list[Problem]:
        """The task's problems with the prompts that the model is given."""
        raw_text = bool(getattr(self._task, "raw_text", False))
        return [
            AskedProblem(self.how.apply(each.prompt, self._tokenizer, raw_text), each.answer, each)
            for each in problems
        ]

    def score(self, problem: Problem, completion: str) -> float | None:
        own = problem.original if isinstance(problem, AskedProblem) else problem
        return self._task.score(own, before_stop(completion, self.stop))

    def traits(self, completion: str) -> Mapping[str, float]:
        return self._task.traits(before_stop(completion, self.stop))

    def record(self, problems: Sequence[Problem]) -> dict[str, Any]:
        """How these problems, `formatted`, are asked: for results.json and `in_words`."""
        own = self.how.record(chat=not isinstance(problems[0].prompt, str))
        ends_at = list(self.ends_at) if self.end_tokens else []
        return {**own, "stop": list(self.stop), "ends_at": ends_at}


def tokens_holding(tokenizer: Any, characters: Sequence[str]) -> list[int]:
    """The ids of the tokens, special ones aside, whose text holds one of these characters."""
    if not characters:
        return []
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=True)
    return [i for i, text in enumerate(texts) if any(character in text for character in characters)]


def in_words(record: Mapping[str, Any]) -> str:
    """What `Asked.record` holds, for the line below a table.

    >>> how = PromptFormat(system_prompt="Add up.", chat_template_kwargs={"enable_thinking": False})
    >>> in_words(how.record(chat=True))
    "asked as a chat, system message 'Add up.', enable_thinking=False"
    """
    parts = ["asked as a chat" if record["chat"] else "asked as plain text"]
    if system := record["system_prompt"]:
        parts.append(f"system message {system if len(system) <= 60 else system[:59] + '…'!r}")
    parts += [f"{name}={value!r}" for name, value in record["chat_template_kwargs"].items()]
    if ends := record.get("ends_at"):
        parts.append(f"ending at {' or '.join(map(repr, ends))}")
    return ", ".join(parts)
