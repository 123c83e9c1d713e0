"""`lambda-grpo eval --benchmark`: rows in each data set's form, right and wrong answers, resuming, vLLM's stand-in."""

import json
import math
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lambda_grpo import InputError, cli, policy
from lambda_grpo.evaluating import benchmark_models
from lambda_grpo.evaluating.answer_log import Answered, AnswerLog
from lambda_grpo.evaluating.benchmark_questions import Asking
from lambda_grpo.evaluating.completions import Sampling
from lambda_grpo.evaluating.intervals import bootstrap, bootstrap_mean
from lambda_grpo.tasks.asking import PromptFormat
from lambda_grpo.tasks.benchmarks import BENCHMARKS, last_boxed, load_benchmark, named

pytest.importorskip("math_verify")

# Made-up rows with the columns of each data set: question, gold answer, right answers, wrong ones.
ROWS: dict[str, list[tuple[dict[str, Any], list[str], list[str]]]] = {
    "aime24": [
        (
            {"id": 60, "problem": "What is 30 + 3?", "solution": "Add: $\\boxed{34}$, no.", "answer": "033",
             "url": "u", "year": "2024"},
            [r"\boxed{33}", r"\boxed{033}", r"</think> So $\boxed{33}$."], [r"\boxed{34}", r"\boxed{3}", ""],
        ),
    ],
    "math500": [
        (
            {"problem": "Polar?", "solution": "x", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "P",
             "level": 2, "unique_id": "a"},
            [r"\boxed{(3,\pi/2)}", r"\boxed{\left(3, \dfrac{\pi}{2}\right)}"], [r"\boxed{(\frac{\pi}{2}, 3)}", r"\boxed{3}"],
        ),
        ({"problem": "Who?", "solution": "x", "answer": "\\text{Evelyn}", "subject": "P", "level": 1, "unique_id": "b"},
         [r"\boxed{Evelyn}", r"\boxed{\text{Evelyn}}"], [r"\boxed{Evan}"]),
        ({"problem": "How long?", "solution": "x", "answer": "10 \\text{ cm}", "subject": "P", "level": 1, "unique_id": "c"},
         [r"\boxed{10}", r"\boxed{10\,\mathrm{cm}}"], [r"\boxed{100 \text{ mm}}"]),
        ({"problem": "Not a formula?", "solution": "x", "answer": "\\frac{1}{}", "subject": "P", "level": 1, "unique_id": "d"},
         [r"\boxed{ \frac{1}{} }"], [r"\boxed{1}"]),  # math-verify cannot parse it: the same text is right
    ],
    "amc23": [
        ({"id": 0, "problem": "What is 3 · 9?", "question": "another column", "answer": 27.0, "url": "u"},
         [r"\boxed{27}", r"\boxed{27.0}"], [r"\boxed{2.7}", r"\boxed{26}"]),
    ],
    "minerva": [
        ({"problem": "How many atoms?", "solution": "First $\\boxed{7}$.\nThe answer is \\boxed{4.5e33}.", "type": "t", "idx": 0},
         [r"\boxed{4.5e33}", r"\boxed{4.5 \times 10^{33}}", r"\boxed{45 \cdot 10^{32}}"],
         [r"\boxed{4.5}", r"\boxed{4.5 \times 10^{32}}", r"\boxed{4.5e32}", r"\boxed{7}"]),
        ({"problem": "How small?", "solution": "\\boxed{1.6e-19} \\mathrm{C}", "type": "t", "idx": 1},
         [r"\boxed{1.6 \times 10^{-19}}"], [r"\boxed{1.6e19}", r"\boxed{-1.6 \times 10^{-19}}"]),
    ],
    "olympiadbench": [
        ({"id": 1, "question": "Roots?", "solution": ["s"], "final_answer": ["$2$, $5$"], "answer": "$2$, $5$",
          "is_multiple_answer": True, "unit": None, "answer_type": "Numerical", "error": None},
         [r"\boxed{5, 2}", r"\boxed{2} \text{ and } \boxed{5}"], [r"\boxed{2}", r"\boxed{2, 5, 7}"]),
        ({"id": 2, "question": "Interval?", "solution": ["s"], "final_answer": ["$(1, 2]$"], "unit": None},
         [r"\boxed{(1,2]}"], [r"\boxed{[1,2]}"]),
    ],
}  # fmt: skip


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {name: write(tmp_path / f"{name}.jsonl", [row for row, _, _ in ROWS[name]]) for name in ROWS}


