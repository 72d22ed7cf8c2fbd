"""A generator that is ready while the digest of its text encoder's weights is still computed.

It accepts and computes jobs, but nothing that depends on the relation of the encoder leaves before it is known.
"""

import asyncio
import io
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from tests.helpers.polling import eventually, until_async
from zrelay.v1 import jobs_pb2 as jpb
from zrelay.v1.embeds_pb2 import EncoderRelation
from zrelay_generator.model.identity import hash_encoder
from zrelay_shared.errors import Cancelled, CheckpointError, Draining, EncoderMismatch
from zrelay_shared.fingerprint import EncoderFingerprint, to_message
from zrelay_shared.weight_files import WeightFiles

from .fixture_types import RequestOf
from .generator_client import GeneratorClient, images, serve_kept

__all__ = ["serve_kept"]
Serve = Callable[..., Awaitable[GeneratorClient]]
SMALL = {"width": 128, "height": 128, "num_inference_steps": 1, "seed": 1}
EXACT = EncoderRelation.ENCODER_RELATION_EXACT


class GatedHash:
    """Hashes the weights as the generator does, but not before `open`. `error` fails instead."""

    def __init__(self, error: Exception | None = None) -> None:
        self._opened = threading.Event()
        self._error = error
        self.stopped = False

    def open(self) -> None:
        self._opened.set()

    def __call__(
        self, encoder: EncoderFingerprint, weights: WeightFiles, stopped: Callable[[], bool]
    ) -> EncoderFingerprint:
        while not self._opened.wait(0.01):
            if stopped():
                self.stopped = True
                raise Cancelled("stopped")
        if self._error is not None:
            raise self._error
        return hash_encoder(encoder, weights, stopped)


async def computed(caller: GeneratorClient, job_id: str) -> None:
    """Returns when the device has computed an image of a job."""

    async def is_decoded() -> bool:
        progress = (await caller.job(job_id)).progress
        return progress.stage == jpb.STAGE_KIND_DECODE and progress.completed == progress.total > 0

    await until_async(is_decoded, "the image is computed", 60.0)


def provenance(image: jpb.JobImage) -> Any:
    return json.loads(Image.open(io.BytesIO(image.data)).text["zrelay"])  # type: ignore[attr-defined]


def accepted(events: list[jpb.JobEvent]) -> jpb.JobAccepted:
    assert events[0].WhichOneof("event") == "accepted"
    return events[0].accepted


async def test_jobs_are_computed_while_the_digest_is_pending_and_leave_after_it(
    serve_kept: Serve, request_of: RequestOf
) -> None:
    gate = GatedHash()
    caller = await serve_kept({"hash_weights": gate})
    info = await caller.info()
    assert info.ready and not info.expected_encoder.weights_digest and info.expected_encoder.tokenizer_digest
    request = request_of(request_id="a", **SMALL | {"num_inference_steps": 2})
    request.message.spec.preview.every_steps = 1
    watching = asyncio.create_task(caller.generate(request))
    repeating = asyncio.create_task(caller.generate(request))
    job = await caller.submit(request)
    await computed(caller, job.job_id)
    assert not watching.done() and not repeating.done()
    assert (await caller.job(job.job_id)).state == jpb.JOB_STATE_RUNNING
    gate.open()
    events = await watching
    assert accepted(events).encoder_relation == EXACT and not accepted(events).encoder_differences
    assert [event.WhichOneof("event") for event in events][-1] == "done"
    assert any(event.HasField("preview") for event in events)
    found = provenance(images(events)[0])
    assert found["encoder_relation"] == "exact" and found["encoder_differences"] == []
    assert accepted(await repeating).encoder_relation == EXACT
    assert (await caller.info()).expected_encoder.weights_digest
    again = await serve_kept()  # the digest is cached now
    stored = await again.watch(job.job_id)
    assert accepted(stored).encoder_relation == EXACT and images(stored)[0].data == images(events)[0].data


