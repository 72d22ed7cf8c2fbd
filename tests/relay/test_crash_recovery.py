"""kill -9 at random moments, of the generator and of its client: nothing is lost, painted twice or otherwise."""

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from residue import residue

from tests.helpers.polling import until
from tests.helpers.processes import GeneratorProcess
from zrelay_client import (
    Accepted,
    AsyncClient,
    Client,
    Embeds,
    Event,
    Image,
    Outcome,
    Result,
    Unavailable,
)

from .watched import LONG

pytestmark = pytest.mark.timeout(900)
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 3, "deterministic": True}


class Reaper:
    """Kills a generator at random moments of a batch, and starts it again on its port and state."""

    def __init__(self, generator: GeneratorProcess, moments: random.Random, jobs: int, kills: int) -> None:
        self._generator, self._moments, self._jobs, self._planned = generator, moments, jobs, kills
        self.done = asyncio.Condition()
        self.count = self.kills = 0

    async def painted(self) -> None:
        async with self.done:
            self.count += 1
            self.done.notify_all()

    async def reap(self) -> None:
        for after in sorted(self._moments.sample(range(self._jobs - self._jobs // 10), self._planned)):
            async with self.done:
                while self.count < after:
                    await self.done.wait()
            await self._kill(self._moments.uniform(0.0, 0.3))
            if self.kills == 2:  # once more before it serves
                await self._kill(self._moments.uniform(0.0, 3.0))

    async def _kill(self, moment_s: float) -> None:
        await asyncio.sleep(moment_s)  # the random moment is the input of this test
        await asyncio.to_thread(self._generator.kill)
        self.kills += 1
        self._generator.start()


def pixels(outcomes: list[Outcome]) -> dict[int, str]:
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert sorted(outcome.index for outcome in outcomes) == list(range(len(outcomes)))
    return {outcome.index: outcome.result.images[0].pixels_sha256 for outcome in outcomes if outcome.result}


def in_order(generator: GeneratorProcess) -> None:
    """Returns once its state folder holds only what it should, with every job ended."""
    until(lambda: not residue(generator.root / "state", 10_000)[1], "nothing is left in the state folder")


class RepeatedBatch:
    """Many jobs under one name, and the job ids that the client learnt."""

    def __init__(self, client: AsyncClient, embeds: Embeds, name: str, jobs: int) -> None:
        self._client, self._embeds, self._name, self._jobs = client, embeds, name, jobs
        self.job_ids: set[tuple[int, str]] = set()

    async def paint(self, painted: Callable[[], Awaitable[None]]) -> list[Outcome]:
        """The outcomes of one call. Fails where an image is told twice."""
        told: Counter[int] = Counter()
        outcomes = []

        def note(index: int, event: Event) -> None:
            told[index] += isinstance(event, Image)
            if isinstance(event, Accepted):
                self.job_ids.add((index, event.job_id))

        calls = self._client.generate_many(
            self._embeds, seeds=range(self._jobs), batch_id=self._name, on_event=note, **SMALL
        )
        async for outcome in calls:
            outcomes.append(outcome)
            await painted()
        assert max(told.values()) == 1
        return outcomes


@pytest.mark.parametrize(("jobs", "kills"), [(12, 1), pytest.param(100, 4, marks=pytest.mark.deep)])
async def test_a_generator_killed_at_random_moments(
    steadfast: GeneratorProcess, embeds: Embeds, jobs: int, kills: int
) -> None:
    seed = time.time_ns()
    print(f"moments of random.Random({seed})")
    reaper = Reaper(steadfast, random.Random(seed), jobs, kills)
    name = f"killed-{jobs}"
    async with AsyncClient(generator=steadfast.endpoint, timeout_s=240) as client:
        batch = RepeatedBatch(client, embeds, name, jobs)
        reaping = asyncio.create_task(reaper.reap())
        outcomes = await batch.paint(reaper.painted)
        while any(isinstance(outcome.error, Unavailable) for outcome in outcomes):
            # A machine so busy that a start takes longer than a client waits: the batch is asked for again.
            await asyncio.to_thread(steadfast.ready)
            outcomes = await batch.paint(reaper.painted)
        await reaping
        await asyncio.to_thread(steadfast.ready)
        kept = [job async for job in client.jobs.list() if job.request_id.startswith(f"{name}-")]
        alone = [outcome async for outcome in client.generate_many(embeds, seeds=range(jobs), **SMALL)]
    assert reaper.kills == (kills if kills < 2 else kills + 1)
    assert len(batch.job_ids) == jobs, "a job that was lost would have been accepted again"
    assert Counter(job.request_id for job in kept) == Counter(f"{name}-{index}" for index in range(jobs))
    assert {job.state for job in kept} == {"succeeded"}
    assert pixels(outcomes) == pixels(alone)
    assert len(set(pixels(outcomes).values())) == jobs
    in_order(steadfast)


CLIENT = """
import sys
from zrelay_client import Client, Embeds, Progress

def say(event):
    if isinstance(event, Progress) and event.stage == "denoise":
        print(event.completed, flush=True)

with Client(generator=sys.argv[1]) as client:
    client.generate(Embeds.load(sys.argv[2]), request_id="back", on_event=say, **{options!r})
"""


def test_a_client_that_is_killed_comes_back_to_its_job(
    steadfast: GeneratorProcess, embeds: Embeds, undisturbed: Result, tmp_path: Path
) -> None:
    embeds.save(tmp_path / "embeds.safetensors")
    program = CLIENT.replace("{options!r}", repr(LONG))
    command = [sys.executable, "-c", program, steadfast.endpoint, str(tmp_path / "embeds.safetensors")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert 0 < int(process.stdout.readline()) < LONG["num_inference_steps"], "in mid-job"
    process.kill()
    process.communicate()
    events: list[Event] = []
    with Client(generator=steadfast.endpoint) as client:
        result = client.generate(embeds, request_id="back", on_event=events.append, **LONG)
        kept = [job for job in client.jobs.list() if job.request_id == "back"]
    assert [(job.job_id, job.state) for job in kept] == [(result.job_id, "succeeded")], "it is the job of before"
    assert sum(isinstance(event, Image) for event in events) == 1
    assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256
