"""What a conditioned prompt's fingerprint tells: whatever changes the embeddings, and nothing of a text in clear."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from zrelay.v1.vision_pb2 import (
    BlendMode,
    ConditionPromptRequest,
    EncodeImagesRequest,
    StateNormalization,
    StatesOptions,
    VisionEngine,
    VisionTokens,
)
from zrelay_shared.fingerprint import from_message
from zrelay_shared.wire import Parcel

from .conditions import FILE, asked
from .conftest import Served, condition_request, conditioned, load, prompt, write_qwen3_vl

SECRET = "a lighthouse that nobody may know of"


def particulars(reply: Any) -> str:
    return from_message(reply.message.prompt_embeds.fingerprint).modifications[-1]


async def read(served: Served, **reading: Any) -> tuple[str, bytes]:
    """What the fingerprint says, and the embeddings, of the image read that way."""
    request = condition_request(prompt(), asked(alpha=0.5))
    request.message.states_options.CopyFrom(StatesOptions(**reading))
    reply = await served.condition(request)
    return particulars(reply), bytes(conditioned(reply).view(torch.uint8).numpy().tobytes())


async def test_texts_are_told_by_digest_where_they_count(qwen: Served) -> None:
    plain, without = await read(qwen)
    for name, text in {"text": SECRET, "system_prompt": SECRET + "!"}.items():
        said, embeds = await read(qwen, **{name: text})
        assert said == f"{plain} {name}={hashlib.sha256(text.encode()).hexdigest()[:12]}"
        assert "lighthouse" not in said
        assert embeds != without
    only = VisionTokens.VISION_TOKENS_IMAGE_ONLY  # nothing behind the image is read
    assert await read(qwen, text=SECRET, tokens=only) == await read(qwen, tokens=only)


async def test_saved_states_are_told_by_their_bytes(qwen: Served) -> None:
    said = []
    for text in ("", SECRET, SECRET):
        states = await qwen.encode(
            EncodeImagesRequest(
                images=[FILE],
                engine=VisionEngine.VISION_ENGINE_QWEN3_VL,
                states_options=StatesOptions(text=text),
            )
        )
        given = condition_request(prompt(), ConditionPromptRequest())
        request = Parcel(ConditionPromptRequest(), given, states)
        request.message.CopyFrom(given.message)
        request.message.states.CopyFrom(states.message.results[0].states)
        said.append(particulars(await qwen.condition(request)))
    assert "states=" in said[0] and "image=" not in said[0] and said[0] != said[1] == said[2]


async def test_weights_and_statistics_are_told(ready: Served) -> None:
    weighted = {"blend": BlendMode.BLEND_MODE_TOKEN_WEIGHTS}
    told = [
        particulars(await ready.condition(condition_request(prompt(), asked(token_weights=weights, **weighted))))
        for weights in ([0.5] * 9, [0.25] * 9)
    ]
    assert "token_weights=" in told[0] and told[0] != told[1] and "reference=" not in told[0]
    measured = asked(normalization=StateNormalization.STATE_NORMALIZATION_PER_DIM)
    assert "reference=" in particulars(await ready.condition(condition_request(prompt(), measured)))


def test_template_and_tokenizer_are_in_the_fingerprint(tiny: Path, tmp_path: Path, demo_tokenizer: Path) -> None:
    other = write_qwen3_vl(tmp_path / "other", demo_tokenizer)
    assert load(other).fingerprint.digest == load(tiny).fingerprint.digest
    template = other / "chat_template.jinja"
    if template.exists():
        template.write_text(template.read_text() + "{# and more #}")
    else:
        file = next(f for name in ("chat_template.json", "tokenizer_config.json") if (f := other / name).exists())
        said = json.loads(file.read_text())
        file.write_text(json.dumps({**said, "chat_template": said["chat_template"] + "{# and more #}"}))
    changed = load(other).fingerprint
    assert changed.processor_digest != load(tiny).fingerprint.processor_digest
