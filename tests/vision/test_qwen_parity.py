"""The same weights give the same states as transformers' Qwen3VLForConditionalGeneration, to 1e-5 in float32."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.helpers.comparisons import largest_token_difference
from tests.helpers.images import picture
from tests.vision.helpers import BLOCKS, load_qwen, loaded_qwen
from zrelay_vision.qwen3_vl.engine import Qwen3VLEngine
from zrelay_vision.qwen3_vl.states import ImageStates, StatesParameters, TokenMode

FOLDERS = ("tiny", "tiny_thinking")
TEXTS = ("", "a red circle", "два кота и 一只猫 🎨\n\n  x", "many words " * 40)


@cache
def engine(folder: Path, hidden_layer: int = -1, cache_bytes: int = 0) -> Qwen3VLEngine:
    return load_qwen(folder, hidden_layer=hidden_layer, cache_bytes=cache_bytes)


def ours(qwen: Qwen3VLEngine, image: Image.Image, options: StatesParameters, area: int | None = None) -> ImageStates:
    """An image is as good as its size and first pixel for a digest here."""
    digest = f"{image.size}{image.getpixel((0, 0))}"
    return qwen.run(qwen.prepare(digest, image.size, lambda: image, options, area), lambda: False)


@cache
def reference(folder: Path) -> tuple[Any, Any, Any]:
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.5, 0.4, 0.3],
    )
    return model, tokenizer, processor


def theirs(
    folder: Path, image: Image.Image, text: str, system: str, size: dict[str, int] | None = None
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """All hidden states of the whole sequence in one forward, and the ids."""
    model, tokenizer, processor = reference(folder)
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]})
    formatted = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    cut = processor(images=[image], return_tensors="pt", **({"size": size} if size else {}))
    count = int(cut["image_grid_thw"].prod()) // 4
    ids = tokenizer(formatted.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt").input_ids
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=cut["pixel_values"],
            image_grid_thw=cut["image_grid_thw"],
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            output_hidden_states=True,
        )
    return tuple(state[0] for state in output.hidden_states), ids[0]


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("hidden_layer", range(-BLOCKS, 0))
def test_every_layer(name: str, hidden_layer: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    states, _ = theirs(folder, picture(50, 40), "a red circle", "be brief")
    options = StatesParameters(hidden_layer, text="a red circle", system_prompt="be brief")
    assert (
        largest_token_difference(ours(engine(folder), picture(50, 40), options).hidden_states, states[hidden_layer])
        < 1e-5
    )
    own = engine(folder, hidden_layer)  # the same from a model that loaded no more than it needs
    assert len(own.model.language_model.layers) == BLOCKS + 1 + hidden_layer
    assert largest_token_difference(ours(own, picture(50, 40), options).hidden_states, states[hidden_layer]) < 1e-5


@settings(max_examples=settings().max_examples // 2)  # half as many as elsewhere: each runs two models
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    text=st.sampled_from(TEXTS),
    system=st.sampled_from(("", "describe it")),
    layer=st.integers(-BLOCKS, -1),
    name=st.sampled_from(FOLDERS),
    held=st.booleans(),
)
def test_any_image_and_text(
    size: tuple[int, int], text: str, system: str, layer: int, name: str, held: bool, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    if 3 in size or 1 in size:  # transformers' processor takes three rows for channels unless the format is given
        size = (size[0] + 3, size[1] + 3)
    made, image = engine(folder, cache_bytes=1 << 30 if held else 0), picture(*size, seed=size[0])
    states, ids = theirs(folder, image, text, system)
    model = reference(folder)[0]
    first = int((ids == model.config.image_token_id).nonzero()[0])
    count = int((ids == model.config.image_token_id).sum())
    end = first + count
    wanted = {
        TokenMode.FULL: states[layer],
        TokenMode.TEXT_ONLY: torch.cat([states[layer][: first - 1], states[layer][end + 1 :]]),
        TokenMode.IMAGE_ONLY: states[layer][first - 1 : end + 1],
        TokenMode.IMAGE_NO_MARKERS: states[layer][first:end],
    }
    starts = {TokenMode.FULL: first, TokenMode.TEXT_ONLY: 0, TokenMode.IMAGE_ONLY: 1, TokenMode.IMAGE_NO_MARKERS: 0}
    for mode, rows in wanted.items():
        got = ours(made, image, StatesParameters(layer, mode, text, system))
        assert largest_token_difference(got.hidden_states, rows) < 1e-5
        assert (got.start, got.count) == (starts[mode], 0 if mode is TokenMode.TEXT_ONLY else count)
    assert ids[first - 1] == model.config.vision_start_token_id and ids[end] == model.config.vision_end_token_id


@pytest.mark.parametrize("area", [16 * 16, 40 * 40, 96 * 96])
def test_a_target_area(tiny: Path, area: int) -> None:
    size = {"shortest_edge": area, "longest_edge": area}
    states, _ = theirs(tiny, picture(70, 30), "", "", size)
    assert (
        largest_token_difference(
            ours(engine(tiny), picture(70, 30), StatesParameters(-3), area).hidden_states, states[-3]
        )
        < 1e-5
    )


def test_the_first_token_of_an_image_is_behind_vision_start(tiny: Path) -> None:
    """The same image after another system prompt stands elsewhere, and says something else."""
    plain = ours(engine(tiny), picture(40, 40), StatesParameters(-2))
    after = ours(engine(tiny), picture(40, 40), StatesParameters(-2, system_prompt="look"))
    assert after.start > plain.start and after.count == plain.count == 4
    assert not torch.allclose(
        plain.hidden_states[plain.start : plain.start + 4], after.hidden_states[after.start : after.start + 4]
    )


def test_bfloat16_is_near_float32(tiny: Path) -> None:
    fine = ours(engine(tiny), picture(50, 40), StatesParameters(-3, text="a circle")).hidden_states
    rough = ours(
        loaded_qwen(tiny, dtype="bfloat16"), picture(50, 40), StatesParameters(-3, text="a circle")
    ).hidden_states
    assert rough.dtype is torch.bfloat16
    assert float((rough.float() - fine).norm() / fine.norm()) < 0.05