@pytest.mark.parametrize("changed", [{"weights_digest": "1" * 64}, {"weights_digest": ""}, {"hidden_layer": -3}])
async def test_the_relation_is_that_of_a_generator_that_knew_it_at_once(
    serve_kept: Serve, request_of: RequestOf, fingerprint: EncoderFingerprint, changed: dict[str, Any]
) -> None:
    found = []
    for gated in (True, False):
        gate = GatedHash()
        caller = await serve_kept({"hash_weights": gate})
        request = request_of(request_id=f"r{gated}", **SMALL)
        made_by = replace(fingerprint, **changed)
        request.message.spec.prompt.prompt_embeds.fingerprint.CopyFrom(to_message(made_by))
        watching = asyncio.create_task(caller.generate(request))
        if gated:
            await computed(caller, (await caller.submit(request)).job_id)
        gate.open()
        events = await watching
        first, text = accepted(events), provenance(images(events)[0])
        found.append((first.encoder_relation, list(first.encoder_differences), text))
    assert found[0] == found[1]


async def test_another_tokenizer_is_refused_at_once(
    serve_kept: Serve, request_of: RequestOf, fingerprint: EncoderFingerprint
) -> None:
    caller = await serve_kept({"hash_weights": GatedHash()})
    request = request_of(**SMALL)
    other = to_message(replace(fingerprint, tokenizer_digest="2" * 64))
    request.message.spec.prompt.prompt_embeds.fingerprint.CopyFrom(other)
    with pytest.raises(EncoderMismatch):
        await caller.generate(request)


@pytest.mark.parametrize("known_at_next_start", [True, False])
async def test_a_job_that_was_accepted_before_a_restart_gets_its_relation_after_it(
    serve_kept: Serve, request_of: RequestOf, known_at_next_start: bool
) -> None:
    caller = await serve_kept({"hash_weights": GatedHash()}, grace_s=0.2)
    job = await caller.submit(request_of(request_id="kept", **SMALL), detached=True)
    await computed(caller, job.job_id)
    gate = GatedHash()
    if known_at_next_start:
        gate.open()
    caller = await serve_kept({"hash_weights": gate})
    watching = asyncio.create_task(caller.watch(job.job_id))
    if not known_at_next_start:
        await computed(caller, job.job_id)
        assert not watching.done()
        gate.open()
    events = await watching
    assert accepted(events).encoder_relation == EXACT
    assert provenance(images(events)[0])["encoder_relation"] == "exact"
    record = await caller.store.by_id(job.job_id, None)
    assert record is not None
    assert jpb.JobAccepted.FromString(record.accepted).encoder_relation == EXACT


async def test_a_cancelled_job_does_not_wait_for_the_digest(serve_kept: Serve, request_of: RequestOf) -> None:
    gate = GatedHash()
    caller = await serve_kept({"hash_weights": gate})
    job = await caller.submit(request_of(request_id="no", **SMALL))
    watching = asyncio.create_task(caller.watch(job.job_id))
    await computed(caller, job.job_id)
    await caller.cancel(job.job_id)
    with pytest.raises(Cancelled):
        await watching
    gate.open()

    async def related() -> bool:
        record = await caller.store.by_id(job.job_id, None)
        return record is not None and jpb.JobAccepted.FromString(record.accepted).encoder_relation == EXACT

    await until_async(related, "the stored job has its relation")


async def test_a_shutdown_ends_the_hashing_and_parks_what_waits_for_it(
    serve_kept: Serve, request_of: RequestOf
) -> None:
    gate = GatedHash()
    caller = await serve_kept({"hash_weights": gate}, grace_s=0.2)
    job = await caller.submit(request_of(request_id="parked", **SMALL))
    watching = asyncio.create_task(caller.watch(job.job_id))
    await computed(caller, job.job_id)
    await caller.server.drain()
    with pytest.raises(Draining) as refused:
        await watching
    assert refused.value.metadata["parked"] == "true"
    await caller.server.close()
    await eventually(lambda: gate.stopped, "the hashing ends")


@pytest.mark.parametrize("error", [CheckpointError("damaged"), OSError("gone")])
async def test_weights_that_cannot_be_hashed_leave_the_encoder_unverified(
    serve_kept: Serve, request_of: RequestOf, error: Exception
) -> None:
    gate = GatedHash(error)
    caller = await serve_kept({"hash_weights": gate})
    watching = asyncio.create_task(caller.generate(request_of(**SMALL)))
    gate.open()
    first = accepted(await watching)
    assert first.encoder_relation == EncoderRelation.ENCODER_RELATION_UNVERIFIED
    assert any(text.startswith("weights_digest: ") for text in first.encoder_differences)
