"""Accuracy, pass@k and their intervals; the answers of tiny models; `lambda-grpo eval`, mistakes included."""

import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lambda_grpo import InputError, cli, policy
from lambda_grpo.evaluating.completions import Sampling, complete, encode
from lambda_grpo.evaluating.evaluation import (
    Answers,
    Evaluation,
    answer,
    differences,
    summarise,
    usual_pass_at,
)
from lambda_grpo.evaluating.intervals import Estimate, bootstrap, pass_at_k, student
from lambda_grpo.policy import embedded
from lambda_grpo.tasks import Problem
from lambda_grpo.tasks.thinking_sums import CHARACTERS, ThinkingSums
from lambda_grpo.training import results

NAN = math.nan
ROOT = Path(__file__).parents[2]
TOKENIZER = policy.character_tokenizer(CHARACTERS)


def tiny_model(seed: int = 0) -> Qwen2ForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, initializer_range=1.0,
            pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None,
        )  # fmt: skip
        return Qwen2ForCausalLM(config).eval()


BY_GENERATE = {"use_cache": True}  # a setting that only transformers' generate knows, so that it samples


class Scripted:
    """A model that says the given texts in turn, whatever the prompt; `$` ends one."""

    def __init__(self, *texts: str, ends: list[int] | None = None) -> None:
        self.script = itertools.cycle(texts)
        self.generation_config = SimpleNamespace(eos_token_id=ends)
        self.device = torch.device("cpu")
        self.training = True
        self.asked: list[dict] = []

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def generate(self, input_ids: torch.Tensor, **settings: object) -> torch.Tensor:
        assert not self.training
        self.asked.append(settings)
        rows = [TOKENIZER(next(self.script).replace("$", "<eos>"))["input_ids"] for _ in input_ids]
        width = max(map(len, rows))
        said = torch.tensor([row + [TOKENIZER.pad_token_id] * (width - len(row)) for row in rows])
        return torch.cat([input_ids, said], dim=1)


class Marks:
    """A task whose score is the number that the completion holds; `?` cannot be scored."""

    def score(self, problem: Problem, completion: str) -> float | None:
        return None if completion == "?" else float(completion)

    def traits(self, completion: str) -> dict[str, float]:
        return {"dotted": float("." in completion)}


PROBLEMS = [Problem("1+1=", 2), Problem("2+2+2=", 6)]


# Numbers worked by hand


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    for n, k in itertools.product(range(1, 8), range(1, 8)):
        for c in range(n + 1):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            expected = np.mean([any(subset) for subset in subsets]) if subsets else NAN
            assert pass_at_k([c], [n], k) == pytest.approx([expected], nan_ok=True)
    # C(3, 2) / C(4, 2) = 3/6; the biased 1 − (1 − 1/4)² = .4375 would fail here.
    assert pass_at_k([1], [4], 2) == pytest.approx([0.5])
    # C(19990, 1000) overflows a float; about 1 − .95^10
    assert pass_at_k([10], [20_000], 1000) == pytest.approx([1 - 0.95**10], abs=1e-3)


def test_problems_are_resampled_and_not_samples() -> None:
    answers = Answers(np.array([[1.0] * 8, [0.0] * 8]), np.array([1.0, 0.0]), np.ones((2, 8)), {})
    # Two problems: means 0, .5, 1 with chances 1/4, 1/2, 1/4, so the interval is [0, 1].
    assert summarise(answers).sampled_accuracy == Estimate(0.5, 0.0, 1.0)
    by_samples = bootstrap(answers.sampled.ravel())  # the fault: 16 independent answers
    assert 0.2 < by_samples.low < by_samples.high < 0.8


