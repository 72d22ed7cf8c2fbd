"""Anything in the calls of durable jobs gets a proper status, and the state folder is as it should be afterwards."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from residue import residue

from tests.helpers.polling import until
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1.content_pb2 import ContentRef

from .fuzzing import MOST_MORE_MIB, FuzzedGenerator, changed, check, fields_of, fuzzed_generator

pytestmark = pytest.mark.timeout(900)
KEPT = 40
"""Ended jobs that are kept: fewer than are submitted."""
DATA = b"some content" * 1000
EXAMPLES = {"SubmitJob": 100, "WatchJob": 60, "GetJob": 40, "CancelJob": 40, "ListJobs": 60}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def fuzzed(demo: Path, state: Path) -> Iterator[FuzzedGenerator]:
    flags = ("--state", str(state), "--keep-results", str(KEPT), "--lease-s", "5")
    with fuzzed_generator(demo, *flags) as made:
        yield made


@pytest.fixture
def good(fuzzed: FuzzedGenerator, request_of: Any) -> dict[str, Message]:
    """A request of each method that is answered well; the job is done, and was let go of perhaps by the test before."""
    painted = request_of(num_inference_steps=1, width=64, height=64, seed=3).to_bytes()
    submit = pb.SubmitJobRequest(spec=pb.GenerateRequest.FromString(painted).spec, request_id="good", detached=True)
    job = fuzzed.stub.SubmitJob(submit).job.job_id
    fuzzed.wait_until_idle()
    return {
        "SubmitJob": submit,
        "WatchJob": pb.WatchJobRequest(job_id=job, after_sequence=1),
        "GetJob": pb.GetJobRequest(job_id=job),
        "CancelJob": pb.CancelJobRequest(job_id=job),
        "ListJobs": pb.ListJobsRequest(page_size=3),
    }


def quiet(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def in_order(state: Path) -> None:
    """Returns once the folder holds only what its retention allows. Fails where it never does."""
    until(lambda: not residue(state, KEPT)[1], "nothing is left in the state folder")


@pytest.mark.parametrize("method", EXAMPLES)
def test_any_job_call_gets_a_proper_status(
    fuzzed: FuzzedGenerator, good: dict[str, Message], state: Path, method: str
) -> None:
    message = good[method]
    assert fuzzed.status(method, message.SerializeToString())[0] is grpc.StatusCode.OK
    before, numbers = fuzzed.resident_mib(), itertools.count()
    changes = st.tuples(st.sampled_from(fields_of(type(message))), st.integers(0, 50), st.sampled_from([1, 2, 40, 400]))

    @quiet(EXAMPLES[method])
    @given(st.lists(changes, min_size=1, max_size=4))
    def fields(changes: list[Any]) -> None:
        asked: Any = type(message).FromString(message.SerializeToString())
        if method == "SubmitJob":
            asked.request_id = f"{method}-{next(numbers)}"
        for path, pick, times in changes:
            changed(asked, path, pick, times)
        check(fuzzed, method, asked.SerializeToString())

    @quiet(20)
    @given(st.binary(max_size=100), st.integers(0, 200))
    def noise(raw: bytes, kept: int) -> None:
        check(fuzzed, method, message.SerializeToString()[:kept] + raw)

    fields()
    noise()
    fuzzed.wait_until_idle()
    in_order(state)
    assert fuzzed.status(method, message.SerializeToString())[0] in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
    assert fuzzed.resident_mib() - before < MOST_MORE_MIB


def test_any_upload(fuzzed: FuzzedGenerator, state: Path) -> None:
    """Pieces of any size, in any order, with anything said of them; some are broken off."""
    before = fuzzed.resident_mib()
    sha256 = hashlib.sha256(DATA).hexdigest()
    changes = st.tuples(
        st.integers(0, 3), st.sampled_from(fields_of(pb.UploadBlobRequest)), st.integers(0, 50), st.sampled_from([1, 2])
    )

    @quiet(120)
    @given(st.integers(1, 4), st.lists(changes, max_size=3), st.booleans(), st.binary(max_size=20), st.booleans())
    def pieces(count: int, changes: list[Any], noisy: bool, noise: bytes, broken: bool) -> None:
        size = -(-len(DATA) // count)
        messages = [pb.UploadBlobRequest(data=DATA[at : at + size]) for at in range(0, len(DATA), size)]
        messages[0].content.CopyFrom(ContentRef(sha256=sha256, size_bytes=len(DATA)))
        for number, path, pick, times in changes:
            changed(messages[number % len(messages)], path, pick, times)
        raws = [each.SerializeToString() for each in messages] + [noise] * noisy
        if broken:
            fuzzed.call("UploadBlob", *raws).cancel()
        check(fuzzed, "UploadBlob", *raws)

    pieces()
    assert fuzzed.status("UploadBlob")[0] is grpc.StatusCode.INVALID_ARGUMENT, "nothing at all"
    whole = pb.UploadBlobRequest(content=ContentRef(sha256=sha256, size_bytes=len(DATA)), data=DATA)
    assert fuzzed.status("UploadBlob", whole.SerializeToString())[0] is grpc.StatusCode.OK
    in_order(state)
    assert (state / "blobs" / sha256).read_bytes() == DATA
    assert fuzzed.resident_mib() - before < MOST_MORE_MIB