# Scoring


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_and_wrong_answers_in_each_form(name: str, files: dict[str, Path]) -> None:
    benchmark = load_benchmark(name, str(files[name]))
    for problem, (_, right, wrong) in zip(benchmark.problems, ROWS[name], strict=True):
        own = problem.answer
        assert benchmark.score(problem, f"Thus it is {own}.") == 1, own
        assert {text: benchmark.score(problem, text) for text in right} == dict.fromkeys(right, 1)
        assert {text: benchmark.score(problem, text) for text in wrong} == dict.fromkeys(wrong, 0)
    assert benchmark.unparsable() == (1 if name == "math500" else 0)


def test_questions_stay_as_they_are_and_in_order(files: dict[str, Path]) -> None:
    benchmark = load_benchmark("math500", str(files["math500"]))
    assert [p.prompt for p in benchmark.problems] == ["Polar?", "Who?", "How long?", "Not a formula?"]
    assert [p.prompt for p in benchmark.first(2).problems] == ["Polar?", "Who?"]
    assert load_benchmark("amc23", str(files["amc23"])).problems[0].prompt == "What is 3 · 9?"


def test_the_last_box() -> None:
    assert last_boxed(r"\boxed{1} \boxed{\sqrt{2}}") == r"\sqrt{2}"
    assert last_boxed(r"\boxed{1} \boxed{2") is None
    assert last_boxed("2") is None


def test_a_folder_as_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/train.jsonl", [row for row, _, _ in ROWS["minerva"]])
    assert len(load_benchmark("minerva", str(tmp_path / "data")).problems) == 2


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("olympiadbench", {"problem": "?", "answer": "1"},
         "row 1: expected the columns 'question' and 'answer' or 'final_answer', those of knoveleng/OlympiadBench"),
        ("aime24", {"problem": " ", "answer": "1"}, "column 'problem': expected a text, got ' '"),
        ("aime24", {"problem": "?", "answer": None}, "column 'answer': expected an answer, got None"),
    ],
)  # fmt: skip
def test_rows_with_mistakes(tmp_path: Path, name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        load_benchmark(name, str(write(tmp_path / "rows.jsonl", [row])))
    assert message in str(raised.value)


def test_names() -> None:
    assert list(named("all")) == list(BENCHMARKS)
    with pytest.raises(InputError, match="unknown benchmark 'aime25': did you mean 'aime24'"):
        named("aime25")
    with pytest.raises(InputError, match="'aime24' is named twice"):
        named("aime24,aime24:x")


def test_the_mean_over_benchmarks_weighs_them_alike() -> None:
    """1 of 1 and 1 of 3: the mean of means is 2/3; that of all problems would be 1/2."""
    estimate = bootstrap_mean([[1.0], [1.0, 0.0, 0.0]])
    assert estimate.mean == pytest.approx(2 / 3)
    # The second group's mean runs from 0 (8 in 27) to 1 (1 in 27): so from 1/2 to 1.
    assert (estimate.low, estimate.high) == (0.5, 1.0)
    half = [1.0, 0.0] * 50
    assert bootstrap_mean([half]) == pytest.approx(bootstrap(half), abs=0.02)
    both = bootstrap_mean([half, half])  # two of the same size: narrower by √2
    assert both.high - both.low == pytest.approx(
        (bootstrap(half).high - bootstrap(half).low) / math.sqrt(2), rel=0.1
    )


# The file of answers


ANSWERS = [Answered(0, "a\nb", 2, 1.0), Answered(1, "ü", 3, 0.0)]


def test_answers_are_kept_and_a_cut_off_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "deep/answers.jsonl"
    AnswerLog(path, {"seed": 1}).add(ANSWERS)
    whole = path.read_bytes()
    assert AnswerLog(path, {"seed": 1}).done == {0: ANSWERS[0], 1: ANSWERS[1]}
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):  # killed anywhere
        path.write_bytes(whole[:length])
        log = AnswerLog(path, {"seed": 1})
        assert len(log.done) == max(0, sum(end <= length for end in ends) - 1)
        log.add(ANSWERS[len(log.done) :])
        assert path.read_bytes() == whole


def test_answers_under_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerLog(path, {"seed": 1, "samples": 2}).add(ANSWERS)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"seed was 1, is 2; samples was 2, is None\): go on with those"):
        AnswerLog(path, {"seed": 2})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("my notes", "expected our own file, got other content"),
        ("my notes\n", "line 1: not a JSON object: b'my notes'"),
        ('{"a": 1}\n', "expected our own file, with settings in line 1"),
        ('{"settings": {"seed": 1}}\n{"row": 0}\n', "line 2: no answer"),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as raised:
        AnswerLog(path, {"seed": 1})
    assert message in str(raised.value)
    assert path.read_text() == content


