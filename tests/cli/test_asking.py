"""One way to ask: training, validation, the table before → after and `lambda-grpo eval` ask token for token alike."""

import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from lambda_grpo import InputError, cli, policy
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.evaluating import compare_models, evaluation
from lambda_grpo.evaluating.completions import Sampling, encode
from lambda_grpo.policy import embedded
from lambda_grpo.sampling import decode, plain
from lambda_grpo.tasks import Problem, ThinkingSums, get_task
from lambda_grpo.tasks.asking import Asked, PromptFormat, in_words, tokens_holding
from lambda_grpo.tasks.task import before_stop
from lambda_grpo.training import asking_settings, train

TASKS = Path(__file__).parents[1] / "support" / "asked_tasks.py"
TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}[briefly]{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHARACTERS = string.ascii_letters + string.digits + " .,?=+[]\n"


def tokenizer_with(template: str | None = TEMPLATE, characters: str = CHARACTERS) -> Any:
    tokenizer = policy.character_tokenizer(characters)
    tokenizer.chat_template = template
    return tokenizer


def save_model(folder: Path, tokenizer: Any) -> str:
    """A tiny model with generation settings of its own, none of which may have an effect.

    Of the class Granite, because its tokenizer is loaded as it was saved.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GraniteConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )  # fmt: skip
        model = GraniteForCausalLM(config)
    own = {"temperature": 0.3, "top_k": 7, "top_p": 0.5, "min_p": 0.4, "repetition_penalty": 1.5}
    model.generation_config.update(do_sample=True, no_repeat_ngram_size=2, typical_p=0.8, **own)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), tokenizer_with())


@dataclass(frozen=True)
class Call:
    """One call of `generate`: who called, the prompts without padding, the settings that were in force.

    A character is a token, so prompts with the same text have the same tokens.
    """

    phase: str
    prompts: list[str]
    settings: Mapping[str, Any]


# What differs, and may: how `generate` computes, and what is never read.
FREE = {"bos_token_id", "disable_compile", "max_length", "transformers_version"}


class Listener:
    """Hears every call of `generate`, and every request to the tree sampler as the call of `generate` that it stands for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[Call] = []
        self.phase = "training"
        generate = GraniteForCausalLM.generate

        def heard(network: Any, input_ids: Any, attention_mask: Any, **settings: Any) -> Any:
            mode = {name: value for name, value in settings.items() if name != "generation_config"}
            config, _ = network._prepare_generation_config(settings.get("generation_config"), **mode)
            values = {k: v for k, v in config.to_dict().items() if k not in FREE and not k.startswith("_")}
            values["eos_token_id"] = sorted(values["eos_token_id"])
            rows = [row[mask.bool()] for row, mask in zip(input_ids, attention_mask, strict=True)]
            self.calls.append(Call(self.phase, tokenizer_with().batch_decode(rows), values))
            return generate(network, input_ids=input_ids, attention_mask=attention_mask, **settings)

        patch.setattr(GraniteForCausalLM, "generate", heard)
        begin = decode.Decoder.__init__

        def on_tree(self_: Any, network: Any, request: Any) -> None:
            told = plain.drawing(network, request.settings) | {"max_new_tokens": request.max_new_tokens}
            config, _ = network._prepare_generation_config(None, eos_token_id=list(request.end_ids), **told)
            values = {k: v for k, v in config.to_dict().items() if k not in FREE and not k.startswith("_")}
            values["eos_token_id"] = sorted(values["eos_token_id"])
            self.calls.append(Call(self.phase, tokenizer_with().batch_decode(request.prompts), values))
            begin(self_, network, request)

        patch.setattr(decode.Decoder, "__init__", on_tree)
        self.during(patch, train, "_evaluate", "table")
        self.during(patch, train._Trainer, "evaluate", "validation")

    def during(self, patch: pytest.MonkeyPatch, place: Any, name: str, phase: str) -> None:
        function = getattr(place, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.phase = phase
            try:
                return function(*args, **kwargs)
            finally:
                self.phase = "training"

        patch.setattr(place, name, wrapped)

    def differences(self) -> set[str]:
        """The settings in which a phase differs from another, greedy completions aside."""
        drawn = [call.settings for call in self.calls if call.settings["do_sample"]]
        return {name for name in drawn[0] for other in drawn if other[name] != drawn[0][name]}

    def prompts(self) -> dict[str, set[str]]:
        return {
            phase: {prompt for call in self.calls if call.phase == phase for prompt in call.prompts}
            for phase in dict.fromkeys(call.phase for call in self.calls)
        }


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(monkeypatch)


ASKING = [
    "--system_prompt", "Be good.", "--chat_template_kwargs", '{"enable_thinking": false}',
    "--temperature", "0.9", "--top_p", "0.95", "--top_k", "40", "--min_p", "0.05", "--repetition_penalty", "1.1",
    "--generation_kwargs", '{"epsilon_cutoff": 0.001}', "--max_completion_length", "5",
]  # fmt: skip
SMALL = [
    "--max_steps=1", "--per_device_train_batch_size=4", "--num_generations=2", "--train_problems=8",
    "--eval_problems=3", "--validate_every=1", "--validation_problems=2", "--gradient_checkpointing=false",
]  # fmt: skip


def trained(folder: Path, model: str, *arguments: str, task: str = "Spell") -> dict[str, Any]:
    arguments = ("--model", model, f"--task={TASKS}:{task}", "--output_dir", str(folder), *arguments)
    assert cli.main(["train", *SMALL, *arguments]) == 0
    return json.loads((folder / "results.json").read_text())


def test_all_ask_alike(
    listener: Listener, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Prompts by hand; settings equal in `generate` itself; results.json and the line below the table say them."""
    monkeypatch.chdir(tmp_path)
    results = trained(tmp_path / "run", model, *ASKING)
    shown = [capsys.readouterr().out]
    listener.during(monkeypatch, compare_models, "answer", "eval")
    task = ["--task", f"{TASKS}:Spell", "--problems", "3", "--output", "eval.json"]
    assert cli.main(["eval", model, *task, *ASKING]) == 0
    shown.append(capsys.readouterr().out)

    assert set(listener.prompts()) == {"table", "validation", "training", "eval"}
    before, after = "[system]Be good.[user]Spell ", ".[briefly][assistant]"
    for phase, prompts in listener.prompts().items():
        words = [prompt.removeprefix(before).removesuffix(after) for prompt in prompts]
        assert all(len(word) == 3 for word in words), (phase, prompts)
    assert listener.prompts()["eval"] == listener.prompts()["table"]
    assert listener.differences() == set()

    settings = listener.calls[0].settings
    assert {name: settings[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 0.9, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
    }  # fmt: skip
    assert (settings["epsilon_cutoff"], settings["max_new_tokens"]) == (0.001, 5)
    assert (settings["no_repeat_ngram_size"], settings["typical_p"]) == (0, 1.0)  # the model's own are off
    greedy = [call.settings for call in listener.calls if not call.settings["do_sample"]]
    assert {each["repetition_penalty"] for each in greedy} == {1.1}

    told = {
        "chat": True, "system_prompt": "Be good.", "chat_template_kwargs": {"enable_thinking": False},
        "stop": [], "ends_at": [],
    }  # fmt: skip
    drawn = {
        "max_completion_length": 5, "temperature": 0.9, "top_p": 0.95, "top_k": 40, "min_p": 0.05,
        "repetition_penalty": 1.1, "generation_kwargs": {"epsilon_cutoff": 0.001},
    }  # fmt: skip
    assert results["asked"] == told | {"sampling": drawn}
    written = json.loads(Path("eval.json").read_text())
    assert written["models"][0]["asked"] == told
    assert drawn.items() <= written["sampling"].items()
    line = (
        "Asked as a chat, system message 'Be good.', enable_thinking=False, temperature 0.9, top_p 0.95, "
        "top_k 40, min_p 0.05, repetition_penalty 1.1, epsilon_cutoff=0.001, at most 5 tokens"
    )
    for text in shown:
        assert line in " ".join(text.split())


def test_a_models_own_settings_are_off_everywhere(listener: Listener, model: str, tmp_path: Path) -> None:
    """The model's min_p is 0.4, which TRL would leave on, as it would its ban on repeated pairs."""
    trained(tmp_path / "run", model, "--max_completion_length=5")
    assert listener.differences() == set()
    neutral = {
        "min_p": 0.0,
        "no_repeat_ngram_size": 0,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "top_k": 0,
    }
    assert neutral.items() <= listener.calls[0].settings.items()


def test_no_top_k_is_none_in_training_too(model: str, tmp_path: Path) -> None:
    """Of TRL's None transformers 5 makes its default of 50."""
    network, _ = policy.load_policy(model)
    config = LambdaGRPOConfig(str(tmp_path), top_k=None, use_cpu=True, bf16=False)
    assert asking_settings.for_trl(config, network).generation_kwargs["top_k"] == 0
    assert asking_settings.sampling(config).top_k == 0
    assert config.generation_kwargs is None  # ours is another


@pytest.mark.parametrize(
    ("fault", "differs"),
    [
        ("sampling", {"min_p"}),
        ("for_trl", {"no_repeat_ngram_size", "typical_p"}),
        ("ends", {"eos_token_id"}),
    ],
)
def test_a_planted_difference_is_heard(
    listener: Listener, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, differs: set[str]
) -> None:  # fmt: skip
    faults: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "sampling": (asking_settings, "sampling", lambda config: Sampling(max_completion_length=5)),
        "for_trl": (asking_settings, "for_trl", lambda config, model: config),
        "ends": (train, "end_completions_at", lambda trainer, tokens: None),
    }
    monkeypatch.setattr(*faults[fault])
    trained(tmp_path / "run", model, "--min_p=0.05", "--max_completion_length=5", task="Line")
    assert listener.differences() == differs


def test_a_planted_difference_of_prompts_is_heard(
    listener: Listener, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "encode", lambda tokenizer, prompt, kwargs: encode(tokenizer, prompt))
    trained(tmp_path / "run", model, *ASKING)
    ends = {phase: {prompt[-20:] for prompt in prompts} for phase, prompts in listener.prompts().items()}
    assert ends["training"] == ends["validation"] != ends["table"]


def test_eval_of_benchmarks_asks_alike(listener: Listener, model: str, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "Spell ten.", "answer": "1"}\n')
    arguments = [model, "--benchmark", f"aime24:{rows}", "--output", str(tmp_path / "out"), *ASKING]
    assert cli.main(["eval", *arguments]) == 0
    assert listener.prompts() == {"training": {"[system]Be good.[user]Spell ten.[briefly][assistant]"}}
    found = json.loads((tmp_path / "out/results.json").read_text())
    asked = {"chat": True, "system_prompt": "Be good.", "chat_template_kwargs": {"enable_thinking": False}}
    assert found["models"][model]["asked"] == asked
    assert found["sampling"]["min_p"] == 0.05
    assert found["prompt_format"]["chat"] == "auto"


# Chat: auto, on, off


@pytest.mark.parametrize(
    ("task", "how", "template", "expected"),
    [
        ("Spell", PromptFormat(), TEMPLATE, "[user]Spell bal.[assistant]"),
        ("Spell", PromptFormat(), None, "Spell bal."),
        ("Spell", PromptFormat("on"), TEMPLATE, "[user]Spell bal.[assistant]"),
        ("Spell", PromptFormat("off"), TEMPLATE, "Spell bal."),
        ("SpellRaw", PromptFormat(), TEMPLATE, "Spell bal."),
        ("SpellRaw", PromptFormat("on", "Hi."), TEMPLATE, "[system]Hi.[user]Spell bal.[assistant]"),
        ("SpellTold", PromptFormat(), TEMPLATE, "[user]Spell bal.[assistant]"),
        ("SpellTold", PromptFormat("on"), TEMPLATE, "[user]Spell bal.[assistant]"),
    ],
)
def test_what_the_model_reads(task: str, how: PromptFormat, template: str | None, expected: str) -> None:
    tokenizer = tokenizer_with(template)
    asked = Asked(get_task(f"{TASKS}:{task}"), how, tokenizer)
    problem = asked.problems("train", 40, 0)[16]
    assert tokenizer.decode(encode(tokenizer, problem.prompt)) == expected
    assert asked.record([problem])["chat"] == ("[" in expected)


@pytest.mark.parametrize(
    ("task", "how", "template", "message"),
    [
        ("Spell", {"chat": "on"}, None, "chat is on, but the model's tokenizer has no chat template"),
        ("Spell", {"system_prompt": "Hi."}, None,
         "system_prompt is set, but the prompts are not asked as a chat, because the model's tokenizer has no chat"),
        ("Spell", {"chat": "off", "system_prompt": "Hi."}, TEMPLATE, "because chat is off: leave it away"),
        ("SpellRaw", {"system_prompt": "Hi."}, TEMPLATE, "because the task's prompts are texts to be continued (chat on"),
        ("SpellRaw", {"chat_template_kwargs": {"a": 1}}, TEMPLATE, "chat_template_kwargs is set, but the prompts"),
        ("SpellTold", {"chat": "off"}, TEMPLATE, "chat is off, but the task's prompts are chat messages already"),
        ("SpellTold", {"system_prompt": "Hi."}, TEMPLATE, "system_prompt: the task's prompts are chat messages already"),
        ("SpellTold", {}, None, "has no chat template: expected a chat model"),
        ("Spell", {"chat": "yes"}, TEMPLATE, "chat: got 'yes', expected one of auto, on, off"),
        ("Spell", {"chat_template_kwargs": "enable_thinking"}, TEMPLATE, "expected a JSON object"),
        ("Spell", {"chat_template_kwargs": {"tokenize": False}}, TEMPLATE, "'tokenize' is set by the trainer"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(task: str, how: dict[str, Any], template: str | None, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Asked(get_task(f"{TASKS}:{task}"), PromptFormat(**how), tokenizer_with(template)).problems(
            "train", 1, 0
        )
    assert message in str(raised.value)


def test_a_template_that_refuses_a_system_message() -> None:
    refusing = tokenizer_with("{{ raise_exception('no system role') }}")
    with pytest.raises(
        InputError, match=r"the tokenizer's chat template refuses the prompt .*: no system role"
    ):
        encode(refusing, [{"role": "system", "content": "Hi."}])


def test_the_embedded_policy_is_asked_as_before() -> None:
    asked = Asked(
        ThinkingSums(), PromptFormat(), policy.character_tokenizer(embedded.thinking_sums.CHARACTERS)
    )
    plain = ThinkingSums().problems("test", 5, 3)
    assert [each.prompt for each in asked.problems("test", 5, 3)] == [each.prompt for each in plain]
    assert in_words(asked.record(plain)) == "asked as plain text"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat=on", "--model=embedded"], "chat is on, but the model's tokenizer has no chat template"),
        (["--chat=maybe"], "chat: got 'maybe', expected one of auto, on, off"),
        (
            ["--chat=off", "--system_prompt=Hi."],
            "system_prompt is set, but the prompts are not asked as a chat",
        ),
        (['--chat_template_kwargs={"tools": []}'], "'tools' is set by the trainer"),
        (["--credit_kwargs={power: 2}"],
         "argument --credit_kwargs/--credit-kwargs: not JSON: Expecting property name enclosed in double quotes: line 1 "
         "column 2 (char 1); got '{power: 2}', expected an object such as '{\"power\": 0.5}'"),
        (["--generation_kwargs=typical_p"], "--generation-kwargs: not JSON: Expecting value"),
        (["--chat_template_kwargs=[1]"], """expected a JSON object such as '{"enable_thinking": false}', got '[1]'"""),
        (["--fsdp_config={a}"], "argument --fsdp_config/--fsdp-config: not JSON: Expecting property name"),
        (['--generation_kwargs={"top_k": 3}'], "generation_kwargs: 'top_k': set top_k instead"),
        (['--generation_kwargs={"stop_strings": "a"}'], "generation_kwargs: 'stop_strings' cannot be set"),
        (['--generation_kwargs={"typical": 3}'], "'typical': did you mean 'typical_p'?"),
        (['--generation_kwargs={"typical_p": 0.5}', "--use_vllm"], "vLLM would read them in training"),
        (["--min_p=2"], "min_p: got 2.0, expected from 0 to 1"),
        (["--repetition_penalty=0"], "repetition_penalty: got 0.0, expected a number above 0"),
    ],
)  # fmt: skip
def test_train_refuses_before_it_begins(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    task = f"--task={TASKS}:Spell"
    command = ["train", *SMALL, task, "--model", model, "--output_dir", str(tmp_path / "run"), *arguments]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system_prompt", "Hi.", "--chat", "off"], "system_prompt is set, but the prompts"),
        (["--chat_template_kwargs", '{"tools": 1}'], "'tools' is set by the trainer"),
        (["--generation_kwargs", '{"do_sample": false}'], "generation_kwargs: 'do_sample' cannot be set"),
        (["embedded", "--chat", "on"], "chat is on, but the model's tokenizer has no chat template"),
    ],
)
def test_eval_refuses_before_it_begins(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare_models, "answer", lambda *_: pytest.fail("a model was run"))
    assert cli.main(["eval", model, *arguments, "--task", f"{TASKS}:Spell"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "thinking", "{"])
def test_options_that_are_no_json_object(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["eval", "m", "--chat_template_kwargs", text])
    assert "expected a JSON object such as" in capsys.readouterr().err


def test_a_benchmark_without_a_chat_has_no_system_message(
    listener: Listener, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("math_verify")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "Spell ten.", "answer": "1"}\n')
    arguments = [model, "--benchmark", f"aime24:{rows}", "--output", str(tmp_path / "out"), "--chat", "off"]
    assert cli.main(["eval", *arguments, "--max_new_tokens", "4"]) == 0  # the old name
    assert listener.prompts() == {"training": {"Spell ten."}}
    assert "greedy, at most 4 tokens" in " ".join(capsys.readouterr().out.split())


# End strings


@pytest.fixture
def liner(tmp_path: Path) -> str:
    """A model that says few things but newlines, `a` and `b`."""
    return save_model(tmp_path / "liner", tokenizer_with(None, "ab\n"))


def test_a_newline_ends_a_completion(liner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In training, validation and the table; `ab` only cuts what is scored (the task asserts that it is cut)."""
    results = trained(
        tmp_path / "run", liner, "--max_completion_length=9", "--per_device_train_batch_size=32",
        "--num_generations=16", task="Line",
    )  # fmt: skip
    rows = [
        row
        for path in (tmp_path / "run/rollouts").glob("*.parquet")
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    newline, eos = (tokenizer_with(None, "ab\n").convert_tokens_to_ids(t) for t in ("\n", "<eos>"))
    ended = [row["token_ids"] for row in rows if newline in row["token_ids"]]
    assert len(rows) == 32
    assert len(ended) > 5
    assert all(ids.index(newline) == len(ids) - 1 for ids in ended)
    whole = [ids for ids in (row["token_ids"] for row in rows) if ids[-1] in (newline, eos)]
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (clipped,) = [row["completions/clipped_ratio"] for row in metrics if "completions/clipped_ratio" in row]
    assert clipped == pytest.approx(1 - len(whole) / 32)  # a completion that ended so is whole
    assert any("ab" in row["completion"] for row in rows)
    assert results["asked"]["stop"] == ["\n", "ab"]
    assert results["asked"]["ends_at"] == ["\n"]
    assert results["before"]["mean_length"] < 6  # of 9
    shown = " ".join(capsys.readouterr().out.split())
    assert r"Asked as plain text, ending at '\n', temperature 1, at most 9 tokens" in shown
    saved = json.loads((tmp_path / "run/model/generation_config.json").read_text())
    assert saved["eos_token_id"] in (eos, [eos])  # the saved policy is asked by others, for other things


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_task_without_problems_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from lambda_grpo.tasks import Sequences\n"
        "class Own(Sequences):\n"
        "    def problems(self, split, count, seed): return []\n"
    )
    rest = ["--model", model, "--output_dir", str(tmp_path / "run")] if command == "train" else [model]
    assert cli.main([command, "--task", f"{own}:Own", *rest]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lambda-grpo: error: task Own: problems(")
    assert "returned no problem, expected " in said


def test_tokens_that_hold_a_character_are_all_that_end_a_completion() -> None:
    """Whatever tokens come, their text holds the character if and only if one of these is among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    text = "def f(x):\n    return x\n\n\nÜber λ.\n" * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([text], BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    ends = tokens_holding(tokenizer, ["\n"])
    assert 3 < len(ends) < len(tokenizer) / 2  # some with more beside the newline
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        ids = torch.randint(len(tokenizer), (3,), generator=generator).tolist()
        held = "\n" in tokenizer.decode(ids, skip_special_tokens=True)
        assert held == bool(set(ids) & set(ends)), ids
    assert tokens_holding(tokenizer, []) == []


@pytest.mark.parametrize("stop", ["END", ("\n", ""), (3,), 3])
def test_a_stop_that_would_mean_something_else(stop: Any) -> None:
    """A text alone would be read as its characters, and an empty text would end every completion at once."""
    task = ThinkingSums()
    task.stop = stop  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"stop of the task ThinkingSums: got .*expected a tuple of texts"):
        Asked(task, PromptFormat(), tokenizer_with())


def test_a_stop_that_never_comes() -> None:
    """Nothing ends generation but the model's own end tokens and the longest length; all of it is scored."""
    task = ThinkingSums()
    task.stop = ["§", "never"]  # type: ignore[attr-defined]
    task.score = lambda problem, completion: len(completion)  # type: ignore[method-assign]
    asked = Asked(task, PromptFormat(), tokenizer_with())
    assert (asked.stop, asked.ends_at, asked.end_tokens) == (("§", "never"), (), [])
    assert asked.score(asked.problems("train", 1, 0)[0], "nev er") == 6


def test_scores_see_what_stood_before_the_stop() -> None:
    asked = Asked(get_task(f"{TASKS}:Line"), PromptFormat(), tokenizer_with())
    (problem,) = asked.problems("train", 1, 0)
    for completion in ("", "bn\nlm", "xaby", "\n"):
        cut = before_stop(completion, ("\n", "ab"))
        assert asked.score(problem, completion) == len(set(cut) & set(problem.original.prompt[6:9])) / 3
        assert asked.traits(completion) == {"empty": float(cut == "")}
    assert asked.score(Problem("Spell bal.", None), "bal\nx") == 1
