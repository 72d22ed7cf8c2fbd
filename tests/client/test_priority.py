"""The priority that jobs are sent with: by the command line, by the library, and where nobody names one."""

import json

import pytest

from tests.helpers.jobs import PROMPT, QUICK, QUICK_FLAGS
from zrelay_client import AsyncClient, Client, InvalidArgument
from zrelay_shared import exits

from .conftest import Services, Zrelay


@pytest.fixture(autouse=True)
def _nothing_recorded(services: Services) -> None:
    services.take_priorities()


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        ([], ["interactive"]),
        (["--num-images", "2"], ["normal"]),
        (["--count", "1"], ["normal"]),
        (["--count", "2"], ["normal", "normal"]),
        (["--seeds", "7,9"], ["normal", "normal"]),
        (["--priority", "batch"], ["batch"]),
        (["--priority", "normal"], ["normal"]),
        (["--seeds", "7,9", "--priority", "interactive"], ["interactive", "interactive"]),
        (["--detach"], ["interactive"]),
        (["--detach", "--seeds", "7"], ["normal"]),
        (["--detach", "--priority", "batch"], ["batch"]),
        (["--detach", "--seeds", "7", "--priority", "interactive"], ["interactive"]),
    ],
)
async def test_generate(services: Services, zrelay: Zrelay, flags: list[str], sent: list[str]) -> None:
    ran = await zrelay("generate", PROMPT, *flags, *QUICK_FLAGS, *services.flags)
    assert ran.returncode == 0, ran.stderr
    assert services.take_priorities() == sent
    await services.idle()


async def test_an_unknown_priority_is_a_usage_error(services: Services, zrelay: Zrelay) -> None:
    ran = await zrelay("generate", PROMPT, "--priority", "urgent", *services.flags)
    assert ran.returncode == exits.USAGE
    assert "'--priority': expected one of interactive, normal, batch" in ran.stderr
    assert services.take_priorities() == []


async def test_the_library_sends_what_a_call_names_and_else_nothing(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        await client.generate(PROMPT, **QUICK)
        await client.generate(PROMPT, priority="interactive", **QUICK)
        job = await client.submit(PROMPT, priority="batch", **QUICK)
        await client.jobs.fetch(job.job_id)
        async for outcome in client.generate_many(PROMPT, seeds=[1, 2], priority="batch", width=64, height=64):
            assert outcome.error is None
        with pytest.raises(InvalidArgument, match="priority: expected one of"):
            await client.generate(PROMPT, priority="urgent", **QUICK)  # type: ignore[arg-type]
    assert services.take_priorities() == ["unspecified", "interactive", "batch", "batch", "batch"]


def test_the_synchronous_client_takes_it_too(services: Services) -> None:
    with Client(**services.endpoints) as client:
        client.generate(PROMPT, priority="batch", **QUICK)
    assert services.take_priorities() == ["batch"]


async def test_the_picture_is_the_same(services: Services, zrelay: Zrelay) -> None:
    """Priority orders jobs; it changes nothing of a picture."""
    found = []
    for priority in ("interactive", "batch"):
        flags = ["--priority", priority, "--seed", "7", "--json", *QUICK_FLAGS]
        ran = await zrelay("generate", PROMPT, *flags, *services.flags)
        found.append(json.loads(ran.stdout)["files"][0]["pixels_sha256"])
    assert found[0] == found[1]
