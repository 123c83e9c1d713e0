"""Weights are trained in float32 whatever the checkpoint holds, and a precision that is too low is noticed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lambda_grpo import InputError, cli, policy
from lambda_grpo.training import precision
from lambda_grpo.training.settings import resolve

pytestmark = pytest.mark.usefixtures("quick_policy")
TASK = Path(__file__).parents[1] / "support" / "varied_task.py"
SMALL = [
    "--max_steps=4", "--per_device_train_batch_size=8", "--num_generations=4", "--eval_problems=2",
    "--max_completion_length=14", "--learning_rate=1e-6", "--lr_scheduler_type=constant", f"--task={TASK}:Varied",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(quick_policy: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded policy, written as most published models are: in bfloat16."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, tokenizer = policy.load_policy(str(policy.embedded_policy()))
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("flags", "least", "most"),
    [([], 0.95, 1), (["--dtype=auto"], 0, 0.05), (["--dtype=bfloat16"], 0, 0.05)],
    ids=["default", "auto", "bfloat16"],
)
def test_how_many_weights_four_steps_change(
    checkpoint: str,
    flags: list[str],
    least: float,
    most: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """A step at 1e-6 moves nearly every weight in float32. bfloat16 has 8 bits: hardly any weight moves."""
    folder = tmp_path / "run"
    assert cli.main(["train", "--model", checkpoint, *SMALL, *flags, "--output_dir", str(folder)]) == 0
    before, after = (
        dict(policy.load_policy(path)[0].named_parameters()) for path in (checkpoint, str(folder / "model"))
    )
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16 if flags else torch.float32}
    changed = sum(int((before[name].float() != after[name].float()).sum()) for name in before)
    assert least <= changed / sum(weight.numel() for weight in before.values()) <= most
    warned = "bfloat16 does not resolve the learning rate 1e-06" in " ".join(capsys.readouterr().out.split())
    assert warned == bool(flags)


def test_the_smallest_change_is_the_smallest() -> None:
    """Of 1 it is 2^-8 in bfloat16 and 2^-11 in float16; what is less leaves a weight as it is, what is more does not."""
    assert precision.smallest_change(1.0, torch.bfloat16) == 2**-8
    assert precision.smallest_change(1.0, torch.float16) == 2**-11
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for value in (0.02, 0.3, 1.0, 7.0):
            weight = torch.tensor(value).to(dtype).double()
            least = precision.smallest_change(float(weight), dtype)
            assert (weight + 0.99 * least).to(dtype).double() == weight
            assert (weight + 1.01 * least).to(dtype).double() != weight


def test_when_it_warns() -> None:
    """Weights of 0.02 in bfloat16 change by 2^-14 = 6.1e-5 or more."""

    def warned(rate: float, optim: str = "adamw_torch", dtype: torch.dtype = torch.bfloat16) -> bool:
        layer = torch.nn.Linear(4, 4, bias=False, dtype=dtype)
        layer.weight.data.fill_(0.02)
        return bool(precision.warning(layer, SimpleNamespace(learning_rate=rate, optim=optim)))

    assert warned(6e-5)
    assert not warned(6.2e-5)
    assert not warned(6e-5, "sgd")
    assert not warned(1e-6, dtype=torch.float32)
    assert warned(1e-10, dtype=torch.float32)


def test_adapters_are_judged_by_themselves() -> None:
    """peft holds them in float32, and frozen weights need not change."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4).bfloat16().requires_grad_(False), torch.nn.Linear(4, 4))
    assert not precision.warning(model, SimpleNamespace(learning_rate=1e-6, optim="adamw_torch"))
    model.requires_grad_(True)
    assert precision.warning(model, SimpleNamespace(learning_rate=1e-6, optim="adamw_torch"))


def test_the_precision_may_stand_in_model_init_kwargs() -> None:
    assert precision.loading("float32", None) == {"dtype": "float32"}
    assert precision.loading("float32", {"dtype": "bfloat16", "attn_implementation": "eager"}) == {
        "dtype": "bfloat16", "attn_implementation": "eager"
    }  # fmt: skip
    assert precision.loading("auto", {"dtype": "auto"}) == {"dtype": "auto"}
    with pytest.raises(InputError, match="dtype is 'float16', but model_init_kwargs says 'bfloat16'"):
        precision.loading("float16", {"dtype": "bfloat16"})


def test_float16_with_a_loss_scale() -> None:
    with pytest.raises(InputError, match="dtype: got 'float16', expected float32 where fp16 is set"):
        resolve("default", ["--dtype=float16", "--fp16=true", "--bf16=false"])
