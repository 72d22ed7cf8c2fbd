"""A job board on a real store, with a list in the device's place."""

import time

import pytest

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.events import Image
from zrelay_generator.engine.job import JobSpec, Priority
from zrelay_generator.features.protocol import Prompt
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.board import JobBoard, Surroundings
from zrelay_generator.jobs.request import Request
from zrelay_generator.runtime import retention
from zrelay_generator.settings import GeneratorConfig
from zrelay_generator.store.store import open_store


@pytest.fixture
async def board(demo, sampling, embeds):
    made = []

    class Made:
        def __init__(self, **changed):
            self.jobs = []
            self.speed = Speed()
            self.config = GeneratorConfig(model=demo, **changed)
            self.store = open_store(self.config.state, retention(self.config))
            around = Surroundings(self.store, self.speed, self.jobs.append, self.load, lambda *_: b"")
            self.specs = {}
            self.board = JobBoard(self.config, around)
            made.append(self)

        async def load(self, entry):
            return self.specs[entry.request_id]

        def measured(self):
            """A step of the smallest picture takes a second, a decode another."""
            self.speed.saw_forward(96, 1.0)
            self.speed.saw_decode(128 * 128, 1.0)

        async def submit(self, name, identity="", priority=Priority.NORMAL, **changed):
            asked = {key: changed.pop(key) for key in ("detached", "caller", "budget_s", "new_bytes") if key in changed}
            spec = JobSpec(Prompt(embeds(4, 8)), sampling(**changed), priority=priority)
            self.specs[name] = spec
            return await self.board.submit(Request(name, identity, spec, b"spec", {}, {}, **asked))

        def publish(self, *events, job=-1):
            for event in events:
                self.board.publish(self.jobs[job], event)

        async def ended(self, entry):
            await self.board.settled(entry)

    yield Made
    for one in made:
        await one.board.close()
        one.store.close()


def picture(size=10):
    sha256 = f"{time.perf_counter_ns():064x}"
    return Image(0, 1, 1, 1, ImageFormat.PNG, b"x" * size, sha256, "")


async def collected(board, entry, after=0):
    return [event async for _, event in board.watch(entry, after)]
