"""A user's own credit: found by module or file, checked before training and at each call."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lambda_grpo import InputError, ProcessTree, TokenCredit
from lambda_grpo.credit import CREDITS, advantage_varies, get_credit, grpo, try_credit

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_credit.py"
TREE = ProcessTree.build([[1, 2, 3], [1, 2, 4], [1, 5], [26]])

MODULE = """
import numpy as np
from lambda_grpo.credit import TokenCredit, grpo, process

def same(tree, rewards, *, advantages=None, mask=None):
    return grpo(tree, rewards, advantages=advantages, mask=mask)

def scaled(tree, rewards, advantages=None, mask=None, *, by, also=1.0):
    plain = grpo(tree, rewards, advantages=advantages, mask=mask)
    return TokenCredit(plain.advantage, np.float32(by) * plain.weight)

def anything(tree, rewards, *, advantages, mask, **kwargs):
    return process(tree, rewards, advantages=advantages, mask=mask)

def changed(change):
    def credit(tree, rewards, *, advantages=None, mask=None):
        plain = grpo(tree, rewards, advantages=advantages, mask=mask)
        return change(plain.advantage.copy(), plain.weight.copy())
    return credit

def put(array, value):
    array[1, 2] = value
    return array

def put_outside(array):
    array[3, 2] = 1
    return array

no_credit = changed(lambda a, w: (a, w))
doubled = changed(lambda a, w: TokenCredit(a.astype(np.float64), w))
listed = changed(lambda a, w: TokenCredit(a.tolist(), w))
narrow = changed(lambda a, w: TokenCredit(a, w[:, :2]))
not_a_number = changed(lambda a, w: TokenCredit(put(a, np.nan), w))
negative = changed(lambda a, w: TokenCredit(a, put(w, -0.5)))
outside = changed(lambda a, w: TokenCredit(a, put_outside(w)))

number = 3
class Class: pass
def no_rewards(tree, *, advantages=None, mask=None): pass
def no_mask(tree, rewards, *, advantages=None): pass
def broken(tree, rewards, *, advantages=None, mask=None): return tree.no_such_thing
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("own") / "my_credits.py"
    path.write_text(MODULE)
    return str(path)


def test_the_example_runs() -> None:
    shown = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True).stdout
    # mean 1/4, std 1/2: a = 0.75/0.5001 = 1.5 and -0.5; |λ| = 3, 2, 1; others 0.1.
    numbers = [float(word) for word in shown.replace("[", " ").replace("]", " ").split()]
    assert numbers == [0.5, 0.75, 1.5, -0.02, -0.02, -0.05, -0.02, -0.05, 0, -0.05, 0, 0]


def test_a_file_or_a_module_names_a_function(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = grpo(TREE, [1, 0, 0, 1])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match="credit 'my_credits:same': there is no module 'my_credits' in the"):
        get_credit("my_credits:same")
    monkeypatch.chdir(Path(module).parent)
    for name in (f"{module}:same", "my_credits.py:same", "my_credits:same"):
        result = get_credit(name)(TREE, [1, 0, 0, 1])
        assert (result.advantage == expected.advantage).all()
        assert get_credit(name) is get_credit(name)  # read once, whatever state it keeps


def test_a_file_alone_asks_for_the_function() -> None:
    with pytest.raises(
        InputError, match=r"credit 'my_credit\.py': name the function too: my_credit\.py:my_credit"
    ):
        get_credit("my_credit.py")


