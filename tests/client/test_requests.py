"""What is asked for, as it goes onto the wire: absent stays absent, what cannot be carried is refused."""

from typing import Any

import pytest

from zrelay_client import AsyncClient, Embeds, GenerateOptions, InvalidArgument
from zrelay_client._requests import encode_request, generate_request

from .conftest import Services


@pytest.fixture
async def embeds(services: Services) -> Embeds:
    async with AsyncClient(encoder=services.encoder) as client:
        return await client.encode("a fox")


async def test_absent_stays_absent(embeds: Embeds) -> None:
    spec = generate_request(embeds, {"width": None}, "mine").message.spec
    assert spec.sampling.ByteSize() == 0
    assert not spec.HasField("preview")
    assert not spec.HasField("negative_prompt")
    assert spec.provenance.prompt == "a fox"
    options = encode_request(["a fox"], None, {}, None).options
    assert options.ByteSize() == 0


async def test_zero_is_not_absent(embeds: Embeds) -> None:
    sampling = generate_request(embeds, {"seed": 0, "guidance_scale": 0.0}, "mine").message.spec.sampling
    assert sampling.HasField("seed")
    assert sampling.HasField("guidance_scale")
    assert not sampling.HasField("width")


def test_only_the_negative_prompt_may_be_empty() -> None:
    request = encode_request(["a", "b"], "", {"hidden_layer": -3, "long_prompt_mode": "pool"}, 77)
    assert [(prompt.text, prompt.allow_empty) for prompt in request.prompts] == [("a", False), ("b", False), ("", True)]
    assert (request.options.hidden_layer, request.options.long_prompt_mode) == (-3, 3)
    assert request.options.text_limit == 77
    assert encode_request(["a"], None, {"text_limit": 9}, 77).options.text_limit == 9


async def test_the_bytes_of_embeddings_pass_through(embeds: Embeds) -> None:
    request = generate_request(embeds, {"keep_prompt": False}, "mine")
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
async def test_what_the_wire_cannot_carry_is_refused(embeds: Embeds, options: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        generate_request(embeds, options, "mine")


async def test_whole_numbers_of_others_are_taken(embeds: Embeds) -> None:
    options: Any = {"seed": Seven(), "num_images": True}
    assert generate_request(embeds, options, "mine").message.spec.sampling.seed == 7


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("generate", {"widht": 64}, "generate\\(\\) knows no keyword 'widht'; did you mean 'width'"),
        ("generate", {"negativ_prompt": "x"}, "did you mean 'negative_prompt'"),
        ("generate", {"zzz": 1}, "there are cfg_normalization, .*width"),
        ("generate", {"encoding": {"think": "none"}}, "encode\\(\\) knows no keyword 'think'"),
        ("encode", {"hidden_layers": -2}, "did you mean 'hidden_layer'"),
    ],
)
async def test_unknown_keywords_are_refused_with_the_nearest(method: str, given: Any, says: str) -> None:
    async with AsyncClient(encoder="127.0.0.1:1", generator="127.0.0.1:1") as client:
        with pytest.raises(TypeError, match=says):
            await getattr(client, method)("a fox", **given)
        with pytest.raises(TypeError, match="expected a text or Embeds, got list"):
            await client.generate(["a fox"])  # type: ignore[arg-type]


def test_every_option_is_read(embeds: Embeds) -> None:
    """A keyword that nobody reads would be ignored in silence."""
    import inspect

    from zrelay_client import EncodeOptions, _references, _requests

    source = inspect.getsource(_requests) + inspect.getsource(_references)
    for kind in (EncodeOptions, GenerateOptions):
        assert [name for name in kind.__annotations__ if f'"{name}"' not in source] == []
