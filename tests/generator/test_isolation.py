"""Callers with identities on one generator: what one sees does not depend on what others did."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.identities import dial_as, serving_identities
from zrelay.v1 import content_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.api.page_tokens import PageTokens
from zrelay_generator.service import GeneratorServicer
from zrelay_generator.store.opening import DATABASE, connect, salvaged
from zrelay_generator.store.records import JobState, ResultRecord
from zrelay_generator.store.retention import LEAST_BYTES, Retention
from zrelay_generator.store.sqlite import SqliteJobStore
from zrelay_shared.callers import NOBODY, Caller
from zrelay_shared.errors import IdempotencyConflict, InvalidArgument, NotFound, ZrelayError
from zrelay_shared.rpc import Stub
from zrelay_shared.security.permissions import ALL, CALLER
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.wire import Parcel

from .fixture_types import MakeEmbeds, MakeManager, OpenStore, RequestOf
from .generator_client import SERVICE, digest, serialized
from .stores import ended, named, row

T = TypeVar("T")
ALICE, BOB = "alice", "bob"
NO_JOB = "0" * 16


@dataclass
class Seen:
    """A caller, and what it has seen.

    Attributes:
        stub: Calls the generator as this caller.
        jobs: Its jobs, in their order.
        log: What it has seen, without times, places in the queue and the random part of ids.
    """

    stub: Stub
    jobs: list[str] = field(default_factory=list)
    log: list[object] = field(default_factory=list)

    def known_as(self, job_id: str) -> str:
        """Returns the name of a job that does not depend on chance."""
        return f"own job {self.jobs.index(job_id)}" if job_id in self.jobs else "another job"


class World:
    """A generator with an event loop of its own, and the requests of one example, which callers choose from.

    Attributes:
        number: Number of the example. Its request ids and contents are new.
        requests: Requests with different embeddings.
        contents: The embeddings, serialized.
    """

    def __init__(self, folder: Path, state: Path, request: Callable[[int, int], Parcel[pb.GenerateRequest]]) -> None:
        self.number = 0
        self.requests: list[Parcel[pb.GenerateRequest]] = []
        self.contents: list[bytes] = []
        self._request = request
        self._loop = asyncio.new_event_loop()
        self._running = AsyncExitStack()
        config = GeneratorConfig(model=folder, device="cpu", dtype="float32", threads=1, state=state)
        serving = serving_identities(GeneratorServicer(config))
        self._endpoint = self.run(self._running.enter_async_context(serving))

    def next_example(self) -> None:
        """Makes other request ids and contents: what callers of earlier examples left belongs to others."""
        self.number += 1
        self.requests = [self._request(tokens, self.number) for tokens in (3, 4)]
        self.contents = [serialized(request) for request in self.requests]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self._running.aclose())
        self._loop.close()

    @asynccontextmanager
    async def caller(self, name: str) -> AsyncIterator[Seen]:
        """Connects as a caller that nobody was before."""
        async with dial_as(f"{name}-{self.number}", self._endpoint) as channel:
            yield Seen(Stub(channel, SERVICE))


@pytest.fixture(scope="module")
def world(
    demo: Path, tmp_path_factory: pytest.TempPathFactory, request_of: RequestOf, embeds: MakeEmbeds
) -> Iterator[World]:
    sampling = {"num_inference_steps": 1, "width": 64, "height": 64, "seed": 7}

    def request(tokens: int, number: int) -> Parcel[pb.GenerateRequest]:
        return request_of(embeds(tokens, 128, number), **sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRELAY_STATE", str(tmp_path_factory.mktemp("isolation")))
        made = World(demo, tmp_path_factory.mktemp("state"), request)
        yield made
        made.close()


@dataclass(frozen=True)
class Operation:
    """One thing that a caller does.

    Attributes:
        caller: Who does it.
        kind: What it does.
        request: Number of the request id.
        content: Number of the embeddings.
        by_name: Whether they are named by their digest.
        own: Whether it looks at its latest job, or else at the other's.
    """

    caller: str
    kind: str
    request: int
    content: int
    by_name: bool
    own: bool


OPERATIONS = st.lists(
    st.builds(
        Operation,
        st.sampled_from([ALICE, BOB]),
        st.sampled_from(["generate", "upload", "get", "watch", "list", "cancel", "cancel request", "cancel at once"]),
        st.integers(0, 1),
        st.integers(0, 1),
        st.booleans(),
        st.booleans(),
    ),
    min_size=4,
    max_size=12,
)


async def perform(world: World, who: Seen, operation: Operation, others_job: str) -> None:
    """Does it, and adds what the caller sees to its log."""
    target = (who.jobs[-1] if who.jobs else NO_JOB) if operation.own else others_job
    try:
        seen = await _performed(world, who, operation, target)
    except ZrelayError as error:
        texts = [error.reason, error.message, *map(str, sorted(error.metadata.items()))]
        seen = [_without_ids(text.replace(target, who.known_as(target)), who) for text in texts]
    who.log.append((operation.kind, seen))


def _without_ids(text: str, who: Seen) -> str:
    for job_id in who.jobs:
        text = text.replace(job_id, who.known_as(job_id))
    return text


async def _performed(world: World, who: Seen, operation: Operation, target: str) -> object:
    stub, name = who.stub, f"request-{world.number}-{operation.request}"
    match operation.kind:
        case "generate" | "cancel at once":
            source = world.requests[operation.content]
            message = pb.GenerateRequest()
            message.CopyFrom(source.message)
            message.request_id = name
            if operation.by_name:
                reference = content_pb2.ContentRef(sha256=digest(world.contents[operation.content]))
                message.spec.prompt.content.CopyFrom(reference)
            if operation.kind == "cancel at once":
                return await _cancelled(who, Parcel(message, source))
            stream = stub.stream("Generate", Parcel(message, source), pb.GenerateResponse)
            return _known_events(who, [parcel.message.event async for parcel in stream])
        case "upload":
            data = world.contents[operation.content]
            first = pb.UploadBlobRequest(content=content_pb2.ContentRef(sha256=digest(data)), data=data)

            async def parts() -> Any:
                yield first

            reply = await stub.send("UploadBlob", parts(), pb.UploadBlobResponse)
            return reply.message.existed, reply.message.content.size_bytes
        case "get":
            return _known(
                who, (await stub.call("GetJob", pb.GetJobRequest(job_id=target), pb.GetJobResponse)).message.job
            )
        case "watch":
            watch = stub.stream("WatchJob", pb.WatchJobRequest(job_id=target), pb.WatchJobResponse)
            return _known_events(who, [parcel.message.event async for parcel in watch])
        case "list":
            return await _listed(who)
        case "cancel":
            request = pb.CancelJobRequest(job_id=target)
        case _:
            request = pb.CancelJobRequest(request_id=name)
    return _known(who, (await stub.call("CancelJob", request, pb.CancelJobResponse)).message.job)


async def _cancelled(who: Seen, request: Parcel[pb.GenerateRequest]) -> object:
    """Submits a job of many steps and cancels it."""
    submit = pb.SubmitJobRequest(request_id=request.message.request_id, spec=request.message.spec, detached=True)
    submit.spec.sampling.num_inference_steps = 100
    reply = await who.stub.call("SubmitJob", Parcel(submit, request), pb.SubmitJobResponse)
    job_id = reply.message.job.job_id
    _remember(who, job_id)
    cancelled = await who.stub.call("CancelJob", pb.CancelJobRequest(job_id=job_id), pb.CancelJobResponse)
    return _known(who, cancelled.message.job)


async def _listed(who: Seen) -> object:
    """Returns all jobs, page by page."""
    pages: list[list[object]] = []
    token = ""
    while token or not pages:
        request = pb.ListJobsRequest(page_size=2, page_token=token)
        reply = (await who.stub.call("ListJobs", request, pb.ListJobsResponse)).message
        pages.append([_known(who, job) for job in reply.jobs])
        token = reply.next_page_token
    return pages


def _remember(who: Seen, job_id: str) -> None:
    if job_id not in who.jobs:
        who.jobs.append(job_id)


def _known(who: Seen, job: jpb.Job) -> object:
    return who.known_as(job.job_id), job.request_id, job.state, job.error.reason, job.sampling.seed


def _known_events(who: Seen, events: Sequence[jpb.JobEvent]) -> object:
    _remember(who, events[0].accepted.job_id)
    images = [(event.image.image_index, event.image.seed, event.image.pixels_sha256) for event in events]
    return who.known_as(events[0].accepted.job_id), [image for image in images if image[2]]


@settings(max_examples=settings().max_examples // 2, suppress_health_check=[HealthCheck.too_slow])
@given(operations=OPERATIONS)
def test_what_a_caller_sees_does_not_depend_on_others(world: World, operations: list[Operation]) -> None:
    async def seen_by_bob() -> tuple[list[object], list[object]]:
        async with world.caller("bob-alone") as alone, world.caller(BOB) as bob, world.caller(ALICE) as alice:
            for operation in operations:
                if operation.caller == BOB:
                    await perform(world, alone, operation, NO_JOB)
            for operation in operations:
                who, other = (bob, alice) if operation.caller == BOB else (alice, bob)
                await perform(world, who, operation, other.jobs[-1] if other.jobs else NO_JOB)
            for who in (alone, bob):
                who.log.append(await _listed(who))
            return alone.log, bob.log

    world.next_example()
    alone, beside_alice = world.run(seen_by_bob())
    assert alone == beside_alice


MEMBER, OTHER, BOSS = Caller("member a", CALLER), Caller("member b", CALLER), Caller("member boss", ALL)


async def test_a_job_that_lives_is_found_by_its_owner_and_by_administrators(manager: MakeManager) -> None:
    made = manager()
    job = await made.submit("request", caller=MEMBER.name, owner=MEMBER.owner)
    directory, job_id = made.manager.directory, job.record.job_id
    for caller in (MEMBER, BOSS):
        assert await directory.by_id(job_id, caller) is job is await directory.by_request("request", caller)
        assert await directory.page(1 << 62, frozenset(JobState), 9, caller) == [job]
    for find, name in ((directory.by_id, job_id), (directory.by_request, "request")):
        refusals = []
        for asked in (name, "unknown"):
            with pytest.raises(NotFound) as refused:
                await find(asked, OTHER)
            refusals.append((refused.value.message.replace(asked, ""), refused.value.reason, refused.value.field))
        assert refusals[0] == refusals[1]
    assert not await directory.page(1 << 62, frozenset(JobState), 9, OTHER)


async def test_a_request_id_is_of_its_caller(manager: MakeManager) -> None:
    made = manager()
    jobs = [
        await made.submit("request", identity=identity, owner=owner)
        for owner, identity in (("member a", "1"), ("member b", "2"), ("member a", "1"), ("", "3"))
    ]
    assert jobs[0] is jobs[2] and len({job.record.job_id for job in jobs}) == 3
    directory = made.manager.directory
    assert await directory.by_request("request", NOBODY) is jobs[3], "an administrator finds its own one first"
    assert await directory.by_request("request", BOSS) is jobs[3], "then the latest of all"
    with pytest.raises(IdempotencyConflict) as refused:
        await made.submit("request", identity="2", owner="member a")
    assert refused.value.metadata["job_id"] == jobs[0].record.job_id


async def test_callers_without_identities_share_their_jobs(manager: MakeManager) -> None:
    """A client on loopback, or where nothing is authenticated, may come back from another address."""
    made, first, second = manager(), Caller("ipv4:a", ALL, False), Caller("ipv4:b", ALL, False)
    job = await made.submit("request", caller=first.name, owner=first.owner)
    assert await made.submit("request", caller=second.name, owner=second.owner) is job


# Contents.


async def sent(store: SqliteJobStore, data: bytes, owner: str) -> None:
    """Stores a content as an upload of an owner."""
    incoming = store.incoming()
    await store.write_incoming(incoming, data)
    await store.keep_incoming(incoming, named(data), len(data), owner)
    await store.drop_incoming(incoming)


async def test_a_content_is_known_to_those_that_sent_it(opened: OpenStore) -> None:
    store, data = opened(), b"embeddings"
    await sent(store, data, "a")
    assert [await store.known_size(named(data), owner) for owner in ("a", "b", "")] == [10, None, None]
    await store.accept(row(1, owner="b"), b"spec", {named(data): data}, {named(data): 10})
    store = opened()
    assert [await store.known_size(named(data), owner) for owner in ("a", "b", "")] == [10, 10, None], "both sent it"
    assert [await store.needed([named(data)], owner) for owner in ("a", "b")] == [set(), {named(data)}]


async def test_a_result_is_known_to_its_owner(opened: OpenStore) -> None:
    store, image = opened(), b"an image"
    await store.accept(row(1, owner="a"), b"spec", {}, {})
    await store.add_image(1, ResultRecord(2, "{}", named(image), 8), image)
    assert [await store.known_size(named(image), owner) for owner in ("a", "b", "")] == [8, None, None]


@pytest.mark.parametrize("owner", ["a", "b"])
async def test_a_content_that_another_has_sent_is_written_again(opened: OpenStore, tmp_path: Path, owner: str) -> None:
    """Otherwise the time of the call would tell that it is there."""
    store, data = opened(), b"embeddings"
    await sent(store, data, "a")
    file = tmp_path / "state" / "blobs" / named(data)
    before = file.stat().st_ino
    await store.accept(row(1, owner=owner), b"spec", {named(data): data}, {named(data): 10})
    assert (file.stat().st_ino != before) is (owner == "b") and await store.read(named(data)) == data


async def test_contents_of_one_owner_do_not_drop_those_of_another(opened: OpenStore) -> None:
    store = opened(Retention(3600.0, 100, 1 << 20, content_bytes=8 * LEAST_BYTES))
    kept = [bytes([letter]) * 10 for letter in b"abc"]
    for data in kept:
        await sent(store, data, "modest")
    for number in range(20):
        await sent(store, number.to_bytes(4, "big"), "greedy")
    await sent(store, kept[0], "greedy")
    await store.retain()
    assert [await store.known_size(named(data), "modest") for data in kept] == [10, 10, 10]
    of_greedy = [await store.known_size(named(number.to_bytes(4, "big")), "greedy") for number in range(20)]
    assert of_greedy == [None] * 16 + [4] * 4, "its latest ones, beside the one that both sent"


async def test_results_of_one_owner_do_not_drop_those_of_another(opened: OpenStore) -> None:
    store, arrivals = opened(), itertools.count(1)
    for owner, count in (("modest", 2), ("greedy", 12)):
        for arrival in itertools.islice(arrivals, count):
            await store.accept(row(arrival, owner=owner), b"spec", {}, {})
            await store.finish(ended(arrival, owner=owner, ended_s=time.time() + arrival))
    store = opened(Retention(3600.0, results=6, result_bytes=1 << 20, content_bytes=0))
    assert await store.retain() == 8
    states = [JobState.SUCCEEDED]
    assert [len(await store.before(1 << 62, states, 99, owner)) for owner in ("modest", "greedy")] == [2, 4]


async def test_the_senders_of_a_damaged_database_are_saved(opened: OpenStore, tmp_path: Path) -> None:
    store = opened()
    await sent(store, b"kept", "a")
    await store.accept(row(1, owner="b"), b"spec", {named(b"input"): b"input"}, {named(b"input"): 5})
    store.close()
    path = tmp_path / "state" / DATABASE
    db = connect(path)
    db.execute("DELETE FROM senders WHERE owner = 'b'")
    db.close()
    salvaged(path)[0].close()
    store = opened()
    assert await store.known_size(named(b"kept"), "a") == 4
    assert await store.known_size(named(b"input"), "b") == 5, "from the job that needs it"
    assert await store.known_size(named(b"kept"), "b") is None


def test_page_tokens_are_of_their_caller_and_hide_numbers() -> None:
    pages = PageTokens()
    tokens = [pages.token(arrival, "a") for arrival in (1, 2, 1 << 62)]
    assert [pages.read(token, "a") for token in tokens] == [1, 2, 1 << 62]
    assert len({token[:16] for token in tokens}) == len({token[16:] for token in tokens}) == 3, "no common parts"
    changed = f"{int(tokens[0], 16) ^ 1:032x}"
    wrong = ["", "1", "x" * 32, tokens[0][:-1], tokens[0] + "00", changed, PageTokens().token(1, "a")]
    for token, owner in [*((token, "a") for token in wrong), (tokens[0], "b")]:
        with pytest.raises(InvalidArgument, match="page_token"):
            pages.read(token, owner)
