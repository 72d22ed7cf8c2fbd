"""The relay as real processes: a machine whose stack is up, generators that may be killed, links that may be cut."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cutting import CuttableLink

from tests.helpers.jobs import PROMPT
from tests.helpers.links import LinkTo, linked
from tests.helpers.processes import GeneratorProcess, Machine, gone
from zrelay_client import Client, Embeds, Result

from .watched import LONG


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nothing runs. What a test leaves running is ended."""
    machine = Machine(tmp_path)
    machine.here.mkdir()
    yield machine
    if (machine.state / "stack.json").exists():
        machine.zrelay("down")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with the demo stack up, left running by `zrelay up --detach`."""
    machine = Machine(tmp_path_factory.mktemp("home"))
    ran = machine.process("up", "--detach")
    assert ran.returncode == 0, ran.stderr
    pids = machine.pids()
    yield machine
    down = machine.zrelay("down")
    assert down.returncode == 0, down.stderr
    assert gone(pids)
    assert not (machine.state / "stack.json").exists()


@pytest.fixture
def here(home: Machine, tmp_path: Path) -> Machine:
    """The machine of `home`, its working folder empty."""
    for left in home.here.iterdir():
        left.rename(tmp_path / left.name)
    return home


@pytest.fixture(scope="session")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[GeneratorProcess]]:
    """Two generators of one model. Jobs without a watcher live for minutes on the first, as long as a busy machine may
    take to start it again, and for seconds on the second."""
    leases = {"steadfast": "240", "brief": "6"}
    both = [GeneratorProcess(tmp_path_factory.mktemp(name), ("--lease-s", lease)) for name, lease in leases.items()]
    try:
        for one in both:
            one.start()
        for one in both:
            one.ready()
        yield both
    finally:
        for one in both:
            if one.popen is not None:
                one.kill()


@pytest.fixture
def steadfast(generators: list[GeneratorProcess]) -> GeneratorProcess:
    """The generator whose jobs live for minutes without a watcher, serving."""
    generators[0].ready()
    return generators[0]


@pytest.fixture
def brief(generators: list[GeneratorProcess]) -> GeneratorProcess:
    """The generator whose jobs live for seconds without a watcher, serving."""
    generators[1].ready()
    return generators[1]


@pytest.fixture(scope="session")
def embeds(home: Machine) -> Embeds:
    """PROMPT, encoded by the stack's encoder."""
    with Client(encoder=home.endpoints()["encoder"]) as client:
        return client.encode(PROMPT)


@pytest.fixture(scope="session")
def undisturbed(generators: list[GeneratorProcess], embeds: Embeds) -> Result:
    """The result of LONG where nothing disturbs it."""
    with Client(generator=generators[0].ready()) as client:
        return client.generate(embeds, **LONG)


@pytest.fixture
async def link_to() -> AsyncIterator[LinkTo]:
    """Makes links to endpoints; they are cut when the test ends."""
    async with AsyncExitStack() as stack:

        async def make(target: str) -> CuttableLink:
            return await stack.enter_async_context(linked(target))

        yield make
