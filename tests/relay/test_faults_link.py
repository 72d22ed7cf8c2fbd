"""The link to a generator, the generator, or the client goes away in mid-job: what is accepted is painted, once."""

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from zrelay_client import (
    Accepted,
    AsyncClient,
    Client,
    Embeds,
    Image,
    NotFound,
    Notice,
    Result,
)

from .watched import Watched

PROMPT = "a small red circle on a blue background"
SLOW = ["--size", "512x512", "--num-inference-steps", "100"]
"""Several times the lease, on any CPU."""


Disturb = Callable[[Any, Any], Awaitable[None]]


async def cut_and_restored(link: Any, generator: Any) -> None:
    await link.cut()
    await asyncio.sleep(0.5)
    await link.restore()


async def killed_and_started_again(link: Any, generator: Any) -> None:
    await asyncio.to_thread(generator.kill)
    generator.start()


@pytest.mark.parametrize("disturb", [cut_and_restored, killed_and_started_again])
async def test_the_same_job_goes_on(
    generators: Any, embeds: Embeds, undisturbed: Result, link_to: Any, disturb: Disturb
) -> None:
    link = await link_to(generators[0].endpoint)
    async with AsyncClient(generator=link.endpoint) as client:
        job = Watched(client, embeds, disturb.__name__)
        await job.midway()
        await disturb(link, generators[0])
        result = await job.work
        kept = [job async for job in client.jobs.list() if job.request_id == disturb.__name__]
    assert [event.kind for event in job.events if isinstance(event, Notice)] == ["lost"]
    assert (job.count(Accepted), job.count(Image)) == (1, 1)
    assert [(one.job_id, one.state) for one in kept] == [(result.job_id, "succeeded")]
    assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256


async def test_an_image_that_was_made_while_the_link_was_down_is_fetched(
    generators: Any, embeds: Embeds, undisturbed: Result, link_to: Any
) -> None:
    link = await link_to(generators[1].endpoint)
    async with AsyncClient(generator=link.endpoint) as client, AsyncClient(generator=generators[1].endpoint) as near:
        job = Watched(client, embeds, "while-away")
        await job.midway()
        await link.cut()
        job_id = next(event.job_id for event in job.events if isinstance(event, Accepted))
        await near.jobs.fetch(job_id)
        await link.restore()
        result = await job.work
    assert (result.job_id, job.count(Image)) == (job_id, 1)
    assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256


def state_of(endpoint: str, job_id: str) -> str:
    with Client(generator=endpoint) as client:
        return client.jobs.get(job_id).state


def until(state: str, endpoint: str, job_id: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (now := state_of(endpoint, job_id)) != state:
        assert time.monotonic() < deadline, now
        time.sleep(0.2)


def running_job(endpoint: str) -> str:
    """The id of the one job that runs."""
    deadline = time.monotonic() + 120
    with Client(generator=endpoint) as client:
        while not (jobs := list(client.jobs.list(states=["running"]))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return jobs[0].job_id


def test_a_client_that_is_killed_leaves_its_job_to_the_lease(home: Any, generators: Any) -> None:
    endpoint = generators[1].endpoint
    where = ["--encoder", home.endpoints()["encoder"], "--generator", endpoint]
    process = home.start("generate", PROMPT, "-o", "never.png", *SLOW, *where)
    job_id = running_job(endpoint)
    process.kill()
    process.communicate()
    assert state_of(endpoint, job_id) == "running"
    until("cancelled", endpoint, job_id, within_s=120)
    assert not (home.here / "never.png").exists()


def test_a_detached_job_outlives_its_client(here: Any, generators: Any) -> None:
    endpoint = generators[1].endpoint
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


def test_ctrl_c_twice_leaves_the_job_running(here: Any, generators: Any) -> None:
    endpoint = generators[1].endpoint
    where = ["--encoder", here.endpoints()["encoder"], "--generator", endpoint]
    process = here.start("generate", PROMPT, "-o", "circle.png", *SLOW, *where)
    job_id = running_job(endpoint)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert f"zrelay jobs watch {job_id} --generator {endpoint}" in err
    assert not (here.here / "circle.png").exists()
    time.sleep(7)  # more than the lease
    listed = json.loads(here.zrelay("jobs", "list", "--json", "--generator", endpoint).stdout)["jobs"]
    assert {job["job_id"]: job["state"] for job in listed}[job_id] in ("running", "succeeded")
    ended = here.zrelay("jobs", "cancel", job_id, "--generator", endpoint)
    assert ended.stdout.startswith(f"{job_id} "), ended.stderr
    with Client(generator=endpoint) as client, pytest.raises(NotFound):
        client.jobs.get("unknown")


def test_a_generator_that_hangs_is_told_in_time(generators: Any, embeds: Embeds) -> None:
    """A machine that sleeps: connections open, and nobody answers."""
    generators[0].popen.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        with Client(generator=[generators[0].endpoint, generators[1].endpoint]) as client:
            result = client.generate(embeds, width=64, height=64, num_inference_steps=2)
        assert result.generator == generators[1].endpoint
        assert time.monotonic() - started < 9
    finally:
        generators[0].popen.send_signal(signal.SIGCONT)
