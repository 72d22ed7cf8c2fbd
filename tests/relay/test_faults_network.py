"""The network goes down in mid-job and comes back: a network namespace's, or a proxy's where there are none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import link
import pytest

from tests.helpers.links import Cable, LinkTo, Proxied
from tests.helpers.processes import GeneratorProcess
from zrelay_client import Accepted, AsyncClient, Embeds, Image, Notice, Result

from .watched import Watched

pytestmark = [pytest.mark.timeout(900), pytest.mark.deep]


@pytest.fixture
async def network(steadfast: GeneratorProcess, link_to: LinkTo, tmp_path: Path) -> AsyncIterator[Cable | Proxied]:
    """The best means at hand."""
    why_not = await asyncio.to_thread(link.possible)
    if why_not:
        print(f"through a proxy: {why_not}")
        yield Proxied(await link_to(steadfast.endpoint))
        return
    async with AsyncExitStack() as stack:
        far = stack.enter_context(link.limited(1000))
        generator = GeneratorProcess(
            tmp_path / "far",
            flags=("--lease-s", "240", "--insecure-listen"),
            endpoint=f"{far.host}:0",
            prefix=("ip", "netns", "exec", far.namespace),
        )
        generator.start()
        stack.callback(generator.kill)
        yield Cable(far.namespace, await asyncio.to_thread(generator.ready))


async def test_the_network_goes_down_in_mid_job(network: Cable | Proxied, embeds: Embeds, undisturbed: Result) -> None:
    """For a second, which nobody need notice, and until the client notices."""
    async with AsyncClient(generator=network.endpoint) as client:
        for name in ("briefly", "for-long"):
            job = Watched(client, embeds, name)
            await job.midway()
            network.down()
            # One second is the length of the outage that this test is about.
            await (asyncio.sleep(1.0) if name == "briefly" else job.saw(Notice))
            await network.up()
            result = await job.work
            kept = [one async for one in client.jobs.list() if one.request_id == name]
            assert (job.count(Accepted), job.count(Image)) == (1, 1)
            assert [(one.job_id, one.state) for one in kept] == [(result.job_id, "succeeded")]
            assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256
