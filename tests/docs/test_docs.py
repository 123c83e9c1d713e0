"""Every Python and shell snippet of README.md, CONTRIBUTING.md and docs/ runs, and prints what the page shows.

Python: the blocks of a page run in order in one namespace, in an empty folder, with a small local policy in place of
a Hub's and two training steps. Where a `text` block follows at once, it is what must be printed.
Shell: each command goes to the parser that would read it.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partialmethod
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from lambda_grpo import cli
from lambda_grpo.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = {
    path.name: path.read_text() for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("**/*.md"))]
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)

# Their Python runs in a test of its own: on stand-ins; and where tinker is installed, which CI has not.
ELSEWHERE = {"engines.md": "docs/test_engines_docs.py", "tinker.md": "engines/test_tinker.py"}

# What a page takes for granted.
MODEL = """
from lambda_grpo.policy import load_policy
model, tokenizer = load_policy("Qwen/Qwen2.5-0.5B-Instruct")
"""
ROLLOUTS = re.search(r"```json\n(.*?)```", PAGES["rollouts.md"], re.DOTALL)[1]
GIVEN = {
    "report.md": f"open('rollouts.jsonl', 'w').write({ROLLOUTS!r})",
    "packing.md": MODEL + "groups = [([1, 2], [[3, 4], [3, 5]]), ([6], [[7], [8, 9]])]",
    "sampling.md": MODEL,
    "own_loop.md": MODEL
    + "prompts, completions = [[1, 2]] * 2 + [[6]] * 2, [[3, 4], [3, 5], [7], [8, 9]]\n"
    + "groups, rewards = [0, 0, 1, 1], [[1.0, 0.0], [0.0, 1.0]]",
}

# Commands that cannot even be parsed here, by how they begin, and why.
NOT_PARSED = {
    "python -m verl.": "verl's own command line, composed by Hydra from a file of verl's",
    "accelerate launch": "its options and ours: both are parsed by test_processes.py",
    "CUDA_VISIBLE_DEVICES": "vLLM is not installed; what is launched beside it is parsed by test_processes.py",
    "torchrun": "its options and ours: both are parsed by test_processes.py",
}


def blocks(page: str, *languages: str) -> list[tuple[str, str | None]]:
    """Code and, where shown, output of each block."""
    return [(code, shown) for language, code, shown in BLOCK.findall(PAGES[page]) if language in languages]


def run_page(code: list[tuple[str, str | None]], given: str = "") -> dict:
    names: dict = {}
    exec(given, names)
    for snippet, shown in code:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(snippet, names)
        if shown:
            assert printed.getvalue() == shown
    return names


@pytest.fixture
def small(quick_policy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder, two training steps on the CPU, and the local policy, whose path it is."""
    from lambda_grpo import policy
    from lambda_grpo.engines.trl import LambdaGRPOConfig

    quick = {"use_cpu": True, "bf16": False, "max_steps": 2, "max_completion_length": 8, "report_to": "none"}
    monkeypatch.setattr(LambdaGRPOConfig, "__init__", partialmethod(LambdaGRPOConfig.__init__, **quick))
    monkeypatch.chdir(tmp_path)
    return str(policy.embedded_policy())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(page: str, small: str) -> None:
    if page in ELSEWHERE:
        assert (ROOT / "tests" / ELSEWHERE[page]).exists()
        return
    code = [
        (snippet.replace("Qwen/Qwen2.5-0.5B-Instruct", small), shown)
        for snippet, shown in blocks(page, "python")
    ]
    names = run_page(code, GIVEN.get(page, "").replace("Qwen/Qwen2.5-0.5B-Instruct", small))
    if page in ("README.md", "trl.md"):
        assert names["trainer"].state.global_step == 2
    if page == "report.md":
        assert len(names["analysis"].groups["run"]) == 1


def test_no_block_is_overlooked() -> None:
    """Every fence is one that `BLOCK` finds, in a language that some test reads."""
    for page, text in PAGES.items():
        fences = re.findall(r"^[ >]*```.*$", text, re.MULTILINE)
        assert set(fences) <= {"```", "```python", "```sh", "```json", "```text", "```yaml"}, page
        found = sum(2 + 2 * bool(shown) for _, _, shown in BLOCK.findall(text))
        assert found == len(fences), page


