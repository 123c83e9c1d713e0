"""Prompts with verifiable rewards, chosen by name. A task knows no trainer.

| name | what |
|---|---|
| `thinking-sums`, `sequences`, `word-sums`, `largest` | made here: see `TASKS` |
| `word-sums:N` | the same with numbers up to N |
| `reasoning-gym:NAME` | a data set of the reasoning-gym package |
| `jsonl:PATH`, `hub:ID[:CONFIG][:SPLIT]` | prompts with gold answers, scored by math-verify |
| `my_module:MyTask`, `path/to/my_task.py:MyTask` | your own: a class with the methods of `Task` |

To add a task to this package, write one file with a class that has the methods of `Task`, and name it in
`TASKS`. A task imports what it needs beyond numpy only where it uses it.
"""

from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec

from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.tasks.custom_task import load_own
from lambda_grpo.tasks.data_files import load_hub, read_jsonl
from lambda_grpo.tasks.largest import Largest
from lambda_grpo.tasks.maths import Maths
from lambda_grpo.tasks.reasoning_gym import ReasoningGym, data_sets
from lambda_grpo.tasks.sequences import Sequences
from lambda_grpo.tasks.task import Problem, Split, Task
from lambda_grpo.tasks.thinking_sums import ThinkingSums
from lambda_grpo.tasks.word_sums import WordSums

__all__ = [
    "TASKS",
    "Largest",
    "Maths",
    "Problem",
    "ReasoningGym",
    "Sequences",
    "Split",
    "Task",
    "ThinkingSums",
    "WordSums",
    "get_task",
    "list_tasks",
    "load_hub",
    "read_jsonl",
]

TASKS: dict[str, Callable[[], Task]] = {
    "thinking-sums": ThinkingSums,
    "sequences": Sequences,
    "word-sums": WordSums,
    "largest": Largest,
}

FAMILIES: dict[str, Callable[[str], Task]] = {
    "word-sums": WordSums,
    "reasoning-gym": ReasoningGym,
    "jsonl": lambda path: Maths(read_jsonl(path)),
    "hub": lambda name: Maths(load_hub(name)),
}
"""Tasks named as `family:rest`."""

_PATTERNS = {
    "jsonl:PATH": "One JSON object per line with a prompt and a gold answer, scored by math-verify.",
    "hub:ID[:CONFIG][:SPLIT]": "The same from the Hugging Face Hub, or a local folder of data files.",
    "my_module:MyTask": "Your own class with the methods of lambda_grpo.tasks.Task.",
    "path/to/my_task.py:MyTask": "The same, in a file.",
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: an unknown task, with the nearest miss; or what it is made from is missing or unusable.
    """
    if name in TASKS:
        return TASKS[name]()
    family, colon, rest = name.partition(":")
    if family in FAMILIES and rest:
        return FAMILIES[family](rest)
    if family in FAMILIES or not (colon or name.endswith(".py")):
        raise unknown_name("task", name, [*TASKS, "reasoning-gym:NAME", *_PATTERNS])
    try:
        return load_own(name)
    except InputError as error:
        near = get_close_matches(family.lower(), FAMILIES, n=1)
        raise InputError(f"{error}. Did you mean {near[0]}:{rest}?") if near else error from error


def list_tasks() -> dict[str, str]:
    """Every task's name, or pattern of names, with one line of description.

    A worker process lists the data sets of reasoning-gym, which takes about a second. If the package is not
    installed, one line says so.
    """
    listed = {name: _first_line(make) for name, make in TASKS.items()} | _PATTERNS
    if find_spec("reasoning_gym") is None:
        return listed | {"reasoning-gym:NAME": "Over 100 puzzles: pip install 'lambda-grpo[tasks]'."}
    return listed | {f"reasoning-gym:{name}": line for name, line in data_sets().items()}


def _first_line(make: Callable[[], Task]) -> str:
    return (make.__doc__ or "").strip().split("\n")[0]