def test_measures_with_unscorable_answers_and_partial_rewards() -> None:
    answers = Answers(
        sampled=np.array([[1, 0, NAN], [0.5, 2, 0], [NAN, NAN, NAN], [-1, NAN, NAN]]),
        greedy=np.array([1, 0.9, NAN, 0]),
        lengths=np.array([[1, 2, 3], [4, 4, 4], [1, 1, 1], [0, 0, 3]], float),
        traits={},
    )
    expected = {
        "sampled_accuracy": [1 / 2, 1 / 3, NAN, 0],  # right of scored
        "greedy_accuracy": [1, 0, NAN, 0],  # .9 is not right
        "pass@2": [1, 2 / 3, NAN, NAN],  # 1 − C(1,2)/C(2,2); 1 − C(2,2)/C(3,2); too few scored
        "pass@3": [NAN, 1, NAN, NAN],
        "mean_reward": [0.5, 2.5 / 3, NAN, -1],
        "mean_length": [2, 4, 1, 1],
    }
    measures = answers.measures([2, 3])
    assert list(measures) == list(expected)
    for name, values in expected.items():
        assert measures[name] == pytest.approx(values, nan_ok=True), name
    evaluation = summarise(answers, [2])
    assert evaluation.sampled_accuracy.mean == pytest.approx(5 / 18)  # of three problems, not 0 for the third
    assert (evaluation.unscorable, evaluation.answers) == (7, 16)


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.706), (5, 2.776), (10, 2.262), (31, 2.042), (1001, 1.962)]
)
def test_intervals_over_seeds_are_those_of_student(count: int, quantile: float) -> None:
    """The quantiles are those of printed tables."""
    values = np.random.default_rng(0).normal(3, 2, count)
    found = student([*values, NAN])
    half = quantile * values.std(ddof=1) / math.sqrt(count)
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.mean, found.mean - found.low) == (pytest.approx(half, rel=3e-4),) * 2


def test_intervals_of_one_seed_and_of_none() -> None:
    assert student([0.5]) == Estimate(0.5, -math.inf, math.inf)
    assert str(student([0.5])) == "0.500"
    assert math.isnan(student([NAN]).low)


def test_nothing_scorable_is_a_dash_and_no_zero() -> None:
    nothing = np.full((2, 2), NAN)
    evaluation = summarise(Answers(nothing, nothing[0], np.ones((2, 2)), {}), [2])
    assert [str(evaluation.sampled_accuracy), str(evaluation.pass_at[2])] == ["–", "–"]
    assert f"{Estimate(0.5, -0.25, 1):+.1f}" == "+0.5 [-0.2, +1.0]"


def test_what_was_not_scorable_comes_back_from_strict_json(tmp_path: Path) -> None:
    """NaN is null in the file, which any reader of JSON takes, and NaN again when a run goes on."""
    nothing = Estimate(math.nan, math.nan, math.nan)
    before = Evaluation(nothing, nothing, math.nan, {"reply": math.nan}, {2: nothing}, nothing, 2, 4, 4)
    results.write_before(tmp_path, before)
    assert "NaN" not in (tmp_path / "before.json").read_text()
    read = results.read_before(tmp_path)
    assert read is not None
    assert str(read.sampled_accuracy) == str(read.pass_at[2]) == "–"
    assert math.isnan(read.mean_length)
    assert math.isnan(read.traits["reply"])


def test_paired_differences() -> None:
    def greedy(*rewards: float) -> Answers:
        values = np.array(rewards)
        return Answers(values[:, None], values, np.ones((len(values), 1)), {})

    first, second = greedy(*[1, 0] * 50, NAN, 1), greedy(*[1, 0.0] * 49, 1, 1, 1, NAN)
    # One of 100 problems better, none worse; two were not scored in both. Unpaired, the interval would be ± .14.
    difference = differences(first, second)["greedy_accuracy"]
    assert difference.mean == pytest.approx(0.01)
    assert (difference.low, difference.high) == (0, pytest.approx(0.03, abs=0.01))
    with pytest.raises(InputError, match="the same problems: got 102 and 3"):
        differences(first, greedy(1, 1, 0))


# Answers


