"""Rollouts, recipes and checkpoints are data: nothing in them runs. docs/security.md says what is trusted."""

import ast
import json
import pickle
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

import lambda_grpo
from lambda_grpo import InputError, policy
from lambda_grpo.training.settings import resolve
from lambda_grpo.whole_files import read_yaml, write_yaml

PACKAGE = Path(lambda_grpo.__file__).parent

# Recipes

BAD_YAML = {
    "an object": ("task: !!python/object/apply:os.system ['touch ran']", "determine a constructor for the tag"),
    "a name": ("task: !!python/name:os.system", "determine a constructor for the tag"),
    "a short tag": ("task: !x 1", "determine a constructor for the tag.*\n.*line 1, column 7"),
    "deep": ("a: " + "[" * 1500, "recursion"),
    "a number too long": ("max_steps: " + "9" * 5000, "4300 digits"),
    "no date": ("task: 2001-99-99", "month must be"),
    "no number": ("max_steps: 0b_", "invalid literal"),
    "a NUL": ("task: \0", "special characters"),
    "not closed": ("task: 'x", "end of stream"),
    "no UTF-8": (b"task: \xff", "can't decode"),
    "a list": ("- task", "expected `key: value` lines, got list"),
    "nothing": ("", "the file is empty; expected `key: value` lines"),
    "comments only": ("# task: x\n", "the file is empty"),
    "a key that is none": ("1: 2", "key in recipe"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_YAML.values(), ids=BAD_YAML)
def test_a_recipe_that_is_no_plain_data(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        resolve(str(path), [])
    assert len(str(caught.value)) < 5000


@given(st.text(alphabet="ab01:-_.,[]{}!&*<>|\"'#%@`?\n\t =~\0\ufeff\ud800", max_size=40))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(InputError):
        read_yaml(path)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    same = ["x"]
    content = {"a": same, "b": same, "1": "!t", "text": "*a\n&b λ\u2028", "none": None, "f": 1e-6}
    write_yaml(tmp_path / "any.yaml", content)
    assert read_yaml(tmp_path / "any.yaml") == content


def test_a_rate_without_a_point_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-5 as a text; the setting makes a number of it."""
    (tmp_path / "r.yaml").write_text("learning_rate: 1e-5\n")
    settings = resolve(str(tmp_path / "r.yaml"), [])
    assert settings.config.learning_rate == settings.explicit["learning_rate"] == 0.00001


# Checkpoints


class Planted:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (self.mark, "ran")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tokenizer = policy.character_tokenizer("01")
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def test_weights_that_are_pickled_code(checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    policy.load_policy(str(checkpoint))
    (checkpoint / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Planted(mark)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(InputError, match="model.safetensors"):
        policy.load_policy(str(checkpoint))
    assert not mark.exists()
    with (checkpoint / "planted").open("wb") as file:
        pickle.dump(Planted(mark), file)
    pickle.loads((checkpoint / "planted").read_bytes())
    assert mark.exists(), "the planted pickle would have shown"


def test_a_checkpoint_that_brings_its_own_code(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (checkpoint / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nraise ValueError('the code ran')\n"
    )
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="trust_remote_code"):
        policy.load_policy(str(checkpoint))
    assert not mark.exists()
    with pytest.raises(InputError, match="the code ran"):
        policy.load_policy(str(checkpoint), trust_remote_code=True)
    assert mark.exists(), "and asked for, it runs"


# The source

PIPES = {"tasks/worker.py", "tasks/reasoning_gym.py"}  # pickles between a process and its own worker
OWN_CODE = {
    "credit/custom_credit.py",
    "tasks/custom_task.py",
}  # names that a user gives on the command line, in a recipe, in Python


def names_used(source: str) -> Iterator[str]:
    """What some source imports or calls, as it is written there; `torch.load` only without weights_only=True."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            safe = any(
                word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords
            )
            yield "" if safe else ast.unparse(node.func)


@cache
def _names_by_file() -> dict[str, set[str]]:
    return {
        path.relative_to(PACKAGE).as_posix(): set(names_used(path.read_text()))
        for path in PACKAGE.rglob("*.py")
    }


def users_of(forbidden: set[str]) -> set[str]:
    return {name for name, used in _names_by_file().items() if forbidden & used}


def test_nothing_evaluates_or_unpickles() -> None:
    assert users_of({"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}) == PIPES
    runs_code = {"eval", "exec", "compile", "__import__", "os.system", "np.load", "numpy.load", "torch.load"}
    assert users_of(runs_code | {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}) == set()


@pytest.mark.parametrize(
    "line", ["eval('1')", "import pickle", "torch.load(x)", "torch.load(x, weights_only=False)"]
)
def test_the_checker_sees_a_planted_fault(line: str) -> None:
    assert {"eval", "pickle", "torch.load"} & set(names_used(line))
    assert not {"torch.load"} & set(names_used("torch.load(x, weights_only=True)"))


def test_only_a_user_names_code() -> None:
    assert users_of({"lambda_grpo.custom.load_custom"}) == OWN_CODE
    readers = {
        name
        for name in users_of({"get_credit", "get_task"})
        if name.startswith(("rollouts/", "report/", "analysis"))
    }
    assert readers == set()
