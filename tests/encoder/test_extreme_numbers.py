"""Numbers at the extremes of their types get an answer or a typed refusal."""

from typing import Any

import grpc
import pytest

from tests.helpers.extremes import improper
from zrelay.v1 import encoder_pb2 as pb

pytestmark = pytest.mark.hostile


@pytest.mark.deep  # some hundred calls
@pytest.mark.parametrize(
    ("method", "base"),
    [
        ("EncodePrompts", pb.EncodePromptsRequest(prompts=[{"text": "a fox"}])),
        ("FormatPrompt", pb.FormatPromptRequest(prompts=[{"text": "a fox"}])),
        ("GetInfo", pb.EncoderServiceGetInfoRequest()),
    ],
)
def test_any_number_gets_a_proper_status(demo_endpoint: str, method: str, base: Any) -> None:
    with grpc.insecure_channel(demo_endpoint) as channel:
        assert improper(channel, f"EncoderService/{method}", base) == []