def test_scripted_answers_are_scored_one_by_one() -> None:
    model = Scripted("1", "0.5", "?", "0", "1", "1", "0", "?")  # 3 samples × 2 problems, then greedy
    shown = []
    sampling = Sampling(samples=3, batch_size=4, generation_kwargs=BY_GENERATE)
    answers = answer(model, TOKENIZER, Marks(), PROBLEMS, sampling, lambda *at: shown.append(at))
    evaluation = summarise(answers, usual_pass_at(3))
    # First problem: 1, .5, ?; second: 0, 1, 1; greedy 0 and ?.
    assert evaluation.sampled_accuracy.mean == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert evaluation.mean_reward.mean == pytest.approx((1.5 / 2 + 2 / 3) / 2)
    assert evaluation.greedy_accuracy.mean == 0
    assert {k: e.mean for k, e in evaluation.pass_at.items()} == {2: 1.0, 3: 1.0}
    assert (evaluation.unscorable, evaluation.answers, evaluation.samples) == (2, 8, 3)
    assert evaluation.traits == {"dotted": pytest.approx(1 / 6)}
    assert shown == [(done, 8) for done in range(1, 9)]
    assert [asked["do_sample"] for asked in model.asked] == [True, True, False]
    assert model.training


def test_lengths_end_with_the_first_end_token() -> None:
    end, dot = TOKENIZER.eos_token_id, TOKENIZER.convert_tokens_to_ids(".")
    # The model's own end token counts beside the tokenizer's, and what follows either is not read.
    model = Scripted("12$", "1.2", "123", "$", ends=[dot, end])
    prompts = [encode(TOKENIZER, "1+1=")] * 4
    model.eval()
    texts, lengths = complete(model, TOKENIZER, prompts, Sampling(generation_kwargs=BY_GENERATE), sample=True)
    assert texts == ["12", "1.", "123", ""]
    assert lengths == [3, 2, 3, 1]
    assert model.asked[0]["eos_token_id"] == [end, dot]


def test_the_same_seed_gives_the_same_answers_and_leaves_no_trace() -> None:
    model = tiny_model().train()
    problems = ThinkingSums().problems("test", 12, 0)

    def drawn(**settings: object) -> Answers:
        return answer(
            model, TOKENIZER, Lengths(), problems, Sampling(max_completion_length=8, samples=3, **settings)
        )

    state = torch.random.get_rng_state()
    first, again, other = drawn(seed=1), drawn(seed=1), drawn(seed=2)
    assert np.array_equal(first.sampled, again.sampled)
    assert np.array_equal(first.greedy, again.greedy)
    assert not np.array_equal(first.sampled, other.sampled)
    assert any(len(set(row)) > 1 for row in first.sampled)  # the samples of a problem differ
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training


class Lengths(Marks):
    """A task whose score tells completions apart."""

    def score(self, problem: Problem, completion: str) -> float:
        return float(sum((i + 1) * ord(c) for i, c in enumerate(completion)))


PROMPTS = ["1=", "9+9+9+9+9+9=", "1+2=", "7+3+2=", "5+5+5+5="]


def greedy_texts(model: object, batch_size: int, **settings: object) -> list[str]:
    rows = [encode(TOKENIZER, prompt) for prompt in PROMPTS]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    sampling = Sampling(max_completion_length=10, **settings)
    return [t for b in batches for t in complete(model, TOKENIZER, b, sampling, sample=False)[0]]


def test_greedy_answers_do_not_depend_on_their_batch() -> None:
    model = tiny_model()
    alone = greedy_texts(model, 1)
    assert len(set(alone)) > 1
    assert greedy_texts(model, 2) == greedy_texts(model, 5) == alone
    for size in (1, 2, 5):
        assert greedy_texts(model, size, generation_kwargs=BY_GENERATE) == alone

    class Unmasked:  # the fault: padding is attended to
        device, generation_config = model.device, model.generation_config

        def generate(self, attention_mask: torch.Tensor, **rest: object) -> torch.Tensor:
            return model.generate(attention_mask=torch.ones_like(attention_mask), **rest)

    assert greedy_texts(Unmasked(), 5, generation_kwargs=BY_GENERATE) != alone


