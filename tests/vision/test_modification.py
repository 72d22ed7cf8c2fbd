"""The fingerprint of a conditioned prompt: everything that changes the embeddings, and no text in clear."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from tests.vision.helpers import (
    INPUT,
    VisionClient,
    condition_request,
    conditioned,
    conditions,
    load_qwen,
    loaded_qwen,
    prompt,
    write_qwen3_vl,
)
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

SECRET = "a lighthouse that nobody may know of"


def particulars(reply: Any) -> str:
    return from_message(reply.message.prompt_embeds.fingerprint).modifications[-1]


async def read(served: VisionClient, **reading: Any) -> tuple[str, bytes]:
    """Returns the details in the fingerprint, and the embeddings, for an image that is read with these options."""
    request = condition_request(prompt(), conditions(alpha=0.5))
    request.message.states_options.CopyFrom(StatesOptions(**reading))
    reply = await served.condition(request)
    return particulars(reply), bytes(conditioned(reply).view(torch.uint8).numpy().tobytes())


async def test_texts_appear_as_digests_where_they_count(qwen: VisionClient) -> None:
    plain, without = await read(qwen)
    for name, text in {"text": SECRET, "system_prompt": SECRET + "!"}.items():
        details, embeds = await read(qwen, **{name: text})
        assert details == f"{plain} {name}={hashlib.sha256(text.encode()).hexdigest()[:12]}"
        assert "lighthouse" not in details
        assert embeds != without
    only = VisionTokens.VISION_TOKENS_IMAGE_ONLY  # nothing behind the image is read
    assert await read(qwen, text=SECRET, tokens=only) == await read(qwen, tokens=only)


async def test_saved_states_appear_as_a_digest(qwen: VisionClient) -> None:
    details = []
    for text in ("", SECRET, SECRET):
        states = await qwen.encode(
            EncodeImagesRequest(
                images=[INPUT],
                engine=VisionEngine.VISION_ENGINE_QWEN3_VL,
                states_options=StatesOptions(text=text),
            )
        )
        given = condition_request(prompt(), ConditionPromptRequest())
        request = Parcel(ConditionPromptRequest(), given, states)
        request.message.CopyFrom(given.message)
        request.message.states.CopyFrom(states.message.results[0].states)
        details.append(particulars(await qwen.condition(request)))
    assert "states=" in details[0] and "image=" not in details[0] and details[0] != details[1] == details[2]


async def test_weights_and_statistics_appear(calibrated: VisionClient) -> None:
    weighted: dict[str, Any] = {"blend": BlendMode.BLEND_MODE_TOKEN_WEIGHTS}
    details = [
        particulars(
            await calibrated.condition(condition_request(prompt(), conditions(token_weights=weights, **weighted)))
        )
        for weights in ([0.5] * 9, [0.25] * 9)
    ]
    assert "token_weights=" in details[0] and details[0] != details[1] and "reference=" not in details[0]
    measured = conditions(normalization=StateNormalization.STATE_NORMALIZATION_PER_DIM)
    assert "reference=" in particulars(await calibrated.condition(condition_request(prompt(), measured)))


def test_template_and_tokenizer_are_in_the_fingerprint(tiny: Path, tmp_path: Path, demo_tokenizer: Path) -> None:
    other = write_qwen3_vl(tmp_path / "other", demo_tokenizer)
    before, original = load_qwen(other).fingerprint, loaded_qwen(tiny).fingerprint
    assert before is not None and original is not None and before.digest == original.digest
    template = other / "chat_template.jinja"
    if template.exists():
        template.write_text(template.read_text() + "{# and more #}")
    else:
        file = next(f for name in ("chat_template.json", "tokenizer_config.json") if (f := other / name).exists())
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "chat_template": config["chat_template"] + "{# and more #}"}))
    changed = load_qwen(other).fingerprint
    assert changed is not None and changed.processor_digest != original.processor_digest