# The command


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tiny random models that speak in digits."""
    tokenizer = policy.character_tokenizer("0123456789")
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}0"
    folders = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = Qwen2Config(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, initializer_range=1.0,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
            )  # fmt: skip
            model = Qwen2ForCausalLM(config)
        folder = tmp_path_factory.mktemp(f"speaker-{seed}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


def aime(path: Path, count: int) -> str:
    return f"aime24:{write(path, [{'problem': f'{n}?', 'answer': str(n)} for n in range(count)])}"


def run(folder: Path, *arguments: str) -> int:
    return cli.main(["eval", *arguments, "--output", str(folder), "--max_new_tokens", "6"])


class Scripted:
    """A model that is given the right answers to even problems, and says 99 to the others."""

    loaded = 0
    stop_after = 99
    golds: list[str] = []

    def __init__(self, model: str) -> None:
        Scripted.loaded += 1

    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], *, sample: bool
    ) -> tuple[list[str], list[int]]:
        said = [self.golds.pop(0) for _ in prompts]
        return said, [len(text) for text in said]


def test_exact_match_by_hand(
    models: list[str], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """math500: 3 of 4 right; minerva 1 of 2; the mean of both .625. The second model: 1 and 0, so .5."""
    right = {name: [rows[1][0] for rows in ROWS[name]] for name in ROWS}
    Scripted.golds = [*right["math500"][:3], "99", right["minerva"][0], "99", *right["math500"], "99", "99"]
    Scripted.loaded = 0
    monkeypatch.setattr(benchmark_models, "_Transformers", Scripted)
    chosen = ",".join(f"{name}:{files[name]}" for name in ("math500", "minerva"))
    assert run(tmp_path / "out", *models, "--benchmark", chosen) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    first, second = results["models"].values()
    means = [
        [each["benchmarks"][name]["exact_match"]["mean"] for name in ("math500", "minerva")] + [each["mean"]["mean"]]
        for each in (first, second)
    ]  # fmt: skip
    assert means == [[0.75, 0.5, 0.625], [1.0, 0.0, 0.5]]
    assert first["benchmarks"]["math500"]["problems"] == 4
    assert results["benchmarks"]["math500"]["unparsable"] == 1
    shown = capsys.readouterr().out.replace("\n", " ")
    for words in (
        "mean of 2",
        "0.625",
        "-0.125",
        "second − first",
        "greedy",
        "math500: 4 problems, where the whole has 500",
    ):
        assert words in shown, words
    # The same again asks no model.
    assert run(tmp_path / "out", *models, "--benchmark", chosen) == 0
    assert Scripted.loaded == 2
    assert json.loads((tmp_path / "out/results.json").read_text()) == results


def test_a_killed_run_goes_on(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after two of five batches and within a line: at the end the same answers as without, once each."""
    arguments = [
        models[0],
        "--benchmark",
        aime(tmp_path / "rows.jsonl", 5),
        "--samples=2",
        "--temperature=1",
        "--batch_size=2",
    ]
    assert run(tmp_path / "whole", *arguments) == 0
    (whole,) = (tmp_path / "whole").glob("*/aime24.jsonl")
    complete, calls = benchmark_models.complete, []

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(benchmark_models, "complete", dies)
        assert run(tmp_path / "killed", *arguments) == 130
    (killed,) = (tmp_path / "killed").glob("*/aime24.jsonl")
    assert len(killed.read_text().splitlines()) == 1 + 4
    assert not (tmp_path / "killed/results.json").exists()
    killed.write_bytes(killed.read_bytes()[:-7])
    with monkeypatch.context() as patch:
        patch.setattr(
            benchmark_models,
            "complete",
            lambda *args, **kwargs: calls.append(args) or complete(*args, **kwargs),
        )
        assert run(tmp_path / "killed", *arguments) == 0
    assert [len(args[2]) for args in calls] == [2, 2, 2, 1, 2, 2, 2]  # row 3 alone, then 4 to 9
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (whole, killed)]
    assert [row["row"] for row in lines[1][1:]] == list(range(10))
    same = [a == b for a, b in zip(*lines, strict=True)]
    assert all(same[:4] + same[5:])  # row 3 was drawn again, in a batch of its own
    results = json.loads((tmp_path / "killed/results.json").read_text())["models"][models[0]]["benchmarks"][
        "aime24"
    ]
    rewards = np.array([row["reward"] for row in lines[1][1:]]).reshape(5, 2)
    assert results["exact_match"]["mean"] == pytest.approx(rewards.mean())
    assert set(results["pass_at"]) == {"2"}
    capsys.readouterr()
    assert run(tmp_path / "killed", *arguments[:-1], "--batch_size=3") == 2
    assert "batch_size was 2, is 3): go on with those" in capsys.readouterr().err