def test_a_models_own_generation_settings_and_missing_padding_change_nothing() -> None:
    model = tiny_model()
    expected = greedy_texts(model, 5)
    model.generation_config.update(repetition_penalty=9.0, temperature=0.1, top_k=1, no_repeat_ngram_size=1)
    assert greedy_texts(model, 5) == expected
    rows = [encode(TOKENIZER, "1+2=")] * 20
    texts, _ = complete(model, TOKENIZER, rows, Sampling(max_completion_length=10), sample=True)
    assert len(set(texts)) > 5  # top_k = 1 would make all alike
    unpadded = policy.character_tokenizer(CHARACTERS)
    unpadded.pad_token = None
    sampling = Sampling(max_completion_length=10)
    rows = [encode(unpadded, prompt) for prompt in PROMPTS]
    assert complete(model, unpadded, rows, sampling, sample=False)[0] == expected


def test_prompts_of_chat_messages() -> None:
    chat = [{"role": "user", "content": "1+2"}]
    tokenizer = policy.character_tokenizer(CHARACTERS)
    with pytest.raises(InputError, match="has no chat template: expected a chat model"):
        encode(tokenizer, chat)
    tokenizer.chat_template = "{{ messages[0].content }}{% if add_generation_prompt %}={% endif %}"
    assert encode(tokenizer, chat) == encode(tokenizer, "1+2=")
    with pytest.raises(InputError, match="the prompt '' has no tokens"):
        encode(tokenizer, "")


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"scored '1' in answer to '1\+1=' with nan: expected a finite number"
    ):
        task = Marks()
        task.score = lambda problem, completion: NAN
        answer(Scripted("1"), TOKENIZER, task, PROBLEMS, Sampling(generation_kwargs=BY_GENERATE))
    with pytest.raises(InputError, match="nothing to evaluate"):
        answer(Scripted("1"), TOKENIZER, Marks(), [], Sampling())


# The command