def test_parameters(module: str) -> None:
    tried = try_credit(f"{module}:scaled", {"by": 2})
    assert tried.weight.max() == 2
    with pytest.raises(InputError, match="scaled': missing a required .*'by'.*: set it in credit_kwargs"):
        try_credit(f"{module}:scaled")
    with pytest.raises(InputError, match="unknown parameter of credit .*scaled' 'als': did you mean 'also'"):
        try_credit(f"{module}:scaled", {"als": 2})
    with pytest.raises(InputError, match="same' takes no parameters, got credit_kwargs 'mask'"):
        try_credit(f"{module}:same", {"mask": 2})
    try_credit(f"{module}:anything", {"whatever": 2})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "has no 'nothing'"),
        ("number", r"number': expected a function \(tree, rewards, .*\), got an object of type int"),
        ("Class", "expected a function .* of type type"),
        ("no_rewards", r"expected the parameters .*, got \(tree, \*, advantages=None, mask=None\)"),
        ("no_mask", r"expected the parameters .*, got \(tree, rewards, \*, advantages=None\)"),
        ("no_credit", "no_credit': expected a TokenCredit, .* got tuple"),
        ("doubled", "doubled': advantage: expected a float32 array, got dtype float64"),
        ("listed", "listed': advantage: expected a float32 array, got list"),
        ("narrow", r"narrow': weight: expected shape \(4, 3\) \(completions, tokens\), got \(4, 2\)"),
        ("not_a_number", "advantage: completion #1, token #2 has nan, expected a finite number"),
        ("negative", "weight: completion #1, token #2 has -0.5, expected 0 or more"),
        ("outside", "weight: completion #3, token #2 has 1.0, expected 0 past a completion's end and where"),
    ],
)
def test_mistakes_are_told_before_training(module: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        try_credit(f"{module}:{name}")


def test_an_error_inside_a_users_credit_is_left_alone(module: str) -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        try_credit(f"{module}:broken")


def test_every_call_is_checked(module: str) -> None:
    credit = get_credit(f"{module}:outside")  # fits this group, in which every completion is as long
    assert isinstance(credit(ProcessTree.build([[1, 2, 3]] * 4), [1] * 4), TokenCredit)
    mask = np.ones((4, 3))
    mask[3, 2] = 0
    with pytest.raises(InputError, match="past a completion's end and where masked"):
        credit(ProcessTree.build([[1, 2, 3]] * 4), [1] * 4, mask=mask)


def test_which_advantages_vary_inside_a_completion(module: str) -> None:
    varying = {name for name in CREDITS if advantage_varies(try_credit(name))}
    assert varying == {"branch", "process", "optimistic", "tempo", "vineppo"}
    assert advantage_varies(try_credit(f"{module}:anything"))
    assert not advantage_varies(try_credit(f"{module}:scaled", {"by": 3}))


def test_all_credits_are_tried_with_their_parameters() -> None:
    with pytest.raises(InputError, match="credit 'optimistic': tau: expected a positive number, got -1"):
        try_credit("optimistic", {"tau": -1})
    with pytest.raises(
        InputError, match="unknown parameter of credit 'optimistic' 'tao': did you mean 'tau'"
    ):
        try_credit("optimistic", {"tao": 1})


@pytest.mark.usefixtures("quick_policy")
def test_training_with_a_credit_of_ones_own(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """On the command line, from the current folder; a comparison is only resolved."""
    from lambda_grpo import cli
    from lambda_grpo.training import run_folder
    from lambda_grpo.training.settings import resolve

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(Path(module).parent)
    flags = ["--max_steps=1", "--per_device_train_batch_size=8", "--num_generations=4", "--eval_problems=4"]
    flags += [
        f"--task={Path(__file__).parents[1] / 'support' / 'varied_task.py'}:Varied",
        '--credit_kwargs={"by": 0.5}',
    ]
    scaled = "--credit=my_credits:scaled"
    assert cli.main(["train", *flags, scaled, f"--output_dir={tmp_path / 'a'}"]) == 0
    (row,) = (row for row in run_folder.read_metrics(tmp_path / "a") if "loss" in row)
    assert row["credit/mean_weight"] == 0.5

    both = resolve("default", [*flags, scaled, "--compare=my_credits:scaled,my_credits.py:same"])
    configs = [both.for_credit(name).config for name in both.credits]
    assert [Path(c.output_dir).name for c in configs] == ["my_credits-scaled", "my_credits-py-same"]
    assert [c.credit_kwargs for c in configs] == [{"by": 0.5}, {}]

    for wrong, message in (
        (["--credit=my_credits:negative"], "completion #1, token #2 has -0.5, expected 0 or more"),
        (
            ["--compare=grpo,my_credits:anything", "--importance_sampling_level=sequence"],
            "credit 'my_credits:anything' gives each token of a completion",
        ),
    ):
        capsys.readouterr()
        assert cli.main(["train", *flags[:-1], *wrong, f"--output_dir={tmp_path / 'b'}"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "b").exists()
