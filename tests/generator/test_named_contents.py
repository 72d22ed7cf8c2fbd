"""Contents by name: refused by feature and count before they are read, and their memory bounded while they are read."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.api.contents import whole
from zrelay_generator.api.expansion import ExpansionBudget
from zrelay_generator.api.requests import RequestReader
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.store.sqlite import SqliteJobStore
from zrelay_shared.callers import NOBODY, Caller, set_current_caller
from zrelay_shared.errors import FeatureMissing, InvalidArgument, MessageTooLarge
from zrelay_shared.security.permissions import CALLER
from zrelay_shared.service.decoding import StartedWork, start_in_thread
from zrelay_shared.wire import Parcel

from .fixture_types import Load, RequestOf, Serve
from .generator_client import GeneratorClient, digest, serialized
from .parsing import accepts_of

pytestmark = pytest.mark.hostile

T = TypeVar("T")
UNKNOWN = "0" * 64


@pytest.fixture(scope="session")
def accepts(demo: Path, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    return accepts_of(demo, load(demo), tmp_path_factory.mktemp("cache"))


def named_often(request_of: RequestOf, sha256: str) -> dict[str, Parcel[pb.GenerateRequest]]:
    """Returns requests that name a content many times in features that the demo checkpoint does not have."""
    controls, references = request_of(seed=1), request_of(seed=1)
    for _ in range(64):
        controls.message.spec.controls.add().image.content.sha256 = sha256
        references.message.spec.omni.images.add().content.sha256 = sha256
        references.message.spec.omni.siglip_contents.add(sha256=sha256)
    return {"generate.control": controls, "generate.omni": references}


async def check_ids(caller: GeneratorClient, job_id: str) -> None:
    """Checks that every call refuses an id that no job can have."""
    calls: tuple[tuple[str, Message, type[Message]], ...] = (
        ("GetJob", pb.GetJobRequest(job_id=job_id), pb.GetJobResponse),
        ("CancelJob", pb.CancelJobRequest(job_id=job_id), pb.CancelJobResponse),
        ("CancelJob", pb.CancelJobRequest(request_id=job_id), pb.CancelJobResponse),
    )
    for method, request, reply in calls:
        with pytest.raises(InvalidArgument) as refused:
            await caller.stub.call(method, request, reply)
        assert refused.value.reason in ("JOB_ID_INVALID", "REQUEST_ID_INVALID")
    with pytest.raises(InvalidArgument) as watched:
        await anext(caller.watching(job_id))
    assert watched.value.reason == "JOB_ID_INVALID"


async def test_what_is_refused_before_anything_is_read(serve_kept: Serve, request_of: RequestOf) -> None:
    """A content that is not stored is refused as unknown once it is read, and so is a job."""
    caller = await serve_kept()
    for job_id in ("a" * 65, "a/b", "\x1b[2J", "狐"):
        await check_ids(caller, job_id)
    for feature, request in named_often(request_of, UNKNOWN).items():
        with pytest.raises(FeatureMissing) as refused:
            await caller.generate(request)
        assert refused.value.metadata["feature"] == feature
    many = request_of(seed=1)
    for _ in range(2000):
        many.message.spec.controls.add().image.content.sha256 = UNKNOWN
    with pytest.raises(InvalidArgument) as too_many:
        await caller.generate(many)
    assert (too_many.value.reason, too_many.value.field) == ("MESSAGE_TOO_COMPLEX", "spec.controls")


def test_a_content_with_several_names_is_parsed_once(request_of: RequestOf) -> None:
    request = request_of(seed=1)
    raw = serialized(request)
    spec = request.message.spec
    for holder in (spec.prompt, spec.negative_prompt):
        holder.content.sha256 = digest(raw)
    full = whole(Parcel(spec, request), lambda sha256, size, field: raw)
    first, second = (
        full.bytes_of(holder.prompt_embeds.segments[0].prompt_embeds)
        for holder in (full.message.prompt, full.message.negative_prompt)
    )
    assert first is second, "one view of the same bytes"


async def test_contents_count_as_often_as_they_are_named(
    opened: Callable[[], SqliteJobStore], request_of: RequestOf, accepts: Acceptance
) -> None:
    store, data = opened(), b"\xff" * 600_000
    incoming = store.incoming()
    await store.write_incoming(incoming, data)
    await store.keep_incoming(incoming, digest(data), len(data), "")
    request = request_of(seed=1)
    spec = request.message.spec
    for holder in (spec.prompt, spec.negative_prompt):
        holder.content.sha256 = digest(data)
    with pytest.raises(MessageTooLarge) as refused:
        await RequestReader(accepts, store, lambda job: None, most_bytes=1_000_000).read(
            request, spec, "request", caller=NOBODY
        )
    assert refused.value.metadata == {"bytes": "1200000", "max_bytes": "1000000"}
    with pytest.raises(InvalidArgument) as read:
        await RequestReader(accepts, store, lambda job: None, most_bytes=1_200_000).read(
            request, spec, "request", caller=NOBODY
        )
    assert read.value.reason == "MESSAGE_MALFORMED", "the content is read"


def in_thread(work: Callable[[], T]) -> Callable[[], StartedWork[T]]:
    """Returns what starts work in a thread."""
    return lambda: start_in_thread(lambda _: work())


async def test_requests_wait_for_the_memory_of_others() -> None:
    budget, ends = ExpansionBudget(100), threading.Event()
    first = asyncio.create_task(budget.run(60, in_thread(ends.wait)))
    await asyncio.sleep(0)
    second = asyncio.create_task(budget.run(60, in_thread(ends.is_set)))
    third = asyncio.create_task(budget.run(1, in_thread(ends.is_set)))
    await asyncio.sleep(0)
    first.cancel()  # its thread still holds the memory
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done() and not third.done()
    ends.set()
    assert await second and await third, "in their order, once the thread has ended"
    with pytest.raises(MessageTooLarge):
        await budget.run(101, in_thread(lambda: None))


async def test_callers_take_turns_at_the_memory() -> None:
    budget, ends, order = ExpansionBudget(100), threading.Event(), list[str]()
    running = asyncio.create_task(budget.run(100, in_thread(ends.wait)))
    await asyncio.sleep(0)

    async def expand(name: str) -> None:
        set_current_caller(Caller(name[0], CALLER))
        await budget.run(100, in_thread(lambda: order.append(name)))

    waiting = [asyncio.create_task(expand(name)) for name in ("a1", "a2", "a3", "b1")]
    await asyncio.sleep(0)
    waiting[1].cancel()
    ends.set()
    await asyncio.gather(running, *waiting, return_exceptions=True)
    assert order == ["a1", "b1", "a3"]
    assert await budget.run(100, in_thread(lambda: "free")) == "free"


async def test_a_failed_request_gives_its_memory_back() -> None:
    budget = ExpansionBudget(100)

    def fails() -> None:
        raise ValueError("a bad content")

    for _ in range(3):
        with pytest.raises(ValueError, match="a bad content"):
            await budget.run(100, in_thread(fails))