def test_a_model_trained_further_is_another_model(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = policy.load_policy(models[0])
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "mine")
    arguments = [str(tmp_path / "mine"), "--benchmark", aime(tmp_path / "rows.jsonl", 2)]
    assert run(tmp_path / "out", *arguments) == 0
    model.save_pretrained(tmp_path / "mine")
    assert run(tmp_path / "out", *arguments) == 2
    assert "weights was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "aime25"], "unknown benchmark 'aime25'"),
        (["--benchmark", "aime24:nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (
            ["--benchmark", "{aime}", "--samples", "2"],
            "samples is 2, but temperature 0 gives the same answer each time",
        ),
        (["--benchmark", "{aime}", "--task", "sequences"], "--task goes with a task only"),
        (["--benchmark", "{aime}", "--problems", "0"], "problems: got 0"),
        (["--benchmark", "{aime}", "--engine", "vllm"], "engine vllm: vLLM is not installed"),
        (["--engine", "vllm"], "--engine goes with --benchmark only"),
        (["--benchmark", "{aime}", "--output", "rows.jsonl"], "is no folder that can be written to"),
    ],
)
def test_mistakes(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    chosen = aime(Path("rows.jsonl"), 2)
    assert cli.main(["eval", models[0], *(part.format(aime=chosen) for part in arguments)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


# vLLM: a stand-in with the calls that its documentation describes; the real one was not run


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def generate(self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
            made.append((prompts, params, lora_request))
            assert all(isinstance(prompt["prompt_token_ids"], list) for prompt in prompts)
            assert len(params) == len(prompts)
            return [
                SimpleNamespace(outputs=[SimpleNamespace(text=r"\boxed{1}", token_ids=(7, 8))])
                for _ in prompts
            ]

    module = types.ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, lambda **options: options
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = lambda *parts: parts
    for name, part in (
        ("vllm", module),
        ("vllm.lora", types.ModuleType("vllm.lora")),
        ("vllm.lora.request", request),
    ):
        monkeypatch.setitem(sys.modules, name, part)
    return made


def test_vllm(models: list[str], tmp_path: Path, vllm: list[Any]) -> None:
    arguments = ["--benchmark", aime(tmp_path / "rows.jsonl", 3), "--engine", "vllm"]
    assert (
        run(tmp_path / "out", models[0], *arguments, "--samples=2", "--temperature=0.5", "--top_p=0.9") == 0
    )
    options, (prompts, params, adapter) = vllm
    assert options["model"] == models[0]
    assert options["max_model_len"] == max(len(p["prompt_token_ids"]) for p in prompts) + 6
    assert (len(prompts), adapter) == (6, None)
    assert prompts[0] == prompts[1] != prompts[2]
    assert len({each["seed"] for each in params}) == 6
    assert {key: params[0][key] for key in params[0] if key != "seed"} == {
        "temperature": 0.5, "top_p": 0.9, "top_k": -1, "max_tokens": 6, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["engine"] == "vllm"
    assert found["models"][models[0]]["benchmarks"]["aime24"]["exact_match"]["mean"] == pytest.approx(1 / 3)


def test_vllm_with_adapters(models: list[str], tmp_path: Path, vllm: list[Any]) -> None:
    folder = tmp_path / "adapter"
    policy.load_tokenizer(models[0]).save_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "the/base", "r": 64}))
    arguments = ["--benchmark", aime(tmp_path / "rows.jsonl", 2), "--engine", "vllm"]
    assert run(tmp_path / "out", str(folder), *arguments) == 0
    options, (_, params, adapter) = vllm
    assert (options["model"], options["tokenizer"]) == ("the/base", str(folder))
    assert (options["enable_lora"], options["max_lora_rank"]) == (True, 64)
    assert adapter == ("trained", 1, str(folder))
    assert params[0]["temperature"] == 0.0  # greedy


def test_vllm_is_left_alone_without_cuda(models: list[str], tmp_path: Path, vllm: list[Any]) -> None:
    benchmark = load_benchmark("aime24", aime(tmp_path / "rows.jsonl", 1).partition(":")[2])
    asking = Asking(
        Sampling(max_completion_length=3), greedy=True, prompt_format=PromptFormat(), engine="auto"
    )
    benchmark_models.compare([models[0]], [benchmark], asking, tmp_path / "out")
    assert vllm == []
    assert json.loads((tmp_path / "out/results.json").read_text())["engine"] == "transformers"
