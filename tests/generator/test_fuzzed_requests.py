"""Anything in a GenerateRequest gets a proper status from a real process, which lives on and takes no more memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.extremes import improper
from zrelay.v1 import generator_pb2 as pb

from .fixture_types import MakeEmbeds, RequestOf
from .fuzzing import MOST_MORE_MIB, FuzzedGenerator, changed, check, fields_of, fuzzed_generator


@pytest.fixture(scope="module")
def fuzzed(demo: Path) -> Iterator[FuzzedGenerator]:
    with fuzzed_generator(demo, "--state", "none") as made:
        yield made


@pytest.fixture(scope="module")
def good(request_of: RequestOf, embeds: MakeEmbeds) -> bytes:
    """A request that paints."""
    asked = {"num_inference_steps": 2, "width": 64, "height": 64, "guidance_scale": 1.0, "seed": 3}
    return request_of(negative=embeds(3, 128), **asked).to_bytes()


CHANGES = st.tuples(
    st.sampled_from(fields_of(pb.GenerateRequest)), st.integers(0, 50), st.sampled_from([1, 2, 40, 400])
)
QUIET = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def test_any_generate_request_gets_a_proper_status(fuzzed: FuzzedGenerator, good: bytes) -> None:
    for _ in range(3):
        assert fuzzed.status("Generate", good)[0] is grpc.StatusCode.OK
    before = fuzzed.resident_mib()

    @QUIET
    @given(st.lists(CHANGES, min_size=1, max_size=4))
    def fields(changes: list[Any]) -> None:
        message = pb.GenerateRequest.FromString(good)
        for path, pick, times in changes:
            changed(message, path, pick, times)
        check(fuzzed, "Generate", message.SerializeToString())

    @QUIET
    @given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6), st.integers(0, 1 << 20))
    def bits(flips: list[tuple[int, int]], cut: int) -> None:
        raw = bytearray(good)
        for place, value in flips:
            raw[place % len(raw)] = value
        check(fuzzed, "Generate", bytes(raw[: cut % (2 * len(raw))]))

    @QUIET
    @given(st.binary(max_size=200))
    def noise(raw: bytes) -> None:
        check(fuzzed, "Generate", raw)

    fields()
    bits()
    noise()
    assert fuzzed.health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert fuzzed.status("Generate", good)[0] is grpc.StatusCode.OK
    grown = fuzzed.resident_mib() - before
    print(f"\nthe process took {grown:.0f} MiB more")
    assert grown < MOST_MORE_MIB


@pytest.mark.deep  # some hundred calls
def test_numbers_at_their_extremes_get_a_proper_status(fuzzed: FuzzedGenerator, good: bytes) -> None:
    base = pb.GenerateRequest.FromString(good)
    base.spec.sampling.num_inference_steps = 1
    assert improper(fuzzed.channel, "GeneratorService/Generate", base) == []
    for method, request in (
        ("ListJobs", pb.ListJobsRequest()),
        ("WatchJob", pb.WatchJobRequest(job_id="unknown")),
        ("GetInfo", pb.GeneratorServiceGetInfoRequest()),
    ):
        assert improper(fuzzed.channel, f"GeneratorService/{method}", request) == []
    assert fuzzed.health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_requests_that_are_given_up(fuzzed: FuzzedGenerator, good: bytes) -> None:
    """Callers that come and go at once leave nothing behind."""
    for number in range(60):
        call = fuzzed.call("Generate", good)
        if number % 2:
            next(call)
        call.cancel()
    fuzzed.wait_until_idle()
    assert fuzzed.status("Generate", good)[0] is grpc.StatusCode.OK