MY_TASK = """
from lambda_grpo.tasks import Problem

class Mine:
    def problems(self, split, count, seed):
        return [Problem(f"{n}+{n}=", n) for n in range(1, 10)][:count]

    def score(self, problem, completion):
        return None if problem.answer == 3 else 0.25 * (len(completion) % 5)

    def traits(self, completion):
        return {"thinking": float("?" in completion)}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"model-{seed}")
        tiny_model(seed).save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        folders.append(str(folder))
    return folders


def run(*arguments: str) -> int:
    small = ["--problems", "6", "--max_new_tokens", "6", "--batch-size", "16"]
    return cli.main(["eval", *arguments, *small])


def test_two_models_side_by_side(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MY_TASK)
    task = ["--task", "mine.py:Mine", "--output", "deep/er/out.json"]
    assert run(*models, *task, "--samples", "5", "--pass_at", "1,3") == 0
    shown = capsys.readouterr().out
    for words in ("sampled accuracy, avg@5", "pass@3", "thinking rate", "mean reward", "not scorable",
                  "6 of 36", "paired difference", "6 problems (6 distinct prompts), 5 samples each"):  # fmt: skip
        assert words in shown.replace("\n", " "), words
    results = json.loads(Path("deep/er/out.json").read_text())
    assert [column["model"] for column in results["models"]] == models
    first, second = results["models"]
    assert set(first["pass_at"]) == {"1", "3"}
    assert first["pass_at"]["1"] == pytest.approx(first["sampled_accuracy"])
    assert (first["unscorable"], first["answers"], first["samples"]) == (6, 36, 5)
    difference = results["difference"]
    assert difference["mean_reward"]["mean"] == pytest.approx(
        second["mean_reward"]["mean"] - first["mean_reward"]["mean"]
    )
    # The numbers follow from the rewards beside them.
    rewards = np.array(results["rewards"][0]["sampled"], float)
    assert rewards.shape == (6, 5)
    assert np.isnan(rewards[2]).all()
    assert np.nanmean(rewards) == pytest.approx(first["mean_reward"]["mean"])
    assert results["sampling"]["samples"] == 5
    assert not list(tmp_path.rglob("*.partial"))

    # The same once more is the same, and the first file is left alone.
    assert run(*models, "--task", "mine.py:Mine", "--samples", "5", "--output", "again.json") == 0
    assert json.loads(Path("again.json").read_text())["rewards"] == results["rewards"]


def test_a_folder_of_its_own_name_and_nothing_scorable(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MY_TASK.replace("problem.answer == 3", "True"))
    assert run(models[0], "--task", "mine.py:Mine") == 0
    assert "–" in capsys.readouterr().out
    (written,) = tmp_path.glob("eval-mine-py-mine-*.json")
    assert "NaN" not in written.read_text()
    column = json.loads(written.read_text())["models"][0]
    assert column["sampled_accuracy"] == {"mean": None, "low": None, "high": None}


def test_the_documented_command(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "PRETRAINING", embedded.Pretraining(steps=3, batch_size=8))
    monkeypatch.setenv("LAMBDA_GRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    document = (ROOT / "docs/eval.md").read_text()
    (line,) = re.search(r"```sh\n(.*?)```", document, re.DOTALL)[1].splitlines()
    command, *arguments = line.split()[1:]
    assert command == "eval"
    assert run(*(models[0] if part == "runs/first/model" else part for part in arguments)) == 0
    assert (tmp_path / "eval.json").is_file()
    shown = capsys.readouterr().out
    for row in re.findall(r"^│ (.*?) +│", document, re.MULTILINE):
        assert row in shown, row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "thinking-sum"], "unknown task 'thinking-sum': did you mean 'thinking-sums'"),
        (["--samples", "2", "--pass_at", "1,4"], "pass_at: got 4, expected from 1 to the number of samples per problem, 2"),
        (["--pass_at", "0"], "pass_at: got 0, expected from 1"),
        (["--samples", "0"], "samples: got 0, expected at least 1"),
        (["--batch_size", "-1"], "batch_size: got -1, expected at least 1"),
        (["--max_completion_length", "0"], "max_completion_length: got 0, expected at least 1"),
        (["--temperature", "0"], "temperature: got 0.0, expected a number above 0"),
        (["--temperature", "nan"], "temperature: got nan, expected a number above 0"),
        (["--top_p", "1.5"], "top_p: got 1.5, expected above 0, at most 1"),
        (["--top_k", "-1"], "top_k: got -1, expected at least 0"),
        (["--problems", "0"], "problems: got 0, expected at least 1"),
        (["--output", "taken.json"], "output 'taken.json' is already there, and nothing is overwritten"),
        (["--output", "taken.json/in.json"], "'taken.json' is no folder that can be written to"),
        (["no/such-model"], "cannot load a model and tokenizer from 'no/such-model'"),
        (["cut-off"], "cannot load a model and tokenizer from 'cut-off'"),
    ],
)  # fmt: skip
def test_mistakes(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "lambda_grpo.evaluating.compare_models.answer", lambda *_: pytest.fail("a model was run")
    )
    Path("taken.json").write_text("mine")
    tiny_model().save_pretrained("cut-off")
    TOKENIZER.save_pretrained("cut-off")
    weights = Path("cut-off/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    started = time.monotonic()
    assert cli.main(["eval", models[0], *arguments]) == 2  # the bad model is the second one
    assert time.monotonic() - started < 5
    error = capsys.readouterr().err
    assert error.startswith("lambda-grpo: error: ")
    assert message in error
    assert Path("taken.json").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"taken.json", "cut-off"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: MODEL"),
        (["m", "--sample", "2"], "unrecognized arguments: --sample 2"),
        (["m", "--samples", "two"], "argument --samples: invalid int value: 'two'"),
        (["m", "--pass_at", "1,x"], "expected numbers such as 1,8; got '1,x'"),
        (["m", "--split", "dev"], "invalid choice: 'dev' (choose from"),
    ],
)
def test_flags_with_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from lambda_grpo import cli; sys.exit(cli.main(['eval', 'm']))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 2
    assert (
        "needs the package torch, which is not installed: pip install 'lambda-grpo[train]'" in result.stderr
    )
