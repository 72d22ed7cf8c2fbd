"""The network goes down in mid-job and comes back: a network namespace's, or a proxy's where there are none."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from zrelay_client import Accepted, AsyncClient, Embeds, Event, Image, Notice, Result

from .links import Cable, Proxied
from .watched import Watched

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
async def network(
    request: pytest.FixtureRequest, generators: Any, link_to: Any, tmp_path: Path
) -> AsyncIterator[Cable | Proxied]:
    """The best means at hand."""
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    import link

    why_not = await asyncio.to_thread(link.possible)
    if why_not:
        print(f"through a proxy: {why_not}")
        steadfast = request.getfixturevalue("steadfast")
        yield Proxied(await link_to(await asyncio.to_thread(steadfast.ready)))
        return
    async with AsyncExitStack() as stack:
        far = stack.enter_context(link.limited(1000))
        generator = type(generators[0])(
            tmp_path / "far",
            flags=("--lease-s", "240", "--insecure-listen"),
            endpoint=f"{far.host}:0",
            prefix=("ip", "netns", "exec", far.namespace),
        )
        generator.start()
        stack.callback(generator.kill)
        yield Cable(far.namespace, await asyncio.to_thread(generator.ready))


async def until_lost(events: list[Event]) -> None:
    """The client has noticed."""
    async with asyncio.timeout(120):
        while not any(isinstance(event, Notice) and event.kind == "lost" for event in events):
            await asyncio.sleep(0.05)


async def test_the_network_goes_down_in_mid_job(network: Cable | Proxied, embeds: Embeds, undisturbed: Result) -> None:
    """For a second, which nobody need notice, and until the client notices."""
    async with AsyncClient(generator=network.endpoint) as client:
        for name in ("briefly", "for-long"):
            job = Watched(client, embeds, name)
            await job.midway()
            network.down()
            await (asyncio.sleep(1.0) if name == "briefly" else until_lost(job.events))
            await network.up()
            result = await job.work
            kept = [one async for one in client.jobs.list() if one.request_id == name]
            assert (job.count(Accepted), job.count(Image)) == (1, 1)
            assert [(one.job_id, one.state) for one in kept] == [(result.job_id, "succeeded")]
            assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256