def test_a_wrong_output_is_noticed() -> None:
    run_page([("print(1)", "1\n")])
    with pytest.raises(AssertionError):
        run_page([("print(1)", "2\n")])


def commands(page: str) -> list[str]:
    text = "\n".join(code for code, _ in blocks(page, "sh", "bash", "console"))
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def check_command(command: str) -> None:
    """Raise what the user would see, or AssertionError, where a command cannot be right."""
    if any(command.startswith(start) for start in NOT_PARSED):
        return
    words = shlex.split(command, comments=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match words:
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), command
        case ["pip", "install", "-c", "constraints.txt", *packages] | ["pip", "install", *packages]:
            for package in packages:
                extras = re.fullmatch(r"(?:lambda-grpo|\.)(?:\[([\w,]+)\])?", package)
                assert extras, command
                assert set(filter(None, (extras[1] or "").split(","))) <= set(
                    project["optional-dependencies"]
                ), command
        case ["python", "-m", module, *_]:
            assert find_spec(module), command
        case ["python", script, *_]:
            assert (ROOT / script).exists(), command
        case ["lambda-grpo", *arguments]:
            parse(arguments)
        case _:
            raise AssertionError(f"{command!r}: neither checked nor listed in NOT_PARSED")


def parse(arguments: list[str]) -> SimpleNamespace | None:
    args, rest = cli._parser(arguments[0]).parse_known_args(arguments)
    if args.command == "train":
        from lambda_grpo.training import settings

        return settings.resolve(args.config, rest)
    assert not rest, rest
    return args


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with our examples and recipes, and a credit of the user's."""
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my_module.py").write_text("from lambda_grpo.credit import grpo as my_credit\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_shell(page: str, folder: None) -> None:
    for command in commands(page):
        status = None
        try:
            check_command(command)
        except SystemExit as stopped:  # --help and the like
            status = stopped.code
        assert not status, command


@pytest.mark.parametrize(
    "command",
    [
        "lambda-grpo train --lerning_rate 1",
        "lambda-grpo train --credit lambda",
        "lambda-grpo report",
        "lambda-grpo eval",
        "make everything",
        "pip install 'lambda-grpo[everything]'",
        "python examples/everything.py",
        "python -m lambda_grpo.everything",
        "everything",
    ],
)
def test_a_wrong_command_is_noticed(command: str, folder: None) -> None:
    with pytest.raises((InputError, SystemExit, AssertionError)) as noticed:
        check_command(command)
    assert not isinstance(noticed.value, SystemExit) or noticed.value.code


def test_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollouts of docs/start.md make a report."""
    ((rollouts, _),) = blocks("start.md", "json")
    monkeypatch.chdir(tmp_path)
    Path("rollouts.jsonl").write_text(rollouts)
    assert "lambda-grpo report rollouts.jsonl" in commands("start.md")
    assert cli.main(["report", "rollouts.jsonl"]) == 0
    assert Path("report.html").exists()


@pytest.mark.slow
def test_make_demo(tmp_path: Path) -> None:
    """What `make demo` runs, from an empty cache: from at most 0.55 sampled accuracy to at least 0.75."""
    recipe = (ROOT / "Makefile").read_text()
    command = re.search(r"^demo:.*\n\t\$\(BIN\)/(lambda-grpo .*)$", recipe, re.MULTILINE)[1]
    environment = os.environ | {"LAMBDA_GRPO_CACHE": str(tmp_path / "cache")}
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    environment["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // workers))
    arguments = [sys.executable, "-m", "lambda_grpo.cli", *command.split()[1:]]
    subprocess.run(arguments, check=True, cwd=tmp_path, env=environment, timeout=1200)
    (results,) = tmp_path.glob("runs/thinking-sums-lambda_grpo-*/results.json")
    table = json.loads(results.read_text())
    assert table["before"]["sampled_accuracy"]["mean"] <= 0.55
    assert table["after"]["sampled_accuracy"]["mean"] >= 0.75
    assert table["after"]["traits"]["thinking"] > table["before"]["traits"]["thinking"] + 0.3
