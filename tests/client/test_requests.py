"""What is asked for, as it goes onto the wire: absent stays absent, what cannot be carried is refused."""

import dataclasses
import inspect
from typing import Any

import pytest

from zrelay_client import (
    AsyncClient,
    ConditionOptions,
    Embeds,
    EncodeImagesOptions,
    EncodeOptions,
    GenerateOptions,
    InvalidArgument,
)
from zrelay_client._jobs import run
from zrelay_client._vision import references
from zrelay_client._wire import requests
from zrelay_client._wire import vision as vision_requests
from zrelay_client._wire.requests import encode_request, generate_request

from .conftest import Services


@pytest.fixture
async def embeds(services: Services) -> Embeds:
    async with AsyncClient(encoder=services.encoder) as client:
        return await client.encode("a fox")


async def test_absent_stays_absent(embeds: Embeds) -> None:
    spec = generate_request(embeds, GenerateOptions(width=None), "mine").message.spec
    assert spec.sampling.ByteSize() == 0
    assert not spec.HasField("preview")
    assert not spec.HasField("negative_prompt")
    assert spec.provenance.prompt == "a fox"
    options = encode_request(["a fox"], None, EncodeOptions(), None).options
    assert options.ByteSize() == 0


async def test_zero_is_not_absent(embeds: Embeds) -> None:
    sampling = generate_request(embeds, GenerateOptions(seed=0, guidance_scale=0.0), "mine").message.spec.sampling
    assert sampling.HasField("seed")
    assert sampling.HasField("guidance_scale")
    assert not sampling.HasField("width")


def test_only_the_negative_prompt_may_be_empty() -> None:
    request = encode_request(["a", "b"], "", EncodeOptions(hidden_layer=-3, long_prompt_mode="pool"), 77)
    assert [(prompt.text, prompt.allow_empty) for prompt in request.prompts] == [("a", False), ("b", False), ("", True)]
    assert (request.options.hidden_layer, request.options.long_prompt_mode) == (-3, 3)
    assert request.options.text_limit == 77
    assert encode_request(["a"], None, EncodeOptions(text_limit=9), 77).options.text_limit == 9


async def test_the_bytes_of_embeddings_pass_through(embeds: Embeds) -> None:
    request = generate_request(embeds, GenerateOptions(keep_prompt=False), "mine")
    spec = request.message.spec
    assert not spec.provenance.HasField("prompt")
    tensor = spec.prompt.prompt_embeds.segments[0].prompt_embeds
    mine = embeds.parcel.message.prompt.prompt_embeds.segments[0].prompt_embeds
    assert request.bytes_of(tensor).obj is embeds.parcel.bytes_of(mine).obj


class Seven:
    """A whole number of another library, as numpy's are."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": -1}, "width: expected a whole number"),
        ({"width": 64.0}, r"width: expected a whole number, got 64\.0"),
        ({"seed": 1 << 64}, "seed"),
        ({"seed": "7"}, "seed: expected a whole number, got '7'"),
        ({"shift": "3"}, "shift: expected a number, got '3'"),
        ({"sigmas": [1.0, None]}, "sigmas: expected a number"),
        ({"format": "bmp"}, "format: expected one of png, jpeg, webp, got 'bmp'"),
        ({"labels": {"a": "\udcff"}}, "Unicode"),
    ],
)
def test_what_the_wire_cannot_carry_is_refused(options: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        GenerateOptions(**options)


async def test_whole_numbers_of_others_are_taken(embeds: Embeds) -> None:
    options: Any = {"seed": Seven(), "num_images": True}
    assert generate_request(embeds, GenerateOptions(**options), "mine").message.spec.sampling.seed == 7


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("generate", {"widht": 64}, "generate\\(\\) got an unexpected keyword argument 'widht'; did you mean 'width'"),
        ("generate", {"negativ_prompt": "x"}, "did you mean 'negative_prompt'"),
        ("generate", {"zzz": 1}, "expected one of cfg_normalization, .*width"),
        ("generate", {"encoding": {"think": "none"}}, "encoding: unknown option 'think'; did you mean 'think_mode'"),
        ("generate", {"encoding": {"sytem": 1}}, "encoding: unknown option 'sytem'; did you mean 'system_prompt'"),
        ("generate", {"encoding": "none"}, "encoding: expected EncodeOptions or a mapping of its fields, got str"),
        ("encode", {"hidden_layers": -2}, "did you mean 'hidden_layer'"),
    ],
)
async def test_unknown_keywords_are_refused_with_the_nearest(method: str, given: Any, says: str) -> None:
    async with AsyncClient(encoder="127.0.0.1:1", generator="127.0.0.1:1") as client:
        with pytest.raises(TypeError, match=says):
            await getattr(client, method)("a fox", **given)
        with pytest.raises(TypeError, match="expected a text or Embeds, got list"):
            await client.generate(["a fox"])  # type: ignore[arg-type]


def test_every_option_is_read() -> None:
    """An option that no module reads would have no effect."""
    modules = (requests, references, vision_requests, run)
    source = "".join(inspect.getsource(module) for module in modules)
    for kind in (EncodeOptions, GenerateOptions, EncodeImagesOptions, ConditionOptions):
        names = [field.name for field in dataclasses.fields(kind)]
        unread = [name for name in names if f"options.{name}" not in source and f'"{name}"' not in source]
        assert [name for name in unread if name != "conditioning"] == []
