"""Numbers at the extremes of their types get an answer or a typed refusal, and so do very long embeddings."""

from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch

from tests.helpers.extremes import improper
from tests.helpers.refusals import refused_async
from zrelay.v1 import vision_pb2 as pb
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_EMBEDS_ROWS
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel

from .helpers import ENCODER, INPUT, VisionClient, condition_request, conditions, prompt

pytestmark = pytest.mark.hostile


@pytest.mark.deep  # some hundred calls
@pytest.mark.parametrize("method", ["EncodeImages", "ConditionPrompt", "ScoreImages", "GetInfo"])
async def test_any_number_gets_a_proper_status(
    qwen_endpoint: str, siglip_endpoint: str, qwen: VisionClient, method: str
) -> None:
    base: Any = {
        "EncodeImages": pb.EncodeImagesRequest(images=[INPUT], engine=pb.VISION_ENGINE_QWEN3_VL),
        "ConditionPrompt": pb.ConditionPromptRequest.FromString(
            condition_request(prompt(), conditions(alpha=0.5)).to_bytes()
        ),
        "ScoreImages": pb.ScoreImagesRequest(images=[INPUT], texts=["a fox"]),
        "GetInfo": pb.VisionServiceGetInfoRequest(),
    }[method]
    with grpc.insecure_channel(siglip_endpoint if method == "ScoreImages" else qwen_endpoint) as channel:
        assert improper(channel, f"VisionService/{method}", base) == []


async def test_embeddings_of_more_rows_than_any_model_makes_are_refused(qwen: VisionClient) -> None:
    """Embeddings of width 1 had millions of tokens, which were all conditioned."""
    narrow = replace(ENCODER, width=1)
    rows = MAX_EMBEDS_ROWS + 1
    error = await refused_async(
        qwen.condition(condition_request(prompt(rows, 1), conditions(), encoder=narrow)), InvalidArgument
    )
    assert (error.reason, error.field) == ("PROMPT_TOO_LONG", "prompt_embeds.segments[0].prompt_embeds")
    request: Parcel[pb.ConditionPromptRequest] = condition_request(prompt(9, 1), None, encoder=narrow)
    states = request.message.states
    states.fingerprint.CopyFrom((await qwen.info()).engines[0].fingerprint)
    to_wire(request, states.hidden_states, torch.zeros(rows, 1, dtype=torch.bfloat16))
    error = await refused_async(qwen.condition(request), InvalidArgument)
    assert (error.reason, error.field) == ("STATES_TOO_LONG", "states.hidden_states")
