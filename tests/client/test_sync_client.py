"""The facade: the same methods, waiting."""

import asyncio
import inspect
from typing import Any

import pytest

from zrelay_client import Accepted, AsyncClient, Client, Done, GenerateOptions, InvalidArgument


def public(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


def test_it_has_every_method_with_the_same_words() -> None:
    assert public(Client) - {"close"} == public(AsyncClient) - {"aclose"}
    for name in public(Client) - {"close"}:
        assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(AsyncClient, name))
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__
    assert inspect.signature(Client.__init__) == inspect.signature(AsyncClient.__init__)


async def test_it_paints_and_streams(fakes: Any) -> None:
    def work() -> None:
        with Client(**fakes.endpoints) as client:
            result = client.generate("a red fox", GenerateOptions(seed=1))
            kinds = [type(event) for event in client.stream("a red fox", GenerateOptions(seed=1))]
            embeds = client.encode("a red fox")
            assert client.generate(embeds, GenerateOptions(seed=1)).images[0] == result.images[0]
            assert (kinds[0], kinds[-1]) == (Accepted, Done)
            with pytest.raises(InvalidArgument):
                client.generate("")
        client.close()

    await asyncio.to_thread(work)


async def test_leaving_its_stream_cancels_the_job(fakes: Any) -> None:
    fakes.generator.step_s = 5.0

    def work() -> None:
        with Client(**fakes.endpoints) as client:
            for _ in client.stream("a fox", request_id="mine"):
                break

    await asyncio.wait_for(asyncio.to_thread(work), 4)
    assert fakes.generator.cancelled == ["mine"]
