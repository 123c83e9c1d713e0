"""What is no tree goes to the model's own attention, bit for bit: before, between and after packed passes."""

from contextlib import suppress
from typing import Any

import pytest
import torch
from packed_groups import GROUPS, loss_of, packed_of
from tiny_models import make_model
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.modeling_utils import AttentionInterface

from lambda_grpo import InputError
from lambda_grpo.packing import tree_logps
from lambda_grpo.packing.attention import IMPLEMENTATION
from lambda_grpo.packing.attention.switching import switched

IMAGE = 12  # the id of an image's token
TEXT: dict[str, Any] = {
    "vocab_size": 13, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
FLASH = "flash_attention_2"


def llava() -> tuple[Any, dict[str, Any]]:
    """A model with CLIP's tower, and an image of 2 × 2 patches and one class token."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=8,
        patch_size=4, projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    pixels = torch.linspace(-1, 1, 3 * 64).view(1, 3, 8, 8)
    ids = torch.tensor([[1, *[IMAGE] * 5, 2, 3]])
    return LlavaForConditionalGeneration(config), {"input_ids": ids, "pixel_values": pixels}


def qwen2_vl() -> tuple[Any, dict[str, Any]]:
    """A model whose tower has no learned positions, and an image of 4 × 4 patches, merged four by four."""
    rope = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 1e4}
    vision = {
        "depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "in_channels": 3,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(
        vision_config=vision, text_config=TEXT | {"rope_parameters": rope}, image_token_id=IMAGE,
        video_token_id=11, vision_start_token_id=10, vision_end_token_id=9,
    )  # fmt: skip
    ids = torch.tensor([[1, 10, *[IMAGE] * 4, 9, 2]])
    given = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.linspace(-1, 1, 16 * 96).view(16, 96),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    return Qwen2VLForConditionalGeneration(config), given


def with_image(build: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model, given = build()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model, given


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("build", [llava, qwen2_vl])
def test_a_vision_tower_attends_as_before(build: Any, checkpointing: bool | None) -> None:
    model, image = with_image(build)
    if checkpointing is not None:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    before = model(**image).logits.detach()
    for _ in range(2):
        logps = tree_logps(model, packed_of(GROUPS))
        assert torch.equal(model(**image).logits.detach(), before)  # between forward and backward
        loss_of(logps).backward()
        assert torch.equal(model(**image).logits.detach(), before)


def test_a_vision_tower_that_stayed_on_the_tree_attention_is_seen() -> None:
    """The planted fault: without a mask it attends causally."""
    model, image = with_image(llava)
    before = model(**image).logits.detach()
    model.set_attn_implementation(IMPLEMENTATION)
    assert (model(**image).logits.detach() - before).abs().max() > 1e-2


def test_the_text_of_a_model_with_images_equals_plain_rows_beyond_the_towers_positions() -> None:
    """CLIP's tower knows 5 positions here, the text 64; the longest row has 10 tokens."""
    model, _ = with_image(llava)
    prompt, rows = GROUPS[0]
    packed = tree_logps(model, packed_of(GROUPS[:1]))
    for i, row in enumerate(rows):
        logits = model(input_ids=torch.tensor([[*prompt, *row]])).logits[0, len(prompt) - 1 : -1]
        plain = logits.log_softmax(-1)[range(len(row)), row]
        assert (packed[i, : len(row)] - plain).abs().max() < 1e-5


@pytest.mark.parametrize("fails", [False, True])
def test_each_part_gets_its_own_attention_back(fails: bool) -> None:
    """Also a part that no module holds, one that two modules share, and one inside a part."""
    model, _ = with_image(llava)
    config = model.config
    config.vision_config._attn_implementation = "eager"
    config.text_config._attn_implementation = "sdpa"
    config._attn_implementation_internal = "flex_attention"
    model.model.vision_tower = None  # text only: the configuration stays
    inside = CLIPVisionConfig()
    inside._attn_implementation = "eager"
    config.text_config.inside = inside
    model.lm_head.config = config.vision_config.__class__(attn_implementation="eager")
    model.model.multi_modal_projector.config = model.lm_head.config
    parts = [config, config.vision_config, config.text_config, inside, model.lm_head.config]
    before = [part._attn_implementation for part in parts]
    assert before == ["flex_attention", "eager", "sdpa", "eager", "eager"]
    with suppress(KeyError), switched(model):
        assert config.text_config._attn_implementation == IMPLEMENTATION
        for part in parts:  # whatever transformers sets
            part._attn_implementation = IMPLEMENTATION
        if fails:
            raise KeyError("planted")
    assert [part._attn_implementation for part in parts] == before


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for flash attention that records its calls: module, mask and arguments."""
    calls: list[Any] = []
    sdpa = AttentionInterface._global_mapping["sdpa"]

    def flash(
        module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **others: Any
    ) -> Any:
        assert mask is None or mask.ndim == 2  # flash attention takes (rows, length), or none
        calls.append((module, mask, {name: others.get(name) for name in ("scaling", "s_aux")}))
        return sdpa(module, q, k, v, None, **{**others, "is_causal": True})

    monkeypatch.setitem(AttentionInterface._global_mapping, FLASH, flash)
    return calls


def on_flash(model: Any) -> Any:
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = FLASH  # the package itself is not here
    return model


def test_flash_attention_is_called_as_before(flash_calls: list[Any]) -> None:
    model = on_flash(make_model("qwen2").float())
    ids = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    before = model(input_ids=ids).logits.detach()
    asked = list(flash_calls)
    assert len(asked) == 2  # layers
    for _ in range(2):
        flash_calls.clear()
        logps = tree_logps(model, packed_of(GROUPS))
        assert flash_calls == []
        assert torch.equal(model(input_ids=ids).logits.detach(), before)
        assert flash_calls == asked
        loss_of(logps).backward()
        assert flash_calls == asked


def gpt_oss() -> Any:
    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            **TEXT, num_local_experts=2, num_experts_per_tok=1, head_dim=8, sliding_window=3,
            experts_implementation="eager", layer_types=["full_attention", "sliding_attention"],
        )
    )  # fmt: skip
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return model.eval()


@pytest.mark.parametrize("implementation", ["eager", FLASH])
def test_sinks_are_used_as_before_a_refusal(flash_calls: list[Any], implementation: str) -> None:
    model = gpt_oss()
    if implementation == FLASH:
        on_flash(model)
    else:
        model.set_attn_implementation("eager")
    ids = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    before = model(input_ids=ids).logits.detach()
    asked = [(module, mask, given["s_aux"]) for module, mask, given in flash_calls]
    flash_calls.clear()
    with pytest.raises(InputError, match="s_aux cannot be packed"):
        tree_logps(model, packed_of(GROUPS))
    assert flash_calls == []
    assert torch.equal(model(input_ids=ids).logits.detach(), before)
    assert [(module, mask, given["s_aux"]) for module, mask, given in flash_calls] == asked
    if implementation == FLASH:
        assert [
            sinks is layer.self_attn.sinks
            for (*_, sinks), layer in zip(asked, model.model.layers, strict=True)
        ] == [True] * 2
    else:  # there is something to lose: without sinks the logits are others
        for layer in model.model.layers:
            torch.nn.init.constant_(layer.self_attn.sinks, -30)
        assert (model(input_ids=ids).logits.detach() - before).abs().max() > 1e-4


@pytest.mark.slow
def test_continuous_batching_goes_on_as_before() -> None:
    """transformers' own generation of many prompts at a time, which calls a paged attention."""

    def generate(model: Any) -> list[list[int]]:
        config = GenerationConfig(
            max_new_tokens=6, do_sample=False, num_blocks=8, max_batch_tokens=64, eos_token_id=-1, pad_token_id=0
        )  # fmt: skip
        found = model.generate_batch([[1, 2, 3], [4, 5], [6, 7, 8, 9]], generation_config=config)
        return [found[name].generated_tokens for name in sorted(found)]

    model, untouched = make_model("qwen2").float(), make_model("qwen2").float()
    tree_logps(model, packed_of(GROUPS)).sum().backward()
    assert generate(model) == generate(untouched)
    assert model.config._attn_implementation == untouched.config._attn_implementation
    with torch.no_grad():  # and the other way round
        assert torch.equal(tree_logps(model, packed_of(GROUPS)), tree_logps(untouched, packed_of(GROUPS)))
