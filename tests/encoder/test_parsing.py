"""Requests are taken or refused by the path of the field at fault."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from tests.helpers.refusals import refused
from zrelay.v1.encoder_pb2 import EncodePromptsRequest, FormatPromptRequest
from zrelay_encoder.api import requests
from zrelay_encoder.api.capabilities import CAPABILITIES
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.prompts.formatting import ChatMessage, Conversation, single_turn
from zrelay_encoder.runtime import EncodeRequest, FormatRequest
from zrelay_shared.errors import FeatureMissing

CONFIG = EncoderConfig(model=Path("model"), max_prompts=2, max_prompt_chars=20, max_text_limit=4096)
STAR = "prompts { text: 'a star' }"


def encode(text: str) -> EncodeRequest:
    return requests.parse_encode(text_format.Parse(text, EncodePromptsRequest()), CONFIG)


def test_defaults() -> None:
    assert encode(STAR) == EncodeRequest((single_turn("a star"),))


def test_everything_that_is_there() -> None:
    call = encode(
        "prompts { text: 'a star' thinking_content: 'five' } prompts { text: 'b' think_mode: THINK_MODE_EMPTY }"
        "options { hidden_layer: -3 text_limit: 7 long_prompt_mode: LONG_PROMPT_MODE_REFUSE dtype: TENSOR_DTYPE_F32"
        " pad_to: 6 deterministic: true bypass_cache: true return_formatted_prompts: true }"
    )
    assert call.prompts == (
        Conversation((ChatMessage("user", "a star"),), "content", "five"),
        Conversation((ChatMessage("user", "b"),), "empty"),
    )
    assert (call.hidden_layer, call.text_limit, call.refuse_long, call.dtype) == (-3, 7, True, "F32")
    assert (call.pad_to, call.deterministic) == (6, True)


def test_an_empty_prompt_that_is_meant_is_the_unconditional_one() -> None:
    call = encode("prompts { allow_empty: true }")
    assert call.prompts == (single_turn(""),)


def test_format() -> None:
    request = text_format.Parse(STAR + " text_limit: 9", FormatPromptRequest())
    assert requests.parse_format(request, CONFIG) == FormatRequest((single_turn("a star"),), 9)


@pytest.mark.parametrize(
    ("request_text", "field", "reason"),
    [
        ("", "prompts", "PROMPT_COUNT"),
        (STAR * 3, "prompts", "PROMPT_COUNT"),
        ("prompts { text: '' }", "prompts[0].text", "PROMPT_EMPTY"),
        (STAR + "prompts { text: ' \\n' }", "prompts[1].text", "PROMPT_EMPTY"),
        ("prompts { }", "prompts[0].text", "PROMPT_EMPTY"),
        ("prompts { text: '123456789012345678901' }", "prompts[0]", "PROMPT_TOO_LARGE"),
        ("prompts { text: '1234567890' thinking_content: '12345678901' }", "prompts[0]", "PROMPT_TOO_LARGE"),
        ("prompts { text: 'a' think_mode: THINK_MODE_CONTENT }", "prompts[0].thinking_content",
         "THINKING_CONTENT_INVALID"),
        ("prompts { text: 'a' think_mode: THINK_MODE_NONE thinking_content: 'b' }", "prompts[0].thinking_content",
         "THINKING_CONTENT_INVALID"),
        (STAR + "options { text_limit: 0 }", "options.text_limit", "TEXT_LIMIT_INVALID"),
        (STAR + "options { text_limit: 4097 }", "options.text_limit", "TEXT_LIMIT_INVALID"),
        (STAR + "options { pad_to: 0 }", "options.pad_to", "PAD_TO_INVALID"),
        (STAR + "options { dtype: TENSOR_DTYPE_I64 }", "options.dtype", "DTYPE_INVALID"),
    ],
)  # fmt: skip
def test_bad_values_are_refused(request_text: str, field: str, reason: str) -> None:
    error = refused(lambda: encode(request_text), reason=reason, field=field)
    assert error.message.startswith(field)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("prompts[0].think_mode", "THINK_MODE_UNKNOWN"), ("prompts[0].quote_stripping", "QUOTE_STRIPPING_UNKNOWN"),
     ("options.long_prompt_mode", "LONG_PROMPT_MODE_UNKNOWN"), ("options.dtype", "DTYPE_INVALID"),
     ("prompts[0].conversation.messages[0].role", "ROLE_UNKNOWN")],
)  # fmt: skip
def test_unknown_enum_values_are_refused(path: str, reason: str) -> None:
    request = text_format.Parse(STAR, EncodePromptsRequest())
    name = path.rpartition(".")[2]
    if "messages" in path:
        request.prompts[0].conversation.messages.add(role=99)
    else:
        setattr(request.options if path.startswith("options") else request.prompts[0], name, 99)
    refused(lambda: requests.parse_encode(request, CONFIG), reason=reason, field=path, match="99")


@pytest.mark.parametrize(
    ("request_text", "feature"),
    [
        ("prompts { text: 'a' system_prompt: 'b' }", "encode.system_prompt"),
        ("prompts { text: 'a' assistant_prefill: 'b' }", "encode.prefill"),
        ("prompts { text: 'a' template: 'b' }", "encode.template"),
        ("prompts { text: 'a' clean_whitespace: true }", "encode.clean_whitespace"),
        ("prompts { text: 'a' quote_stripping: QUOTE_STRIPPING_ALL }", "encode.quote_stripping"),
        ("prompts { conversation { } }", "encode.conversation"),
        ("prompts { conversation { messages { role: CHAT_ROLE_SYSTEM content: 'a' } } }", "encode.conversation"),
        (STAR + "options { layer_weights { hidden_layer: -2 weight: 1 } }", "encode.layer_weights"),
        (STAR + "options { steering { } }", "encode.steering"),
        (STAR + "options { long_prompt_mode: LONG_PROMPT_MODE_POOL }", "encode.long_prompt.pool"),
        (STAR + "options { long_prompt_mode: LONG_PROMPT_MODE_INTERPOLATE }", "encode.long_prompt.interpolate"),
        (STAR + "options { long_prompt_mode: LONG_PROMPT_MODE_ATTENTION_POOL }", "encode.long_prompt.attention_pool"),
    ],
)
def test_what_is_not_built_is_refused_as_get_info_says(request_text: str, feature: str) -> None:
    assert refused(lambda: encode(request_text), FeatureMissing).metadata == {"feature": feature}
    assert feature in [known.name for known in CAPABILITIES if not known.available]
