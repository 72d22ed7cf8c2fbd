"""The link to a generator, the generator, or the client goes away in mid-job: what is accepted is painted, once."""

import asyncio
import os
import pty
import signal
from collections.abc import Awaitable, Callable

import pytest
from cutting import CuttableLink

from tests.helpers.jobs import ENDLESS_FLAGS, PROMPT
from tests.helpers.links import LinkTo
from tests.helpers.polling import until
from tests.helpers.processes import GeneratorProcess, Machine
from zrelay_client import Accepted, AsyncClient, Client, Embeds, Image, Notice, Result

from .watched import Watched

Disturb = Callable[[Watched, CuttableLink, GeneratorProcess], Awaitable[None]]


async def cut_and_restored(job: Watched, link: CuttableLink, generator: GeneratorProcess) -> None:
    await link.cut()
    await job.saw(Notice)
    await link.restore()


async def killed_and_started_again(job: Watched, link: CuttableLink, generator: GeneratorProcess) -> None:
    await asyncio.to_thread(generator.kill)
    generator.start()


@pytest.mark.parametrize("disturb", [cut_and_restored, pytest.param(killed_and_started_again, marks=pytest.mark.deep)])
async def test_the_same_job_goes_on(
    steadfast: GeneratorProcess, embeds: Embeds, undisturbed: Result, link_to: LinkTo, disturb: Disturb
) -> None:
    link = await link_to(steadfast.endpoint)
    async with AsyncClient(generator=link.endpoint) as client:
        job = Watched(client, embeds, disturb.__name__)
        await job.midway()
        await disturb(job, link, steadfast)
        result = await job.work
        kept = [job async for job in client.jobs.list() if job.request_id == disturb.__name__]
    assert [event.kind for event in job.events if isinstance(event, Notice)] == ["lost"]
    assert (job.count(Accepted), job.count(Image)) == (1, 1)
    assert [(one.job_id, one.state) for one in kept] == [(result.job_id, "succeeded")]
    assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256


async def test_an_image_that_was_made_while_the_link_was_down_is_fetched(
    brief: GeneratorProcess, embeds: Embeds, undisturbed: Result, link_to: LinkTo
) -> None:
    link = await link_to(brief.endpoint)
    async with AsyncClient(generator=link.endpoint) as client, AsyncClient(generator=brief.endpoint) as near:
        job = Watched(client, embeds, "while-away")
        await job.midway()
        await link.cut()
        job_id = next(event.job_id for event in job.events if isinstance(event, Accepted))
        await near.jobs.fetch(job_id)
        await link.restore()
        result = await job.work
    assert (result.job_id, job.count(Image)) == (job_id, 1)
    assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256


def test_a_detached_job_outlives_its_client(here: Machine, brief: GeneratorProcess) -> None:
    endpoint = brief.endpoint
    where = ["--encoder", here.endpoints()["encoder"], "--generator", endpoint]
    ran = here.zrelay("generate", PROMPT, "--detach", "--size", "192x192", "--num-inference-steps", "20", *where)
    assert ran.returncode == 0, ran.stderr
    job_id = ran.stdout.strip()
    assert f"zrelay jobs watch {job_id} --generator {endpoint}" in ran.stderr
    watched = here.zrelay("jobs", "watch", job_id, "-o", "circle.png", "--generator", endpoint)
    assert (watched.returncode, watched.stdout) == (0, "circle.png\n"), watched.stderr
    said = here.json("jobs", "fetch", job_id, "--generator", endpoint)
    assert said["files"][0]["path"].startswith("a-small-red-circle-on-a-blue-background-")
    assert (here.here / "circle.png").read_bytes() == (here.here / said["files"][0]["path"]).read_bytes()


def read_until(terminal: int, text: str) -> None:
    """Reads a terminal until it showed `text`."""
    shown = b""
    while text.encode() not in shown:
        shown += os.read(terminal, 4096)


def test_ctrl_c_twice_leaves_the_job_running_and_a_kill_leaves_it_to_the_lease(
    here: Machine, brief: GeneratorProcess
) -> None:
    command = ["generate", PROMPT, "-o", "never.png", *ENDLESS_FLAGS]
    command += ["--encoder", here.endpoints()["encoder"], "--generator", brief.endpoint]
    with Client(generator=brief.endpoint) as client:

        def unended() -> set[str]:
            return {job.job_id for job in client.jobs.list(states=["queued", "running"])}

        until(lambda: not unended(), "the generator is idle")
        terminal, stderr = pty.openpty()
        leaving = here.start(*command, stderr=stderr)
        os.close(stderr)
        (left,) = until(unended, "the first job is accepted")
        leaving.send_signal(signal.SIGINT)
        read_until(terminal, "press it again now")
        leaving.send_signal(signal.SIGINT)
        read_until(terminal, left)
        assert (leaving.communicate()[0], leaving.returncode) == ("", 130)
        os.close(terminal)

        killed = here.start(*command)
        (abandoned,) = until(lambda: unended() - {left}, "the second job is accepted")
        killed.kill()
        killed.communicate()
        assert abandoned in unended()
        until(lambda: client.jobs.get(abandoned).state == "cancelled", "the lease of the second job expires")
        assert left in unended(), "its client went earlier, so its lease would have expired too"
        assert not (here.here / "never.png").exists()
        ended = here.zrelay("jobs", "cancel", left, "--generator", brief.endpoint)
        assert ended.stdout.startswith(f"{left} "), ended.stderr


def test_a_generator_that_hangs_is_passed_over(
    steadfast: GeneratorProcess, brief: GeneratorProcess, embeds: Embeds
) -> None:
    """A machine that sleeps: connections open, and nobody answers."""
    assert steadfast.popen is not None
    steadfast.popen.send_signal(signal.SIGSTOP)
    try:
        with Client(generator=[steadfast.endpoint, brief.endpoint]) as client:
            result = client.generate(embeds, width=64, height=64, num_inference_steps=2, timeout_s=60)
        assert result.generator == brief.endpoint
    finally:
        steadfast.popen.send_signal(signal.SIGCONT)
