"""Refusals of services name the client's options: every field that the client can set has a name."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.refusals import refused
from zrelay.v1.encoder_pb2 import EncodePromptsRequest
from zrelay.v1.generator_pb2 import GenerateRequest, SubmitJobRequest
from zrelay.v1.vision_pb2 import ConditionPromptRequest, EncodeImagesRequest, ScoreImagesRequest
from zrelay_client import (
    AsyncClient,
    ConditionOptions,
    EncodeImagesOptions,
    EncodeOptions,
    FeatureMissing,
    GenerateOptions,
    InvalidArgument,
)
from zrelay_client._wire import option_names
from zrelay_client._wire.option_names import OptionNames, encode_names
from zrelay_client.options import CallOptions
from zrelay_client.testing import FakeServices
from zrelay_shared.errors import ZrelayError

REQUESTS: list[tuple[Any, OptionNames, str, type[CallOptions] | None]] = [
    (EncodePromptsRequest.DESCRIPTOR, option_names.ENCODE_PROMPTS, "encode_batch", EncodeOptions),
    (EncodeImagesRequest.DESCRIPTOR, option_names.ENCODE_IMAGES, "encode_images", EncodeImagesOptions),
    (ScoreImagesRequest.DESCRIPTOR, option_names.SCORE_IMAGES, "score_images", None),
    (ConditionPromptRequest.DESCRIPTOR, option_names.CONDITION_PROMPT, "condition_prompt", ConditionOptions),
    (ConditionPromptRequest.DESCRIPTOR, option_names.REFERENCE, "generate", ConditionOptions),
    (GenerateRequest.DESCRIPTOR, option_names.GENERATE, "generate", GenerateOptions),
    (SubmitJobRequest.DESCRIPTOR, option_names.GENERATE, "submit", GenerateOptions),
]
"""Request, names of its fields, method that sends it, and the options of the method."""
NO_OPTION = {
    "prompts.conversation",
    "prompts.allow_empty",  # set for negative prompts
    "options.layer_weights",
    "options.steering",
    "options.return_formatted_prompts",
    "spec.inpaint",
    "spec.controls",
    "spec.loras",
    "spec.dype",
    "spec.passes",
    "spec.tiled_vae",
    "detached",  # set by `submit`
}
"""Fields that no option of the client sets."""


def unnamed(message: Any, names: OptionNames, path: str = "") -> Iterator[str]:
    """Yields the paths of fields that have no name."""
    for field in message.fields:
        here = f"{path}{field.name}"
        if here in names.fields or here in NO_OPTION:
            continue
        if here in names.groups and field.message_type is not None:
            yield from unnamed(field.message_type, names, f"{here}.")
        else:
            yield here


@pytest.mark.parametrize(("message", "names", "method", "kind"), REQUESTS)
def test_every_field_that_the_client_can_set_has_a_name(
    message: Any, names: OptionNames, method: str, kind: type[CallOptions] | None
) -> None:
    assert list(unnamed(message, names)) == []


@pytest.mark.parametrize(("message", "names", "method", "kind"), REQUESTS)
def test_names_are_arguments_or_options_of_the_method(
    message: Any, names: OptionNames, method: str, kind: type[CallOptions] | None
) -> None:
    known = set(inspect.signature(getattr(AsyncClient, method)).parameters)
    kinds = {kind, GenerateOptions} if method == "generate" else {kind}
    known |= {field.name for each in kinds if each is not None for field in dataclasses.fields(each)}
    assert {*names.fields.values(), *names.groups.values()} - known == set()


@pytest.mark.parametrize("kind", [EncodeOptions, EncodeImagesOptions, ConditionOptions, GenerateOptions])
def test_every_option_that_reaches_a_service_is_named(kind: type[CallOptions]) -> None:
    named = {name for _, names, _, of in REQUESTS if of is kind for name in names.fields.values()}
    by_the_client = {"reference", "conditioning", "keep_prompt"}  # what they become has names of its own
    assert {field.name for field in dataclasses.fields(kind)} - named - by_the_client == set()


@pytest.mark.parametrize(
    ("names", "path", "name"),
    [
        (option_names.GENERATE, "spec.sampling.width", "width"),
        (option_names.GENERATE, "spec.omni.images[2].content", "omni[2]"),
        (option_names.GENERATE, "spec.prompt.prompt_embeds.segments[0].prompt_embeds", "prompt"),
        (option_names.GENERATE, "spec.provenance", "provenance"),
        (option_names.GENERATE, "spec.loras", None),
        (option_names.ENCODE_IMAGES, "images[1].data", "images[1]"),
        (option_names.ENCODE_IMAGES, "states_options.hidden_layer", "hidden_layer"),
        (option_names.REFERENCE, "image.content.sha256", "reference"),
        (encode_names(1, negative=False), "prompts[0].text", "prompt"),
        (encode_names(1, negative=True), "prompts[1].text", "negative_prompt"),
        (encode_names(1, negative=True), "prompts[1].think_mode", "think_mode"),
        (encode_names(3, negative=False), "prompts[2].text", "prompts[2]"),
        (encode_names(3, negative=True), "prompts[3]", "negative_prompt"),
        (encode_names(3, negative=True), "prompts", "prompts"),
    ],
)
def test_the_name_of_a_path(names: OptionNames, path: str, name: str | None) -> None:
    assert names.of(path) == name


def test_paths_in_the_text_get_their_names_and_files_keep_theirs() -> None:
    text = "spec.sampling.sigmas: expected none beside spec.sampling.num_inference_steps, got image.png"
    assert option_names.GENERATE.in_text(text) == "sigmas: expected none beside num_inference_steps, got image.png"


def test_a_refusal_names_the_option_and_keeps_the_path() -> None:
    with FakeServices() as fake, fake.client() as client:
        error: ZrelayError = refused(lambda: client.generate("a red fox", width=100), field="width", match="^width: ")
        assert error.metadata["contract_field"] == "spec.sampling.width"
        assert error.reason == "WIDTH_INVALID"
        error = refused(lambda: client.submit("a red fox", width=100), field="width", match="^width: ")
        error = refused(lambda: client.encode(""), field="prompt", match="^prompt: expected a description")
        assert (error.metadata["contract_field"], error.reason) == ("prompts[0].text", "PROMPT_EMPTY")
        error = refused(lambda: client.encode_batch(["fox", ""]), field="prompts[1]", match=r"^prompts\[1\]: ")
        error = refused(lambda: client.encode("fox", template="x"), FeatureMissing, field="template")
        assert not isinstance(error, InvalidArgument)
